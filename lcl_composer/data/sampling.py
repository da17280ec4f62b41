"""Which documents an epoch takes, how many batches they make, and which shard each lies in.

Streaming's own versions loop over single samples in Python, forget which repeat of a document a sample is,
and count batches that depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class ShardIndex:
    """Sample number to shard, in place of Streaming's ``Spanner``.

    A sample number may have whole multiples of the data set's size added: how often the document has come in
    this epoch before.
    """

    def __init__(self, samples_per_shard: NDArray[np.int64]) -> None:
        self._ends = samples_per_shard.cumsum()
        self._starts = self._ends - samples_per_shard
        self._samples = int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Return the shard of a sample and its place in there."""
        index = int(index) % self._samples
        shard = int(self._ends.searchsorted(index, side="right"))
        return shard, index - int(self._starts[shard])


def draw_samples(
    samples_per_shard: NDArray[np.int64], choose: int, rng: np.random.Generator, stride: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw ``choose`` samples of S shards: as many whole passes as fit, then some at random, none twice.

    Args:
        samples_per_shard: [S] samples a shard.
        choose: Samples to draw.
        rng: Draws those of the last, incomplete pass.
        stride: Added to a sample's number with each pass.

    Returns:
        Sizes of the runs of samples that lie in one shard, and the sample numbers [choose], run by run.
    """
    total = int(samples_per_shard.sum())
    passes, rest = divmod(choose, total)
    everything = np.arange(total)
    runs = [samples_per_shard] * passes
    numbers = [everything + repeat * stride for repeat in range(passes)]
    if rest:
        taken = np.zeros(total, bool)
        taken[rng.choice(total, rest, replace=False, shuffle=False)] = True
        ends = samples_per_shard.cumsum()
        before = np.concatenate([[0], taken.cumsum()])
        runs.append(before[ends] - before[ends - samples_per_shard])
        numbers.append(everything[taken] + passes * stride)
    sizes = np.concatenate([*runs, np.zeros(0, np.int64)])
    return sizes[sizes > 0], np.concatenate([*numbers, np.zeros(0, np.int64)])


def whole_batches(chosen: Sequence[int], nodes: int, batch_size: int, batching_method: str) -> int:
    """Return the global batches of an epoch that any number of ranks can fill without repeating a sample.

    Streaming repeats samples at the end of an epoch until canonical nodes and ranks have equally many; those
    lie in the last, incomplete column of canonical nodes, which is left out here.

    Args:
        chosen: Samples of each stream in an epoch.
        nodes: Canonical nodes.
        batch_size: The global batch.
        batching_method: Streaming's name for how streams mix: ``random``, ``stratified`` or ``per_stream``.
    """
    if batching_method == "stratified":
        parts = batch_parts(chosen, batch_size)
        return min(c // nodes * nodes // part if part else 0 for c, part in zip(chosen, parts, strict=True))
    if batching_method == "per_stream":
        return sum(c // nodes * nodes // batch_size for c in chosen)
    return sum(chosen) // nodes * nodes // batch_size


def batch_parts(chosen: Sequence[int], batch_size: int) -> list[int]:
    """Return how many samples of each stream a stratified batch has, counted as Streaming does."""
    shares = np.array(chosen) / sum(chosen)
    parts = np.array([int(share * batch_size) for share in shares])
    missing = batch_size - parts.sum()
    parts[np.flip(np.argsort(batch_size * shares - parts))[:missing]] += 1
    return parts.tolist()


def trim_to_batches(chosen: int, nodes: int, batch_size: int) -> int:
    """Return the largest number of samples that makes whole batches on any number of ranks and nodes.

    With ``per_stream`` batching the order of the streams is drawn from their numbers of batches, which would
    depend on the ranks otherwise.
    """
    step = math.lcm(nodes, batch_size)
    return chosen // step * step


def deal_held_out(
    order: NDArray[np.int64], batch_size: int, part: tuple[int, int], worker: tuple[int, int], blank: int
) -> NDArray[np.int64]:
    """Return a worker's samples of a held-out set: the same global batches for any number of ranks.

    Args:
        order: [N] sample numbers, each once.
        batch_size: Samples of a global batch; the ranks divide it.
        part: This rank, and how many there are.
        worker: This worker of the rank, and how many there are; batches are dealt to them in turn.
        blank: Stands in the last batch where the ranks would not have equally many.
    """
    (rank, ranks), (number, workers) = part, worker
    whole = len(order) // batch_size * batch_size
    batches = list(order[:whole].reshape(-1, ranks, batch_size // ranks)[:, rank])
    if rest := len(order) - whole:
        last = np.full(-(-rest // ranks) * ranks, blank, dtype=np.int64)
        last[:rest] = order[whole:]
        batches.append(last.reshape(ranks, -1)[rank])
    return np.concatenate([np.zeros(0, np.int64), *batches[number::workers]])
