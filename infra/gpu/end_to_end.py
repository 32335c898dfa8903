"""The pipeline's workers on a GPU, beside the CPU's and a GPU's without batches: files on disk to an archive, and back. Called by bench.py."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msinn_core.integer.gpu import engine as gpu_engine
from pipeline.archive.archive import Archive
from pipeline.archive.layout import sha256
from pipeline.execute.placement import Placement
from pipeline.lab.bench_run import Clock
from pipeline.plan.config import Budget, CompressConfig
from pipeline.read import verify
from pipeline.read.restore import restore
from pipeline.run.compress import Run

LOCAL = Placement(executor="local")
FEW = 48
"""Files of the run without batches, which takes ten times as long."""

STEPS = ("fetch_ms", "decode_ms", "model_ms", "entropy_ms", "verify_ms")


class Said(Clock):
    """A clock that remembers warnings too: a GPU that gave way would make the figures the CPU's."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def end_to_end(pictures: Sequence[NDArray[np.uint8]], device: str, model: str, count: int) -> dict[str, Any]:
    """Compress `count` files, half PNG and half JPEG, restore and verify them, on the CPU and on a device; compare every byte.

    Args:
        pictures: What the files show, each at several places.
        device: `cuda`, or `cpu` to try the benchmark itself.
        model: Its name.
        count: Files.
    """
    with tempfile.TemporaryDirectory(prefix="msinn-bench-") as name:
        folder = Path(name)
        megapixels = _write(folder / "in", pictures, count)
        few = _write(folder / "few", pictures, min(FEW, count))
        found: dict[str, Any] = {"files": count, "megapixels": round(megapixels, 1), "rows": []}

        def row(what: str, mpx: float, run: Callable[[], dict[str, Any]]) -> None:
            since = time.perf_counter()
            extra = run()
            seconds = time.perf_counter() - since
            found["rows"].append({"what": what, "seconds": round(seconds, 2), "mpx_s": round(mpx / seconds, 1), **extra})
            print(found["rows"][-1], flush=True)

        for what, where in (("cpu", "cpu"), ("gpu, first", device), ("gpu", device)):
            row(f"compress, {what}", megapixels, lambda where=where, what=what: _compress(folder, "in", what, model, where))  # type: ignore[misc]
        budget = Budget(kind="bytes", value=1.1 * sum(path.stat().st_size for path in (folder / "gpu" / "shards").iterdir()))
        row("compress --bytes, gpu", megapixels, lambda: _compress(folder, "in", "budget", model, device, budget))
        with _one_by_one():
            row("compress, gpu one by one", few, lambda: _compress(folder, "few", "one by one", model, device))
        for what, where in (("cpu", "cpu"), ("gpu", device)):
            row(f"restore, {what}", megapixels, lambda where=where, what=what: _restore(folder, "cpu", f"out {what}", where))  # type: ignore[misc]
            row(f"verify --decode, {what}", megapixels, lambda where=where: _verify(folder / "cpu", where))  # type: ignore[misc]
        with _one_by_one():
            row("restore, gpu one by one", few, lambda: _restore(folder, "one by one", "out one by one", device))
        found["shards_different"] = len({tuple(_hashes(folder / what / "shards")) for what in ("cpu", "gpu, first", "gpu")}) - 1
        found["files_different"] = _different(folder / "out cpu", folder / "out gpu")
        # A GPU that gave way to the CPU would make these the CPU's figures.
        on_gpu = [name for row in found["rows"] if "gpu" in row["what"] for name in row.get("encoders", row.get("computed_on", []))]
        found["devices_different"] = sum(not name.startswith(device) for name in on_gpu)
        return found


def _write(folder: Path, pictures: Sequence[NDArray[np.uint8]], count: int) -> float:
    """Files that differ; returns their megapixels."""
    folder.mkdir()

    def one(i: int) -> int:
        pixels = np.roll(pictures[i % len(pictures)], 5 * i, axis=1)
        pixels = pixels[::-1] if i // len(pictures) % 2 else pixels
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if i % 2:
            image.save(folder / f"{i:04d}.jpg", quality=95)
        else:
            image.save(folder / f"{i:04d}.png", compress_level=1)
        return image.width * image.height

    with ThreadPoolExecutor() as threads:
        return sum(threads.map(one, range(count))) / 1e6


@contextmanager
def _one_by_one() -> Iterator[None]:
    """Batches of one picture: what workers did before they had batches."""
    before, gpu_engine.MEMORY_SHARE = gpu_engine.MEMORY_SHARE, 0.0
    try:
        yield
    finally:
        gpu_engine.MEMORY_SHARE = before


def _compress(folder: Path, source: str, archive: str, model: str, device: str, budget: Budget | None = None) -> dict[str, Any]:
    config = CompressConfig(budget=budget or Budget(kind="q", value=6.0), model=model, device=device)
    clock = Said()
    Run(str(folder / source), str(folder / archive), config, clock, placement=LOCAL).execute()
    rows = Archive(str(folder / archive)).manifest(["status", "encoder", *STEPS]).to_pylist()
    coded = [row for row in rows if row["status"] == "coded"]
    return {
        "coded": len(coded),
        "encoders": sorted({row["encoder"] for row in coded}),
        "warnings": clock.warnings,
        "analyse_s": round(clock.phases["encode"] - clock.phases["analyse"], 2) if "analyse" in clock.phases else 0.0,
        # Of all threads together: what the host's cores, and the device in `model_ms`, were asked for.
        "thread_seconds": {step[:-3]: round(sum(row[step] for row in coded) / 1e3, 2) for step in STEPS},
    }


def _restore(folder: Path, archive: str, out: str, device: str) -> dict[str, Any]:
    result = restore(str(folder / archive), str(folder / out), placement=LOCAL, device=device)
    return {"images": result.images, "problems": result.problems[:3], "computed_on": sorted(result.computed_on)}


def _verify(archive: Path, device: str) -> dict[str, Any]:
    result = verify.decode(str(archive), placement=LOCAL, device=device)
    return {"images": result.images, "problems": result.problems[:3], "computed_on": sorted(result.computed_on)}


def _hashes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _different(one: Path, other: Path) -> int:
    """Files that are not the same in both folders."""
    names = {path.name for folder in (one, other) for path in folder.iterdir()}

    def same(name: str) -> bool:
        paths = one / name, other / name
        return all(path.exists() for path in paths) and len({sha256(path.read_bytes()) for path in paths}) == 1

    return sum(not same(name) for name in names)
