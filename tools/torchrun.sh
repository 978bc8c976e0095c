# shellcheck shell=bash
# Sourced by the scripts that start torchrun, which set $usage and $tools.

refuse() {
  echo "$*" >&2
  exit 2
}

# torchrun's own message about a port in use names neither it nor a way out.
check_port() {
  if [[ ! $1 =~ ^[1-9][0-9]*$ ]] || (($1 > 65535)); then
    refuse "PORT is '$1', and not a number from 1 to 65535"
  fi
  if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then
    refuse "port $1 is in use, perhaps by another run on this machine;" \
      "choose another: PORT=$(($1 + 1)) bash $0 ..."
  fi
}

# run_processes GPUS SCRIPT [ARGUMENTS OF THE SCRIPT ...]
run_processes() {
  local gpus=$1 nodes=${NNODES:-1} rank=${NODE_RANK:-0} port=${PORT:-29500}
  shift
  if [[ ! $gpus =~ ^[1-9][0-9]*$ ]]; then
    refuse "GPUS is '$gpus', and must be a positive integer; $usage"
  fi
  if [[ $nodes != 1 && -z ${MASTER_ADDR:-} ]]; then
    refuse "NNODES is $nodes: set MASTER_ADDR to the address of machine 0"
  fi
  if [[ $rank == 0 ]]; then
    check_port "$port"
  fi
  exec "${PYTHON:-python}" "$tools/torchrun.py" \
    --nnodes="$nodes" \
    --node_rank="$rank" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="$port" \
    --nproc_per_node="$gpus" \
    "$@"
}
