#!/bin/bash
# Another processor's Python, emulated, with numpy and this checkout's kernels built for it; then exchange.py in it.
#     infra/cross/machine.sh arm64|s390x FOLDER [options of exchange.py]
# Needs gcc-aarch64-linux-gnu or gcc-s390x-linux-gnu, qemu-user-static, apt-get and pip. Nothing is installed on this machine: all lies in ~/.cache/msinn-cross.
set -euo pipefail
arch=$1 folder=$(realpath "$2"); shift 2
case $arch in arm64) processor=aarch64 numpy=;; s390x) processor=s390x numpy=python3-numpy;; *) echo "arm64 or s390x" >&2; exit 2;; esac
root=$(realpath "$(dirname "$0")/../..")
home=${MSINN_CROSS:-$HOME/.cache/msinn-cross}/$arch
site=$home/site
mkdir -p "$home/lists/partial" "$home/cache/archives/partial"

if [ ! -e "$home/.fetched" ]; then
    touch "$home/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg arch=$arch] http://deb.debian.org/debian bookworm main" >"$home/sources.list"
    apt=(apt-get -qq -o APT::Architecture="$arch" -o APT::Architectures::="$arch" -o Dir::State="$home" -o Dir::State::lists="$home/lists"
         -o Dir::State::status="$home/status" -o Dir::Cache="$home/cache" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::sourcelist="$home/sources.list")
    "${apt[@]}" update
    # shellcheck disable=SC2086
    "${apt[@]}" install -y --no-install-recommends --download-only python3.11-minimal libpython3.11-stdlib libpython3.11-dev libc6 libstdc++6 zlib1g $numpy
    for package in "$home"/cache/archives/*.deb; do dpkg -x "$package" "$home/root"; done
    # Wheels; those of arm64 also give s390x what is plain Python in them.
    wheels=(safetensors google-crc32c); [ "$arch" = arm64 ] && wheels+=(numpy)
    "${PYTHON:-python3}" -m pip -q install --no-deps --target "$site" --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 --abi abi3 \
        --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 "${wheels[@]}"
    if [ "$arch" = s390x ]; then
        find "$site" -name '*.so' -delete
        cp "$root/infra/cross/safetensors_rust.py" "$site/safetensors/_safetensors_rust.py"
    fi
    touch "$home/.fetched"
fi

rm -rf "$home/tree"
mkdir -p "$home/tree/tests/golden" "$home/tree/infra"
cp -r "$root/msinn_core" "$home/tree/"
cp -r "$root/tests/golden/integer" "$home/tree/tests/golden/"
cp -r "$root/infra/cross" "$home/tree/infra/"
for kernel in integer/_int16 entropy/_rans; do
    "$processor-linux-gnu-gcc" -shared -fPIC -O3 -I"$home/root/usr/include/python3.11" -I"$home/root/usr/include" \
        "$root/msinn_core/$kernel.c" -o "$home/tree/msinn_core/$kernel.abi3.so" -lm
done
libraries=$home/root/usr/lib/$processor-linux-gnu
PYTHONHOME=$home/root/usr PYTHONPATH=$home/tree:$site:$home/root/usr/lib/python3/dist-packages OPENBLAS_NUM_THREADS=1 \
    exec "qemu-$processor-static" -L "$home/root" -E "LD_LIBRARY_PATH=$libraries:$home/root/lib/$processor-linux-gnu:$libraries/blas:$libraries/lapack" \
    "$home/root/usr/bin/python3.11" "$home/tree/infra/cross/exchange.py" "$folder" "$@"
