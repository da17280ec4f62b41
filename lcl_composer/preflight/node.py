"""What each node must have enough of: shared memory, open files, memory for the model and a batch, GPUs."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from lcl_composer.data.shared_memory import find_leftovers
from lcl_composer.preflight.finding import Finding, fail, ok, size, warn

if TYPE_CHECKING:
    from lcl_composer.preflight.plan import Plan

#: What NVIDIA asks a container to give NCCL (NCCL user guide, "Runtime and MPI issues": --shm-size=1g).
_NCCL = 1 << 30
#: Streaming shares the sample numbers of an epoch as int64 (streaming/base/dataset.py, _share_work).
_SAMPLE_NUMBER = 8
#: Tensors of a batch: each travels from a worker as an open file.
_TENSORS = 16
#: Open files of a rank that does nothing yet: libraries, logs, shards, devices.
_FILES = 256
#: A process of a rank before it has a model, and one of its loader, which shares most of it.
_PROCESS, _WORKER = 1.0e9, 0.2e9
#: A share of a GPU's memory that others may hold without a word.
_HELD = 0.05
#: Where a control group's limit of memory stands: version 2, and version 1.
_LIMITS = {"": "memory.max", "memory": "memory.limit_in_bytes"}


def shared_memory(plan: Plan, shm: Path = Path("/dev/shm")) -> Finding:
    """``/dev/shm`` against what loaders, Streaming and NCCL need in it."""
    if not shm.is_dir():
        return warn(f"no {shm} on this system; loaders share memory elsewhere")
    samples = sum(seen.samples for group in plan.looked.values() for seen in group)
    parts = {"loaders": plan.loader_bytes, "Streaming": samples * _SAMPLE_NUMBER}
    if plan.gpu and plan.world.local_size > 1:
        parts["NCCL"] = _NCCL
    need = sum(parts.values())
    usage = psutil.disk_usage(str(shm))
    segments, _ = find_leftovers(shm)
    free = usage.free + sum(path.stat().st_size for path in segments if path.exists())
    named = ", ".join(f"{name} {size(count)}" for name, count in parts.items() if count)
    if free < need:
        named += f"; by {plan.sizes.basis}"
        return _too_little(plan)(
            f"{shm} has {size(free)} free of {size(usage.total)}, the run needs {size(need)} ({named}): "
            "enlarge it (docker --shm-size, Kubernetes emptyDir sizeLimit, mount -o remount,size=) or lower "
            "data.train.num_workers"
        )
    return ok(f"{size(free)} free, {size(need)} needed" + f" ({named})" * bool(named))


def leftovers(plan: Plan, shm: Path = Path("/dev/shm")) -> Finding:
    """What killed jobs of this user have left in shared memory."""
    segments, locks = find_leftovers(shm)
    if not segments and not locks:
        return ok("none")
    held = sum(path.stat().st_size for path in segments if path.exists())
    return warn(
        f"{len(segments)} segments ({size(held)}) and {len(locks)} lock files of killed jobs; the run "
        "removes them when it starts"
    )


def open_files(plan: Plan) -> Finding:
    """The limit of open files against what loaders and connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    workers = sum(settings.num_workers for _, settings in plan.streams())
    need = _FILES + workers * 2 * (_TENSORS + 4) + 4 * plan.world.size
    if soft != resource.RLIM_INFINITY and soft < need:
        return fail(
            f"a process may open {soft} files, the run needs about {need}: ulimit -n {max(need, 4096)} "
            f"before it (the hard limit is {hard if hard != resource.RLIM_INFINITY else 'none'})"
        )
    return ok(f"{soft} allowed, about {need} needed")


def gpus(plan: Plan) -> Finding:
    """A GPU for each rank of the node, and nobody else on it."""
    count, ranks = torch.cuda.device_count(), plan.world.local_size
    if not torch.cuda.is_available():
        return ok("none; it trains on the CPU")
    if count < ranks:
        return fail(f"{count} GPUs and {ranks} ranks on the node; start as many ranks as GPUs")
    held = []
    for index in range(ranks):
        free, total = torch.cuda.mem_get_info(index)
        if total - free > _HELD * total:
            held.append(f"GPU {index} has {size(free)} free of {size(total)}")
    if held:
        return warn(f"{held[0]}" + f" (and {len(held) - 1} more)" * (len(held) > 1) + ": who else uses it?")
    total = torch.cuda.get_device_properties(0).total_memory
    return ok(f"{count} x {torch.cuda.get_device_name(0)}, {size(total)}")


def memory(plan: Plan) -> Finding:
    """Model, optimizer and a microbatch's activations against the memory of a GPU, or of the host."""
    sizes, world = plan.sizes, plan.world
    kept, batch = sizes.activations * plan.microbatch, sizes.sample * plan.device_batch
    half = plan.gpu and plan.run.precision != "fp32"
    least, most = plan.resident + batch + kept // (2 if half else 1), plan.resident + batch + kept
    if plan.gpu:
        have, per = torch.cuda.get_device_properties(world.local_rank).total_memory, "a GPU"
    else:
        workers = sum(settings.num_workers for _, settings in plan.streams())
        base = _PROCESS + workers * _WORKER
        least, most, have, per = least + base, most + base, host_memory() / world.local_size, "a rank"
    said = (
        f"{size(plan.resident)} for model and optimizer, "
        f"{size(kept // (2 if half else 1))} for what a microbatch of {plan.microbatch} keeps for backward"
    )
    if least > have:
        return _too_little(plan)(
            f"{per} has {size(have)} and needs at least {size(least)} ({said}; by {sizes.basis}): lower "
            "device_train_microbatch_size (with grad_cache where it contrasts) or "
            "set activation_checkpointing"
        )
    if sizes.uncounted:
        said = f"{size(plan.resident)} for model and optimizer"
        return warn(
            f"{said} of {size(have)} {per}; what forward keeps could not be counted ({sizes.uncounted})"
        )
    if most > 0.9 * have:
        return warn(
            f"{per} has {size(have)} and needs {size(least)} to {size(most)} ({said}): it may be tight"
        )
    return ok(f"{size(least)} of {size(have)} {per}: {said}")


def _too_little(plan: Plan) -> Callable[[str], Finding]:
    """A fault if documents of the data were counted; where they are made up they may be much too large."""
    return fail if plan.sizes.documents else warn


def host_memory(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this machine has to give, or the narrowest control group that the process is in.

    Args:
        groups: Names the process's groups, a line a hierarchy: ``0::/a/b``, ``4:memory:/a/b`` (cgroups(7)).
        root: Where they are mounted; those of version 1 under the controller's name.
    """
    return min([psutil.virtual_memory().available, *_limits(groups, root)])


def _limits(groups: Path, root: Path) -> Iterator[int]:
    """Yield the limits on the way up. A container sees its own group as the mount, whatever it is called."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        for controller in _LIMITS.keys() & set(controllers.split(",")):
            parts = [part for part in name.split("/") if part not in ("", "..")]
            for depth in range(len(parts), -1, -1):
                with suppress(OSError, ValueError):  # not there, or "max"
                    yield int(Path(root, controller, *parts[:depth], _LIMITS[controller]).read_text())
