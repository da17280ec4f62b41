"""The generator of interleaved documents about shapes."""

from __future__ import annotations

import hashlib
import io
import json
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image as PILImage

from lcl_composer.data.document import Document, Text
from lcl_composer.data.shared_memory import mend_numbers
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.synthetic.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    Group,
    Scene,
    draw_scene,
    render,
    split_of,
)
from lcl_composer.synthetic.shapes import ShapesGenerator, generate_documents
from lcl_composer.synthetic.text import _OPENINGS, after, before, question


def digest(documents: list[Document]) -> str:
    return hashlib.sha256(repr(documents).encode()).hexdigest()


def test_equal_settings_give_equal_documents_and_other_seeds_others():
    first, again = (digest(list(ShapesGenerator(20).documents())) for _ in range(2))
    assert first == again
    assert first != digest(list(ShapesGenerator(20, seed=1).documents()))


def test_more_documents_begin_with_the_same_ones():
    assert list(ShapesGenerator(9).documents())[:4] == list(ShapesGenerator(4).documents())


def test_documents_are_text_and_pictures_in_turn():
    counts = set()
    for document in ShapesGenerator(60, min_images=2, max_images=4).documents():
        kinds = [type(segment) for segment in document.segments]
        assert kinds[0] is kinds[-1] is Text
        assert all(a is not b for a, b in pairwise(kinds))
        assert not any(image.floats for image in document.images)
        counts.add(len(document.images))
    assert counts == {2, 3, 4}


def test_floating_pictures_are_the_same_but_for_their_place():
    fixed, floating = (next(ShapesGenerator(1, floating=floats).documents()) for floats in (False, True))
    assert [image.floats for image in fixed.images] == [False] * len(fixed.images)
    assert [image.floats for image in floating.images] == [True] * len(floating.images)
    assert [image.data for image in floating.images] == [image.data for image in fixed.images]


def test_texts_are_those_of_the_documents():
    generator = ShapesGenerator(15, split="held_out")
    drawn = [s.text for d in generator.documents() for s in d.segments if isinstance(s, Text)]
    assert list(generator.texts()) == drawn


def test_pictures_have_the_asked_size():
    document = next(ShapesGenerator(1, image_size=32).documents())
    assert PILImage.open(io.BytesIO(document.images[0].data)).size == (32, 32)


def test_splits_share_no_scene_and_no_picture():
    pictures = {
        split: {image.data for d in ShapesGenerator(300, split=split).documents() for image in d.images}
        for split in ("train", "held_out")
    }
    assert not pictures["train"] & pictures["held_out"]
    for split in ("train", "held_out", "probe_train", "probe_val"):
        assert split_of(draw_scene(Random(3), split)) == split


def test_the_order_of_groups_does_not_change_the_split():
    scene = draw_scene(Random(5), "held_out")
    while len(scene.groups) < 2:
        scene = draw_scene(Random(scene.objects), "held_out")
    assert split_of(Scene(scene.background, scene.groups[::-1])) == "held_out"


def test_held_out_descriptions_are_nearly_all_distinct():
    documents = ShapesGenerator(256, split="held_out").documents()
    contexts = {d.segments[0].text for d in documents if isinstance(d.segments[0], Text)}
    assert len(contexts) >= 250


def test_the_vocabulary_is_small():
    words = {word for text in ShapesGenerator(800).texts() for word in text.lower().split()}
    assert len(words) < 300


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("place", PLACES)
def test_an_object_lies_where_it_is_said_to_in_its_colour(shape, place):
    scene = Scene("white", (Group(1, "large", "blue", shape, place),))
    pixels = np.asarray(PILImage.open(io.BytesIO(render(scene, 48, Random(0)))).convert("RGB")).astype(int)
    coloured = np.abs(pixels - COLOURS["blue"]).sum(axis=2) < 30
    column, row = PLACES[place]
    inside = coloured[row * 24 : row * 24 + 24, column * 24 : column * 24 + 24].sum()
    assert inside == coloured.sum()
    assert inside > 60
    assert tuple(pixels[47 - row * 47, 47 - column * 47]) == BACKGROUNDS["white"]


def test_shapes_of_one_place_and_colour_look_different():
    drawn = {
        s: render(Scene("black", (Group(1, "large", "red", s, "top left"),)), 48, Random(1)) for s in SHAPES
    }
    assert len(set(drawn.values())) == len(SHAPES)


def test_small_objects_of_a_group_do_not_overlap():
    scene = Scene("white", (Group(3, "small", "red", "square", "top left"),))
    one = Scene("white", (Group(1, "small", "red", "square", "top left"),))
    for seed in range(20):
        areas = [_red_pixels(s, seed) for s in (one, scene)]
        assert areas[1] > 1.8 * areas[0]


def _red_pixels(scene: Scene, seed: int) -> int:
    pixels = np.asarray(PILImage.open(io.BytesIO(render(scene, 48, Random(seed)))).convert("RGB")).astype(int)
    return int((np.abs(pixels - COLOURS["red"]).sum(axis=2) < 60).sum())


def test_a_group_left_out_before_is_told_after():
    rng = Random(2)
    hidden_seen = 0
    for _ in range(200):
        scene = draw_scene(rng, "train")
        sentence, hidden = before(scene, 0, rng)
        named = [g for g in scene.groups if g.colour in sentence and g is not hidden]
        assert len(named) == len(scene.groups) - (hidden is not None)
        if hidden is not None:
            hidden_seen += 1
            assert hidden.colour not in sentence
            assert hidden.colour in after(scene, hidden, rng)
    assert 20 < hidden_seen < 100


@pytest.mark.parametrize(
    "settings",
    [
        {"documents": 0},
        {"split": "test"},
        {"image_size": 4},
        {"min_images": 3, "max_images": 2},
        {"min_images": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="shapes"):
        ShapesGenerator(**{"documents": 1, **settings})


def read_back(folder: Path) -> list[Document]:
    from streaming import StreamingDataset

    mend_numbers()
    dataset = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    return [Document.from_record(dataset[i]) for i in range(len(dataset))]


def test_generated_folder_reads_back_and_is_made_once(tmp_path):
    generator, out = ShapesGenerator(12), tmp_path / "shapes"
    generate_documents(generator, str(out), progress=False)
    assert read_back(out) == list(generator.documents())
    stamp = (out / "index.json").stat().st_mtime_ns
    generate_documents(generator, str(out), progress=False)
    assert (out / "index.json").stat().st_mtime_ns == stamp


def test_other_settings_and_half_written_folders_are_made_anew(tmp_path):
    out = tmp_path / "shapes"
    generate_documents(ShapesGenerator(3), str(out), progress=False)
    (tmp_path / "shapes.partial").mkdir()
    (tmp_path / "shapes.partial" / "shard.00000.mds").write_bytes(b"cut off")
    generate_documents(ShapesGenerator(5), str(out), progress=False)
    index = json.loads((out / "index.json").read_text())
    assert sum(shard["samples"] for shard in index["shards"]) == 5
    assert not (tmp_path / "shapes.partial").exists()


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(DataError, match="no generator made"):
        generate_documents(ShapesGenerator(1), str(tmp_path), progress=False)
    assert (tmp_path / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_pairs_are_the_pictures_and_sentences_of_the_documents(split):
    """Nothing but a general opening is in a document and in none of its pairs."""
    documents = list(ShapesGenerator(30, split=split).documents())
    generator = ShapesGenerator(30, split=split, pairs=True)
    pairs = list(generator.documents())
    assert len(pairs) == len(generator) == sum(len(d.images) for d in documents) > 45
    remaining = iter(pairs)
    for document in documents:
        said = " ".join(s.text for s in document.segments if isinstance(s, Text))
        mine = [next(remaining) for _ in document.images]
        assert [pair.id for pair in mine] == [f"{document.id}#{i}" for i in range(len(mine))]
        assert [pair.images[0].data for pair in mine] == [image.data for image in document.images]
        assert all(len(pair.segments) == 2 and pair.images[0].floats for pair in mine)
        told = " ".join(pair.segments[1].text for pair in mine)  # type: ignore[union-attr]
        assert said.endswith(told)
        assert said.removesuffix(told) in ("", *_OPENINGS)


def test_documents_and_pairs_have_the_tokenizer_in_common():
    documents, pairs = ShapesGenerator(20), ShapesGenerator(20, pairs=True)
    assert documents.settings() != pairs.settings()
    assert documents.text_settings() == pairs.text_settings()
    assert list(documents.texts()) == list(pairs.texts())
    assert documents.text_settings() != ShapesGenerator(21).text_settings()


def test_questions_are_about_the_pictures_of_the_documents_and_have_one_answer():
    generator = ShapesGenerator(60, questions=True)
    asked = list(generator.documents())
    pictures = [image.data for document in ShapesGenerator(60).documents() for image in document.images]
    assert [document.images[0].data for document in asked] == pictures
    assert len(asked) == len(generator)
    assert asked[0].to_record() == next(ShapesGenerator(60, questions=True).documents()).to_record()
    answers: dict[str, set[str]] = {}
    for document in asked:
        question, answer = (s.text for s in document.segments if isinstance(s, Text))
        answers.setdefault(" ".join(question.split()[:2]), set()).add(answer)
    assert set(answers) == {"How many", "What shape", "What colour"}
    assert answers["What shape"] <= set(SHAPES)
    assert answers["What colour"] <= {*COLOURS, *BACKGROUNDS}
    assert answers["How many"] <= {"one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}
    with pytest.raises(ConfigError, match="set one of them"):
        ShapesGenerator(1, pairs=True, questions=True)


def test_answers_are_what_the_scene_holds():
    crosses = Group(2, "small", "red", "cross", "top left")
    scene = Scene("mint", (crosses, Group(1, "large", "blue", "ring", "top right")))
    found = {question(scene, Random(seed)) for seed in range(200)}
    assert found == {
        ("How many red crosses are there?", "two"),
        ("How many blue rings are there?", "one"),
        ("What shape is red?", "cross"),
        ("What shape is blue?", "ring"),
        ("How many shapes are there in all?", "three"),
        ("What colour is the background?", "mint"),
        ("What colour are the crosses?", "red"),
        ("What colour is the ring?", "blue"),
    }
