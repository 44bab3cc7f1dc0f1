#!/usr/bin/env bash
# What launch/tpu_vm.sh runs on every host of a slice: install, run or stop. Not for other uses.
#
#   bash launch/tpu_host.sh install
#   bash launch/tpu_host.sh run --config CONFIG --workdir WORKDIR ...
#   bash launch/tpu_host.sh stop
#   bash launch/tpu_host.sh mistaken    prints IRM_JAX_MISTAKE if the last run ended with status 2
#   LEFT_SECONDS    that `run` gives the process of an earlier run to save (default 60)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

running() { # the number of the process that `run` started, if it lives (numbers are used again after a reboot)
    local number
    number=$(cat run.pid 2>/dev/null) && grep -qs irm_jax "/proc/$number/cmdline" && echo "$number"
}

case ${1:-} in
    install) # uv brings a Python that is new enough, which the images of TPU VMs may lack
        PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv
        python3 -m uv venv -q --clear --python 3.11 .venv
        python3 -m uv pip install -q --python .venv/bin/python -c constraints.txt -e '.[tpu,gcs]'
        ;;
    run) # what an earlier run left (its connection broke) holds the chips: it may save, then it has to go
        shift
        if left=$(running); then
            kill -TERM "$left" || true
            for ((i = 0; i < ${LEFT_SECONDS:-60}; i++)); do
                running >/dev/null || break
                sleep 1
            done
            if running >/dev/null; then kill -KILL "$left"; fi
        fi
        echo $$ >run.pid # `exec` keeps the number
        rm -f run.mistake
        export IRM_JAX_MISTAKE=$PWD/run.mistake # the run makes it before it ends with status 2
        exec .venv/bin/python -m irm_jax.main "$@"
        ;;
    stop)
        if now=$(running); then kill -TERM "$now"; fi
        ;;
    mistaken)
        if [[ -e run.mistake ]]; then echo IRM_JAX_MISTAKE; fi
        ;;
    *)
        echo "usage: tpu_host.sh install | run ARGUMENTS | stop | mistaken" >&2
        exit 2
        ;;
esac
