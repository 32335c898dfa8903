#!/usr/bin/env bash
# Measures the GPU engine on a lent machine with nothing of ours installed: exactness both ways, speed, where the time goes; one JSON in OUT.
#
#   here:   infra/gpu/bench.sh pack IMAGES         (a folder of PNG; writes .gpu/, which git ignores: carry it)
#   there:  OUT=/folder/that/comes/back infra/gpu/bench.sh run [bench.py's options]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
mode=${1:?"usage: bench.sh pack IMAGES | run"}
shift
case $mode in
pack)
  images=${1:?"a folder of PNG"}
  mkdir -p "$root/.gpu/images"
  cp "$images"/*.png "$root/.gpu/images/"
  # The compiled kernels as they are here: they load under any Python from 3.11 on the same kind of processor.
  (cd "$root" && find msinn_core -name '*.so' -exec cp --parents {} .gpu/ \;)
  du -sh "$root/.gpu"
  ;;
run)
  out=${OUT:?"OUT is the folder whose files come back"}
  (cd "$root/.gpu" && find msinn_core -name '*.so' -exec cp --parents {} "$root/" \;)
  export PYTHONPATH="$root:$root/.gpu/wheels${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
  cd "$root"
  "$python" infra/gpu/bench.py .gpu/images --out "$out/gpu-bench.json" "$@" 2>&1 | tee "$out/gpu-bench.log"
  ;;
*)
  echo "bench.sh: pack or run, not $mode" >&2
  exit 2
  ;;
esac
