"""RunConfig to objects: the only place where the parts are wired together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lcl_composer import registry
from lcl_composer.checkpoint import Begun, check_whole, misfit
from lcl_composer.config import ComposedConfig, RunConfig, check_batch_divides
from lcl_composer.config.schema import StreamConfig
from lcl_composer.data.balance import DocumentCost
from lcl_composer.data.image import Augmentation
from lcl_composer.data.interleave import Layout
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.errors import DataError
from lcl_composer.methods.build import build_model, build_tokenizer, find_classes, layout_rules
from lcl_composer.methods.cost import document_cost
from lcl_composer.methods.fast import make_fast
from lcl_composer.models.sharding import spread_states
from lcl_composer.nodes import on_first_rank
from lcl_composer.resume import check_resume, digest_of_documents, digest_of_tokenizer
from lcl_composer.run_folder import RunFolder, Start

if TYPE_CHECKING:
    from composer import Trainer
    from composer.core import Callback, DataSpec
    from composer.loggers import LoggerDestination

    from lcl_composer.callbacks.checkpoint_contents import CheckpointContents
    from lcl_composer.methods.method import Method

#: Keys of the config that are arguments of Composer's Trainer under the same name.
_TRAINER_ARGUMENTS = {
    "device_train_microbatch_size",
    "dist_timeout",
    "max_duration",
    "run_name",
    "save_folder",
    "seed",
}


def parameter_groups(
    model: Method, lr: float | None = None, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters in groups: matrices, what is not decayed, and what has settings of its own.

    A parameter with fewer than two axes longer than 1 (biases, norms, class token, query, logit scale) is
    not decayed, as in OpenCLIP's training. A method may give a parameter its own settings
    (:meth:`Method.group_settings`). With ``layer_decay`` d the layer of the encoder that is n layers below
    its last (the final norm) has the rate ``lr * d ** n``, as BEiT's fine-tuning does (arXiv 2106.08254).

    Args:
        model: The method.
        lr: The optimizer's learning rate, needed for ``layer_decay``.
        layer_decay: d; None: all layers alike.
    """
    from lcl_composer.algorithms.layer_freezing import layers_from_input

    rates: dict[int, float] = {}
    if layer_decay is not None and lr is not None:
        layers = layers_from_input(model.encoder)
        rates = {
            id(p): lr * layer_decay ** (len(layers) - 1 - n) for n, layer in enumerate(layers) for p in layer
        }
    groups: dict[tuple[Any, ...], dict[str, Any]] = {(True,): {"params": []}}
    groups[False,] = {"params": [], "weight_decay": 0.0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = sum(length > 1 for length in parameter.shape) >= 2
            own = {"lr": rates[id(parameter)]} if id(parameter) in rates else model.group_settings(name)
            own = own if is_matrix else own | {"weight_decay": 0.0} if own else own
            key = (is_matrix, *sorted(own.items()))
            groups.setdefault(key, {"params": [], **own})["params"].append(parameter)
    return list(groups.values())


def build_optimizer(config: RunConfig, model: Method) -> torch.optim.Optimizer:
    """The optimizer with weight decay on matrices only, see :func:`parameter_groups`."""
    spec = config.optimizer.spec()
    lr = registry.optimizers.settings(spec).get("lr")
    optimizer = registry.optimizers.build(spec, params=parameter_groups(model, lr, config.layer_decay))
    optimizer.register_load_state_dict_post_hook(spread_states)
    return optimizer


def build_data(
    config: RunConfig,
    stream: StreamConfig,
    layout: Layout,
    held_out_only: bool = False,
    cost: DocumentCost | None = None,
) -> DataSpec:
    """The loader of ``data.train`` or ``data.eval`` for this rank.

    With ``held_out_only`` it reads, for evaluation, what ``data.train.hold_out`` keeps from training. By
    ``cost`` training deals out batches over ranks.
    """
    from composer.utils import dist

    from lcl_composer.data.loader import build_loader

    return build_loader(
        stream,
        train=stream is config.data.train and not held_out_only,
        layout=layout,
        image_size=config.data.image_size,
        batch_size=config.global_train_batch_size // dist.get_world_size(),
        seed=config.seed,
        max_bad_fraction=config.data.max_bad_fraction,
        pin_memory=torch.cuda.is_available(),
        augmentation=Augmentation(config.data.crop_scale, config.data.flip_probability),
        held_out_only=held_out_only,
        microbatch_tokens=config.device_train_microbatch_tokens if stream is config.data.train else None,
        cost=cost,
    )


def run_of(config: RunConfig) -> RunFolder:
    """The run's folder, ``runs/NAME``, and that of its checkpoints."""
    return RunFolder(config.run_name, Path("runs") / config.run_name, config.save_folder)


def build_callbacks(
    composed: ComposedConfig, contents: CheckpointContents, tokenizer: Tokenizer, layout: Layout
) -> list[Callback]:
    """What every run records, then what the YAML names.

    The order matters: a lost loss stops the run before anything is measured; at the end of training the table
    names the encoder and the plots; a checkpoint holds what all others have done.
    """
    from lcl_composer.callbacks.bad_samples import BadSamples
    from lcl_composer.callbacks.curves import Curves
    from lcl_composer.callbacks.exact_resume import ExactResume
    from lcl_composer.callbacks.export_encoder import ExportEncoder
    from lcl_composer.callbacks.nothing_to_learn import NothingToLearn
    from lcl_composer.callbacks.progress import ProgressBar, ProgressLines
    from lcl_composer.callbacks.run_checkpoints import RunCheckpoints
    from lcl_composer.callbacks.run_record import RunRecord
    from lcl_composer.callbacks.training_metrics import TrainingMetrics

    config, run = composed.run, run_of(composed.run)
    specs = {"loss_guard": {"factor": None}} | config.callbacks
    guard, *named = [
        registry.callbacks.build({"name": name, **specs[name]}, layout=layout)
        for name in sorted(specs, key=lambda name: name != "loss_guard")
    ]
    record = RunRecord(run.folder, composed.to_yaml())
    export = ExportEncoder(run.folder / "encoder", config)
    saver = RunCheckpoints(run, config.save_interval, config.save_num_checkpoints_to_keep)
    always = [record, contents, ExactResume(), guard, TrainingMetrics(), BadSamples(), NothingToLearn()]
    if config.progress_bar:
        always.append(ProgressBar() if sys.stderr.isatty() else ProgressLines())
    return [*always, *named, export, Curves(run.folder), build_end_table(config, tokenizer, layout), saver]


def build_end_table(config: RunConfig, tokenizer: Tokenizer, layout: Layout) -> Callback:
    """The table at the end of the run, with the measurements that ``evaluation`` names."""
    from lcl_composer.callbacks.summary import EndTable

    folder = run_of(config).folder
    offered = {"image_size": config.data.image_size, "tokenizer": tokenizer, "layout": layout}
    evaluations = {
        name: registry.evaluations.build({"name": name, **spec}, **offered)
        for name, spec in config.evaluation.items()
    }
    kept: Any = None
    if config.data.train.hold_out:
        kept = build_data(config, config.data.train, layout, held_out_only=True).dataloader
    return EndTable(folder, evaluations, folder / "encoder", kept)


def build_loggers(config: RunConfig) -> list[LoggerDestination]:
    """JSON lines in the run folder, then what the YAML names; it writes there too unless told otherwise."""
    from lcl_composer.callbacks.jsonl_logger import JsonLinesLogger

    folder = run_of(config).folder
    named = [
        registry.loggers.build({"name": name, **spec}, log_dir=str(folder))
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
    from composer.loggers import ConsoleLogger
    from composer.utils import dist, get_device, reproducibility

    from lcl_composer.callbacks.exact_resume import ExactResume

    config, run = composed.run, run_of(composed.run)
    check_batch_divides(config, dist.get_world_size())
    reproducibility.seed_all(config.seed)
    tokenizer = build_tokenizer(config)
    model = build_model(config, tokenizer.vocab_size, find_classes(config))
    start = find_start(config, model)
    rules = layout_rules(config, model.encoder.tokens_per_image)
    layout = model.layout(tokenizer, rules)
    cost = document_cost(model, tokenizer, layout, rules) if dist.get_local_world_size() > 1 else None
    train_data = build_data(config, config.data.train, layout, cost=cost)
    contents = check_start(config, start, model, tokenizer, train_data)
    device = get_device(None)
    make_fast(config, model, device.tensor_to_device(torch.empty(0)).device)
    callbacks = build_callbacks(composed, contents, tokenizer, layout)
    held_out = config.data.eval and build_data(config, config.data.eval, layout)
    trainer = Trainer(
        model=model,
        train_dataloader=train_data,
        eval_dataloader=held_out,
        eval_interval=config.eval_interval if held_out else 0,
        optimizers=build_optimizer(config, model),
        schedulers=registry.schedulers.build(config.scheduler.spec()),
        algorithms=[registry.algorithms.build({"name": n, **spec}) for n, spec in config.algorithms.items()],
        callbacks=callbacks,
        loggers=build_loggers(config),
        progress_bar=False,  # Composer's comes with boxes of stars, and its names fill a line; ours does not
        precision=config.precision or ("amp_bf16" if torch.cuda.is_available() else "fp32"),
        device=device,
        log_to_console=config.log_to_console and dist.get_global_rank() == 0,
        load_path=start.path or config.load_path,
        load_weights_only=start.path is None,  # load_path starts a new run
        **config.model_dump(include=_TRAINER_ARGUMENTS),
    )
    for callback in callbacks:
        if isinstance(callback, ExactResume):
            callback.trainer = trainer
    for destination in trainer.logger.destinations:
        if isinstance(destination, ConsoleLogger):  # it would begin with a box of a node's name and number
            destination.hparams_already_logged_to_console = True
    if run.remote:
        dist.barrier()  # all have read what was fetched
        on_first_rank(run.store.forget)
    allow_tf32(config.tf32)
    return trainer


def allow_tf32(allowed: bool) -> None:
    """Say whether a GPU may round float32 products to ten bits; Composer allows it with each device."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def find_start(config: RunConfig, model: Method) -> Start:
    """Where the run starts, as rank 0 sees it, before anything of the run folder is touched.

    A checkpoint of another architecture is passed over if an earlier one fits the model.

    Raises:
        LCLError: If the run would overwrite or take over what it must not.
        DataError: If the checkpoint to start from is missing, damaged or not finite.
    """

    def find() -> Start:
        start = run_of(config).find_start(config.autoresume, lambda path: misfit(path, model))
        if start.path is None and config.load_path is not None and "://" not in config.load_path:
            check_whole(config.load_path)
        return start

    return on_first_rank(find)


def check_start(
    config: RunConfig, start: Start, model: Method, tokenizer: Tokenizer, train_data: DataSpec
) -> CheckpointContents:
    """Compare model and settings with the checkpoint that the run starts from, before it is loaded.

    Composer resumes without asking that all weights fit: a model of which half is new would train on.

    Returns:
        The callback that says what this run is.

    Raises:
        DataError: If the checkpoint does not fit.
    """
    from lcl_composer.callbacks.checkpoint_contents import CheckpointContents

    loader: Any = train_data.dataloader
    documents = digest_of_documents(source.folder for source in loader.dataset.streams)
    settings = config.model_dump(mode="json")
    encoder = {"recipe": model.encoder.recipe, "weights": model.encoder.weights}
    target: Any = model.parts.get("target_encoder")
    now = Begun(
        config.run_name,
        settings,
        documents,
        digest_of_tokenizer(tokenizer),
        encoder=encoder,
        target=target.weights if target is not None else "",
    )
    if start.path and start.begun:
        check_resume(start.path, start.begun, now)
    path = start.path or config.load_path
    if path and "://" not in path and (reason := misfit(path, model)):
        raise DataError(f"{reason}; {'choose another run_name' if start.path else 'mend load_path'}")
    return CheckpointContents(now, start)
