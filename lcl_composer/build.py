"""RunConfig to objects: the only place where the parts are wired together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lcl_composer import registry
from lcl_composer.config.schema import RunConfig
from lcl_composer.data.interleave import LayoutRules
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.errors import ConfigError

if TYPE_CHECKING:
    from lcl_composer.models.lcl import LCLModel


def build_tokenizer(config: RunConfig) -> Tokenizer:
    """The tokenizer; raises DataError if its file is missing."""
    return registry.tokenizers.build(config.tokenizer.spec())


def build_model(config: RunConfig, vocab_size: int) -> LCLModel:
    """Encoder, pooler and language model under one ComposerModel; on the meta device if that is current.

    Raises:
        ConfigError: If the context is longer than the language model's positions.
    """
    from lcl_composer.models.lcl import LCLModel

    encoder = registry.encoders.build(config.model.encoder.spec())
    language_model = registry.language_models.build(config.model.language_model.spec(), vocab_size=vocab_size)
    if config.data.max_tokens > language_model.max_position_embeddings:
        raise ConfigError(
            f"data.max_tokens is {config.data.max_tokens}, but model.language_model.max_position_embeddings "
            f"is {language_model.max_position_embeddings}: a document longer than that has no positions; "
            "raise the one or lower the other"
        )
    pooler = registry.poolers.build(
        config.model.pooler.spec(), width=encoder.width, embed_dim=language_model.hidden_size
    )
    return LCLModel(encoder, pooler, language_model, vocab_size, **config.loss.model_dump())


def layout_rules(config: RunConfig, tokens_per_image: int) -> LayoutRules:
    """How documents become tokens in this run."""
    return LayoutRules(
        tokens_per_image=tokens_per_image,
        max_tokens=config.data.max_tokens,
        image_first_probability=config.data.image_first_probability,
        min_context_tokens=config.data.min_context_tokens,
    )


def build_optimizer(config: RunConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer with weight decay on matrices only.

    A parameter with fewer than two axes longer than 1 (biases, norms, class token, query, logit scale) is
    not decayed, as in OpenCLIP's training.
    """
    matrices, others = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_matrix = sum(length > 1 for length in parameter.shape) >= 2
            (matrices if is_matrix else others).append(parameter)
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return registry.optimizers.build(config.optimizer.spec(), params=groups)
