from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lcl_composer.data.document import Document, Text
from lcl_composer.data.document import Image as DocumentImage
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.evaluation import features as features_module
from lcl_composer.evaluation import probe as probe_module
from lcl_composer.evaluation.features import extract_features, open_image_folder, reduce_features
from lcl_composer.evaluation.knn import knn_classify
from lcl_composer.evaluation.probe import Table, fit_logistic, linear_probe, probe_model
from lcl_composer.evaluation.probe_trained import FrozenProbe
from lcl_composer.evaluation.weights import image_side_state, image_side_weights
from tests.evaluation.batches import SIDE
from tests.evaluation.fakes import FakeLCL
from tests.evaluation.folders import to_tensor, write_folder


def gaussians(count: int, seed: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    centres = torch.eye(4, 10) * 3
    return centres[labels] + noise * torch.randn(count, 10, generator=generator), labels


def test_separable_features_are_separated_and_the_result_is_repeatable() -> None:
    first = linear_probe(gaussians(200, 0, 0.5), gaussians(80, 1, 0.5))
    assert first.accuracy > 0.97
    assert first.chance == 0.25
    assert linear_probe(gaussians(200, 0, 0.5), gaussians(80, 1, 0.5)) == first


def test_labels_without_relation_to_the_features_stay_at_chance() -> None:
    (x, _), (x_val, _) = gaussians(400, 0), gaussians(400, 1)
    generator = torch.Generator().manual_seed(0)
    y, y_val = torch.randint(4, (2, 400), generator=generator)
    assert linear_probe((x, y), (x_val, y_val)).accuracy == pytest.approx(0.25, abs=0.07)


def test_the_penalty_is_chosen_by_the_data() -> None:
    clean = linear_probe(gaussians(200, 0, 0.3), gaussians(80, 1, 0.3))
    x, y = gaussians(200, 0, 2.0)
    drowned = torch.cat([x, torch.randn(200, 400, generator=torch.Generator().manual_seed(0))], 1)
    assert linear_probe((drowned, y), (drowned[:4], y[:4])).l2 > clean.l2


def test_features_scale_and_constant_columns_do_not_matter() -> None:
    train, val = gaussians(200, 0), gaussians(80, 1)
    plain = linear_probe(train, val)

    def stretch(x: Tensor) -> Tensor:
        return torch.cat([x * torch.logspace(-3, 3, 10) + 5, torch.full((len(x), 1), 7.0)], 1)

    assert linear_probe((stretch(train[0]), train[1]), (stretch(val[0]), val[1])).accuracy == pytest.approx(
        plain.accuracy, abs=0.02
    )


def test_the_fit_is_the_minimum() -> None:
    x, y = gaussians(100, 0)
    x = x.double()
    weights = fit_logistic(Table(x, y), 4, 0.1).requires_grad_()
    loss = (
        torch.nn.functional.cross_entropy(x @ weights[:-1] + weights[-1], y)
        + 0.05 * weights[:-1].square().sum()
    )
    (gradient,) = torch.autograd.grad(loss, weights)
    assert gradient.abs().max() < 1e-5


def test_it_comes_within_a_point_of_scikit_learns() -> None:
    """Of its best strength on the test part, which ours does not see."""
    train, val = gaussians(600, 0, 1.6), gaussians(1000, 1, 1.6)
    scaler = StandardScaler().fit(train[0])
    x, x_val = scaler.transform(train[0]), scaler.transform(val[0])
    fits = [LogisticRegression(C=c, max_iter=500).fit(x, train[1]) for c in (1e-3, 1e-2, 0.1, 1.0)]
    best = max(fit.score(x_val, val[1]) for fit in fits)
    assert linear_probe(train, val).accuracy == pytest.approx(best, abs=0.01)
    assert 0.6 < best < 0.95


def test_chunks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = gaussians(200, 0, 1.5), gaussians(80, 1, 1.5)
    whole, weights = linear_probe(train, val), fit_logistic(Table(*train).standardised(), 4, 0.1)
    votes = knn_classify(train, val[0], k=7)
    monkeypatch.setattr(probe_module, "CHUNK", 17)
    monkeypatch.setattr("lcl_composer.evaluation.knn._GALLERY", 13)
    assert linear_probe(train, val) == whole
    table = Table(*train).standardised()
    torch.testing.assert_close(fit_logistic(table, 4, 0.1), weights, rtol=1e-3, atol=1e-4)
    assert torch.equal(knn_classify(train, val[0], k=7, chunk=9), votes)


def test_shards_of_labelled_documents_give_what_the_folder_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "folder", 5)
    files = sorted(folder.glob("*/*.png"))
    with DocumentWriter(tmp_path / "shards", size_limit=1 << 11) as writer:
        for file in files:
            label = Text(file.parent.name)
            writer.write(Document(file.as_posix(), "test", (DocumentImage(file.read_bytes()), label)))
    monkeypatch.setattr(features_module, "IN_MEMORY", 10)  # bytes: the features go to a file
    assert len(list((tmp_path / "shards").glob("shard*"))) > 1
    model, places = FakeLCL(), (folder, tmp_path / "shards")
    found = [extract_features(model, open_image_folder(p, to_tensor), batch_size=4) for p in places]
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].tolist() == found[1][1].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    shards = open_image_folder(tmp_path / "shards", to_tensor)
    assert shards.targets == found[0][1].tolist()
    assert [name for name, _ in shards.samples] == [file.as_posix() for file in files]


def test_few_images_a_class_are_still_probed() -> None:
    assert linear_probe(gaussians(8, 0, 0.1), gaussians(8, 1, 0.1)).accuracy == 1.0


def test_features_keep_the_order_of_the_folder_and_leave_the_model_alone(tmp_path: Path) -> None:
    images = open_image_folder(write_folder(tmp_path / "a", 3), to_tensor)
    model = FakeLCL().train()
    for kind, width in (("patch_mean", 12), ("pooled", 8)):
        features, labels = extract_features(model, images, kind=kind, batch_size=4)  # type: ignore[arg-type]
        assert features.shape == (9, width)
        assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
        with torch.no_grad():
            pooled, tokens = model.encode_images(images[7][0].unsqueeze(0))
        expected = {"pooled": pooled, "patch_mean": tokens.mean(1)}[kind][0]
        assert torch.allclose(features[7], expected, atol=1e-6)
    assert model.training


def test_probe_of_a_model_and_of_its_other_weights(tmp_path: Path) -> None:
    train = open_image_folder(write_folder(tmp_path / "train", 6), to_tensor)
    val = open_image_folder(write_folder(tmp_path / "val", 4, seed=1), to_tensor)
    model = FakeLCL()
    blind = {name: torch.zeros_like(v) for name, v in image_side_state(model).items()}
    before = image_side_state(model)
    assert probe_model(model, train, val).accuracy == 1.0
    with image_side_weights(model, blind):
        assert probe_model(model, train, val).accuracy == pytest.approx(1 / 3, abs=0.01)
    after = image_side_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_the_probe_of_a_run_would_miss_at_its_end_is_said_before(tmp_path: Path) -> None:
    """Other classes, a batch of none, and latents of a method that pools nothing."""
    train, val = str(write_folder(tmp_path / "a", 2)), str(write_folder(tmp_path / "b", 1))
    other = str(write_folder(tmp_path / "c", 1, ("blue", "green")))
    with pytest.raises(DataError, match=r"a and .*c differ in the classes red"):
        FrozenProbe(train, other, SIDE)
    with pytest.raises(ConfigError, match=r"evaluation\.probe\.batch_size: is 0"):
        FrozenProbe(train, val, SIDE, batch_size=0)
    model = FakeLCL()
    FrozenProbe(train, val, SIDE, "pooled").start(model)
    model.part_names = ("encoder",)  # type: ignore[misc]
    with pytest.raises(
        ConfigError, match=r"evaluation\.probe\.features: pooled, but the method FakeLCL has no poo"
    ):
        FrozenProbe(train, val, SIDE, "pooled").start(model)


def test_images_are_decoded_as_training_images_are(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a" / "clear.png")
    (tmp_path / "a" / "damaged.png").write_bytes(b"no image")
    images = open_image_folder(tmp_path, to_tensor)
    assert (images[0][0] == 255).all()  # transparent red is white, not red
    with pytest.raises(DataError, match=r"damaged\.png"):
        images[1]


def test_errors_name_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        open_image_folder(tmp_path / "nowhere", to_tensor)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        open_image_folder(tmp_path / "empty", to_tensor)
    three = open_image_folder(write_folder(tmp_path / "three", 1), to_tensor)
    two = open_image_folder(write_folder(tmp_path / "two", 1, ("blue", "red")), to_tensor)
    with pytest.raises(DataError, match="classes green"):
        probe_model(FakeLCL(), three, two)
    one = open_image_folder(write_folder(tmp_path / "one", 1, ("blue",)), to_tensor)
    with pytest.raises(DataError, match="one: 1 classes; a probe needs two at least"):
        probe_model(FakeLCL(), one, one)
    with pytest.raises(ValueError, match="unknown features"):
        reduce_features("mean", torch.ones(1, 2), torch.ones(1, 2, 2))  # type: ignore[arg-type]
