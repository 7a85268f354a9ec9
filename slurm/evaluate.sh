#!/bin/bash
# The quick suite on a run's teacher, on one GPU.
# Run:      bash slurm/evaluate.sh STUDIES RUN RESULTS [options of a submission]
# Hardware: 1 GPU; --ngpus 0 for none        Again: what is embedded already is not embedded again
set -euo pipefail
studies=${1:?STUDIES is missing} run=${2:?RUN is missing} results=${3:?RESULTS is missing}
shift 3
checkout=$(dirname "$(realpath "$0")")/..

vetdino submit --ngpus 1 --timeout 240 "$@" -- \
    evaluate "$run" --data "$studies" --suite "$checkout/configs/evaluation/quick.yaml" --out "$results"
