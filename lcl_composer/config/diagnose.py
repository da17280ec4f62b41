"""Check merged settings: schema, components and the relations between keys, every problem at once."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from lcl_composer import registry
from lcl_composer.config.checks import cross_problems
from lcl_composer.config.layers import Layers
from lcl_composer.config.schema import RunConfig
from lcl_composer.config.trial import Device, trial_problems
from lcl_composer.config.yaml_file import Key
from lcl_composer.errors import ConfigError, did_you_mean
from lcl_composer.registry import Registry

#: Where components stand: ``{"name": ..., **parameters}``.
COMPONENTS: dict[Key, Registry[Any]] = {
    ("model", "encoder"): registry.encoders,
    ("model", "pooler"): registry.poolers,
    ("model", "language_model"): registry.language_models,
    ("model", "target_encoder"): registry.encoders,
    ("method",): registry.methods,
    ("tokenizer",): registry.tokenizers,
    ("optimizer",): registry.optimizers,
    ("scheduler",): registry.schedulers,
    ("data", "train", "generate"): registry.generators,
    ("data", "eval", "generate"): registry.generators,
}
#: Where any number of components stand by name: ``{name: parameters}``.
TABLES: dict[Key, Registry[Any]] = {
    ("algorithms",): registry.algorithms,
    ("callbacks",): registry.callbacks,
    ("loggers",): registry.loggers,
    ("evaluation",): registry.evaluations,
}


@dataclass(frozen=True)
class ConfigProblem:
    """One thing wrong: its source (``file:line`` or the command line), its key, and what to do."""

    where: str
    key: Key
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {'.'.join(self.key)}: {self.message}"


def validate(
    values: dict[str, Any], layers: Layers, found: list[ConfigProblem], file: str, device: Device | None
) -> RunConfig:
    """Return the checked configuration.

    Args:
        values: The merged and resolved settings.
        layers: Where they come from.
        found: Problems known already; their keys are not reported again.
        file: The experiment's file, which stands for what is set nowhere.
        device: What the run will train on; None: it is not tried on Composer's objects.

    Raises:
        ConfigError: Lists the problems, one a line.
    """
    run, problems = None, dict[Key, str]()
    try:
        # Strict JSON mode: "false" is no bool, "1e-4" no float, but a list makes a tuple.
        run = RunConfig.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        problems |= _schema_problems(error, values)
    problems |= dict(_component_problems(values)) | dict(_null_problems(layers, values))
    problems |= dict(_empty_problems(layers))
    if rest := run or _without(values, problems):
        more = (trial_problems(rest, device) if device else {}) | dict(cross_problems(rest))
        if ("max_duration",) in problems:
            more.pop(("scheduler",), None)  # tried on a duration that is not the run's
        told = set(problems)
        problems |= {k: text for k, text in more.items() if not any(t[: len(k)] == k for t in told)}
    known = {problem.key for problem in found}
    new = [
        ConfigProblem(_where(layers, key, file), key, text)
        for key, text in problems.items()
        if key not in known
    ]
    if found or new or run is None:
        raise ConfigError(report(_in_order([*found, *new])))
    return run


def _without(values: dict[str, Any], problems: Iterable[Key]) -> RunConfig | None:
    """The settings without the wrong ones, so that the others are looked at in the same go; None: no such."""
    rest = copy.deepcopy(values)
    for key in problems:
        if isinstance(above := _at(rest, key[:-1]), dict):
            above.pop(key[-1], None)
    try:
        return RunConfig.model_validate_json(json.dumps({"max_duration": "1ba"} | rest), strict=True)
    except ValidationError:
        return None


def _where(layers: Layers, key: Key, file: str) -> str:
    if key in layers.nulls:
        return layers.nulls[key].where
    return layers.empty.get(key) or layers.source(key) or file


def _in_order(problems: list[ConfigProblem]) -> list[str]:
    ordered = sorted(problems, key=lambda p: [(not s.isdigit(), s.zfill(6)) for s in p.where.split(":")])
    return list(map(str, ordered))


def report(problems: Sequence[str]) -> str:
    """One problem as it is, several on a line each."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems in the configuration:\n" + "\n".join(f"  {p}" for p in problems)


def _schema_problems(error: ValidationError, values: Any) -> dict[Key, str]:
    problems: dict[Key, str] = {}
    for item in error.errors():
        key = _data_key(item["loc"], values, item["type"] == "missing")
        text = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if item["type"] == "default_factory_not_called":
            continue  # follows from another problem
        if item["type"] == "extra_forbidden":
            text = f"unknown key; {_advice(key, values)}"
        elif item["type"] == "missing":
            text = "missing; give it a value"
        elif item["type"] != "value_error":
            text = f"{text}, got {item['input']!r}"
        before = problems.get(key)
        problems[key] = f"{before.rpartition(', got ')[0]}; or {text}" if before else text
    return problems


def _advice(key: Key, values: Any) -> str:
    if "." in key[-1]:
        return "in a file write nested mappings; dotted keys are for the command line"
    if key == ("loss",):
        return "the losses are the method's settings: write method.contrastive_weight and so on"
    if key == ("extends",):
        return "extends belongs in a file; on the command line name another YAML"
    return did_you_mean(key[-1], known_keys(key[:-1], values) or [])


def _data_key(loc: tuple[int | str, ...], values: Any, missing: bool) -> Key:
    """Return the part of pydantic's location that is in the data: it appends the members of unions."""
    key: list[str] = []
    for part in loc:
        if isinstance(values, list):
            inside = isinstance(part, int) and part < len(values)
        else:
            inside = isinstance(values, dict) and part in values
        if not inside and not missing:
            break
        key.append(str(part))
        values = values[part] if inside else None  # type: ignore[index]
    return tuple(key)


def known_keys(key: Key, values: Any) -> list[str] | None:
    """Return the keys that may stand below a key, or None where anything may."""
    if key in TABLES:
        return TABLES[key].names()
    if key in COMPONENTS or key[:-1] in TABLES:
        return _parameter_names(key, _at(values, key))
    model: Any = RunConfig
    for name in key:
        if get_origin(model) is dict:  # entries under names of the user's own
            model = get_args(model)[1]
            continue
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or name not in model.model_fields:
            return None
        annotation = model.model_fields[name].annotation
        optional = get_origin(annotation) is not dict
        members = get_args(annotation) if optional else ()
        model = next((a for a in members if a is not type(None)), annotation)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else None


def _at(values: Any, key: Key) -> Any:
    for name in key:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _parameter_names(key: Key, values: Any) -> list[str] | None:
    try:
        if key in COMPONENTS:
            return ["name", *COMPONENTS[key].parameters(values["name"])]
        return list(TABLES[key[:-1]].parameters(key[-1]))
    except (ConfigError, KeyError, TypeError):
        return None  # reported where the name stands


def _component_problems(values: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    for key, table in COMPONENTS.items():
        spec = _at(values, key)
        if isinstance(spec, dict) and isinstance(spec.get("name"), str):
            for problem in table.problems(spec):
                yield (*key, problem.key), problem.message
    for key, table in TABLES.items():
        specs = _at(values, key)
        for name, parameters in specs.items() if isinstance(specs, dict) else ():
            if not isinstance(parameters, dict):
                continue  # the schema says so
            if "name" in parameters:
                yield (*key, name, "name"), f"remove it; the key {name!r} is the name"
            for problem in table.problems({**parameters, "name": name}):
                yield (*key, name, *([problem.key] if problem.key != "name" else [])), problem.message


def _null_problems(layers: Layers, values: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    """A null that stands for nothing is a typo that would change nothing."""
    for key, null in layers.nulls.items():
        known = known_keys(key[:-1], values)
        if key[:-1] in TABLES and not null.removed:
            yield key, f"nothing to remove; to add it write {key[-1]}: {{}}"
        elif key[:-1] not in TABLES and not null.removed and known is not None and key[-1] not in known:
            yield key, f"unknown key; {did_you_mean(key[-1], known)}"


def _empty_problems(layers: Layers) -> Iterator[tuple[Key, str]]:
    """``{}`` over a mapping merges nothing into it; in a table it may say that a component is on."""
    for key in layers.empty:
        if key[:-1] not in TABLES:
            name = ".".join(key)
            yield key, f"{{}} changes nothing, what is below stays; to remove it write {name}=null"
