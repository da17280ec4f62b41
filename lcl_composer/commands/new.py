"""`lcl new`: start a drop-in from a file that works as it is, with its test."""

from __future__ import annotations

import keyword
from pathlib import Path
from string import Template

import typer

from lcl_composer.dropins import class_name
from lcl_composer.errors import ConfigError, did_you_mean
from lcl_composer.registry import Registry, callbacks

_TEMPLATES = Path(__file__).parent / "templates"

#: What can be started, and the registry it is found by.
KINDS: dict[str, Registry] = {"callback": callbacks}


def create(kind: str, name: str) -> tuple[Path, Path]:
    """Write ``callbacks/<name>.py`` and ``tests/callbacks/test_<name>.py`` in the working directory.

    Args:
        kind: One of :data:`KINDS`.
        name: Lower-case words joined by ``_``; the class is the same in CamelCase.

    Returns:
        The two files.

    Raises:
        ConfigError: If there is no such kind, the name cannot be one or is taken, or the working directory is
            no checkout of LCL-Composer, where the test would not run.
    """
    if kind not in KINDS:
        raise ConfigError(f"new: cannot start a {kind!r}; {did_you_mean(kind, KINDS)}")
    folder = f"{kind}s"
    component, test = Path(folder, f"{name}.py"), Path("tests", folder, f"test_{name}.py")
    _check_name(KINDS[kind], name)
    if not test.with_name("training.py").is_file():
        raise ConfigError(f"new: no {test.parent}/training.py here; start in the checkout of LCL-Composer")
    if taken := next((file for file in (component, test) if file.exists()), None):
        raise ConfigError(f"new: {taken} exists already; choose another name")
    words = {"name": name, "component": class_name(name), "words": name.replace("_", " ")}
    for file, template in ((component, f"{kind}.txt"), (test, f"{kind}_test.txt")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(Template((_TEMPLATES / template).read_text()).substitute(words))
    return component, test


def _check_name(registry: Registry, name: str) -> None:
    """Raise ConfigError for what cannot be a module, a key of a YAML and a class, and for names in use."""
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower() or name.startswith("_"):
        raise ConfigError(f"new: {name!r} is no name; use lower-case words joined by _, such as image_use")
    if name in registry.entries:
        raise ConfigError(f"new: {name!r} already is a {registry.kind} of LCL-Composer; choose another name")
    if registry.dropins and (file := registry.dropins.find(name)):
        raise ConfigError(f"new: {file} exists already; choose another name")


def print_new(kind: str, name: str) -> None:
    """Write the two files and say what to do next."""
    component, test = create(kind, name)
    typer.echo(f"{component}\n{test}\n\npython -m pytest {test}")
    typer.echo(f"composer train.py yamls/quickstart.yaml {kind}s.{name}.every=50ba")
