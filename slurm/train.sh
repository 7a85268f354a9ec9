#!/bin/bash
# Multi-view pre-training of ViT-S/14. Preempted or out of time, the job goes back into the queue and goes on exactly.
# Run:      bash slurm/train.sh STUDIES RUN [options of a submission]
# Hardware: nodes and GPUs of the site file, or of the options        Time, result: see the configuration's header
# Again:    the same command goes on from the newest checkpoint.
set -euo pipefail
studies=${1:?STUDIES is missing} run=${2:?RUN is missing}
shift 2
checkout=$(dirname "$(realpath "$0")")/..

# key=value pairs come after all options
python "$checkout/dinov2/run/train/train.py" "$@" \
    --config-file "$checkout/configs/pretrain/vits14_vet.yaml" --output-dir "$run" \
    "train.dataset_path=VetStudies:root=$(realpath "$studies")"
