"""Machines of different processors code the same pictures in one folder, and each decodes what the others wrote. Needs no torch.

    python infra/cross/exchange.py FOLDER        # on each machine, then once more on the first

`FOLDER/pictures/*.npy` are `[H, W, 3]` uint8. Every instruction set of this machine encodes each at every q and decodes each bitstream that is there,
its own and others', to the SHA-256 that lies beside it. Golden streams of the repository are decoded too. Exit code 1 on any difference in pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from pathlib import Path

import numpy as np

from msinn_core import compact
from msinn_core.codec import Codec
from msinn_core.entropy import rans
from msinn_core.integer import ops
from msinn_core.model_file import LoadedModel, load_model, parse_model
from msinn_core.picture import Picture

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "integer"


def pixels_sha256(codec: Codec, data: bytes) -> str:
    """Digest of what a bitstream decodes to."""
    return hashlib.sha256(codec.decode(data)[0].content()).hexdigest()


def golden_differences(backend: ops.Compiled) -> int:
    """Golden bitstreams that decode to other pixels, and compact models that expand to another file."""
    model = (GOLDEN / "model.safetensors").read_bytes()
    codec = Codec(parse_model(model), backend=backend)
    expected = json.loads((GOLDEN / "expected.json").read_text())
    streams = sum(pixels_sha256(codec, (GOLDEN / name).read_bytes()) != digest for name, digest in expected.items())
    return streams + (compact.expand((GOLDEN / "model.compact").read_bytes(), lambda _: b"") != model)


def exchange(folder: Path, model: LoadedModel, qs: list[float]) -> int:
    """Encode and decode with every instruction set of this machine; returns how many streams decode to other pixels."""
    differing = 0
    for isa in range(ops.kernel.isa(), -1, -1):
        backend = ops.Compiled(isa=isa)
        mine = folder / f"{platform.machine()}-{backend.name.replace(' ', '-')}"
        mine.mkdir(exist_ok=True)
        golden = golden_differences(backend)
        codec = Codec(model, backend=backend)  # refuses where the golden vector differs
        digests: dict[bytes, str] = {}

        def decoded(data: bytes, codec: Codec = codec, digests: dict[bytes, str] = digests) -> str:
            """Once for those who wrote the same bytes."""
            if data not in digests:
                digests[data] = pixels_sha256(codec, data)
            return digests[data]

        for path in sorted((folder / "pictures").glob("*.npy")):
            picture = Picture(pixels=np.load(path))
            for q in qs:
                stream = mine / f"{path.stem}-{q:.2f}.msn"
                data = codec.encode(picture, q)
                stream.write_bytes(data)
                stream.with_suffix(".sha256").write_text(decoded(data))
        streams = sorted(folder.glob("*/*.msn"))
        other = sum(decoded(stream.read_bytes()) != stream.with_suffix(".sha256").read_text() for stream in streams)
        unequal = sum(stream.read_bytes() != (mine / stream.name).read_bytes() for stream in streams)
        print(
            f"{platform.machine()}, {sys.byteorder}-endian, {backend.name}: 7 golden files, {golden} differ; {len(streams)} bitstreams of "
            f"{len({stream.parent for stream in streams})} encoders, {other} decode to other pixels, {unequal} are other bytes than its own",
            flush=True,
        )
        differing += golden + other
    return differing


def main() -> int:
    """See the top of this file."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--model", default="msinn-lite")
    p.add_argument("--q", type=float, nargs="+", default=[2.0, 7.3])
    arguments = p.parse_args()
    if ops.kernel is None or rans.kernel is None:
        print("this Python cannot load the compiled kernels", file=sys.stderr)
        return 2
    return 1 if exchange(arguments.folder, load_model(arguments.model), arguments.q) else 0


if __name__ == "__main__":
    sys.exit(main())
