#!/usr/bin/env bash
# The background trainer: one command to start or resume it, one to pause it for a benchmark, one to go on, one to save and stop.
#   infra/campaign/train.sh start RUNS/NAME --data TRAIN... --valid photo=A.tar drawn=B.tar --max-minutes 150 [any option of `msinn train`]
#   infra/campaign/train.sh pause|resume|stop|status RUNS/NAME
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
verb=${1:?start, pause, resume, stop or status} out=${2:?where the run lies}
shift 2
python=${PYTHON:-$here/.venv/bin/python}
# The process of the run that lies there, or a sentence and exit code 1.
running() { pid || { echo "$out: it does not run; start it" >&2; exit 1; }; }
pid() { [ -f "$out/pid" ] && kill -0 "$(cat "$out/pid")" 2>/dev/null && cat "$out/pid"; }

case $verb in
start)
    if process=$(pid); then echo "$out: it runs already, as process $process" >&2; exit 1; fi
    mkdir -p "$out"
    out=$(cd "$out" && pwd)
    # glibc gives a step's memory back to the kernel, which clears it anew for the next: keep it.
    export MALLOC_TRIM_THRESHOLD_=1000000000 MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TOP_PAD_=100000000
    cd "$here"
    setsid nice -n 19 "$python" -m jobs.cli train lite-continue --start msinn_core/weights/msinn-lite-float.safetensors --out "$out" "$@" >>"$out/log.txt" 2>&1 </dev/null &
    echo $! >"$out/pid"
    # Where the kernel groups processes by session, `nice` weighs only within a session: the group itself must give way.
    sleep 1
    if [ -w "/proc/$(cat "$out/pid")/autogroup" ]; then echo 19 >"/proc/$(cat "$out/pid")/autogroup"; fi
    echo "started: $(cat "$out/pid"); $out/log.txt"
    ;;
pause) process=$(running) && kill -STOP "$process" ;;
resume) process=$(running) && kill -CONT "$process" ;;
stop)
    process=$(running)
    kill -TERM "$process"
    kill -CONT "$process"
    while kill -0 "$process" 2>/dev/null; do sleep 1; done
    tail -n 1 "$out/log.txt"
    ;;
status)
    if process=$(pid); then ps -o pid,stat,time,args= -p "$process" | cut -c1-120; else echo "it does not run"; fi
    tail -n 2 "$out/log.txt"
    ;;
*) echo "start, pause, resume, stop or status" >&2; exit 2 ;;
esac
