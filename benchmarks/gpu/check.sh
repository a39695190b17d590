#!/usr/bin/env bash
# The checks for a machine with a GPU, from a source checkout, without installing anything:
#   benchmarks/gpu/check.sh [--output DIR] [--size 1B] [--seconds 480] [--parts NAME ...]
#   benchmarks/gpu/check.sh --dry      # everything, tiny, on a CPU
# What each part does: docs/results/gpu.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD/src:$PWD" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" -m benchmarks.gpu.check "$@"
