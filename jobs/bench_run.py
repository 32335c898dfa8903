"""`msinn bench run` and `msinn bench driver`: what the pipeline costs beside the codec."""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.archive.commits import Commit
    from pipeline.encode.tasks import WorkConfig
    from pipeline.encode.worker import ShardWorker


def add_actions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the two."""
    action = actions.add_parser("run", help="whole runs with 1, 2, ... workers against as many bare loops of the codec on the same images")
    action.add_argument("images", metavar="IMAGES")
    action.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N")
    action.add_argument("--destination", metavar="URL", help="where archives go (default: a temporary folder)")
    action.add_argument("--q", type=float, default=5.0)
    action.set_defaults(command=_bench_run)
    action = actions.add_parser("driver", help="a run of very many tiny images with a codec that does nothing: time and memory of the driver")
    action.add_argument("--images", type=int, default=100_000, metavar="N")
    action.add_argument("--workers", type=int, default=1, metavar="N")
    action.add_argument("--plot", metavar="FILE.png", help="memory over time")
    action.set_defaults(command=_bench_driver)


class _Clock:
    """A reporter that remembers when images were committed."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self.commits: list[tuple[float, int]] = []

    def begin(self, *, images: int, shards: int, source_bytes: int, resumed: int) -> None:
        self.phases["begin"] = time.perf_counter()

    def phase(self, name: str, images: int) -> None:
        self.phases[name] = time.perf_counter()

    def committed(self, record: Commit) -> None:
        self.commits.append((time.perf_counter(), record.images))

    def advance(self, *, images: int) -> None: ...

    def planned(self, predicted_bytes: float, budget_bytes: float | None) -> None: ...

    def warn(self, message: str) -> None: ...

    def note(self, message: str) -> None: ...

    def trouble(self, kind: str, job: str, reason: str) -> None: ...

    def tick(self) -> None: ...

    def close(self) -> None: ...


def _bare(images: str, q: float, part: int, parts: int, results: Any, barrier: Any) -> None:
    """Read, decode, encode, decode again and compare, with nothing around it."""
    import torch

    from msinn_core import metrics
    from msinn_core.codec import Codec
    from msinn_core.model_file import load_model
    from pipeline.formats import images as pictures
    from pipeline.sources import Fetcher, scan

    torch.set_num_threads(1)
    codec, fetcher = Codec(load_model()), Fetcher()
    records = scan(images).records[part::parts]
    barrier.wait()
    started = time.perf_counter()
    for record in records:
        picture = pictures.load(fetcher.fetch(record.part), max_pixels=32_000_000, name=record.name).picture
        if picture is not None:
            decoded, _ = codec.decode(codec.encode(picture, q))
            metrics.mse(decoded.pixels, picture.pixels)
    results.put(time.perf_counter() - started)


def _bench_run(arguments: argparse.Namespace) -> int:
    import multiprocessing
    import uuid

    from pipeline.execute import connection
    from pipeline.execute.placement import Placement
    from pipeline.plan.config import Budget, CompressConfig
    from pipeline.run.compress import Run
    from pipeline.sources import scan

    count = len(scan(arguments.images).records)
    context = multiprocessing.get_context("spawn")
    for workers in arguments.workers:
        results, barrier = context.Queue(), context.Barrier(workers)
        loops = [context.Process(target=_bare, args=(arguments.images, arguments.q, i, workers, results, barrier)) for i in range(workers)]
        for loop in loops:
            loop.start()
        bare = max(results.get() for _ in loops)
        for loop in loops:
            loop.join()
        with tempfile.TemporaryDirectory() as folder:
            destination = f"{arguments.destination or folder}/bench-{uuid.uuid4().hex[:8]}"
            clock, placement = _Clock(), Placement(executor="ray", workers=workers)
            Run(arguments.images, destination, CompressConfig(budget=Budget(kind="q", value=arguments.q)), clock, placement=placement).execute()
            connection.disconnect()
        times = sorted(clock.commits)
        took = times[-1][0] - clock.phases["begin"]
        steady = sum(images for _, images in times[1:]) / max(times[-1][0] - times[0][0], 1e-9)
        print(
            f"{workers} workers, {count} images: bare loops {count / bare:.2f} images/s; run {count / took:.2f} images/s with its start "
            f"({100 * bare / took:.0f} %), {steady:.2f} from the first commit to the last ({100 * steady * bare / count:.0f} %)"
        )
    return 0


def idle_worker(model: bytes, url: str, config: WorkConfig, threads: int = 1) -> ShardWorker:
    """A real worker whose codec does nothing: its bitstreams are a few bytes, and decode to the picture that was last encoded."""
    from pipeline.run.compress import make_worker

    worker = make_worker(model, url, config)
    worker.codec = _NoCodec(worker.codec)  # type: ignore[assignment]
    return worker


class _NoCodec:
    def __init__(self, real: Any) -> None:
        self.model, self.q_max = real.model, real.q_max
        self._pictures: dict[bytes, Any] = {}
        self._count = 0

    def transform(self, picture: Any) -> Any:
        return picture

    def compress(self, latents: Any, q: float) -> Any:
        from msinn_core.codec import Symbols

        return Symbols(latents, q, [], [])

    def pack(self, symbols: Any) -> bytes:
        self._count += 1
        data = b"nothing" + self._count.to_bytes(8, "big")
        self._pictures[data] = symbols.picture
        return data

    def decode(self, data: bytes) -> Any:
        return self._pictures.pop(bytes(data)), []


def _bench_driver(arguments: argparse.Namespace) -> int:
    import io

    import numpy as np
    from PIL import Image

    from pipeline.execute import connection
    from pipeline.execute.placement import Placement
    from pipeline.plan.config import Budget, CompressConfig
    from pipeline.run.compress import Run

    samples: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        rng = np.random.default_rng(0)
        tiny = []
        for _ in range(64):
            out = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(out, "PNG")
            tiny.append(out.getvalue())
        for i in range(arguments.images):
            if i % 1000 == 0:
                (source / f"{i // 1000:05d}").mkdir(parents=True)
            (source / f"{i // 1000:05d}" / f"{i:08d}.png").write_bytes(tiny[i % 64])
        began, stop = time.perf_counter(), threading.Event()

        def watch() -> None:
            while not stop.wait(0.5):
                samples.append((time.perf_counter() - began, _memory("self"), sum(_memory(pid) for pid in _workers())))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        clock = _Clock()
        config, placement = CompressConfig(budget=Budget(kind="q", value=5)), Placement(executor="ray", workers=arguments.workers)
        run = Run(str(source), f"{folder}/out", config, clock, placement=placement, worker=idle_worker)
        before = resource.getrusage(resource.RUSAGE_SELF)
        run.execute()
        after = resource.getrusage(resource.RUSAGE_SELF)
        stop.set()
        watcher.join()
        took = time.perf_counter() - clock.phases["encode"]
        connection.disconnect()
    cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / arguments.images
    encoding = [sample for sample in samples if sample[0] > clock.phases["encode"] - began]
    third = max(1, len(encoding) // 3)
    each = 1e3 * took / arguments.images
    print(f"{arguments.images:,} images, {arguments.workers} workers: encoded, written, sealed in {took:.1f} s ({each:.3f} ms each)")
    print(f"driver: {1e3 * cpu:.3f} ms of CPU per image after the scan")
    for name, column in (("driver", 1), ("workers", 2)):
        early, late = (max(sample[column] for sample in part) for part in (encoding[:third], encoding[-third:]))
        print(f"memory of {name}: {early:.0f} MiB at most in the first third of encoding, {late:.0f} MiB in the last")
    if arguments.plot:
        _draw(samples, clock.phases["encode"] - began, arguments.plot)
    return 0


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
    from pipeline.errors import UsageError

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
