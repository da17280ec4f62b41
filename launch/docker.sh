#!/usr/bin/env bash
# Train in Docker on this machine's GPUs: launch/docker.sh YAML [key=value ...]
#   docker build -t lcl-composer .
#   DATA=/scratch/mds launch/docker.sh yamls/pretrain/vit_b32_laion.yaml
# DATA (default: ./data) appears as data/ and as DATA_ROOT, RUNS (default: ./runs) as runs/; files keep your user id.
# IMAGE, GPUS (Docker's --gpus; "none" for a machine without) and SHM_SIZE may be set too.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -eq 0 ]; then
  echo "usage: launch/docker.sh YAML [key=value ...]" >&2
  exit 2
fi
mkdir -p "${DATA:=$PWD/data}" "${RUNS:=$PWD/runs}"

options=(--rm --init --user "$(id -u):$(id -g)")
# Docker's 64 MB of shared memory are too few for the data loaders and NCCL; pinned buffers need locked memory.
options+=(--shm-size "${SHM_SIZE:-16g}" --ulimit memlock=-1 --ulimit stack=67108864)
options+=(--volume "$(realpath "$DATA"):/workspace/data" --volume "$(realpath "$RUNS"):/workspace/runs")
options+=(--env DATA_ROOT=/workspace/data --stop-timeout 60) # seconds to finish a batch and write a checkpoint
[ "${GPUS:=all}" = none ] || options+=(--gpus "$GPUS")
[ -t 1 ] && options+=(--tty)
for name in WANDB_API_KEY WANDB_MODE MLFLOW_TRACKING_URI AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; do
  [ -z "${!name:-}" ] || options+=(--env "$name") # by name only: the value stays out of the process list
done

exec docker run "${options[@]}" "${IMAGE:-lcl-composer}" composer train.py "$@"
