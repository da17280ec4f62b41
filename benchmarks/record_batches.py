"""A drop-in that notes what each rank trains on: ids, hashes of tokens and pixels, and the loss, bit for bit.

``benchmarks/jobs.py`` copies it into ``callbacks/`` of the folder that its jobs run in.
"""

from __future__ import annotations

import json
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor


class RecordBatches(Callback):
    """Append a line of JSON for each batch to ``<folder>/<rank>of<ranks>.jsonl``.

    Args:
        folder: Where to; one for each launch.
        pause: Seconds to sleep at each batch, so that a kill can be aimed at one.
    """

    def __init__(self, folder: str, pause: float = 0.0):
        self.path = Path(folder, f"{dist.get_global_rank()}of{dist.get_world_size()}.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.pause = pause
        self.row: dict[str, Any] = {}

    def batch_start(self, state: State, logger: Logger) -> None:
        """Note the documents, before the batch is split."""
        time_stamp = state.timestamp
        self.row = {
            "batch": int(time_stamp.batch),
            "epoch": int(time_stamp.epoch),
            "documents": documents(state.batch),
        }

    def after_loss(self, state: State, logger: Logger) -> None:
        """Note the loss of this rank and write."""
        losses = state.loss if isinstance(state.loss, dict) else {"total": state.loss}
        self.row["losses"] = {name: float(loss).hex() for name, loss in losses.items()}  # pyright: ignore
        with self.path.open("a") as file:
            file.write(json.dumps(self.row) + "\n")
        time.sleep(self.pause)


def documents(batch: Any) -> list[tuple[str, str, str]]:
    """Return id, hash of tokens and places, and hash of pixels of each document of a packed batch."""
    rows = []
    starts = batch["cu_seqlens"].tolist()
    last_images = batch["images_per_document"].cumsum(0).tolist()
    first_image = 0
    for i, name in enumerate(batch["ids"]):
        first, last = starts[i], starts[i + 1]
        images = slice(first_image, last_images[i])
        first_image = last_images[i]
        places = [p - first if p >= 0 else p for p in batch["anchors"][images].tolist()]
        tokens = _hash(batch["tokens"][first:last], batch["targets"][first:last]) + str(places)
        rows.append((name, tokens, _hash(batch["pixel_values"][images])))
    return rows


def _hash(*tensors: Tensor) -> str:
    digest = blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
