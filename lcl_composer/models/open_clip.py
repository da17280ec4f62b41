"""OpenCLIP's state dict of a CLIP with a ViT and its own text transformer, in and out of the method ``clip``.

Its tensors are those of the LCL release (``models/released.py``) with the text tower at the top level, and
the image projection besides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lcl_composer.models.released import from_released, to_released

_PROJECTION, _EMBEDDING = "visual.proj", "token_embedding.weight"
#: Of the sigmoid loss, the same in both; the authors' release has none.
_BIAS = "logit_bias"


def from_open_clip(theirs: dict[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Rename a state dict of OpenCLIP to that of the method ``clip``.

    Args:
        theirs: Of ``open_clip.CLIP``; buffers such as ``attn_mask`` are left out.
        vocab_size: Rows of our embedding: CLIP's vocabulary and the image tokens, whose rows, which no pair
            reads, are zero.

    Raises:
        DataError: If a tensor has no counterpart.
    """
    apart = {name: theirs[name] for name in (_BIAS,) if name in theirs}
    tensors = {n: tensor for n, tensor in theirs.items() if n not in (_PROJECTION, "attn_mask", _BIAS)}
    embedding = tensors[_EMBEDDING]
    missing = embedding.new_zeros(vocab_size - len(embedding), embedding.shape[1])
    tensors[_EMBEDDING] = torch.cat([embedding, missing])
    named = {
        name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}": tensor
        for name, tensor in tensors.items()
    }
    return {**from_released(named), "image_proj.weight": theirs[_PROJECTION].T.contiguous(), **apart}


def to_open_clip(ours: dict[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Rename a state dict of the method ``clip``, without a pooler, to OpenCLIP's.

    Args:
        ours: Of the method.
        vocab_size: Rows of OpenCLIP's embedding, 49,408 for CLIP's BPE; further ones are left out.

    Raises:
        DataError: If the model has another architecture than a timm CLIP ViT and an OPT.
    """
    projection = ours["image_proj.weight"].T.contiguous()
    apart = {name: ours[name] for name in (_BIAS,) if name in ours}
    named = {name: tensor for name, tensor in ours.items() if name not in ("image_proj.weight", _BIAS)}
    released = to_released(named)
    theirs = {name.removeprefix("text."): tensor for name, tensor in released.items()}
    theirs[_EMBEDDING] = theirs[_EMBEDDING][:vocab_size].contiguous()
    return {**theirs, _PROJECTION: projection, **apart}
