"""The run: scan, analyse, plan, encode, seal. Running it again resumes it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from msinn_core.errors import CheckpointError
from msinn_core.integer.ops import COMPILED
from msinn_core.model_file import LoadedModel, load_model, parse_model
from pipeline.archive import manifest
from pipeline.archive.archive import Archive, MissingArchiveError
from pipeline.archive.commits import Commit
from pipeline.archive.layout import ARCHIVE_VERSION, RUN, SEAL, json_bytes, sha256
from pipeline.archive.seal import seal
from pipeline.encode.tasks import ANALYSIS_SCHEMA, ImageTask, ShardTask, WorkConfig
from pipeline.encode.worker import ShardWorker
from pipeline.errors import ManifestError, StorageError, UsageError
from pipeline.execute import actors, connection
from pipeline.execute.executor import Executor, InProcess, Job, Trials, WorkersError, isolate, patience, processors
from pipeline.formats.outcome import Reason
from pipeline.formats.parquet import read_bounded
from pipeline.limits import MAX_MODEL_BYTES, MAX_PARQUET_BYTES, MAX_RUN_BYTES
from pipeline.plan.config import CompressConfig
from pipeline.plan.curves import PASSTHROUGH_Q
from pipeline.plan.planner import Choice, Forecast, Planner
from pipeline.plan.preferences import Preferences
from pipeline.run.report import Reporter
from pipeline.sources import Scan, Selection, SourceRecord, scan
from pipeline.sources.listing import LITTER
from pipeline.sources.record import SCAN_SCHEMA, from_table, printable, to_table
from pipeline.store.base import Store, content_name, open_store
from pipeline.text import redacted

SHARD_SOURCE_BYTES = 16 * 2**20
"""Source bytes of one work shard: a few minutes of work on one core, whether they are lossless files or JPEGs of many pixels."""

SHARD_IMAGES = 4096
SMALL_SET_SHARDS = 16
SMALL_SHARD_IMAGES = 4
"""Small sets are divided into up to 16 shards of at least 4 images, so that workers share them and the closed loop has something to learn from; each
shard costs the 1024 bytes of its tar's end."""

SAMPLED_ABOVE = 256
"""Sets of more images than this are analysed on a part of the rows of each: errors of single predictions average out."""

IN_PROCESS_IMAGES, IN_PROCESS_BYTES = 48, 64 * 2**20
"""Runs up to this size need no Ray: to start it takes longer than they take."""

_PACE_IMAGES = 8
_LAST_CANDIDATES = 8
_READERS = 16
_REVISE_SHARE = 0.05
_UNEXPLAINED_DEATHS = 5


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


def shard_plan(records: Sequence[SourceRecord]) -> NDArray[np.int32]:
    """Shard number of each record: consecutive records, bounded in source bytes and images. Depends on the listing alone."""
    per_shard = min(SHARD_IMAGES, max(SMALL_SHARD_IMAGES, -(-len(records) // SMALL_SET_SHARDS)))
    out = np.empty(len(records), np.int32)
    shard = count = size = 0
    for i, record in enumerate(records):
        length = max(0, record.part.length)
        if count and (count >= per_shard or size + length > SHARD_SOURCE_BYTES):
            shard, count, size = shard + 1, 0, 0
        out[i] = shard
        count, size = count + 1, size + length
    return out


class Run:
    """One call of `msinn compress`.

    Args:
        source: See `sources.scan`.
        destination: The archive's root.
        config: What to do.
        reporter: Told about progress.
        cluster: Ray address, or None for a local instance.
        workers: Number of actors, or None for all that fit.
        resources: Of each actor; one CPU, or one GPU if that is the device, if not given.
        preferences: Content of the table of single images' weights and limits whose digest `config` holds, or None.
        executor: `ray`; `local` for this process alone; or `auto`, which takes this process for small runs that ask for nothing else.
    """

    def __init__(
        self,
        source: str,
        destination: str,
        config: CompressConfig,
        reporter: Reporter,
        *,
        cluster: str | None = None,
        workers: int | None = None,
        resources: connection.Resources | None = None,
        preferences: bytes | None = None,
        executor: str = "ray",
    ) -> None:
        self.executor = executor
        self.source = source
        self.config = config
        self.reporter = reporter
        self.cluster = cluster
        self.workers = workers
        self.resources = resources or connection.Resources(gpus=1.0 if config.device == "cuda" else 0.0)
        self.store = open_store(destination)
        _refuse_nested(source, self.store)
        self.model: LoadedModel = _model(config.model, self.store)
        if self.model.profile != "int":
            raise UsageError(
                f"model {self.model.name} is of the float profile, whose archives decode on like machines only: pack it with "
                "`msinn models import CKPT -o OUT --calibrate FOLDER`, and name the result with --model"
            )
        if config.budget.kind == "q" and config.budget.value > self.model.config.q_max:
            raise UsageError(f"--q is {config.budget.value:g}; model {self.model.name} takes 0 to {self.model.config.q_max:g}")
        _refuse_foreign(self.store)
        selection = Selection(include=config.include, exclude=config.exclude, all_files=config.all_files, follow_links=config.follow_links)
        self.scan: Scan = scan(source, image_column=config.image_column, selection=selection)
        self.shard_ids = shard_plan(self.scan.records)
        self._first = np.searchsorted(self.shard_ids, np.arange(int(self.shard_ids[-1]) + 2))
        self._preferences_data = preferences
        self.preferences = Preferences(config)
        if preferences is not None:
            names = [printable(record.name) for record in self.scan.records]
            self.preferences = Preferences.from_table(config, preferences, names, "--per-image")
        self.skip: dict[int, Reason] = {}
        self._told_of_missing_gpus = False
        self.unexplained = 0
        self.said_missed = False

    # ---- the steps ----

    def execute(self, *, dry_run: bool = False) -> Outcome:
        """All steps, or those up to the plan.

        Raises:
            UsageError: The archive at the destination was made of something else.
            BudgetInfeasibleError: The budget cannot be met; nothing was encoded.
            PipelineError: Anything else that ends a run.
        """
        begun = None if dry_run else self._begun()
        committed = {} if begun is None else {record.shard_id: record for record in Archive(self.store.url).commits()}
        resumed = len(committed)
        shards = int(self.shard_ids.max()) + 1
        planned = dry_run or self.config.budget.kind != "q"
        lost = self._lost(committed) if begun is not None else []
        if begun is not None and not lost and len(committed) == shards and (sealed := Archive(self.store.url).seal()) is not None:
            budget = sealed.get("budget_bytes")
            return Outcome(sealed, None, budget, 0, resumed, self.scan.warnings)
        self.reporter.begin(images=len(self.scan.records), shards=shards, source_bytes=self.scan.source_bytes, resumed=resumed)
        for warning in self.scan.warnings:
            self.reporter.warn(warning)
        if not COMPILED:
            self.reporter.warn(
                "the compiled kernels are missing here (no C compiler when msinn was installed): the same bytes, in a hundred times the time"
            )
        for note in self.scan.notes:
            self.reporter.note(note)
        if self.cluster is not None and (kept_back := connection.withheld()):
            self.reporter.note(f"{', '.join(kept_back)}: secrets are not sent to the cluster, whose machines have roles of their own")
        pool, size = self._executor()
        try:
            unmade = self._remake(pool, lost)
            if begun is not None and len(committed) == shards and (sealed := Archive(self.store.url).seal()) is not None:
                _raise_unmade(unmade)
                return Outcome(sealed, None, sealed.get("budget_bytes"), len(lost), resumed - len(lost), self.scan.warnings)
            planner = self._planner(pool, shards) if planned else None
            if planner is not None:
                planner.solve(committed.values())
                self.reporter.planned(planner.predicted_total() + sum(r.counted_bytes for r in committed.values()), planner.budget_bytes)
            if dry_run:
                plan = None
                if planner is not None:
                    forecast = planner.forecast()
                    plan = Plan(forecast, planner, self._pace(pool, forecast), size)
                return Outcome(None, plan, planner.budget_bytes if planner else None, 0, 0, self.scan.warnings)
            # Nothing binds the destination before it is known that the budget can be met.
            run = begun if begun is not None else self._open()
            self._encode(pool, planner, committed, shards)
        finally:
            pool.close()
        # Whatever else was left to do is done by now, and is safe.
        _raise_unmade(unmade)
        records = [committed[i] for i in range(shards)]
        budget_bytes = planner.budget_bytes if planner else None
        extra = {
            "sealed_at": _now(),
            "budget": str(self.config.budget),
            "budget_bytes": budget_bytes,
            "scan_warnings": self.scan.warnings,
            "scan_notes": self.scan.notes,
        }
        sealed = seal(self.store, run, records, extra)
        return Outcome(sealed, None, budget_bytes, shards - resumed, resumed, self.scan.warnings)

    def _executor(self) -> tuple[Executor, int]:
        """Who does the work, and how many they are."""
        work = (self.model.data, self.store.url, self._work_config())
        if self._in_process:
            # Each has threads for its layers too: the last shard, which the trim fits to what the others left, runs alone.
            workers = min(processors(), int(self.shard_ids[-1]) + 1) if self.config.device == "cpu" else 1
            return InProcess(make_worker, *work, processors(), workers=workers, trouble=self.reporter.trouble), workers
        size = connection.connect(self.cluster, self.workers, self.resources)
        return actors.Pool(size, make_worker, *work, resources=self.resources, trouble=self.reporter.trouble), size

    @property
    def _in_process(self) -> bool:
        if self.executor != "auto":
            return self.executor == "local"
        asked = self.cluster is not None or self.workers is not None or self.resources != connection.Resources()
        return not asked and len(self.scan.records) <= IN_PROCESS_IMAGES and self.scan.source_bytes <= IN_PROCESS_BYTES

    def _pace(self, pool: Executor, forecast: Forecast) -> float | None:
        """Pixels per second of one worker, over a few images drawn at random."""
        coded = np.flatnonzero(np.isfinite(forecast.allocation.q))
        if not len(coded):
            return None
        drawn = np.sort(np.random.default_rng(0).choice(coded, min(_PACE_IMAGES, len(coded)), replace=False))
        tasks = tuple(ImageTask(self.scan.records[forecast.index[i]], float(forecast.allocation.q[i])) for i in drawn)
        jobs = iter([Job("a sample of the images", "pace", (ShardTask(shard_id=0, attempt="pace", images=tasks),), patience_s=patience(len(tasks)))])
        measured: list[tuple[int, float]] = []
        pool.run(lambda: next(jobs, None), lambda job, result: measured.append(result), self.reporter.tick)
        pixels, seconds = measured[0]
        return pixels / seconds if pixels and seconds > 0 else None

    def _tell_of_missing_gpus(self, record: Commit) -> None:
        """Once, where a GPU was asked for and a worker had none that it could trust: what the worker warned of stays on its machine."""
        if self.config.device == "cpu" or self._told_of_missing_gpus:
            return
        encoders = Archive(self.store.url).manifest_part(record, ["encoder"]).column("encoder").to_pylist()
        if found := next((encoder for encoder in encoders if encoder is not None and encoder.startswith("cpu")), None):
            self._told_of_missing_gpus = True
            self.reporter.warn(
                f"--device {self.config.device}: a worker computes on its CPU ({found}), to the same bytes; on its machine "
                "`python -c \"import torch; torch.zeros(1, device='cuda')\"` says what its GPU lacks"
            )

    def _work_config(self) -> WorkConfig:
        budget = self.config.budget
        return WorkConfig(
            target_psnr_db=budget.value if budget.kind == "psnr" else None,
            max_pixels=self.config.max_pixels,
            count_sidecars=self.config.count_sidecars,
            ms_ssim=self.config.ms_ssim,
            device=self.config.device,
            sampled_analysis=self._sampled_analysis,
        )

    @property
    def _sampled_analysis(self) -> bool:
        # A quality target is searched from the prediction: a better one saves more encodes than it costs.
        return len(self.scan.records) > SAMPLED_ABOVE and self.config.budget.is_total

    def _identity(self) -> dict[str, Any]:
        return {
            "archive_version": ARCHIVE_VERSION,
            "source": redacted(self.source),
            "scan_digest": self.scan.digest,
            "config": self.config.to_json(),
            "model_sha256": self.model.sha256,
        }

    def _begun(self) -> dict[str, Any] | None:
        """The run that began the archive, after a check that this one goes on with it; None if there is none yet."""
        try:
            existing = Archive(self.store.url).run
        except MissingArchiveError:
            return None
        self._compare(existing, self._identity())
        return existing

    def _open(self) -> dict[str, Any]:
        """Create the archive; or go on with that of another driver who was first."""
        identity = self._identity()
        while (existing := self._begun()) is None:
            if not self.store.check_put_if_absent():
                self.reporter.warn(f"{self.store.url} cannot create objects atomically: make sure that only one driver writes there")
            table = manifest.blocks_bytes(SCAN_SCHEMA, to_table(self.scan.records, self.shard_ids))
            name = content_name("scan", "00000", sha256(table), "parquet")
            self.store.publish_bytes(table, name)
            if self._preferences_data is not None and self.config.preferences_sha256 is not None:
                suffix = "parquet" if self._preferences_data[:4] == b"PAR1" else "csv"
                self.store.publish_bytes(self._preferences_data, content_name("plan", "per-image", self.config.preferences_sha256, suffix))
            self.store.publish_bytes(self.model.data, f"model/{self.model.sha256}.safetensors")
            created = {**identity, "scan": name, "shards": int(self.shard_ids.max()) + 1, "images": len(self.scan.records)}
            created["shard_first"] = np.unique(self.shard_ids, return_index=True)[1].tolist()
            created |= {
                "created_at": _now(),
                "created_by": f"{socket.gethostname()}:{os.getpid()}",
                "model_name": self.model.name,
                "msinn": "0.1.0",
            }
            if self.store.put_if_absent(RUN, json_bytes(created)):
                return created
        return existing

    def _compare(self, existing: dict[str, Any], identity: dict[str, Any]) -> None:
        theirs = CompressConfig.from_json(existing["config"])
        mine = self.config
        # The model may be named by path or hash: its digest is what counts.
        if replace(theirs, model="") != replace(mine, model=""):
            changed = [name for name in mine.to_json() if name != "model" and getattr(theirs, name) != getattr(mine, name)]
            what = "; ".join(f"{name} was {getattr(theirs, name)}, now {getattr(mine, name)}" for name in changed)
            raise UsageError(f"{self.store.url} was begun with other options ({what}): repeat them to resume, or choose another destination")
        if existing["model_sha256"] != identity["model_sha256"]:
            raise UsageError(
                f"{self.store.url} was begun with model {existing['model_sha256'][:12]}, not {identity['model_sha256'][:12]}: "
                f"resume with --model {self.store.path('model/' + existing['model_sha256'] + '.safetensors')}"
            )
        if existing["scan_digest"] != identity["scan_digest"]:
            self._explain_difference(existing)

    def _explain_difference(self, existing: dict[str, Any]) -> None:
        """The source lists otherwise than when the archive was begun. Where it only lies elsewhere the run goes on with it.

        Raises:
            UsageError: Files were added, removed or changed in size: which.
        """
        advice = "bring them back to resume, or choose another destination"
        try:
            table = read_bounded(self.store.read(existing["scan"], limit=MAX_PARQUET_BYTES))
            listed = [record for record, _ in from_table(table)]
        except (pa.ArrowException, FileNotFoundError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{self.source} lists {len(self.scan.records)} images that are not the {existing['images']} which {self.store.url} was begun with "
                f"(its listing is lost: {error}); {advice}"
            ) from error

        def sizes(records: Iterable[SourceRecord]) -> list[tuple[str, Any]]:
            return [(r.name, (r.part.kind, r.part.length, [(printable(side), part.length) for side, part in r.sidecars])) for r in records]

        before, now = sizes(listed), sizes(self.scan.records)
        theirs, mine = dict(before), dict(now)
        added, gone = sorted(mine.keys() - theirs.keys()), sorted(theirs.keys() - mine.keys())
        changed = [name for name, size in theirs.items() if name in mine and mine[name] != size]
        if before == now:
            self.reporter.note(
                f"the source has moved from {existing['source']} to {self.source}: the same names and sizes, so the run goes on with it"
            )
            self.scan = replace(self.scan, digest=existing["scan_digest"])
            return
        found = [
            f"{len(names)} {what}, for example {printable(names[0])}"
            for what, names in (("were added", added), ("are gone", gone), ("changed in size or in their sidecars", changed))
            if names
        ]
        place = f"; it was listed at {existing['source']} then" if existing["source"] != self.source else ""
        raise UsageError(
            f"{self.source} is not as it was when {self.store.url} was begun with {existing['images']} images: "
            f"{'; '.join(found) or 'the same names are in another order, or some are there more often'}{place}: {advice}"
        )

    # ---- repair ----

    def _lost(self, committed: dict[int, Commit]) -> list[Commit]:
        """Committed shards whose object is no longer there."""
        if not committed:
            return []
        present = set(self.store.list("shards"))
        return [record for record in committed.values() if record.shard not in present]

    def _remake(self, pool: Executor, lost: list[Commit]) -> list[str]:
        """Make lost shards again; returns why some could not be, a sentence each."""
        if not lost:
            return []
        self.reporter.warn(f"{len(lost)} committed shards are missing from {self.store.path('shards')}: making them again")
        self.reporter.phase("remake", sum(record.images for record in lost))
        waiting = iter(lost)
        failures: list[str] = []

        def failed(sentence: str) -> None:
            failures.append(sentence)
            self.reporter.warn(sentence)

        def following() -> Job | None:
            for record in waiting:
                try:
                    tasks = self._as_made(record)
                except ManifestError as error:
                    failed(f"{self.store.path(record.shard)} is lost and cannot be made again without its rates: {error}")
                    continue
                task = ShardTask(shard_id=record.shard_id, attempt="remake", images=tasks)
                return Job(f"shard {record.shard_id}, again", "remake", (task, record), patience_s=patience(len(tasks)))
            return None

        def done(job: Job, failure: str | None) -> None:
            if failure is not None:
                failed(failure)
            self.reporter.advance(images=len(job.args[0].images))

        pool.run(following, done, self.reporter.tick)
        return failures

    def _as_made(self, record: Commit) -> tuple[ImageTask, ...]:
        """Tasks that repeat what was done, whatever the reasons: a poison image is not touched again, and what could not be read is not read.

        Raises:
            ManifestError: The part of the manifest is lost or damaged.
        """
        rows = Archive(self.store.url).manifest_part(record, ["key", "q", "codec", "error_code", "sidecars"]).to_pylist()
        found = {row["key"]: row for row in rows}
        tasks = []
        for source in self._records(record.shard_id):
            row = found[source.key]
            names = {side["name"] for side in row["sidecars"]}
            kept = [i for i, (name, _) in enumerate(source.sidecars) if printable(name) in names]
            source = replace(source, sidecars=tuple(source.sidecars[i] for i in kept), keep_sidecars=tuple(source.keep_sidecars[i] for i in kept))
            coded = row["codec"] == "msinn"
            reason = None if coded else Reason.named(row["error_code"])
            # An image is in the shard without having been coded, or it is not there at all.
            if row["codec"] is None:
                reason = Reason.UNREADABLE
            tasks.append(ImageTask(source, row["q"] if coded else PASSTHROUGH_Q, skip_reason=reason))
        return tuple(tasks)

    # ---- analysis ----

    def _planner(self, pool: Executor, shards: int) -> Planner:
        parameters = f"v2 {self.scan.digest} {self.model.sha256} {self.config.max_pixels} {self.config.count_sidecars}"
        if self._sampled_analysis:
            parameters += " sampled"
        folder = f"analyse/{sha256(parameters.encode())[:12]}"
        unkept: dict[int, pa.Table] = {}

        def stored(shard: int) -> pa.Table:
            if shard in unkept:
                return unkept[shard]
            name = f"{folder}/{shard:05d}.parquet"
            try:
                return read_bounded(self.store.read(name, limit=MAX_PARQUET_BYTES)).cast(ANALYSIS_SCHEMA)
            except (pa.ArrowException, FileNotFoundError, KeyError, ValueError) as error:
                raise ManifestError(f"{self.store.path(name)} is damaged: remove the archive's analyse/ folder and run again") from error

        records = self.scan.records
        planner = Planner(self.config, self.shard_ids, preferences=self.preferences, analysis_of=stored, names=lambda i: records[i].name)

        def add(shard: int, table: pa.Table) -> None:
            bad = table.filter(pc.is_in(table.column("reason"), value_set=pa.array([Reason.CRASHED, Reason.CODEC_FAILED])))
            self.skip.update(zip(bad.column("index").to_pylist(), map(Reason.named, bad.column("reason").to_pylist()), strict=True))
            planner.add(shard, table)

        present = set(self.store.list(folder))
        found = [shard for shard in range(shards) if f"{folder}/{shard:05d}.parquet" in present]
        # A bounded number at a time: reading them one by one would take hours from an object store, all at once all memory.
        with ThreadPoolExecutor(_READERS) as readers:
            for start in range(0, len(found), 4 * _READERS):
                batch = found[start : start + 4 * _READERS]
                for shard, table in zip(batch, readers.map(stored, batch), strict=True):
                    add(shard, table)
        missing = sorted(set(range(shards)) - set(found))
        self.reporter.phase("analyse", sum(self._size(shard) for shard in missing))
        waiting = iter(missing)

        def following() -> Job | None:
            shard = next(waiting, None)
            return None if shard is None else self._analysis_job(shard)

        def done(job: Job, table: pa.Table) -> None:
            shard = int(job.key.split()[-1])
            table = self._with_skipped(table, shard)
            # What could not be read now may be readable when the run is resumed: such an analysis is used, but not kept.
            if Reason.UNREADABLE in table.column("reason").to_pylist():
                unkept[shard] = table
            else:
                self.store.put_if_absent(f"{folder}/{shard:05d}.parquet", manifest.table_bytes(table))
            add(shard, table)
            self.reporter.advance(images=len(table))

        pool.run(following, done, self.reporter.tick)
        return planner

    def _size(self, shard: int) -> int:
        return int(self._first[shard + 1] - self._first[shard])

    def _records(self, shard: int) -> list[SourceRecord]:
        return self.scan.records[self._first[shard] : self._first[shard + 1]]

    def _analysis_job(self, shard: int) -> Job:
        records = [record for record in self._records(shard) if record.index not in self.skip]

        def split(job: Job) -> Trials:
            self._poisoned((yield from isolate(records, lambda some: replace(job, args=(some,), patience_s=patience(len(some))))))
            return self._analysis_job(shard)

        return Job(f"analysis of shard {shard}", "analyse", (records,), split, patience_s=patience(len(records)))

    def _with_skipped(self, table: pa.Table, shard: int) -> pa.Table:
        """Rows for images that no worker survived, so that each record has one."""
        present = set(table.column("index").to_pylist())
        rows = [
            {"index": i, "source_bytes": max(0, self.scan.records[i].part.length), "reason": self.skip[i], "sidecar_bytes": 0}
            for i in range(int(self._first[shard]), int(self._first[shard + 1]))
            if i in self.skip and i not in present
        ]
        return pa.concat_tables([table, pa.Table.from_pylist(rows, schema=table.schema)])

    def _poisoned(self, record: SourceRecord | None) -> None:
        if record is None:
            self.unexplained += 1
            if self.unexplained > _UNEXPLAINED_DEATHS:
                raise WorkersError("workers keep dying and no single image explains it: look at the memory and the logs of the machines")
            return
        self.skip[record.index] = Reason.CRASHED
        self.reporter.warn(f"{record.name} kills the worker that touches it: it is kept as it is")

    # ---- encoding ----

    def _encode(self, pool: Executor, planner: Planner | None, committed: dict[int, Commit], shards: int) -> None:
        order = np.random.default_rng(int(self.scan.digest[:8], 16)).permutation(shards).tolist()
        pending = [shard for shard in order if shard not in committed]
        trims = planner is not None and planner.budget_bytes is not None
        last: int | None = None
        if trims and planner is not None:
            # The shard that takes up the rest must hold much that a rate can change, upwards too.
            last = max(pending[-_LAST_CANDIDATES:], key=planner.room, default=None)
            if last is not None and not planner.room(last):
                last = next((shard for shard in reversed(pending) if planner.room(shard)), None)
        waiting = deque(shard for shard in pending if shard != last)
        self.reporter.phase("encode", sum(map(self._size, pending)))
        running: set[int] = set()
        encoded = revised_at = sum(record.images for record in committed.values())
        stored = 0

        def following() -> Job | None:
            nonlocal revised_at, last, stored
            if not waiting:
                if last is None or running or planner is None:
                    return None
                shard, last = last, None
                self._revise(planner, committed, running)
                self._store_plan(planner)
                assert planner.budget_bytes is not None
                limit = int(planner.budget_bytes) - sum(record.counted_bytes for record in committed.values())
                return self._encode_job(shard, planner, limit)
            if planner is not None and trims and (planner.revision == 1 or encoded - revised_at >= _REVISE_SHARE * len(self.scan.records)):
                if planner.revision > 1 or encoded:
                    self._revise(planner, committed, running)
                if planner.revision != stored:
                    self._store_plan(planner)
                    stored = planner.revision
                revised_at = encoded
            shard = waiting.popleft()
            running.add(shard)
            return self._encode_job(shard, planner, None)

        def done(job: Job, record: Commit) -> None:
            nonlocal encoded
            running.discard(record.shard_id)
            encoded += record.images - (committed[record.shard_id].images if record.shard_id in committed else 0)
            committed[record.shard_id] = record
            self.reporter.committed(record)
            self._tell_of_missing_gpus(record)
            for status in ("coded", "kept", "failed"):
                pool.count("images", getattr(record, status), status=status)
            pool.count("shards", 1)
            pool.count("source_bytes", record.source_bytes)
            pool.count("stored_bytes", record.shard_bytes)

        if planner is not None and not trims:
            self._store_plan(planner)
        pool.run(following, done, self.reporter.tick)

    def _revise(self, planner: Planner, committed: dict[int, Commit], running: set[int]) -> None:
        planner.solve(committed.values(), running)
        if planner.missed is not None and not self.said_missed:
            self.said_missed = True
            self.reporter.warn(f"the budget is being missed: {planner.missed}")

    def _store_plan(self, planner: Planner) -> None:
        data = manifest.table_bytes(planner.table())
        self.store.publish_bytes(data, content_name("plan", f"{planner.revision:05d}", sha256(data), "parquet"))

    def _encode_job(self, shard: int, planner: Planner | None, limit: int | None) -> Job:
        tasks = []
        choices = planner.promise(shard) if planner is not None else {}
        records = self._records(shard)
        numbers = np.arange(records[0].index, records[-1].index + 1)
        floors = self.preferences.min_psnr_db(numbers)
        least, most = self.preferences.q_range(numbers, self.model.config.q_max)
        for record, floor, low, high in zip(records, floors, least.tolist(), most.tolist(), strict=True):
            skip = self.skip.get(record.index)
            if planner is None:
                tasks.append(ImageTask(record, self.config.budget.value, skip_reason=skip, min_psnr_db=floor))
                continue
            # Without a curve (unreadable or unusable when it was analysed) an image can only be kept as it is.
            choice = choices.get(record.index, Choice(PASSTHROUGH_Q, 0.0, 0.0, "none"))
            tasks.append(ImageTask(record, choice.q, choice.predicted_bytes, choice.clamp, skip, choice.pixels, floor, low, min(high, choice.max_q)))
        task = ShardTask(
            shard_id=shard,
            attempt=uuid.uuid4().hex,
            images=tuple(tasks),
            plan_rev=planner.revision if planner else 0,
            multiplier=planner.multiplier if planner else 0.0,
            limit_bytes=limit,
        )

        def split(job: Job) -> Trials:
            suspects = [t for t in task.images if t.skip_reason is None]

            def rehearsal(some: list[ImageTask]) -> Job:
                args = (replace(task, images=tuple(some), limit_bytes=None),)
                return replace(job, method="rehearse", args=args, patience_s=patience(len(some)))

            culprit = yield from isolate(suspects, rehearsal)
            self._poisoned(culprit.record if culprit is not None else None)
            return self._encode_job(shard, planner, limit)

        return Job(f"shard {shard}", "encode", (task,), split, patience_s=patience(len(tasks)))


def _raise_unmade(failures: list[str]) -> None:
    if failures:
        more = f" ({len(failures)} shards in all; the others are in the warnings)" if len(failures) > 1 else ""
        raise ManifestError(failures[0] + more)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _refuse_nested(source: str, store: Store) -> None:
    """An archive inside its own source would be listed as images by the next run."""
    if "://" not in source and os.path.isdir(source) and store.lies_in(open_store(source)):
        raise UsageError(f"{store.url} lies inside {source}: choose a destination outside the source")


_OURS = frozenset({RUN, SEAL, "scan", "analyse", "plan", "shards", "manifest", "commits", "model", "capabilities"})


def _refuse_foreign(store: Store) -> None:
    """A folder full of other files is no place for an archive."""
    foreign: list[str] = sorted(set(store.top()) - _OURS - LITTER - {"lost+found"})
    if foreign and not store.exists(RUN):
        raise UsageError(
            f"{store.url} holds other things ({', '.join(map(printable, foreign[:3]))}) and no archive: choose an empty or new destination"
        )


def _model(which: str, store: Store) -> LoadedModel:
    """The model asked for; an archive begun with a model of this name keeps the one it was begun with."""
    try:
        run = json.loads(store.read(RUN, limit=MAX_RUN_BYTES))
        begun, asked = str(run["model_sha256"]), run["config"]["model"]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError, StorageError):
        return load_model(which)
    if asked == which and re.fullmatch("[0-9a-f]{64}", begun):
        try:
            data = store.read(f"model/{begun}.safetensors", limit=MAX_MODEL_BYTES)
            if hashlib.sha256(data).hexdigest() == begun:
                return parse_model(data)
        except (FileNotFoundError, CheckpointError):
            pass
    return load_model(which)
