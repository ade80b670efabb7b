#!/usr/bin/env bash
# What only a GPU can show, in under ten minutes on one: the ratios of the table there, numbers and
# verdicts beside those of a CPU, numbers beside a step of a diffusion model, one purification and
# one data-free evaluation.
#
#     BENCH_REAL_DATA=/path/with/data/and/models benchmarks/gpu.sh [cuda] [gpu.json]
#
# `benchmarks/gpu.sh cpu` goes the same way with tiny sizes, to see that it runs.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:-cuda}
out=${2:-gpu.json}
tiny=()
if [ "$device" = cpu ]; then tiny=(--tiny); fi
python -m benchmarks.gpu --device "$device" --out "$out" ${tiny[@]+"${tiny[@]}"}
