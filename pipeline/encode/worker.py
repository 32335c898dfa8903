"""What a worker holds and offers: the run's models, and jobs over shards. Knows no Ray and no other worker."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from msinn_core import VERSION
from msinn_core.entropy import rans
from msinn_core.integer.ops import COMPILED
from msinn_core.model_file import LoadedModel
from pipeline.archive import manifest
from pipeline.archive.commits import Commit
from pipeline.archive.row import Row
from pipeline.encode.analysis import analyse
from pipeline.encode.coders import Coders
from pipeline.encode.crosscheck import CrossCheck
from pipeline.encode.describe import Describer
from pipeline.encode.exact import ExactForms
from pipeline.encode.item import Item
from pipeline.encode.load import ItemLoader
from pipeline.encode.near import NearLossless
from pipeline.encode.preview import Written, sketch
from pipeline.encode.shard import LocalShard, local_shard, publish
from pipeline.encode.stream import encode_stream
from pipeline.encode.tasks import ImageTask, ShardTask, WorkConfig
from pipeline.encode.trim import encode_within
from pipeline.formats.records import columns, rows_of
from pipeline.limits import MAX_PARQUET_BYTES
from pipeline.sources import SourceRecord
from pipeline.store.base import Store

LOADER_PROCESSES = 8
"""Beside a GPU: so many open PNG as fast as it codes them, two would do for JPEG (`infra/gpu/README.md`); those that are not needed do not start."""


@dataclass(frozen=True, slots=True)
class TriedOut:
    """What came of some images that were encoded for a plan.

    Attributes:
        pixels: Of all of them.
        seconds: That encoding them took.
        written: What a restore would write of each that could be read.
    """

    pixels: int
    seconds: float
    written: tuple[Written, ...]


class ShardWorker:
    """Holds the models of a run and encodes or analyses shards with them.

    Args:
        models: The SHA-256 of that which codes it goes into every bitstream.
        store: The archive.
        config: The run's.
        device: Of the network.
        threads: Of the integer network.
    """

    def __init__(self, models: Sequence[LoadedModel], store: Store, config: WorkConfig, *, device: str = "cpu", threads: int = 1) -> None:
        self.store = store
        self.config = config
        self.coder = Coders(models, config, device=device, threads=threads)
        self.exact = ExactForms(config)
        self.loader = ItemLoader(config.max_pixels, 1 if self.coder.codec.batches is None else LOADER_PROCESSES, self.exact)
        self.encoder = f"msinn {VERSION}, {platform.machine()}"
        self.worker = f"{socket.gethostname()}:{os.getpid()}"
        self.cross_check = CrossCheck(self.coder.checkers, config.verify_sample, self.worker)
        self.near = (
            None if config.max_error is None else NearLossless(self.coder, self.exact, self.cross_check, config.max_error, ms_ssim=config.ms_ssim)
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What users should know of this machine; see `execute.base.remarks_of`."""
        said, engine = list(self.exact.remarks), self.coder.codec.engine
        if not (COMPILED and rans.COMPILED):
            said.append(
                "a worker has no compiled kernels (no C compiler when msinn was installed there, or another kind of machine): the same bytes, "
                "in a hundred times the time"
            )
        if self.coder.lost is not None:
            said.append(f"a GPU is not used any more ({self.coder.lost}): its worker goes on with its CPU, to the same bytes")
        elif self.config.device == "cuda" and self.coder.codec.batches is None and self.coder.codec.model.profile != "float":
            said.append(
                f"--device {self.config.device}: a worker computes on its CPU ({engine.name}), to the same bytes; on its machine "
                "`python -c \"import torch; torch.zeros(1, device='cuda')\"` says what its GPU lacks"
            )
        return tuple(said)

    def analyse(self, records: list[SourceRecord], lossless: Container[int] = ()) -> pa.Table:
        """Predicted curves of every image, as a table of `Analysed`. Images that cannot be coded get a reason and no curve.

        Args:
            records: The images.
            lossless: Numbers of those that are to lose nothing: what their exact form takes, and no curve.

        Raises:
            StorageError: The source's store failed.
        """
        tasks = [ImageTask(record, 0.0, min_psnr_db=np.inf if record.index in lossless else None) for record in records]
        items = self.loader.ahead(tasks, with_sidecars=self.config.count_sidecars, only_cost=True)
        if self.near is not None:
            items = self.near.costed(items)
        return analyse(items, self.coder, self.config)

    def encode(self, task: ShardTask) -> Commit:
        """Encode, verify, publish and commit one shard.

        Returns:
            The commit in force (another attempt's, if that was first).

        Raises:
            StorageError: The store failed.
            ManifestError: The local disk does not give back what was written.
            MachineError: This machine computes wrongly; nothing is published.
        """
        items: Iterable[Item]
        if task.limit_bytes is None:
            items = self._coded(task.images, self.config.target_psnr_db)
        else:
            items = encode_within(task.images, task.limit_bytes, self.loader, self.coder, self.config)
        with local_shard(self.exact.settled(self.cross_check.checked(items)), self._describer(task)) as shard:
            shard.verify()
            return publish(self.store, task, shard, count_sidecars=self.config.count_sidecars)

    def rehearse(self, task: ShardTask) -> int:
        """Everything of `encode` but writing, to find out what an image does to its worker; returns the number of images."""
        items = self._coded(task.images, self.config.target_psnr_db)
        return sum(1 for _ in self.exact.settled(self.cross_check.checked(items)))

    def try_out(self, task: ShardTask) -> TriedOut:
        """Some images encoded in full (fetched, coded, compared) but not stored: how long a plan takes, and what a restore will write."""
        started = time.perf_counter()
        pixels, sketches, describer = 0, [], self._describer(task)
        # The one image that a shard has cross-checked at least would weigh too much among so few.
        items = self.cross_check.checked(self._coded(task.images, self.config.target_psnr_db), at_least_one=False)
        for item in self.exact.settled(items):
            pixels += (item.loaded.info.width or 0) * (item.loaded.info.height or 0)
            sketches.append(sketch(item, self.coder, self.exact, describer))
        seconds = time.perf_counter() - started
        return TriedOut(pixels, seconds, tuple(one.written() for one in sketches if one is not None))

    def remake(self, task: ShardTask, record: Commit) -> str | None:
        """Encode a shard again whose object was lost: the same pictures at the same rates are the same bytes, under the same name.

        Args:
            task: The rates at which it was made.
            record: Its commit.

        Returns:
            None, or a sentence why it cannot be done: a source changed or is gone.

        Raises:
            StorageError: The store failed.
            ManifestError: The local disk does not give back what was written, or the shard's part of the manifest is damaged.
            MachineError: This machine computes wrongly; nothing is published.
        """
        # The rates are settled: a quality target would be searched anew, from another start.
        items = self._coded(task.images, target_psnr_db=None)
        with local_shard(self.exact.settled(self.cross_check.checked(items)), self._describer(task)) as shard:
            if shard.sha256 != record.shard_sha256:
                names, writers = self._unlike(shard, record)
                changed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "the model"
                older = " (an earlier msinn made it, which kept less of what files hold beside their pixels)" if record.words == 1 else ""
                if writers:
                    older += f" (exact forms in it were written with {', '.join(writers)}, and this machine has other versions)"
                return f"{self.store.path(record.shard)} is lost and cannot be made again: {changed} changed since, or is gone{older}"
            shard.verify()
            self.store.publish(shard.path, record.shard)
        return None

    def _coded(self, tasks: Sequence[ImageTask], target_psnr_db: float | None) -> Iterator[Item]:
        """The items of tasks, coded as the run wants it."""
        if self.near is not None:
            return self.near.settled(self.loader.ahead(tasks))
        return encode_stream(tasks, self.loader, self.coder, target_psnr_db)

    def _describer(self, task: ShardTask) -> Describer:
        return Describer(task, self.coder.digests, self.encoder, self.worker)

    def _unlike(self, shard: LocalShard, record: Commit) -> tuple[list[str], list[str]]:
        """Names of images that are not as the manifest has them, and the libraries that wrote them and are not those of this machine."""
        made = {row.key: (row.payload_sha256, row.sidecars) for row in shard.rows}
        writers = {row.key: row.writer for row in shard.rows}
        data = self.store.read(record.manifest, limit=MAX_PARQUET_BYTES)
        there = list(rows_of(Row, manifest.read(data, columns=columns(Row, "key", "name", "payload_sha256", "sidecars", "writer"))))
        others = {row.writer for row in there if row.writer is not None and row.writer != writers.get(row.key)}
        return [row.name for row in there if made.get(row.key, (None, ())) != (row.payload_sha256, row.sidecars)], sorted(others)
