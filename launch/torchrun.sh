#!/usr/bin/env bash
# One run on the GPUs of one or several machines, by torchrun.
#
#   One machine:        launch/torchrun.sh run.yaml
#   Several machines:   the same two lines on each of them, with the same HEAD:
#                       export NODES=4 HEAD=gpu-a01:29400
#                       launch/torchrun.sh run.yaml
#
# Words after the run file override it: launch/torchrun.sh run.yaml --training.max_steps 2000
# training.output_dir must be on a disk that all machines see.
set -euo pipefail

NODES=${NODES:-1}         # machines
NPROC=${NPROC:-gpu}       # processes on each machine: `gpu` = one for each GPU, or a number
HEAD=${HEAD:-}            # host:port of one of the machines, where they meet
RUN_ID=${RUN_ID:-controlllm}  # another one for each run that meets at the same HEAD
RESTARTS=${RESTARTS:-3}   # starts again after a lost process; the run goes on from its last checkpoint

if [[ $# -eq 0 ]]; then
  echo "usage: [NODES=n HEAD=host:port] $0 run.yaml [options]" >&2
  exit 2
fi
if [[ $NODES -eq 1 ]]; then
  meeting=(--standalone)
elif [[ -n $HEAD ]]; then
  meeting=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "$RUN_ID")
else
  echo "$0: NODES=$NODES machines need HEAD=host:port, where they meet" >&2
  exit 2
fi

# After SIGTERM the step is finished and saved; torchrun would kill it after 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
# No file of the working folder is taken for a module.
export PYTHONSAFEPATH=1

exec torchrun "${meeting[@]}" --nproc-per-node "$NPROC" --max-restarts "$RESTARTS" \
  --module controlllm.cli train "$@"
