"""Our model against the authors' numbers where they lie beside the repository, and against a padded model."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import parity
from benchmarks.padded_reference import PaddedLCL, pad
from lcl_composer.data.collate import collate, make_sample
from lcl_composer.data.document import Document, Image, Segment, Text
from lcl_composer.data.interleave import LayoutRules, TokenLayout, lay_out
from lcl_composer.methods.lcl import LCL
from lcl_composer.models.released import to_released
from tests.data.layouts import FIXED, NumberTokenizer, document, rng

FOLDER = Path(__file__).resolve().parents[3] / "shared/parity/lcl_tiny"
needs_authors_numbers = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the authors' numbers (shared/parity/lcl_tiny) are not beside the repository"
)


def run_parity(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["parity.py", str(folder)])
    return parity.main()


@needs_authors_numbers
def test_authors_numbers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert run_parity(FOLDER, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "there and back: equal" in printed
    assert "tolerance 1e-05" in printed


@needs_authors_numbers
def test_another_weight_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "changed"
    shutil.copytree(FOLDER, folder)
    state = load_file(FOLDER / "state_dict.safetensors")
    state["text.ln_final.weight"] = state["text.ln_final.weight"] * 1.001
    (folder / "state_dict.safetensors").unlink()
    save_file(state, folder / "state_dict.safetensors")
    assert run_parity(folder, monkeypatch) == 1


SIZE, PATCH, LAYERS, WIDTH, EMBED_DIM, CONTEXT = 16, 8, 2, 64, 128, 48
TOKENIZER = NumberTokenizer(first_special=200)  # 0 is padding: no text says it
#: The released rule for what takes part in L_con.
RULES = LayoutRules(4, CONTEXT, min_context_tokens=0)
SHAPES = {
    "pair, image first": document(FIXED, "1 2 3"),
    "pair, image last": document("4 5", FIXED),
    "text only": document("6 7 8 9"),
    "leading and middle": document(FIXED, "10 11", FIXED, "12"),
    "adjacent, trailing": document("13 14", FIXED, FIXED, "15", FIXED, FIXED),
    "leading twice": document(FIXED, FIXED, "16 17", FIXED),
    "truncated text": document("18 19", FIXED, " ".join(map(str, range(20, 90)))),
    "truncated at an image": document(" ".join(map(str, range(20, 65))), FIXED, "90 91 92 93", FIXED, "94"),
    "truncated after an image": document(" ".join(map(str, range(20, 61))), FIXED, "95"),
    "pair, text shortened": document(" ".join(map(str, range(100, 180))), FIXED),
}


def random_document(seed: int) -> Document:
    draw = rng(seed)
    segments: list[Segment] = []
    for _ in range(draw.integers(1, 9)):
        ids = draw.integers(1, 200, draw.integers(1, 12))
        segments.append(Image(b"x") if draw.random() < 0.5 else Text(" ".join(map(str, ids))))
    return Document(f"random-{seed}", "test", (*segments, Text("7")))


def models() -> tuple[LCL, PaddedLCL]:
    """Both with the same random weights."""
    config = {
        "vision_cfg": {"image_size": SIZE, "patch_size": PATCH, "width": WIDTH, "layers": LAYERS},
        "text_cfg": {
            "vocab_size": TOKENIZER.vocab_size,
            "width": EMBED_DIM,
            "layers": LAYERS,
            "heads": EMBED_DIM // 64,
            "context_length": CONTEXT,
        },
        "pool_project_cfg": {
            "input_dim": WIDTH,
            "output_dim": EMBED_DIM,
            "attn_num_heads": EMBED_DIM // 64,
        },
    }
    torch.manual_seed(0)
    ours = parity.build(config, contrastive_weight=0.1, generation_weight=1.0)
    with torch.no_grad():  # biases and norms start at constants, which would hide a mix-up
        for parameter in ours.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        ours.language_model.backbone.decoder.embed_positions.weight[:2] = 0  # rows that the release lacks
    padded = PaddedLCL(SIZE, PATCH, LAYERS, WIDTH, EMBED_DIM, CONTEXT, TOKENIZER)
    padded.load_state_dict(to_released(ours.state_dict()))
    return ours, padded


def compare(rows: list[Document]) -> tuple[dict[str, float], list[TokenLayout]]:
    """Largest relative difference of the two losses and of each gradient."""
    ours, padded = models()
    layouts = [lay_out(row, TOKENIZER, RULES, rng()) for row in rows]
    counts = [len(layout.images) for layout in layouts]
    pixels = torch.randn(sum(counts), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    parts = zip(rows, layouts, pixels.split(counts), strict=True)
    batch = collate([make_sample(row.id, layout, images) for row, layout, images in parts])
    losses = ours.loss(ours(batch), batch)
    losses["total"].backward()
    contrastive, generation = padded(pad(layouts, TOKENIZER, 4, CONTEXT), pixels)
    (0.1 * contrastive + generation).backward()
    grads = to_released({n: p.grad for n, p in ours.named_parameters() if p.grad is not None})
    theirs = {n: p.grad for n, p in padded.named_parameters() if p.grad is not None}
    assert grads.keys() == theirs.keys()
    floor = 1e-3 * max(grad.abs().max().item() for grad in theirs.values())
    differences = {name: parity.relative(grads[name], grad, floor) for name, grad in theirs.items()}
    differences["contrastive"] = parity.relative(losses["contrastive"], contrastive)
    differences["generation"] = parity.relative(losses["generation"], generation)
    return differences, layouts


def test_padded_model_on_every_shape_of_document():
    differences, layouts = compare(list(SHAPES.values()))
    assert max(differences.values()) < parity.TOLERANCE, max(differences, key=lambda k: differences[k])
    by_name = dict(zip(SHAPES, layouts, strict=True))
    assert by_name["truncated text"].cut_tokens
    assert by_name["truncated at an image"].cut_images
    assert by_name["truncated after an image"].image_starts.tolist() == [-1]
    assert sum(len(layout.images) for layout in layouts) == 14


@pytest.mark.parametrize("first", [0, 100])
def test_padded_model_on_random_documents(first: int):
    differences, _ = compare([random_document(first + i) for i in range(8)])
    assert max(differences.values()) < parity.TOLERANCE, max(differences, key=lambda k: differences[k])
