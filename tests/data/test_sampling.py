from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming.base.spanner import Spanner

from lcl_composer.data.sampling import (
    ShardIndex,
    batch_parts,
    draw_samples,
    trim_to_batches,
    whole_batches,
)

shards = st.lists(st.integers(1, 9), min_size=1, max_size=12).map(lambda sizes: np.array(sizes, np.int64))


@given(shards)
def test_shard_index_is_streamings_spanner(sizes: np.ndarray):
    ours, theirs = ShardIndex(sizes), Spanner(sizes.copy())
    for sample in range(int(sizes.sum())):
        shard, inside = theirs[sample]
        assert ours[sample] == ours[sample + 3 * int(sizes.sum())] == (int(shard), inside)


@settings(deadline=None)
@given(shards, st.floats(0, 3.5), st.integers(0, 99))
def test_draws_are_even_and_in_runs_of_one_shard(sizes: np.ndarray, repeat: float, seed: int):
    total = int(sizes.sum())
    choose = int(total * repeat)
    runs, numbers = draw_samples(sizes, choose, np.random.default_rng(seed), 1000)
    assert len(numbers) == runs.sum() == choose
    assert len(set(numbers.tolist())) == choose  # a repeat has a number of its own
    times = np.bincount(numbers % 1000, minlength=total)
    assert times.max() - times.min() <= 1
    index = ShardIndex(np.append(sizes, 1000 - total))
    shard_of = [index[n % 1000][0] for n in numbers.tolist()]
    start = 0
    for run in runs.tolist():
        assert len(set(shard_of[start : start + run])) == 1
        start += run


def test_what_is_drawn_in_part_is_random():
    sizes = np.array([50, 50])
    one, other = (set(draw_samples(sizes, 30, np.random.default_rng(s), 100)[1].tolist()) for s in (1, 2))
    assert one != other


@pytest.mark.parametrize(
    ("chosen", "nodes", "method", "expected"),
    [
        ([22], 4, "random", 5),  # 5 rows of 4, and 2 more that Streaming would fill up with repeats
        ([10, 13], 1, "random", 5),
        ([10, 13], 1, "per_stream", 5),
        ([9, 11], 1, "per_stream", 4),
        ([16, 4], 1, "stratified", 4),
        ([15, 5], 1, "stratified", 5),
    ],
)
def test_whole_batches(chosen: list[int], nodes: int, method: str, expected: int):
    assert whole_batches(chosen, nodes, 4, method) == expected


def test_trimmed_streams_fill_batches_and_nodes():
    assert trim_to_batches(50, 3, 4) == 48
    assert trim_to_batches(11, 1, 4) == 8
    assert trim_to_batches(3, 1, 4) == 0


@pytest.mark.parametrize("chosen", [[50, 50], [70, 30], [33, 33, 34], [90, 10], [1, 6, 93]])
def test_batch_parts_add_up(chosen: list[int]):
    parts = batch_parts(chosen, 16)
    assert sum(parts) == 16
    assert all(abs(part - 16 * c / sum(chosen)) < 1 for part, c in zip(parts, chosen, strict=True))
