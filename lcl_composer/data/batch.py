"""The packed batch: one flat token buffer and one flat image tensor, no padding."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

#: ``targets`` value of a position that no generation loss sees.
IGNORE = -100


class PackedBatch(TypedDict):
    """What the collator yields and the model takes.

    D documents, T tokens, I images. ``tokens`` stands first: Composer asks the first value of a dict
    batch for its length. Tensors only but for ``ids``, so that Composer's device transfer and deep copy
    work on it unchanged.
    """

    tokens: Tensor  # [T] int64; LM inputs, image slots hold <img_placehold>
    targets: Tensor  # [T] int64; the token that position t predicts, or IGNORE
    positions: Tensor  # [T] int64; restart at 0 in each document
    cu_seqlens: Tensor  # [D + 1] int32; document d is tokens[cu_seqlens[d]:cu_seqlens[d + 1]]
    pixel_values: Tensor  # [I, 3, H, W] uint8 (normalised on the device) or float (already normalised)
    image_starts: Tensor  # [I] int64; flat position of the image's first slot, -1: no loss sees its slots
    anchors: Tensor  # [I] int64; flat position of its <start_of_img>, -1: takes no part in L_con
    images_per_document: Tensor  # [D] int64; sums to I
    totals: dict[str, Tensor]  # 0-dim int64; counts of the device batch (not microbatch), see count_totals
    ids: list[str]  # [D] document ids


def count_totals(targets: Tensor, anchors: Tensor, image_starts: Tensor, documents: int) -> dict[str, Tensor]:
    """Return what losses are averaged over, each 0-dim int64.

    ``documents``; ``targets``, positions that predict; ``images``, those encoded; ``pairs``, those that are
    contrasted with a text; ``read_images``, those whose tokens run through the language model.
    """
    counts = {
        "documents": documents,
        "targets": int((targets != IGNORE).sum()),
        "images": len(anchors),
        "pairs": int((anchors >= 0).sum()),
        "read_images": int((image_starts >= 0).sum()),
    }
    return {name: torch.tensor(count) for name, count in counts.items()}
