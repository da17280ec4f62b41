"""The launch scripts, run with stand-ins that print what they got."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.launch.stand_ins import LAUNCH, PRINT_ARGUMENTS, copy_scripts, environment, make_command, run

#: `lcl check --preflight` says who it is and ends with a code of the test's.
PREFLIGHT = (
    '#!/bin/bash\necho "$@; $RANK of $WORLD_SIZE, $LOCAL_RANK of $LOCAL_WORLD_SIZE"; exit "${CODE:-0}"\n'
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the launch scripts and stand-ins for `lcl` and Composer's launcher."""
    copy_scripts(tmp_path)
    make_command(tmp_path / "bin/lcl", PREFLIGHT)
    make_command(tmp_path / "bin/composer", PRINT_ARGUMENTS + 'echo "in $TMPDIR"; [ -d "$TMPDIR" ]\n')
    return tmp_path


@pytest.fixture
def slurm(place: Path) -> dict[str, str]:
    """Two nodes of four GPUs; `find` is a stand-in too, or the job would clear this machine's /dev/shm."""
    make_command(place / "bin/scontrol", "#!/bin/bash\necho node-a; echo node-b\n")
    make_command(
        place / "bin/srun", '#!/bin/bash\nshift\nfor n in 0 1; do SLURM_NODEID=$n "$@" || exit; done\n'
    )
    make_command(place / "bin/find")
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2"}
    job |= {"SLURM_SUBMIT_DIR": str(place), "SLURM_GPUS_ON_NODE": "4", "TMPDIR": str(place)}
    return job


def test_a_node_checks_every_rank_and_then_trains(place: Path) -> None:
    variables = {"GPUS": "2", "NODES": "3", "NODE_RANK": "1", "MASTER_ADDR": "node-a", "MASTER_PORT": "4242"}
    done = run(["launch/node.sh", "a.yaml", "lr=1", "name=two words"], place, WAIT="9", **variables)
    assert done.returncode == 0, done.stderr
    checked = "check --preflight --wait 9 -- a.yaml lr=1 name=two words; {} of 6, {} of 2\n"
    for rank, local_rank in ((2, 0), (3, 1)):
        log = place / f"runs/logs/preflight-r{rank}.out"
        assert log.read_text() == checked.format(rank, local_rank)
    told, table, launched, temporary = done.stdout.splitlines()
    assert told.startswith("node 1 of 3: ranks 2 to 3 of 6; rank 2 prints here, the others to runs/logs/")
    assert table == checked.format(2, 0).strip()
    assert launched.startswith(
        "composer --nproc 2 --world_size 6 --node_rank 1 --master_addr node-a --master_port 4242 "
    )
    assert (
        "--stdout runs/logs/r{rank}.out --stderr runs/logs/r{rank}.err train.py a.yaml lr=1 name=two words"
        in launched
    )
    assert not Path(temporary.removeprefix("in ")).exists()


@pytest.mark.parametrize(("found", "code"), [("1", 78), ("2", 75), ("137", 75)])
def test_a_preflight_that_fails_ends_the_node_with_a_code_of_its_own(
    place: Path, found: str, code: int
) -> None:
    done = run(["launch/node.sh", "a.yaml"], place, CODE=found)
    assert done.returncode == code
    assert "composer" not in done.stdout
    assert "composer" in run(["launch/node.sh", "a.yaml"], place, CODE=found, PREFLIGHT="0").stdout


def test_the_worst_rank_of_a_node_counts(place: Path) -> None:
    make_command(place / "bin/lcl", '#!/bin/bash\nexit "$LOCAL_RANK"\n')
    assert run(["launch/node.sh", "a.yaml"], place, GPUS="3").returncode == 75
    assert run(["launch/node.sh", "a.yaml"], place, GPUS="2").returncode == 78


def test_a_node_ends_as_its_launcher_does(place: Path) -> None:
    make_command(place / "bin/composer", "#!/bin/bash\nexit 3\n")
    assert run(["launch/node.sh", "a.yaml"], place).returncode == 3


RANK = """
import signal, sys, time
def stop(number, frame):
    time.sleep(0.5)  # the batch, and the checkpoint
    print("saved", flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, stop)
print("training", flush=True)
time.sleep(20)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_the_ranks_save_and_the_launcher_live(place: Path, number: signal.Signals) -> None:
    (place / "rank.py").write_text(RANK)
    start = f'#!/bin/bash\n"{sys.executable}" -S rank.py &\nwait $!\n'
    make_command(place / "bin/composer", start)
    output = place / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            ["launch/node.sh", "a.yaml"], cwd=place, env=environment(place), stdout=file, stderr=file
        )
    deadline = time.monotonic() + 20
    while "training" not in output.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    assert output.read_text().endswith("training\nsaved\n")


def test_docker_shares_memory_and_keeps_the_user(tmp_path: Path) -> None:
    make_command(tmp_path / "bin/docker")
    make_command(tmp_path / "bin/nvidia-smi", "#!/bin/bash\necho GPU 0; echo GPU 1\n")
    folders = {"DATA": str(tmp_path / "data"), "RUNS": str(tmp_path / "runs")}
    command = [str(LAUNCH / "docker.sh"), "a.yaml", "lr=1", "name=two words"]
    done = run(command, tmp_path, WANDB_API_KEY="secret", **folders)
    assert done.returncode == 0, done.stderr
    for option in (
        "--shm-size 16g",
        f"--user {os.getuid()}:{os.getgid()}",
        f"--volume {tmp_path / 'data'}:/workspace/data",
        "--gpus all --env GPUS=2",
        "--init",
        "--stop-timeout 300",
        "--env WANDB_API_KEY",
    ):
        assert option in done.stdout
    assert "secret" not in done.stdout
    assert done.stdout.strip().endswith("lcl-composer launch/node.sh a.yaml lr=1 name=two words")
    without = run(command, tmp_path, GPUS="none", **folders).stdout
    assert "--gpus" not in without
    assert "--env GPUS=1" in without
    assert "--gpus 3 --env GPUS=3" in run(command, tmp_path, GPUS="3", **folders).stdout


def test_containers_get_the_same_secrets_and_whom_to_notify() -> None:
    script = (LAUNCH / "docker.sh").read_text()
    names = script.partition("SECRETS=(")[2].partition(")")[0].split()
    compose = yaml.safe_load((LAUNCH / "compose.yaml").read_text())["services"]["node0"]["environment"]
    assert {"AWS_SESSION_TOKEN", "S3_ENDPOINT_URL", "LCL_NOTIFY_WEBHOOK", "LCL_NOTIFY_COMMAND"} <= {*names}
    assert sorted(names) == sorted(name for name, value in compose.items() if value is None)


def test_two_nodes_of_compose(tmp_path: Path) -> None:
    compose = yaml.safe_load((LAUNCH / "compose.yaml").read_text())
    gpus = yaml.safe_load((LAUNCH / "compose.gpus.yaml").read_text())
    assert gpus["services"].keys() == compose["services"].keys()
    for number, (name, service) in enumerate(compose["services"].items()):
        variables = service["environment"]
        assert (variables["NODE_RANK"], service["hostname"]) == (str(number), name)
        assert variables["NODES"] == str(len(compose["services"]))
        assert variables["MASTER_ADDR"] in compose["services"]
        assert variables["WANDB_API_KEY"] is None  # taken from the environment, in no file
        assert service["stop_grace_period"] == "${GRACE:-300s}"
        assert service["init"]
        assert service["shm_size"]
    copy_scripts(tmp_path)
    make_command(tmp_path / "bin/lcl", PREFLIGHT)
    make_command(tmp_path / "bin/composer")
    set_ones = {k: v for k, v in compose["services"]["node1"]["environment"].items() if v and "$" not in v}
    done = run(["launch/node.sh", "a.yaml"], tmp_path, **set_ones)
    assert "--world_size 2 --node_rank 1 --master_addr node0 --master_port 29500" in done.stdout


def test_slurm_starts_one_launcher_a_node_with_its_rank(place: Path, slurm: dict[str, str]) -> None:
    done = run(["bash", str(LAUNCH / "slurm.sbatch"), "a.yaml", "name=two words"], place, **slurm)
    assert done.returncode == 0, done.stderr
    calls = [line for line in done.stdout.splitlines() if line.startswith("composer")]
    for rank, call in enumerate(calls):
        assert f"--nproc 4 --world_size 8 --node_rank {rank} --master_addr node-a --master_port 24711" in call
        assert "--stderr runs/slurm-4711/r{rank}.err" in call
        assert call.strip().endswith("train.py a.yaml name=two words")
    assert len(calls) == 2
    assert len(list((place / "runs/slurm-4711").glob("preflight-r*.out"))) == 8


@pytest.mark.parametrize("venv", ["env", "{}/env"])
def test_slurm_takes_an_environment_by_any_path(place: Path, slurm: dict[str, str], venv: str) -> None:
    make_command(place / "env/bin/composer", '#!/bin/bash\necho "of the environment"\n')
    done = run(["bash", str(LAUNCH / "slurm.sbatch"), "a.yaml"], place, VENV=venv.format(place), **slurm)
    assert done.stdout.count("of the environment") == 2, done.stderr


def test_slurm_leaves_nothing_for_the_next_job_to_stumble_over(place: Path, slurm: dict[str, str]) -> None:
    done = run(["bash", str(LAUNCH / "slurm.sbatch"), "a.yaml"], place, **slurm)
    own = {line.removeprefix("in ") for line in done.stdout.splitlines() if line.startswith("in ")}
    assert len(own) == 2  # each node has a folder for temporary files, gone afterwards
    assert not any(Path(folder).exists() for folder in own)
    assert done.stdout.count(f"find /dev/shm -maxdepth 1 -user {os.getuid()} ") == 2


def test_slurms_warning_before_the_end_does_not_kill_the_launcher(place: Path, slurm: dict[str, str]) -> None:
    make_command(place / "bin/composer", "#!/bin/bash\nkill -USR1 $$ && echo alive\n")
    done = run(["bash", str(LAUNCH / "slurm.sbatch"), "a.yaml"], place, **slurm)
    assert done.stdout.count("alive") == 2
    assert "#SBATCH --signal=USR1@" in (LAUNCH / "slurm.sbatch").read_text()


def test_slurm_reports_a_failed_launcher(place: Path, slurm: dict[str, str]) -> None:
    make_command(place / "bin/composer", "#!/bin/bash\nexit 3\n")
    assert run(["bash", str(LAUNCH / "slurm.sbatch"), "a.yaml"], place, **slurm).returncode == 3


def test_a_container_is_well_while_its_run_writes(place: Path) -> None:
    healthy, elsewhere = [str(place / "launch/healthy.sh")], Path("/")
    (place / "runs/a").mkdir(parents=True)
    assert run(healthy, elsewhere).returncode == 1
    metrics = place / "runs/a/metrics.jsonl"
    metrics.touch()
    assert run(healthy, elsewhere).returncode == 0
    os.utime(metrics, (time.time() - 7200,) * 2)
    assert run(healthy, elsewhere).returncode == 1
    assert run(healthy, elsewhere, QUIET="180").returncode == 0
