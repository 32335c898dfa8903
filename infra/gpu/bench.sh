#!/usr/bin/env bash
# Measures the GPU engine and the workers on a lent machine with nothing of ours installed: exactness both ways, speed by batch, at scales, of the
# paper's size, whole runs, where the time goes. One JSON and one table in OUT, in some six minutes of an H100.
#
#   here:   infra/gpu/bench.sh pack IMAGES         (a folder of PNG; writes .gpu/bench, which git ignores: carry it)
#           Before that every kernel is compiled for the compute capabilities in TARGETS: what spills registers is found here, not there.
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
  if "$python" -c "import triton" 2>/dev/null; then
    # shellcheck disable=SC2086  # several numbers
    "$python" -m infra.gpu.targets --architectures ${TARGETS:-80 89 90} --processes "$(nproc)"
  else
    echo "bench.sh: no Triton here, so no kernel is compiled before it is there" >&2
  fi
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
