from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from lcl_composer.data.interleave import LayoutRules, lay_out
from lcl_composer.data.pretrained_tokenizer import TransformersTokenizer
from lcl_composer.data.tokenizer import structural_ids
from lcl_composer.errors import DataError
from lcl_composer.resume import digest_of_tokenizer
from tests.data.layouts import FIXED, document
from tests.models.saved import END, save_tokenizer

TEXTS = ["A red square above a blue circle", "three Green triangles"] * 5
TEXT = "A red square above three Green triangles, naïve 日本"


def saved(folder: Path, texts: list[str] = TEXTS, **special: str) -> TransformersTokenizer:
    save_tokenizer(folder, texts, **(special or {"bos_token": END, "eos_token": END}))
    return TransformersTokenizer(str(folder))


def test_ids_are_its_own_and_new_ones_come_after(tmp_path: Path):
    ours, theirs = saved(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs(TEXT, add_special_tokens=False)["input_ids"]
    assert len(ids) > 3  # nothing is truncated
    assert ours.encode(TEXT) == ids
    assert ours.decode(ids) == TEXT
    own = len(theirs)
    assert ours.start_of_text == ours.end_of_text == theirs.eos_token_id
    assert (ours.image_placeholder, ours.start_of_image, ours.end_of_image) == (own, own + 1, own + 2)
    assert ours.vocab_size == own + 3
    assert ours.encode(f"red<start_of_img>{END}") == [*ours.encode("red"), own + 1, theirs.eos_token_id]


def test_what_it_lacks_is_added(tmp_path: Path):
    ours = saved(tmp_path, eos_token=END)
    first = len(AutoTokenizer.from_pretrained(tmp_path))
    assert ours.end_of_text < first
    assert sorted(structural_ids(ours) - {ours.end_of_text}) == list(range(first, first + 4))
    assert ours.start_of_text == first


def test_one_token_for_both_ends_makes_the_same_layout(tmp_path: Path):
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two", eos_token=END)
    rules, rng = LayoutRules(tokens_per_image=2, max_tokens=40), np.random.default_rng(0)
    ours, other = (lay_out(document("red", FIXED, "blue"), t, rules, rng) for t in (one, two))
    assert [*ours.tokens[:1], *ours.targets[-1:]] == [one.start_of_text, one.end_of_text]
    assert ours.image_starts.tolist() == other.image_starts.tolist()
    assert (ours.targets >= 0).tolist() == (other.targets >= 0).tolist()


def _encode(tokenizer: TransformersTokenizer) -> list[int]:
    return tokenizer.encode(TEXT)


def test_it_travels_to_loader_processes(tmp_path: Path):
    ours = saved(tmp_path)
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        assert pool.apply(_encode, (ours,)) == ours.encode(TEXT)


def test_the_digest_is_that_of_its_merges(tmp_path: Path):
    first, same = saved(tmp_path / "first"), saved(tmp_path / "same")
    other = saved(tmp_path / "other", [text[::-1] for text in TEXTS])
    assert first.vocab_size == other.vocab_size
    assert digest_of_tokenizer(first) == digest_of_tokenizer(same) != digest_of_tokenizer(other)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"tokenizer transformers: cannot load .*nowhere': no such folder"):
        TransformersTokenizer(str(tmp_path / "nowhere"))
