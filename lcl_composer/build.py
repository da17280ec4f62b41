"""RunConfig to objects: the only place where the parts are wired together."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lcl_composer import registry
from lcl_composer.config import ComposedConfig, RunConfig, check_batch_divides
from lcl_composer.config.schema import StreamConfig
from lcl_composer.data.interleave import LayoutRules
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from composer import Trainer
    from composer.core import Callback, DataSpec
    from composer.loggers import LoggerDestination

    from lcl_composer.models.lcl import LCLModel

#: Keys of the config that are arguments of Composer's Trainer under the same name.
_TRAINER_ARGUMENTS = {
    "autoresume",
    "device_train_microbatch_size",
    "load_path",
    "log_to_console",
    "max_duration",
    "progress_bar",
    "run_name",
    "save_folder",
    "save_interval",
    "save_num_checkpoints_to_keep",
    "seed",
}


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


def parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices, and what is not decayed.

    A parameter with fewer than two axes longer than 1 (biases, norms, class token, query, logit scale) is
    not decayed, as in OpenCLIP's training.
    """
    matrices, others = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_matrix = sum(length > 1 for length in parameter.shape) >= 2
            (matrices if is_matrix else others).append(parameter)
    return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]


def build_optimizer(config: RunConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer with weight decay on matrices only, see :func:`parameter_groups`."""
    return registry.optimizers.build(config.optimizer.spec(), params=parameter_groups(model))


def build_data(config: RunConfig, stream: StreamConfig, tokenizer: Tokenizer, rules: LayoutRules) -> DataSpec:
    """The loader of ``data.train`` or ``data.eval`` for this rank."""
    from composer.utils import dist

    from lcl_composer.data.loader import build_loader

    return build_loader(
        **stream.model_dump(exclude={"generate"}),
        train=stream is config.data.train,
        tokenizer=tokenizer,
        rules=rules,
        image_size=config.data.image_size,
        batch_size=config.global_train_batch_size // dist.get_world_size(),
        seed=config.seed,
        max_bad_fraction=config.data.max_bad_fraction,
        pin_memory=torch.cuda.is_available(),
    )


def run_folder(config: RunConfig) -> Path:
    """Where everything of the run goes: ``runs/NAME``."""
    return Path("runs") / config.run_name


def build_callbacks(composed: ComposedConfig) -> list[Callback]:
    """What every run records, then what the YAML names.

    The order matters at the end of training: the table names the encoder and the plots, so it comes last.
    """
    from lcl_composer.callbacks.bad_samples import BadSamples
    from lcl_composer.callbacks.checkpoint_contents import CheckpointContents
    from lcl_composer.callbacks.curves import Curves
    from lcl_composer.callbacks.exact_resume import ExactResume
    from lcl_composer.callbacks.export_encoder import ExportEncoder
    from lcl_composer.callbacks.run_record import RunRecord
    from lcl_composer.callbacks.text_only import TextOnly
    from lcl_composer.callbacks.training_metrics import TrainingMetrics

    config, folder = composed.run, run_folder(composed.run)
    named = [registry.callbacks.build({"name": name, **spec}) for name, spec in config.callbacks.items()]
    record = RunRecord(folder, composed.to_yaml())
    export = ExportEncoder(folder / "encoder", config)
    always = [record, CheckpointContents(), ExactResume(), TrainingMetrics(), BadSamples(), TextOnly()]
    return [*always, *named, export, Curves(folder), build_end_table(config)]


def build_end_table(config: RunConfig) -> Callback:
    """The table at the end of the run, with the measurements that ``evaluation`` names."""
    from lcl_composer.callbacks.summary import EndTable
    from lcl_composer.data.image import eval_transform
    from lcl_composer.evaluation.gallery import Gallery
    from lcl_composer.evaluation.probe import ProbeSettings
    from lcl_composer.evaluation.retrieval import RetrievalSettings

    folder, settings = run_folder(config), config.evaluation
    return EndTable(
        folder,
        transform=partial(eval_transform, size=config.data.image_size),
        retrieval=RetrievalSettings(**settings["retrieval"]) if "retrieval" in settings else None,
        probe=ProbeSettings(**settings["probe"]) if "probe" in settings else None,
        encoder=folder / "encoder",
        gallery=Gallery(build_tokenizer(config)) if "retrieval" in settings else None,
    )


def build_loggers(config: RunConfig) -> list[LoggerDestination]:
    """JSON lines in the run folder, then what the YAML names (TensorBoard into the run folder)."""
    from lcl_composer.callbacks.jsonl_logger import JsonLinesLogger

    folder = run_folder(config)
    named = [
        registry.loggers.build({"name": name, **spec}, log_dir=str(folder / "tensorboard"))
        for name, spec in config.loggers.items()
    ]
    return [JsonLinesLogger(folder / "metrics.jsonl"), *named]


def build_trainer(composed: ComposedConfig) -> Trainer:
    """Wire a run: data, model, optimizer, schedule, algorithms, callbacks, loggers.

    Raises:
        ConfigError: If the ranks do not divide the batch, or the settings do not fit each other.
        DataError: If data or a checkpoint are missing or damaged.
    """
    from composer import Trainer
    from composer.utils import dist, reproducibility

    from lcl_composer.callbacks.exact_resume import ExactResume

    config = composed.run
    check_batch_divides(config, dist.get_world_size())
    reproducibility.seed_all(config.seed)
    tokenizer = build_tokenizer(config)
    model = build_model(config, tokenizer.vocab_size)
    check_start(config, model)
    rules = layout_rules(config, model.encoder.tokens_per_image)
    callbacks = build_callbacks(composed)
    held_out = config.data.eval and build_data(config, config.data.eval, tokenizer, rules)
    trainer = Trainer(
        model=model,
        train_dataloader=build_data(config, config.data.train, tokenizer, rules),
        eval_dataloader=held_out,
        eval_interval=config.eval_interval if held_out else 0,
        optimizers=build_optimizer(config, model),
        schedulers=registry.schedulers.build(config.scheduler.spec()),
        algorithms=[registry.algorithms.build({"name": n, **spec}) for n, spec in config.algorithms.items()],
        callbacks=callbacks,
        loggers=build_loggers(config),
        precision=config.precision or ("amp_bf16" if torch.cuda.is_available() else "fp32"),
        save_overwrite=True,  # a crash between a checkpoint and its symlink must not stop the relaunch
        load_weights_only=True,  # load_path starts a new run; autoresume loads everything all the same
        **config.model_dump(include=_TRAINER_ARGUMENTS),
    )
    for callback in callbacks:
        if isinstance(callback, ExactResume):
            callback.trainer = trainer
    return trainer


def check_start(config: RunConfig, model: torch.nn.Module) -> None:
    """Look into the checkpoint that the run starts from, before anything of the run folder is touched.

    Composer resumes without asking that all weights fit: a model of which half is new would train on.

    Raises:
        DataError: If the checkpoint cannot be read or does not fit the model.
    """
    from lcl_composer.checkpoint import misfit

    latest = Path(config.save_folder, "latest-rank0.pt")
    resumes = config.autoresume and latest.exists()
    if not resumes and (config.load_path is None or "://" in config.load_path):
        return
    if reason := misfit(latest.resolve() if resumes else str(config.load_path), model):
        raise DataError(
            f"{reason}; {'choose another run_name or save_folder' if resumes else 'mend load_path'}"
        )
