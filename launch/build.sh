#!/usr/bin/env bash
#SBATCH --job-name=irm_jax_build
#SBATCH --array=1-8
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
#
# Builds one data set on several machines under Slurm, a part each (python -m data_pipelines.build --part I/N).
#
#   sbatch [--array=1-64 OPTIONS] launch/build.sh OPTIONS_OF_THE_BUILD...
#   sbatch --array=1-64 launch/build.sh --dataset table --table /shared/crops.parquet --task trad --name crops --out /shared/shards
#
# Submit it from the root of the checkout. The checkout, the pictures and --out lie in a folder that all nodes share and
# whose locks work across nodes. The array begins at 1 and has no gaps: its length is the number of parts. The last part
# joins all. A part whose process dies starts again, from its finished shards; a mistake (status 2) is not tried again.
# Submitted again, the same line goes on where the build was.
# Variables:
#   PYTHON          interpreter (default .venv/bin/python)
#   MAX_FAILURES    ends with another status than 0 and 2 after which a part gives up (default 3)
#   DRY_RUN         1, without sbatch: prints what would run, and runs nothing
set -euo pipefail

if (($# < 1)) || [[ -z ${SLURM_ARRAY_TASK_COUNT:-} && ${DRY_RUN:-} != 1 ]]; then
    echo "usage: sbatch [--array=1-N OPTIONS] launch/build.sh OPTIONS_OF_THE_BUILD..." >&2
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}" # Slurm runs a copy of this file from another place
python=${PYTHON:-.venv/bin/python}
max_failures=${MAX_FAILURES:-3}
if [[ ! -e data_pipelines/build.py ]]; then
    echo "launch/build.sh: no data_pipelines/build.py in $PWD; run sbatch in the root of the checkout" >&2
    exit 2
fi
# shellcheck source=launch/common.sh
source launch/common.sh
needs "$python" "install it, or set PYTHON"

if [[ ${DRY_RUN:-} == 1 ]]; then
    run sbatch launch/build.sh "$@"
    echo "# in each task I of N:"
    run "$python" -m data_pipelines.build "$@" --part I/N
    exit 0
fi
if ((SLURM_ARRAY_TASK_MIN != 1 || SLURM_ARRAY_TASK_MAX != SLURM_ARRAY_TASK_COUNT)); then
    echo "launch/build.sh: the array must be 1-N without gaps, so that all parts agree on N; submit the whole again" >&2
    exit 2
fi

time_is_up() { # what is finished is kept
    scontrol requeue "$SLURM_JOB_ID"
    exit 1
}
trap time_is_up USR1

for ((failures = 1; ; failures++)); do
    "$python" -m data_pipelines.build "$@" --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" </dev/null &
    # A signal to this script ends `wait` early.
    wait $! && status=0 || status=$?
    if ((status == 0 || status == 2)); then exit "$status"; fi
    if ((failures >= max_failures)); then
        echo "launch/build.sh: $failures failures; giving up" >&2
        exit "$status"
    fi
    echo "launch/build.sh: the build ended with status $status; starting it again" >&2
done
