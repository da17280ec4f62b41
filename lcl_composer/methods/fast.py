"""What a run asks for besides the method itself: compiled, recomputed and sharded blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcl_composer.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lcl_composer.config.schema import RunConfig
    from lcl_composer.methods.method import Method


def named_blocks(config: RunConfig, model: Method) -> dict[str, dict[str, list[nn.Module]]]:
    """Blocks by part, of those that ``compile`` and ``activation_checkpointing`` name.

    Raises:
        ConfigError: If a part is not in the model, or has no blocks.
    """
    from lcl_composer.models.blocks import blocks_of

    found: dict[str, dict[str, list[nn.Module]]] = {}
    for key in ("compile", "activation_checkpointing"):
        section = getattr(config, key)
        found[key] = {name: blocks_of(model.parts[name]) for name in (section.parts if section else ())}
        if empty := next((name for name, blocks in found[key].items() if not blocks), None):
            raise ConfigError(f"{key}.parts: {empty} is not made of repeated blocks; remove it")
    return found


def make_fast(config: RunConfig, model: Method, device: torch.device) -> None:
    """Compile, recompute and shard a method's blocks as the config says, before there is an optimizer.

    A unit of FSDP gathers its weights outside of what is recomputed, and that outside of what is compiled.
    With one rank nothing is sharded.

    Args:
        config: The run.
        model: On the CPU; sharded, it goes to the device.
        device: Of this rank.

    Raises:
        ConfigError: If a part has no blocks, or the model cannot be sharded.
    """
    from composer.utils import dist

    fsdp = config.parallelism.fsdp if dist.get_world_size() > 1 else None
    blocks = named_blocks(config, model)
    if fsdp is not None or config.compile is not None:
        model.image_flops()  # counted on tensors without contents, which neither compiles nor is gathered
    if fsdp is not None:
        from lcl_composer.methods.whole import stand_in_of

        model.stand_in = stand_in_of(model)
    if config.compile is not None:
        from lcl_composer.models.blocks import compile_block

        for of_part in blocks["compile"].values():
            for block in of_part:
                compile_block(block, config.compile.backend)
    if config.activation_checkpointing is not None:
        from lcl_composer.models.blocks import recompute

        for of_part in blocks["activation_checkpointing"].values():
            for block in of_part[:: config.activation_checkpointing.every]:
                recompute(block)
    if fsdp is not None:
        import torch

        from lcl_composer.models.blocks import blocks_of
        from lcl_composer.models.sharding import shard

        types = {"fp32": None, "bf16": torch.bfloat16}
        shard(
            model,
            [block for part in model.parts.values() for block in blocks_of(part)],
            device,
            fsdp.reshard_after_forward,
            types[fsdp.param_dtype],
            torch.float32 if fsdp.reduce_dtype == "fp32" else torch.bfloat16,
        )
