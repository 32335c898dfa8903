"""The run: scan, analyse, plan, encode, seal. Running it again resumes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from msinn_core.model_file import LoadedModel, parse_model
from pipeline.archive.archive import Archive
from pipeline.archive.commits import Commit
from pipeline.archive.run_record import RunRecord
from pipeline.archive.seal import seal
from pipeline.encode.tasks import ImageTask, ShardTask, WorkConfig
from pipeline.encode.worker import ShardWorker
from pipeline.errors import UsageError
from pipeline.execute import connection
from pipeline.execute.base import Job, patience
from pipeline.execute.placement import Placement
from pipeline.plan.config import CompressConfig
from pipeline.plan.planner import Forecast, Planner
from pipeline.plan.preferences import Preferences
from pipeline.run.analysis import Analysis
from pipeline.run.beginning import Beginning, model_for, now, refuse_foreign, refuse_nested
from pipeline.run.context import Context, Workers
from pipeline.run.encoding import Encoding
from pipeline.run.repair import Repair
from pipeline.run.report import Reporter
from pipeline.run.shards import Shards
from pipeline.sources import Selection, SourceRecord, scan
from pipeline.sources.record import printable
from pipeline.store.base import open_store

IN_PROCESS_IMAGES, IN_PROCESS_BYTES = 48, 64 * 2**20
"""Runs up to this size need no Ray: to start it takes longer than they take."""

_PACE_IMAGES = 8


@dataclass(frozen=True)
class Plan:
    """What `--dry-run` shows.

    Attributes:
        forecast: The first plan, image by image.
        planner: It and its curves.
        pixels_per_second: Measured: one worker encoding a sample of the images in full; None if nothing is to be coded.
        workers: How many work at once here.
    """

    forecast: Forecast
    planner: Planner
    pixels_per_second: float | None = None
    workers: int = 1


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        sealed: Content of `MANIFEST.json`, or None for a dry run.
        plan: The first plan, if there was one.
        budget_bytes: The budget in bytes, or None.
        redone: Shards encoded in this call; `resumed` were there before.
        warnings: Of the scan.
    """

    sealed: dict[str, Any] | None
    plan: Plan | None
    budget_bytes: float | None
    redone: int
    resumed: int
    warnings: list[str]

    @property
    def over_budget(self) -> bool:
        """Whether the archive is larger than it was allowed to be."""
        return self.sealed is not None and self.budget_bytes is not None and self.sealed["counted_bytes"] > self.budget_bytes


def make_worker(model: bytes, url: str, config: WorkConfig, threads: int = 1) -> ShardWorker:
    """Factory for workers: one model each. The integer network gives the same bytes for every number of threads."""
    return ShardWorker(parse_model(model), open_store(url), config, device=config.device, threads=threads)


@dataclass(frozen=True)
class _Pace:
    """The work of a job: pixels and seconds of some images, encoded in full."""

    task: ShardTask

    def __call__(self, worker: ShardWorker) -> tuple[int, float]:
        return worker.pace(self.task)


class Run:
    """One call of `msinn compress`.

    Args:
        source: See `sources.scan`.
        destination: The archive's root.
        config: What to do.
        reporter: Told about progress.
        placement: Who does the work.
        preferences: Content of the table of single images' weights and limits whose digest `config` holds, or None.
        own_model: Called with the listing: a model of the dataset's own in place of the one that `config` names, or None; an archive that was begun
            keeps the model that it has.
        worker: Factory of what workers hold, in place of `make_worker`.
    """

    def __init__(
        self,
        source: str,
        destination: str,
        config: CompressConfig,
        reporter: Reporter,
        *,
        placement: Placement | None = None,
        preferences: bytes | None = None,
        own_model: Callable[[Sequence[SourceRecord]], LoadedModel | None] | None = None,
        worker: Callable[[bytes, str, WorkConfig, int], ShardWorker] | None = None,
    ) -> None:
        self._config, self._reporter, self._worker = config, reporter, worker or make_worker
        self._placement = placement or Placement()
        if config.device == "cuda" and self._placement.resources == connection.Resources():
            self._placement = replace(self._placement, resources=connection.Resources(gpus=1.0))
        self._store = open_store(destination)
        refuse_nested(source, self._store)
        refuse_foreign(self._store)
        selection = Selection(include=config.include, exclude=config.exclude, all_files=config.all_files, follow_links=config.follow_links)
        self.scan = scan(source, image_column=config.image_column, selection=selection)
        own = own_model(self.scan.records) if own_model is not None else None
        self._model = model_for(config.model, self._store, own)
        if config.budget.kind == "q" and config.budget.value > self._model.config.q_max:
            raise UsageError(f"--q is {config.budget.value:g}; model {self._model.name} takes 0 to {self._model.config.q_max:g}")
        self._shards = Shards(self.scan.records)
        self._preferences = Preferences(config)
        if preferences is not None:
            names = [printable(record.name) for record in self.scan.records]
            self._preferences = Preferences.from_table(config, preferences, names, "--per-image")
        self._beginning = Beginning(
            self._store,
            source=source,
            config=config,
            model=self._model,
            scan=self.scan,
            shards=self._shards,
            preferences=preferences,
            reporter=reporter,
        )

    def execute(self, *, dry_run: bool = False) -> Outcome:
        """All steps, or those up to the plan.

        Raises:
            UsageError: The archive at the destination was made of something else.
            BudgetInfeasibleError: The budget cannot be met; nothing was encoded.
            PipelineError: Anything else that ends a run.
        """
        begun = None if dry_run else self._beginning.begun()
        context = self._context()
        committed = {} if begun is None else {record.shard_id: record for record in self._archive.commits()}
        resumed = len(committed)
        repair = Repair(context, committed)
        if not repair.lost and (sealed := self._sealed(committed)) is not None:
            return Outcome(sealed, None, sealed.get("budget_bytes"), 0, resumed, self.scan.warnings)
        self._introduce(resumed)
        workers, count = self._workers(context)
        try:
            repair.run(workers)
            if (sealed := self._sealed(committed)) is not None:
                repair.raise_failures()
                remade = len(repair.lost)
                return Outcome(sealed, None, sealed.get("budget_bytes"), remade, resumed - remade, self.scan.warnings)
            planner = self._planned(context, workers, committed) if dry_run or self._config.budget.kind != "q" else None
            if dry_run:
                return self._foreseen(planner, workers, count)
            # Nothing binds the destination before it is known that the budget can be met.
            begun = begun or self._beginning.create()
            Encoding(context, planner, committed).run(workers)
        finally:
            workers.close()
        repair.raise_failures()
        budget_bytes = planner.budget_bytes if planner is not None else None
        sealed = self._seal(begun, committed, budget_bytes)
        return Outcome(sealed, None, budget_bytes, len(self._shards) - resumed, resumed, self.scan.warnings)

    @property
    def _archive(self) -> Archive:
        return Archive(self._store.url)

    def _context(self) -> Context:
        return Context(
            config=self._config,
            store=self._store,
            model=self._model,
            records=self.scan.records,
            digest=self._beginning.digest,
            shards=self._shards,
            preferences=self._preferences,
            reporter=self._reporter,
        )

    def _sealed(self, committed: dict[int, Commit]) -> dict[str, Any] | None:
        """The seal of an archive that is complete."""
        return self._archive.seal() if committed and len(committed) == len(self._shards) else None

    def _introduce(self, resumed: int) -> None:
        reporter = self._reporter
        reporter.begin(images=len(self.scan.records), shards=len(self._shards), source_bytes=self.scan.source_bytes, resumed=resumed)
        for warning in self.scan.warnings:
            reporter.warn(warning)
        for note in self.scan.notes:
            reporter.note(note)
        if self._placement.cluster is not None and (kept_back := connection.withheld()):
            reporter.note(f"{', '.join(kept_back)}: secrets are not sent to the cluster, whose machines have roles of their own")

    def _workers(self, context: Context) -> tuple[Workers, int]:
        return self._placement.open(
            self._worker,
            self._model.data,
            self._store.url,
            context.work_config(),
            jobs=len(self._shards),
            small=len(self.scan.records) <= IN_PROCESS_IMAGES and self.scan.source_bytes <= IN_PROCESS_BYTES,
            at_once=None if self._config.device == "cpu" else 1,
            listener=self._reporter,
        )

    def _planned(self, context: Context, workers: Workers, committed: dict[int, Commit]) -> Planner:
        planner = Analysis(context).run(workers)
        planner.solve(committed.values())
        there = sum(record.counted_bytes for record in committed.values())
        self._reporter.planned(planner.predicted_total() + there, planner.budget_bytes)
        return planner

    def _foreseen(self, planner: Planner | None, workers: Workers, count: int) -> Outcome:
        """The end of a dry run."""
        assert planner is not None
        forecast = planner.forecast()
        plan = Plan(forecast, planner, self._pace(workers, forecast), count)
        return Outcome(None, plan, planner.budget_bytes, 0, 0, self.scan.warnings)

    def _pace(self, workers: Workers, forecast: Forecast) -> float | None:
        """Pixels per second of one worker, over a few images drawn at random."""
        coded = np.flatnonzero(np.isfinite(forecast.allocation.q))
        if not len(coded):
            return None
        drawn = np.sort(np.random.default_rng(0).choice(coded, min(_PACE_IMAGES, len(coded)), replace=False))
        tasks = tuple(ImageTask(self.scan.records[forecast.index[i]], float(forecast.allocation.q[i])) for i in drawn)
        work = _Pace(ShardTask(shard_id=0, attempt="pace", images=tasks))
        jobs = iter([Job("a sample of the images", work, patience_s=patience(len(tasks)))])
        measured: list[tuple[int, float]] = []
        workers.run(lambda: next(jobs, None), measured.append, self._reporter.tick)
        pixels, seconds = measured[0]
        return pixels / seconds if pixels and seconds > 0 else None

    def _seal(self, begun: RunRecord, committed: dict[int, Commit], budget_bytes: float | None) -> dict[str, Any]:
        extra = {
            "sealed_at": now(),
            "budget": str(self._config.budget),
            "budget_bytes": budget_bytes,
            "scan_warnings": self.scan.warnings,
            "scan_notes": self.scan.notes,
        }
        return seal(self._store, begun, [committed[i] for i in range(len(self._shards))], extra)
