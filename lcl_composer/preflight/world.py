"""Which process of a job this is, by the environment that a launcher gives it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from lcl_composer.errors import ConfigError

_LOOPBACK = ("localhost", "127.", "::1")


@dataclass(frozen=True)
class World:
    """This process among those of the job.

    Attributes:
        rank: Its number, and ``size`` the number of all.
        size: Processes of the job.
        local_rank: Its number on its node.
        local_size: Processes of its node.
        node: Its node's number.
        address: ``MASTER_ADDR``, where rank 0 listens.
        port: ``MASTER_PORT``.
        agent: Something else than rank 0 listens there already (torchrun's agent).
        host: Name of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    agent: bool = False
    host: str = field(default_factory=socket.gethostname)

    @property
    def nodes(self) -> int:
        """Nodes of the job."""
        return self.size // self.local_size

    @property
    def leaders(self) -> list[int]:
        """The first rank of each node; they check what a node has once."""
        return list(range(0, self.size, self.local_size))

    @staticmethod
    def detect(environment: Mapping[str, str] = os.environ) -> World:
        """Read what Composer's launcher or torchrun has set; without it this process is alone.

        Raises:
            ConfigError: If a variable is missing, no number, or at odds with another one.
        """
        world = World.given(environment)
        if world.nodes > 1 and world.address.startswith(_LOOPBACK):
            raise ConfigError(
                f"MASTER_ADDR is {world.address} and the job has {world.nodes} nodes: each would call "
                "itself; set it to the name of the host of rank 0"
            )
        return world

    @staticmethod
    def given(environment: Mapping[str, str] = os.environ) -> World:
        """The same, wherever rank 0 may be: what training asks for, also where nodes are stand-ins.

        Raises:
            ConfigError: If a variable is missing, no number, or at odds with another one.
        """
        if "RANK" not in environment:
            return _alone(environment)
        size, rank = _number(environment, "WORLD_SIZE"), _number(environment, "RANK")
        local_size = _number(environment, "LOCAL_WORLD_SIZE", "1")
        if local_size < 1 or size % local_size or not rank < size:
            raise ConfigError(
                f"RANK {rank}, WORLD_SIZE {size} and LOCAL_WORLD_SIZE {local_size} do not fit each other; "
                "the launcher sets them, each node the same number of ranks"
            )
        node = environment.get("NODE_RANK", environment.get("GROUP_RANK", str(rank // local_size)))
        address = environment.get("MASTER_ADDR", "127.0.0.1" if size == 1 else "")
        if not address:
            raise ConfigError("MASTER_ADDR is not set; give the launcher --master_addr, the host of rank 0")
        return World(
            rank=rank,
            size=size,
            local_rank=_number(environment, "LOCAL_RANK", "0"),
            local_size=local_size,
            node=_number({"NODE_RANK": node}, "NODE_RANK"),
            address=address,
            port=_number(environment, "MASTER_PORT", "0" if size == 1 else None),
            agent=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )


def _alone(environment: Mapping[str, str]) -> World:
    if _number(environment, "SLURM_STEP_NUM_TASKS", "1") > 1:
        raise ConfigError(
            f"srun started {environment['SLURM_STEP_NUM_TASKS']} tasks and RANK is not set: each would train "
            "by itself; start one launcher a node, as launch/slurm.sbatch does"
        )
    return World()


def _number(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environment.get(name, default)
    if text is None:
        raise ConfigError(f"RANK is set and {name} is not; start it by a launcher, or without RANK")
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r}, which is no number; the launcher sets it")
    return int(text)
