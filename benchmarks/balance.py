"""How long ranks wait for the longest of them, when each gets equal documents but not equal work.

    python benchmarks/balance.py          # a simulation of ViT-B/32's recipe on MMC4, on no device

A rank's work is the floating-point operations of its documents' forward. Documents are drawn with MMC4's
means: 571 million images and 43 billion tokens of text in 101 million documents (arXiv 2304.06939,
abstract), tokens log-normal, images geometric up to 30 and cut to the context. *idle* is the mean over
steps of the share of a step in which the average rank waits; *as they come* is what runs now. The others
deal out the same global batch: *snake* in order of cost, to and fro; *greedy* the costliest first, to the
rank with the least work that has room. Both leave every rank its number of documents. *bytes* orders by
the bytes of text plus a constant an image, which an index could hold, instead of the operations.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np

#: Operations of a forward: of an image through ViT-B/32 and pooler, of a token through the 12 layers of width
#: 512 and, for text, the vocabulary's matrix; of a pair of positions through attention.
IMAGE, TOKEN, TARGET, PAIR = 8.8e9, 2 * 12 * 12 * 512**2, 2 * 512 * 49_411, 4 * 512 * 12
TOKENS_PER_IMAGE, CONTEXT = 51, 2048
MEAN_TOKENS, SIGMA, MEAN_IMAGES, MOST_IMAGES = 43e9 / 101e6, 0.8, 571e6 / 101e6, 30


class Documents(NamedTuple):
    """Draws of documents, each [N]."""

    tokens: np.ndarray  # of text
    images: np.ndarray

    def operations(self) -> np.ndarray:
        """Work of each document's forward."""
        length = self.tokens + TOKENS_PER_IMAGE * self.images
        pairs = length * (length + 1) / 2
        return IMAGE * self.images + TOKEN * length + TARGET * self.tokens + PAIR * pairs

    def text_bytes(self) -> np.ndarray:
        """What an index of texts' bytes would predict: 4.5 a token, an image as many as its work is worth."""
        return 4.5 * self.tokens + 4.5 * self.images * (IMAGE + TOKENS_PER_IMAGE * TOKEN) / (TOKEN + TARGET)


def draw(count: int, rng: np.random.Generator) -> Documents:
    """Documents with MMC4's means, cut to the context."""
    tokens = rng.lognormal(np.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA, count).clip(10, CONTEXT).round()
    images = rng.geometric(1 / MEAN_IMAGES, count).clip(1, MOST_IMAGES)
    images = np.minimum(images, (CONTEXT - 10) // TOKENS_PER_IMAGE)
    return Documents(np.minimum(tokens, CONTEXT - TOKENS_PER_IMAGE * images), images)


def as_they_come(cost: np.ndarray, ranks: int) -> np.ndarray:
    """Rank of each document of a global batch: the first rank gets the first ones."""
    return np.repeat(np.arange(ranks), len(cost) // ranks)


def snake(cost: np.ndarray, ranks: int) -> np.ndarray:
    """Ranks to and fro, in order of cost."""
    there = np.arange(len(cost)) % (2 * ranks)
    rank = np.empty(len(cost), dtype=np.int64)
    rank[np.argsort(-cost, kind="stable")] = np.minimum(there, 2 * ranks - 1 - there)
    return rank


def greedy(cost: np.ndarray, ranks: int) -> np.ndarray:
    """The costliest first, to the rank with the least work so far that has room."""
    rank, work, room = (
        np.empty(len(cost), dtype=np.int64),
        np.zeros(ranks),
        np.full(ranks, len(cost) // ranks),
    )
    for document in np.argsort(-cost, kind="stable"):
        chosen = int(np.argmin(np.where(room > 0, work, np.inf)))
        rank[document] = chosen
        work[chosen] += cost[document]
        room[chosen] -= 1
    return rank


def idle(work: np.ndarray, rank: np.ndarray, ranks: int) -> float:
    """Share of the step in which the average rank waits."""
    load = np.bincount(rank, work, minlength=ranks)
    return float(1 - load.mean() / load.max())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--documents", type=int, default=128, help="a rank and step")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    print(f"{options.documents} documents a rank, {options.steps} steps, simulated\n")
    ways = "as they come | snake | greedy | snake by bytes | greedy by bytes"
    print(f"| ranks | {ways} |\n|{'---|' * 6}")
    for ranks in (8, 64):
        rng, found = np.random.default_rng(0), []
        for _ in range(options.steps):
            documents = draw(ranks * options.documents, rng)
            work, known = documents.operations(), documents.text_bytes()
            ranked = [as_they_come(work, ranks)]
            ranked += [way(cost, ranks) for cost in (work, known) for way in (snake, greedy)]
            found.append([idle(work, rank, ranks) for rank in ranked])
        print(f"| {ranks} | {' | '.join(f'{share:.1%}' for share in np.mean(found, axis=0))} |")


if __name__ == "__main__":
    main()
