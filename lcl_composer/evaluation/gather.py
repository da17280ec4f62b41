"""Bring small results of every rank together."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def world() -> tuple[int, int]:
    """Return ``(rank, world size)``; ``(0, 1)`` outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_objects(value: T) -> list[T]:
    """Return ``value`` of every rank, in rank order; tensors in it must be on the CPU."""
    _, size = world()
    if size == 1:
        return [value]
    gathered: list[T] = [value] * size
    dist.all_gather_object(gathered, value)
    return gathered
