#!/usr/bin/env bash
# One process per GPU (or, without a GPU, GPUS processes on the CPU).
# For several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT.
set -euo pipefail

usage="usage: $0 CONFIG GPUS [ARGUMENTS OF train.py ...]"
config=${1:?$usage}
gpus=${2:?$usage}
shift 2

tools=$(dirname "${BASH_SOURCE[0]}")
source "$tools/torchrun.sh"
run_processes "$gpus" "$tools/train.py" "$config" --launcher pytorch "$@"
