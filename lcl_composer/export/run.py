"""``lcl export``: one command for every format, which is read back before it is called done."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lcl_composer.data.folders import whole_folder
from lcl_composer.errors import ConfigError, DataError, did_you_mean, one_line
from lcl_composer.export.card import write_card
from lcl_composer.export.hub import check_hub, upload
from lcl_composer.export.taken import Taken, Weights, take

#: Name -> ``module:function``, which writes what was taken to a folder, reads it back by the library that the
#: format belongs to, compares, and says in a line of Python or shell how to use it.
FORMATS = {
    "encoder": "lcl_composer.export.own:write_own",
    "hf": "lcl_composer.export.huggingface:write_huggingface",
    "onnx": "lcl_composer.export.onnx:write_onnx",
    "open_clip": "lcl_composer.export.open_clip:write_open_clip",
    "released": "lcl_composer.export.own:write_released",
    "timm": "lcl_composer.export.timm:write_timm",
}


def export_run(
    run: str | Path,
    out: str | Path,
    format: str = "encoder",
    weights: Weights = "trained",
    license: str = "unknown",
    push: str | None = None,
) -> Path:
    """Export from a run, a checkpoint or an exported encoder, with a model card.

    Args:
        run: ``runs/NAME``, of which the newest checkpoint is taken; a checkpoint, whole or sharded; or an
            exported encoder such as ``runs/NAME/encoder``.
        out: Folder to write; it must not hold anything.
        format: One of :data:`FORMATS`.
        weights: ``trained``, or the average of the ``ema`` algorithm.
        license: Of the weights, for the card: an identifier of the Hugging Face Hub such as ``mit``.
        push: ``OWNER/NAME`` of a repository on the Hub to upload the folder to, which is made, private, if it
            is new.

    Returns:
        The folder.

    Raises:
        ConfigError: If there is no such format, the model cannot go into it, a package is missing, or nothing
            can be pushed as things are.
        DataError: If what is to be exported cannot be read, ``out`` holds something or cannot be written,
            the folder that was written gives other features when it is read back, or the upload fails.
    """
    if format not in FORMATS:
        raise ConfigError(f"export: no format {format!r}; {did_you_mean(format, FORMATS)}")
    out = Path(out)
    with _said(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(
                f"export: {out} is there already and not empty; remove it or choose another folder"
            )
    if push is not None:
        check_hub(push)
    taken = take(run, weights)
    module, _, name = FORMATS[format].partition(":")
    write: Callable[[Taken, Path], str] = getattr(importlib.import_module(module), name)
    with _said(out), whole_folder(out) as partial:
        usage = _at_home(write(taken, partial), partial, out, push)
        write_card(
            taken,
            partial,
            format=format,
            license=license,
            usage=usage,
            command=_command(run, out, format, weights, license),
        )
    if push is not None:
        upload(out, push)
    return out


@contextmanager
def _said(out: Path) -> Iterator[None]:
    """Raise DataError where a disk is full, or a folder cannot be written to."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(f"export: {out} cannot be written: {one_line(error)}") from error


def _at_home(usage: str, written: Path, out: Path, push: str | None) -> str:
    """The lines of code with the place where the folder will be found."""
    if push is None:
        return usage.replace(str(written), str(out))
    return usage.replace(f"local-dir:{written}", f"hf-hub:{push}").replace(str(written), push)


def _command(run: str | Path, out: Path, format: str, weights: str, license: str) -> str:
    """The line that makes the export again."""
    options = ["--format", format]
    options += ["--weights", "ema"] if weights == "ema" else []
    options += ["--license", license] if license != "unknown" else []
    return shlex.join(["lcl", "export", str(run), str(out), *options])
