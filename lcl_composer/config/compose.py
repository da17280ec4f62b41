"""Compose a run's settings from YAML files and ``a.b=c`` overrides.

A file's ``extends`` come first, left to right, then its own keys, then the overrides, which are one layer.
Mappings merge, lists replace, ``null`` removes, and a component that gets another ``name`` drops the
parameters of the old one. ``${a.b}`` and ``${oc.env:NAME}`` are resolved at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from yaml import YAMLError

from lcl_composer.config.core_schema import format_yaml, parse_yaml
from lcl_composer.config.diagnose import COMPONENTS, ConfigProblem, report, validate
from lcl_composer.config.environment import is_secret, noted_variables, secret_in
from lcl_composer.config.layers import Layers
from lcl_composer.config.schema import RunConfig
from lcl_composer.config.trial import Device, ema_note, warmup_note
from lcl_composer.config.yaml_file import Key, YamlFile, problem_of, read_yaml, shown
from lcl_composer.errors import ConfigError

COMMAND_LINE = "command line"
DEFAULT = "default"


@dataclass(frozen=True)
class ComposedConfig:
    """A checked configuration and where each of its values comes from.

    ``sources`` maps a dotted key to ``"file:line"`` or ``"command line"``; a key that is not in it has
    its default. ``notes`` has a line for each thing that is allowed and perhaps not meant. ``variables`` has
    each variable of the environment that was read, and the dotted keys it was read for.
    """

    run: RunConfig
    sources: dict[str, str]
    notes: list[str]
    variables: dict[str, list[str]]

    def source(self, key: str) -> str:
        """Return the source of a dotted key, or ``"default"``."""
        return self.sources.get(key, DEFAULT)

    @contextmanager
    def located(self) -> Iterator[None]:
        """Say of a ConfigError inside the body where the setting stands that it names, a problem a line."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError(report(list(map(self._locate, str(error).splitlines())))) from error

    def _locate(self, problem: str) -> str:
        """A problem with the source of its key, which opens it, or of the component that it names."""
        found = re.match(r"\w+(\.\w+)*", problem)
        key = found[0] if found else ""
        if key.split(".")[0] not in type(self.run).model_fields:
            named = (
                ".".join(k) for k, table in COMPONENTS.items() if f"{table.kind} {self._name(k)!r}" in problem
            )
            key = next(named, "")
            problem = f"{key}: {problem}"
        while key and key not in self.sources:
            key = key.rpartition(".")[0]
        return f"{self.sources[key]}: {problem}" if key else problem.removeprefix(": ")

    def _name(self, key: Key) -> str | None:
        """The name of the component at a key."""
        value: Any = self.run
        for part in key:
            value = getattr(value, part, None)
        return getattr(value, "name", None)

    def to_yaml(self) -> str:
        """Return the resolved configuration with all defaults; composing it gives the same RunConfig."""
        return format_yaml(self.run.model_dump(mode="json"))


def compose(path: Path, overrides: Sequence[str] = (), device: Device | None = None) -> ComposedConfig:
    """Read, merge, resolve and check.

    Args:
        path: The experiment's YAML.
        overrides: ``a.b=c`` each; the value is read as YAML.
        device: What the run will train on, to try the settings on Composer's own objects as well; None: the
            run is over, or is only looked at.

    Raises:
        ConfigError: Names every problem at once, each with its source, its key and what to do.
    """
    layers = Layers(frozenset(COMPONENTS))
    for file in _files(Path(path), ()):
        layers.add({k: v for k, v in file.content.items() if k != "extends"}, file.where)
    layers.add(_parse_overrides(overrides), lambda key: COMMAND_LINE)
    values, problems, variables = _resolve(layers)
    run = validate(values, layers, problems, shown(Path(path)), device)
    sources = {".".join(key): source for key, source in layers.sources.items()}
    notes = [note(run) for note in (warmup_note, ema_note)] if device else []
    return ComposedConfig(run, sources, [*layers.dropped, *filter(None, notes)], variables)


def _files(path: Path, chain: tuple[Path, ...]) -> Iterator[YamlFile]:
    """Yield the files a file extends, depth first, then the file."""
    real = path.resolve()
    if real in chain:
        cycle = " -> ".join(shown(p) for p in (*chain[chain.index(real) :], real))
        raise ConfigError(f"{shown(chain[-1])}: extends: the files extend one another: {cycle}")
    file = read_yaml(path)
    parents = file.content.get("extends", [])
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{file.where(('extends',))}: extends: must be a list of files, got {parents!r}")
    for index, parent in enumerate(parents):
        if not (path.parent / parent).is_file():
            where = file.where(("extends", str(index)))
            raise ConfigError(f"{where}: extends: no file {shown(path.parent / parent)}")
        yield from _files(path.parent / parent, (*chain, real))
    yield file


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the overrides as one layer, in which their order does not matter but for the same key."""
    content: dict[str, Any] = {}
    for override in overrides:
        dotted, equals, text = override.partition("=")
        key = [part.strip() for part in dotted.split(".")]
        if not equals or not all(key):
            raise ConfigError(
                f"{COMMAND_LINE}: {override!r} is no override; write a.b=value, or a.b=null to remove"
            )
        if not text.strip():  # of a shell variable that is not set, which must not mean "the default"
            raise ConfigError(
                f"{COMMAND_LINE}: {override!r} has no value; write a.b=value, or a.b=null to remove"
            )
        try:
            value = parse_yaml(text)
        except YAMLError as error:
            reason = problem_of(error)
            raise ConfigError(f"{COMMAND_LINE}: {override!r} cannot be read: {reason}") from error
        for part in reversed(key):
            value = {part: value}
        content = _merged(content, value)
    return content


def _merged(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {name: _merged(below.get(name), value) for name, value in above.items()}


def _resolve(layers: Layers) -> tuple[dict[str, Any], list[ConfigProblem], dict[str, list[str]]]:
    """Resolve interpolations; those that fail are left as they are and reported, secrets are too.

    Returns:
        The values, what is wrong with them, and the variables of the environment with the keys they are for.
    """
    problems: list[ConfigProblem] = []
    variables: dict[str, list[str]] = {}
    read: list[str] = []

    def walk(node: DictConfig | ListConfig, raw: Any, key: Key) -> Any:
        names: list[Any] = list(node) if isinstance(node, DictConfig) else list(range(len(node)))
        resolved = {str(n): visit(node, n, _item(raw, n), (*key, str(n))) for n in names}
        return resolved if isinstance(node, DictConfig) else list(resolved.values())

    def visit(node: Any, name: Any, raw: Any, key: Key) -> Any:
        where = layers.source(key) or DEFAULT
        read.clear()
        try:
            if OmegaConf.is_missing(node, name):
                problems.append(ConfigProblem(where, key, "missing; give it a value"))
                return raw
            value = node[name]
        except (OmegaConfBaseException, RecursionError) as error:
            problems.append(ConfigProblem(where, key, f"cannot resolve {raw}: {_cause(error)}"))
            return raw
        finally:
            for variable in dict.fromkeys(read):
                variables.setdefault(variable, []).append(".".join(key))
        if secret := _secret(value, read):
            problems.append(ConfigProblem(where, key, f"holds {secret}, {_NO_SECRETS}"))
        elif isinstance(value, str) and (written := _FOR_A_SHELL.match(value)):
            name = written[1] or "HOME"
            problems.append(
                ConfigProblem(
                    where, key, f"{written[0]} stands for nothing here; write ${{oc.env:{name}}}/..."
                )
            )
        return walk(value, raw, key) if isinstance(value, DictConfig | ListConfig) else value

    with noted_variables(read.append):
        values = walk(_parsed(layers), layers.values, ())
    return values, problems, variables


def _parsed(layers: Layers) -> DictConfig:
    """The values with their interpolations taken apart; raises ConfigError at one that is none."""
    try:
        return OmegaConf.create(layers.values)
    except GrammarParseError as error:
        key = tuple(re.findall(r"[^.\[\]]+", error.full_key or ""))
        text = f"cannot be read: {_cause(error)}; ${{a.b}} is another setting's value, \\${{ the characters"
        raise ConfigError(str(ConfigProblem(layers.source(key) or DEFAULT, key, text))) from error


#: The beginning of a path that a shell would expand: else a folder of that very name is made.
_FOR_A_SHELL = re.compile(r"~(?=/|$)|\$([A-Za-z_]\w*)(?=/|$)")

#: Why a secret is refused, and what to do.
_NO_SECRETS = (
    "and settings are written to config.yaml, checkpoints and loggers; leave it in the environment, where "
    "what needs it looks for it"
)


def _secret(value: Any, read: list[str]) -> str:
    """Where a resolved value has a secret from; "" if it holds none."""
    named = next((name for name in read if is_secret(name)), None)
    return f"the value of {named}" if named else secret_in(value) if isinstance(value, str) else ""


def _item(raw: Any, name: Any) -> Any:
    return raw[name] if isinstance(raw, dict | list) else raw


def _cause(error: Exception) -> str:
    text = str(error).splitlines()[0] if not isinstance(error, RecursionError) else "it refers to itself"
    unset = re.search(r"Environment variable '(\w+)' not found", text)
    if unset:
        return f"the environment variable {unset[1]} is not set, or empty; export it"
    nowhere = "Interpolation key" in text and "not found" in text
    return f"{text}; only what a file or the command line sets can be referred to" if nowhere else text
