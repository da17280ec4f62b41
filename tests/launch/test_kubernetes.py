"""The manifests: against Kubernetes' own schemas, and what they start against stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.launch.stand_ins import LAUNCH, copy_scripts, make_command, run

Manifest = dict[str, Any]
#: Fields of a PyTorchJob (kubeflow/training-operator, CRD kubeflow.org_pytorchjobs.yaml, v1).
_SPEC = {"runPolicy", "pytorchReplicaSpecs", "elasticPolicy", "nprocPerNode"}
_RUN_POLICY = {"activeDeadlineSeconds", "backoffLimit", "cleanPodPolicy", "schedulingPolicy", "suspend"}
_RUN_POLICY |= {"ttlSecondsAfterFinished", "managedBy"}


def manifests(name: str) -> dict[str, Manifest]:
    """Kind to manifest."""
    return {each["kind"]: each for each in yaml.safe_load_all((LAUNCH / name).read_text())}


def pods(name: str) -> list[Manifest]:
    """The pods' specs of a manifest's job."""
    found = manifests(name)
    if "Job" in found:
        return [found["Job"]["spec"]["template"]["spec"]]
    replicas = found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"].values()
    return [each["template"]["spec"] for each in replicas]


FILES = ["kubernetes-job.yaml", "kubernetes-pytorchjob.yaml"]


@pytest.mark.parametrize("name", FILES)
def test_manifests_follow_the_schemas(name: str) -> None:
    for kind, manifest in manifests(name).items():
        if kind != "PyTorchJob":
            kubernetes_validate.validate(manifest, "1.37", strict=True)
    for pod in pods(name):  # a PyTorchJob's pods too: its own schema is not Kubernetes'
        wrapped = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod}
        kubernetes_validate.validate(wrapped, "1.37", strict=True)
    wrong = {**manifests(name)["ConfigMap"], "dta": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_a_pytorchjob_has_the_operators_fields() -> None:
    job = manifests("kubernetes-pytorchjob.yaml")["PyTorchJob"]
    assert (job["apiVersion"], job["spec"].keys() - _SPEC) == ("kubeflow.org/v1", set())
    assert job["spec"]["runPolicy"].keys() - _RUN_POLICY == set()
    assert job["spec"]["runPolicy"]["cleanPodPolicy"] in ("Running", "All", "None")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert replicas.keys() == {"Master", "Worker"}
    for each in replicas.values():
        assert each.keys() == {"replicas", "restartPolicy", "template"}
        assert each["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        assert [c["name"] for c in each["template"]["spec"]["containers"]] == ["pytorch"]


@pytest.mark.parametrize("name", FILES)
def test_numbers_agree(name: str) -> None:
    found = manifests(name)
    values = found["ConfigMap"]["data"]
    if "Job" in found:
        job = found["Job"]["spec"]
        assert job["completions"] == job["parallelism"] == int(values["NODES"])
        assert job["template"]["spec"]["subdomain"] == found["Service"]["metadata"]["name"]
        assert (
            values["MASTER_ADDR"]
            == f"{found['Job']['metadata']['name']}-0.{found['Service']['metadata']['name']}"
        )
    else:
        replicas = found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]
        assert sum(each["replicas"] for each in replicas.values()) == int(values["NODES"])
    for pod in pods(name):
        (container,) = pod["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == int(values["GPUS"])
        assert container["envFrom"][0]["configMapRef"]["name"] == found["ConfigMap"]["metadata"]["name"]


@pytest.mark.parametrize("name", FILES)
def test_pods_save_on_their_end_and_share_memory(name: str) -> None:
    for pod in pods(name):
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) == set(volumes)
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert pod["terminationGracePeriodSeconds"] >= 300
        assert pod["securityContext"]["runAsNonRoot"]
        secrets = [each["secretRef"] for each in container["envFrom"] if "secretRef" in each]
        assert secrets == [{"name": "lcl-secrets", "optional": True}]
        assert "env" not in container
        # Kubernetes runs a probe's command in /, whatever the container's working directory.
        assert container["livenessProbe"]["exec"]["command"] == [
            f"{container['workingDir']}/launch/healthy.sh"
        ]


@pytest.mark.parametrize(
    ("name", "number"),
    [("kubernetes-job.yaml", {"JOB_COMPLETION_INDEX": "1"}), ("kubernetes-pytorchjob.yaml", {"RANK": "1"})],
)
def test_pods_meet_at_the_first(tmp_path: Path, name: str, number: dict[str, str]) -> None:
    copy_scripts(tmp_path)
    make_command(tmp_path / "bin/lcl", '#!/bin/bash\necho "rank $RANK of $WORLD_SIZE"\n')
    make_command(tmp_path / "bin/composer")
    values = manifests(name)["ConfigMap"]["data"]
    operator = {"MASTER_ADDR": "lcl-master-0", "MASTER_PORT": "23456", "WORLD_SIZE": "2", **number}
    variables = operator | {**values, "OVERRIDES": "lr=1 seed=3"}
    (container,) = pods(name)[-1]["containers"]
    done = run(container["command"] + container["args"], tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    at = variables["MASTER_ADDR"], variables["MASTER_PORT"]
    assert (
        f"--nproc 8 --world_size 16 --node_rank 1 --master_addr {at[0]} --master_port {at[1]} " in done.stdout
    )
    assert done.stdout.strip().endswith("train.py yamls/pretrain/vit_b32_laion.yaml lr=1 seed=3")
    assert "rank 8 of 16" in done.stdout
    assert (tmp_path / "runs/kubernetes/preflight-r15.out").read_text() == "rank 15 of 16\n"
