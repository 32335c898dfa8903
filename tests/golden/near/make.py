"""Made the near-lossless members here, with the golden model; the first msinn that had the form. Never run again for a version that is there.

python -m tests.golden.near.make FOLDER
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from msinn_core.codec import Codec
from msinn_core.model_file import load_model
from msinn_core.picture import Picture
from pipeline.forms import jxl, near
from tests.conftest import PHOTOS

LARGEST_ERROR = 4


def main(folder: Path) -> None:
    """A small photo with alpha and a profile, in both ways that a residual is written, and the SHA-256 of the samples that come back."""
    codec = Codec(load_model(str(Path(__file__).parents[1] / "integer" / "model.safetensors")))
    with Image.open(sorted(PHOTOS.rglob("*.webp"))[0]) as photo:
        pixels = np.asarray(photo.convert("RGB").crop((40, 100, 105, 149)))
    picture = Picture(pixels=pixels, alpha=pixels[:, :, 1].copy(), icc=b"profile")
    data = codec.encode(picture, 4)
    coded = codec.decode(data)[0]
    numbers = near.residual(pixels, coded.pixels, LARGEST_ERROR)
    back = near.with_pixels(coded, near.added(coded.pixels, numbers, LARGEST_ERROR))
    for name, way in (("folded", near.FOLDED), ("shifted", near.SHIFTED)):
        residual = jxl.encoded(near.folded(numbers, way), {})
        member = near.Member(way=way, largest_error=LARGEST_ERROR, bitstream=data, picture=residual)
        (folder / f"{name}.msr").write_bytes(member.to_bytes())
        (folder / f"{name}.sha256").write_text(hashlib.sha256(back.content()).hexdigest() + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
