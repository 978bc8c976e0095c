#!/usr/bin/env bash
# Trains on a SLURM cluster: torchrun on each machine, one process per GPU.
# From the environment: GPUS in all (8), GPUS_PER_NODE (8), CPUS_PER_TASK for
# each process (5), SRUN_ARGS for further arguments of srun, and PORT (20000
# and the last four digits of the job's number).
set -euo pipefail

usage="usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [ARGUMENTS OF train.py ...]"
partition=${1:?$usage}
job_name=${2:?$usage}
config=${3:?$usage}
work_dir=${4:?$usage}
shift 4

tools=$(dirname "${BASH_SOURCE[0]}")
source "$tools/torchrun.sh"

gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
cpus=${CPUS_PER_TASK:-5}
for name in gpus per_node cpus; do
  if [[ ! ${!name} =~ ^[1-9][0-9]*$ ]]; then
    refuse "GPUS, GPUS_PER_NODE and CPUS_PER_TASK must be positive integers," \
      "and one is '${!name}'; $usage"
  fi
done
if ((gpus < per_node)); then
  per_node=$gpus
fi
if ((gpus % per_node)); then
  refuse "GPUS=$gpus does not fill machines of GPUS_PER_NODE=$per_node"
fi
if ! command -v srun >/dev/null; then
  refuse "there is no srun here; without SLURM use $tools/dist_train.sh"
fi
nodes=$((gpus / per_node))

# Runs on each machine. The machines are those of the step, since a job may
# hold more.
on_node='
set -euo pipefail
machines=${SLURM_STEP_NODELIST:-$SLURM_JOB_NODELIST}
read -r MASTER_ADDR < <(scontrol show hostnames "$machines")
export MASTER_ADDR
export NODE_RANK=$SLURM_NODEID
export PORT=${PORT:-$((20000 + SLURM_JOB_ID % 10000))}
exec bash "$@"
'
# SRUN_ARGS is a list of words, so it goes without quotes.
NNODES=$nodes exec srun \
  --partition="$partition" \
  --job-name="$job_name" \
  --nodes="$nodes" \
  --ntasks="$nodes" \
  --ntasks-per-node=1 \
  --gres="gpu:$per_node" \
  --cpus-per-task=$((cpus * per_node)) \
  --kill-on-bad-exit=1 \
  ${SRUN_ARGS:-} \
  bash -c "$on_node" "$0" "$tools/dist_train.sh" "$config" "$per_node" \
  --work-dir "$work_dir" "$@"
