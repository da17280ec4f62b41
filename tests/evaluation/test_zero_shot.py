"""Zero-shot classification: logits are OpenCLIP's for the same weights, the rest is worked out by hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from lcl_composer.data.document import Document, Text
from lcl_composer.data.document import Image as DocumentImage
from lcl_composer.data.interleave import LayoutRules
from lcl_composer.data.tokenizer import CLIPTokenizer
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.evaluation.outcomes import read_outcomes
from lcl_composer.evaluation.zero_shot import (
    Prompted,
    ZeroShot,
    class_features,
    image_logits,
    names_of,
    ranked,
    templates_of,
)
from lcl_composer.methods.blip2 import BLIP2
from lcl_composer.methods.clip import CLIP
from lcl_composer.methods.emu import Emu
from lcl_composer.methods.method import Method
from lcl_composer.registry import evaluations
from tests.distributed import run_ranks
from tests.methods.open_clips import same_clips
from tests.models.tiny import (
    IMAGE_SIZE,
    MAX_TOKENS,
    RULES,
    TOKENIZER,
    TOKENS_PER_IMAGE,
    tiny_method,
    tiny_model,
)

NAMES = ["a red_circle", "great white shark", "1960s car"]


def write_images(root: Path, classes: list[str], size: int, per_class: int = 3) -> str:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return str(root)


@torch.no_grad()
@pytest.mark.parametrize("templates", ["openai", "simple"])
def test_logits_are_open_clips_for_the_same_weights(tmp_path: Path, templates: Any) -> None:
    ours, theirs = same_clips()
    layout = ours.layout(CLIPTokenizer(), LayoutRules(16, 24))
    prompted = Prompted(write_images(tmp_path, ["0", "1", "2"], 32), 32, layout, templates, {}, 4)
    found = class_features(ours, layout, NAMES, templates_of(templates), batch_size=50)
    tokenizer = partial(open_clip.tokenizer.SimpleTokenizer(), context_length=24)
    functions = {"openai": open_clip.OPENAI_IMAGENET_TEMPLATES, "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES}
    expected = open_clip.build_zero_shot_classifier(theirs, tokenizer, NAMES, functions[templates])
    torch.testing.assert_close(found, expected.T, rtol=1e-5, atol=1e-5)
    pixels = torch.stack([pixels for pixels, _ in prompted.images])
    features = theirs.encode_image(ours.encoder.normalize(pixels), normalize=True)
    logits = image_logits(ours, prompted.images, found, batch_size=4)
    torch.testing.assert_close(logits, theirs.logit_scale.exp() * features @ expected, rtol=1e-5, atol=1e-5)


def test_ties_count_against_us_and_a_class_counts_as_much_as_another() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [0.0, 1.0, 2.0], [9.0, 1.0, 0.0]])
    found = ranked(logits, torch.tensor([0, 0, 1, 0]))
    assert found.ranks.tolist() == [0, 1, 1, 0]
    assert found.predicted.tolist() == [0, 1, 2, 0]
    tied = ranked(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1]))
    assert (tied.ranks.tolist(), tied.predicted.tolist()) == ([1, 1], [1, 0])
    assert found.numbers == {
        "top1": 0.5,
        "top5": 1.0,
        "mean_top1": pytest.approx((2 / 3 + 0) / 2),
        "chance": pytest.approx(1 / 3),
    }


def test_names_and_templates() -> None:
    assert names_of(["red_circle", "n01"], {"n01": "tench"}) == ["red circle", "tench"]
    assert names_of([f"n{i:04}" for i in range(1000)], "imagenet")[:2] == ["tench", "goldfish"]
    assert [f("dog") for f in templates_of(["a {}.", "{} and {}"])] == ["a dog.", "dog and dog"]
    assert (len(templates_of("openai")), len(templates_of("simple"))) == (80, 7)
    with pytest.raises(ConfigError, match="imagenet has 1000 classes, the folder 2"):
        names_of(["a", "b"], "imagenet")
    with pytest.raises(ConfigError, match="there is no class folder 'c'"):
        names_of(["a", "b"], {"c": "x"})
    with pytest.raises(ConfigError, match="1 class folders; it needs two at least"):
        names_of(["a"], {})
    for folders, names in ((["a b", "a_b"], {}), (["a b", "c"], {"c": "a b"})):
        with pytest.raises(ConfigError, match=r"class folder '\w+' is called 'a b' as 'a b' is; name it"):
            names_of(folders, names)
    with pytest.raises(ConfigError, match="class folder '_' is called nothing; name it"):
        names_of(["_", "a"], {})
    assert names_of(["_", "a"], {"_": "blank"}) == ["blank", "a"]
    with pytest.raises(ConfigError, match=r"'a photo': needs \{\} for the class name"):
        templates_of(["{}", "a photo"])
    with pytest.raises(ConfigError, match="'none'"):
        templates_of([])


def evaluation_of(images: str, model: Method, **options: Any) -> ZeroShot:
    spec = {"name": "zero_shot", "images": images, "templates": ["{}", "1 {}"], **options}
    offered = {"image_size": IMAGE_SIZE, "layout": model.layout(TOKENIZER, RULES), "tokenizer": TOKENIZER}
    return evaluations.build(spec, **offered)


def plain_accuracy(model: Method, evaluation: ZeroShot) -> float:
    """Each image for itself against each class, with no batches."""
    layout, right = evaluation.prompted.layout, []
    classes = class_features(model, layout, evaluation.prompted.names, evaluation.prompted.templates, 1)
    for pixels, label in evaluation.prompted.images:
        features = model.image_features(pixels[None])
        cosines = (normalize(features, dim=-1) @ classes.T).reshape(-1, len(classes)).amax(0)
        right.append(int(cosines.argmax()) == label)
    return sum(right) / len(right)


@pytest.mark.parametrize("name", ["lcl", "clip", "blip2"])
def test_an_evaluation_measures_writes_and_reads_well(name: str, tmp_path: Path) -> None:
    blip2 = partial(BLIP2, num_queries=3, query_layers=1, query_heads=2)
    model = {"lcl": tiny_model, "clip": lambda: tiny_method(CLIP), "blip2": lambda: tiny_method(blip2)}[
        name
    ]()
    model.eval()
    evaluation = evaluation_of(write_images(tmp_path / "images", ["2", "3_4", "5"], IMAGE_SIZE), model)
    evaluation.start(model)
    result = evaluation.measure(model, None, tmp_path)
    assert result is not None
    with torch.no_grad():
        assert result["top1"] == pytest.approx(plain_accuracy(model, evaluation))
    assert (result["images"], result["classes"], result["templates"], result["top5"]) == (9, 3, 2, 1.0)
    outcomes = read_outcomes(tmp_path, "zero_shot")
    assert outcomes is not None
    for name, tally in outcomes.tallies.items():
        assert tally.value == pytest.approx(result[name])
    assert outcomes.tallies.keys() == {"top1", "top5", "mean_top1"}
    assert (outcomes.classes, outcomes.images[0]) == (["2", "3 4", "5"], "2/0.png")
    right = [a == b for a, b in zip(outcomes.labels, outcomes.predicted, strict=True)]
    assert sum(right) / 9 == pytest.approx(result["top1"])
    assert "33.33% by chance" in evaluation.rows(result)[0].compared_with
    assert evaluation.note(result) == "Zero-shot: 9 images of 3 classes, 2 prompts a class"


def shards_of(images: str, folder: Path) -> str:
    """The labelled images of a folder as ``lcl convert imagefolder`` makes documents of them."""
    with DocumentWriter(folder) as writer:
        for file in sorted(Path(images).glob("*/*.png")):
            segments = (DocumentImage(file.read_bytes()), Text(file.parent.name))
            writer.write(Document(f"val-{file.parent.name}-{file.stem}", "test", segments))
    return str(folder)


def test_shards_give_what_the_folder_gives(tmp_path: Path) -> None:
    model = tiny_model().eval()
    folder = write_images(tmp_path / "images", ["2", "3_4", "5"], IMAGE_SIZE)
    results = [
        evaluation_of(place, model).measure(model, None, tmp_path)
        for place in (folder, shards_of(folder, tmp_path / "shards"))
    ]
    assert results[0] == results[1]
    outcomes = read_outcomes(tmp_path, "zero_shot")
    assert outcomes is not None
    assert outcomes.images[:4] == ["val-2-0", "val-2-1", "val-2-2", "val-3_4-0"]


class WithoutTexts(CLIP):
    """Contrasts, but has no feature of a text by itself."""

    text_features = Method.text_features


def test_what_would_fail_after_training_is_said_before(tmp_path: Path) -> None:
    """Images that cannot be read, documents without a class, prompts without a feature, methods without."""
    model, images = tiny_model(), write_images(tmp_path / "images", ["2", "3"], IMAGE_SIZE)
    with pytest.raises(ConfigError, match=r"zero_shot\.batch_size: is 0, must be at least 1"):
        evaluation_of(images, model, batch_size=0)
    rules = LayoutRules(TOKENS_PER_IMAGE, MAX_TOKENS, min_context_tokens=9)
    with pytest.raises(DataError, match="text '2': has no feature; it is empty, or shorter"):
        ZeroShot(images, IMAGE_SIZE, model.layout(TOKENIZER, rules), ["1 1 {}", "{}"])
    with pytest.raises(
        ConfigError, match=r"evaluation\.zero_shot: .*WithoutTexts contrasts images with no text"
    ):
        evaluation_of(images, model).start(tiny_method(WithoutTexts))
    with DocumentWriter(tmp_path / "captions") as writer:
        image = DocumentImage((Path(images) / "2/0.png").read_bytes())
        writer.write(Document("a", "test", (image, Text("2"))))
        writer.write(Document("b", "test", (image, Text("3"), Text("4"))))
    with pytest.raises(DataError, match=r"captions: 1 of 2 documents are not one image and the name of its"):
        evaluation_of(str(tmp_path / "captions"), model)
    (Path(images) / "3/0.png").write_bytes(b"version https://git-lfs")
    with pytest.raises(DataError, match=r"3/0\.png"):
        evaluation_of(images, model)


def test_what_cannot_be_measured_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        evaluation_of(str(tmp_path / "nowhere"), tiny_model())
    images = write_images(tmp_path, ["2", "3"], IMAGE_SIZE)
    with pytest.raises(ConfigError, match=r"evaluation\.zero_shot: the method Emu contrasts nothing"):
        evaluation_of(images, tiny_model()).start(tiny_method(Emu))


def logits_of_a_rank(rank: int, ranks: int, folder: str) -> tuple[Tensor, Tensor]:
    model = tiny_model().eval().requires_grad_(False)
    prompted = evaluation_of(folder, model).prompted
    classes = class_features(model, prompted.layout, prompted.names, prompted.templates)
    return classes, image_logits(model, prompted.images, classes, batch_size=2)


@pytest.mark.slow
def test_two_ranks_measure_what_one_measures(tmp_path: Path) -> None:
    folder = write_images(tmp_path, ["2", "3", "5"], IMAGE_SIZE)
    expected = logits_of_a_rank(0, 1, folder)
    for found in run_ranks(2, logits_of_a_rank, folder):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
