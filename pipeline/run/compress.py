"""The run: scan, analyse, plan, encode, seal. Running it again resumes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from msinn_core.model_file import LoadedModel, parse_model
from pipeline.archive.archive import Archive
from pipeline.archive.commits import Commit
from pipeline.archive.layer import Layer
from pipeline.archive.layout import RUN
from pipeline.archive.run_record import RunRecord
from pipeline.archive.seal import point, seal, seal_growth
from pipeline.encode.tasks import WorkConfig
from pipeline.encode.worker import ShardWorker
from pipeline.errors import ManifestError, UsageError
from pipeline.execute import connection
from pipeline.execute.placement import Placement, device_workers
from pipeline.plan.config import Budget, CompressConfig
from pipeline.plan.planner import Forecast, Planner
from pipeline.plan.preferences import Preferences
from pipeline.run.analysis import Analysis
from pipeline.run.beginning import Beginning, models_for, now, refuse_foreign, refuse_grown, refuse_nested
from pipeline.run.changes import Grown
from pipeline.run.context import Context, Workers
from pipeline.run.encoding import Encoding
from pipeline.run.growth import Growing
from pipeline.run.preview import Restored, preview
from pipeline.run.repair import Repair
from pipeline.run.report import Reporter
from pipeline.run.shards import Shards
from pipeline.sources import Selection, SourceRecord, scan
from pipeline.sources.record import printable
from pipeline.store.base import open_store

IN_PROCESS_IMAGES, IN_PROCESS_BYTES = 48, 64 * 2**20
"""Runs up to this size are done by this process where others would take longer to start than they take."""


@dataclass(frozen=True)
class Plan:
    """What `--dry-run` shows.

    Attributes:
        forecast: The first plan, image by image.
        planner: It and its curves.
        worker_s: Seconds of one worker for all of it, by a few images of each form that were encoded in full; None if there are no pictures.
        pixels_per_second: The same as a pace.
        workers: How many work at once here.
        restored: What a restore will write; see `Preview`.
    """

    forecast: Forecast
    planner: Planner
    worker_s: float | None = None
    pixels_per_second: float | None = None
    workers: int = 1
    restored: dict[str, Restored] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        sealed: Content of `MANIFEST.json`, or None for a dry run.
        plan: The first plan, if there was one.
        budget_bytes: The budget in bytes, or None.
        redone: Shards encoded in this call; `resumed` were there before.
        warnings: Of the scan.
        grown: What a growth found; None where nothing was to grow.
    """

    sealed: dict[str, Any] | None
    plan: Plan | None
    budget_bytes: float | None
    redone: int
    resumed: int
    warnings: list[str]
    grown: Grown | None = None

    @property
    def over_budget(self) -> bool:
        """Whether the archive is larger than it was allowed to be."""
        return self.sealed is not None and self.budget_bytes is not None and self.sealed["counted_bytes"] > self.budget_bytes


def make_worker(models: Sequence[bytes], url: str, config: WorkConfig, threads: int = 1) -> ShardWorker:
    """Factory for workers. The integer network gives the same bytes for every number of threads."""
    return ShardWorker([parse_model(model) for model in models], open_store(url), config, device=config.device, threads=threads)


class Run:
    """One call of `msinn compress`.

    Args:
        source: See `sources.scan`.
        destination: The archive's root.
        config: What to do.
        reporter: Told about progress.
        placement: Who does the work.
        preferences: Content of the table of single images' weights and limits whose digest `config` holds, or None.
        own_models: Called with the listing: models of the dataset's own in place of the one that `config` names, or none; an archive that was begun
            keeps the models that it has.
        worker: Factory of what workers hold, in place of `make_worker`.
        grow: The archive is sealed and shall have what its source has now, as another generation: then `config` says what was given on the command
            line, and everything else is as the archive was begun with.
        budget: With `grow`: of the whole grown archive (`bpp`, `bytes`, `ratio`), or of the new images (`psnr`, `q`); None: as before, totals by the
            price of a byte that they came to.
        moved: With `grow`: the source may be at another address.
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
        own_models: Callable[[Sequence[SourceRecord]], Sequence[LoadedModel]] | None = None,
        worker: Callable[[Sequence[bytes], str, WorkConfig, int], ShardWorker] | None = None,
        grow: bool = False,
        budget: Budget | None = None,
        moved: bool = False,
    ) -> None:
        self._config, self._reporter, self._worker = config, reporter, worker or make_worker
        self._placement = (placement or Placement()).on_device(config.device)
        self._source, self._root = source, open_store(destination)
        self._store = self._root
        self._growing: Growing | None = None
        self._mended: list[Repair] = []
        self._beginning: Beginning | None = None
        refuse_nested(source, self._store)
        refuse_foreign(self._store)
        if grow:
            self._grow(Growing(self._root, source, config, budget, moved=moved, preferences=preferences, reporter=reporter))
            return
        refuse_grown(self._store)
        selection = Selection(include=config.include, exclude=config.exclude, all_files=config.all_files, follow_links=config.follow_links)
        self.scan = scan(source, image_column=config.image_column, selection=selection)
        self._models = models_for(config.model, self._store)
        self._check_rate()
        if config.budget.max_error is not None and any(model.profile == "float" for model in self._models):
            raise UsageError(
                f"{config.budget} is promised on every machine, and model {self._models[0].name} computes in floats, which are not the same on all: "
                "name an integer model"
            )
        self._shards = Shards(self.scan.records)
        self._preferences = Preferences(config)
        if preferences is not None:
            names = [printable(record.name) for record in self.scan.records]
            self._preferences = Preferences.from_table(config, preferences, names, "--per-image")
        # What takes half an hour comes after all that can be refused; an archive that was begun keeps its models.
        if own_models is not None and not self._store.exists(RUN):
            own = own_models(self.scan.records)
            # Meanwhile another driver may have begun it.
            self._models = models_for(config.model, self._store) if self._store.exists(RUN) else own or self._models
        self._beginning = Beginning(
            self._store,
            source=source,
            config=config,
            models=self._models,
            scan=self.scan,
            shards=self._shards,
            preferences=preferences,
            reporter=reporter,
        )

    def _grow(self, growing: Growing) -> None:
        """Be the run of the new images of an archive that grows."""
        self._growing, self._store = growing, growing.store
        self._config, self._models, self.scan = growing.config, growing.models, growing.scan
        self._check_rate()
        self._shards = Shards(self.scan.records)
        self._preferences = Preferences(self._config)
        if growing.preferences is not None:
            names = [printable(record.name) for record in self.scan.records]
            self._preferences = Preferences.from_table(self._config, growing.preferences, names, "--per-image", others=True)

    def _check_rate(self) -> None:
        budget, model = self._config.budget, self._models[0]
        if budget.kind == "q" and budget.value > model.config.q_max:
            raise UsageError(f"--q is {budget.value:g}; model {model.name} takes 0 to {model.config.q_max:g}")

    def execute(self, *, dry_run: bool = False) -> Outcome:
        """All steps, or those up to the plan.

        Raises:
            UsageError: The archive at the destination was made of something else.
            BudgetInfeasibleError: The budget cannot be met; nothing was encoded.
            PipelineError: Anything else that ends a run.
        """
        if self._growing is not None and not dry_run:
            self._mended = [self._mend(context, committed) for context, committed in self._growing.lost()]
            if self._growing.found.nothing:
                return self._as_it_was(self._growing)
        begun = None if dry_run else self._begun()
        if begun is not None:  # by an earlier msinn, perhaps, which knew fewer forms
            self._config = replace(self._config, avif=CompressConfig.from_json(begun.config).avif)
        context = self._context()
        committed = {} if begun is None else self._committed()
        resumed = len(committed)
        repair = Repair(context, committed)
        if not repair.lost and (sealed := self._sealed(committed)) is not None:
            return Outcome(sealed, None, sealed.get("budget_bytes"), 0, resumed, self.scan.warnings)
        self._introduce(resumed)
        workers, count = self._workers(context, len(self._shards))
        try:
            repair.run(workers)
            if (sealed := self._sealed(committed)) is not None:
                repair.raise_failures()
                remade = len(repair.lost)
                return Outcome(sealed, None, sealed.get("budget_bytes"), remade, resumed - remade, self.scan.warnings)
            planner = None
            if not len(self._shards):
                pass  # what is gone needs no plan
            elif dry_run or self._config.budget.kind not in ("q", "lossless", "max_error"):
                planner = self._planned(context, workers, committed)
            elif len(self._models) > 1 and self._config.budget.kind == "q":
                Analysis(context).run(workers)  # which model each image takes
            if dry_run:
                return self._foreseen(context, planner, workers, count)
            # Nothing binds the destination before it is known that the budget can be met.
            begun = begun or self._create()
            Encoding(context, planner, committed).run(workers)
        finally:
            workers.close()
        for each in (*self._mended, repair):
            each.raise_failures()
        budget_bytes = planner.budget_bytes if planner is not None else None
        if budget_bytes is not None and self._growing is not None:
            budget_bytes += self._growing.older.counted_bytes
        sealed = self._seal(begun, committed, budget_bytes)
        grown = self._growing.found if self._growing is not None else None
        return Outcome(sealed, None, budget_bytes, len(self._shards) - resumed, resumed, self.scan.warnings, grown)

    def _mend(self, context: Context, committed: dict[int, Commit]) -> Repair:
        """Make shards of an older generation again that are gone."""
        repair = Repair(context, committed)
        workers, _ = self._workers(context, len(repair.lost))
        try:
            repair.run(workers)
        finally:
            workers.close()
        return repair

    def _as_it_was(self, growing: Growing) -> Outcome:
        """The end of a growth that has nothing to add."""
        # A driver may have been killed between a seal and this.
        point(self._root)
        for repair in self._mended:
            repair.raise_failures()
        sealed = growing.archive.seal()
        assert sealed is not None
        return Outcome(sealed, None, None, sum(len(repair.lost) for repair in self._mended), 0, self.scan.warnings, growing.found)

    def _begun(self) -> RunRecord | None:
        if self._growing is not None:
            return self._growing.begun()
        assert self._beginning is not None
        return self._beginning.begun()

    def _create(self) -> RunRecord:
        if self._growing is not None:
            return self._growing.create(self._source, self._shards)
        assert self._beginning is not None
        return self._beginning.create()

    def _committed(self) -> dict[int, Commit]:
        """What is there of this run, by shard. Raises `ManifestError` for damage."""
        if self._growing is None:
            return {record.shard_id: record for record in Archive(self._store.url).commits()}
        books = Layer.read(self._store).books(None)
        for sentence in books.lost.values():
            raise ManifestError(sentence)
        return {record.shard_id: record for record in books.commits}

    def _context(self) -> Context:
        return Context(
            config=self._config,
            store=self._store,
            models=self._models,
            chosen=np.zeros(len(self.scan.records), np.int8),
            records=self.scan.records,
            digest=self.scan.digest if self._beginning is None else self._beginning.digest,
            shards=self._shards,
            preferences=self._preferences,
            reporter=self._reporter,
            older=self._growing.older if self._growing is not None else None,
            analyses=self._growing.analyses if self._growing is not None else self._store,
        )

    def _sealed(self, committed: dict[int, Commit]) -> dict[str, Any] | None:
        """The seal of an archive that is complete."""
        if self._growing is not None:
            return None  # what is sealed is nothing that grows any more
        return Archive(self._store.url).seal() if committed and len(committed) == len(self._shards) else None

    def _introduce(self, resumed: int) -> None:
        reporter = self._reporter
        reporter.begin(images=len(self.scan.records), shards=len(self._shards), source_bytes=self.scan.source_bytes, resumed=resumed)
        for warning in self.scan.warnings:
            reporter.warn(warning)
        for note in self.scan.notes:
            reporter.note(note)
        if self._placement.cluster is not None and (kept_back := connection.withheld()):
            reporter.note(f"{', '.join(kept_back)}: secrets are not sent to the cluster, whose machines have roles of their own")

    def _workers(self, context: Context, jobs: int) -> tuple[Workers, int]:
        return self._placement.open(
            self._worker,
            tuple(model.data for model in self._models),
            context.store.url,
            context.work_config(),
            jobs=jobs,
            small=len(context.records) <= IN_PROCESS_IMAGES and sum(max(0, record.part.length) for record in context.records) <= IN_PROCESS_BYTES,
            at_once=device_workers(self._config.device),
            listener=self._reporter,
        )

    def _planned(self, context: Context, workers: Workers, committed: dict[int, Commit]) -> Planner:
        planner = Analysis(context).run(workers)
        planner.solve(committed.values())
        there = sum(record.counted_bytes for record in committed.values())
        self._reporter.planned(planner.predicted_total() + there, planner.budget_bytes)
        return planner

    def _foreseen(self, context: Context, planner: Planner | None, workers: Workers, count: int) -> Outcome:
        """The end of a dry run."""
        if planner is None:
            return Outcome(None, None, None, 0, 0, self.scan.warnings, self._growing.found if self._growing is not None else None)
        forecast = planner.forecast()
        seen = preview(context, planner, forecast, workers)
        plan = Plan(forecast, planner, seen.worker_s, seen.pixels_per_second, count, seen.restored)
        return Outcome(None, plan, planner.budget_bytes, 0, 0, self.scan.warnings, self._growing.found if self._growing is not None else None)

    def _seal(self, begun: RunRecord, committed: dict[int, Commit], budget_bytes: float | None) -> dict[str, Any]:
        extra = {
            "sealed_at": now(),
            "budget": str(self._config.budget),
            "budget_bytes": budget_bytes,
            "scan_warnings": self.scan.warnings,
            "scan_notes": self.scan.notes,
        }
        records = [committed[i] for i in range(len(self._shards))]
        if self._growing is not None:
            self._growing.check_whole(begun, records)
            run, growth = self._growing.settled(begun, records)
            return seal_growth(self._root, run, growth, records, extra)
        return seal(self._store, begun, records, extra)
