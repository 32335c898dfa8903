"""Packs what the benchmark needs on a machine that has a GPU and nothing of ours: pictures, compiled kernels, wheels. Called by bench.sh."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from infra.gpu.pack import ROOT, tree_files, wheels

LIMIT_BYTES = 64 << 20


def main() -> None:
    """Write `.gpu/bench/` in the repository's root."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("images", type=Path, help="folder of PNG, Kodak's for example")
    p.add_argument("--python", default="3.12", help="version there, for compiled wheels")
    p.add_argument("--wheels", nargs="*", default=["google_crc32c"], help="packages that are missing there")
    arguments = p.parse_args()
    folder = ROOT / ".gpu" / "bench"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    paths = sorted(arguments.images.glob("*.png"))
    if not paths:
        sys.exit(f"{arguments.images} holds no PNG")
    for path in paths:
        shutil.copyfile(path, folder / "images" / path.name)
    kernels = sorted((ROOT / "msinn_core").rglob("*.so"))
    if len(kernels) < 2:
        sys.exit("the compiled kernels are missing here: pip install --editable . with a C compiler")
    for path in kernels:  # they load under any Python from 3.11 on the same kind of processor
        there = folder / path.relative_to(ROOT)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, there)
    wheels(folder / "wheels", arguments.wheels, arguments.python)
    carried = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    total = carried + sum(path.stat().st_size for path in tree_files() if path.is_file())
    if total > LIMIT_BYTES:
        sys.exit(f"{total / 2**20:.1f} MiB with the working tree, over the limit of {LIMIT_BYTES >> 20}: fewer images")
    print(f"{folder}: {len(paths)} images, {carried / 2**20:.1f} MiB; {total / 2**20:.1f} MiB with the working tree")


if __name__ == "__main__":
    main()
