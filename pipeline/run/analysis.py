"""The analysis of a run: predicted curves of every image, a job per shard, kept in the archive for those who resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.archive import manifest
from pipeline.archive.layout import sha256
from pipeline.encode.tasks import ANALYSIS_SCHEMA
from pipeline.encode.worker import ShardWorker
from pipeline.errors import ManifestError
from pipeline.execute.base import Job, Trials, patience
from pipeline.execute.isolate import isolate
from pipeline.formats.outcome import Reason
from pipeline.formats.parquet import read_bounded
from pipeline.limits import MAX_PARQUET_BYTES
from pipeline.plan.config import CompressConfig
from pipeline.plan.planner import Planner
from pipeline.run.context import Context, Workers
from pipeline.sources import SourceRecord

_READERS = 16


@dataclass(frozen=True)
class _Found:
    """An analysed shard: its number, and rows of `ANALYSIS_SCHEMA`."""

    shard: int
    table: pa.Table


@dataclass(frozen=True)
class _Analyse:
    """The work of a job."""

    shard: int
    records: Sequence[SourceRecord]
    lossless: frozenset[int]

    def __call__(self, worker: ShardWorker) -> _Found:
        return _Found(self.shard, worker.analyse(list(self.records), self.lossless))


def folder_of(config: CompressConfig, digest: str, models: Sequence[str], *, sampled: bool, lossless: NDArray[np.bool_] | None = None) -> str:
    """Name of the archive's folder in which the analysis of a run lies: another one for everything that it depends on.

    Args:
        config: The run's.
        digest: Of the listing that the archive was begun with.
        models: SHA-256 of those that encode.
        sampled: Whether it looks at a part of each image; see `Context.sampled_analysis`.
        lossless: `[N]`, whether each image is to lose nothing; None if none is.
    """
    parameters = f"v4 {digest} {' '.join(models)} {config.max_pixels} {config.count_sidecars}"
    if config.lossless_jpeg or config.budget.kind == "lossless":
        parameters += f" {'jpeg' if config.lossless_jpeg else config.exact} exactly"
    if config.budget.max_error is not None:
        parameters += f" within {config.budget.max_error}"
    if config.forms == "all":
        parameters += " all forms and avif" if config.avif else " all forms"
    if sampled:
        parameters += " sampled"
    if lossless is not None:
        parameters += f" lossless {sha256(np.packbits(lossless).tobytes())}"
    return f"analyse/{sha256(parameters.encode())[:12]}"


class Analysis:
    """Finds the curves of all images, and gives them to a planner.

    Args:
        context: The run's.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        config = context.config
        # Of images that are to lose nothing the analysis has no curve: which they are belongs to it.
        lossless = context.preferences.lossless(np.arange(len(context.records)))
        models = [model.sha256 for model in context.models]
        self._folder = folder_of(config, context.digest, models, sampled=context.sampled_analysis, lossless=lossless if lossless.any() else None)
        # What could not be read now may be readable when the run is resumed: such an analysis is used, but not kept.
        self._unkept: dict[int, pa.Table] = {}
        records = context.records
        self._planner = Planner(
            config,
            context.shards.ids,
            preferences=context.preferences,
            analysis_of=self._stored,
            names=lambda i: records[i].name,
            older=context.older,
        )

    def run(self, workers: Workers) -> Planner:
        """Analyse what was not analysed before.

        Raises:
            ManifestError: A stored analysis is damaged.
            PipelineError: Workers failed for good.
        """
        context = self._context
        present = set(context.analyses.list(self._folder))
        found = [shard for shard in range(len(context.shards)) if self._name(shard) in present]
        for shard, table in self._read(found):
            self._add(shard, table)
        missing = sorted(set(range(len(context.shards))) - set(found))
        context.reporter.phase("analyse", sum(map(context.shards.size, missing)))
        jobs = map(self._job, missing)
        workers.run(lambda: next(jobs, None), self._done, context.reporter.tick)
        return self._planner

    def _name(self, shard: int) -> str:
        return f"{self._folder}/{shard:05d}.parquet"

    def _stored(self, shard: int) -> pa.Table:
        if shard in self._unkept:
            return self._unkept[shard]
        store, name = self._context.analyses, self._name(shard)
        try:
            return read_bounded(store.read(name, limit=MAX_PARQUET_BYTES)).cast(ANALYSIS_SCHEMA)
        except (pa.ArrowException, FileNotFoundError, KeyError, ValueError) as error:
            raise ManifestError(f"{store.path(name)} is damaged: remove the archive's analyse/ folder and run again") from error

    def _read(self, shards: list[int]) -> Iterator[tuple[int, pa.Table]]:
        # A bounded number at a time: reading them one by one would take hours from an object store, all at once all memory.
        with ThreadPoolExecutor(_READERS) as readers:
            for start in range(0, len(shards), 4 * _READERS):
                batch = shards[start : start + 4 * _READERS]
                yield from zip(batch, readers.map(self._stored, batch), strict=True)

    def _add(self, shard: int, table: pa.Table) -> None:
        import pyarrow.compute as pc  # here: a tenth of a second, and not every command needs it

        bad = table.filter(pc.is_in(table.column("reason"), value_set=pa.array([Reason.CRASHED, Reason.CODEC_FAILED])))
        reasons = map(Reason.named, bad.column("reason").to_pylist())
        self._context.poison.reasons.update(zip(bad.column("index").to_pylist(), reasons, strict=True))
        self._context.chosen[table.column("index").to_numpy()] = table.column("model").to_numpy()
        self._planner.add(shard, table)

    def _job(self, shard: int) -> Job[ShardWorker, _Found]:
        poison = self._context.poison
        records = [record for record in self._context.shards.records(shard) if record.index not in poison.reasons]
        numbers = np.array([record.index for record in records], np.int64)
        lossless = frozenset(numbers[self._context.preferences.lossless(numbers)].tolist())
        whole = Job(f"analysis of shard {shard}", _Analyse(shard, records, lossless), patience_s=patience(len(records)))

        def some(part: Sequence[SourceRecord]) -> Job[ShardWorker, _Found]:
            return replace(whole, work=_Analyse(shard, part, lossless), patience_s=patience(len(part)))

        def split() -> Trials[ShardWorker, _Found]:
            poison.found((yield from isolate(records, some)))
            return self._job(shard)

        whole.split = split
        return whole

    def _done(self, found: _Found) -> None:
        table = self._with_poison(found)
        if Reason.UNREADABLE in table.column("reason").to_pylist():
            self._unkept[found.shard] = table
        else:
            self._context.analyses.put_if_absent(self._name(found.shard), manifest.table_bytes(table))
        self._add(found.shard, table)
        self._context.reporter.advance(images=len(table))

    def _with_poison(self, found: _Found) -> pa.Table:
        """Rows for images that no worker survived too, so that each record has one."""
        reasons, present = self._context.poison.reasons, set(found.table.column("index").to_pylist())
        rows = [
            {"index": i, "source_bytes": max(0, self._context.records[i].part.length), "reason": reasons[i], "sidecar_bytes": 0, "model": 0}
            for i in self._context.shards.numbers(found.shard)
            if i in reasons and i not in present
        ]
        return pa.concat_tables([found.table, pa.Table.from_pylist(rows, schema=found.table.schema)])
