#!/usr/bin/env bash
#SBATCH --job-name=irm_jax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# Trains on the GPUs of several nodes under Slurm, past the time limit, preemptions, lost nodes and crashes.
#
#   sbatch [--partition=... --account=... OPTIONS] launch/slurm.sh CONFIG WORKDIR [--config.KEY=VALUE ...]
#   sbatch --nodes=4 launch/slurm.sh configs/irm_pp.py /shared/runs/a --config.data.dir=/shared/shards \
#       --config.data.vocab=/shared/bert --config.model.dtype=bfloat16 \
#       --config.data.batch_blocks=32 --config.data.batch_size=1344
#
# Submit it from the root of the checkout, which every node must see under the same path, like WORKDIR (or gs://...) and
# the data. Options of sbatch go before the others and replace the lines above:
#   --nodes, --gpus-per-node   the devices
#   --ntasks-per-node          processes of a node: 1, or one a GPU; a node's GPUs are dealt out to them evenly
#   --cpus-per-task            cores of a process, which reads and augments its own images (config.data.threads)
#   --signal=B:USR1@120        two minutes before the time limit the run saves, and the job is queued again and goes on
#                              from there. Allow more seconds if a step and a save take longer
#   --requeue                  Slurm itself queues the job again when it is preempted or loses a node
# Variables:
#   PYTHON          interpreter (default .venv/bin/python)
#   DRY_RUN         1, without sbatch: prints what would run, and runs nothing
#   MAX_FAILURES    ends without a new checkpoint in between after which this gives up (default 3)
# A process that dies takes the others with it, and the run is started again in the same job. Mistakes in the
# configuration (status 2, or the file IRM_JAX_MISTAKE) are not tried again. `scancel --full --signal=TERM JOB`: the run
# saves and ends for good.
set -euo pipefail

if (($# < 2)) || [[ -z ${SLURM_JOB_ID:-} && ${DRY_RUN:-} != 1 ]]; then
    echo "usage: sbatch [OPTIONS] launch/slurm.sh CONFIG WORKDIR [--config.KEY=VALUE ...]" >&2
    exit 2
fi
config=$1 workdir=$2
shift 2
cd "${SLURM_SUBMIT_DIR:-.}" # Slurm runs a copy of this file from another place
python=${PYTHON:-.venv/bin/python}
max_failures=${MAX_FAILURES:-3}
if [[ ! -e irm_jax/main.py ]]; then
    echo "launch/slurm.sh: no irm_jax/main.py in $PWD; run sbatch in the root of the checkout" >&2
    exit 2
fi
# shellcheck source=launch/common.sh
source launch/common.sh
needs "$python" "install it, or set PYTHON"

if [[ ${DRY_RUN:-} == 1 ]]; then
    run sbatch launch/slurm.sh "$config" "$workdir" "$@"
    echo "# in the job, for each of its tasks N of COUNT, with a share of its node's GPUs:"
    printf '%s ' JAX_COORDINATOR_ADDRESS=FIRST_NODE:PORT JAX_NUM_PROCESSES=COUNT JAX_PROCESS_ID=N
    run "$python" -m irm_jax.main --config "$config" --workdir "$workdir" "$@"
    exit 0
fi

# A process makes this file before it ends with status 2: srun passes on the highest status alone, and the others, which
# lose a process, end with higher ones.
export IRM_JAX_MISTAKE=$PWD/.slurm-$SLURM_JOB_ID.mistake
trap 'rm -f "$IRM_JAX_MISTAKE"' EXIT
# What the processes need to find each other; irm_jax/parallel/processes.py reads it.
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export JAX_NUM_PROCESSES=$SLURM_NTASKS
# srun does not take over the cores of a process from sbatch (since Slurm 22.05).
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# In each process: its number, and its share of the node's GPUs.
# shellcheck disable=SC2016
process='
    export JAX_PROCESS_ID=$SLURM_PROCID
    share=$((${SLURM_GPUS_ON_NODE:-0} / (SLURM_NTASKS / SLURM_NNODES)))
    if ((share > 0)); then
        first=$((SLURM_LOCALID * share))
        export JAX_LOCAL_DEVICE_IDS=$(seq -s, "$first" $((first + share - 1)))
    fi
    exec "$@"'

child='' stopping=''
time_is_up() {
    stopping=requeue
    if [[ -n $child ]]; then scancel --signal=TERM "$SLURM_JOB_ID" || true; fi # to the processes, not to this script
}
trap time_is_up USR1
trap 'stopping=end' TERM # from Slurm, which sends it to the processes too: a second one would end them before they saved

failures=0 starts=0
while true; do
    before=$(newest_checkpoint || true)
    # Another port at each start: the last one may still be taken.
    export JAX_COORDINATOR_ADDRESS=$first_node:$((20000 + (SLURM_JOB_ID * 16 + starts) % 10000))
    starts=$((starts + 1))
    # No --kill-on-bad-exit, no --wait: survivors of a dead process end by themselves, and process 0 writes the report
    # when the others are done.
    srun --kill-on-bad-exit=0 --wait=0 bash -c "$process" irm_jax \
        "$python" -m irm_jax.main --config "$config" --workdir "$workdir" "$@" </dev/null &
    child=$!
    if [[ -n $stopping ]]; then scancel --signal=TERM "$SLURM_JOB_ID" || true; fi # the signal came before there was a child
    # A signal to this script ends `wait` early, with a status of its own.
    while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
    wait "$child" && status=0 || status=$?
    child=''
    if [[ -e $IRM_JAX_MISTAKE ]]; then status=2; fi
    if ((status == 0 || status == 2)) || [[ $stopping == end ]]; then exit "$status"; fi
    if [[ $stopping == requeue ]]; then
        echo "launch/slurm.sh: saved before the time limit; queueing the job again" >&2
        scontrol requeue "$SLURM_JOB_ID"
        exit "$status"
    fi
    if [[ $(newest_checkpoint || true) == "$before" ]]; then failures=$((failures + 1)); else failures=1; fi
    if ((failures >= max_failures)); then
        echo "launch/slurm.sh: $failures failures in a row without a new checkpoint; giving up" >&2
        exit "$status"
    fi
    echo "launch/slurm.sh: the run ended with status $status; starting it again" >&2
done
