"""Relations between settings: what each key allows but the run as a whole does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lcl_composer.config.schema import Component, RunConfig
from lcl_composer.config.yaml_file import Key
from lcl_composer.errors import ConfigError
from lcl_composer.registry import Registry, encoders, language_models


def cross_problems(run: RunConfig) -> Iterator[tuple[Key, str]]:
    """Yield the key and the message of every relation that does not hold."""
    contrast = _contrasts(run)
    if run.device_train_microbatch_size == "auto" and contrast and "grad_cache" not in run.algorithms:
        yield (
            ("device_train_microbatch_size",),
            "auto would change the number of negatives during the run; add algorithms.grad_cache, set a "
            "number (or null for the whole batch), or loss.contrastive_weight to 0",
        )
    if {"image_resolution", "patch_dropout"} <= set(run.algorithms):
        yield ("algorithms", "patch_dropout"), "does not go together with image_resolution; remove one"
    if not contrast and run.loss.generation_weight == 0:
        yield ("loss",), "both weights are 0; nothing would be trained"
    if run.loss.logit_scale_init > run.loss.logit_scale_max:
        yield ("loss", "logit_scale_init"), f"is above logit_scale_max, {run.loss.logit_scale_max}"
    for section in ("evaluation", "callbacks"):
        if "retrieval" in getattr(run, section) and run.data.eval is None:
            yield (section, "retrieval"), "searches held-out documents; set data.eval"
    image_size = _setting(encoders, run.model.encoder, "image_size", run.data.image_size)
    if image_size != run.data.image_size:
        yield ("data", "image_size"), f"is {run.data.image_size}, but the encoder takes {image_size} pixels"
    model = run.model.language_model
    positions = _setting(language_models, model, "max_position_embeddings", run.data.max_tokens)
    if positions < run.data.max_tokens:
        yield (
            ("data", "max_tokens"),
            f"is {run.data.max_tokens}, beyond the language model's {positions} positions; lower it or raise "
            "model.language_model.max_position_embeddings",
        )


def _setting(table: Registry[Any], component: Component, key: str, fallback: int) -> int:
    """Return a component's parameter: the YAML's, else its constructor's default, else the fallback."""
    try:
        parameter = table.parameters(component.name).get(key)
    except ConfigError:  # reported where the name stands
        return fallback
    value = component.spec().get(key, parameter.default if parameter else fallback)
    return value if isinstance(value, int) else fallback


def check_batch_divides(config: RunConfig, world_size: int) -> None:
    """Check that the ranks share the global batch evenly.

    Raises:
        ConfigError: They do not; names the nearest sizes that work.
    """
    size = config.global_train_batch_size
    if size % world_size:
        below, above = size - size % world_size, size - size % world_size + world_size
        choice = f"{below} or {above}" if below else str(above)
        raise ConfigError(
            f"global_train_batch_size: {size} documents do not divide over {world_size} ranks; use {choice}"
        )


def effective_negatives(config: RunConfig, world_size: int) -> int:
    """Return the documents whose images L_con sets against one another; 0 if it is never computed.

    The microbatches of all ranks, or their whole batches with GradCache.
    """
    if not _contrasts(config):
        return 0
    micro = config.device_train_microbatch_size
    per_rank = config.global_train_batch_size // world_size
    if isinstance(micro, int) and "grad_cache" not in config.algorithms:
        per_rank = min(micro, per_rank)
    return world_size * per_rank


def _contrasts(config: RunConfig) -> bool:
    return config.loss.contrastive_weight > 0 or "contrastive_weight" in config.algorithms
