#!/usr/bin/env bash
# Trains on all devices of this machine, and starts again after a preemption or a crash.
#
#   launch/one_machine.sh CONFIG WORKDIR [--config.KEY=VALUE ...]
#   launch/one_machine.sh configs/quickstart.py runs/quickstart --config.train.steps=1000
#
# Paths are taken from the root of the checkout. Training resumes from the newest checkpoint of WORKDIR, so after a
# reboot the same line goes on where the run was: put it into a systemd unit, or a crontab's @reboot.
# A process that dies (killed, out of memory, lost device) is started again; after MAX_FAILURES deaths (default 3) without
# a new checkpoint in between, the script gives up. Mistakes in the configuration (status 2) are not tried again.
# SIGTERM or Ctrl-C, once: the run saves after the current step and ends; twice: it ends at once.
# PYTHON names the interpreter (default .venv/bin/python).
set -euo pipefail

if (($# < 2)); then
    echo "usage: launch/one_machine.sh CONFIG WORKDIR [--config.KEY=VALUE ...]" >&2
    exit 2
fi
config=$1 workdir=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
max_failures=${MAX_FAILURES:-3}
command -v "$python" >/dev/null || { echo "$0: no $python; install as README.md says, or set PYTHON" >&2; exit 2; }

newest_checkpoint() { # highest step saved; nothing if there is none
    find "$workdir/checkpoints" -mindepth 1 -maxdepth 1 -name '[0-9]*' -printf '%f\n' 2>/dev/null | sort -n | tail -n 1
}

# The run gets a process group of its own (set -m): Ctrl-C reaches this script alone, which passes it on exactly once.
set -m
child='' stopping=''
forward() {
    stopping=1
    if [[ -n $child ]]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap forward TERM INT

failures=0
while true; do
    before=$(newest_checkpoint || true)
    "$python" -m irm_jax.main --config "$config" --workdir "$workdir" "$@" </dev/null &
    child=$!
    status=0
    while true; do # a signal to this script ends `wait` early: wait again until the run is over
        wait "$child" && status=0 || status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    child=''
    if ((status == 0 || status == 2)) || [[ -n $stopping ]]; then
        exit "$status"
    fi
    if [[ $(newest_checkpoint || true) == "$before" ]]; then
        failures=$((failures + 1))
    else
        failures=1
    fi
    if ((failures >= max_failures)); then
        echo "$0: $failures failures in a row without a new checkpoint; giving up" >&2
        exit "$status"
    fi
    echo "$0: the run ended with status $status; starting it again" >&2
done
