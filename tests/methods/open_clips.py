"""A small CLIP of OpenCLIP's and ours with the same random weights."""

from __future__ import annotations

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from lcl_composer.methods.clip import CLIP
from lcl_composer.models.encoder import TimmEncoder
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.open_clip import from_open_clip


def same_clips() -> tuple[CLIP, open_clip.CLIP]:
    """Ours and theirs: images of 32 pixels, texts of 24 tokens, features of 48 numbers."""
    torch.manual_seed(1)
    vision = CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=24, vocab_size=49408, width=48, heads=2, layers=2)
    theirs = open_clip.CLIP(48, vision, text).eval()
    vit = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    encoder = TimmEncoder("vit_base_patch32_clip_224", image_size=32, model_args=vit)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ours = CLIP(encoder, TransformersLM(49411, max_position_embeddings=24, **sizes)).eval()
    ours.load_state_dict(from_open_clip(theirs.state_dict(), 49411))
    return ours, theirs
