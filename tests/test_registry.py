from __future__ import annotations

import sys
from types import ModuleType

import pytest

from lcl_composer.errors import ConfigError
from lcl_composer.registry import REGISTRIES, Registry


class Part:
    """A part with :class:`~torch.nn.Module` in it."""

    def __init__(
        self, width: int, heads: int = 8, betas: tuple[float, float] = (0.9, 0.98), log_dir: str = ""
    ):
        if not width:
            raise AssertionError("no width")  # as torch has it, where Python asks for a ValueError
        if width % heads:
            raise ValueError(f"{heads} heads do not divide {width}")
        self.width, self.heads, self.betas, self.log_dir = width, heads, betas, log_dir


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Registry:
    module = ModuleType("parts_for_a_test")
    module.Part = Part  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "parts_for_a_test", module)
    entries = {"part": "parts_for_a_test:Part", "absent": "no_such_module_here:Part"}
    return Registry("part", entries, injected=("width",))


def messages(table: Registry, **spec: object) -> list[str]:
    return [f"{p.key}: {p.message}" for p in table.problems(spec)]


def test_builds_with_parameters_of_the_yaml_and_of_the_program(table: Registry) -> None:
    part = table.build(
        {"name": "part", "heads": 4, "betas": [0.5, 0.6]}, width=16, log_dir="x", tokenizer=None
    )
    assert (part.width, part.heads, part.betas, part.log_dir) == (16, 4, (0.5, 0.6), "x")


def test_the_yaml_wins_over_what_is_only_on_offer(table: Registry) -> None:
    assert table.build({"name": "part", "log_dir": "mine"}, width=16, log_dir="x").log_dir == "mine"


def test_parameters_leave_out_what_the_program_sets(table: Registry) -> None:
    assert list(table.parameters("part")) == ["heads", "betas", "log_dir"]


def test_all_problems_of_a_component_at_once(table: Registry) -> None:
    assert messages(table, name="part", width=3, haeds=3, betas=[1.0, "x"]) == [
        "width: is set by the program for every part; remove it",
        "haeds: unknown parameter of part 'part'; did you mean 'heads'?",
        "betas: part 'part' takes tuple[float, float], got [1.0, 'x']",
    ]


def test_missing_parameters_are_named(table: Registry) -> None:
    strict = Registry("part", table.entries)
    assert messages(strict, name="part") == ["width: missing; part 'part' needs it"]
    with pytest.raises(ConfigError, match="width: missing"):
        strict.build({"name": "part"})


def test_unknown_names_and_broken_entries(table: Registry) -> None:
    assert messages(table, name="prt") == ["name: unknown part 'prt'; did you mean 'part'?"]
    assert messages(table, name="absent")[0].startswith(
        "name: part 'absent' cannot be imported from no_such_module"
    )


def test_a_constructors_refusal_names_the_component(table: Registry) -> None:
    with pytest.raises(ConfigError, match="part 'part': 8 heads do not divide 12"):
        table.build({"name": "part"}, width=12)


def test_any_other_error_of_a_constructor_is_one_line(table: Registry) -> None:
    with pytest.raises(ConfigError, match=r"^part 'part': AssertionError: no width$"):
        table.build({"name": "part"}, width=0)
    with pytest.raises(ConfigError, match="part 'part': ZeroDivisionError"):
        table.build({"name": "part", "heads": 0}, width=8)


def test_describe_strips_markup(table: Registry) -> None:
    assert table.describe("part") == "A part with torch.nn.Module in it."


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, table in REGISTRIES.items() for name in table.entries],
    ids=lambda value: value,
)
def test_every_entry_exists_and_says_what_it_is(kind: str, name: str) -> None:
    table = REGISTRIES[kind]
    parameters = table.parameters(name)
    assert table.describe(name)
    assert not table.injected & set(parameters)
