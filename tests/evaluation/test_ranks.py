"""The same numbers on one rank and on two (gloo)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lcl_composer.data.batch import PackedBatch
from lcl_composer.evaluation.features import extract_features, open_image_folder
from lcl_composer.evaluation.gallery import Gallery
from lcl_composer.evaluation.retrieval import collect_features, evaluate_retrieval
from lcl_composer.methods.contrast import Contrast
from lcl_composer.methods.method import Term
from tests.distributed import run_ranks
from tests.evaluation.batches import make_batch
from tests.evaluation.fakes import Words
from tests.evaluation.folders import to_tensor, write_folder


class Eye(nn.Module):
    """Mean colours of four corners, and the word before the image; a method as far as retrieval looks."""

    def __init__(self) -> None:
        super().__init__()
        sides = ("image_features", "context_features")
        self.contrast_term = Term(1.0, "pairs", sides, Contrast(self))
        torch.manual_seed(0)
        self.words = nn.Embedding(16, 12)

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        tokens = nn.functional.adaptive_avg_pool2d(pixel_values.float(), 2).flatten(2).transpose(1, 2)
        return tokens.flatten(1), tokens

    def forward(self, batch: PackedBatch) -> dict[str, Tensor]:
        words = self.words(batch["tokens"][batch["anchors"] - 1])
        return {"image_features": self.encode_images(batch["pixel_values"])[0], "context_features": words}


def share(rank: int, world_size: int) -> list[PackedBatch]:
    """Uneven shares, one document twice, as a sharded loader fills up its last batch."""
    batches = [make_batch(4, seed) for seed in range(3)]
    return batches if world_size == 1 else [[batches[0], batches[2]], [batches[1], batches[0]]][rank]


def measure(rank: int, world_size: int, folder: Path) -> tuple[dict[str, float], Tensor, Tensor]:
    batches = share(rank, world_size)
    features, labels = extract_features(Eye(), open_image_folder(folder, to_tensor), batch_size=2)
    return evaluate_retrieval(Eye(), batches), features, labels


def test_two_ranks_measure_what_one_measures(tmp_path: Path) -> None:
    write_folder(tmp_path, 3, ("blue", "green", "red"))  # nine images: five and four
    metrics, features, labels = measure(0, 1, tmp_path)
    for their_metrics, their_features, their_labels in run_ranks(2, measure, tmp_path):
        assert their_metrics == metrics
        assert torch.equal(their_features, features)
        assert torch.equal(their_labels, labels)


def show(rank: int, world_size: int, folder: Path) -> None:
    gallery = Gallery(Words())
    features = collect_features(
        Eye().eval().requires_grad_(False), gallery.watch(share(rank, world_size)), None
    )
    gallery.write(features, folder)


def test_two_ranks_show_what_one_shows(tmp_path: Path) -> None:
    show(0, 1, tmp_path / "one")
    run_ranks(2, show, tmp_path / "two")
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("one", "two"))
    assert one == two
    assert len(one) > 8
