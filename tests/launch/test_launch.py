"""The launch scripts, run with stand-ins for docker, Slurm and the launcher that print what they got."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
PRINT_ARGUMENTS = '#!/bin/bash\nprintf "%s " "$(basename "$0")" "$@"; echo\n'


def make_command(path: Path, text: str = PRINT_ARGUMENTS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"} | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=30)


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Two nodes of four GPUs; `find` is a stand-in too, or the job would clear this machine's /dev/shm."""
    make_command(tmp_path / "bin/scontrol", "#!/bin/bash\necho node-a; echo node-b\n")
    make_command(
        tmp_path / "bin/srun", '#!/bin/bash\nshift\nfor n in 0 1; do SLURM_NODEID=$n "$@" || exit; done\n'
    )
    make_command(tmp_path / "bin/find")
    make_command(tmp_path / ".venv/bin/composer", PRINT_ARGUMENTS + 'echo "in $TMPDIR"; [ -d "$TMPDIR" ]\n')
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2"}
    return job | {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_GPUS_ON_NODE": "4", "TMPDIR": str(tmp_path)}


@pytest.fixture
def kubernetes() -> tuple[dict, dict]:
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    return service, job


def test_docker_shares_memory_and_keeps_the_user(tmp_path: Path) -> None:
    make_command(tmp_path / "bin/docker")
    folders = {"DATA": str(tmp_path / "data"), "RUNS": str(tmp_path / "runs")}
    done = run(
        [str(LAUNCH / "docker.sh"), "a.yaml", "lr=1", "name=two words"],
        tmp_path,
        WANDB_API_KEY="secret",
        **folders,
    )
    assert done.returncode == 0, done.stderr
    assert "--shm-size 16g" in done.stdout
    assert f"--user {os.getuid()}:{os.getgid()}" in done.stdout
    assert f"--volume {tmp_path / 'data'}:/workspace/data" in done.stdout
    assert "--gpus all" in done.stdout
    assert "--env WANDB_API_KEY" in done.stdout
    assert "secret" not in done.stdout
    assert done.stdout.strip().endswith("lcl-composer composer train.py a.yaml lr=1 name=two words")
    assert "--gpus" not in run([str(LAUNCH / "docker.sh"), "a.yaml"], tmp_path, GPUS="none", **folders).stdout


def test_slurm_starts_one_launcher_a_node_with_its_rank(tmp_path: Path, slurm: dict[str, str]) -> None:
    done = run(["bash", str(LAUNCH / "slurm.sbatch"), "a.yaml", "name=two words"], tmp_path, **slurm)
    assert done.returncode == 0, done.stderr
    calls = [line for line in done.stdout.splitlines() if line.startswith("composer")]
    for rank, call in enumerate(calls):
        assert f"--nproc 4 --world_size 8 --node_rank {rank} --master_addr node-a --master_port 24711" in call
        assert "--stderr runs/slurm-4711/r{rank}.err" in call
        assert call.strip().endswith("train.py a.yaml name=two words")
    assert len(calls) == 2
    assert (tmp_path / "runs/slurm-4711").is_dir()  # the launcher does not make it


def test_slurm_leaves_nothing_for_the_next_job_to_stumble_over(tmp_path: Path, slurm: dict[str, str]) -> None:
    done = run(["bash", str(LAUNCH / "slurm.sbatch"), "a.yaml"], tmp_path, **slurm)
    own = {line.removeprefix("in ") for line in done.stdout.splitlines() if line.startswith("in ")}
    assert len(own) == 2  # each node has a folder for temporary files, gone afterwards
    assert not any(Path(folder).exists() for folder in own)
    assert done.stdout.count(f"find /dev/shm -maxdepth 1 -user {os.getuid()} ") == 2


def test_slurms_warning_before_the_end_does_not_kill_the_launcher(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    make_command(tmp_path / ".venv/bin/composer", "#!/bin/bash\nkill -USR1 $$ && echo alive\n")
    done = run(["bash", str(LAUNCH / "slurm.sbatch"), "a.yaml"], tmp_path, **slurm)
    assert done.stdout.count("alive") == 2
    assert "#SBATCH --signal=USR1@" in (LAUNCH / "slurm.sbatch").read_text()


def test_slurm_reports_a_failed_launcher(tmp_path: Path, slurm: dict[str, str]) -> None:
    make_command(tmp_path / ".venv/bin/composer", "#!/bin/bash\nexit 3\n")
    assert run(["bash", str(LAUNCH / "slurm.sbatch"), "a.yaml"], tmp_path, **slurm).returncode == 3


def test_kubernetes_pods_agree_on_size_and_meeting_point(
    tmp_path: Path, kubernetes: tuple[dict, dict]
) -> None:
    service, job = kubernetes
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(variables["NODES"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(variables["GPUS"])

    make_command(tmp_path / "bin/composer")
    done = run(container["command"], tmp_path, JOB_COMPLETION_INDEX="1", **variables)
    assert done.returncode == 0, done.stderr
    pod_0 = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert f"--nproc 8 --world_size 16 --node_rank 1 --master_addr {pod_0} " in done.stdout
    assert "--stdout runs/kubernetes/r{rank}.out " in done.stdout
    assert (tmp_path / "runs/kubernetes").is_dir()
    assert pod["subdomain"] == service["metadata"]["name"]


def test_kubernetes_mounts_exist_and_memory_is_shared(kubernetes: tuple[dict, dict]) -> None:
    pod = kubernetes[1]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
