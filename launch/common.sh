#!/usr/bin/env bash
# For the scripts beside it, which read this file.

run() { # runs a command; with DRY_RUN=1 prints it, quoted as a shell reads it, and runs nothing
    if [[ ${DRY_RUN:-} != 1 ]]; then
        "$@"
        return
    fi
    local word line=''
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
        line+=" $word"
    done
    echo "${line# }"
}

needs() { # needs PROGRAM CURE: ends with status 2 if a program is missing; a dry run needs none
    [[ ${DRY_RUN:-} == 1 ]] || command -v "$1" >/dev/null || { echo "$0: no $1; $2" >&2; exit 2; }
}

# shellcheck disable=SC2154  # python, workdir: set by the script that reads this
newest_checkpoint() { # prints the highest step saved in $workdir, nothing if there is none
    if [[ $workdir == *://* ]]; then
        "$python" -c 'import sys; from irm_jax.checkpoint import saved_steps; print(*saved_steps(sys.argv[1])[-1:])' \
            "$workdir/checkpoints"
    else
        find "$workdir/checkpoints" -mindepth 1 -maxdepth 1 -regex '.*/[0-9]+' -printf '%f\n' 2>/dev/null |
            sort -n | tail -n 1
    fi
}
