"""How the files of this folder were made: heads of the golden model, fitted to the demo photos, and the SHA-256 of what they make of the golden
bitstreams, the grey ones of which have alpha.

    python -m tests.golden.heads.make

Never run again: smaller pictures of archives must not change.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load

from msinn_core.codec import Codec
from msinn_core.heads import read_heads
from msinn_core.heads_fitting import fit_heads
from msinn_core.integer.portable import Portable
from msinn_core.model_file import heads_bytes, parse_model, shipped_heads
from msinn_core.picture import Picture
from tests.conftest import PHOTOS

HERE = Path(__file__).parent
INTEGER = HERE.parent / "integer"


def main() -> None:
    """Write heads and `expected.json`."""
    model = parse_model((INTEGER / "model.safetensors").read_bytes())
    photos = [np.array(Image.open(path).convert("RGB"))[:256, :384] for path in sorted(PHOTOS.rglob("*.webp"))]
    data = heads_bytes(fit_heads(Codec(model), [Picture(pixels=photo) for photo in photos]), model.sha256)
    (HERE / "heads.safetensors").write_bytes(data)
    codec = Codec(replace(model, heads=read_heads(load(data))), backend=Portable())
    found = {}
    for path in sorted(INTEGER.glob("*.msn")):
        stream = path.read_bytes()
        found[path.name] = {str(scale): hashlib.sha256(codec.decode_reduced(stream, scale).content()).hexdigest() for scale in codec.heads}
    shipped = {digest: said["sha256"] for digest, said in shipped_heads().items()}
    (HERE / "expected.json").write_text(json.dumps({"pictures": found, "shipped": shipped}, indent=2) + "\n")


if __name__ == "__main__":
    main()
