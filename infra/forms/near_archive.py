"""Near-lossless archives as `msinn compress --max-error` makes them, beside JPEG XL at the same largest error.

python -m infra.forms.near_archive FOLDER WORK [--errors 1 2 4] [--first N]

FOLDER holds PNG pictures of 8 bits; WORK gets the archives and what is restored of them: every sample is held against its source. JPEG XL's best is
that of each picture among samples that were rounded first and lossy JPEG XL with a residual, at the distances of `near`: as its author could
choose, too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image

from infra.forms.near import largest_error, lossy_jxl, quantised_first, residual, residual_jxl
from jobs.cli import main as msinn
from pipeline.archive.archive import Archive

_LEAST_DISTANCE = 0.1
"""Below it lossy JPEG XL takes more than lossless."""


def best_jxl(pixels: np.ndarray, errors: list[int]) -> dict[int, int]:
    """Bytes of JPEG XL's better way, by largest error."""
    lossy = [(taken, found) for distance, (taken, found) in lossy_jxl(pixels).items() if distance > _LEAST_DISTANCE]
    found = {}
    for largest in errors:
        with_residual = (taken + residual_jxl(residual(pixels, decoded, largest)) for taken, decoded in lossy)
        found[largest] = min(quantised_first(pixels, largest), *with_residual)
    return found


def archived(source: Path, work: Path, largest: int) -> dict[str, object]:
    """Archive a folder, restore it, compare: what it took, and by which ways."""
    archive, back = work / f"archive-{largest}", work / f"restored-{largest}"
    for folder in (archive, back):
        shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    code = msinn(["-q", "compress", str(source), str(archive), "--max-error", str(largest), "--executor", "local", "--json"])
    made = time.perf_counter()
    assert (code, msinn(["-q", "restore", str(archive), str(back), "--executor", "local"])) == (0, 0)
    seconds = made - started, time.perf_counter() - made
    rows = Archive(str(archive)).manifest().to_pylist()
    off = 0
    for row in rows:
        with Image.open(source / row["name"]) as original, Image.open(back / row["restore_name"]) as found:
            off = max(off, largest_error(np.asarray(found.convert("RGB")), np.asarray(original.convert("RGB"))))
    assert off <= largest
    return {
        "payloads": sum(row["length"] for row in rows),
        "shards": sum(path.stat().st_size for path in (archive / "shards").iterdir()),
        "network": sum(row["form"] == "near" and row["q"] is not None for row in rows),
        "rounded": sum(row["form"] == "near" and row["q"] is None for row in rows),
        "exact": sum(row["exact"] != "no" for row in rows),
        "largest error": off,
        "seconds to archive, to restore": [round(value, 1) for value in seconds],
    }


def main() -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--errors", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--first", type=int, help="so many pictures alone")
    given = parser.parse_args()
    source = given.work / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    paths = sorted(path for path in given.folder.iterdir() if path.suffix == ".png")[: given.first]
    for path in paths:
        shutil.copy(path, source / path.name)
    for largest in given.errors:
        print(f"--max-error {largest}: {json.dumps(archived(source, given.work, largest))}", flush=True)
    totals = dict.fromkeys(given.errors, 0)
    for path in paths:
        for largest, taken in best_jxl(np.asarray(Image.open(path).convert("RGB")), given.errors).items():
            totals[largest] += taken
    print(f"JPEG XL, the better way of each picture: {json.dumps(totals)}")


if __name__ == "__main__":
    main()
