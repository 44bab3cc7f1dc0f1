#!/usr/bin/env bash
# Trains on one Cloud TPU slice (a pod of TPU VMs), and starts again after a preemption, a lost host or a crash.
#
#   TPU=NAME ZONE=ZONE [VARIABLE=VALUE ...] launch/tpu_vm.sh CONFIG WORKDIR [--config.KEY=VALUE ...]
#   TPU=irm ZONE=us-west4-a ACCELERATOR=v5litepod-256 RUNTIME=v2-alpha-tpuv5-lite SPOT=1 launch/tpu_vm.sh \
#       configs/irm_pp.py gs://BUCKET/runs/a --config.data.dir=gs://BUCKET/shards --config.data.cache=/tmp/shards \
#       --config.data.vocab=gs://BUCKET/bert --config.model.dtype=bfloat16 \
#       --config.data.batch_blocks=256 --config.data.batch_size=9728
#
# It runs where gcloud is, say on a small VM in tmux, for as long as the training runs. It sends this checkout (the files
# that git knows) to every host, installs it there, and runs the same command on all; they find each other by themselves.
# Several slices: launch/gke.sh.
#   TPU, ZONE       name and zone of the slice (needed)
#   PROJECT         project (default: gcloud's own)
#   ACCELERATOR     type, say v5litepod-256: the slice is created if it is not there, and again after a preemption.
#                   Without it the slice must be there already
#   RUNTIME         its software, the one Google names for the type (needed with ACCELERATOR)
#   SPOT            1: spot capacity, cheaper and taken away at any time
#   DELETE          1: the slice is deleted when the run is over, whatever ended it (default: it stays, and costs)
#   DRY_RUN         1: prints what would run where the slice is not there yet, and runs nothing
#   MAX_FAILURES    ends without a new checkpoint in between after which this gives up (default 3)
#   POLL_SECONDS    between two looks at a slice that is not ready (default 30)
# WORKDIR is on object storage (gs://), since every host writes its part of a checkpoint there.
# A mistake in the configuration (status 2) is not tried again. SIGTERM or Ctrl-C, once: the run saves after the current
# step, and this script ends with it; a second one ends this script at once.
set -euo pipefail

if (($# < 2)) || [[ -z ${TPU:-} || -z ${ZONE:-} ]]; then
    echo "usage: TPU=NAME ZONE=ZONE launch/tpu_vm.sh CONFIG WORKDIR [--config.KEY=VALUE ...]" >&2
    exit 2
fi
if [[ $2 != gs://* ]]; then
    echo "$0: WORKDIR is $2, which only one host would see; give a folder of a bucket (gs://BUCKET/...)" >&2
    exit 2
fi
if [[ -n ${ACCELERATOR:-} && -z ${RUNTIME:-} ]]; then
    echo "$0: ACCELERATOR needs RUNTIME, say v2-alpha-tpuv5-lite for v5litepod-256" >&2
    exit 2
fi
config=$1 workdir=${2%/}
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
max_failures=${MAX_FAILURES:-3} poll=${POLL_SECONDS:-30}
where=(--zone="$ZONE")
if [[ -n ${PROJECT:-} ]]; then where+=(--project="$PROJECT"); fi
# shellcheck source=launch/common.sh
source launch/common.sh
needs gcloud "install the Google Cloud CLI and log in"

if [[ ${DRY_RUN:-} == 1 ]]; then scratch=/tmp; else scratch=$(mktemp -d); fi
cleanup() {
    if [[ ${DRY_RUN:-} != 1 ]]; then rm -rf "$scratch"; fi
    if [[ ${DELETE:-} == 1 ]]; then delete || echo "$0: $TPU could not be deleted: do it by hand" >&2; fi
}
trap cleanup EXIT

tpus() { run gcloud compute tpus "$@" "${where[@]}"; }
on_all() { tpus tpu-vm ssh "$TPU" --worker=all --command="$1" </dev/null; }
node_state() { tpus tpu-vm describe "$TPU" --format='value(state)' 2>/dev/null || true; }
queue_state() { tpus queued-resources describe "$TPU" --format='value(state.state)' 2>/dev/null || true; }
delete() { tpus queued-resources delete "$TPU" --force --quiet; }
create() {
    local spot=()
    if [[ ${SPOT:-} == 1 ]]; then spot=(--spot); fi
    tpus queued-resources create "$TPU" --node-id="$TPU" --accelerator-type="$ACCELERATOR" \
        --runtime-version="$RUNTIME" "${spot[@]}"
}

# Orbax marks a complete step on object storage by this file.
newest_checkpoint() { # without Python, which this machine may lack
    gcloud storage ls "$workdir/checkpoints/*/commit_success.txt" 2>/dev/null |
        sed -nE 's#.*/([0-9]+)/commit_success.txt$#\1#p' | sort -n | tail -n 1
}

make_ready() { # waits for the slice, creating it if it is not there; sets `fresh` if it is another one than before
    [[ $(node_state) != READY ]] || return 0
    if [[ -z ${ACCELERATOR:-} ]]; then
        echo "$0: $TPU is not ready; set ACCELERATOR and RUNTIME to have it created" >&2
        exit 2
    fi
    fresh=1
    while [[ -z $stopping && $(node_state) != READY ]]; do
        case $(queue_state) in
            '') echo "$0: asking for $TPU ($ACCELERATOR)" >&2 && create || return ;;
            FAILED | SUSPENDED) echo "$0: $TPU was taken away" >&2 && delete || return ;;
            ACTIVE) # there, and either about to be ready or lost
                case $(node_state) in
                    READY | CREATING | STARTING | RESTARTING | REPAIRING) sleep "$poll" ;;
                    *) echo "$0: $TPU was lost" >&2 && delete || return ;;
                esac
                ;;
            *) sleep "$poll" ;;
        esac
    done
}

install() { # the files of the checkout that git knows, as they are now, in a virtual environment on every host
    # shellcheck disable=SC2016  # for the shell that runs it
    run bash -o pipefail -c 'git ls-files -z | tar --null --files-from=- -czf "$0"' "$scratch/irm_jax.tar.gz" &&
        tpus tpu-vm scp "$scratch/irm_jax.tar.gz" "$TPU:" --worker=all &&
        on_all "mkdir -p irm_jax && tar -xzf irm_jax.tar.gz -C irm_jax && bash irm_jax/launch/tpu_host.sh install"
}

mistake=IRM_JAX_MISTAKE # what a host says that ended with status 2; gcloud tells one status for all hosts
child='' stopping='' fresh=1 failures=0
stop() {
    if [[ -n $stopping ]]; then exit 1; fi
    stopping=1
    if [[ -n $child ]]; then on_all "bash irm_jax/launch/tpu_host.sh stop" || true; fi
}
trap stop TERM INT

# Words are quoted once more: a shell on the hosts reads them.
command="bash irm_jax/launch/tpu_host.sh run$(printf ' %q' --config "$config" --workdir "$workdir" "$@")"
if [[ ${DRY_RUN:-} == 1 ]]; then
    if [[ -n ${ACCELERATOR:-} ]]; then create; fi
    install
    on_all "$command"
    exit 0
fi
while true; do
    before=$(newest_checkpoint || true)
    status=1
    if make_ready && [[ -z $stopping ]] && { [[ -z $fresh ]] || install; }; then
        fresh=''
        set -m # a process group of its own: Ctrl-C reaches this script alone
        on_all "$command" &
        child=$!
        set +m
        # A signal to this script ends `wait` early, with a status of its own.
        while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
        wait "$child" && status=0 || status=$?
        child=''
        if ((status != 0)); then
            told=$(on_all "bash irm_jax/launch/tpu_host.sh mistaken") || true
            if [[ $told == *"$mistake"* ]]; then status=2; fi
        fi
    fi
    if ((status == 0 || status == 2)) || [[ -n $stopping ]]; then exit "$status"; fi
    if [[ $(newest_checkpoint || true) == "$before" ]]; then failures=$((failures + 1)); else failures=1; fi
    if ((failures >= max_failures)); then
        echo "$0: $failures failures in a row without a new checkpoint; giving up" >&2
        exit "$status"
    fi
    echo "$0: the run ended with status $status; starting it again" >&2
    [[ -z $fresh ]] || sleep "$poll" # it never came to run
done
