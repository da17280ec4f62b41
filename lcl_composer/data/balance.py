"""Documents of equal work for the ranks of a node: each global batch is dealt out by what its documents cost.

A step takes as long as its longest rank. The costliest documents are dealt first, each to the rank with the
least work so far that has room: every rank keeps its number of documents. Only those change places that are
in one batch on one node, so that global batches, and the shards that a node reads, stay the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Samples to deal at a time: what is formed of them takes a hundred bytes each.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class DocumentCost:
    """What training on a document costs, as its sizes predict.

    Attributes:
        byte: Operations of a byte of text.
        image: Operations of an image.
        bytes_per_token: Of the tokenizer, in the mean.
        tokens_per_image: Of an image among the text; 0 where it stands beside it.
        max_tokens: A longer document is cut.
    """

    byte: float
    image: float
    bytes_per_token: float
    tokens_per_image: int
    max_tokens: int

    def of(self, sizes: NDArray[np.integer], max_images: int | None = None) -> NDArray[np.float64]:
        """Operations [N] of documents of sizes [N, 2], see ``data/sizes.py``; a cut one loses evenly."""
        text, images = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
        images = images if max_images is None else np.minimum(images, max_images)
        tokens = text / self.bytes_per_token + images * self.tokens_per_image
        kept = np.minimum(1.0, self.max_tokens / np.maximum(tokens, 1.0))
        return (text * self.byte + images * self.image) * kept


def deal(
    samples: NDArray[np.int64], cost_of: Callable[[NDArray[np.int64]], NDArray[np.float64]]
) -> NDArray[np.int64]:
    """Deal the batches of a node out over its ranks.

    Args:
        samples: [R, W, B, n] sample numbers of R ranks with W workers of B batches of n; -1 where the data
            end, and that batch stays as it is.
        cost_of: Costs [N] of sample numbers [N].

    Returns:
        [R, W, B, n], each batch [R, n] the same samples; those of a rank in the order in which they came.
    """
    ranks, workers, batches, size = samples.shape
    dealt, step = samples.copy(), max(1, _CHUNK // (ranks * workers * size))
    for first in range(0, batches if ranks > 1 else 0, step):
        part = samples[:, :, first : first + step]
        flat = part.transpose(1, 2, 0, 3).reshape(-1, ranks * size)
        whole = (flat >= 0).all(1)
        costs = cost_of(flat[whole].reshape(-1)).reshape(-1, ranks * size)
        places = np.argsort(_ranks_of(costs, ranks), axis=1, kind="stable")
        flat[whole] = np.take_along_axis(flat[whole], places, axis=1)
        shape = (workers, part.shape[2], ranks, size)
        dealt[:, :, first : first + step] = flat.reshape(shape).transpose(2, 0, 1, 3)
    return dealt


def _ranks_of(costs: NDArray[np.float64], ranks: int) -> NDArray[np.int64]:
    """The rank of each document of B batches, by their costs [B, D]: [B, D]."""
    rows = np.arange(len(costs))
    work, room = np.zeros((len(costs), ranks)), np.full((len(costs), ranks), costs.shape[1] // ranks)
    rank = np.empty(costs.shape, dtype=np.int64)
    for document in np.argsort(-costs, axis=1, kind="stable").T:
        chosen = np.where(room > 0, work, np.inf).argmin(1)
        rank[rows, document] = chosen
        work[rows, chosen] += costs[rows, document]
        room[rows, chosen] -= 1
    return rank
