#!/usr/bin/env bash
# For the scripts beside it, which read this file: the highest step saved in $workdir, nothing if there is none.

# shellcheck disable=SC2154  # python, workdir: set by the script that reads this
newest_checkpoint() {
    if [[ $workdir == *://* ]]; then
        "$python" -c 'import sys; from irm_jax.checkpoint import saved_steps; print(*saved_steps(sys.argv[1])[-1:])' \
            "$workdir/checkpoints"
    else
        find "$workdir/checkpoints" -mindepth 1 -maxdepth 1 -regex '.*/[0-9]+' -printf '%f\n' 2>/dev/null |
            sort -n | tail -n 1
    fi
}
