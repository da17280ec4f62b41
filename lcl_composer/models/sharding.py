"""FSDP2 on a model that is called in other ways than by ``forward``: blocks are sharded, scalars are not.

Composer 0.32.1 can shard too (``parallelism_config``), but it makes each child of a model a unit of its own,
gathered by the child's ``forward``; ours have other doors (``pooler.values``, ``encoder.class_tokens``). Here
a unit is a block of a network, entered by ``forward`` alone, and what lies between blocks belongs to the
model itself: gathered at its forward, and kept until the backward, so that the losses can read the heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lcl_composer.errors import ConfigError


def shard(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    device: torch.device,
    reshard_after_forward: bool = True,
    param_dtype: torch.dtype | None = None,
    reduce_dtype: torch.dtype | None = None,
) -> None:
    """Shard a model over all ranks (FSDP, arXiv 2304.11277; ``torch.distributed.fsdp.fully_shard``).

    The ranks begin with rank 0's weights. Parameters that cannot be cut, those without an axis, stay whole on
    every rank, as DTensors too, and their gradients are averaged as the others' are; code that computes with
    one takes it by :func:`local`. Inputs are not cast: what runs in half precision is autocast's to say.

    Args:
        model: Its ``forward`` is called before anything of it is used.
        blocks: Modules of it that become units; each is called by ``forward`` only.
        device: Of this rank.
        reshard_after_forward: Free a block's whole weights after its forward.
        param_dtype: Of the weights that are gathered; None: as they are.
        reduce_dtype: In which gradients are summed; None: that of the gradients.

    Raises:
        ConfigError: If the model has BatchNorm, whose statistics would differ by rank.
    """
    if found := next((name for name, m in model.named_modules() if isinstance(m, _BatchNorm)), None):
        raise ConfigError(
            f"parallelism.fsdp: {found} is a BatchNorm, whose statistics would be another on each rank; "
            "take an encoder without, or remove parallelism.fsdp"
        )
    mend_gloo_average()
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    model.to(device)
    for tensor in chain(model.parameters(), model.buffers()):
        dist.broadcast(tensor.detach(), 0)
    whole = {name: p for name, p in model.named_parameters() if p.dim() == 0}
    policy = MixedPrecisionPolicy(param_dtype, reduce_dtype, cast_forward_inputs=False)
    settings: Any = {"mesh": mesh, "mp_policy": policy, "ignored_params": set(whole.values())}
    for block in blocks:
        fully_shard(block, reshard_after_forward=reshard_after_forward, **settings)
    fully_shard(model, reshard_after_forward=False, **settings)
    for name, parameter in whole.items():
        _replicate(model, name, parameter, mesh)


def _replicate(model: nn.Module, name: str, parameter: nn.Parameter, mesh: DeviceMesh) -> None:
    """Make a parameter a DTensor that every rank has whole, with the mean of the ranks' gradients."""
    place, _, attribute = name.rpartition(".")
    spread = distribute_tensor(parameter.detach(), mesh, [Replicate()])
    setattr(
        model.get_submodule(place), attribute, nn.Parameter(spread, requires_grad=parameter.requires_grad)
    )


def spread_states(optimizer: torch.optim.Optimizer) -> None:
    """Make what an optimizer has loaded for whole DTensors DTensors again; call when it has loaded.

    Torch cuts a checkpoint's states as their parameters are cut and leaves those without an axis plain
    tensors, which torch 2.7 takes beside a DTensor's gradient and torch 2.13 does not.
    """
    for parameter, state in optimizer.state.items():
        if isinstance(parameter, DTensor) and not is_sharded(parameter):
            for name, value in state.items():
                if name != "step" and isinstance(value, Tensor) and not isinstance(value, DTensor):
                    state[name] = DTensor.from_local(value, parameter.device_mesh, parameter.placements)


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor; all of it where it is whole, or no DTensor.

    The gradient of one that every rank has whole becomes the mean of the ranks' gradients: all must use it
    alike.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    mine = tensor.to_local()
    if mine.requires_grad and not is_sharded(tensor):
        # Not a hook of the parameter, which is lost where a Trainer moves the model to its device.
        mine.register_hook(_mean_over_ranks)
    return mine


def _mean_over_ranks(gradient: Tensor) -> Tensor:
    mean = gradient.clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


def whole_tensor(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, which all ranks ask for together; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank has a part of the tensor only."""
    return isinstance(tensor, DTensor) and any(placement.is_shard() for placement in tensor.placements)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm of all tensors together, 0-dim; all ranks ask for it together where some are sharded."""
    shards = [local(tensor) for tensor in tensors if is_sharded(tensor)]
    rest = nn.utils.get_total_norm([local(tensor) for tensor in tensors if not is_sharded(tensor)])
    if not shards:
        return rest
    square = nn.utils.get_total_norm(shards).square()
    dist.all_reduce(square)
    return (square + rest.to(square.device).square()).sqrt()


@torch.no_grad()
def clip_norm(gradients: Sequence[Tensor], most: float) -> None:
    """Scale gradients, some of them sharded, so that the norm of all together is at most ``most``.

    As ``torch.nn.utils.clip_grad_norm_``, which refuses a mixture of kinds.
    """
    factor = (most / (total_norm(gradients) + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local(g) for g in gradients], factor)  # pyright: ignore[reportPrivateImportUsage]


def mend_gloo_average() -> None:
    """Make a reduce-scatter that asks for the mean give it: in torch 2.7 gloo gives the sum.

    FSDP2 asks so, and gradients on CPUs would be as many times too large as there are ranks. Tried, not
    looked up: where gloo is right, nothing changes.
    """
    if dist.get_backend() != "gloo" or math.isclose(_mean_of_ones(), 1.0):
        return
    original: Callable[..., Any] = dist.reduce_scatter_tensor
    dist.reduce_scatter_tensor = partial(_reduce_scatter, original)


def _mean_of_ones() -> float:
    """What a reduce-scatter makes of the mean of ones."""
    ones, mean = torch.ones(dist.get_world_size()), torch.empty(1)
    dist.reduce_scatter_tensor(mean, ones, op=dist.ReduceOp.AVG)
    return float(mean)


def _reduce_scatter(
    original: Callable[..., Any], output: Tensor, input: Tensor, op: Any = dist.ReduceOp.SUM, **rest: Any
) -> Any:
    if op != dist.ReduceOp.AVG or rest.get("async_op"):
        return original(output, input, op=op, **rest)
    original(output, input, op=dist.ReduceOp.SUM, **rest)
    output /= dist.get_world_size(rest.get("group"))
    return None
