"""`msinn bench driver`: a run of very many tiny images with a codec that does nothing: time and memory of the driver."""

from __future__ import annotations

import io
import os
import resource
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from msinn_core.coding import Symbols
from pipeline.encode.tasks import WorkConfig
from pipeline.encode.worker import ShardWorker
from pipeline.errors import UsageError
from pipeline.execute import connection
from pipeline.execute.placement import Placement
from pipeline.lab.bench_run import Clock
from pipeline.plan.config import Budget, CompressConfig
from pipeline.run.compress import Run, make_worker


def idle_worker(models: Sequence[bytes], url: str, config: WorkConfig, threads: int = 1) -> ShardWorker:
    """A real worker whose codec does nothing: its bitstreams are a few bytes, and decode to the picture that was last encoded."""
    worker = make_worker(models, url, config)
    for coder in worker.coder.coders:
        coder.codec = coder.checker = _NoCodec(coder.codec)  # type: ignore[assignment]
    return worker


class _NoCodec:
    def __init__(self, real: Any) -> None:
        self.model, self.q_max = real.model, real.q_max
        self._pictures: dict[bytes, Any] = {}
        self._count = 0

    def transform(self, picture: Any) -> Any:
        return picture

    def compress(self, latents: Any, q: float, *, keep_walk: bool) -> Any:
        return Symbols(latents, q, [], [])

    def pack(self, symbols: Any) -> bytes:
        self._count += 1
        data = b"nothing" + self._count.to_bytes(8, "big")
        self._pictures[data] = symbols.picture
        return data

    def decode_known(self, data: bytes, symbols: Any) -> Any:
        return self._pictures.pop(bytes(data)), []


def bench_driver(num_images: int, *, workers: int, plot: str | None) -> None:
    """Print CPU time of the driver per image, and its memory and that of the workers early and late in the run.

    Args:
        num_images: Of 16 x 16 pixels.
        workers: On Ray.
        plot: PNG of the memory over time, or None.
    """
    samples: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        _fill(source, num_images)
        began, stop = time.perf_counter(), threading.Event()

        def watch() -> None:
            while not stop.wait(0.5):
                samples.append((time.perf_counter() - began, _memory("self"), sum(_memory(pid) for pid in _workers())))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        clock = Clock()
        config, placement = CompressConfig(budget=Budget(kind="q", value=5)), Placement(executor="ray", workers=workers)
        run = Run(str(source), f"{folder}/out", config, clock, placement=placement, worker=idle_worker)
        before = resource.getrusage(resource.RUSAGE_SELF)
        run.execute()
        after = resource.getrusage(resource.RUSAGE_SELF)
        stop.set()
        watcher.join()
        took = time.perf_counter() - clock.phases["encode"]
        connection.disconnect()
    cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / num_images
    encode = clock.phases["encode"] - began
    encoding = [sample for sample in samples if sample[0] > encode]
    third = max(1, len(encoding) // 3)
    print(f"{num_images:,} images, {workers} workers: encoded, written, sealed in {took:.1f} s ({1e3 * took / num_images:.3f} ms each)")
    print(f"driver: {1e3 * cpu:.3f} ms of CPU per image after the scan")
    for name, column in (("driver", 1), ("workers", 2)):
        early, late = (max(sample[column] for sample in part) for part in (encoding[:third], encoding[-third:]))
        print(f"memory of {name}: {early:.0f} MiB at most in the first third of encoding, {late:.0f} MiB in the last")
    if plot:
        _draw(samples, encode, plot)


def _fill(source: Path, num_images: int) -> None:
    """Tiny PNGs of 64 kinds, a thousand to a folder."""
    rng = np.random.default_rng(0)
    tiny = []
    for _ in range(64):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(out, "PNG")
        tiny.append(out.getvalue())
    for i in range(num_images):
        folder = source / f"{i // 1000:05d}"
        if i % 1000 == 0:
            folder.mkdir(parents=True)
        (folder / f"{i:08d}.png").write_bytes(tiny[i % 64])


def _memory(pid: str) -> float:
    """Resident MiB of a process, 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return 0.0


def _parent(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    except OSError:
        return ""


def _workers() -> list[str]:
    """Actors of our own Ray: children of its raylet, which is a child of ours."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                name = (place / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::_Holder") and _parent(_parent(place.name)) == str(os.getpid()):
                found.append(place.name)
    return found


def _draw(samples: list[tuple[float, float, float]], encode: float, path: str) -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("--plot needs matplotlib: pip install 'msinn[train]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    seconds = [sample[0] for sample in samples]
    axes.plot(seconds, [sample[1] for sample in samples], label="driver")
    axes.plot(seconds, [sample[2] for sample in samples], label="workers, together")
    axes.axvline(encode, color="grey", linestyle=":", label="encoding begins")
    axes.set(xlabel="seconds", ylabel="resident MiB", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
