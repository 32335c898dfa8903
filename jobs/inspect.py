"""`msinn inspect`: what a file of ours is."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.text import shown


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("inspect", help="what a bitstream, an exact form, a model file or a shard is")
    p.add_argument("file", metavar="FILE")
    p.set_defaults(command=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    from msinn_core.bitstream import MAGIC
    from msinn_core.compact import is_compact
    from msinn_core.errors import BadMagicError, BitstreamError
    from msinn_core.model_folder import PLAIN, model_file_bytes
    from pipeline.errors import SourceError, UsageError
    from pipeline.forms.avif import is_avif
    from pipeline.forms.base import Refusal
    from pipeline.forms.jpeg_exact import LEPTON_MAGIC
    from pipeline.forms.jxl import is_jxl
    from pipeline.forms.kept import MAGIC as ZSTD_MAGIC
    from pipeline.forms.near import MAGIC as NEAR_MAGIC

    path = Path(arguments.file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    if path.suffix == PLAIN or is_compact(data):
        _inspect_model(model_file_bytes(path), len(data))
    elif data.startswith(NEAR_MAGIC):
        try:
            _inspect_near(data)
        except (Refusal, BitstreamError) as error:
            raise SourceError(f"{path}: {error}") from error
    elif is_jxl(data) or is_avif(data) or data.startswith((LEPTON_MAGIC, ZSTD_MAGIC)):
        try:
            _inspect_form(data)
        except Refusal as error:
            raise SourceError(f"{path}: {error}") from error
    elif path.suffix == ".tar" and data[:4] != MAGIC:
        from pipeline.archive.shard import iterate_bytes

        for name, offset, member in iterate_bytes(data):
            print(f"{offset:>12} {len(member):>10}  {shown(name)}")
    else:
        try:
            _inspect_bitstream(data)
        except BadMagicError as error:
            raise UsageError(f"{path} is no msinn bitstream, model (.safetensors, .compact) or shard (.tar)") from error
        except BitstreamError as error:
            raise type(error)(f"{path}: {error}") from error
    return 0


def _inspect_form(data: bytes) -> None:
    """What the header of a form without a model says; nothing is decoded."""
    from pipeline.forms import avif, jxl
    from pipeline.forms.jpeg_exact import LEPTON_MAGIC, lepton_bytes, lepton_size
    from pipeline.forms.kept import MAGIC, frame_bytes

    if data.startswith(MAGIC):
        print(f"zstd       a file of {frame_bytes(data):,} bytes in {len(data):,}: gives it back to the byte")
        return
    if data.startswith(LEPTON_MAGIC):
        width, height = lepton_size(data)
        print(f"lepton     a JPEG file of {lepton_bytes(data):,} bytes in {len(data):,}: gives it back to the byte")
    elif avif.is_avif(data):
        width, height = avif.size(data)
        print(f"avif       {len(data):,} bytes, with loss; any reader of AVIF opens it")
    else:
        width, height = jxl.size(data)
        kind = "holds a JPEG file: gives it back to the byte" if jxl.is_jpeg(data) else "JPEG XL; whether lossless, only its manifest says"
        print(f"jxl        {len(data):,} bytes, {kind}")
    print(f"picture    {width} x {height}")
    carried = {} if data.startswith(LEPTON_MAGIC) else jxl.pieces_of(data) if avif.is_avif(data) else jxl.metadata_of(data)
    for name, part in carried.items():
        print(f"{name:<14} {len(part):,} bytes")


def _inspect_near(data: bytes) -> None:
    """What the headers of a near-lossless member say; nothing is decoded."""
    from msinn_core import bitstream
    from pipeline.forms import jxl, near

    member = near.parse(data)
    width, height = near.size(member)
    print(f"near       {len(data):,} bytes: no sample of colour off by more than {member.largest_error}, alpha exact")
    print(f"picture    {width} x {height}")
    if member.way in near.WITHOUT_NETWORK:
        what = (
            "the picture, its samples rounded" if member.way == near.ROUNDED else f"its samples as numbers of steps of {2 * member.largest_error + 1}"
        )
        print(f"jxl        {len(member.picture):,} bytes: {what}; JPEG XL from byte {len(data) - len(member.picture)} on")
        for name, part in jxl.metadata_of(member.picture).items():
            print(f"{name:<14} {len(part):,} bytes")
        return
    stream = bitstream.parse(member.bitstream)
    print(f"msinn      {len(member.bitstream):,} bytes, q {stream.q:g}, model {stream.model_id.hex()} (first half of its SHA-256)")
    print(f"residual   {len(member.picture):,} bytes of JPEG XL, in steps of {2 * member.largest_error + 1}")


def _inspect_model(data: bytes, stored: int) -> None:
    from msinn_core.model_file import parse_model

    model = parse_model(data)
    parameters, compact = model.num_parameters, f" (in the compact form {stored:,})" if stored != len(data) else ""
    print(f"model      {shown(model.name)}, profile {model.profile}, {parameters:,} parameters, {len(data):,} bytes{compact}")
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
