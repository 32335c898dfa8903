#!/usr/bin/env bash
# Trains on a lent machine with a GPU: no network, nothing of ours installed, one command of a few minutes, results in parts under 16 MiB.
#
#   here:   infra/gpu/train.sh pack --data TRAIN... --valid [NAME=]VALID... [--start CHECKPOINT]     (writes .gpu/, which git ignores: carry it)
#   there:  OUT=/folder/that/comes/back infra/gpu/train.sh run CONFIG MINUTES [msinn train's options]
#   here:   cat model-*.safetensors.0* > model.safetensors, or msinn train --start model.safetensors beside the parts
#
# `run` first says steps/s and where the time goes, then trains so that the schedule ends with the minutes, and leaves in OUT the averaged model
# in parts, the log and its plot. The parts' names carry the digest of the whole. A further lease begins from them: pack --start.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$root:$root/.gpu/wheels${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
mode=${1:?"usage: train.sh pack|run ..."}
shift
case $mode in
pack)
  cd "$root"
  exec "$python" infra/gpu/pack.py "$@"
  ;;
run)
  config=${1:?"a configuration, such as lite-gpu"} minutes=${2:?"minutes to train for"}
  shift 2
  out=${OUT:?"OUT is the folder whose files come back"}
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  options=(--data "$root/.gpu/train.tar" --max-minutes "$minutes" --set schedule=time "$@")
  [ -f "$root/.gpu/start.safetensors" ] && options+=(--start "$root/.gpu/start.safetensors")
  # The archive's own coder is not compiled there; training does not use it.
  "$python" -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "without a GPU")'
  "$python" -m jobs.cli train "$config" "${options[@]}" --out "$work/profile" --profile 20
  # valid.tar, and valid-NAME.tar for each set that is reported apart
  valid=()
  for tar in "$root"/.gpu/valid*.tar; do
    name=$(basename "$tar" .tar) name=${name#valid} name=${name#-}
    [ -s "$tar" ] && valid+=("${name:+$name=}$tar")
  done
  [ ${#valid[@]} -gt 0 ] && options+=(--valid "${valid[@]}")
  "$python" -m jobs.cli train "$config" "${options[@]}" --out "$work/run" --split-mib 15
  mkdir -p "$out"
  cp "$work"/run/model-*.safetensors.*-of-* "$work/run/log.jsonl" "$out/"
  [ ! -f "$work/run/curve.png" ] || cp "$work/run/curve.png" "$out/"
  ls -l "$out"
  ;;
*)
  echo "train.sh: pack or run, not $mode" >&2
  exit 2
  ;;
esac
