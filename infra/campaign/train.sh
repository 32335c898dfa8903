#!/usr/bin/env bash
# The background trainer: one command to start or resume it, one to pause it for a benchmark, one to go on, one to save and stop.
#   infra/campaign/train.sh start RUNS/NAME --data TRAIN... --valid photo=A.tar drawn=B.tar --max-minutes 150 [any option of `msinn train`]
#   infra/campaign/train.sh pause|resume|stop|status RUNS/NAME
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
verb=${1:?start, pause, resume, stop or status} out=${2:?where the run lies}
shift 2
python=${PYTHON:-$here/.venv/bin/python}
pid() { [ -f "$out/pid" ] && kill -0 "$(cat "$out/pid")" 2>/dev/null && cat "$out/pid"; }

case $verb in
start)
    if running=$(pid); then echo "it runs: $running"; exit 1; fi
    mkdir -p "$out"
    # glibc gives a step's memory back to the kernel and faults it in again, a third of the time of a step: keep it.
    export MALLOC_TRIM_THRESHOLD_=1000000000 MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TOP_PAD_=100000000
    cd "$here"
    setsid nice -n 19 "$python" -m jobs.cli train lite-continue --start infra/campaign/msinn-lite.safetensors --out "$out" "$@" >>"$out/log.txt" 2>&1 </dev/null &
    echo $! >"$out/pid"
    # Where the kernel groups processes by session, `nice` weighs only within a session: the group itself must give way.
    sleep 1
    if [ -w "/proc/$(cat "$out/pid")/autogroup" ]; then echo 19 >"/proc/$(cat "$out/pid")/autogroup"; fi
    echo "started: $(cat "$out/pid"); $out/log.txt"
    ;;
pause) kill -STOP "$(pid)" ;;
resume) kill -CONT "$(pid)" ;;
stop)
    running=$(pid)
    kill -CONT "$running"
    kill -TERM "$running"
    while kill -0 "$running" 2>/dev/null; do sleep 1; done
    tail -n 1 "$out/log.txt"
    ;;
status)
    if running=$(pid); then ps -o pid,stat,time,args= -p "$running" | cut -c1-120; else echo "it does not run"; fi
    tail -n 2 "$out/log.txt"
    ;;
*) echo "start, pause, resume, stop or status" >&2; exit 2 ;;
esac
