from __future__ import annotations

import pytest
import torch

from lcl_composer.algorithms.patch_dropout import KeepPatches, PatchDropout
from lcl_composer.errors import ConfigError
from lcl_composer.methods.lcl import LCL
from lcl_composer.models.encoder import TimmEncoder
from tests.algorithms.training import logged, make_trainer
from tests.models.tiny import IMAGE, TOKENIZER, batch, document, tiny_model


def prepared(rate: float) -> LCL:
    model = tiny_model()
    dropout = PatchDropout(rate)
    dropout.prepare(model)
    dropout.set(model, rate)
    return model


def test_the_kept_tokens_are_those_reported_in_order() -> None:
    reports: list = []
    keep = KeepPatches(1, reports.append)
    keep.rate = 0.5
    tokens = torch.arange(9.0).expand(3, 9).unsqueeze(-1).repeat(1, 1, 2)
    kept = keep(tokens)
    assert kept.shape == (3, 5, 2)
    assert torch.equal(kept[:, 0], tokens[:, 0]), "the class token stays"
    assert torch.equal(kept[:, 1:, 0], reports[0] + 1.0)
    assert torch.equal(reports[0], reports[0].sort(dim=1).values)
    assert keep.eval()(tokens) is tokens
    assert reports[-1] is None


def test_dropped_patches_leave_their_slots_to_the_placeholder() -> None:
    model = prepared(0.5).train()
    seen: list[torch.Tensor] = []
    model.language_model.register_forward_hook(lambda m, inputs, o: seen.append(inputs[0]))
    rows = batch([document("1 2", IMAGE, "3", IMAGE, "4")])
    model(rows)
    placeholder = model.language_model.embed(torch.tensor([TOKENIZER.image_placeholder]))[0]
    assert model.kept_patches is not None
    for image, start in enumerate(rows["image_starts"].tolist()):
        dropped = [bool(torch.equal(seen[0][start + k], placeholder)) for k in range(4)]
        assert dropped == [k not in model.kept_patches[image] for k in range(4)]
        assert sum(dropped) == 2


def test_evaluation_sees_every_patch() -> None:
    rows = batch([document("1 2", IMAGE, "3")])
    with torch.no_grad():
        torch.testing.assert_close(
            prepared(0.5).eval()(rows)["image_features"], tiny_model().eval()(rows)["image_features"]
        )


def test_schedule_and_state_dict() -> None:
    trainer = make_trainer([PatchDropout(0.75, end=0, until="2ba")])
    trainer.fit()
    assert logged(trainer, "algorithms/patch_dropout") == [0.75, 0.375, 0, 0]
    assert set(trainer.state.model.state_dict()) == set(tiny_model().state_dict())


def test_other_encoders_are_refused() -> None:
    model = tiny_model()
    model.encoder = TimmEncoder("resnet18", image_size=64)
    with pytest.raises(ConfigError, match="takes a timm VisionTransformer, not ResNet"):
        PatchDropout(0.5).check(model)
    with pytest.raises(ConfigError, match=r"patch_dropout: 0\.01 of 4 patches is none; raise rate"):
        PatchDropout(0.01).check(tiny_model())
    PatchDropout(0.0).check(tiny_model())
    PatchDropout(0.01, end=0.5).check(tiny_model())
    with pytest.raises(ValueError, match="below 1"):
        PatchDropout(1.0)
