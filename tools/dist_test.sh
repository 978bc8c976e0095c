#!/usr/bin/env bash
# One process per GPU (or, without a GPU, GPUS processes on the CPU).
# For several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT.
set -euo pipefail

usage="usage: $0 CONFIG CHECKPOINT GPUS [ARGUMENTS OF test.py ...]"
config=${1:?$usage}
checkpoint=${2:?$usage}
gpus=${3:?$usage}
shift 3

tools=$(dirname "${BASH_SOURCE[0]}")
source "$tools/torchrun.sh"
run_processes "$gpus" "$tools/test.py" "$config" "$checkpoint" \
  --launcher pytorch "$@"
