"""Fits heads for a shipped integer model that was made before heads were: `weights/heads.json` says which file of them belongs to which model.

`python -m infra.scales.fit --data TRAIN... [--model msinn-lite]`. Kodak and validation images are not looked at.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator

import numpy as np

from msinn_core.codec import Codec
from msinn_core.heads_fitting import fit_heads
from msinn_core.model_file import DEFAULT_MODEL, WEIGHTS, heads_bytes, load_model, shipped_heads
from msinn_core.picture import Picture
from pipeline.formats import images
from pipeline.sources import Fetcher, scan

_SIDE = 384
_MAX_PIXELS = 100_000_000


def main() -> None:
    """Fit, and put the heads beside the model."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--data", nargs="+", required=True, help="training images: folders or tars")
    p.add_argument("--model", default=DEFAULT_MODEL, help="name of a shipped integer model")
    arguments = p.parse_args()
    model = load_model(arguments.model)
    if model.heads or model.sha256 in shipped_heads():
        sys.exit(f"{model.name} has heads: they never change, since pictures of archives would")
    data = heads_bytes(fit_heads(Codec(model), _crops(arguments.data)), model.sha256)
    name = f"{arguments.model}-heads.safetensors"
    (WEIGHTS / name).write_bytes(data)
    index = shipped_heads() | {model.sha256: {"file": name, "sha256": hashlib.sha256(data).hexdigest()}}
    (WEIGHTS / "heads.json").write_text(json.dumps(index, indent=2) + "\n")


def _crops(sources: list[str]) -> Iterator[Picture]:
    """A crop of each image, from a seed."""
    rng = np.random.default_rng(0)
    for source in sources:
        for record in scan(source).records:
            picture = images.load(Fetcher().fetch(record.part), max_pixels=_MAX_PIXELS, name=record.name).picture
            if picture is None or picture.pixels.ndim != 3:
                continue
            height, width = picture.pixels.shape[:2]
            y, x = (int(rng.integers(0, max(1, side - _SIDE + 1))) for side in (height, width))
            yield Picture(pixels=picture.pixels[y : y + _SIDE, x : x + _SIDE].copy())


if __name__ == "__main__":
    main()
