#!/bin/bash
# An ablation: a grid of trainings and evaluations as one array, at most eight at a time, and a job that writes the table.
# Run:      bash slurm/ablate.sh PLAN STUDIES OUT [options of a submission]         PLAN: a file of configs/ablation
# Hardware: 4 GPUs a cell unless the options say otherwise        Time, disk: printed before anything starts
# Again:    the same command starts what is not done; --retry also what failed; --status only looks.
set -euo pipefail
plan=${1:?PLAN is missing} studies=${2:?STUDIES is missing} out=${3:?OUT is missing}
shift 3

vetdino ablate "$plan" --data "$studies" --out "$out" --jobs 8 --ngpus 4 "$@"
