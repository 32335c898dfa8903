"""`msinn bench run`: whole runs against as many bare loops of the codec on the same images: what the pipeline costs beside it."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import uuid
from collections.abc import Sequence
from typing import Any

from msinn_core import metrics
from msinn_core.codec import Codec
from msinn_core.model_file import load_model
from pipeline.archive.commits import Commit
from pipeline.execute.placement import Placement
from pipeline.formats.images import load
from pipeline.plan.config import Budget, CompressConfig
from pipeline.run.compress import Run
from pipeline.sources import Fetcher, scan


class Clock:
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
    """Read, decode, encode, read back and compare, with nothing around it, and no sample of a second decoder's."""
    import torch

    torch.set_num_threads(1)
    codec, fetcher = Codec(load_model()), Fetcher()
    records = scan(images).records[part::parts]
    barrier.wait()
    started = time.perf_counter()
    for record in records:
        picture = load(fetcher.fetch(record.part), max_pixels=32_000_000, name=record.name).picture
        if picture is not None:
            symbols = codec.compress(codec.transform(picture), q, keep_walk=True)
            decoded, _ = codec.decode_known(codec.pack(symbols), symbols)
            metrics.mse(decoded.pixels, picture.pixels)
    results.put(time.perf_counter() - started)


def bench_run(images: str, *, workers: Sequence[int], destination: str | None, q: float) -> None:
    """Print images per second of both, with each number of workers.

    Args:
        images: Folder, tar or Parquet.
        workers: Numbers of workers to try.
        destination: Where archives go; None for a temporary folder.
        q: Rate index.
    """
    count = len(scan(images).records)
    context = multiprocessing.get_context("spawn")
    for number in workers:
        results, barrier = context.Queue(), context.Barrier(number)
        loops = [context.Process(target=_bare, args=(images, q, i, number, results, barrier)) for i in range(number)]
        for loop in loops:
            loop.start()
        bare = max(results.get() for _ in loops)
        for loop in loops:
            loop.join()
        with tempfile.TemporaryDirectory() as folder:
            place = f"{destination or folder}/bench-{uuid.uuid4().hex[:8]}"
            clock, placement = Clock(), Placement(workers=number)
            Run(images, place, CompressConfig(budget=Budget(kind="q", value=q)), clock, placement=placement).execute()
        times = sorted(clock.commits)
        took = times[-1][0] - clock.phases["begin"]
        steady = sum(images for _, images in times[1:]) / max(times[-1][0] - times[0][0], 1e-9)
        print(
            f"{number} workers, {count} images: bare loops {count / bare:.2f} images/s; run {count / took:.2f} images/s with its start "
            f"({100 * bare / took:.0f} %), {steady:.2f} from the first commit to the last ({100 * steady * bare / count:.0f} %)"
        )
