from __future__ import annotations

import pytest

from lcl_composer.errors import ConfigError
from lcl_composer.preflight.world import World

COMPOSER = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "NODE_RANK": "1",
    "MASTER_ADDR": "node-a",
    "MASTER_PORT": "29500",
}


def test_composers_launcher_and_torchrun() -> None:
    world = World.detect(COMPOSER)
    assert (world.rank, world.size, world.local_rank, world.node, world.nodes) == (5, 8, 1, 1, 2)
    assert (world.address, world.port, world.agent, world.leaders) == ("node-a", 29500, False, [0, 4])
    torchrun = {k: v for k, v in COMPOSER.items() if k != "NODE_RANK"}
    torchrun |= {"GROUP_RANK": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert World.detect(torchrun).node == 1
    assert World.detect(torchrun).agent


def test_without_a_launcher_it_is_alone() -> None:
    assert (World.detect({}).size, World.detect({}).leaders) == (1, [0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"MASTER_ADDR": "localhost"}, "MASTER_ADDR is localhost and the job has 2 nodes"),
        ({"MASTER_ADDR": "127.0.1.1"}, "each would call itself"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": None}, "MASTER_PORT is not"),
        ({"RANK": "8"}, "do not fit"),
        ({"LOCAL_WORLD_SIZE": "3"}, "do not fit"),
        ({"WORLD_SIZE": "eight"}, "'eight', which is no number"),
    ],
)
def test_variables_that_cannot_be(changes: dict[str, str | None], said: str) -> None:
    environment = {k: v for k, v in (COMPOSER | changes).items() if v is not None}
    with pytest.raises(ConfigError, match=said):
        World.detect(environment)


def test_tasks_of_srun_without_a_launcher_are_refused() -> None:
    with pytest.raises(ConfigError, match="each would train by itself"):
        World.detect({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"})
    assert World.detect({"SLURM_STEP_NUM_TASKS": "1"}).size == 1
    with pytest.raises(ConfigError, match="SLURM_STEP_NUM_TASKS is 'x', which is no number"):
        World.detect({"SLURM_STEP_NUM_TASKS": "x"})


def test_training_takes_stand_ins_for_nodes_on_one_machine_and_nothing_else() -> None:
    assert World.given({**COMPOSER, "MASTER_ADDR": "127.0.0.1"}).nodes == 2
    for wrong in ({"RANK": "8"}, {"LOCAL_WORLD_SIZE": "0"}, {"NODE_RANK": "x"}, {"MASTER_ADDR": ""}):
        with pytest.raises(ConfigError):
            World.given(COMPOSER | wrong)
