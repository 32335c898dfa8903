"""How the files of this folder were made: the golden model with weights for the first stream (format 2), as a difference to itself without them,
and a picture coded with it.

    python -m tests.golden.predicting.make

Never run again: what these bytes decode to must not change.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load, save

from msinn_core.codec import Codec
from msinn_core.compacting import compacted
from msinn_core.entropy.fitting import FirstStream, first_weights
from msinn_core.integer.portable import Portable
from msinn_core.model_file import PREDICTING_FORMAT, parse_model, read_metadata
from msinn_core.picture import Picture
from tests.conftest import PHOTOS

HERE = Path(__file__).parent


def main() -> None:
    """Write model, bitstreams and `expected.json`."""
    data = (HERE.parent / "integer" / "model.safetensors").read_bytes()
    picture = Picture(pixels=np.array(Image.open(sorted(PHOTOS.rglob("*.webp"))[0]).convert("RGB"))[100:177, 40:169].copy())
    codec = Codec(parse_model(data), backend=Portable())
    coded = [codec.compress(codec.transform(picture), q) for q in (0.0, 5.5, 11.0)]
    weights = first_weights([FirstStream(each.symbols[0], each.indexes[0], 5) for each in coded])
    own = save(load(data) | {"first.weights": weights}, {**read_metadata(data), "format": PREDICTING_FORMAT})
    (HERE / "model.compact").write_bytes(compacted(own, data))
    predicting, expected = Codec(parse_model(own), backend=Portable()), {}
    for q in (0.0, 5.5):
        stream = predicting.encode(picture, q)
        name = f"colour-{q:.2f}.msn"
        (HERE / name).write_bytes(stream)
        expected[name] = hashlib.sha256(predicting.decode(stream)[0].content()).hexdigest()
    (HERE / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main()
