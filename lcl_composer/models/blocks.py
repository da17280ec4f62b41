"""The repeated blocks of a network: what is sharded, compiled and recomputed one at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

#: Graphs of one kind of block, beyond which torch warns and compiles no more; its own limit is 8. There are
#: up to six, for one or several images, with and without gradients, and while evaluating; of blocks that
#: differ, as by their rate of stochastic depth, each has its own.
_MOST_GRAPHS = 256


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks of a network, from the input to the output; empty where it has none.

    They are the members of each list (ModuleList, Sequential) of modules of one class that are made of
    others, such as transformers' layers and timm's blocks and stages; the outermost, where lists lie in
    lists.
    """
    if _is_stack(network):
        return list(network.children())
    return [block for child in network.children() for block in blocks_of(child)]


def _is_stack(module: nn.Module) -> bool:
    """Whether a module is a list of blocks."""
    members = list(module.children())
    return (
        isinstance(module, nn.ModuleList | nn.Sequential)
        and bool(members)
        and len({type(member) for member in members}) == 1
        and all(any(True for _ in member.children()) for member in members)
        and any(True for _ in module.parameters())
    )


def recompute(block: nn.Module) -> None:
    """Keep only a block's inputs in a training forward and run it again in the backward.

    Activation checkpointing (Chen et al., arXiv 1604.06174), with the same dropout. Hooks on the block run
    once, outside; names of weights stay.
    """
    block.forward = partial(_recomputed, block, block.forward)


def _recomputed(block: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def compile_block(block: nn.Module, backend: str) -> None:
    """Compile a block's forward for any number of tokens and images; hooks on it stay outside.

    Blocks of one class share what is compiled, since their weights are inputs of it. Lengths of documents are
    not seen: packed attention runs as it is, between the compiled pieces (``torch.compiler.disable``).
    """
    torch._dynamo.config.optimize_ddp = False  # would cut graphs at DDP's buckets, which hold several blocks
    torch._dynamo.config.recompile_limit = _MOST_GRAPHS
    block.forward = torch.compile(block.forward, dynamic=True, backend=backend)
