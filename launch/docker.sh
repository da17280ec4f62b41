#!/usr/bin/env bash
# Train in Docker on this machine's GPUs: launch/docker.sh YAML [key=value ...]
#   docker build -t lcl-composer .
#   DATA=/scratch/mds launch/docker.sh yamls/pretrain/vit_b32_laion.yaml
# `docker stop` lets it write a checkpoint. Logs: rank 0 prints, the others write to RUNS/logs.
set -euo pipefail
: "${DATA:=$PWD/data}" "${RUNS:=$PWD/runs}" # appear as data/ (and DATA_ROOT) and runs/; files keep your user id
: "${IMAGE:=lcl-composer}" "${NAME:=lcl}"
: "${GPUS:=all}"      # all, a number, or none
: "${SHM_SIZE:=16g}"  # Docker's 64 MB are too few for the data loaders and NCCL
: "${GRACE:=300}"     # seconds to finish a batch and write a checkpoint
SECRETS=(WANDB_API_KEY WANDB_MODE WANDB_BASE_URL MLFLOW_TRACKING_URI MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
  MLFLOW_TRACKING_TOKEN AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN S3_ENDPOINT_URL HF_TOKEN
  LCL_NOTIFY_COMMAND LCL_NOTIFY_WEBHOOK)

if [ $# -eq 0 ]; then
  echo "usage: launch/docker.sh YAML [key=value ...]" >&2
  exit 2
fi
mkdir -p "$DATA" "$RUNS"

options=(--rm --init --name "$NAME" --user "$(id -u):$(id -g)")
options+=(--shm-size "$SHM_SIZE" --ulimit memlock=-1 --ulimit stack=67108864 --ulimit nofile=65536)
options+=(--volume "$(realpath "$DATA"):/workspace/data" --volume "$(realpath "$RUNS"):/workspace/runs")
options+=(--env DATA_ROOT=/workspace/data --stop-timeout "$GRACE")
case $GPUS in
  none) ranks=1 ;;
  all) ranks=$(nvidia-smi --list-gpus | wc -l) && options+=(--gpus all) ;;
  *) ranks=$GPUS && options+=(--gpus "$GPUS") ;;
esac
options+=(--env "GPUS=$ranks")
[ -z "${PREFLIGHT:-}" ] || options+=(--env PREFLIGHT)
[ -t 1 ] && options+=(--tty)
for name in "${SECRETS[@]}"; do
  [ -z "${!name:-}" ] || options+=(--env "$name") # by name only: the value stays out of the process list
done

exec docker run "${options[@]}" "$IMAGE" launch/node.sh "$@"
