"""The sides of recipe_steps.py: ours, the padded reference and open_clip's CLIP, on made-up documents."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.balance import draw
from benchmarks.padded_reference import PaddedLCL, pad
from lcl_composer.build import build_optimizer
from lcl_composer.config.compose import compose
from lcl_composer.config.schema import RunConfig
from lcl_composer.data.collate import collate, make_sample
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.interleave import LayoutRules, TokenLayout, lay_out
from lcl_composer.data.tokenizer import CLIPTokenizer
from lcl_composer.methods.build import build_model
from lcl_composer.methods.fast import make_fast
from lcl_composer.models.released import to_released

ROOT = Path(__file__).resolve().parents[1]
CAPTION_TOKENS, CAPTION_SIGMA = 16, 0.5
#: Each is one token.
WORDS = "the of picture with and shows a window layer colour tool image you can".split()  # noqa: SIM905
#: Of a dry run: pixels a side and of a patch, width and layers of both towers, tokens of a document.
TINY = (32, 16, 64, 2, 256)
_TOWERS = ("pooler", "language_model")


class Work(NamedTuple):
    """What a batch is: documents, images, tokens without padding, and operations of a step on it."""

    documents: float
    images: float
    tokens: float
    flops: float


class Made(NamedTuple):
    """Laid-out documents of a batch and their images [I, 3, H, W], uint8."""

    layouts: list[TokenLayout]
    pixels: Tensor


def recipe_config(recipe: str, dry_run: bool, *overrides: str) -> RunConfig:
    """A recipe's settings, without recomputing; a dry run's are tiny."""
    os.environ.setdefault("DATA_ROOT", "unused")
    changes = ["activation_checkpointing=null", *overrides]
    if dry_run:
        side, patch, width, layers, context = TINY
        towers = f"{{patch_size: {patch}, embed_dim: {width}, depth: {layers}, num_heads: {width // 64}}}"
        changes += [f"model.encoder.image_size={side}", f"model.encoder.model_args={towers}"]
        changes += [f"model.language_model.hidden_size={width}", f"data.max_tokens={context}"]
        changes += [f"model.language_model.num_hidden_layers={layers}"]
        changes += [f"model.{part}.num_{'attention_' * (part != 'pooler')}heads=1" for part in _TOWERS]
    return compose(ROOT / f"yamls/pretrain/{recipe}.yaml", changes).run


def documents(count: int, pairs: int, rng: np.random.Generator) -> Iterator[Document]:
    """Made-up documents, ``pairs`` of them a caption and its image."""
    drawn = draw(count, rng)
    logs = np.log(CAPTION_TOKENS) - CAPTION_SIGMA**2 / 2
    captions = rng.lognormal(logs, CAPTION_SIGMA, count).clip(3, 70).round()
    for number in range(count):
        floats, images = number < pairs, 1 if number < pairs else int(drawn.images[number])
        tokens = int(captions[number] if floats else drawn.tokens[number])
        segments: list[Text | Image] = []
        for part in np.array_split(rng.choice(WORDS, tokens), images):
            segments += [Image(b"", floats), Text(" ".join(part))]
        yield Document(str(number), "made up", tuple(segments))


def make(config: RunConfig, tokens_per_image: int, count: int, pairs: int, seed: int) -> Made:
    """A batch; with the released rule for what takes part in L_con, so that all sides see the same pairs."""
    rules = LayoutRules(tokens_per_image, config.data.max_tokens, min_context_tokens=0)
    tokenizer, rng = CLIPTokenizer(), np.random.default_rng(seed)
    layouts = [lay_out(document, tokenizer, rules, rng) for document in documents(count, pairs, rng)]
    images, side = sum(len(layout.images) for layout in layouts), config.data.image_size
    generator = torch.Generator().manual_seed(seed)
    return Made(layouts, torch.randint(256, (images, 3, side, side), generator=generator, dtype=torch.uint8))


class Ours:
    """Packed batches through a recipe's model and optimizer."""

    def __init__(self, config: RunConfig, device: torch.device):
        torch.manual_seed(0)
        self.model = build_model(config, CLIPTokenizer.vocab_size)
        make_fast(config, self.model, device)
        self.weights = self.model.state_dict()
        self.model.to(device)
        self.optimizer: torch.optim.Optimizer = build_optimizer(config, self.model)

    def batch(self, made: Made) -> Any:
        """The packed batch."""
        parts = made.pixels.split([len(layout.images) for layout in made.layouts])
        pairs = enumerate(zip(made.layouts, parts, strict=True))
        return collate([make_sample(str(index), layout, images) for index, (layout, images) in pairs])

    def losses(self, batch: Any) -> Tensor:
        """Contrastive and generation loss [2], unweighted."""
        losses = self.model.loss(self.model(batch), batch)
        return torch.stack([losses["contrastive"], losses["generation"]])

    def work(self, made: Made) -> Work:
        """What the batch is."""
        batch = self.batch(made)
        tokens = sum(len(layout.tokens) for layout in made.layouts)
        return Work(len(made.layouts), len(made.pixels), tokens, self.model.flops_per_batch(batch))

    def rest(self) -> None:
        """Leave the device to another side."""
        self.optimizer.state.clear()
        self.model.to("cpu")


class Padded:
    """Padded batches through the reference, from the weights of ours."""

    def __init__(self, config: RunConfig, device: torch.device, ours: Ours):
        self.tokenizer, self.ours = CLIPTokenizer(), ours
        self.context, side = config.data.max_tokens, config.data.image_size
        vision, text = ours.model.encoder, ours.model.parts["language_model"]
        self.tokens_per_image = vision.tokens_per_image
        patch = side // round(vision.tokens_per_image**0.5)
        sizes = (side, patch, len(vision.backbone.blocks), vision.width, text.hidden_size, self.context)
        self.model = PaddedLCL(*sizes, self.tokenizer, text.backbone.config.num_hidden_layers)
        self.model.load_state_dict(to_released(ours.weights))
        self.model.to(device)
        self.normalise = deepcopy(vision.normalize).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    def batch(self, made: Made) -> Any:
        """Padded ids [D, L] and images [I, 3, H, W]."""
        return pad(made.layouts, self.tokenizer, self.tokens_per_image, self.context), made.pixels

    def work(self, made: Made) -> Work:
        """What the batch is on our side: padding is no work."""
        return self.ours.work(made)

    def losses(self, batch: Any) -> Tensor:
        """Contrastive and generation loss [2], unweighted."""
        return torch.stack(self.model(batch[0], self.normalise(batch[1])))


class OpenCLIP:
    """open_clip's model and loss, on an image and 77 tokens a pair."""

    def __init__(self, name: str, tiny: bool, device: torch.device, ours: Ours):
        settings: dict[str, Any] = dict(open_clip.get_model_config(name) or {})
        if tiny:
            side, patch, width, layers, _ = TINY
            vision = {"image_size": side, "patch_size": patch, "width": width, "layers": layers}
            text = {**settings["text_cfg"], "width": width, "layers": layers, "heads": 1}
            settings = {"embed_dim": width, "vision_cfg": vision, "text_cfg": text}
        torch.manual_seed(0)
        self.model = open_clip.CLIP(**settings).to(device)
        self.loss, self.normalise = open_clip.ClipLoss(), deepcopy(ours.model.encoder.normalize).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    def batch(self, made: Made) -> Any:
        """Random ids [I, 77] and images [I, 3, H, W]."""
        return torch.randint(1, 49_407, (len(made.pixels), 77)), made.pixels

    def losses(self, batch: Any) -> Tensor:
        """Its loss [1]."""
        return self.loss(*self.model(self.normalise(batch[1]), batch[0])).reshape(1)

    def work(self, made: Made) -> Work:
        """Pairs, and three forwards, counted on one pair."""
        device, (ids, pixels) = self.model.logit_scale.device, self.batch(made)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.losses((ids[:1].to(device), pixels[:1].to(device)))
        return Work(len(ids), len(ids), ids.numel(), 3 * counter.get_total_flops() * len(ids))
