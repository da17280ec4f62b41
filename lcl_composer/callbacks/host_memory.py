"""Memory of the host: the training process and the workers of its data loader."""

from __future__ import annotations

import resource
import sys

import psutil
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from lcl_composer.algorithms.schedule import in_batches

_GIGABYTE = 1e9


class HostMemory(Callback):
    """Log the host's memory in GB, of the rank that holds most; that of the GPU is ``memory_monitor``'s.

    ``memory/host_rss``: resident memory of the training process. ``memory/host_rss_peak``: its highest since
    the start. ``memory/workers``: of its child processes together, what each holds for itself alone.

    Args:
        every: Composer time string in batches.

    Raises:
        ValueError: If ``every`` is not in batches.
    """

    def __init__(self, every: str = "10ba"):
        self.every = in_batches("every", every)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Measure on each rank, log the largest."""
        if int(state.timestamp.batch) % self.every:
            return
        used = host_memory()
        most = state.device.tensor_to_device(torch.tensor(list(used.values())))
        dist.all_reduce(most, reduce_operation="MAX")
        logger.log_metrics({f"memory/{name}": value for name, value in zip(used, most.tolist(), strict=True)})


def host_memory() -> dict[str, float]:
    """Gigabytes (1e9) of this process now and at its highest, and of its children."""
    process = psutil.Process()
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    workers = 0
    for child in process.children(recursive=True):
        try:
            workers += child.memory_full_info().uss  # forked workers share most of their resident memory
        except psutil.Error:  # ended since, or not ours to look into
            continue
    return {
        "host_rss": process.memory_info().rss / _GIGABYTE,
        "host_rss_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GIGABYTE,
        "workers": workers / _GIGABYTE,
    }
