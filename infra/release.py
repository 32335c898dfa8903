"""Makes the shipped models from a training checkpoint, and says in real bytes what their fitted CDF tables gain.

`python -m infra.release CHECKPOINT --data TRAIN... --valid VALID` replaces both files and `index.json` in `msinn_core/weights`. A sample of the
training images gives the CDF tables, every second validation image the integer ranges and the constants of rate prediction; the others measure.
Kodak is not looked at: that is for `msinn eval`, afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from jobs.cli import main as msinn
from msinn_core.codec import Codec
from msinn_core.entropy.tables import gaussian_tables
from msinn_core.metrics import mse, psnr_db
from msinn_core.model_file import DEFAULT_MODEL, WEIGHTS, load_model, retired_models, shipped_models
from msinn_core.picture import Picture
from pipeline.formats import images
from pipeline.sources import Fetcher, SourceRecord, scan

MODELS = {DEFAULT_MODEL: [], f"{DEFAULT_MODEL}-float": ["--profile", "float", "--half"]}
RATES = (1.0, 4.0, 7.0, 10.0)


def main() -> None:
    """Pack, then measure."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("checkpoint")
    p.add_argument("--data", nargs="+", required=True, help="training images: folders or tars")
    p.add_argument("--valid", nargs="+", required=True, help="validation images: folders or tars")
    p.add_argument("--only", choices=MODELS, help="make this one anew, of a checkpoint that all were made from")
    p.add_argument("--tables", type=int, default=64, metavar="N", help="training images for the tables (default 64)")
    arguments = p.parse_args()
    torch.set_num_threads(1)
    records = [record for source in arguments.data for record in scan(source).records]
    valid = [record for source in arguments.valid for record in scan(source).records]
    with TemporaryDirectory() as folder:
        sample, calibrating = Path(folder) / "sample", Path(folder) / "calibrating"
        _extract(random.Random(1).sample(records, arguments.tables), sample)
        _extract(valid[::2], calibrating)
        made = [arguments.only] if arguments.only else list(MODELS)
        for name in made:
            pictures = ["--calibrate", str(calibrating), "--fit-tables", str(sample)]
            path = Path(folder) / f"{name}.safetensors"
            if code := msinn(["models", "import", arguments.checkpoint, "-o", str(path), "--name", name, *pictures, *MODELS[name]]):
                sys.exit(code)
        _replace(Path(folder), made)
    _compare(valid[1::2])


def _replace(folder: Path, made: Sequence[str]) -> None:
    """The models are made: put them in the place of the old ones, whose hashes an archive may still name."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=WEIGHTS, capture_output=True, text=True, check=True).stdout.strip()
    old = shipped_models()
    for name in made:
        shutil.copyfile(folder / f"{name}.safetensors", WEIGHTS / f"{name}.safetensors")
    index = {name: hashlib.sha256((WEIGHTS / f"{name}.safetensors").read_bytes()).hexdigest() for name in MODELS}
    retired = retired_models() | {digest: commit for name, digest in old.items() if index[name] != digest}
    (WEIGHTS / "retired.json").write_text(json.dumps(retired, indent=2) + "\n")
    (WEIGHTS / "index.json").write_text(json.dumps(index, indent=2) + "\n")


def _extract(records: Sequence[SourceRecord], folder: Path) -> None:
    folder.mkdir()
    for i, record in enumerate(records):
        (folder / f"{i:04d}{Path(record.name).suffix}").write_bytes(Fetcher().fetch(record.part))


def _compare(records: Sequence[SourceRecord]) -> None:
    """Bytes and PSNR of real bitstreams, with Gaussian tables and no prediction of the first stream, and with the model's."""
    model = load_model()
    pictures = [images.load(Fetcher().fetch(record.part), max_pixels=32_000_000).picture for record in records]
    before = replace(model, tables=gaussian_tables(), weights=None)
    measured = [_measured(Codec(which), [p for p in pictures if p]) for which in (before, model)]
    for q, (bytes_before, psnr_before), (bytes_after, psnr_after) in zip(RATES, *measured, strict=True):
        gain = f"{100 * (bytes_after / bytes_before - 1):+.2f} % bytes, {psnr_after - psnr_before:+.3f} dB"
        print(f"q {q:g}: Gaussian tables alone {bytes_before:,} bytes, fitted with prediction {bytes_after:,}: {gain}")


def _measured(codec: Codec, pictures: list[Picture]) -> list[tuple[int, float]]:
    """Bytes in all and mean PSNR, per rate."""
    streams = [[codec.encode(picture, q) for picture in pictures] for q in RATES]
    decoded = [np.mean([psnr_db(mse(codec.decode(d)[0].pixels, p.pixels)) for d, p in zip(row, pictures, strict=True)]) for row in streams]
    return [(sum(map(len, row)), float(psnr)) for row, psnr in zip(streams, decoded, strict=True)]


if __name__ == "__main__":
    main()
