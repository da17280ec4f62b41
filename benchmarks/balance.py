"""How long ranks wait for the longest of them, when each gets equal documents but not equal work.

    python benchmarks/balance.py          # a simulation of ViT-B/32's recipe on MMC4, on no device

A rank's work is the floating-point operations of its documents' forward. Documents are drawn with MMC4's
means: 571 million images and 43 billion tokens of text in 101 million documents (arXiv 2304.06939,
abstract), tokens log-normal, images geometric up to 30 and cut to the context; a document's bytes a token
vary by an eighth around 4.5. *idle* is the mean over steps of the share of a step in which the average rank
waits. *as they come* is what ranks get without sizes; *in training* deals the same global batch as training
does (lcl_composer/data/balance.py): by bytes of text and number of images, within each node of 8. *over
nodes* deals over all ranks, which would make each node fetch the shards of all; *exactly* does so by the
operations themselves; *to and fro* by them, in order of cost.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lcl_composer.data.balance import DocumentCost, deal

#: Operations of a forward: of an image through ViT-B/32 and pooler, of a token through the 12 layers of width
#: 512 and, for text, the vocabulary's matrix; of a pair of positions through attention.
IMAGE, TOKEN, TARGET, PAIR = 8.8e9, 2 * 12 * 12 * 512**2, 2 * 512 * 49_411, 4 * 512 * 12
TOKENS_PER_IMAGE, CONTEXT = 51, 2048
BYTES_PER_TOKEN, SPREAD, NODE = 4.5, 1 / 8, 8
#: What training predicts with.
COST = DocumentCost(
    byte=(TOKEN + TARGET) / BYTES_PER_TOKEN,
    image=IMAGE + TOKENS_PER_IMAGE * TOKEN,
    bytes_per_token=BYTES_PER_TOKEN,
    tokens_per_image=TOKENS_PER_IMAGE,
    max_tokens=CONTEXT,
)
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

    def sizes(self, rng: np.random.Generator) -> np.ndarray:
        """Bytes of text and images [N, 2], as they stand beside an index."""
        text = self.tokens * BYTES_PER_TOKEN * rng.lognormal(0, SPREAD, len(self.tokens))
        return np.stack([text, self.images], 1).astype(np.uint32)


def draw(count: int, rng: np.random.Generator) -> Documents:
    """Documents with MMC4's means, cut to the context."""
    tokens = rng.lognormal(np.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA, count).clip(10, CONTEXT).round()
    images = rng.geometric(1 / MEAN_IMAGES, count).clip(1, MOST_IMAGES)
    images = np.minimum(images, (CONTEXT - 10) // TOKENS_PER_IMAGE)
    return Documents(np.minimum(tokens, CONTEXT - TOKENS_PER_IMAGE * images), images)


def as_they_come(cost: np.ndarray, ranks: int) -> np.ndarray:
    """Rank of each document of a global batch: the first rank gets the first ones."""
    return np.repeat(np.arange(ranks), len(cost) // ranks)


def dealt(cost: np.ndarray, ranks: int) -> np.ndarray:
    """As training deals, over nodes of so many ranks at most."""
    rank, nodes = np.empty(len(cost), dtype=np.int64), np.arange(len(cost)).reshape(-1, len(cost) // ranks)
    for first in range(0, ranks, NODE):
        samples = nodes[first : first + NODE, None, None]
        for number, of_rank in enumerate(deal(samples, lambda numbers: cost[numbers])):
            rank[of_rank.reshape(-1)] = first + number
    return rank


def over_nodes(cost: np.ndarray, ranks: int) -> np.ndarray:
    """The same over all ranks, as if they stood in one node."""
    of_rank = deal(np.arange(len(cost)).reshape(ranks, 1, 1, -1), lambda numbers: cost[numbers])
    rank = np.empty(len(cost), dtype=np.int64)
    rank[of_rank.reshape(ranks, -1)] = np.arange(ranks)[:, None]
    return rank


def snake(cost: np.ndarray, ranks: int) -> np.ndarray:
    """Ranks to and fro, in order of cost."""
    there = np.arange(len(cost)) % (2 * ranks)
    rank = np.empty(len(cost), dtype=np.int64)
    rank[np.argsort(-cost, kind="stable")] = np.minimum(there, 2 * ranks - 1 - there)
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
    ways = ("as they come", "in training", "over nodes", "exactly", "to and fro")
    print(f"| ranks | {' | '.join(ways)} |\n|{'---|' * (1 + len(ways))}")
    for ranks in (8, 64):
        rng, found = np.random.default_rng(0), []
        for _ in range(options.steps):
            documents = draw(ranks * options.documents, rng)
            work, known = documents.operations(), COST.of(documents.sizes(rng))
            ranked = [as_they_come(work, ranks), dealt(known, ranks), over_nodes(known, ranks)]
            ranked += [over_nodes(work, ranks), snake(work, ranks)]
            found.append([idle(work, rank, ranks) for rank in ranked])
        print(f"| {ranks} | {' | '.join(f'{share:.1%}' for share in np.mean(found, axis=0))} |")


if __name__ == "__main__":
    main()
