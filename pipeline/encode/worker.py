"""What a worker holds and offers: one model, and jobs over shards. Knows no Ray and no other worker."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Iterable

import pyarrow as pa

from msinn_core import VERSION
from msinn_core.entropy import rans
from msinn_core.integer.ops import COMPILED
from msinn_core.model_file import LoadedModel
from pipeline.archive import manifest
from pipeline.archive.commits import Commit
from pipeline.archive.row import Row
from pipeline.encode.analysis import analyse
from pipeline.encode.coder import ImageCoder
from pipeline.encode.crosscheck import CrossCheck
from pipeline.encode.describe import Describer
from pipeline.encode.item import Item
from pipeline.encode.load import ItemLoader
from pipeline.encode.shard import LocalShard, local_shard, publish
from pipeline.encode.stream import encode_stream
from pipeline.encode.tasks import ImageTask, ShardTask, WorkConfig
from pipeline.encode.trim import encode_within
from pipeline.formats.records import columns, rows_of
from pipeline.limits import MAX_PARQUET_BYTES
from pipeline.sources import SourceRecord
from pipeline.store.base import Store


class ShardWorker:
    """Holds one model and encodes or analyses shards with it.

    Args:
        model: The model; its SHA-256 goes into every bitstream.
        store: The archive.
        config: The run's.
        device: Of the network.
        threads: Of the integer network.
    """

    def __init__(self, model: LoadedModel, store: Store, config: WorkConfig, *, device: str = "cpu", threads: int = 1) -> None:
        self.store = store
        self.config = config
        self.loader = ItemLoader(config.max_pixels)
        self.coder = ImageCoder(model, config, device=device, threads=threads)
        engine = self.coder.codec.engine
        self.encoder = f"{engine.device} ({engine.name}), msinn {VERSION}, {platform.machine()}"
        self.worker = f"{socket.gethostname()}:{os.getpid()}"
        # Of the CPU's codec: what a GPU encodes is decoded in any case.
        self.cross_check = CrossCheck(self.coder.checker, config.verify_sample, self.worker)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What users should know of this machine; see `execute.base.remarks_of`."""
        said, engine = [], self.coder.codec.engine
        if not (COMPILED and rans.COMPILED):
            said.append(
                "a worker has no compiled kernels (no C compiler when msinn was installed there, or another kind of machine): the same bytes, "
                "in a hundred times the time"
            )
        if self.config.device != "cpu" and engine.device == "cpu":
            said.append(
                f"--device {self.config.device}: a worker computes on its CPU ({engine.name}), to the same bytes; on its machine "
                "`python -c \"import torch; torch.zeros(1, device='cuda')\"` says what its GPU lacks"
            )
        return tuple(said)

    def analyse(self, records: list[SourceRecord]) -> pa.Table:
        """Predicted curves of every image, as a table of `Analysed`. Images that cannot be coded get a reason and no curve.

        Raises:
            StorageError: The source's store failed.
        """
        items = self.loader.ahead([ImageTask(record, 0.0) for record in records], with_sidecars=self.config.count_sidecars)
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
            items = encode_stream(task.images, self.loader, self.coder, self.config.target_psnr_db)
        else:
            items = encode_within(task.images, task.limit_bytes, self.loader, self.coder, self.config)
        with local_shard(self.cross_check.checked(items), self._describer(task)) as shard:
            shard.verify()
            return publish(self.store, task, shard, count_sidecars=self.config.count_sidecars)

    def rehearse(self, task: ShardTask) -> int:
        """Everything of `encode` but writing, to find out what an image does to its worker; returns the number of images."""
        items = encode_stream(task.images, self.loader, self.coder, self.config.target_psnr_db)
        return sum(1 for _ in self.cross_check.checked(items))

    def pace(self, task: ShardTask) -> tuple[int, float]:
        """Pixels and seconds of encoding some images in full (fetched, coded, compared) but not written: a plan's duration rests on them."""
        started = time.perf_counter()
        # The one image that a shard has cross-checked at least would weigh too much among so few.
        items = self.cross_check.checked(encode_stream(task.images, self.loader, self.coder, self.config.target_psnr_db), at_least_one=False)
        pixels = sum((item.loaded.info.width or 0) * (item.loaded.info.height or 0) for item in items)
        return pixels, time.perf_counter() - started

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
        items = encode_stream(task.images, self.loader, self.coder, target_psnr_db=None)
        with local_shard(self.cross_check.checked(items), self._describer(task)) as shard:
            if shard.sha256 != record.shard_sha256:
                names = self._unlike(shard, record)
                changed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "the model"
                older = " (an earlier msinn made it, which kept less of what files hold beside their pixels)" if record.words == 1 else ""
                return f"{self.store.path(record.shard)} is lost and cannot be made again: {changed} changed since, or is gone{older}"
            shard.verify()
            self.store.publish(shard.path, record.shard)
        return None

    def _describer(self, task: ShardTask) -> Describer:
        return Describer(task, self.coder.model.sha256, self.encoder, self.worker)

    def _unlike(self, shard: LocalShard, record: Commit) -> list[str]:
        """Names of images that are not as the manifest has them."""
        made = {row.key: (row.payload_sha256, row.sidecars) for row in shard.rows}
        data = self.store.read(record.manifest, limit=MAX_PARQUET_BYTES)
        there = rows_of(Row, manifest.read(data, columns=columns(Row, "key", "name", "payload_sha256", "sidecars")))
        return [row.name for row in there if made.get(row.key, (None, ())) != (row.payload_sha256, row.sidecars)]
