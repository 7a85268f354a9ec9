#!/bin/bash
# An archive read in parts, side by side on many machines, then merged: an array of jobs and one that waits for them.
# Run:      bash slurm/intake.sh ARCHIVE STUDIES PARTS [options of a submission]
# Hardware: no GPU; each part one node's worth of cores        Time: that of `vetdino intake`, divided by the parts that run at a time
# Again:    the same command reads what is missing, and merges.
set -euo pipefail
archive=${1:?ARCHIVE is missing} studies=${2:?STUDIES is missing} parts=${3:?PARTS is missing}
shift 3

vetdino submit --parts "$parts" --cpus-per-task 8 "$@" -- intake "$archive" "$studies" --workers 8
