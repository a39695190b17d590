#!/usr/bin/env bash
# Train every method on the data of one run file, each in a folder of its own, and print one table.
#
#   recipes/compare-methods.sh FOLDER [CONFIG [REPLAY [options of controlllm train for all]]]
#
# REPLAY is a YAML file that is laid over CONFIG for method replay (data.replay, data.replay_share).
# Methods differ in the learning rate that suits them: RATES names one for each, or try several
# with --training.learning_rate for all. What is done already is not trained again.
set -euo pipefail

folder=${1:?the folder to write to}
config=${2:-recipes/compare-methods.yaml}
replay=${3:-recipes/compare-methods-replay.yaml}
shift $(($# < 3 ? $# : 3))
RATES=${RATES:-control=3e-3 full=1e-3 lora=3e-3 freeze=3e-3 stack=3e-3 replay=1e-3 kl=1e-3}

for entry in $RATES; do
  method=${entry%%=*}
  over=(--method "$method")
  if [ "$method" = replay ]; then over=(--config "$replay"); fi
  controlllm train --config "$config" "${over[@]}" --training.learning_rate "${entry#*=}" \
    --training.output_dir "$folder/$method" "$@"
done
controlllm compare "$folder"
