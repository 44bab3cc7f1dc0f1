#!/usr/bin/env bash
# Starts a training on TPU slices of a GKE cluster, through XPK or as a JobSet; Kubernetes starts it again when it fails.
#
#   [VARIABLE=VALUE ...] launch/gke.sh CONFIG WORKDIR [--config.KEY=VALUE ...]
#   CLUSTER=irm TPU_TYPE=v5litepod-256 SLICES=2 IMAGE=... launch/gke.sh configs/irm_pp.py gs://BUCKET/runs/a \
#       --config.data.dir=gs://BUCKET/shards --config.data.cache=/tmp/shards \
#       --config.data.vocab=gs://BUCKET/bert --config.model.dtype=bfloat16 \
#       --config.data.batch_blocks=512 --config.data.batch_size=19456
#   ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=4x4 HOSTS=4 CHIPS=4 IMAGE=... launch/gke.sh ...
#
# It returns once the workload is queued: follow it with `xpk workload list` or `kubectl get jobsets`. The processes find
# each other by what GKE puts into their environment. Running the same line after the end (with the old one deleted, or
# another NAME) goes on from the newest checkpoint.
#   IMAGE           container image that holds the installed checkout (needed; launch/Dockerfile makes one)
#   NAME            of the workload (default: irm-jax-USER); lower-case letters, digits, -
#   SLICES          TPU slices; more than one talk over the data-centre network (default 1)
#   MAX_RESTARTS    failures and preemptions after which Kubernetes gives up (default 50)
#   DRY_RUN         1: prints the command, with the manifest, that would run, and runs nothing
#   GRACE_SECONDS   that a preempted run has to save (default 120)
# With XPK (a cluster that XPK made):
#   CLUSTER         its name; this variable chooses XPK
#   TPU_TYPE        slice type, say v5litepod-256
#   PROJECT, ZONE   of the cluster (default: gcloud's own)
# With kubectl (any cluster with JobSet installed), launch/jobset.yaml is filled in:
#   ACCELERATOR, TOPOLOGY   labels of the node pools, say tpu-v5-lite-podslice and 16x16
#   HOSTS, CHIPS    hosts of a slice, and chips of a host
#   SERVICE_ACCOUNT of Kubernetes, one that may use the bucket (default: default)
# A mistake in the configuration (status 2) is not tried again.
set -euo pipefail

if (($# < 2)) || [[ -z ${IMAGE:-} ]]; then
    echo "usage: IMAGE=IMAGE [VARIABLE=VALUE ...] launch/gke.sh CONFIG WORKDIR [--config.KEY=VALUE ...]" >&2
    exit 2
fi
if [[ $2 != *://* ]]; then
    echo "$0: WORKDIR is $2, which dies with its pod; give a folder of a bucket (gs://BUCKET/...)" >&2
    exit 2
fi
config=$1 workdir=$2
shift 2
user=${USER:-} user=${user,,} user=${user//[^a-z0-9-]/} # as Kubernetes takes names
NAME=${NAME:-irm-jax-${user:-run}} SLICES=${SLICES:-1} MAX_RESTARTS=${MAX_RESTARTS:-50} GRACE_SECONDS=${GRACE_SECONDS:-120}
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}
command=(python -m irm_jax.main --config "$config" --workdir "$workdir" "$@")

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
wants() { # wants VARIABLE...
    for name in "$@"; do
        [[ -n ${!name:-} ]] || { echo "$0: set $name; $0 explains it at its top" >&2; exit 2; }
    done
}

if [[ -n ${CLUSTER:-} ]]; then
    needs xpk "install it first"
    wants TPU_TYPE
    # XPK by itself restarts on the statuses 42 and 127 to 255: here on all but 0 and 2. It sends SIGTERM to the shell that
    # runs the command: `exec` makes that the training.
    run xpk workload create --cluster="$CLUSTER" ${PROJECT:+--project="$PROJECT"} ${ZONE:+--zone="$ZONE"} \
        --workload="$NAME" --tpu-type="$TPU_TYPE" --num-slices="$SLICES" --docker-image="$IMAGE" \
        --max-restarts="$MAX_RESTARTS" --restart-on-exit-codes=1,3-255 \
        --termination-grace-period-seconds="$GRACE_SECONDS" --command="exec$(printf ' %q' "${command[@]}")"
    exit 0
fi

needs kubectl "install it first"
wants ACCELERATOR TOPOLOGY HOSTS CHIPS
COMMAND=
for word in "${command[@]}"; do # a list in the notation of JSON, which YAML reads
    word=${word//\\/\\\\} word=${word//\"/\\\"} word=${word//$'\n'/\\n} word=${word//$'\t'/\\t} word=${word//$'\r'/\\r}
    COMMAND+=${COMMAND:+, }\"$word\"
done
COMMAND="[$COMMAND]"
manifest=$(<"$(dirname "${BASH_SOURCE[0]}")/jobset.yaml")
for name in NAME MAX_RESTARTS SLICES HOSTS GRACE_SECONDS SERVICE_ACCOUNT ACCELERATOR TOPOLOGY IMAGE COMMAND CHIPS; do
    manifest=${manifest//"\${$name}"/"${!name}"}
done
if [[ ${DRY_RUN:-} == 1 ]]; then printf "kubectl apply -f - <<'EOF'\n%s\nEOF\n" "$manifest"; exit 0; fi
kubectl apply -f - <<<"$manifest"
