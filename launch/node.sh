#!/usr/bin/env bash
# One node of a job: preflight, then one launcher with a rank a GPU. Every recipe of this folder comes here.
#   launch/node.sh YAML [key=value ...]
# GPUS ranks here (default 1), NODES of the job (1), NODE_RANK of this one (0), MASTER_ADDR and MASTER_PORT where its
# rank 0 listens; LOGS for one file a rank (runs/logs); WAIT seconds for nodes that start later (600); PREFLIGHT=0
# trains at once. Ends as training does; with 78 (EX_CONFIG) if the preflight found what only a person can mend,
# with 75 (EX_TEMPFAIL) if nodes were missing.
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "usage: launch/node.sh YAML [key=value ...]" >&2
  exit 2
fi
: "${GPUS:=1}" "${NODES:=1}" "${NODE_RANK:=0}" "${MASTER_ADDR:=127.0.0.1}" "${MASTER_PORT:=29500}"
: "${LOGS:=runs/logs}" "${WAIT:=600}" "${PREFLIGHT:=1}"
ranks=$((GPUS * NODES)) first=$((GPUS * NODE_RANK))
mkdir -p "$LOGS"
echo "node $NODE_RANK of $NODES: ranks $first to $((first + GPUS - 1)) of $ranks; rank $first prints here, the others to" \
  "$LOGS/r{rank}.out and .err"

# A killed job leaves locks of the data stream in TMPDIR, and the next one would stumble over them.
TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/lcl-XXXXXX")
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
trap 'exit 143' TERM USR1 # nothing to save yet; a shell that is process 1 would not hear them without this

preflight() { # on every rank, as the launcher would start it; the worst exit code of all
  local rank local_rank code worst=0 started=()
  for ((local_rank = 0; local_rank < GPUS; local_rank++)); do
    rank=$((first + local_rank))
    RANK=$rank WORLD_SIZE=$ranks LOCAL_RANK=$local_rank LOCAL_WORLD_SIZE=$GPUS NODE_RANK=$NODE_RANK \
      MASTER_ADDR=$MASTER_ADDR MASTER_PORT=$MASTER_PORT \
      lcl check --preflight --wait "$WAIT" -- "$@" >"$LOGS/preflight-r$rank.out" 2>&1 &
    started+=($!)
  done
  for child in "${started[@]}"; do
    wait "$child" && code=0 || code=$?
    [ "$code" -le "$worst" ] || worst=$code
  done
  cat "$LOGS/preflight-r$first.out"
  return "$worst"
}

if [ "$PREFLIGHT" != 0 ]; then
  preflight "$@" && code=0 || code=$?
  case $code in
    0) ;;
    1) exit 78 ;;
    *) exit 75 ;;
  esac
fi

# The launcher would die of a signal and leave its ranks to be killed unsaved with the container. It ignores them;
# the ranks, to which we hand them on, finish their batch, write a checkpoint and end, and the launcher with them.
launch() {
  trap '' TERM USR1
  exec composer --nproc "$GPUS" --world_size "$ranks" --node_rank "$NODE_RANK" \
    --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \
    --stdout "$LOGS/r{rank}.out" --stderr "$LOGS/r{rank}.err" train.py "$@"
}
launch "$@" &
launcher=$!
# shellcheck disable=SC2329 # the traps call it
hand_on() {
  local children=()
  read -r -a children <"/proc/$launcher/task/$launcher/children" || true
  [ ${#children[@]} -eq 0 ] || kill -s "$1" "${children[@]}" 2>/dev/null || true
}
trap 'hand_on TERM' TERM
trap 'hand_on USR1' USR1
while wait "$launcher" && code=0 || code=$?; kill -0 "$launcher" 2>/dev/null; do :; done
exit "$code"
