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
#
# PYTHON         the interpreter (default .venv/bin/python).
# PROCESSES      how many processes share the run (default 1, which drives all devices of a machine). More rehearse a
#                cluster on CPUs: they talk over the loopback interface. If one dies, the script says which and why, the
#                others end within 30 seconds, and all are started again from the newest checkpoint.
# DRY_RUN        1: prints the commands that would run, and runs nothing.
# JAX_NUM_CPU_DEVICES   devices that each process makes of its CPU (default 1).
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
processes=${PROCESSES:-1}
grace=30 # seconds in which the others end by themselves once one has died
[[ $processes =~ ^[1-9][0-9]*$ ]] || { echo "$0: PROCESSES=$processes is no number of processes" >&2; exit 2; }

# shellcheck source=launch/common.sh
source launch/common.sh
needs "$python" "install as README.md says, or set PYTHON"

if [[ ${DRY_RUN:-} == 1 ]]; then
    for ((index = 0; index < processes; index++)); do
        if ((processes > 1)); then
            printf '%s ' JAX_COORDINATOR_ADDRESS=127.0.0.1:PORT "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$index"
        fi
        run "$python" -m irm_jax.main --config "$config" --workdir "$workdir" "$@"
    done
    exit 0
fi

# Each process gets a process group of its own (set -m): Ctrl-C reaches this script alone, which passes it on once.
set -m
running=() number=() stopping=''
forward() {
    stopping=1
    if ((${#running[@]})); then kill -TERM "${running[@]}" 2>/dev/null || true; fi
}
trap forward TERM INT

start() { # start ARGUMENTS...: fills `running`, and `number` with which of the processes has which id
    running=() number=()
    local port index
    if ((processes > 1)); then
        port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
        export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$processes
    fi
    for ((index = 0; index < processes; index++)); do
        if ((processes > 1)); then export JAX_PROCESS_ID=$index; fi
        "$python" -m irm_jax.main --config "$config" --workdir "$workdir" "$@" </dev/null &
        running+=($!)
        number[$!]=$index
    done
}

finish() { # waits for all; `status` becomes that of the first that failed
    status=0
    local ended result reason killer='' left pid
    while ((${#running[@]})); do
        ended=''
        wait -n -p ended "${running[@]}" && result=0 || result=$?
        if [[ -z ${ended:-} ]]; then continue; fi # a signal to this script ended the wait
        left=()
        for pid in "${running[@]}"; do [[ $pid == "$ended" ]] || left+=("$pid"); done
        running=(${left[@]+"${left[@]}"})
        if ((result == 0)); then continue; fi
        if ((processes > 1)); then
            reason="with status $result"
            if ((result > 128)); then reason="by SIG$(kill -l $((result - 128)))"; fi
            echo "$0: process ${number[ended]} of $processes ended $reason" >&2
        fi
        if ((status == 0)); then
            status=$result
            if ((${#running[@]})); then
                (sleep "$grace" && kill -KILL "${running[@]}" 2>/dev/null) &
                killer=$!
            fi
        fi
    done
    if [[ -n $killer ]]; then kill -KILL -- "-$killer" 2>/dev/null || true; fi
}

failures=0
while true; do
    before=$(newest_checkpoint || true)
    start "$@"
    finish
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
