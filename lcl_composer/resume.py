"""What a resumed run makes of settings that are not those it began with: applied and said, or refused."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcl_composer.checkpoint import Begun
from lcl_composer.config.diagnose import COMPONENTS, TABLES
from lcl_composer.config.schema import with_all_keys
from lcl_composer.data.pretrained_tokenizer import TransformersTokenizer
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.registry import Registry

_ABSENT = "not set"

#: Settings that take effect from where the run stands, and what follows. The first that matches counts.
_APPLIED = {
    r"run_name": "the run's folder was moved or copied",
    r"seed": "crops and sides of floating images are drawn by it from here on; order and dropout go on",
    r"global_train_batch_size": "epochs have another number of batches; optimizer.lr is not scaled",
    r"device_train_microbatch_size": "without grad_cache L_con has as many negatives as fit into one",
    r"max_duration": "training ends there, and schedules that are shares of it follow",
    r"optimizer\.(?!name$|amsgrad$).*": "from the next batch on",
    r"scheduler\..*": "the learning rate follows it from the next batch on",
    r"algorithms\..*": "from the next batch on; what is new begins, what is gone is dropped with its state",
    r"(callbacks|loggers|evaluation)\..*": "from here on",
    r"data\.eval\b.*|eval_interval": "held-out losses before and after may not be comparable",
    r"data\.train\.(num_workers|predownload|cache_limit|download_\w+|validate_hash)": "the same data",
    r"data\.train\.(streams\.[^.]+\.)?(local|remote|split)": "the same documents lie there",
    r"tokenizer\.path": "the same tokenizer lies there",
    r"model\.(target_)?encoder\.(folder|weights)": "the same weights lie there",
    r"method\.backend|model\.\w+\.gradient_checkpointing": "the same numbers, up to rounding",
    r"model\..*(drop|dropout|drop_rate|pdrop|drop_path_rate)": "from the next batch on",
    r"precision|tf32": "from the next batch on",
    r"(parallelism|compile|activation_checkpointing)\b.*": "the same numbers, up to rounding",
    r"device_train_microbatch_tokens": "the same numbers, up to rounding",
    r"data\.max_bad_fraction|save_\w+|autoresume|progress_bar|log_to_console|dist_timeout": "from here on",
}

#: Settings that act on training alone: with no batch left to train they are in force nowhere.
_TRAINS = (
    r"seed|global_train_batch_size|device_train_microbatch_size|(optimizer|scheduler|algorithms)\..*|"
    r"model\..*(drop|dropout|drop_rate|pdrop|drop_path_rate)"
)

#: What any other setting makes of the run.
_REFUSED = {
    r"model\..*": "another architecture",
    r"tokenizer\..*": "another tokenizer",
    r"method\..*": "another method",
    r"data\.train\..*": "another order of documents",
    r"data\..*": "another data layout",
    r"optimizer\..*": "another optimizer",
    r"layer_decay": "another optimizer",
    r"load_path": "another start",
}


@dataclass(frozen=True)
class Change:
    """A setting that the run was not trained with so far.

    Attributes:
        key: Dotted.
        before: Its value in the checkpoint.
        now: Its value in the YAML.
    """

    key: str
    before: Any
    now: Any

    @property
    def follows(self) -> str | None:
        """What follows from it, None where a run that has begun cannot take it."""
        if self.key == "load_path" and self.now is None:
            return "the run goes on from its own checkpoint either way"
        return next((text for key, text in _APPLIED.items() if re.fullmatch(key, self.key)), None)

    @property
    def trains(self) -> bool:
        """Whether it acts on training alone."""
        return re.fullmatch(_TRAINS, self.key) is not None

    @property
    def makes(self) -> str:
        """What it would make of the run."""
        return next((text for key, text in _REFUSED.items() if re.fullmatch(key, self.key)), "another run")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The settings in which two resolved configs differ; a parameter left out counts as its default."""
    return list(_walk((), with_defaults(before), with_defaults(now)))


def check_resume(path: str, begun: Begun, now: Begun) -> list[Change]:
    """Compare a run with the checkpoint that it goes on from.

    Args:
        path: The checkpoint, for messages.
        begun: What it says.
        now: The same of this launch.

    Returns:
        The changes that the run takes.

    Raises:
        DataError: Names, in a line, all that it cannot take.
    """
    if not begun.settings:
        return []
    found = changes(begun.settings, now.settings)
    refused = [_refusal(change) for change in found if change.follows is None]
    if begun.tokenizer != now.tokenizer:
        refused.append(f"another tokenizer ({_place(now.settings, 'tokenizer')} holds other ids)")
    if begun.encoder and begun.encoder["weights"] != now.encoder.get("weights"):
        refused.append(f"another encoder ({_encoder(now.settings, 'encoder')} holds other weights)")
    if begun.target != now.target:
        refused.append(f"another target ({_encoder(now.settings, 'target_encoder')} holds other weights)")
    if begun.documents != now.documents:
        refused.append("other documents (the indices of data.train's shards changed)")
    if refused:
        raise DataError(
            f"checkpoint {path}: {'; '.join(dict.fromkeys(refused))}; a run that has begun cannot change "
            f"{'that' if len(refused) == 1 else 'these'}: set it back, or choose another run_name"
        )
    return found


def digest_of_documents(folders: Iterable[Path]) -> str:
    """SHA-256 of the indices of the shards: which documents they hold, wherever they lie."""
    digest = hashlib.sha256()
    for folder in folders:
        digest.update((folder / "index.json").read_bytes())
    return digest.hexdigest()


def digest_of_tokenizer(tokenizer: Tokenizer) -> str:
    """SHA-256 of what each id stands for, or, of a pretrained one, of all that decides its ids."""
    digest = hashlib.sha256(type(tokenizer).__name__.encode())
    if isinstance(tokenizer, TransformersTokenizer):
        digest.update(tokenizer.definition.encode())
        return digest.hexdigest()
    for number in range(tokenizer.vocab_size):
        digest.update(tokenizer.decode([number]).encode() + b"\0")
    return digest.hexdigest()


def check_ended(path: str, found: Iterable[Change]) -> None:
    """Refuse settings that a run whose last batch is trained would record, and not have been trained with.

    Raises:
        DataError: Names them, in a line.
    """
    if idle := [_values(change) for change in found if change.trains]:
        raise DataError(
            f"checkpoint {path}: training has ended, and {', '.join(idle)}: no batch would be trained so; "
            "set that back, raise max_duration, or choose another run_name"
        )


def _refusal(change: Change) -> str:
    return f"{change.makes} ({_values(change)})"


def _values(change: Change) -> str:
    return f"{change.key} is {_shown(change.before)} there and {_shown(change.now)} here"


def _place(settings: Mapping[str, Any], key: str) -> str:
    component = settings.get(key, {})
    return str(component.get("path") or component.get("pretrained") or component.get("name"))


def _encoder(settings: Mapping[str, Any], key: str) -> str:
    encoder = settings["model"].get(key) or {}
    places = (encoder.get(name) for name in ("folder", "weights", "model", "pretrained"))
    return next((f"model.{key}'s {place}" for place in places if isinstance(place, str)), f"model.{key}")


def table(name: str, batch: int, found: list[Change]) -> str:
    """The changes as a table: the setting, its value before and now, and what follows."""
    rows = [("setting", "until now", "from now on", "")]
    rows += [(c.key, _shown(c.before), _shown(c.now), c.follows or "") for c in found]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    title = f"{name} goes on from batch {batch} with {len(found)} changed setting{'s'[: len(found) > 1]}:"
    return "\n".join([title, *(f"  {line}".rstrip() for line in lines)])


def with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config in which every section has all its keys, and every component all its parameters."""
    filled = with_all_keys(settings)
    for (*above, last), registry in COMPONENTS.items():
        parent = _at(filled, above)
        if isinstance(parent, dict) and isinstance(spec := parent.get(last), dict) and "name" in spec:
            parent[last] = _defaults(registry, spec["name"]) | spec
    for (key,), registry in TABLES.items():
        for name, spec in (filled.get(key) or {}).items():
            filled[key][name] = _defaults(registry, name) | (spec or {})
    return filled


def _at(settings: Any, keys: list[str]) -> Any:
    for key in keys:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


def _defaults(registry: Registry[Any], name: str) -> dict[str, Any]:
    """The defaults of a component that YAML can hold; none where it is not there (a drop-in taken away)."""
    try:
        parameters = registry.parameters(name)
    except ConfigError:
        return {}
    defaults = {k: p.default for k, p in parameters.items() if p.default is not inspect.Parameter.empty}
    plain = (str, int, float, bool, list, tuple, dict, type(None))
    return json.loads(json.dumps({k: v for k, v in defaults.items() if isinstance(v, plain)}, default=str))


def _walk(key: tuple[str, ...], before: Any, now: Any) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            yield from _walk((*key, str(name)), before.get(name, _ABSENT), now.get(name, _ABSENT))
    elif before != now:
        yield Change(".".join(key), before, now)


def _shown(value: Any, longest: int = 60) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
