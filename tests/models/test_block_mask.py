from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from lcl_composer.models.attention import Packing
from lcl_composer.models.block_mask import block_ranges, packed_block_mask

TABLES = ("kv", "full_kv", "q", "full_q")


def as_sets(counts: Tensor, blocks: Tensor) -> list[list[int]]:
    rows = zip(counts.flatten().tolist(), blocks.flatten(0, 2), strict=True)
    return [sorted(row[:count].tolist()) for count, row in rows]


def assert_equals_torch(lengths: list[int], window: int | None) -> None:
    document = torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(torch.tensor(lengths))
    ours = packed_block_mask(lengths, document, window)
    theirs = create_block_mask(ours.mask_mod, None, None, len(document), len(document), device="cpu")
    assert ours.seq_lengths == theirs.seq_lengths
    for table in TABLES:
        found, expected = (
            as_sets(getattr(mask, f"{table}_num_blocks"), getattr(mask, f"{table}_indices"))
            for mask in (ours, theirs)
        )
        assert found == expected, (lengths, window, table)


WORKED = [[1], [128], [127, 1], [1, 5, 130, 3], [128] * 4, [1000], [256, 256], [64] * 64, [129, 127, 384, 1]]


@pytest.mark.parametrize("lengths", WORKED)
@pytest.mark.parametrize("window", [None, 1, 127, 128, 129, 300])
def test_equals_torch(lengths: list[int], window: int | None):
    assert_equals_torch(lengths, window)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=8), window=st.none() | st.integers(1, 600))
def test_equals_torch_for_any_lengths(lengths: list[int], window: int | None):
    assert_equals_torch(lengths, window)


def test_indices_past_a_count_lie_in_the_mask():
    """Flex attention's kernel reads one ahead."""
    document = torch.zeros(1000, dtype=torch.int32)
    mask = packed_block_mask([1000], document)
    for table in TABLES:
        blocks = getattr(mask, f"{table}_indices")
        assert blocks.min() >= 0
        assert blocks.max() < 8


def mask_bytes(tokens: int) -> int:
    """Bytes of all tensors of the mask of ``tokens`` tokens in documents of 60 to 400."""
    lengths = [60 + 97 * i % 341 for i in range(tokens // 230)]
    packing = Packing(lengths, torch.device("cpu"))
    mask = packing.block_mask(None)
    tensors = [getattr(mask, f"{t}_{kind}") for t in TABLES for kind in ("num_blocks", "indices")]
    return sum(x.untyped_storage().nbytes() for x in (*tensors, packing.documents, packing.offsets))


def test_memory_is_linear_in_the_tokens():
    small, large = mask_bytes(65_536), mask_bytes(262_144)
    assert large < 4.1 * small
    assert large < 4 * 2**20


def test_a_long_document_costs_only_itself():
    """The table is as wide as the longest document, not as the batch."""
    width = packed_block_mask(
        [5000] + [100] * 2000, torch.zeros(205_000, dtype=torch.int32)
    ).kv_indices.shape[-1]
    assert width == 40
    assert all(len(x) == -(-205_000 // 128) for x in block_ranges([5000] + [100] * 2000))


def test_window_narrows_the_table():
    document = torch.zeros(20_000, dtype=torch.int32)
    assert packed_block_mask([20_000], document, 256).kv_indices.shape[-1] <= 4
    assert np.all(np.diff(block_ranges([20_000], 256).first) >= 0)
