"""Settings tried on Composer's own objects: what is right in form and would be refused minutes later.

The optimizer, the schedule, algorithms, callbacks and loggers are built and thrown away; the schedule is
asked for its learning rates. The model and the data are not touched.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lcl_composer.config.schema import RunConfig, StreamConfig
from lcl_composer.config.yaml_file import Key
from lcl_composer.errors import ConfigError, one_line
from lcl_composer.json_data import load_json
from lcl_composer.registry import (
    algorithms,
    callbacks,
    generators,
    loggers,
    methods,
    optimizers,
    schedulers,
)

if TYPE_CHECKING:
    from composer.core import State
    from composer.optim import ComposerScheduler

#: What a run trains on.
Device = Literal["cpu", "gpu"]

#: Batches of an epoch where the number of documents is not known: enough to try units on.
_SOME_BATCHES = 1000
#: What Composer divides by, or counts down, in mid-run and looks at nowhere before: the least it takes.
_LEAST = {
    ("callbacks", "memory_monitor", "dist_aggregate_batch_interval"): 1,
    ("callbacks", "optimizer_monitor", "batch_log_interval"): 1,
    ("callbacks", "runtime_estimator", "skip_batches"): 0,
    ("callbacks", "speed_monitor", "gpu_flops_available"): 1,
    ("callbacks", "speed_monitor", "window_size"): 1,
    ("loggers", "tensorboard", "flush_interval"): 1,
}
#: Share of the average at the end of a run from which on the weights of before it are too much of it.
_STALE = 0.1
#: Below this share of `optimizer.lr` at its highest, a schedule has not come out of its warm-up.
_PEAK = 0.9


def this_device() -> Device:
    """Return what a run on this machine trains on."""
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def trial_problems(run: RunConfig, device: Device) -> dict[Key, str]:
    """Return the key and the message of everything that Composer would refuse.

    Args:
        run: Settings that have passed all checks of form.
        device: What the run will train on.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself will say them
        return dict(_problems(run, device))


def _problems(run: RunConfig, device: Device) -> Iterator[tuple[Key, str]]:
    if device == "cpu" and run.precision not in (None, "fp32"):
        yield ("precision",), f"{run.precision} needs a GPU and this run has none; use fp32 or null"
    if device == "cpu" and run.device_train_microbatch_size == "auto":
        yield ("device_train_microbatch_size",), "auto needs a GPU and this run has none; give a number"
    if problem := _backend_problem(run, device):
        yield ("method", "backend"), problem
    if device == "cpu" and run.tf32:
        yield ("tf32",), "needs a GPU and this run has none; set it to false"
    if device == "cpu" and (fsdp := run.parallelism.fsdp) is not None:
        for name in ("param_dtype", "reduce_dtype"):
            if getattr(fsdp, name) != "fp32":
                yield ("parallelism", "fsdp", name), "bf16 needs a GPU and this run has none; use fp32"
    for (section, name, parameter), least in _LEAST.items():
        value = getattr(run, section).get(name, {}).get(parameter)
        if value is not None and value < least:
            yield (section, name, parameter), f"is {value}, must be at least {least}"
    yield from _optimizer_problems(run, device)
    refused = list(_refusals(("scheduler",), schedulers, run.scheduler.spec()))
    yield from refused or _schedule_problems(run)
    for part in ("train", "eval"):
        if (stream := getattr(run.data, part)) is not None and stream.generate is not None:
            yield from _refusals(("data", part, "generate"), generators, stream.generate.spec())
    # Not the evaluations: they open folders that the run may yet make.
    tables = {"algorithms": algorithms, "callbacks": callbacks, "loggers": loggers}
    for section, table in tables.items():
        for name, parameters in getattr(run, section).items():
            spec = {**parameters, "name": name}
            yield from _refusals((section, name), table, spec, log_dir="", layout=None)


def _backend_problem(run: RunConfig, device: Device) -> str:
    """Why what the method is to compute its losses by is not here; "" if it is."""
    from lcl_composer.kernels.tiles import interpreting

    spec = run.method.spec()
    if methods.problems(spec) or methods.settings(spec).get("backend") != "triton":
        return ""
    if find_spec("triton") is None:
        return "triton is not installed; set torch or null"
    if device == "cpu" and not interpreting():
        return "triton needs a GPU and this run has none; set torch or null"
    return ""


def _refusals(key: Key, table: Any, spec: dict[str, Any], **injected: Any) -> Iterator[tuple[Key, str]]:
    """What a constructor says to its parameters."""
    try:
        table.build(spec, **injected)
    except Exception as error:  # of any library, or a drop-in
        yield key, one_line(error)


def _optimizer_problems(run: RunConfig, device: Device) -> Iterator[tuple[Key, str]]:
    """What the optimizer says to its settings, or to a step on one parameter."""
    import torch

    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    spec = run.optimizer.spec()
    if device == "gpu":
        spec.pop("capturable", None)  # is for a GPU, which this machine may lack
    try:
        optimizer = optimizers.build(spec, params=[parameter])
    except ConfigError as error:
        yield ("optimizer",), one_line(error)
        return
    try:
        optimizer.step()
    except Exception as error:  # of any library
        yield ("optimizer",), f"with these settings a step fails: {one_line(error)}"


def _schedule_problems(run: RunConfig) -> Iterator[tuple[Key, str]]:
    """What the schedule says on the way, for any length of an epoch that the run may have."""
    known = _batches_an_epoch(run)
    for name in ("t_warmup", "t_max"):
        if str(run.scheduler.spec().get(name, "")).startswith("-"):
            yield ("scheduler", name), "must not be negative"
            return
    problem = ""
    for batches in [known] if known else [1, _SOME_BATCHES, _SOME_BATCHES**2]:
        try:
            lowest = min(_multipliers(run, schedulers.build(run.scheduler.spec()), batches))
        except Exception as error:
            problem = f"does not go with max_duration {run.max_duration}: {one_line(error)}"
            continue
        if lowest >= 0:
            return
        problem = f"makes the learning rate negative, {lowest:g} times optimizer.lr"
    yield ("scheduler",), problem


def _state(run: RunConfig, batches: int) -> State:
    """A state of Composer's with the length of the run and of its epochs in batches, and no model."""
    from composer.core import State
    from composer.devices import DeviceCPU
    from torch import nn

    state = State(
        model=nn.Identity(),
        rank_zero_seed=0,
        run_name=run.run_name,
        device=DeviceCPU(),
        max_duration=run.max_duration,
    )
    state.set_dataloader(range(batches), "train")
    return state


def warmup_note(run: RunConfig) -> str | None:
    """Return a line if the learning rate never comes near `optimizer.lr`, None if it does or nobody knows."""
    spec, batches = run.scheduler.spec(), _batches_an_epoch(run)
    if "t_warmup" not in schedulers.parameters(spec["name"]):
        return None
    if batches is None and any(time.endswith("ep") for time in (run.max_duration, str(spec["t_warmup"]))):
        return None
    highest = max(_multipliers(run, schedulers.build(spec), batches or _SOME_BATCHES))
    if highest >= _PEAK:
        return None
    return (
        f"the run ends in its warm-up: the learning rate comes to {highest:.1%} of optimizer.lr; "
        f"shorten scheduler.t_warmup or lengthen max_duration ({run.max_duration})"
    )


def ema_note(run: RunConfig) -> str | None:
    """Return a line if the average of the weights is largely of before training; None if not, or unknown."""
    from composer.core import Time

    if "ema" not in run.algorithms:
        return None
    settings = algorithms.settings({"name": "ema", **run.algorithms["ema"]})
    keys = ("half_life", "begin", "update_interval")
    half_life, begin, interval = (Time.from_timestring(settings[key]).value for key in keys)
    batches = _batches(run)
    if batches is None or batches <= begin:
        return None
    share = 2 ** (-(batches // interval * interval - begin) / half_life)
    if share <= _STALE:
        return None
    return (
        f"algorithms.ema: at the end of the run {share:.0%} of the average will be the weights of batch "
        f"{begin}; shorten half_life ({settings['half_life']}) or let it begin later"
    )


def _batches(run: RunConfig) -> int | None:
    """Return the batches of the run, or None where they are not known."""
    from composer.core import Time, TimeUnit

    total, in_epoch = Time.from_timestring(run.max_duration), _batches_an_epoch(run)
    if total.unit == TimeUnit.EPOCH:
        return total.value * in_epoch if in_epoch else None
    if total.unit == TimeUnit.SAMPLE:
        return -(-total.value // run.global_train_batch_size)
    return total.value if total.unit == TimeUnit.BATCH else None


def _multipliers(
    run: RunConfig, scheduler: ComposerScheduler, batches: int, points: int = 1000
) -> list[float]:
    """What the schedule multiplies the learning rate with, from the start of the run to its end."""
    from composer.core import Time, Timestamp, TimeUnit

    state = _state(run, batches)
    total = Time.from_timestring(run.max_duration)
    in_epochs = total.unit == TimeUnit.EPOCH
    length, unit = (total.value * batches, "batch") if in_epochs else (total.value, total.unit.name.lower())
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warm-up of 0
        for step in range(min(length, points) + 1):
            at = round(step * length / min(length, points))
            state.timestamp = Timestamp(**{unit: at}, epoch=at // batches if in_epochs else 0)
            found.append(float(scheduler(state)))
    return found


def _batches_an_epoch(run: RunConfig) -> int | None:
    """Return the batches of a training epoch, or None where the shards are not here to be counted."""
    documents = _documents(run.data.train)
    return documents // run.global_train_batch_size or None if documents is not None else None


def _documents(stream: StreamConfig) -> int | None:
    if stream.epoch_size is not None:
        return stream.epoch_size
    if stream.generate is not None:
        documents = stream.generate.spec().get("documents")
        return documents if isinstance(documents, int) else None
    if stream.local is None:
        return None
    try:
        index = load_json(Path(stream.local, stream.split or "", "index.json").read_text())
        return sum(shard["samples"] for shard in index["shards"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
