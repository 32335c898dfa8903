"""The one typed row of the manifest: what is written of a source image, whatever became of it.

`manifest.SCHEMA`, `MANIFEST.md`, the columns that readers ask for and the rows that the encoder writes all come from the fields below.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import pyarrow as pa

from pipeline.archive.shard import Member
from pipeline.formats.records import Column

_FILE_TIME = pa.timestamp("us", "UTC")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataPart:
    """Something that a source file holds beside its pixels: `EXIF`, `PNG tEXt`."""

    kind: Annotated[str, Column(pa.string())]
    bytes: Annotated[int, Column(pa.int64())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """A file that is kept untouched beside its image.

    Attributes:
        name: Original relative name.
        restore_name: Relative name that restore writes.
        member: Name in the shard.
        offset: First byte in the shard; `length`: bytes.
        sha256: Of the file.
        mtime: Its modification time, where it is known.
    """

    name: Annotated[str, Column(pa.string())]
    restore_name: Annotated[str, Column(pa.string())]
    member: Annotated[str, Column(pa.string())]
    offset: Annotated[int, Column(pa.int64())]
    length: Annotated[int, Column(pa.int64())]
    sha256: Annotated[str, Column(pa.string())]
    mtime: Annotated[datetime | None, Column(_FILE_TIME)] = None


def sidecar_of(member: Member, *, name: str, restore_name: str, mtime: datetime | None = None) -> Sidecar:
    """The sidecar that is a shard's member."""
    return Sidecar(
        name=name, restore_name=restore_name, member=member.name, offset=member.offset, length=member.length, sha256=member.sha256, mtime=mtime
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One source image in the manifest. Every field says itself what it holds; a rate, a model, a hash of pixels have only images that are coded.

    Rows that are read (`records.rows_of`) may hold None anywhere: where a column was not asked for, or whoever wrote it left it out.
    `pipeline.read.rows.usable` sorts out those that lack what each must have.
    """

    key: Annotated[str, Column(pa.string(), "dot-free name in the archive", nullable=False)]
    name: Annotated[str, Column(pa.string(), "original relative name", nullable=False)]
    restore_name: Annotated[str, Column(pa.string(), "relative name that restore writes", nullable=False)]
    source_uri: Annotated[str, Column(pa.string(), "where the image was read", nullable=False)]
    member: Annotated[str | None, Column(pa.string(), "name in the shard; null if nothing could be stored")] = None
    source_bytes: Annotated[int | None, Column(pa.int64(), "bytes of the source file")] = None
    source_sha256: Annotated[str | None, Column(pa.string(), "of the source file")] = None
    source_format: Annotated[str | None, Column(pa.string(), "as the decoder named it")] = None
    mtime: Annotated[datetime | None, Column(_FILE_TIME, "modification time of the source file")] = None
    width: Annotated[int | None, Column(pa.int32(), "pixels")] = None
    height: Annotated[int | None, Column(pa.int32(), "pixels")] = None
    pixels: Annotated[int | None, Column(pa.int64(), "width x height where the image decodes: what --bpp counts; null if it does not")] = None
    channels: Annotated[int | None, Column(pa.int8(), "samples per pixel in the source")] = None
    bit_depth: Annotated[int | None, Column(pa.int8(), "bits per sample in the source")] = None
    orientation: Annotated[int | None, Column(pa.int8(), "EXIF orientation 1..8")] = None
    icc: Annotated[int | None, Column(pa.int32(), "bytes of the ICC profile")] = None
    exif: Annotated[int | None, Column(pa.int32(), "bytes of EXIF")] = None
    xmp: Annotated[int | None, Column(pa.int32(), "bytes of XMP")] = None
    metadata: Annotated[tuple[MetadataPart, ...], Column(MetadataPart, "what the file holds beside its pixels, all of it stored")] = ()
    metadata_lost: Annotated[str | None, Column(pa.string(), "what was left behind although the image is coded; null: nothing")] = None
    shard_id: Annotated[int, Column(pa.int32(), "number of the shard", nullable=False)]
    shard_key: Annotated[str, Column(pa.string(), "object name of the shard", nullable=False)]
    offset: Annotated[int | None, Column(pa.int64(), "first byte of the payload in the shard")] = None
    length: Annotated[int | None, Column(pa.int64(), "bytes of the payload")] = None
    stored_bytes: Annotated[int, Column(pa.int64(), "bytes in the shard: tar header, payload, padding", nullable=False)]
    payload_sha256: Annotated[str | None, Column(pa.string(), "of the payload")] = None
    sidecars: Annotated[tuple[Sidecar, ...], Column(Sidecar, "files kept untouched beside the image")] = ()
    codec: Annotated[
        str | None,
        Column(
            pa.string(), "what decodes the payload: msinn, near, jxl-jpeg, lepton, jxl, zstd, or kept (the file itself); null if nothing is stored"
        ),
    ] = None
    form: Annotated[
        str | None, Column(pa.string(), "msinn, near, avif, jpeg-exact, pixels-exact or kept: see FORMS.md; null if nothing is stored")
    ] = None
    exact: Annotated[
        str | None, Column(pa.string(), "what comes back exactly: bytes (the file), pixels (every sample and what is listed in metadata), or no")
    ] = None
    writer: Annotated[str | None, Column(pa.string(), "library and version that wrote the payload, where it is none of ours")] = None
    model_sha256: Annotated[str | None, Column(pa.string(), "model that decodes the payload")] = None
    bitstream_version: Annotated[int | None, Column(pa.int8(), "1 or 2: see FORMAT.md")] = None
    q: Annotated[float | None, Column(pa.float64(), "rate index")] = None
    multiplier: Annotated[float | None, Column(pa.float64(), "objective per byte at which the plan stopped", name="lambda")] = None
    plan_rev: Annotated[int | None, Column(pa.int32(), "revision of the plan that chose q")] = None
    clamp: Annotated[str | None, Column(pa.string(), "none, floor or cap")] = None
    bpp: Annotated[float | None, Column(pa.float64(), "8 x payload bytes / pixels")] = None
    bpp_stored: Annotated[float | None, Column(pa.float64(), "8 x stored bytes / pixels")] = None
    predicted_bytes: Annotated[float | None, Column(pa.float64(), "stored bytes that the plan expected")] = None
    mse: Annotated[float | None, Column(pa.float64(), "of the decoded pixels, in 8-bit code values; 0 for exact forms")] = None
    psnr_db: Annotated[float | None, Column(pa.float64(), "peak 255; null where nothing was lost (lossless)")] = None
    lossless: Annotated[
        bool, Column(pa.bool_(), "no sample is other than in the file; exact says whether the file itself comes back", nullable=False)
    ]
    ms_ssim: Annotated[float | None, Column(pa.float64(), "of the decoded pixels; null unless asked for")] = None
    decode_verified: Annotated[
        bool,
        Column(
            pa.bool_(),
            "read back from its bytes and every symbol compared before the shard was committed (a sample was decoded to pixels too); exact forms: "
            "decoded, and compared with the file or its samples",
            nullable=False,
        ),
    ]
    recon_sha256: Annotated[str | None, Column(pa.string(), "of the decoded samples, alpha after colour, 16 bits little-endian")] = None
    encoder: Annotated[str | None, Column(pa.string(), "device and versions")] = None
    status: Annotated[
        str, Column(pa.string(), "coded (nothing lost but what the rate took), kept (the file itself), failed (something is missing)", nullable=False)
    ]
    error_code: Annotated[str | None, Column(pa.string(), "why it is kept or what is missing")] = None
    error: Annotated[str | None, Column(pa.string(), "the same in words")] = None
    attempt: Annotated[str, Column(pa.string(), "attempt that wrote the shard", nullable=False)]
    fetch_ms: Annotated[float | None, Column(pa.float32(), "milliseconds")] = None
    decode_ms: Annotated[float | None, Column(pa.float32(), "milliseconds for the source image")] = None
    model_ms: Annotated[float | None, Column(pa.float32(), "milliseconds in the network, encoding")] = None
    entropy_ms: Annotated[float | None, Column(pa.float32(), "milliseconds in the entropy coder")] = None
    verify_ms: Annotated[float | None, Column(pa.float32(), "milliseconds to decode and compare")] = None
    worker: Annotated[str | None, Column(pa.string(), "host and process")] = None
    encoded_at: Annotated[datetime | None, Column(pa.timestamp("ms", "UTC"), "time")] = None
