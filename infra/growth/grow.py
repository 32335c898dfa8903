"""An archive grows: images added, changed and removed, the growth killed half way and finished, every generation restored and compared.

python -m infra.growth.grow WORK [--images 300] [--size 192] [--json FILE]
python -m infra.growth.grow --listing 100000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.archive import manifest
from pipeline.archive.archive import Archive
from pipeline.formats.parquet import read_bounded
from pipeline.read.diff import Comparison
from pipeline.read.restore import restore
from pipeline.sources.compare import compare, known, known_of_table
from pipeline.sources.record import FILE, SCAN_SCHEMA, Part, SourceRecord, names_given, to_table, with_restore_names

PHOTOS = Path(__file__).parents[1] / "demo" / "photos"
ADDED, CHANGED, REMOVED = 40, 10, 5


def crop(photos: list[Path], number: int, size: int) -> Image.Image:
    """A part of a demo photo, another one for each number."""
    rng = np.random.default_rng(number)
    with Image.open(photos[number % len(photos)]) as photo:
        left, top = rng.integers(0, photo.width - size + 1), rng.integers(0, photo.height - size + 1)
        return photo.convert("RGB").crop((left, top, left + size, top + size))


def msinn(*arguments: str) -> list[str]:
    """A command line of ours, in a process of its own."""
    return [sys.executable, "-m", "jobs", "-q", *arguments]


def run(*arguments: str) -> tuple[float, dict[str, Any]]:
    """Seconds and the JSON summary of a command. Raises `CalledProcessError` if it fails."""
    started = time.monotonic()
    done = subprocess.run(msinn(*arguments), check=True, capture_output=True, text=True)
    return time.monotonic() - started, json.loads(done.stdout) if done.stdout.startswith("{") else {}


def killed(archive: Path, *arguments: str) -> dict[str, bytes]:
    """Start a command and kill its whole process group once something of the new generation is committed; the commits that are there then."""
    process = subprocess.Popen(msinn(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list(archive.glob("generations/*/commits/*.json")):
        time.sleep(0.01)
    if process.poll() is not None:
        raise SystemExit("the growth ended before it could be killed: take more or larger images")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return {str(path): path.read_bytes() for path in archive.glob("generations/*/commits/*.json")}


def hashes(folder: Path) -> dict[str, str]:
    """Of every file."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def change(source: Path, photos: list[Path], images: int, size: int) -> None:
    """Add, change and remove some."""
    for i in range(images, images + ADDED):
        crop(photos, i, size).save(source / f"{i:04d}.png")
    for i in range(0, CHANGED * 4, 4):
        crop(photos, 10_000 + i, size).save(source / f"{i:04d}.png")
    for i in range(5, 5 + REMOVED * 10, 10):
        (source / f"{i:04d}.png").unlink()


def show(work: Path, images: int, size: int) -> dict[str, Any]:
    """The whole, with figures."""
    source, archive = work / "in", work / "archive"
    source.mkdir(parents=True)
    photos = sorted(PHOTOS.rglob("*.webp"))
    for i in range(images):
        crop(photos, i, size).save(source / f"{i:04d}.png")
    common = (str(source), str(archive), "--executor", "processes", "--workers", "1", "--json")
    first_s, first = run("compress", *common, "--bpp", "1.0")
    restore(str(archive), str(work / "before"))
    older = hashes(archive)
    shutil.copytree(archive, work / "to-a-total")
    time.sleep(0.01)  # so that a file that is written again has another time
    change(source, photos, images, size)
    there = killed(archive, "compress", *common, "--grow")
    invisible = Archive(str(archive)).newest
    growth_s, grown = run("compress", *common, "--grow")
    after = hashes(archive)
    sealed, found = grown["sealed"], grown["grown"]
    counts = {number: restore(str(archive), str(work / f"generation-{number}"), generation=number).images for number in (1, 2)}
    nothing_s, nothing = run("compress", *common, "--grow")
    _, total = run("compress", str(source), str(work / "to-a-total"), *common[2:], "--grow", "--bpp", "1.0")
    old, new = (_quality(archive, later=later) for later in (False, True))
    return {
        "images": images,
        "size": size,
        "first": {"seconds": round(first_s, 1), "bytes": first["sealed"]["counted_bytes"], "budget_bytes": first["sealed"]["budget_bytes"]},
        "killed_after_commits": len(there),
        "newest_after_kill": invisible,
        "commits_kept_to_the_byte": all(Path(path).read_bytes() == data for path, data in there.items()),
        "growth": {
            "seconds": round(growth_s, 1),
            **found,
            "shards_encoded": grown["shards_encoded"],
            "shards_resumed": grown["shards_resumed"],
            "own_bytes": sealed["own"]["counted_bytes"],
            "own_pixels": sealed["own"]["pixels"],
            "own_bpp": round(8 * sealed["own"]["counted_bytes"] / sealed["own"]["pixels"], 4),
            "counted_bytes": sealed["counted_bytes"],
        },
        "old_images": old,
        "new_images": new,
        "older_objects_changed": sorted(name for name in older if after[name] != older[name]),
        "restored": counts,
        "generation_1_equals_restore_before": hashes(work / "before") == hashes(work / "generation-1"),
        "generation_2_against_source": dict(_compared(archive, source)),
        "to_a_total_of_1_bpp": {name: total["sealed"][name] for name in ("counted_bytes", "budget_bytes", "pixels")},
        "new_images_to_a_total": _quality(work / "to-a-total", later=True),
        "again": {"seconds": round(nothing_s, 1), **nothing["grown"]},
    }


def _quality(archive: Path, *, later: bool) -> dict[str, Any]:
    """Mean PSNR and bits per pixel of images of generation 1, or of later ones."""
    rows = Archive(str(archive)).manifest(["shard_key", "psnr_db", "stored_bytes", "pixels", "codec"]).to_pylist()
    chosen = [row for row in rows if row["shard_key"].startswith("generations/") == later and row["codec"] == "msinn"]
    return {
        "images": len(chosen),
        "mean_psnr_db": round(float(np.mean([row["psnr_db"] for row in chosen])), 2),
        "bpp": round(8 * sum(row["stored_bytes"] for row in chosen) / sum(row["pixels"] for row in chosen), 4),
    }


def _compared(archive: Path, source: Path) -> dict[str, int]:
    comparison = Comparison()
    list(comparison.run(str(archive), str(source)))
    return comparison.counts


def listing(count: int, changed: int = 1000) -> dict[str, float]:
    """Seconds that a growth takes for `count` images of which `changed` are not as they were, without reading any: its listings compared."""
    names = (f"{i % 1000:03d}/{i:09d}.jpg" for i in range(count))
    records = with_restore_names(
        SourceRecord(i, name, Part(FILE, f"/photos/{name}", 1000 + i, mtime_us=1_700_000_000_000_000 + i)) for i, name in enumerate(names)
    )
    data = manifest.blocks_bytes(SCAN_SCHEMA, to_table(records, [i // 4096 for i in range(count)]))
    steps: dict[str, float] = {}
    started = time.perf_counter()
    table = read_bounded(data)
    steps["read the stored listing"] = time.perf_counter() - started
    started = time.perf_counter()
    before = known_of_table(table)
    steps["know it"] = time.perf_counter() - started
    started = time.perf_counter()
    now = known(record if record.index >= changed else SourceRecord(record.index, record.name, Part(FILE, "x", 1, mtime_us=5)) for record in records)
    steps["know the new one"] = time.perf_counter() - started
    started = time.perf_counter()
    found = compare(before, now)
    steps["compare"] = time.perf_counter() - started
    assert (len(found.same), len(found.doubtful)) == (count - changed, changed)
    started = time.perf_counter()
    with_restore_names((records[i] for i in range(changed)), names_given(table))
    steps["names that nobody has"] = time.perf_counter() - started
    steps["all"] = sum(steps.values())
    steps["stored listing, bytes"] = len(data)
    return {name: round(value, 2) for name, value in steps.items()}


def main() -> None:
    """See the module."""
    p = argparse.ArgumentParser()
    p.add_argument("work", nargs="?", type=Path)
    p.add_argument("--images", type=int, default=300)
    p.add_argument("--size", type=int, default=192)
    p.add_argument("--listing", type=int, metavar="N")
    p.add_argument("--json", type=Path, metavar="FILE")
    arguments = p.parse_args()
    if arguments.listing:
        facts: dict[str, Any] = listing(arguments.listing)
    else:
        facts = show(arguments.work or Path(tempfile.mkdtemp(prefix="msinn-growth-")), arguments.images, arguments.size)
    text = json.dumps(facts, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
