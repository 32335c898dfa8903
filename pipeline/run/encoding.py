"""The encoding of a run: a job per shard in random order, the plan revised as sizes come in, the last shard trimmed to what is left of the budget."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.archive import manifest
from pipeline.archive.commits import Commit
from pipeline.archive.layout import sha256
from pipeline.encode.tasks import ImageTask, ShardTask
from pipeline.encode.worker import ShardWorker
from pipeline.execute.base import Job, Trials, patience
from pipeline.execute.isolate import isolate
from pipeline.plan.curves import KEPT_Q
from pipeline.plan.planner import Choice, Planner
from pipeline.run.context import Context, Workers
from pipeline.store.base import content_name

_LAST_CANDIDATES = 8
_REVISE_SHARE = 0.05
"""Of the images: so many are encoded between two revisions of the plan."""


@dataclass(frozen=True)
class _Encode:
    """The work of a job."""

    task: ShardTask

    def __call__(self, worker: ShardWorker) -> Commit:
        return worker.encode(self.task)


@dataclass(frozen=True)
class _Rehearse:
    """A try of some of its images, of which nothing is written."""

    task: ShardTask

    def __call__(self, worker: ShardWorker) -> int:
        return worker.rehearse(self.task)


class Encoding:
    """Encodes what is not committed.

    Args:
        context: The run's.
        planner: Solved, or None where every image has the same q.
        committed: By shard; those that are made are added.
    """

    def __init__(self, context: Context, planner: Planner | None, committed: dict[int, Commit]) -> None:
        self._context, self._planner, self._committed = context, planner, committed
        self._waiting: deque[int] = deque()
        self._last: int | None = None
        self._running: set[int] = set()
        self._encoded = self._revised_at = sum(record.images for record in committed.values())
        self._stored_revision = 0
        self._said_missed = False

    @property
    def _trimming(self) -> Planner | None:
        """The planner, where the archive has a budget in bytes."""
        return self._planner if self._planner is not None and self._planner.budget_bytes is not None else None

    def run(self, workers: Workers) -> None:
        """Encode.

        Raises:
            PipelineError: Workers failed for good.
        """
        context = self._context
        order = np.random.default_rng(int(context.digest[:8], 16)).permutation(len(context.shards)).tolist()
        pending = [shard for shard in order if shard not in self._committed]
        self._last = self._choose_last(pending)
        self._waiting.extend(shard for shard in pending if shard != self._last)
        context.reporter.phase("encode", sum(map(context.shards.size, pending)))
        if self._planner is not None and self._trimming is None:
            self._store_plan(self._planner)

        def done(record: Commit) -> None:
            self._done(record)
            for status in ("coded", "kept", "failed"):
                workers.count("images", getattr(record, status), status=status)
            workers.count("shards", 1)
            workers.count("source_bytes", record.source_bytes)
            workers.count("stored_bytes", record.shard_bytes)

        workers.run(self._following, done, context.reporter.tick)

    def _choose_last(self, pending: list[int]) -> int | None:
        """The shard that takes up the rest of a budget: it must hold much that a rate can change, upwards too."""
        if (planner := self._trimming) is None:
            return None
        last = max(pending[-_LAST_CANDIDATES:], key=planner.room, default=None)
        if last is not None and not planner.room(last):
            last = next((shard for shard in reversed(pending) if planner.room(shard)), None)
        return last

    def _following(self) -> Job[ShardWorker, Commit] | None:
        if not self._waiting:
            return self._trimmed()
        if (planner := self._trimming) is not None:
            self._keep_up(planner)
        shard = self._waiting.popleft()
        self._running.add(shard)
        return self._job(shard, None)

    def _trimmed(self) -> Job[ShardWorker, Commit] | None:
        """The last shard, when all others are done."""
        planner, shard = self._trimming, self._last
        if planner is None or shard is None or self._running:
            return None
        self._last = None
        self._revise(planner)
        self._store_plan(planner)
        assert planner.budget_bytes is not None
        return self._job(shard, int(planner.budget_bytes) - sum(record.counted_bytes for record in self._committed.values()))

    def _keep_up(self, planner: Planner) -> None:
        """Revise the plan when enough is known that was not, and store each revision that shards are encoded by."""
        share = (self._encoded - self._revised_at) / len(self._context.records)
        if planner.revision > 1 and share < _REVISE_SHARE:
            return
        if planner.revision > 1 or self._encoded:
            self._revise(planner)
        if planner.revision != self._stored_revision:
            self._store_plan(planner)
            self._stored_revision = planner.revision
        self._revised_at = self._encoded

    def _revise(self, planner: Planner) -> None:
        planner.solve(self._committed.values(), self._running)
        if planner.missed is not None and not self._said_missed:
            self._said_missed = True
            self._context.reporter.warn(f"the budget is being missed: {planner.missed}")

    def _store_plan(self, planner: Planner) -> None:
        data = manifest.table_bytes(planner.table())
        self._context.store.publish_bytes(data, content_name("plan", f"{planner.revision:05d}", sha256(data), "parquet"))

    def _done(self, record: Commit) -> None:
        self._running.discard(record.shard_id)
        before = self._committed.get(record.shard_id)
        self._encoded += record.images - (before.images if before is not None else 0)
        self._committed[record.shard_id] = record
        self._context.reporter.committed(record)

    # Jobs ------------------------------------------------------------------------------------------------------------------------------------------

    def _tasks(self, shard: int) -> tuple[ImageTask, ...]:
        context, planner = self._context, self._planner
        records, skip = context.shards.records(shard), context.poison.reasons
        numbers = np.arange(records[0].index, records[-1].index + 1)
        floors = context.preferences.min_psnr_db(numbers)
        if planner is None:
            budget = context.config.budget
            # Within a largest error each image's rate is searched for.
            q = {"lossless": KEPT_Q, "max_error": 0.0}.get(budget.kind, budget.value)
            return tuple(
                ImageTask(record, q, skip_reason=skip.get(record.index), min_psnr_db=floor, model=int(context.chosen[record.index]))
                for record, floor in zip(records, floors, strict=True)
            )
        choices = planner.promise(shard)
        all_forms = context.config.forms == "all"
        least, most = context.preferences.q_range(numbers, context.model.config.q_max)
        # Without a curve (unreadable or unusable when it was analysed) an image can only be kept as it is.
        without = Choice(KEPT_Q, 0.0, 0.0, "none")
        tasks = []
        for record, floor, low, high in zip(records, floors, least.tolist(), most.tolist(), strict=True):
            choice, reason = choices.get(record.index, without), skip.get(record.index)
            tasks.append(
                ImageTask(
                    record, choice.q, choice.predicted_bytes, choice.clamp, reason, choice.pixels, floor, low, min(high, choice.max_q),
                    int(context.chosen[record.index]), exact_bytes=choice.exact_bytes if all_forms else np.inf,
                )
            )  # fmt: skip
        return tuple(tasks)

    def _job(self, shard: int, limit: int | None) -> Job[ShardWorker, Commit]:
        planner = self._planner
        task = ShardTask(
            shard_id=shard,
            attempt=uuid.uuid4().hex,
            images=self._tasks(shard),
            plan_rev=planner.revision if planner else 0,
            multiplier=planner.multiplier if planner else 0.0,
            limit_bytes=limit,
        )

        def rehearsal(some: Sequence[ImageTask]) -> Job[ShardWorker, int]:
            return Job(f"shard {shard}", _Rehearse(replace(task, images=tuple(some), limit_bytes=None)), patience_s=patience(len(some)))

        def split() -> Trials[ShardWorker, Commit]:
            culprit = yield from isolate([image for image in task.images if image.skip_reason is None], rehearsal)
            self._context.poison.found(culprit.record if culprit is not None else None)
            return self._job(shard, limit)

        return Job(f"shard {shard}", _Encode(task), split, patience_s=patience(len(task.images)))
