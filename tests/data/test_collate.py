from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcl_composer.data.batch import IGNORE, PackedBatch
from lcl_composer.data.collate import (
    Sample,
    bad_sample,
    collate,
    make_sample,
    num_samples,
    num_tokens,
    split_batch,
    split_by_tokens,
    token_bounds,
)
from lcl_composer.data.document import Image
from lcl_composer.data.interleave import LayoutRules, lay_out
from tests.data.layouts import FIXED, NumberTokenizer, document, rng

RULES = LayoutRules(tokens_per_image=2, max_tokens=30)
KINDS: dict[str, tuple[str | Image, ...]] = {
    "pair": ("1 2", FIXED),
    "image first": (FIXED, "3"),
    "text": ("4 5 6",),
    "interleaved": ("7", FIXED, "8", FIXED, "9"),
}


def sample(kind: str, index: int) -> Sample:
    """A sample whose pixels are all ``10 * index + image``."""
    name = f"{kind} {index}"
    if kind == "bad":
        return bad_sample(name, "broken", 4)
    layout = lay_out(document(*KINDS[kind], name=name), NumberTokenizer(), RULES, rng())
    pixels = [torch.full((3, 4, 4), 10 * index + int(i), dtype=torch.uint8) for i in layout.images]
    layout = replace(layout, hidden_patches=np.array([[index, int(i)] for i in layout.images]).reshape(-1, 2))
    return make_sample(
        name, layout, torch.stack(pixels) if pixels else torch.zeros(0, 3, 4, 4, dtype=torch.uint8)
    )


def unpack(batch: PackedBatch) -> list[dict[str, object]]:
    """Each document of a batch by itself, positions relative to it."""
    documents, image = [], 0
    for d, name in enumerate(batch["ids"]):
        start, stop = batch["cu_seqlens"][d : d + 2].tolist()
        images = slice(image, image := image + int(batch["images_per_document"][d]))
        documents.append(
            {
                "id": name,
                "tokens": batch["tokens"][start:stop].tolist(),
                "targets": batch["targets"][start:stop].tolist(),
                "positions": batch["positions"][start:stop].tolist(),
                "starts": [int(p) - start if p >= 0 else -1 for p in batch["image_starts"][images]],
                "anchors": [int(p) - start if p >= 0 else -1 for p in batch["anchors"][images]],
                "pixels": batch["pixel_values"][images].tolist(),
                "hidden": batch["hidden_patches"][images].tolist(),
            }
        )
    assert image == len(batch["pixel_values"]) == len(batch["anchors"]) == len(batch["image_starts"])
    return documents


kinds = st.lists(st.sampled_from([*KINDS, "bad"]), min_size=1, max_size=7)


def dtypes(batch: PackedBatch) -> dict[str, torch.dtype]:
    return {key: value.dtype for key, value in batch.items() if isinstance(value, torch.Tensor)}


@settings(max_examples=60, deadline=None)
@given(kinds)
def test_collate_keeps_each_document(names: list[str]):
    samples = [sample(kind, i) for i, kind in enumerate(names)]
    batch = collate(samples)
    assert num_samples(batch) == len(names)
    assert num_tokens(batch) == sum(len(s["tokens"]) for s in samples)
    for s, got in zip(samples, unpack(batch), strict=True):
        assert got["id"] == s["id"]
        assert got["tokens"] == s["tokens"].tolist()
        assert got["targets"] == s["targets"].tolist()
        assert got["positions"] == list(range(len(s["tokens"])))
        assert got["starts"] == s["image_starts"].tolist()
        assert got["anchors"] == s["anchors"].tolist()
        assert got["pixels"] == s["pixel_values"].tolist()
        assert got["hidden"] == s["hidden_patches"].tolist()
    targets = sum(int((s["targets"] != IGNORE).sum()) for s in samples)
    anchored = sum(int((s["anchors"] >= 0).sum()) for s in samples)
    read = sum(int((s["image_starts"] >= 0).sum()) for s in samples)
    assert {name: int(count) for name, count in batch["totals"].items()} == {
        "documents": len(names),
        "targets": targets,
        "images": len(batch["pixel_values"]),
        "pairs": anchored,
        "read_images": read,
    }


@settings(max_examples=60, deadline=None)
@given(kinds, st.integers(1, 8))
def test_split_batch_keeps_documents_with_their_images(names: list[str], size: int):
    batch = collate([sample(kind, i) for i, kind in enumerate(names)])
    parts = split_batch(batch, size)
    assert [num_samples(p) for p in parts[:-1]] == [size] * (len(parts) - 1)
    assert [d for p in parts for d in unpack(p)] == unpack(batch)
    for part in parts:
        assert part["totals"] == batch["totals"]
        assert dtypes(part) == dtypes(batch)


def test_microbatches_do_not_share_memory_with_the_batch():
    batch = collate([sample("interleaved", i) for i in range(4)])
    part = copy.deepcopy(split_batch(batch, 1)[0])
    assert part["pixel_values"].untyped_storage().nbytes() == 2 * 3 * 4 * 4


def test_text_only_batch_is_legal():
    batch = collate([sample("text", 0), sample("bad", 1)])
    assert batch["pixel_values"].shape == (0, 3, 4, 4)
    assert len(split_batch(batch, 1)) == 2


@pytest.mark.parametrize("size", [0, 0.5, -1])
def test_split_batch_refuses_odd_sizes(size: float):
    with pytest.raises(ValueError, match="microbatch_size"):
        split_batch(collate([sample("text", 0)]), size)


def test_dtypes():
    batch = collate([sample("pair", 0)])
    int64 = ("tokens", "targets", "positions", "image_starts", "anchors", "images_per_document")
    assert {batch[k].dtype for k in int64} == {torch.int64}
    assert {count.dtype for count in batch["totals"].values()} == {torch.int64}
    assert batch["cu_seqlens"].dtype == torch.int32
    assert batch["pixel_values"].dtype == torch.uint8


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([*KINDS, "bad"]), min_size=1, max_size=6), st.integers(1, 6))
def test_indices_and_lengths_are_those_of_the_batch(kinds: list[str], size: int):
    """Of whole batches and of microbatches: the model asks the device for none of it."""
    whole = collate([sample(kind, i) for i, kind in enumerate(kinds)])
    for part in [whole, *split_batch(whole, size)]:
        assert part["lengths"] == part["cu_seqlens"].diff().tolist()
        for name, chosen in (
            ("predicting", part["targets"] != IGNORE),
            ("paired", part["anchors"] >= 0),
            ("read", part["image_starts"] >= 0),
        ):
            assert part[name].tolist() == [i for i, wanted in enumerate(chosen.tolist()) if wanted]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 20), st.integers(1, 12))
def test_microbatches_by_tokens(lengths: list[int], most: int, least: int):
    bounds = token_bounds(lengths, most, least)
    assert [first for first, _ in bounds] == [0, *[last for _, last in bounds[:-1]]]
    assert bounds[-1][1] == len(lengths)
    assert all(first < last for first, last in bounds)
    assert all(sum(lengths[first:last]) <= most or last - first == 1 for first, last in bounds)
    assert len(bounds) >= min(least, len(lengths))
    fewest = token_bounds(lengths, most)
    for first, last in fewest[:-1]:
        assert sum(lengths[first : last + 1]) > most  # the next document would not have fitted


def test_microbatches_by_tokens_are_those_by_documents():
    """Of documents that are all alike, bit for bit."""
    batch = collate([sample("pair", 3) for _ in range(6)])
    length = batch["lengths"][0]
    by_tokens = split_by_tokens(batch, 2 * length + 1)
    by_documents = split_batch(batch, 2)
    assert len(by_tokens) == len(by_documents) == 3
    for one, other in zip(by_tokens, by_documents, strict=True):
        assert one["lengths"] == other["lengths"]
        assert all(torch.equal(one[key], other[key]) for key in dtypes(one))  # type: ignore[literal-required]
    assert split_by_tokens(batch, 6 * length) == [batch]
    assert [len(part["ids"]) for part in split_by_tokens(batch, 6 * length, 4)] == [1, 2, 1, 2]
