"""Make what a run needs and a generator can give: documents, a tokenizer, a labelled image set.

Beside each lies a record of the settings it was made with. Made with others, it is made anew, unless a run is
using it: each run keeps a shared lock on what it uses until its process ends, however that comes about.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock

from lcl_composer.config.reach import MADE_IMAGES
from lcl_composer.data.tokenizer import train_bpe
from lcl_composer.errors import DataError
from lcl_composer.methods.build import find_classes
from lcl_composer.registry import generators
from lcl_composer.synthetic.shapes import SETTINGS_FILE, DocumentGenerator, generate_documents

if TYPE_CHECKING:
    from lcl_composer.config.schema import RunConfig

#: Ids of a BPE trained on generated text. CLIP's 49,408 would outweigh a model small enough for such data.
_VOCAB_SIZE = 1024

#: Open files whose shared locks this process holds.
_in_use: list[IO[str]] = []


def prepare(config: RunConfig) -> None:
    """Fill what is missing from ``data.*.generate``; do nothing for real data.

    Documents go to ``data.*.local``, a BPE trained on the training documents to ``tokenizer.path``, and a
    labelled image set to the folder of ``evaluation.probe`` and of ``evaluation.zero_shot``; the classes of a
    data set are counted where the method needs them. One process a node should call this, before the others
    look; where several runs want the same, one makes it and the others wait. A tokenizer or image set without
    a record is the user's own and is left alone.

    Raises:
        DataError: If a folder holds something that no generator made, or a run uses what is there and was
            made with other settings.
    """
    for stream in (config.data.train, config.data.eval):
        if stream is not None and stream.generate is not None and stream.local is not None:
            _prepare_documents(Path(stream.local, stream.split or ""), stream.generate.spec())
    if config.data.train.generate is not None:
        generator: DocumentGenerator = generators.build(config.data.train.generate.spec())
        _prepare_tokenizer(config.tokenizer.spec(), generator)
        for name, key in MADE_IMAGES.items():
            if name in config.evaluation:
                _prepare_probe(Path(config.evaluation[name][key]), generator)
    find_classes(config)


def _prepare_documents(out: Path, spec: dict[str, Any]) -> None:
    generator: DocumentGenerator = generators.build(spec)
    _make(out, generator.settings(), out / SETTINGS_FILE, lambda: generate_documents(generator, str(out)))


def _prepare_tokenizer(spec: dict[str, Any], generator: DocumentGenerator) -> None:
    """Train the BPE that the config names."""
    if spec["name"] != "bpe":
        return
    path = Path(spec["path"])
    settings = generator.text_settings() | {"vocab_size": _VOCAB_SIZE}

    def train() -> None:
        path.unlink(missing_ok=True)
        _record(path).write_text(json.dumps(settings))
        partial = path.with_name(f".{path.name}.partial")
        train_bpe(generator.texts(), _VOCAB_SIZE, partial)
        partial.replace(path)

    if _record(path).exists() or not path.exists():
        _make(path, settings, _record(path), train)


def _prepare_probe(images: Path, generator: DocumentGenerator) -> None:
    """Write the probe's image folders, ``train`` and ``val`` side by side, of which ``images`` is one.

    Only into a folder that is new, empty or was made here: the user's own may have other names below it.
    """
    folder = images.absolute().parent
    settings = generator.probe_settings()

    def write() -> None:
        if folder.exists():
            if {path.name for path in folder.iterdir()} - {"train", "val"}:
                raise DataError(f"{folder}: holds more than generated pictures; choose another folder")
            shutil.rmtree(folder)
        _record(folder).write_text(json.dumps(settings))
        generator.write_probe(str(folder))

    if _record(folder).exists() or not folder.exists() or not any(folder.iterdir()):
        _make(folder, settings, _record(folder), write)


def _record(path: Path) -> Path:
    """Where the settings of what has no place for them inside are kept."""
    return path.with_name(f".{path.name}.made.json")


def _make(path: Path, settings: dict[str, Any], record: Path, make: Callable[[], None]) -> None:
    """Make ``path`` unless its record has these settings, and keep others from making it anew meanwhile.

    One process at a time looks and makes; the system releases all locks of a process that is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        use = path.with_name(f".{path.name}.in_use").open("w")
        before = _read(record)
        if before != settings or not path.exists():
            change = _change(before, settings)
            try:
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                use.close()
                raise DataError(
                    f"{path}: a run is using it, made with other settings ({change}); choose another folder"
                ) from error
            if before is not None:
                print(f"{path}: made anew ({change})", flush=True)
            make()
        fcntl.flock(use, fcntl.LOCK_SH)
    _in_use.append(use)


def _read(record: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        return json.loads(record.read_text())
    return None


def _change(before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """What differs, such as ``documents_count 64, now 256``."""
    keys = [key for key in now if before is not None and before.get(key) != now[key]]
    return ", ".join(f"{key} {(before or {}).get(key)}, now {now[key]}" for key in keys) or "no record"
