"""What pictures of less than full size cost and how good they are, of real files.

python -m infra.scales.measure kodak FOLDER [--q 1 5 9] [--json FILE]      PSNR, bytes, time at every scale, against the full decode
python -m infra.scales.measure s3 SOURCE WORK [--images 1000] [--side 256] [--delay 0.02] [--json FILE]
                                                                          thumbnails of an archive on a real S3 server: requests, bytes, seconds
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infra.local.proxy import Fault, FaultProxy
from infra.local.s3 import BUCKET, LocalS3
from jobs.cli import main as msinn
from msinn_core import bitstream, metrics
from msinn_core.codec import Codec
from msinn_core.heads import SCALES
from msinn_core.model_file import load_model
from msinn_core.picture import Picture
from msinn_core.reduction import reduced_picture
from pipeline.formats import images
from pipeline.sources import Fetcher, scan

_ROUNDS = 3
_MAX_PIXELS = 100_000_000


def pictures(source: str) -> Iterator[tuple[str, Picture]]:
    """RGB pictures of a source, with their names."""
    for record in scan(source).records:
        picture = images.load(Fetcher().fetch(record.part), max_pixels=_MAX_PIXELS, name=record.name).picture
        if picture is not None and picture.pixels.ndim == 3:
            yield record.name, Picture(pixels=picture.pixels)


def kodak(folder: str, rates: list[float]) -> list[dict[str, Any]]:
    """A row for each image, rate and scale."""
    codec, rows = Codec(load_model()), []
    for name, picture in pictures(folder):
        for q in rates:
            data = codec.encode(picture, q)
            full, spent = codec.decode(data)[0], {scale: [] for scale in (1, *SCALES)}  # type: dict[int, list[float]]
            found = {}
            for _ in range(_ROUNDS):  # in turns: what else the machine does strikes all alike
                for scale, seconds in spent.items():
                    began = time.process_time()
                    found[scale] = codec.decode(data)[0] if scale == 1 else codec.decode_reduced(data, scale)
                    seconds.append(time.process_time() - began)
            for scale in SCALES:
                of = metrics.mse(found[scale].pixels, reduced_picture(full, scale).pixels)
                to = metrics.mse(found[scale].pixels, reduced_picture(picture, scale).pixels)
                best = metrics.mse(reduced_picture(full, scale).pixels, reduced_picture(picture, scale).pixels)
                rows.append(
                    {
                        "image": name,
                        "q": q,
                        "scale": scale,
                        "psnr_db": metrics.psnr_db(of),
                        "psnr_to_original_db": metrics.psnr_db(to),
                        "full_to_original_db": metrics.psnr_db(best),
                        "bytes": bitstream.prefix_of(data, codec.heads[scale].num_streams).size,
                        "full_bytes": len(data),
                        "cpu_s": min(spent[scale]),
                        "full_cpu_s": min(spent[1]),
                    }
                )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Means over images, for the README."""
    lines = ["| q | scale | PSNR (least) | to the original (the full decode's) | bytes | CPU time |", "| --- | --- | --- | --- | --- | --- |"]
    for q, scale in sorted({(row["q"], row["scale"]) for row in rows}):
        some = [row for row in rows if (row["q"], row["scale"]) == (q, scale)]
        mean = {name: float(np.mean([row[name] for row in some])) for name in some[0] if name != "image"}
        size, cpu = (float(np.mean([row[name] / row[f"full_{name}"] for row in some])) for name in ("bytes", "cpu_s"))
        least = min(row["psnr_db"] for row in some)
        against = f"{mean['psnr_to_original_db']:.1f} ({mean['full_to_original_db']:.1f})"
        lines.append(f"| {q:g} | 1/{scale} | {mean['psnr_db']:.1f} ({least:.1f}) dB | {against} dB | {100 * size:.0f} % | {100 * cpu:.0f} % |")
    return "\n".join(lines)


def s3(source: str, work: Path, count: int, side: int, delay_s: float) -> list[dict[str, Any]]:
    """A row for each scale: an archive of `count` crops, restored from a server in this process and to a local folder."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "in").mkdir(parents=True)
    _crops(source, work / "in", count, side)
    server = LocalS3(work / "s3")
    proxy = FaultProxy(server.url, [Fault("delay", method="GET", path=r"\.tar", seconds=delay_s)] if delay_s else [])
    seen: list[int | None] = []

    def watch(request: Any) -> None:
        if request.method == "GET" and ".tar" in request.path:
            first, _, last = request.headers.get("Range", "").removeprefix("bytes=").partition("-")
            seen.append(int(last) - int(first) + 1 if last else None)

    proxy.watch = watch
    try:
        os.environ |= server.environment(proxy.url)
        url, rows = f"s3://{BUCKET}/archive", []
        quietly("compress", str(work / "in"), url, "--q", "5", "--executor", "local")
        for scale in (1, *SCALES):
            seen.clear()
            began, cpu = time.monotonic(), time.process_time()
            quietly("restore", url, str(work / f"out{scale}"), "--executor", "local", *(["--scale", str(scale)] if scale > 1 else []))
            wall, used = time.monotonic() - began, time.process_time() - cpu
            known = [size for size in seen if size is not None]
            rows.append({"scale": scale, "images": count, "requests": len(seen), "bytes": sum(known), "wall_s": wall, "cpu_s": used})
        return rows
    finally:
        proxy.close()
        server.close()


def quietly(*words: str) -> None:
    """A command of ours, in this process. Raises `RuntimeError` if it does not succeed."""
    with contextlib.redirect_stdout(io.StringIO()):
        if code := msinn(["-q", *words]):
            raise RuntimeError(f"msinn {words[0]} ends with exit code {code}")


def _crops(source: str, folder: Path, count: int, side: int) -> None:
    """As many crops as wanted, several of an image, each another one."""
    made, rng = 0, np.random.default_rng(0)
    while made < count:
        for _, picture in pictures(source):
            height, width = picture.pixels.shape[:2]
            if made == count or min(height, width) < side:
                continue
            y, x = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
            Image.fromarray(picture.pixels[y : y + side, x : x + side]).save(folder / f"{made:05d}.png", compress_level=1)
            made += 1


def main() -> None:
    """Measure, and print a table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = p.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("kodak")
    one.add_argument("folder")
    one.add_argument("--q", nargs="+", type=float, default=[1.0, 5.0, 9.0])
    many = verbs.add_parser("s3")
    many.add_argument("source")
    many.add_argument("work", type=Path)
    many.add_argument("--images", type=int, default=1000)
    many.add_argument("--side", type=int, default=256)
    many.add_argument("--delay", type=float, default=0.02, help="seconds before each answer of the store")
    for verb in (one, many):
        verb.add_argument("--json", type=Path)
    arguments = p.parse_args()
    rows = kodak(arguments.folder, arguments.q) if arguments.verb == "kodak" else _thumbnails(arguments)
    print(table(rows) if arguments.verb == "kodak" else "\n".join(map(str, rows)))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def _thumbnails(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    return s3(arguments.source, arguments.work, arguments.images, arguments.side, arguments.delay)


if __name__ == "__main__":
    main()
