"""How the golden files of this folder were made: a tiny network with random weights, packed, and a picture coded at three rates.

    python -m tests.golden.integer.make

Never run again for version 1: what these bytes decode to must not change, whatever packer, encoder or weights later versions have.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from msinn_core.codec import Codec
from msinn_core.integer.engine import golden_digest
from msinn_core.integer.network import IntegerNetwork
from msinn_core.integer.packing import pack
from msinn_core.integer.portable import Portable
from msinn_core.model_file import integer_model_bytes, parse_model
from msinn_core.picture import Picture
from msinn_core.training.init import informed
from tests.conftest import PHOTOS
from tests.unit.core.test_network import TINY, randomised

HERE = Path(__file__).parent


def main() -> None:
    """Write model, bitstreams and `expected.json`."""
    photo = np.array(Image.open(sorted(PHOTOS.rglob("*.webp"))[0]).convert("RGB"))
    pixels = photo[100:177, 40:169].copy()
    x = torch.from_numpy(photo[64:192, 64:192].copy()).permute(2, 0, 1)[None].float() / 255
    network = randomised(TINY)
    informed(network, x)
    packed = pack(network, [x])
    golden = golden_digest(IntegerNetwork(TINY, packed, Portable()))
    data = integer_model_bytes(TINY, packed, golden, name="golden")
    (HERE / "model.safetensors").write_bytes(data)
    codec = Codec(parse_model(data), backend=Portable())
    expected = {}
    pictures = {"colour": Picture(pixels=pixels), "grey": Picture(pixels=pixels[:, :, 1].copy(), alpha=pixels[:, :, 2].copy())}
    for name, picture in pictures.items():
        for q in (0.0, codec.q_max / 2 + 0.03, codec.q_max):
            file = f"{name}-{q:.2f}.msn"
            stream = codec.encode(picture, q)
            (HERE / file).write_bytes(stream)
            expected[file] = hashlib.sha256(codec.decode(stream)[0].content()).hexdigest()
    (HERE / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main()
