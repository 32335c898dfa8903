"""Compares restored files with originals using Pillow and NumPy alone: same number, PSNR as the manifest says, sidecars byte for byte."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def main(originals: Path, restored: Path, archive: Path) -> int:
    """Returns 1 and says why if anything is missing or differs from the manifest."""
    rows = pa.concat_tables([pq.read_table(part) for part in sorted((archive / "manifest").glob("*.parquet"))]).to_pylist()
    wrong = []
    for row in rows:
        source, result = originals / row["name"], restored / row["restore_name"]
        for side in row["sidecars"]:
            if (originals / side["name"]).read_bytes() != (restored / side["restore_name"]).read_bytes():
                wrong.append(f"{side['name']} differs")
        if row["exact"] == "bytes":
            if source.read_bytes() != result.read_bytes():
                wrong.append(f"{row['name']} differs")
            continue
        a, b = (np.asarray(Image.open(path).convert("RGB"), np.float64) for path in (source, result))
        psnr_db = 10 * math.log10(255**2 / np.mean((a - b) ** 2))
        if row["psnr_db"] is not None and abs(psnr_db - row["psnr_db"]) > 1e-6:
            wrong.append(f"{row['name']}: {psnr_db:.6f} dB, the manifest says {row['psnr_db']:.6f} dB")
    # The map of names comes on top.
    count = [sum(path.is_file() and path.name != "msinn-names.csv" for path in folder.rglob("*")) for folder in (originals, restored)]
    if count[0] != count[1]:
        wrong.append(f"{count[0]} files went in, {count[1]} came back")
    print("\n".join(wrong) or f"{count[1]} files came back; every PSNR is what the manifest says, every sidecar is byte for byte the same")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*(Path(argument) for argument in sys.argv[1:4])))
