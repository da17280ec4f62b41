"""What one rank decides for all, and what Composer 0.32.1 gets wrong when nodes share a file system."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lcl_composer.errors import LCLError

T = TypeVar("T")


def on_first_rank(function: Callable[[], T]) -> T:
    """Call a function on rank 0 and return its result, or raise its LCLError, on all ranks.

    What lies on a disk is then seen by one, and no rank waits for one that has given up.
    """
    from composer.utils import dist

    outcome = _outcome(function) if dist.get_global_rank() == 0 else [None, None]
    dist.broadcast_object_list(outcome)
    return _result([outcome], 0)


def on_first_of_node(function: Callable[[], T]) -> T:
    """Call a function on the first rank of each node and return its result on all ranks of that node.

    An LCLError on one node is raised on all ranks. Without a process group this process is alone, whatever a
    pod's environment says of ranks.
    """
    import torch.distributed
    from composer.utils import dist

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return function()
    outcome = _outcome(function) if dist.get_local_rank() == 0 else [None, None]
    return _result(dist.all_gather_object(outcome), dist.get_global_rank() - dist.get_local_rank())


def _outcome(function: Callable[[], Any]) -> list[Any]:
    """What it returns and what it raises, one of them None."""
    try:
        return [function(), None]
    except LCLError as error:
        return [None, error]


def _result(outcomes: Sequence[Sequence[Any]], place: int) -> Any:
    """What stands at a place, or the first error of all."""
    for _, error in outcomes:
        if error is not None:
            raise error
    return outcomes[place][0]


def most_over_ranks(value: int) -> int:
    """The greatest of the ranks' numbers; all ask together, and no device is waited for."""
    import torch
    import torch.distributed as dist

    from lcl_composer.losses.gather import host_group

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    number = torch.tensor(value)
    dist.all_reduce(number, op=dist.ReduceOp.MAX, group=host_group())
    return int(number)


def name_signal_files_by_node() -> None:
    """Give each node signal files of its own, and its number under torchrun, which calls it GROUP_RANK.

    Before it looks for a checkpoint to resume from, the first rank of each node writes a file beside the
    checkpoints and removes it again. Composer names the file after the node, but then broadcasts rank 0's
    name: on a shared disk all nodes remove the same file, and all but the first stop with FileNotFoundError.
    """
    from composer.utils import dist

    if "GROUP_RANK" in os.environ:
        os.environ.setdefault("NODE_RANK", os.environ["GROUP_RANK"])
    original = dist.get_node_signal_file_name
    if getattr(original, "by_node", False):
        return

    def named(*arguments: object) -> str:
        return f"{original(*arguments)}_of_node{dist.get_node_rank()}"  # pyright: ignore[reportArgumentType]

    named.by_node = True  # pyright: ignore[reportFunctionMemberAccess]
    dist.get_node_signal_file_name = named
