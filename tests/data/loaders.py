"""Loaders of small data sets from flat options: those of ``data.train`` and those of ``build_loader``."""

from __future__ import annotations

from typing import Any

from composer.core import DataSpec

from lcl_composer.config.schema import StreamConfig
from lcl_composer.data.interleave import Interleaved, LayoutRules
from lcl_composer.data.loader import build_loader
from tests.data.layouts import NumberTokenizer

_OPTIONS: dict[str, Any] = {
    "train": True,
    "shuffle": True,
    "shuffle_seed": 3,
    "num_workers": 0,
    "image_size": 8,
    "batch_size": 4,
    "seed": 5,
    "max_bad_fraction": 0.01,
    "pin_memory": False,
    "tokenizer": NumberTokenizer(),
    "rules": LayoutRules(tokens_per_image=2, max_tokens=40),
}


def loader_of(**changes: Any) -> DataSpec:
    """A loader on a CPU; the layout is LCL's, of ``tokenizer`` and ``rules``."""
    options = _OPTIONS | changes
    settings = {name: options.pop(name) for name in StreamConfig.model_fields if name in options}
    layout = Interleaved(options.pop("tokenizer"), options.pop("rules"))
    return build_loader(StreamConfig.model_validate(settings), layout=layout, **options)
