#!/usr/bin/env bash
# The whole way of a small folder: archive under a budget, audit, verify, restore, compare. Usage: run.sh MSINN PYTHON OUT
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
