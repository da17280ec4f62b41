"""Flamingo against a plain version token by token, its gates, its gradients over ranks, whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lcl_composer.config import compose
from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.document import Document
from lcl_composer.data.tagged import Tagged
from lcl_composer.errors import ConfigError
from lcl_composer.methods.flamingo import Flamingo
from lcl_composer.models.attention import Packing
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.gated_cross_attention import GatedCrossAttention
from lcl_composer.models.language_model import TransformersLM
from tests import runs
from tests.methods.global_batch import (
    UNEVEN,
    assert_every_parameter_gets_a_gradient,
    assert_microbatches_agree,
    assert_ranks_agree,
)
from tests.methods.whole_runs import assert_resumes_exactly, settings
from tests.models.tiny import (
    IMAGE,
    RULES,
    TOKENIZER,
    bad_batch,
    batch,
    document,
    gradients,
    random_document,
    tiny_language_model,
    tiny_method,
)

TAGGED = Tagged(TOKENIZER, RULES)


def with_open_gates(
    encoder: Encoder, language_model: TransformersLM, vocab_size: int, gate: float = 0.7, interval: int = 1
) -> Flamingo:
    """A Flamingo some way into its training."""
    model = Flamingo(encoder, language_model, vocab_size, interval)
    for block in model.cross_attention:
        torch.nn.init.constant_(block.attention_gate, gate)
        torch.nn.init.constant_(block.feed_forward_gate, -gate)
    return model


def model_of(model_type: str = "opt", **options: Any) -> Flamingo:
    return tiny_method(with_open_gates, model_type, **options)


def rows_of(*documents: Document) -> PackedBatch:
    return batch(documents, TAGGED)


def random_rows(count: int) -> PackedBatch:
    return rows_of(*(random_document(i) for i in range(count)))


def attend(block: GatedCrossAttention, hidden_E: Tensor, patches_KW: Tensor) -> Tensor:
    """One token over the patches of one image, head by head."""
    part = block.attention
    query_E, patches_KW = part.q(part.norm_q(hidden_E)), part.norm_kv(patches_KW)
    heads = []
    for one in range(part.num_heads):
        width = len(query_E) // part.num_heads
        own = slice(one * width, (one + 1) * width)
        weights_K = (part.k(patches_KW)[:, own] @ query_E[own] / width**0.5).softmax(0)
        heads.append(weights_K @ part.v(patches_KW)[:, own])
    return part.out(torch.cat(heads))


def plain_outputs(model: Flamingo, tokens: Tensor, images: list[Tensor]) -> Tensor:
    """One document: each token attends to the last image whose tag it has passed."""
    decoder = model.language_model.backbone.decoder
    hidden = model.language_model.embed(tokens) + decoder.embed_positions.weight[2 : 2 + len(tokens)]
    for layer, block in zip(decoder.layers, model.cross_attention, strict=True):
        passed, attended = 0, []
        for token, state in zip(tokens.tolist(), hidden, strict=True):
            passed += token == TOKENIZER.start_of_image
            attended.append(attend(block, state, images[passed - 1]) if passed else torch.zeros_like(state))
        hidden = hidden + torch.tanh(block.attention_gate) * torch.stack(attended)
        inner = F.relu(block.feed_forward.fc1(block.feed_forward.norm(hidden))) ** 2
        hidden = hidden + torch.tanh(block.feed_forward_gate) * block.feed_forward.fc2(inner)
        # its own forward: a call would run the block once more
        packing = Packing([len(tokens)], hidden.device)
        output = layer.forward(hidden[None], attention_mask=torch.zeros(1, 1, 1, 1), packing=packing)
        hidden = (output if isinstance(output, Tensor) else output[0])[0]  # transformers 5: no tuple
    return hidden


def plain_loss(model: Flamingo, rows: PackedBatch) -> Tensor:
    """Mean over all targets of the documents, one after the other."""
    bounds, counts = rows["cu_seqlens"].tolist(), rows["images_per_document"].tolist()
    patches = iter(model.patch_tokens(rows))
    outputs = [
        plain_outputs(model, rows["tokens"][first:last], [next(patches) for _ in range(count)])
        for first, last, count in zip(bounds, bounds[1:], counts, strict=False)
        if last > first
    ]
    logits = model.generation_head(model.generation_norm(torch.cat(outputs)))
    return F.cross_entropy(logits, rows["targets"])


def assert_gradients(found: dict[str, Tensor], model: Flamingo, loss: Tensor, **tolerance: float) -> None:
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), grad in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[name], grad, msg=lambda text, n=name: f"{n}: {text}", **tolerance)


def test_loss_and_gradients_are_those_of_the_paper() -> None:
    model, rows = model_of().double(), random_rows(5)
    rows["pixel_values"] = rows["pixel_values"].double() / 255
    assert {1, 2} <= set(rows["spans"]), "images in a row, and images that text follows"
    loss = model.loss(model(rows), rows)["total"]
    torch.testing.assert_close(loss, plain_loss(model, rows), rtol=1e-9, atol=1e-9)
    loss.backward()
    assert_gradients(gradients(model), model, plain_loss(model, rows), rtol=1e-7, atol=1e-9)


def test_text_sees_the_image_before_it_and_no_other() -> None:
    model, rows = model_of(), rows_of(document("1", IMAGE, "2", IMAGE, "3"), document("4", IMAGE, "5 6"))
    changed: PackedBatch = {**rows, "pixel_values": rows["pixel_values"].clone()}  # type: ignore[typeddict-item]
    changed["pixel_values"][1] = 255 - changed["pixel_values"][1]
    with torch.no_grad():
        moved = (model(rows)["hidden"] != model(changed)["hidden"]).any(1)
    # the second image's tag and what follows; not the next document
    assert moved.tolist() == (torch.arange(len(moved)) // 2 == 2).tolist()
    assert rows["tokens"][moved].tolist() == [TOKENIZER.start_of_image, 3]


def test_closed_gates_leave_the_language_model_alone_until_the_first_step() -> None:
    model, rows = model_of(gate=0.0), random_rows(6)
    assert not any(gate.any() for name, gate in model.named_parameters() if name.endswith("_gate"))
    outputs = model(rows)
    torch.manual_seed(0)
    tiny = tiny_language_model()
    tiny.load_state_dict(model.language_model.state_dict())
    assert torch.equal(outputs["hidden"], model.generation.outputs(rows, tiny.read(rows))["hidden"])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.loss(outputs, rows)["total"].backward()
    found = gradients(model)
    assert not any(grad.any() for name, grad in found.items() if name.startswith("encoder."))
    assert all(found[f"cross_attention.{n}.attention_gate"] for n in range(2))
    optimizer.step()
    model.zero_grad()
    model.loss(model(rows), rows)["total"].backward()
    assert all(grad.any() for name, grad in gradients(model).items() if name.startswith("encoder.backbone.b"))


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_other_language_models_see_images_too(model_type: str) -> None:
    model, rows = model_of(model_type), random_rows(6)
    model.loss(model(rows), rows)["total"].backward()
    assert all(grad.any() for name, grad in gradients(model).items() if name.startswith("encoder.backbone.b"))


@pytest.mark.parametrize(
    "rows",
    [rows_of(document("1 2 3"), document("4", name="b")), bad_batch(2), rows_of(document("5", IMAGE))],
    ids=["text only", "all bad", "unread image"],
)
def test_without_an_image_every_parameter_has_a_gradient(rows: PackedBatch) -> None:
    found = assert_every_parameter_gets_a_gradient(model_of(), rows)
    assert not any(grad.any() for name, grad in found.items() if name.startswith("encoder."))


def test_only_images_that_are_read_are_encoded() -> None:
    assert len(rows_of(document("1", IMAGE, "2", IMAGE, IMAGE))["pixel_values"]) == 2


def test_blocks_stand_before_every_nth_layer() -> None:
    torch.manual_seed(0)
    language_model = tiny_language_model(num_hidden_layers=5)
    model = Flamingo(model_of().encoder, language_model, TOKENIZER.vocab_size, cross_layer_interval=2)
    hooked = [bool(layer._forward_pre_hooks) for layer in language_model.backbone.decoder.layers]
    assert hooked == [False, True, False, True, False]
    assert len(model.cross_attention) == 2
    with pytest.raises(ConfigError, match=r"cross_layer_interval is 3, .* has 2 layers"):
        model_of(interval=3)


def test_operations_are_what_torch_counts() -> None:
    model, rows = model_of().eval(), random_rows(6)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(rows)["hidden"] @ model.generation_head.weight.T
    # torch counts whole score matrices, of which a causal kernel computes half
    above_diagonal = 4 * sum(n * (n - 1) // 2 for n in rows["lengths"]) * model.language_model.hidden_size * 2
    assert sum(model.forward_flops(rows).values()) + above_diagonal == counter.get_total_flops()


@pytest.mark.parametrize("size", [1, 3])
def test_microbatches_have_the_gradient_of_the_batch(size: int) -> None:
    assert_microbatches_agree(with_open_gates, size)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", UNEVEN)
def test_uneven_ranks_have_the_gradient_of_one_process(ranks: int) -> None:
    assert_ranks_agree(with_open_gates, ranks)


def values_of(data: Path, **method: Any) -> dict[str, Any]:
    values = settings(data, {"name": "flamingo", **method}, device_train_microbatch_size=2)
    values["model"]["pooler"] = None
    return {**values, "evaluation": {}}


@pytest.mark.slow
def test_a_run_resumes_exactly(data: Path, tmp_path: Path) -> None:
    assert_resumes_exactly(tmp_path, values_of(data))


def test_an_interval_below_1_is_refused(data: Path, tmp_path: Path) -> None:
    path = runs.write_yaml(tmp_path, values_of(data, cross_layer_interval=0))
    with pytest.raises(ConfigError, match="cross_layer_interval: is 0, must be at least 1"):
        compose(path, [])
