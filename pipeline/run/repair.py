"""Committed shards whose object is gone are made again, to the byte, while their sources are there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.archive.commits import Commit
from pipeline.archive.layer import Layer
from pipeline.archive.row import Row
from pipeline.encode.tasks import ImageTask, ShardTask
from pipeline.encode.worker import ShardWorker
from pipeline.errors import ManifestError
from pipeline.execute.base import Job, patience
from pipeline.formats.outcome import Reason
from pipeline.formats.records import columns, rows_of
from pipeline.forms.avif import AVIF
from pipeline.forms.family import WITH_LOSS
from pipeline.forms.msinn import MSINN
from pipeline.forms.near import NEAR
from pipeline.plan.curves import DRAWN, KEPT_Q
from pipeline.run.context import Context, Workers
from pipeline.sources.record import printable


@dataclass(frozen=True)
class _Made:
    """A lost shard, tried: its images, and why it could not be made, a sentence, or None."""

    images: int
    failure: str | None


@dataclass(frozen=True)
class _Remake:
    """The work of a job."""

    task: ShardTask
    record: Commit

    def __call__(self, worker: ShardWorker) -> _Made:
        return _Made(len(self.task.images), worker.remake(self.task, self.record))


class Repair:
    """Finds and makes lost shards.

    Args:
        context: The run's.
        committed: By shard.
    """

    def __init__(self, context: Context, committed: dict[int, Commit]) -> None:
        self._context = context
        present = set(context.store.list("shards")) if committed else set()
        self.lost = [record for record in committed.values() if record.shard not in present]
        """Committed shards whose object is not there."""
        self.failures: list[str] = []
        """Why some could not be made again, a sentence each."""

    def run(self, workers: Workers) -> None:
        """Make them again.

        Raises:
            PipelineError: Workers failed for good.
        """
        if not self.lost:
            return
        context = self._context
        context.reporter.warn(f"{len(self.lost)} committed shards are missing from {context.store.path('shards')}: making them again")
        context.reporter.phase("remake", sum(record.images for record in self.lost))
        jobs = self._jobs()
        workers.run(lambda: next(jobs, None), self._done, context.reporter.tick)

    def raise_failures(self) -> None:
        """To be called when whatever else there was to do is done.

        Raises:
            ManifestError: Some could not be made again.
        """
        if self.failures:
            count = len(self.failures)
            more = f" ({count} shards in all; the others are in the warnings)" if count > 1 else ""
            raise ManifestError(self.failures[0] + more)

    def _failed(self, sentence: str) -> None:
        self.failures.append(sentence)
        self._context.reporter.warn(sentence)

    def _done(self, made: _Made) -> None:
        if made.failure is not None:
            self._failed(made.failure)
        self._context.reporter.advance(images=made.images)

    def _jobs(self) -> Iterator[Job[ShardWorker, _Made]]:
        for record in self.lost:
            try:
                tasks = self._as_made(record)
            except ManifestError as error:
                self._failed(f"{self._context.store.path(record.shard)} is lost and cannot be made again without its rates: {error}")
                continue
            task = ShardTask(shard_id=record.shard_id, attempt="remake", images=tasks)
            yield Job(f"shard {record.shard_id}, again", _Remake(task, record), patience_s=patience(len(tasks)))

    def _as_made(self, record: Commit) -> tuple[ImageTask, ...]:
        """Tasks that repeat what was done, whatever the reasons: a poison image is not touched again, and what could not be read is not read.

        Raises:
            ManifestError: The part of the manifest is lost or damaged.
        """
        part = Layer.read(self._context.store).part(record, columns(Row, "key", "q", "codec", "model_sha256", "error_code", "sidecars"))
        found = {row.key: row for row in rows_of(Row, part)}
        numbers = {model.sha256: number for number, model in enumerate(self._context.models)}
        tasks = []
        for source in self._context.shards.records(record.shard_id):
            row = found[source.key]
            names = {side.name for side in row.sidecars}
            kept = [i for i, (name, _) in enumerate(source.sidecars) if printable(name) in names]
            source = replace(source, sidecars=tuple(source.sidecars[i] for i in kept), keep_sidecars=tuple(source.keep_sidecars[i] for i in kept))
            # The rate of a near-lossless one is searched for again, with the same end.
            q = row.q if row.codec in (MSINN.codec, AVIF.codec) else 0.0 if row.codec == NEAR.codec else None
            reason = None if row.codec in WITH_LOSS else Reason.named(row.error_code)
            # An image is in the shard without having been coded, or it is not there at all.
            if row.codec is None:
                reason = Reason.UNREADABLE
            codec = None if row.codec in WITH_LOSS else row.codec
            model = DRAWN if row.codec == AVIF.codec else numbers.get(row.model_sha256 or "", 0)
            tasks.append(ImageTask(source, KEPT_Q if q is None else q, skip_reason=reason, model=model, codec=codec))
        return tuple(tasks)
