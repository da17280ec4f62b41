"""An ONNX graph of encoder and pooler, for any number of images, held to onnxruntime."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lcl_composer.errors import ConfigError, one_line
from lcl_composer.export.same import check_same, some_pixels
from lcl_composer.export.taken import Taken

_FILE = "model.onnx"
#: A protobuf file holds at most 2 GiB; weights of more go into a file beside it.
_INSIDE_BYTES = 1_800_000_000

#: Without a bound torch.export guards against a batch of the largest integer, and stops at its own guard.
_MOST_IMAGES = 1 << 20


class _ImageSide(nn.Module):
    """Encoder and pooler as one function of normalised pixels."""

    def __init__(self, taken: Taken) -> None:
        super().__init__()
        self.encoder, self.pooler = taken.encoder, taken.pooler

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """[I, 3, S, S] normalised -> patch tokens [I, K, W] and, with a pooler, latents [I, E]."""
        tokens_IKW = self.encoder.tokens_of(self.encoder.backbone, pixel_values)
        return (tokens_IKW,) if self.pooler is None else (tokens_IKW, self.pooler(tokens_IKW))


@torch.no_grad()
def write_onnx(taken: Taken, folder: Path) -> str:
    """Write the graph, run it by onnxruntime on one image and on three, compare; return how to use it.

    Raises:
        ConfigError: If onnx, onnxscript or onnxruntime is missing, or the encoder has no ONNX graph.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise ConfigError(f"export: onnx needs {error.name}; pip install 'lcl-composer[onnx]'") from error
    module = _ImageSide(taken).eval()
    names = ["tokens", "latent"] if taken.pooler is not None else ["tokens"]
    _export(module, some_pixels(taken.encoder), folder / _FILE, names)
    session = onnxruntime.InferenceSession(folder / _FILE, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        pixels = some_pixels(taken.encoder, count)
        for name, found, expected in zip(
            names, session.run(names, {"pixel_values": pixels.numpy()}), module(pixels), strict=True
        ):
            check_same("onnxruntime", torch.from_numpy(found), expected, name)  # type: ignore[arg-type]
    side, (mean, std) = taken.encoder.image_size, taken.encoder.normalize.channels
    prepared = {"image_size": side, "resize": "shortest side, bicubic, centre crop", "mean": mean, "std": std}
    (folder / "preprocessing.json").write_text(json.dumps(prepared, indent=2) + "\n")
    return (
        "import onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{folder / _FILE}")\n'
        f"# pixels: float32 [I, 3, {side}, {side}], normalised as preprocessing.json says\n"
        f'{", ".join(names)}, = session.run({names}, {{"pixel_values": pixels}})'
    )


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep notes of libraries on their own work off the terminal; errors are raised."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _export(module: nn.Module, pixels: Tensor, path: Path, names: list[str]) -> None:
    """Write a graph whose first axis is free; raises ConfigError if torch cannot trace the module."""
    size = sum(parameter.nbytes for parameter in module.parameters())
    batch: Any = torch.export.Dim("batch", min=1, max=_MOST_IMAGES)
    try:
        with warnings.catch_warnings(), _quiet("onnxscript", "onnx_ir", "torch.onnx"):
            warnings.simplefilter("ignore")  # of torch's own making
            torch.onnx.export(
                module,
                (pixels,),
                path,
                input_names=["pixel_values"],
                output_names=names,
                dynamo=True,
                dynamic_shapes=({0: batch},),
                external_data=size > _INSIDE_BYTES,
                verbose=False,
            )
    except OSError:  # the disk's, not the encoder's
        raise
    except Exception as error:  # torch.export and onnxscript fail in their own ways by operator
        raise ConfigError(f"export: torch cannot write this encoder as ONNX: {one_line(error)}") from error
