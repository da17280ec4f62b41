"""RunConfig to the model: the tokenizer, the networks, and the method that joins them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lcl_composer import registry
from lcl_composer.data.batch import TOTALS
from lcl_composer.data.interleave import LayoutRules
from lcl_composer.errors import ConfigError, DataError, LCLError, did_you_mean

if TYPE_CHECKING:
    from lcl_composer.config.schema import Component, RunConfig
    from lcl_composer.data.tokenizer import Tokenizer
    from lcl_composer.methods.method import Method
    from lcl_composer.models.encoder import Encoder
    from lcl_composer.models.language_model import TransformersLM


def build_tokenizer(config: RunConfig) -> Tokenizer:
    """The tokenizer; raises DataError if its file is missing."""
    return registry.tokenizers.build(config.tokenizer.spec())


def find_classes(config: RunConfig) -> tuple[str, ...] | None:
    """The classes of the data set, where the method has a head for them; None where it has none.

    Raises:
        DataError: If the shards are not here, have fewer than two classes, or ``data.eval`` has others.
    """
    if "classes" not in registry.methods.injectable(config.method.name):
        return None
    from lcl_composer.data.labelled import classes_of
    from lcl_composer.data.loader import sources_of

    train, held_out = config.data.train, config.data.eval
    return classes_of(
        [source.folder_of_index() for source in sources_of("data.train", train)],
        [source.folder_of_index() for source in sources_of("data.eval", held_out)] if held_out else (),
    )


def build_model(config: RunConfig, vocab_size: int, classes: tuple[str, ...] | None = None) -> Method:
    """The method around its networks; on the meta device if that is current.

    Args:
        config: The run.
        vocab_size: Of the tokenizer.
        classes: What :func:`find_classes` found.

    Raises:
        ConfigError: If the context is longer than the language model's positions, the encoder takes images
            of another size, or the method lacks what all of them have.
    """
    encoder = registry.encoders.build(config.model.encoder.spec())
    if encoder.image_size != config.data.image_size:
        raise ConfigError(
            f"data.image_size is {config.data.image_size}, but the encoder ({encoder.source}) takes "
            f"{encoder.image_size} pixels; set it to that"
        )
    networks: dict[str, Any] = {"encoder": encoder}
    width = embed_dim = encoder.width
    if config.model.language_model is not None:
        networks["language_model"] = _build_language_model(config, vocab_size)
        embed_dim = networks["language_model"].hidden_size
    if config.model.pooler is not None:
        pooler = config.model.pooler.spec()
        networks["pooler"] = registry.poolers.build(pooler, width=width, embed_dim=embed_dim)
    if config.model.target_encoder is not None:
        networks["target_encoder"] = _build_target(config.model.target_encoder)
    spec = config.method.spec()
    method = registry.methods.build(spec, vocab_size=vocab_size, classes=classes, **networks)
    if problem := next(unsound(method), None):
        raise ConfigError(f"{registry.methods.called(spec['name'])}: {problem}")
    return method


def unsound(method: Method) -> Iterator[str]:
    """Yield what a method's constructor has left out or set wrongly, as a drop-in's may."""
    from torch import nn

    from lcl_composer.methods.method import Term
    from lcl_composer.models.encoder import Encoder

    if not isinstance(getattr(method, "encoder", None), Encoder):
        yield "its constructor sets no encoder; write self.encoder = encoder"
    if not isinstance(method.part_names, tuple | list):
        yield f"part_names is {method.part_names!r}; give a tuple of names"
        return
    for name in method.part_names:
        if not isinstance(getattr(method, name, 0), nn.Module | None):
            yield f"part_names has {name!r}, and its constructor sets no network self.{name}"
    terms = getattr(method, "terms", None)
    if not isinstance(terms, dict) or not terms:
        yield "its constructor sets no losses; write self.terms = {'name': Term(...)}"
        return
    for name, term in terms.items():
        if not isinstance(term, Term):
            yield f"terms[{name!r}] is a {type(term).__name__}, no Term"
            continue
        if not isinstance(term.weight, int | float) or not 0 <= term.weight < math.inf:
            yield f"terms[{name!r}] has the weight {term.weight!r}; give a number, at least 0"
        if term.count not in TOTALS:
            yield f"terms[{name!r}] is averaged over {term.count!r}; {did_you_mean(term.count, TOTALS)}"
        if not isinstance(term.reads, tuple | list):
            yield f"terms[{name!r}] reads {term.reads!r}; give a tuple of outputs"


def _build_target(component: Component) -> Encoder:
    """The encoder whose features are predicted; what encoders say of theirs, it says of its own settings."""
    try:
        return registry.encoders.build(component.spec())
    except LCLError as error:
        raise type(error)(str(error).replace("model.encoder", "model.target_encoder")) from error


def model_on_meta(config: RunConfig) -> tuple[Method, Tokenizer, str]:
    """Build the model without memory for its weights, also where tokenizer or data are yet to be made.

    Returns:
        The model on the meta device, the tokenizer (CLIP's in place of one that is not here), and what
        differs from the run's own model ("" for nothing).
    """
    import torch

    classes, notes = None, []
    try:
        tokenizer = build_tokenizer(config)
        vocab_size = tokenizer.vocab_size
    except DataError as error:  # a tokenizer that the run itself will train
        tokenizer, vocab_size = registry.tokenizers.build({"name": "clip"}), 2
        notes.append(f"without the vocabulary's rows: {error}")
    try:
        classes = find_classes(config)
    except DataError as error:  # data that the run itself will make, or that lie elsewhere
        classes = ("one", "another")
        notes.append(f"as if there were two classes: {error}")
    with torch.device("meta"):
        model = build_model(config, vocab_size, classes)
    return model, tokenizer, "; ".join(notes)


def _build_language_model(config: RunConfig, vocab_size: int) -> TransformersLM:
    assert config.model.language_model is not None
    language_model = registry.language_models.build(config.model.language_model.spec(), vocab_size=vocab_size)
    if config.data.max_tokens > language_model.max_position_embeddings:
        raise ConfigError(
            f"data.max_tokens is {config.data.max_tokens}, but model.language_model.max_position_embeddings "
            f"is {language_model.max_position_embeddings}: a document longer than that has no positions; "
            "raise the one or lower the other"
        )
    return language_model


def layout_rules(config: RunConfig, tokens_per_image: int) -> LayoutRules:
    """How documents become tokens in this run."""
    return LayoutRules(
        tokens_per_image=tokens_per_image,
        max_tokens=config.data.max_tokens,
        image_first_probability=config.data.image_first_probability,
        min_context_tokens=config.data.min_context_tokens,
    )
