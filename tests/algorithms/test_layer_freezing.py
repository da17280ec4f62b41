from __future__ import annotations

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from torch import nn

from lcl_composer.algorithms.layer_freezing import LayerFreezing, create_missing_state, layers_from_input
from lcl_composer.errors import ConfigError
from tests.algorithms.training import logged, make_trainer, weights
from tests.models.tiny import tiny_encoder, tiny_language_model, tiny_model


class Changed(Callback):
    """The names of the weights that each batch changed."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []
        self._before: dict[str, torch.Tensor] = {}

    def batch_start(self, state: State, logger: Logger) -> None:
        self._before = {n: p.detach().clone() for n, p in state.model.named_parameters()}

    def batch_end(self, state: State, logger: Logger) -> None:
        now = state.model.named_parameters()
        self.names.append({n for n, p in now if not torch.equal(p, self._before[n])})


def changed(algorithm: LayerFreezing) -> tuple[list[set[str]], list[float]]:
    """What each of four batches changed, and the frozen share that was logged."""
    changes = Changed()
    trainer = make_trainer([algorithm], [changes])
    trainer.fit()
    return changes.names, logged(trainer, "algorithms/frozen_layers")


def of(names: set[str], part: str) -> set[str]:
    return {name for name in names if name.startswith(f"{part}.")}


def test_frozen_for_good_needs_no_gradients_and_runs_in_eval_mode() -> None:
    model = tiny_model()
    before = {n: t.clone() for n, t in model.encoder.state_dict().items()}
    trainer = make_trainer([LayerFreezing(["encoder"])], model=model)
    trainer.fit()
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.pooler.parameters())
    assert not model.encoder.training
    assert model.pooler.training
    assert all(torch.equal(t, before[n]) for n, t in model.encoder.state_dict().items())
    assert set(weights(trainer)) == set(tiny_model().state_dict())


def test_neither_momentum_nor_decay_moves_what_is_frozen_for_a_while() -> None:
    names, shares = changed(LayerFreezing(["encoder", "pooler"], start=0, end=1, begin="2ba", until="2ba"))
    assert shares == [0, 0, 1, 1]
    assert [bool(of(n, "encoder")) for n in names] == [True, True, False, False]
    assert [bool(of(n, "pooler")) for n in names] == [True, True, False, False]
    assert all(of(n, "language_model") for n in names)


def test_released_from_the_top_down() -> None:
    names, shares = changed(LayerFreezing(["encoder"], start=1, end=0, until="4ba"))
    assert shares == [1, 0.75, 0.5, 0.25]
    layers = [{name.split(".")[3] for name in of(n, "encoder") if ".blocks." in name} for n in names]
    assert layers == [set(), set(), {"1"}, {"0", "1"}]
    assert "encoder.backbone.norm.weight" in names[1]
    assert not any("pos_embed" in name for n in names for name in n)


def test_layers_run_from_the_input_to_the_output_and_hold_every_parameter_once() -> None:
    for part in (tiny_encoder(), tiny_language_model(), tiny_model().pooler):
        layers = layers_from_input(part)
        held = [id(parameter) for layer in layers for parameter in layer]
        assert sorted(held) == sorted(id(parameter) for parameter in part.parameters())
    assert len(layers_from_input(tiny_encoder())) == 4
    assert len(layers_from_input(tiny_model().pooler)) == 1


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_created_state_leaves_the_first_real_step_as_it_is(make: type[torch.optim.Optimizer]) -> None:
    options = {"lr": 0.1, "weight_decay": 0.1} | ({"momentum": 0.9} if make is torch.optim.SGD else {})
    results = []
    for prepare in (False, True):
        parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = make([parameter], **options)  # type: ignore[call-arg]
        if prepare:
            create_missing_state(optimizer, [parameter])
            assert torch.equal(parameter, torch.tensor([1.0, 2.0]))
            assert parameter in optimizer.state
        parameter.grad = torch.tensor([0.5, -3.0])
        optimizer.step()
        results.append(parameter.detach())
    assert torch.equal(*results)


def test_settings() -> None:
    with pytest.raises(ValueError, match="must name at least one"):
        LayerFreezing([])
    with pytest.raises(ValueError, match="are shares"):
        LayerFreezing(["encoder"], start=2)
    with pytest.raises(ConfigError, match=r"layer_freezing: 0\.01 of \d+ layers is none; raise start or end"):
        LayerFreezing(["encoder"], start=0.01, end=0.01).check(tiny_model())
    LayerFreezing(["encoder"], start=1, end=0).check(tiny_model())
