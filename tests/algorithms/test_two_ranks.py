"""Every algorithm on two gloo ranks under DDP: the same weights as on one, and resumes across the numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from composer import Algorithm
from torch import Tensor

from lcl_composer.algorithms.contrastive_temperature import ContrastiveTemperature
from lcl_composer.algorithms.contrastive_weight import ContrastiveWeight
from lcl_composer.algorithms.ema import EMA
from lcl_composer.algorithms.grad_cache import GradCache
from lcl_composer.algorithms.gradient_clipping import GradientClipping
from lcl_composer.algorithms.image_resolution import ImageResolution
from lcl_composer.algorithms.layer_freezing import LayerFreezing
from lcl_composer.algorithms.patch_dropout import PatchDropout
from lcl_composer.algorithms.stop_gradient import StopGradient
from lcl_composer.data.collate import split_batch
from tests.algorithms.test_grad_cache import TOLERANCE, SeedBeforeBatch, error, train, with_retained_graphs
from tests.algorithms.training import DOCUMENTS, as_launched, assert_same, batches, make_trainer, weights
from tests.distributed import run_ranks

pytestmark = pytest.mark.world_size(2)

#: By name: each is built anew for each run. Without GradCache a rank takes its batch whole.
CASES: dict[str, Callable[[], list[Algorithm]]] = {
    "grad_cache": lambda: [GradCache()],
    "temperature_warmup": lambda: [ContrastiveTemperature("warmup", start=0.1, end=0.05, until="2ba")],
    "temperature_cosine": lambda: [ContrastiveTemperature("cosine", start=0.1, end=0.05)],
    "weight_from_zero": lambda: [ContrastiveWeight(0, 1, until="2ba")],
    "stop_images": lambda: [StopGradient(images=True)],
    "stop_contexts": lambda: [StopGradient(contexts=True)],
    "freeze_encoder": lambda: [LayerFreezing(["encoder"])],
    "thaw_language_model": lambda: [LayerFreezing(["language_model"], start=1, end=0, until="2ba")],
    "resolution": lambda: [ImageResolution(8, until="2ba")],
    "clip_norm": lambda: [GradientClipping("norm", 0.1)],
    "clip_adaptive": lambda: [GradientClipping("adaptive", 0.01)],
    "ema": lambda: [EMA("2ba", export=False)],
    "ema_exported": lambda: [EMA("2ba", part="encoder")],
}


def run(name: str, ranks: int, **settings: object) -> dict[str, Tensor]:
    """Weights after three batches with SGD: Adam would blow rounding up to the size of a step."""
    micro = 2 if name == "grad_cache" else DOCUMENTS // ranks
    trainer = make_trainer(CASES[name](), duration="3ba", optimizer="sgd", micro=micro, **settings)  # type: ignore[arg-type]
    trainer.fit()
    return weights(trainer)


def on_a_rank(rank: int, ranks: int, folder: str, one_rank_checkpoint: str) -> dict[str, dict[str, Tensor]]:
    """All cases in one launch, as starting processes costs more than the cases."""
    as_launched(rank, ranks)
    results = {name: run(name, ranks) for name in CASES}
    make_trainer([PatchDropout(0.5)], duration="2ba", micro=2).fit()
    run("ema", ranks, folder=Path(folder))
    trainer = make_trainer(CASES["ema"](), duration="3ba", optimizer="sgd", micro=4, load=one_rank_checkpoint)
    trainer.fit()
    results["dropout"] = train(0.3, 2, [SeedBeforeBatch()])[0]
    results["dropout_reference"] = with_retained_graphs(0.3, 2)
    return {**results, "ema_resumed": {**weights(trainer), **_average(trainer.state.algorithms)}}


def _average(algorithms: list[Algorithm]) -> dict[str, Tensor]:
    ema = next(a for a in algorithms if isinstance(a, EMA))
    return {f"average.{name}": tensor.clone() for name, tensor in ema.average.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def one_rank_checkpoint(folder: Path) -> Path:
    make_trainer(CASES["ema"](), duration="1ba", optimizer="sgd", micro=8, folder=folder / "one").fit()
    return folder / "one" / "ba1.pt"


@pytest.fixture(scope="module")
def two_ranks(folder: Path, one_rank_checkpoint: Path) -> list[dict[str, dict[str, Tensor]]]:
    return run_ranks(2, on_a_rank, str(folder / "two"), str(one_rank_checkpoint))


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Tensor]:
    trainer = make_trainer(CASES["ema"](), duration="3ba", optimizer="sgd", micro=8)
    trainer.fit()
    return {**weights(trainer), **_average(trainer.state.algorithms)}


@pytest.mark.parametrize("name", list(CASES))
def test_two_ranks_train_as_one(name: str, two_ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    one = run(name, ranks=1)
    if name == "grad_cache":
        counts = [len(part["pixel_values"]) for r in range(2) for part in split_batch(batches(1, r, 2)[0], 2)]
        assert 0 in counts, "a microbatch of text alone"
        assert len(set(counts)) > 2, "uneven images"
    for rank in two_ranks:
        assert_same(rank[name], one, tolerance=2e-6)


def test_grad_cache_with_dropout_has_the_gradient_of_the_global_batch(
    two_ranks: list[dict[str, dict[str, Tensor]]],
) -> None:
    for rank in two_ranks:
        assert error(rank["dropout"], rank["dropout_reference"]) < TOLERANCE


def test_an_average_of_one_rank_goes_on_on_two(
    two_ranks: list[dict[str, dict[str, Tensor]]], uninterrupted: dict[str, Tensor]
) -> None:
    for rank in two_ranks:
        assert_same(rank["ema_resumed"], uninterrupted, tolerance=2e-6)


def test_an_average_of_two_ranks_goes_on_on_one(
    two_ranks: list[dict[str, dict[str, Tensor]]], uninterrupted: dict[str, Tensor], folder: Path
) -> None:
    checkpoint = torch.load(folder / "two" / "ba2.pt", weights_only=True)
    assert not any(name.startswith("module.") for name in checkpoint["state"]["model"])
    trainer = make_trainer(
        CASES["ema"](), duration="3ba", optimizer="sgd", micro=8, load=str(folder / "two" / "ba2.pt")
    )
    trainer.fit()
    assert_same({**weights(trainer), **_average(trainer.state.algorithms)}, uninterrupted, tolerance=2e-6)
