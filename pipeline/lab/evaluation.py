"""Measures codecs on images: real files, decoded again, one metric code for all; curves, BD-rates, a table and a plot."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import msinn_core
from msinn_core import metrics
from msinn_core.codec import Codec
from msinn_core.picture import Picture
from pipeline.errors import SourceError, UsageError
from pipeline.formats import images
from pipeline.formats.records import Column, rows_of, schema_of, to_table
from pipeline.lab.peers import Peer, Pixels
from pipeline.lab.reference import Curve, pixels_digest
from pipeline.sources import Fetcher, scan

WINDOWS_DB = tuple((low, low + 3) for low in range(26, 50, 3))
"""Of PSNR, that BD-rates are given for beside the whole overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One picture coded by one codec at one setting: a row of `results.parquet`.

    Attributes:
        image: Its name; `pixels_sha256`: of shape and pixels.
        codec: With its version, and `setting`, whose meaning is the codec's own.
        file_bytes: Of the file on disk.
        encode_ms: Milliseconds; `decode_ms` likewise.
    """

    image: Annotated[str, Column(pa.string())]
    pixels_sha256: Annotated[str, Column(pa.string())]
    codec: Annotated[str, Column(pa.string())]
    version: Annotated[str, Column(pa.string())]
    setting: Annotated[float, Column(pa.float64())]
    width: Annotated[int, Column(pa.int32())]
    height: Annotated[int, Column(pa.int32())]
    file_bytes: Annotated[int, Column(pa.int64())]
    bpp: Annotated[float, Column(pa.float64(), unit="8 x file_bytes / pixels")]
    mse: Annotated[float, Column(pa.float64(), unit="8-bit code values squared, RGB")]
    psnr_db: Annotated[float, Column(pa.float64())]
    ms_ssim: Annotated[float | None, Column(pa.float64())]
    encode_ms: Annotated[float, Column(pa.float64())]
    decode_ms: Annotated[float, Column(pa.float64())]


SCHEMA = schema_of(Measurement)

_Identity = tuple[str, str, str, float]
"""Digest of the pixels, codec, version and setting: what need not be measured twice."""


class MsinnPeer:
    """Our codec behind the calls of a peer; the transform is shared by the rates of an image and counted in each.

    Args:
        codec: With its model.
        settings: Rate indexes q.
        where: Device and threads, for the version: results of another are not re-used.
    """

    def __init__(self, codec: Codec, settings: tuple[float, ...], where: str = "cpu, 1 thread") -> None:
        self.codec = codec
        self.name = codec.model.name
        self.version = f"{codec.model.sha256[:12]}, profile {codec.model.profile}, code {source_digest()[:8]}, {where}"
        self.suffix = ".msn"
        self.settings = settings

    def encode(self, pixels: Pixels, setting: float) -> bytes:
        return self.codec.encode(Picture(pixels=pixels), setting)

    def decode(self, data: bytes) -> Pixels:
        return self.codec.decode(data)[0].pixels


@dataclass(frozen=True, slots=True)
class Average:
    """Means over all images at one setting of one codec."""

    setting: float
    bpp: float
    psnr_db: float
    ms_ssim: float | None
    encode_mpx_s: float
    decode_mpx_s: float


def source_digest() -> str:
    """SHA-256 over the codec's source files: results of another encoder are not re-used."""
    root, digest = Path(msinn_core.__file__).parent, hashlib.sha256()
    for path in sorted((*root.rglob("*.py"), *root.rglob("*.c"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def pictures(source: str, limit: int | None = None) -> Iterator[tuple[str, Pixels]]:
    """Name and RGB pixels of the colour images of a source.

    Raises:
        SourceError: None there.
    """
    fetcher, found = Fetcher(), 0
    for record in scan(source).records[:limit]:
        loaded = images.load(fetcher.fetch(record.part), max_pixels=200_000_000, name=record.name)
        if loaded.picture is not None and loaded.picture.pixels.ndim == 3:
            found += 1
            yield record.name, loaded.picture.pixels
    if not found:
        raise SourceError(f"{source} holds no 8-bit colour image")


def evaluate(
    source: Iterable[tuple[str, Pixels]], peers: Sequence[Peer], folder: Path, *, keep_files: bool, said: Callable[[str], None]
) -> list[Measurement]:
    """One row per image, codec and setting, from files written to `folder`, read back and decoded.

    `folder/results.parquet` is replaced after each image; what it holds of the same pixels, codec version and setting is not measured again.

    Args:
        source: From `pictures`.
        peers: Codecs, ours among them.
        folder: Gets `results.parquet`, and `files/`, emptied as it goes unless `keep_files`.
        keep_files: Leave the files.
        said: Told about each image.

    Returns:
        The rows of this request, in its order.
    """
    path = folder / "results.parquet"
    known = {(row.pixels_sha256, row.codec, row.version, row.setting): row for row in _read(path)}
    wanted: list[Measurement] = []
    for number, (name, pixels) in enumerate(source):
        started, num_new = time.perf_counter(), 0
        digest = pixels_digest(pixels)
        for peer in peers:
            for setting in peer.settings:
                identity = (digest, peer.name, peer.version, setting)
                if identity not in known:
                    file = folder / "files" / peer.name.replace(" ", "-").lower() / f"{setting:g}" / f"{number:05d}{peer.suffix}"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    known[identity] = _measure(name, identity, peer, pixels, file)
                    num_new += 1
                    if not keep_files:
                        file.unlink()
                wanted.append(known[identity])
        if num_new:
            temporary = path.with_suffix(".tmp")
            pq.write_table(to_table(Measurement, known.values(), SCHEMA), temporary, compression="zstd")
            temporary.replace(path)
        said(f"{number + 1}: {name}, {num_new} files in {time.perf_counter() - started:.1f} s")
    return wanted


def _read(path: Path) -> list[Measurement]:
    """Rows of an earlier run; none if there was none, or of another version of this table."""
    if not path.exists():
        return []
    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise UsageError(f"{path} is there and is no Parquet file: remove it, or name another --out ({error})") from error
    return list(rows_of(Measurement, table)) if table.schema.equals(SCHEMA) else []


def _measure(image: str, identity: _Identity, peer: Peer, pixels: Pixels, path: Path) -> Measurement:
    digest, codec, version, setting = identity
    started = time.perf_counter()
    data = peer.encode(pixels, setting)
    encoded = time.perf_counter()
    path.write_bytes(data)
    data = path.read_bytes()
    read = time.perf_counter()
    decoded = peer.decode(data)
    finished = time.perf_counter()
    height, width = pixels.shape[:2]
    mse = metrics.mse(pixels, decoded)
    return Measurement(
        image=image,
        pixels_sha256=digest,
        codec=codec,
        version=version,
        setting=setting,
        width=width,
        height=height,
        file_bytes=len(data),
        bpp=metrics.bpp(len(data), width, height),
        mse=mse,
        psnr_db=metrics.psnr_db(mse),
        ms_ssim=metrics.ms_ssim(pixels, decoded),
        encode_ms=1e3 * (encoded - started),
        decode_ms=1e3 * (finished - read),
    )


def averages(measured: Iterable[Measurement]) -> dict[str, list[Average]]:
    """Per codec, one `Average` per setting by rising bpp. PSNR is the mean of the images' PSNR, as the literature has it."""
    groups: dict[tuple[str, float], list[Measurement]] = defaultdict(list)
    for row in measured:
        groups[row.codec, row.setting].append(row)
    result: dict[str, list[Average]] = defaultdict(list)
    for (codec, setting), rows in groups.items():
        megapixels = sum(row.width * row.height for row in rows) / 1e6
        similarity = [row.ms_ssim for row in rows if row.ms_ssim is not None]
        result[codec].append(
            Average(
                setting,
                float(np.mean([row.bpp for row in rows])),
                float(np.mean([row.psnr_db for row in rows])),
                float(np.mean(similarity)) if similarity else None,
                1e3 * megapixels / sum(row.encode_ms for row in rows),
                1e3 * megapixels / sum(row.decode_ms for row in rows),
            )
        )
    return {codec: sorted(points, key=lambda point: point.bpp) for codec, points in result.items()}


def bd_table(ours: Curve, others: Mapping[str, Curve]) -> list[tuple[str, list[float | None]]]:
    """BD-rate of `ours` against each other curve: whole overlap by PCHIP, the same by Akima, then windows of 3 dB from 26 to 50 dB."""
    return [
        (
            name,
            [metrics.bd_rate(curve, ours), metrics.bd_rate(curve, ours, method="akima")]
            + [metrics.bd_rate(curve, ours, window=window) for window in WINDOWS_DB],
        )
        for name, curve in others.items()
    ]


def markdown(
    means: Mapping[str, list[Average]], versions: Mapping[str, str], tables: Mapping[str, list[tuple[str, list[float | None]]]], warning: str = ""
) -> str:
    """The report: averages of every codec, then BD-rates of each of our models beside encoding times, with a warning if there is one."""
    lines = ["| codec | setting | bpp | PSNR (dB) | MS-SSIM | encode Mpx/s | decode Mpx/s |", "| --- " * 7 + "|"]
    for codec, points in means.items():
        for p in points:
            similarity = "" if p.ms_ssim is None else f"{p.ms_ssim:.5f}"
            lines.append(f"| {codec} | {p.setting:g} | {p.bpp:.4f} | {p.psnr_db:.3f} | {similarity} | {p.encode_mpx_s:.2f} | {p.decode_mpx_s:.2f} |")
    lines += ["", "Versions: " + "; ".join(f"{codec}: {version}" for codec, version in versions.items()) + "."]
    windows = [f"{low}-{high}" for low, high in WINDOWS_DB]
    seconds = {codec: f"{np.mean([1 / p.encode_mpx_s for p in points]):.2f}" for codec, points in means.items()}
    for codec, table in tables.items():
        lines += ["", f"BD-rate of {codec} in %, negative where it needs fewer bits; PCHIP, and Akima for the whole overlap."]
        lines += [f"Seconds are means over a codec's settings; {codec} itself: {seconds[codec]} s/Mpx.", *([f"**{warning}**"] if warning else []), ""]
        lines += [f"| against | encode s/Mpx | whole | Akima | {' | '.join(f'{w} dB' for w in windows)} |", "| --- " * (4 + len(windows)) + "|"]
        lines += [f"| {name} | {seconds.get(name, '')} | {' | '.join('' if v is None else f'{v:+.1f}' for v in values)} |" for name, values in table]
    return "\n".join(lines) + "\n"


def draw(means: Mapping[str, list[Average]], references: Mapping[str, Curve], ours: Iterable[str], output: Path) -> None:
    """RD curves as a PNG: what was measured here in full lines, reference curves dashed.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 6.5))
    own = set(ours)
    for codec, points in means.items():
        wide = codec in own
        axes.plot(
            [p.bpp for p in points], [p.psnr_db for p in points], "o-", linewidth=2.2 if wide else 1.2, markersize=4 if wide else 2.5, label=codec
        )
    for name, curve in references.items():
        axes.plot(*zip(*sorted(curve), strict=True), "--", linewidth=0.9, label=name)
    top = max(p.bpp for codec in own for p in means[codec])
    axes.set(xlim=(0, 1.05 * top), xlabel="bits per pixel (files)", ylabel="PSNR (dB, RGB, mean of images)")
    axes.set_ylim(min(p.psnr_db for codec in own for p in means[codec]) - 1.5, max(p.psnr_db for codec in own for p in means[codec]) + 1.5)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncol=2)
    figure.tight_layout()
    figure.savefig(output, dpi=90)
    pyplot.close(figure)
