#!/usr/bin/env bash
# Learn three tasks one after the other, and show what became of each:
#
#   recipes/sequence/run.sh [FOLDER [options of controlllm train for all]]
#
# What is done already is not trained again.
set -euo pipefail

recipes=$(dirname "$0")
folder=${1:-runs/sequence}
shift $(($# < 1 ? $# : 1))

controlllm train --config "$recipes/a.yaml" --training.output_dir "$folder/a" "$@"
controlllm train --config "$recipes/b.yaml" --continue_from "$folder/a" \
  --training.output_dir "$folder/b" "$@"
controlllm train --config "$recipes/c.yaml" --continue_from "$folder/b" \
  --training.output_dir "$folder/c" "$@"
controlllm sequence "$folder/a" "$folder/b" "$folder/c"
