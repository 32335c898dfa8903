#!/usr/bin/env bash
# Measures the GPU engine and the workers on a lent machine with nothing of ours installed: exactness both ways, speed by batch, whole runs, where the
# time goes. One JSON and one table in OUT, in less than two minutes of an H100.
#
#   here:   infra/gpu/bench.sh pack IMAGES         (a folder of PNG; writes .gpu/bench, which git ignores: carry it)
#   there:  OUT=/folder/that/comes/back infra/gpu/bench.sh run [bench.py's options]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
mode=${1:?"usage: bench.sh pack IMAGES | run"}
shift
export PYTHONPATH="$root:$root/.gpu/bench/wheels${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
case $mode in
pack)
  images=$(cd "${1:?"a folder of PNG"}" && pwd)
  shift
  cd "$root"
  exec "$python" -m infra.gpu.pack_bench "$images" "$@"
  ;;
run)
  out=${OUT:?"OUT is the folder whose files come back"}
  (cd "$root/.gpu/bench" && find msinn_core -name '*.so' -exec cp --parents {} "$root/" \;)
  cd "$root"
  "$python" -m infra.gpu.bench .gpu/bench/images --out "$out/gpu-bench.json" "$@" 2>&1 | tee "$out/gpu-bench.log"
  ;;
*)
  echo "bench.sh: pack or run, not $mode" >&2
  exit 2
  ;;
esac
