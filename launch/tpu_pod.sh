#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any number of hosts, and starts again until the run is finished:
#
#   launch/tpu_pod.sh NAME ZONE --config configs/vit_l16_i21k.py --workdir /mnt/shared/vit_l16
#
# Runs on your machine, with gcloud set up. What stands after the zone goes to `vit_jax train` on every host of the
# slice NAME; the workdir is a folder that all hosts share (a Filestore, or a bucket mounted with gcsfuse). This
# checkout is copied and installed first.
#
# TYPE=v5litepod-256 makes the slice where it is not there, as a queued resource: Cloud TPU gives it when it has one.
# A spot slice that was taken away is asked for again, and the run goes on from its last checkpoint.
#
#   TYPE     such as v5litepod-256; without it NAME must be there
#   RUNTIME  image of the hosts (v2-alpha-tpuv5-lite)
#   OPTIONS  of the request (--spot)
#   SETUP    what makes `python -m vit_jax.main` work in the copied checkout, on each host; without it an environment
#            `venv` is made there
#   PAUSE    seconds between two looks, and between two starts (30)

set -euo pipefail

if (($# < 3)); then
  echo "usage: $0 NAME ZONE --config CONFIG --workdir WORKDIR [--config.field=value ...]" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
# The images of Cloud TPU have an older Python than 3.11.
setup=${SETUP:-"python3 -m pip install --quiet uv && python3 -m uv venv --quiet --allow-existing --python 3.12 venv \
  && python3 -m uv pip install --quiet --python venv -e '.[tpu]'"}
pause=${PAUSE:-30}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
checkout=$(basename "$root")
tpus=(gcloud compute tpus)

slice_state() {
  "${tpus[@]}" tpu-vm describe "$name" --zone="$zone" --format='value(state)' 2>/dev/null || true
}

request_state() {
  "${tpus[@]}" queued-resources describe "$name" --zone="$zone" --format='value(state.state)' 2>/dev/null || true
}

ask_for_slice() {
  local options
  read -ra options <<<"${OPTIONS---spot}"
  "${tpus[@]}" queued-resources create "$name" --node-id="$name" --zone="$zone" --accelerator-type="$TYPE" \
    --runtime-version="${RUNTIME:-v2-alpha-tpuv5-lite}" "${options[@]}"
}

# Returns when the slice is there; asks for it where TYPE says of which type.
wait_for_slice() {
  until [[ "$(slice_state)" == READY ]]; do
    if [[ -n "${TYPE:-}" ]]; then
      case "$(request_state)" in
        '') ask_for_slice ;;
        # Taken away, or refused: only a new request brings another.
        SUSPENDED | FAILED)
          "${tpus[@]}" queued-resources delete "$name" --zone="$zone" --quiet --force
          ask_for_slice
          ;;
      esac
    elif [[ -z "$(slice_state)" ]]; then
      echo "there is no TPU $name in $zone; TYPE=v5litepod-16 $0 ... makes one" >&2
      exit 1
    fi
    sleep "$pause"
  done
}

on_all_hosts() {
  "${tpus[@]}" tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

# Every word quoted, so that the remote shell reads what was typed here.
printf -v arguments ' %q' "$@"
# shellcheck disable=SC2016 # PWD and PATH are those of the host.
path='PATH="$PWD/venv/bin:$PATH"'
train="cd $checkout && export $path && source launch/xla_flags.sh && python -m vit_jax.main$arguments"
# What a lost connection left running would hold the TPU; the brackets keep the pattern from matching itself.
clear="pkill -f '[v]it_jax.main' || true"

quick=0
while true; do
  wait_for_slice
  begun=$SECONDS
  if "${tpus[@]}" tpu-vm scp --recurse "$root" "$name:" --zone="$zone" --worker=all &&
    on_all_hosts "$clear; cd $checkout && $setup" && on_all_hosts "$train"; then
    echo 'The run is finished.'
    exit 0
  fi
  # A preemption comes after a while; what fails at once three times would fail for ever.
  if ((SECONDS - begun < ${QUICK:-120})); then quick=$((quick + 1)); else quick=0; fi
  if ((quick == 3)); then
    echo "failed three times within ${QUICK:-120} seconds of its start: see above" >&2
    exit 1
  fi
  echo "not finished; starting again in $pause seconds" >&2
  sleep "$pause"
done
