from __future__ import annotations

import pytest

from lcl_composer.algorithms.contrastive_weight import ContrastiveWeight
from lcl_composer.errors import ConfigError
from tests.algorithms.training import logged, make_trainer
from tests.models.tiny import tiny_model


def test_the_total_follows_the_weight() -> None:
    trainer = make_trainer([ContrastiveWeight(0, 2, until="2ba")], micro=8)
    trainer.fit()
    assert logged(trainer, "loss/contrastive_weight") == [0, 1, 2, 2]
    total, generation = logged(trainer, "loss/train/total"), logged(trainer, "loss/train/generation")
    contrastive = logged(trainer, "loss/train/contrastive")
    assert len(contrastive) == 3, "it is not computed where the weight is 0"
    parts = [g + w * c for g, w, c in zip(generation, [0, 1, 2, 2], [0, *contrastive], strict=True)]
    assert total == pytest.approx(parts, rel=1e-5)


def test_a_run_of_epochs_moves_it_with_every_batch() -> None:
    trainer = make_trainer([ContrastiveWeight(0, 2)], duration="2ep", batch_count=2)
    trainer.fit()
    assert logged(trainer, "loss/contrastive_weight") == [0, 0.5, 1, 1.5]


def test_the_config_weight_does_not_matter() -> None:
    trainer = make_trainer([ContrastiveWeight(0.5, 0.5)], model=tiny_model(contrastive_weight=0.0))
    trainer.fit()
    assert logged(trainer, "loss/contrastive_weight") == [0.5] * 4


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing would be trained"):
        make_trainer([ContrastiveWeight(0, 1)], model=tiny_model(generation_weight=0.0))
    with pytest.raises(ValueError, match="must not be negative"):
        ContrastiveWeight(0, -1)
