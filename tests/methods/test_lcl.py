"""Losses of the global batch, whatever the microbatches; weights, clamp, held-out means."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import num_samples, split_batch
from lcl_composer.methods.lcl import LCL
from lcl_composer.methods.method import contrast_of
from lcl_composer.methods.metrics import HeldOutLoss
from tests.models.tiny import batch, document, gradients, random_batch, tiny_model


def plain_losses(model: LCL, rows: PackedBatch) -> tuple[Tensor, Tensor]:
    """Contrastive and generation loss as the paper writes them, over one batch."""
    outputs = model(rows)
    images, contexts = (F.normalize(outputs[k], dim=-1) for k in ("image_features", "context_features"))
    logits = model.logit_scale.exp() * images @ contexts.T
    labels = torch.arange(len(logits))
    contrastive = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    return contrastive, F.cross_entropy(model.generation_head(outputs["hidden"]), outputs["targets"])


def train(model: LCL, rows: PackedBatch, microbatch_size: int) -> dict[str, float]:
    """What Composer does: each microbatch's loss times its share of the documents, added up."""
    model.zero_grad()
    summed: dict[str, float] = {}
    for part in split_batch(rows, microbatch_size):
        weight = num_samples(part) / num_samples(rows)
        losses = model.loss(model(part), part)
        (weight * losses["total"]).backward()
        for name, loss in losses.items():
            summed[name] = summed.get(name, 0.0) + weight * loss.item()
    return summed


def test_losses_are_those_of_the_paper():
    model, rows = tiny_model(contrastive_weight=0.3, generation_weight=2.0), random_batch(8)
    losses = model.loss(model(rows), rows)
    contrastive, generation = plain_losses(model, rows)
    torch.testing.assert_close(losses["contrastive"], contrastive, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["generation"], generation, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["total"], 0.3 * contrastive + 2.0 * generation, rtol=1e-5, atol=1e-6)
    losses["total"].backward()
    found = gradients(model)
    wanted = torch.autograd.grad(
        (lambda c, g: 0.3 * c + 2.0 * g)(*plain_losses(model, rows)), list(model.parameters())
    )
    for (name, _), expected in zip(model.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(
            found[name], expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("microbatch_size", [1, 2, 3, 4, 6])
def test_microbatches_give_the_generation_loss_of_the_batch(microbatch_size: int):
    """Targets are unevenly spread: a mean of microbatch means would differ."""
    model, rows = tiny_model(contrastive_weight=0.0), random_batch(7)
    whole = train(model, rows, 7)
    expected = {name: grad.clone() for name, grad in gradients(model).items()}
    split = train(model, rows, microbatch_size)
    assert split == pytest.approx(whole, rel=1e-5)
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("microbatch_size", [2, 3])
def test_microbatches_are_sets_of_negatives_weighted_by_their_images(microbatch_size: int):
    model, rows = tiny_model(generation_weight=0.0), random_batch(7)
    expected = 0.0
    for part in split_batch(rows, microbatch_size):
        images = int((part["anchors"] >= 0).sum())
        if images:
            expected += plain_losses(model, part)[0].item() * images / int(rows["totals"]["pairs"])
    found = train(model, rows, microbatch_size)
    assert found["contrastive"] == pytest.approx(expected, rel=1e-5)
    assert found["total"] == pytest.approx(0.1 * expected, rel=1e-5)


@pytest.mark.parametrize("weights", [(0.0, 1.0), (0.1, 0.0)])
@pytest.mark.parametrize("rows", [random_batch(4), batch([document("1 2 3")])], ids=["images", "text only"])
def test_a_loss_of_weight_0_is_not_computed_but_leaves_every_gradient(
    weights: tuple[float, float], rows: PackedBatch
):
    model = tiny_model(contrastive_weight=weights[0], generation_weight=weights[1])
    losses = model.loss(model(rows), rows)
    assert set(losses) == {"total", "generation" if weights[1] else "contrastive"}
    losses["total"].backward()
    found = gradients(model)
    off = "generation_head.weight" if weights[0] else "context_proj.weight"
    assert (found[off] == 0).all()


def test_logit_scale_starts_where_it_is_told():
    assert contrast_of(tiny_model(logit_scale_init=20.0), "a test")[1].scale().item() == pytest.approx(20.0)


def test_logit_scale_is_held_at_its_maximum_and_can_come_back():
    model, rows = tiny_model(logit_scale_init=1000.0, logit_scale_max=50.0), random_batch(6)
    _, contrast = contrast_of(model, "a test")
    assert contrast.scale().item() == pytest.approx(50.0)
    optimizer = torch.optim.SGD([model.logit_scale], lr=0.01)
    model.loss(model(rows), rows)["total"].backward()
    gradient = model.logit_scale.grad
    assert gradient is not None
    assert gradient > 0, "random features want a smaller scale"
    optimizer.step()
    assert contrast.scale() < 50.0
    assert model.logit_scale < math.log(50.0)


def held_out(model: LCL, batches: list[PackedBatch]) -> dict[str, float]:
    metrics = model.get_metrics(is_train=False)
    with torch.no_grad():
        for rows in batches:
            outputs = model.eval_forward(rows)
            for metric in metrics.values():
                model.update_metric(rows, outputs, metric)
    return {name: metric.compute().item() for name, metric in metrics.items()}


def test_held_out_loss_is_a_mean_over_targets_not_over_batches():
    model = tiny_model()
    rows = random_batch(7)
    whole = held_out(model, [rows])
    assert whole["generation"] == pytest.approx(plain_losses(model, rows)[1].item(), rel=1e-5)
    uneven = [batch([document("1 2")]), batch([document("3 4 5 6 7 8 9 10 11 12")])]
    losses = [plain_losses(model, part)[1].item() for part in uneven]
    counts = [int(part["totals"]["targets"]) for part in uneven]
    expected = sum(x * n for x, n in zip(losses, counts, strict=True)) / sum(counts)
    assert held_out(model, uneven)["generation"] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(sum(losses) / 2, rel=1e-4)


def test_held_out_contrastive_is_a_mean_over_images():
    model = tiny_model()
    whole = [random_batch(9), random_batch(5)]
    counts = [int(rows["totals"]["pairs"]) for rows in whole]
    losses = [plain_losses(model, rows)[0].item() for rows in whole]
    expected = sum(x * n for x, n in zip(losses, counts, strict=True)) / sum(counts)
    assert held_out(model, whole)["contrastive"] == pytest.approx(expected, rel=1e-5)


def test_training_has_no_metrics_and_nothing_seen_is_nan():
    assert tiny_model().get_metrics(is_train=True) == {}
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert math.isnan(HeldOutLoss("generation").compute())


def test_sigmoid_loss_and_its_bias():
    """SigLIP, equation 1: pairs are pulled, all other combinations pushed, over the number of images."""
    model, rows = tiny_model(contrastive="sigmoid", generation_weight=0.0), random_batch(8)
    outputs = model(rows)
    images, contexts = (F.normalize(outputs[k], dim=-1) for k in ("image_features", "context_features"))
    assert model.logit_bias is not None
    logits = model.logit_scale.exp() * images @ contexts.T + model.logit_bias
    signs = 2 * torch.eye(len(logits)) - 1
    expected = -F.logsigmoid(signs * logits).sum() / len(logits)
    loss = model.loss(outputs, rows)["contrastive"]
    torch.testing.assert_close(loss, expected)
    (found,) = torch.autograd.grad(loss, [model.logit_bias], retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected, [model.logit_bias])[0])


def test_sigmoid_without_contrastive_weight_leaves_every_gradient_defined():
    model, rows = tiny_model(contrastive="sigmoid", contrastive_weight=0.0), random_batch(4)
    model.loss(model(rows), rows)["total"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
