from __future__ import annotations

import pytest
from torch import Tensor

from lcl_composer.algorithms.stop_gradient import StopGradient
from tests.algorithms.training import Record, make_trainer
from tests.models.tiny import tiny_model


def contrastive_gradients(**sides: bool) -> dict[str, Tensor]:
    """Gradients of L_con alone."""
    record = Record()
    model = tiny_model(contrastive_weight=1.0, generation_weight=0.0)
    make_trainer([StopGradient(**sides)] if sides else [], [record], model=model, duration="1ba").fit()
    return record.gradients[0]


def is_zero(gradients: dict[str, Tensor], name: str) -> bool:
    return float(gradients[name].abs().max()) == 0


def test_images_stopped() -> None:
    gradients = contrastive_gradients(images=True)
    assert is_zero(gradients, "pooler.query")
    assert not is_zero(gradients, "context_proj.weight")


def test_contexts_stopped() -> None:
    gradients = contrastive_gradients(contexts=True)
    assert not is_zero(gradients, "pooler.query")
    assert is_zero(gradients, "context_proj.weight")
    assert is_zero(gradients, "language_model.backbone.decoder.layers.0.fc1.weight")


def test_both_by_default_carry_gradient_and_both_stopped_leave_the_temperature() -> None:
    gradients = contrastive_gradients()
    assert not is_zero(gradients, "pooler.query")
    assert not is_zero(gradients, "context_proj.weight")
    gradients = contrastive_gradients(images=True, contexts=True)
    assert [name for name in gradients if not is_zero(gradients, name)] == ["logit_scale"]


def test_a_switch_that_does_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="set images, contexts or both"):
        StopGradient()
