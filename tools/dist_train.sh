#!/usr/bin/env bash
# One process per GPU (or, without a GPU, GPUS processes on the CPU).
# For several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT.
set -euo pipefail

usage="usage: $0 CONFIG GPUS [ARGUMENTS OF train.py ...]"
config=${1:?$usage}
gpus=${2:?$usage}
shift 2
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
  "$(dirname "${BASH_SOURCE[0]}")/train.py" "$config" \
  --launcher pytorch "$@"
