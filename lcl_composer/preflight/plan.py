"""What the checks of a node ask about: the run, the node's place in the job, the run's sizes and shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lcl_composer.preflight.shards import Looked, look
from lcl_composer.preflight.sizes import Sizes, measure

if TYPE_CHECKING:
    from lcl_composer.config import ComposedConfig
    from lcl_composer.config.schema import RunConfig, StreamConfig
    from lcl_composer.preflight.world import World

#: Batches that a loader's worker prepares ahead: PyTorch's default of ``prefetch_factor``.
PREFETCH = 2


@dataclass
class Plan:
    """One node of a run to come.

    Attributes:
        composed: The checked configuration.
        world: The job's ranks.
        gpu: Whether it trains on GPUs.
        token: A word that rank 0 drew for this preflight: its probe files bear it.
    """

    composed: ComposedConfig
    world: World
    gpu: bool
    token: str

    @property
    def run(self) -> RunConfig:
        """The settings."""
        return self.composed.run

    @property
    def folder(self) -> Path:
        """Where everything of the run goes."""
        return Path("runs") / self.run.run_name

    def streams(self) -> Iterator[tuple[str, StreamConfig]]:
        """Yield ``data.train`` and ``data.eval``, each with its key."""
        yield "data.train", self.run.data.train
        if self.run.data.eval is not None:
            yield "data.eval", self.run.data.eval

    @cached_property
    def looked(self) -> dict[str, list[Looked]]:
        """What is seen of the shards of ``data.train`` and ``data.eval``."""
        return {key: look(key, settings) for key, settings in self.streams()}

    @cached_property
    def sizes(self) -> Sizes:
        """Bytes of model, checkpoint and batch."""
        return measure(self.run, [seen.documents for seen in self.looked["data.train"]])

    @property
    def device_batch(self) -> int:
        """Documents of a rank's batch."""
        return max(self.run.global_train_batch_size // self.world.size, 1)

    @property
    def microbatch(self) -> int:
        """Documents that a rank takes at once; 1 where that is found out while training (``auto``)."""
        asked, tokens = self.run.device_train_microbatch_size, self.run.device_train_microbatch_tokens
        if tokens is not None:
            return min(max(tokens // max(self.sizes.tokens, 1), 1), self.device_batch)
        return min(1 if asked == "auto" else asked or self.device_batch, self.device_batch)

    @property
    def resident(self) -> int:
        """Bytes of model and optimizer on a rank; FSDP cuts them over the ranks."""
        ranks = self.world.size if self.run.parallelism.fsdp is not None else 1
        return self.sizes.resident // ranks

    @property
    def loader_bytes(self) -> int:
        """Bytes of the batches that the loaders' workers of this node hold ready in shared memory."""
        workers = sum(settings.num_workers for _, settings in self.streams())
        return self.world.local_size * workers * PREFETCH * self.device_batch * self.sizes.sample
