"""Only what a loss sees is computed, and every parameter stays in the graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.document import Document
from lcl_composer.methods.lcl import LCL
from tests.methods.global_batch import assert_idle_work_changes_nothing
from tests.models.tiny import (
    EMBED_DIM,
    IMAGE,
    RULES,
    TOKENIZER,
    TOKENS_PER_IMAGE,
    bad_batch,
    batch,
    document,
    gradients,
    random_batch,
    tiny_model,
)


def rows_through(module: nn.Module, run: Callable[[], object]) -> list[int]:
    """Rows (product of all axes but the last) of each input of a module during a run."""
    seen: list[int] = []
    handle = module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][..., 0].numel()))
    run()
    handle.remove()
    return seen


LEADING = document(IMAGE, "3 4", name="leading")  # no context: slots but no anchor
TRAILING = document("5 6", IMAGE, name="trailing")  # an anchor, but nobody reads its slots
MIDDLE = document("1 2", IMAGE, "8 9", name="middle")  # both
TEXT = document("1 2 3", name="text")


def test_outputs_stand_where_the_batch_says():
    rows = batch([LEADING, TRAILING, MIDDLE, TEXT])
    outputs = tiny_model()(rows)
    assert outputs["image_features"].shape == outputs["context_features"].shape == (2, EMBED_DIM)
    assert outputs["hidden"].shape == (len(outputs["targets"]), EMBED_DIM)
    assert outputs["targets"].tolist() == rows["targets"][rows["targets"] >= 0].tolist()


def test_only_anchored_images_are_pooled_and_only_read_images_projected():
    model, rows = tiny_model(), batch([LEADING, TRAILING, MIDDLE])
    assert rows["image_starts"].sign().tolist() == [1, -1, 1]
    assert rows["anchors"].sign().tolist() == [-1, 1, 1]
    assert rows_through(model.pooler.norm_k, lambda: model(rows)) == [2 * TOKENS_PER_IMAGE]
    # proj runs once on latents and once on the values that fill slots
    assert sorted(rows_through(model.pooler.proj, lambda: model(rows))) == [2, 2 * TOKENS_PER_IMAGE]


def test_the_heads_run_on_nothing_but_their_positions():
    model, rows = tiny_model(), batch([LEADING, TRAILING, MIDDLE, TEXT])
    targets = int((rows["targets"] >= 0).sum())
    assert rows_through(model.generation_norm, lambda: model(rows)) == [targets]
    assert rows_through(model.context_proj, lambda: model(rows)) == [2]
    layer = model.language_model.backbone.decoder.layers[0].fc1
    assert rows_through(layer, lambda: model(rows)) == [len(rows["tokens"])]


@pytest.mark.parametrize("rows", [[LEADING, TRAILING, MIDDLE, TEXT], [TRAILING]], ids=["mixed", "unread"])
def test_without_a_contrast_nothing_runs_for_it(rows: list[Document]):
    """The gradients are those of the network that computes everything, as evaluations do."""
    model, packed = tiny_model(contrastive_weight=0.0), batch(rows)
    assert_idle_work_changes_nothing(model, packed)
    read = sum(start >= 0 for start in packed["image_starts"].tolist())
    encoder = model.encoder.backbone.patch_embed
    images: list[int] = []
    encoder.register_forward_hook(lambda _, inputs, __: images.append(len(inputs[0])))
    assert rows_through(model.pooler.norm_k, lambda: model(packed)) == [0]
    assert images == [max(read, 1)]  # a blank one where none is read
    assert model.forward_flops(packed)["encoder"] == read * model.image_flops()
    assert len(model.eval()(packed)["image_features"]) == len(packed["paired"]) > 0


def test_without_generation_nothing_is_laid_out_for_it():
    """Tokens behind the last anchor, and images that only they read; the contrast is the same."""
    model, rows = tiny_model(generation_weight=0.0), [LEADING, TRAILING, MIDDLE, TEXT]
    whole, cut = batch(rows), batch(rows, model.layout(TOKENIZER, RULES))
    assert (whole["lengths"], cut["lengths"]) == ([8, 4, 11, 4], [1, 4, 4, 1])
    assert (len(whole["pixel_values"]), len(cut["pixel_values"])) == (3, 2)
    losses, grads = losses_and_gradients(model, whole)
    model.zero_grad()
    found, found_grads = losses_and_gradients(model, cut)
    torch.testing.assert_close(found["total"], losses["total"], rtol=1e-5, atol=1e-6)
    for name, gradient in grads.items():
        torch.testing.assert_close(found_grads[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_slots_hold_the_images_of_their_own_document():
    """Another picture in one document changes that document's outputs behind it, and no other's."""
    model, rows = tiny_model(), batch([MIDDLE, LEADING, document("3", IMAGE, "4", IMAGE, "5", name="two")])
    changed: PackedBatch = {**rows, "pixel_values": rows["pixel_values"].clone()}  # type: ignore[typeddict-item]
    changed["pixel_values"][2] = 255 - changed["pixel_values"][2]  # the first image of the last document
    with torch.no_grad():
        before, after = model(rows), model(changed)
    predicting = (rows["targets"] >= 0).nonzero().squeeze(1)
    moved = ((before["hidden"] - after["hidden"]).abs().amax(1) > 0).tolist()
    assert moved == (predicting >= rows["image_starts"][2]).tolist()
    assert any(moved)
    assert not all(moved)
    same = (before["image_features"] == after["image_features"]).all(1)
    assert same.tolist() == [True, False, True]  # anchored: MIDDLE's, and both of the last document
    context_same = (before["context_features"] == after["context_features"]).all(1)
    assert context_same.tolist() == [True, True, False]  # only the second anchor comes after that image


def test_context_is_what_the_model_knew_before_the_image():
    """The anchor's output depends on no pixel of its own image."""
    model, rows = tiny_model(), batch([MIDDLE])
    changed: PackedBatch = {**rows, "pixel_values": 255 - rows["pixel_values"]}  # type: ignore[typeddict-item]
    with torch.no_grad():
        assert torch.equal(model(rows)["context_features"], model(changed)["context_features"])


def test_packing_order_does_not_matter():
    model = tiny_model()
    with torch.no_grad():
        both = model(batch([MIDDLE, LEADING]))["hidden"]
        swapped = model(batch([LEADING, MIDDLE]))["hidden"]
        alone = model(batch([MIDDLE]))["hidden"]
    torch.testing.assert_close(both[: len(alone)], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(swapped[-len(alone) :], alone, rtol=1e-4, atol=1e-5)


def losses_and_gradients(model: LCL, rows: PackedBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    losses = model.loss(model(rows), rows)
    losses["total"].backward()
    return losses, gradients(model)


@pytest.mark.parametrize(
    "rows",
    [
        batch([TEXT, document("4 5", name="b")]),
        bad_batch(3),
        batch([LEADING]),  # an image that is read but not pooled
        batch([TRAILING]),  # an image that is pooled but not read
        random_batch(5),
    ],
    ids=["text only", "all bad", "not pooled", "not read", "random"],
)
def test_every_parameter_gets_a_gradient(rows: PackedBatch):
    losses, grads = losses_and_gradients(tiny_model(), rows)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(grad).all() for grad in grads.values())


def test_blank_image_and_blank_token_change_nothing():
    model = tiny_model()
    losses, grads = losses_and_gradients(model, bad_batch(2))
    assert losses["total"] == 0
    assert all((grad == 0).all() for grad in grads.values())
    text = batch([TEXT])
    losses, grads = losses_and_gradients(tiny_model(), text)
    assert losses["contrastive"] == 0
    assert all((grad == 0).all() for name, grad in grads.items() if name.startswith(("encoder", "pooler")))
    assert grads["language_model.backbone.decoder.embed_tokens.weight"][1].abs().max() > 0


def test_without_dead_work_the_losses_are_those_of_the_whole_documents():
    """Cut layouts against the same documents with every token and image run, by hand."""
    model, rows = tiny_model(), batch([TRAILING])
    assert len(rows["tokens"]) == 4  # <start_of_text> 5 6 <start_of_img>
    outputs = model(rows)
    with torch.no_grad():
        tokens = torch.cat([rows["tokens"], torch.full((TOKENS_PER_IMAGE + 1,), 61)])
        embeddings = model.language_model.embed(tokens)
        whole = model.language_model(embeddings, torch.arange(len(tokens)), [len(tokens)])
        context = model.context_proj(model.context_norm(whole[3:4]))
    torch.testing.assert_close(outputs["context_features"], context, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs["hidden"], model.generation_norm(whole[:3]), rtol=1e-4, atol=1e-5)


def test_encode_images():
    model, rows = tiny_model(), random_batch(4)
    latents, tokens = model.encode_images(rows["pixel_values"])
    assert tokens.shape[1] == TOKENS_PER_IMAGE
    torch.testing.assert_close(latents[rows["anchors"] >= 0], model(rows)["image_features"])
