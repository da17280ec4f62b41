"""A method that is not quite right is refused when it is built, in one line that names its file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lcl_composer.config import RunConfig, compose
from lcl_composer.errors import ConfigError
from lcl_composer.methods.build import model_on_meta
from tests import runs

RIGHT = """
from lcl_composer.data.interleave import Interleaved
from lcl_composer.methods.generation import Generation
from lcl_composer.methods.method import Method


class Idea(Method):
    def __init__(self, encoder, pooler, language_model, vocab_size: int, other_weight: float | None = None):
        super().__init__()
        self.encoder, self.pooler, self.language_model = encoder, pooler, language_model
        self.generation = Generation(self, language_model, vocab_size)
        self.terms = {"generation": self.generation.term(1.0)}

    def layout(self, tokenizer, rules):
        return Interleaved(tokenizer, rules)

    def forward(self, batch):
        return self.generation.outputs(batch, self.language_model.read(batch))
"""
LAST = "        self.terms = "


@pytest.fixture(autouse=True)
def _methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory, and no drop-in of another test."""
    monkeypatch.chdir(tmp_path)
    yield
    for name in [n for n in sys.modules if n == "methods" or n.startswith("methods.")]:
        del sys.modules[name]


def of(folder: Path, text: str) -> RunConfig:
    (folder / "methods").mkdir()
    (folder / "methods" / "idea.py").write_text(text)
    return compose(runs.write_yaml(folder, runs.settings(folder, method={"name": "idea"}))).run


def test_a_right_one_is_built_whose_weight_may_be_absent(tmp_path: Path) -> None:
    model, _, _ = model_on_meta(of(tmp_path, RIGHT))
    assert list(model.terms) == ["generation"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (LAST, "        terms = ", "its constructor sets no losses; write self.terms = {'name': Term(...)}"),
        (LAST, "        self.terms = {} and ", "its constructor sets no losses"),
        ("self.generation.term(1.0)", "0.5", "terms['generation'] is a float, no Term"),
        ("term(1.0)", "term(float('nan'))", "has the weight nan; give a number, at least 0"),
        ("term(1.0)", "term(None)", "terms['generation'] has the weight None"),
        ("    def layout", "        self.terms['generation'].count = 'targts'\n\n    def layout",
         "terms['generation'] is averaged over 'targts'; did you mean 'targets'?"),
        ("    def layout", "        self.terms['generation'].reads = 'hidden'\n\n    def layout",
         "terms['generation'] reads 'hidden'; give a tuple of outputs"),
        ("    def __init__", "    part_names = ('encoder', 'projector')\n\n    def __init__",
         "part_names has 'projector', and its constructor sets no network self.projector"),
        ("    def __init__", "    part_names = 'encoder'\n\n    def __init__",
         "part_names is 'encoder'; give a tuple of names"),
        ("self.encoder, self.pooler, ", "_, self.pooler, ", "sets no encoder; write self.encoder = encoder"),
    ],
)  # fmt: skip
def test_what_all_methods_have(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in RIGHT
    with pytest.raises(ConfigError) as caught:
        model_on_meta(of(tmp_path, RIGHT.replace(old, new)))
    assert str(caught.value).startswith(f"{tmp_path / 'methods' / 'idea.py'}: method 'idea': ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_method_that_fails_is_a_problem_of_the_settings(tmp_path: Path) -> None:
    wrong = (
        RIGHT + "\n    @classmethod\n    def contrasts(cls, settings):\n        return settings['absent']\n"
    )
    with pytest.raises(ConfigError) as caught:
        of(tmp_path, wrong)
    line = wrong.count("\n")
    assert f"method: {tmp_path / 'methods' / 'idea.py'}:{line}: method 'idea': KeyError: 'absent'" in str(
        caught.value
    )
