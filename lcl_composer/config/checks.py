"""Relations between settings: what each key allows but the run as a whole does not."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from lcl_composer.config.schema import Component, RunConfig
from lcl_composer.config.yaml_file import Key
from lcl_composer.errors import ConfigError, did_you_mean
from lcl_composer.registry import Registry, encoders, language_models, methods

#: What evaluations, and callbacks of their names, do with ``data.eval``.
_HELD_OUT = {
    "caption_retrieval": "searches",
    "captioning": "writes about",
    "early_stopper": "watches a metric of",
    "retrieval": "searches",
    "threshold_stopper": "watches a metric of",
    "vqa": "is asked about",
}

#: Algorithms and callbacks that take the weights to be whole, and how.
_NOT_SHARDED = {
    "algorithms": {
        "feature_cache": "runs the encoder by itself",
        "low_precision_layernorm": "replaces modules",
    },
    "callbacks": {"optimizer_monitor": "reads each rank's optimizer for itself"},
}


class _Answers(NamedTuple):
    """What a method's class says of its settings."""

    refusals: list[tuple[str, str]]
    contrasts: bool
    beyond_grad_cache: str | None


def cross_problems(run: RunConfig) -> Iterator[tuple[Key, str]]:
    """Yield the key and the message of every relation that does not hold."""
    try:
        answers = _ask_method(run)
    except Exception as error:  # of a drop-in
        yield ("method",), methods.failure(run.method.name, error)
        answers = None
    contrast = answers is not None and (answers.contrasts or "contrastive_weight" in run.algorithms)
    if answers is not None:
        yield from _method_problems(run, answers)
        yield from _microbatch_problems(run, answers.beyond_grad_cache, contrast)
    if run.device_train_microbatch_size == "auto" and contrast and "grad_cache" not in run.algorithms:
        yield (
            ("device_train_microbatch_size",),
            "auto would change the number of negatives during the run; add algorithms.grad_cache, set a "
            "number (or null for the whole batch), or the weight of the contrast to 0",
        )
    if {"image_resolution", "patch_dropout"} <= set(run.algorithms):
        yield ("algorithms", "patch_dropout"), "does not go together with image_resolution; remove one"
    for section in ("evaluation", "callbacks"):
        for name in _HELD_OUT.keys() & set(getattr(run, section)) if run.data.eval is None else ():
            yield (section, name), f"{_HELD_OUT[name]} held-out documents; set data.eval"
    yield from _classification_problems(run)
    yield from _parallelism_problems(run)
    image_size = _setting(encoders, run.model.encoder, "image_size", run.data.image_size)
    if image_size != run.data.image_size:
        yield ("data", "image_size"), f"is {run.data.image_size}, but the encoder takes {image_size} pixels"
    yield from _target_problems(run)
    model = run.model.language_model
    if model is None:
        return
    yield from _tokenizer_problems(run.tokenizer, model)
    positions = _setting(language_models, model, "max_position_embeddings", run.data.max_tokens)
    if positions < run.data.max_tokens:
        yield (
            ("data", "max_tokens"),
            f"is {run.data.max_tokens}, beyond the language model's {positions} positions; lower it or raise "
            "model.language_model.max_position_embeddings",
        )


def _target_problems(run: RunConfig) -> Iterator[tuple[Key, str]]:
    """A target of another image size, and algorithms that freeze it or change what the encoder sees."""
    target = run.model.target_encoder
    if target is None:
        return
    image_size = _setting(encoders, target, "image_size", run.data.image_size)
    if image_size != run.data.image_size:
        text = f"takes {image_size} pixels, but data.image_size is {run.data.image_size}; take one of those"
        yield ("model", "target_encoder"), text
    for name in sorted({"feature_cache", "image_resolution", "patch_dropout"} & set(run.algorithms)):
        text = "changes which patches the encoder sees, and model.target_encoder hides some; remove one"
        yield ("algorithms", name), text
    if "target_encoder" in run.algorithms.get("layer_freezing", {}).get("parts", ()):
        yield (
            ("algorithms", "layer_freezing", "parts"),
            "names target_encoder, which is frozen as it is; remove it",
        )


def _tokenizer_problems(tokenizer: Component, language_model: Component) -> Iterator[tuple[Key, str]]:
    """A pretrained language model knows the ids of its own tokenizer and no others."""
    pretrained = language_model.spec().get("pretrained")
    own = {"name": "transformers", "pretrained": pretrained}
    if pretrained and tokenizer.spec() != own:
        yield (
            ("tokenizer",),
            f"{tokenizer.name!r} gives other ids than the language model was trained on; set tokenizer to "
            f"{{name: transformers, pretrained: {pretrained}}}",
        )


def _classification_problems(run: RunConfig) -> Iterator[tuple[Key, str]]:
    """Features that are not those of the cache, and a grid whose heads are not trained or chosen alone."""
    freezing, clipping = (run.algorithms.get(name) for name in ("layer_freezing", "gradient_clipping"))
    shares = {freezing.get("start", 1), freezing.get("end", 1)} if freezing else {0}
    frozen = bool(freezing) and "encoder" in freezing.get("parts", ()) and shares == {1}
    advice = "add algorithms.layer_freezing: {parts: [encoder]}"
    if "feature_cache" in run.algorithms:
        key = ("algorithms", "feature_cache")
        if not frozen:
            yield key, f"needs an encoder that is frozen all the time; {advice}"
        if other := {"image_resolution", "patch_dropout"} & set(run.algorithms):
            yield key, f"does not go with {min(other)}, which changes what the encoder sees; remove one"
    if "classification" in run.evaluation and run.data.eval is None:
        yield ("evaluation", "classification"), "measures on held-out images; set data.eval"
    if run.method.spec().get("grid") is None:
        return
    if not frozen:
        yield ("method", "grid"), f"its heads would all train the encoder; {advice}"
    if clipping is not None and clipping.get("clipping_type") == "norm":
        yield ("algorithms", "gradient_clipping"), "by norm ties the heads of method.grid together; remove it"
    if not run.data.train.hold_out:
        text = "is 0, but method.grid's best head is chosen on what is held out of training; set it to 0.1"
        yield ("data", "train", "hold_out"), text


def _parallelism_problems(run: RunConfig) -> Iterator[tuple[Key, str]]:
    """Settings of memory and speed that do not go together, and parts that the method does not have."""
    if run.tf32 and run.precision == "fp32":
        yield ("tf32",), "rounds products to ten bits, and precision is fp32; set one of the two otherwise"
    for key in ("compile", "activation_checkpointing"):
        section = getattr(run, key)
        for part in section.parts if section is not None else ():
            if problem := _part_problem(run, part):
                yield (key, "parts"), problem
    if (fsdp := run.parallelism.fsdp) is None:
        return
    if run.device_train_microbatch_size == "auto":
        yield ("device_train_microbatch_size",), "auto does not go with parallelism.fsdp; give a number"
    if run.precision == "amp_fp16":
        yield ("precision",), "amp_fp16 does not go with parallelism.fsdp; use amp_bf16"
    if run.precision == "fp32":
        for name in ("param_dtype", "reduce_dtype"):
            if getattr(fsdp, name) != "fp32":
                yield ("parallelism", "fsdp", name), "bf16 needs precision amp_bf16, which is fp32"
    for section, names in _NOT_SHARDED.items():
        for name in names.keys() & set(getattr(run, section)):
            yield (
                (section, name),
                f"{names[name]}, which does not go with parallelism.fsdp; remove one",
            )


def _part_problem(run: RunConfig, part: str) -> str:
    """Why a part cannot be named, "" if it can."""
    if methods.problems(run.method.spec()):  # reported where they stand
        return ""
    names = methods.get(run.method.name).part_names
    if part not in names:
        return f"the method {run.method.name!r} has no part {part!r}; {did_you_mean(part, names)}"
    if part in type(run.model).model_fields and getattr(run.model, part) is None:
        return f"names {part}, and model.{part} is null; remove it"
    return ""


def _microbatch_problems(run: RunConfig, beyond: str | None, contrast: bool) -> Iterator[tuple[Key, str]]:
    """Microbatches by tokens where the loss would not be the same, or not all documents would fit."""
    key, tokens = ("device_train_microbatch_tokens",), run.device_train_microbatch_tokens
    if tokens is None:
        return
    if run.device_train_microbatch_size is not None:
        yield key, "and device_train_microbatch_size are both set; set one of them to null"
    elif beyond:
        yield key, f"would change the loss: method.{beyond} looks at the whole batch; remove one of the two"
    elif contrast and "grad_cache" not in run.algorithms:
        yield (
            key,
            "would change the number of negatives from batch to batch; add algorithms.grad_cache, or set the "
            "weight of the contrast to 0",
        )
    if tokens < run.data.max_tokens:
        text = f"is {tokens}, below data.max_tokens {run.data.max_tokens}: a document may not fit; raise it"
        yield key, text


def _ask_method(run: RunConfig) -> _Answers | None:
    """What the method says of its settings; None if they are wrong in form, reported where they stand."""
    spec = run.method.spec()
    if methods.problems(spec):
        return None
    method, settings = methods.get(run.method.name), methods.settings(spec)
    refusals = [(key, message) for key, message in method.refusals(settings)]
    return _Answers(refusals, method.contrasts(settings), method.beyond_grad_cache(settings))


def _method_problems(run: RunConfig, answers: _Answers) -> Iterator[tuple[Key, str]]:
    """Networks that the method lacks or does not take, and settings that it refuses."""
    name = run.method.name
    takes = methods.injectable(name)
    for part in ("pooler", "language_model", "target_encoder"):
        given = getattr(run.model, part) is not None
        if part in takes and takes[part].default is inspect.Parameter.empty and not given:
            yield ("model", part), f"missing; the method {name!r} needs it"
        if part not in takes and given:
            yield ("model", part), f"the method {name!r} has none; set model.{part} to null"
    model = run.model.language_model
    both_ways = model is not None and model.name == "text_encoder" and "language_model" in takes
    if both_ways and "TextEncoder" not in str(takes["language_model"].annotation):
        yield (
            ("model", "language_model"),
            f"attends both ways, and the method {name!r} wants a causal one; use {{name: transformers}}",
        )
    settings = methods.settings(run.method.spec())
    weights = [value for key, value in settings.items() if key.endswith("_weight") and value is not None]
    if weights and not any(weights) and "contrastive_weight" not in run.algorithms:
        yield ("method",), "all weights are 0; nothing would be trained"
    for key, message in answers.refusals:
        yield ("method", key), message
    if answers.beyond_grad_cache and "grad_cache" in run.algorithms:
        yield (
            ("algorithms", "grad_cache"),
            f"cannot restore the whole batch for method.{answers.beyond_grad_cache}; set that to 0 or remove "
            "grad_cache",
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
    """Return the documents whose images are set against one another; 0 if none are.

    The microbatches of all ranks, or their whole batches with GradCache.
    """
    answers = _ask_method(config)
    if answers is None or not (answers.contrasts or "contrastive_weight" in config.algorithms):
        return 0
    micro = config.device_train_microbatch_size  # by tokens only with GradCache
    per_rank = config.global_train_batch_size // world_size
    if isinstance(micro, int) and "grad_cache" not in config.algorithms:
        per_rank = min(micro, per_rank)
    return world_size * per_rank
