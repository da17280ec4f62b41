"""Agreement with the authors' code: features, logits, losses and every gradient of a released-layout model.

    python benchmarks/parity.py ../shared/parity/lcl_tiny

The folder holds ``facts.json`` (sizes, special tokens, weights of the losses), ``state_dict.safetensors`` in
the released layout, and ``cases.safetensors`` (batches, and what the authors' code computes on them). Every
case runs through our tokens-to-losses line: documents are laid out, packed and trained on as always. Exits
with status 1 if a relative difference is above 1e-5, or the state dict does not come back unchanged.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import collate, make_sample
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.interleave import LayoutRules, lay_out
from lcl_composer.methods.lcl import LCL
from lcl_composer.models.encoder import TimmEncoder
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.pooler import AttentivePooler
from lcl_composer.models.released import from_released, to_released

TOLERANCE = 1e-5


class IdTokenizer:
    """A tokenizer whose texts are token ids in decimal, so that a case's ids pass through our own layout."""

    def __init__(self, vocab_size: int, special: dict[str, int]):
        self.vocab_size = vocab_size
        self.start_of_text, self.end_of_text = special["<start_of_text>"], special["<end_of_text>"]
        self.image_placeholder = special["<img_placehold>"]
        self.start_of_image, self.end_of_image = special["<start_of_img>"], special["<end_of_img>"]

    def encode(self, text: str) -> list[int]:
        """``"5 17"`` -> ``[5, 17]``."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """``[5, 17]`` -> ``"5 17"``."""
        return " ".join(map(str, ids))


def build(config: dict[str, Any], contrastive_weight: float, generation_weight: float) -> LCL:
    """A model of the sizes in ``facts.json``'s config."""
    vision, text, pool = config["vision_cfg"], config["text_cfg"], config["pool_project_cfg"]
    encoder = TimmEncoder(
        "vit_base_patch32_clip_224",
        image_size=vision["image_size"],
        model_args={
            "patch_size": vision["patch_size"],
            "embed_dim": vision["width"],
            "depth": vision["layers"],
            "num_heads": vision["width"] // vision.get("head_width", 64),
        },
    )
    language_model = TransformersLM(
        vocab_size=text["vocab_size"],
        hidden_size=text["width"],
        num_hidden_layers=text["layers"],
        num_attention_heads=text["heads"],
        max_position_embeddings=text["context_length"],
    )
    pooler = AttentivePooler(pool["input_dim"], pool["output_dim"], num_heads=pool["attn_num_heads"])
    weights = {"contrastive_weight": contrastive_weight, "generation_weight": generation_weight}
    return LCL(encoder, pooler, language_model, text["vocab_size"], **weights)


def to_document(ids: list[int], tokenizer: IdTokenizer, name: str) -> Document:
    """Turn a row of a case's padded ids back into a document; pixels are given to the batch apart."""
    row = np.trim_zeros(np.array(ids), "b").tolist()  # the released code pads with 0
    inner = [
        i for i in row if i not in (tokenizer.start_of_text, tokenizer.end_of_text, tokenizer.end_of_image)
    ]
    segments: list[Text | Image] = []
    for token in inner:
        if token == tokenizer.start_of_image:
            segments.append(Image(b""))
        elif token != tokenizer.image_placeholder:
            last = segments[-1] if segments and isinstance(segments[-1], Text) else None
            segments[len(segments) - bool(last) :] = [Text(f"{last.text if last else ''} {token}")]
    return Document(name, name, tuple(segments))


def to_batch(case: dict[str, Tensor], facts: dict[str, Any], tokenizer: IdTokenizer) -> PackedBatch:
    """Pack a case as our loader would, under the released rule for what takes part in L_con."""
    rules = LayoutRules(
        tokens_per_image=facts["tokens_per_image"],
        max_tokens=facts["config"]["text_cfg"]["context_length"],
        min_context_tokens=0,
    )
    samples, first_image = [], 0
    for index, ids in enumerate(case["input_ids"].tolist()):
        document = to_document(ids, tokenizer, f"row {index}")
        layout = lay_out(document, tokenizer, rules, np.random.default_rng(0))
        pixels = case["pixel_values"][first_image + torch.from_numpy(layout.images)]
        samples.append(make_sample(document.id, layout, pixels))
        first_image += len(document.images)
    return collate(samples)


def relative(ours: Tensor, theirs: Tensor, floor: float = 0.0) -> float:
    """Largest absolute difference over the largest value, or over ``floor`` where that is larger."""
    largest = max(theirs.abs().max().item(), floor, 1e-30)
    return (ours.double() - theirs.double()).abs().max().item() / largest


def run_case(
    model: LCL, batch: PackedBatch, case: dict[str, Tensor], facts: dict[str, Any]
) -> dict[str, float]:
    """Relative differences by name. A gradient counts against at least 1e-3 of the largest gradient: the
    key bias of softmax attention has a true gradient of 0, of which any code computes only rounding."""
    model.zero_grad()
    outputs = model(batch)
    losses = model.loss(outputs, batch)
    losses["total"].backward()
    logits = outputs["hidden"] @ model.generation_head.weight.T
    normalize = torch.nn.functional.normalize
    differences = {
        "image features": relative(normalize(outputs["image_features"], dim=-1), case["out.image_features"]),
        "text features": relative(normalize(outputs["context_features"], dim=-1), case["out.text_features"]),
        "logits": relative(logits, case["out.logits"]),
        "labels": 0.0 if torch.equal(outputs["targets"], case["out.labels"]) else float("inf"),
    }
    weighted = (
        model.terms["contrastive"].weight * losses["contrastive"],
        model.terms["generation"].weight * losses["generation"],
    )
    for name, ours in zip(("contrastive_loss_weighted", "generation_loss"), weighted, strict=True):
        differences[name] = relative(ours, torch.tensor(facts[name], dtype=torch.float64))
    theirs = {k.removeprefix("grad."): v for k, v in case.items() if k.startswith("grad.")}
    ours = to_released({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    floor = 1e-3 * max(g.abs().max().item() for g in theirs.values())
    differences |= {f"gradient of {k}": relative(ours[k], g, floor) for k, g in theirs.items()}
    return differences


def main() -> int:
    """Run every case and print a table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--verbose", action="store_true", help="print every gradient")
    arguments = parser.parse_args()
    facts = json.loads((arguments.folder / "facts.json").read_text())
    released = load_file(arguments.folder / "state_dict.safetensors")
    cases = load_file(arguments.folder / "cases.safetensors")
    model = build(facts["config"], facts["contrastive_weight"], facts["generation_weight"])
    model.load_state_dict(from_released(released))
    back = to_released(model.state_dict())
    unchanged = back.keys() == released.keys() and all(torch.equal(back[k], v) for k, v in released.items())
    print(f"state dict of {len(released)} tensors there and back: {'equal' if unchanged else 'CHANGED'}")
    tokenizer = IdTokenizer(facts["config"]["text_cfg"]["vocab_size"], facts["config"]["special_token_ids"])
    worst = 0.0
    for name, case_facts in facts["cases"].items():
        case = {k.removeprefix(f"{name}."): v for k, v in cases.items() if k.startswith(f"{name}.")}
        differences = run_case(model, to_batch(case, facts, tokenizer), case, case_facts)
        gradients = {k: v for k, v in differences.items() if k.startswith("gradient")}
        shown = (
            differences if arguments.verbose else {k: v for k, v in differences.items() if k not in gradients}
        )
        for key, value in shown.items():
            print(f"{name:12s} {key:60s} {value:.2e}")
        largest = max(gradients, key=lambda key: gradients[key])
        print(f"{name:12s} {f'largest of {len(gradients)}: {largest}':60s} {gradients[largest]:.2e}")
        worst = max(worst, *differences.values())
    print(f"largest relative difference {worst:.2e}, tolerance {TOLERANCE:.0e}")
    return int(worst > TOLERANCE or not unchanged)


if __name__ == "__main__":
    sys.exit(main())
