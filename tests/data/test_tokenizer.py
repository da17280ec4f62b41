from __future__ import annotations

import hashlib
import json
import multiprocessing
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from lcl_composer.data.tokenizer import SPECIAL_TOKENS, BPETokenizer, CLIPTokenizer, structural_ids, train_bpe
from lcl_composer.errors import DataError

RELEASED = Path(__file__).parents[3] / "shared" / "parity" / "clip_bpe_ids.json"
CASES = Path(__file__).with_name("clip_bpe_ids.json")
CLIP = CLIPTokenizer()
OPEN_CLIP = SimpleTokenizer(additional_special_tokens=list(SPECIAL_TOKENS[2:]))
TEXTS = ["a red square above a blue circle", "three green triangles", "a small red circle"] * 5


@pytest.mark.parametrize("path", [CASES, RELEASED], ids=["committed", "released"])
def test_clip_gives_the_released_ids(path: Path):
    if not path.is_file():
        pytest.skip("the released cases are not beside this clone")
    for case in json.loads(path.read_text()):
        assert CLIP.encode(case["text"]) == case["ids"], case["text"]


#: Special tokens, entities, contractions, odd case mappings, mojibake, control characters.
ODD = (
    "the |<start_of_text>|<START_OF_IMG>|<<|_|&amp;|&lt;|'S|'ſ|\u212a|İ|"
    "ß|e\u0301|日本|😀|\x1b[31m|\x00|\ud800|\xa0|"
    "â€™|ﬁ|Ａ|I'LL|</w>|Ⅷ|12| |\n|\t"
)
pieces = st.sampled_from(ODD.split("|"))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.lists(pieces | st.text(max_size=3), max_size=8).map("".join))
@example("&amp;lt; ftfy\x0c \x7f")
@example("¶ &amp;lt;\n<b> &amp;lt;\r\n\n¶ &amp;lt; ¶")
def test_clip_equals_open_clip(text: str):
    ids = OPEN_CLIP.encode(text)
    assert CLIP.encode(text) == ids
    assert CLIP.decode(ids) == OPEN_CLIP.decode(ids)


def test_clip_vocabulary():
    assert OPEN_CLIP.vocab_size == CLIP.vocab_size == 49411
    assert structural_ids(CLIP) == frozenset(OPEN_CLIP.encoder[token] for token in SPECIAL_TOKENS)
    every = list(range(CLIP.vocab_size))
    assert CLIP.decode(every) == OPEN_CLIP.decode(every)


def _encode(tokenizer: CLIPTokenizer | BPETokenizer, text: str) -> list[int]:
    return tokenizer.encode(text)


def test_pickles_into_workers(tmp_path: Path):
    train_bpe(TEXTS, 300, tmp_path / "bpe.json")
    bpe = BPETokenizer(tmp_path / "bpe.json")
    assert len(ForkingPickler.dumps(CLIP)) < 200
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        for tokenizer in (CLIP, bpe):
            assert pool.apply(_encode, (tokenizer, "A red square")) == tokenizer.encode("A red square")


def test_bpe_trains_the_same_file_each_time(tmp_path: Path):
    digests = set()
    for name in ("a.json", "b/c.json"):
        train_bpe(iter(TEXTS), 300, tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_bpe_round_trip(tmp_path: Path):
    train_bpe(TEXTS, 300, tmp_path / "bpe.json")
    bpe = BPETokenizer(tmp_path / "bpe.json")
    assert bpe.vocab_size <= 300
    assert structural_ids(bpe) == set(range(5))
    assert bpe.decode(bpe.encode("Three RED circles, naïve 日本")).strip() == "three red circles, naïve 日本"
    assert len(bpe.encode("red")) == 1  # a word of the training texts is one token, at the start too
    assert bpe.encode("<start_of_img>") == [bpe.start_of_image]


def test_bpe_refuses_what_is_no_tokenizer(tmp_path: Path):
    with pytest.raises(DataError, match="no file"):
        BPETokenizer(tmp_path / "none.json")
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(DataError, match="not a tokenizers JSON"):
        BPETokenizer(tmp_path / "odd.json")
    train_bpe(TEXTS, 300, tmp_path / "bpe.json")
    text = (tmp_path / "bpe.json").read_text().replace("<end_of_img>", "<other>")
    (tmp_path / "bpe.json").write_text(text)
    with pytest.raises(DataError, match="<end_of_img>"):
        BPETokenizer(tmp_path / "bpe.json")
    with pytest.raises(DataError, match="vocab_size = 100"):
        train_bpe(TEXTS, 100, tmp_path / "small.json")
