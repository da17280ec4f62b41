from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from composer.core import Callback, State
from composer.loggers import Logger
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lcl_composer.algorithms.ema import EMA
from lcl_composer.checkpoint import only_safe_loads, read_model_state
from lcl_composer.errors import ConfigError, DataError
from tests.algorithms.training import assert_same, make_trainer, weights
from tests.distributed import run_ranks


class Watch(Callback):
    """The weights after each batch, in evaluations, and at the end of training."""

    def __init__(self) -> None:
        self.trained: list[dict[str, Tensor]] = []
        self.evaluated: list[dict[str, Tensor]] = []
        self.ended: dict[str, Tensor] = {}

    def batch_end(self, state: State, logger: Logger) -> None:
        self.trained.append(_copy(state))

    def eval_batch_start(self, state: State, logger: Logger) -> None:
        self.evaluated.append(_copy(state))

    def fit_end(self, state: State, logger: Logger) -> None:
        self.ended = _copy(state)


def _copy(state: State) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in state.model.state_dict().items()}


def averaged(
    trained: list[dict[str, Tensor]], initial: dict[str, Tensor], smoothing: float
) -> dict[str, Tensor]:
    average = {n: t.double() for n, t in initial.items()}
    for step in trained:
        average = {n: smoothing * average[n] + (1 - smoothing) * t.double() for n, t in step.items()}
    return {n: t.float() for n, t in average.items()}


def test_the_average_is_evaluated_and_exported_while_training_goes_on_untouched() -> None:
    plain, watched = Watch(), Watch()
    make_trainer([], [plain], evaluate=True).fit()
    trainer = make_trainer([EMA("2ba")], [watched], evaluate=True)
    initial = weights(trainer)
    trainer.fit()
    for with_ema, without in zip(watched.trained, plain.trained, strict=True):
        assert_same(with_ema, without)
    expected = averaged(watched.trained, initial, 0.5**0.5)
    assert_same(watched.ended, expected, tolerance=1e-6)
    assert_same(watched.evaluated[-1], expected, tolerance=1e-6)
    assert_same(plain.ended, plain.trained[-1])


def test_training_weights_are_measured_if_so_wanted() -> None:
    watched = Watch()
    make_trainer([EMA("2ba", evaluate=False, export=False)], [watched], evaluate=True).fit()
    assert_same(watched.evaluated[-1], watched.trained[-1])
    assert_same(watched.ended, watched.trained[-1])


def test_the_encoder_alone() -> None:
    watched = Watch()
    trainer = make_trainer([EMA("2ba", part="encoder")], [watched])
    initial = weights(trainer)
    trainer.fit()
    average = averaged(watched.trained, initial, 0.5**0.5)
    encoder = {n for n in average if n.startswith("encoder.")}
    assert encoder
    assert_same({n: watched.ended[n] for n in encoder}, {n: average[n] for n in encoder}, tolerance=1e-6)
    rest = set(average) - encoder
    assert_same({n: watched.ended[n] for n in rest}, {n: watched.trained[-1][n] for n in rest})


def test_it_begins_late_and_updates_now_and_then() -> None:
    watched = Watch()
    trainer = make_trainer([EMA("4ba", begin="2ba", update_interval="2ba")], [watched])
    trainer.fit()
    expected = averaged([watched.trained[3]], watched.trained[1], 0.5**0.5)
    assert_same(watched.ended, expected, tolerance=1e-6)


def test_a_checkpoint_says_what_it_holds_and_gives_either(tmp_path: Path) -> None:
    watched = Watch()
    trainer = make_trainer([EMA("2ba")], [watched], folder=tmp_path)
    initial = weights(trainer)
    trainer.fit()
    path = tmp_path / "ba4.pt"
    algorithms = dict(torch.load(path, weights_only=True)["state"]["algorithms"])
    assert algorithms["EMA"]["holds"] == (
        "state.model: the trained weights; state.algorithms.EMA.average: the average"
    )
    assert_same(read_model_state(path), watched.trained[-1])
    assert_same(read_model_state(path, "ema"), averaged(watched.trained, initial, 0.5**0.5), tolerance=1e-6)
    trainer.save_checkpoint(str(tmp_path / "after.pt"))  # the average is in the model by now
    after = dict(torch.load(tmp_path / "after.pt", weights_only=True)["state"]["algorithms"])["EMA"]
    assert after["holds"].startswith("state.model: the average")
    assert_same(read_model_state(tmp_path / "after.pt"), watched.trained[-1])
    assert_same(read_model_state(tmp_path / "after.pt", "ema"), watched.ended)


def test_the_average_of_a_checkpoint_without_one(tmp_path: Path) -> None:
    make_trainer([], folder=tmp_path, duration="1ba").fit()
    with pytest.raises(DataError, match="was trained without ema"):
        read_model_state(tmp_path / "ba1.pt", "ema")


def test_a_resume_without_ema_goes_on_from_the_trained_weights_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = make_trainer()
    plain.fit()
    make_trainer([EMA("2ba")], folder=tmp_path, duration="2ba").fit()
    capsys.readouterr()
    resumed = make_trainer(load=str(tmp_path / "ba2.pt"))
    assert "trained with EMA, this run is not" in capsys.readouterr().out
    resumed.fit()
    assert_same(weights(resumed), weights(plain))


def test_a_resume_with_ema_of_a_run_without_begins_at_the_loaded_weights(tmp_path: Path) -> None:
    watched = Watch()
    make_trainer([], [watched], folder=tmp_path, duration="2ba").fit()
    resumed = make_trainer([ema := EMA("2ba")], load=str(tmp_path / "ba2.pt"))
    assert_same(ema.average, watched.trained[-1])
    assert_same(ema.average, weights(resumed))


def test_other_averages_are_refused(tmp_path: Path) -> None:
    make_trainer([EMA("2ba")], folder=tmp_path, duration="1ba").fit()
    with pytest.raises(ConfigError, match="averages 'all', this run 'encoder'"):
        make_trainer([EMA("2ba", part="encoder")], load=str(tmp_path / "ba1.pt"))
    with pytest.raises(ConfigError, match="Composer's own EMA"):
        EMA("2ba").load_state_dict({"repr": "", "ema_model": {}})


def test_tied_weights_come_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    ema = EMA("1ba")
    ema._make(model)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(2)
    ema.update(model, 1)
    ema.swap(model)
    torch.testing.assert_close(model[1].weight.detach(), before + 1)
    ema.swap(model)
    torch.testing.assert_close(model[1].weight.detach(), before + 2)


@pytest.mark.parametrize("time", ["1ep", "0ba"])
def test_times_are_in_batches(time: str) -> None:
    with pytest.raises(ValueError, match="must be in batches"):
        EMA(half_life=time)


def sharded(rank: int, ranks: int) -> dict[str, Tensor]:
    """Update, save, load and swap under FSDP2: the average is sharded as the weights are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    ema = EMA("1ba")
    ema._make(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(2)
    ema.update(model, 1)
    saved = ema.state_dict()
    assert not any(isinstance(t, DTensor) for t in saved["average"].values())
    again = EMA("1ba")
    again.load_state_dict(saved)
    again._make(model)
    again.swap(model)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    return {n: p.full_tensor().detach() for n, p in model.named_parameters()}  # type: ignore[attr-defined]


@pytest.mark.world_size(2)
def test_weights_sharded_by_fsdp2() -> None:
    only_safe_loads()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    expected = {n: p.detach() + 1 for n, p in model.named_parameters()}
    for rank in run_ranks(2, sharded):
        assert_same(rank, expected, tolerance=1e-6)
