"""`msinn inspect`: what a file of ours is."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.text import shown


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("inspect", help="what a bitstream, model file or shard is")
    p.add_argument("file", metavar="FILE")
    p.set_defaults(command=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    from msinn_core.bitstream import MAGIC
    from msinn_core.errors import BadMagicError, BitstreamError
    from pipeline.errors import SourceError, UsageError

    path = Path(arguments.file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    if path.suffix == ".safetensors":
        _inspect_model(data)
    elif path.suffix == ".tar" and data[:4] != MAGIC:
        from pipeline.archive.shard import iterate_bytes

        for name, offset, member in iterate_bytes(data):
            print(f"{offset:>12} {len(member):>10}  {shown(name)}")
    else:
        try:
            _inspect_bitstream(data)
        except BadMagicError as error:
            raise UsageError(f"{path} is no msinn bitstream, model (.safetensors) or shard (.tar)") from error
        except BitstreamError as error:
            raise type(error)(f"{path}: {error}") from error
    return 0


def _inspect_model(data: bytes) -> None:
    from msinn_core.model_file import parse_model

    model = parse_model(data)
    parameters = model.num_parameters
    print(f"model      {shown(model.name)}, profile {model.profile}, {parameters:,} parameters, {len(data):,} bytes")
    print(f"sha256     {model.sha256}")
    print(f"tables     {len(model.tables.offsets)} scales, {len(model.tables.cdf):,} counts")
    print(f"config     {model.config.to_json()}")


def _inspect_bitstream(data: bytes) -> None:
    from msinn_core import bitstream

    stream = bitstream.parse(data)
    bpp = 8 * len(data) / (stream.width * stream.height)
    print(f"picture    {stream.width} x {stream.height} {stream.colour}, q {stream.q:g}, profile {stream.profile}")
    print(f"size       {len(data):,} bytes, {bpp:.4f} bpp; header and payload CRC32C agree")
    print(f"model      {stream.model_id.hex()} (first half of its SHA-256)")
    for k, name in enumerate(("y5", "y4", "y3", "y2", "y1")):
        anchors, rest = (len(stream.streams[2 * k + i]) for i in (0, 1))
        print(f"{name:<11}{anchors:,} + {rest:,} bytes (anchors + rest)")
    names = {bitstream.ICC: "ICC", bitstream.EXIF: "EXIF", bitstream.XMP: "XMP", bitstream.ALPHA: "alpha"}
    names |= {bitstream.JPEG_SEGMENTS: "JPEG data", bitstream.PNG_CHUNKS: "PNG data"}
    for kind, box in stream.boxes.items():
        print(f"{names[kind]:<11}{len(box):,} bytes")
