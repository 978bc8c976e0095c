#!/usr/bin/env bash
# One process per GPU (or, without a GPU, GPUS processes on the CPU).
# For several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT.
set -euo pipefail

usage="usage: $0 CONFIG CHECKPOINT GPUS [ARGUMENTS OF test.py ...]"
config=${1:?$usage}
checkpoint=${2:?$usage}
gpus=${3:?$usage}
shift 3
if [[ ! $gpus =~ ^[1-9][0-9]*$ ]]; then
  echo "GPUS is '$gpus', and not a number from 1 up; $usage" >&2
  exit 2
fi

exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" \
  --node_rank="${NODE_RANK:-0}" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" \
  --master_port="${PORT:-29500}" \
  --nproc_per_node="$gpus" \
  "$(dirname "${BASH_SOURCE[0]}")/test.py" "$config" "$checkpoint" \
  --launcher pytorch "$@"
