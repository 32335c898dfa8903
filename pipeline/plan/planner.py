"""The plan of a run: budgets in bytes, a threshold over all pending images, revised as real sizes come in.

The plan is a number. With a shard's stored analysis it says each image's q, so that nothing is kept per image: curves of large datasets are read from
the archive again when they are needed, those of small ones stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.archive.commits import Commit
from pipeline.archive.shard import END_BYTES, stored_bytes
from pipeline.errors import BudgetInfeasibleError, ManifestError
from pipeline.formats.outcome import Reason
from pipeline.plan.allocation import Allocation, Upgrades, infeasible, most_expensive, tie_breaks
from pipeline.plan.config import CompressConfig
from pipeline.plan.curves import CurveSet, q_for_psnr
from pipeline.plan.histogram import SlopeHistogram, quick_threshold, threshold_for
from pipeline.plan.preferences import Preferences
from pipeline.sources.record import printable

CACHED_IMAGES = 200_000
"""Up to this many images the curves stay in memory (200 bytes each) and every revision is exact; beyond, revisions use the histogram alone."""

_HEADER_AND_MEAN_PADDING = 512 + 256
_PRIOR_SHARE = 0.02
_PSNR_BINS = np.linspace(0.0, 120.0, 12_001)

Array = NDArray[np.float64]

PLAN_SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("shard_id", pa.int32()),
        ("q", pa.float64()),
        ("predicted_bytes", pa.float64()),
        ("mse", pa.float64()),
        ("clamp", pa.string()),
    ]
)


@dataclass(frozen=True)
class Choice:
    """What the plan says of one image: rate, predicted stored bytes and MSE, and what bound it; its pixels, and the largest q that its caps allow."""

    q: float
    predicted_bytes: float
    mse: float
    clamp: str
    pixels: int = 0
    max_q: float = np.inf


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a budget would buy: predicted bytes of the archive, bits per pixel, pooled and mean PSNR, and PSNR of the worst 1 %."""

    counted_bytes: float
    bpp: float
    pooled_psnr_db: float
    mean_psnr_db: float
    p1_psnr_db: float


@dataclass(frozen=True)
class Forecast:
    """The plan of all pending images.

    Attributes:
        index: `[N]`, their numbers.
        pixels: `[N]`.
        allocation: Their choices; bytes as predicted, without the closed loop's factor.
    """

    index: NDArray[np.int64]
    pixels: Array
    allocation: Allocation


@dataclass(frozen=True)
class _Shard:
    """Images of a shard whose size a rate can change: numbers `[n]` and curves at the anchors `[n, A]`."""

    index: NDArray[np.int64]
    bytes: NDArray[np.float32]
    mse: NDArray[np.float32]
    pixels: Array
    original: Array


class Planner:
    """Keeps the books of a run whose budget is a total, or whose images have a quality target. Give it each shard's analysis by `add`, then `solve`.

    Args:
        config: The run's.
        shard_ids: `[N]`, shard of each record; rising.
        preferences: Of single images.
        analysis_of: Reads a shard's analysis again; needed above `CACHED_IMAGES`.
        names: Of the records, for messages.
    """

    def __init__(
        self,
        config: CompressConfig,
        shard_ids: NDArray[np.int32],
        *,
        preferences: Preferences | None = None,
        analysis_of: Callable[[int], pa.Table] | None = None,
        names: Callable[[int], str] = str,
    ) -> None:
        self.config = config
        self.preferences = preferences or Preferences(config)
        self.num_images = len(shard_ids)
        self.num_shards = int(shard_ids[-1]) + 1
        self._first = np.searchsorted(shard_ids, np.arange(self.num_shards + 1))
        self._names = names
        self._shards: dict[int, _Shard] | None = {} if len(shard_ids) <= CACHED_IMAGES else None
        if self._shards is None and analysis_of is None:
            raise ManifestError(f"plans of more than {CACHED_IMAGES} images need a stored analysis")
        self._analysis_of = analysis_of
        self._recent = lru_cache(16)(self._read_again)
        self._added = np.zeros(self.num_shards, bool)
        self._has_coded = np.zeros(self.num_shards, bool)
        self._wide, self._counted = SlopeHistogram(), np.zeros(self.num_shards, bool)
        self.total_pixels = self.total_source_bytes = self.num_coded = 0
        # Bytes of each shard that no rate changes: its end, the files kept as they are, counted sidecars.
        self.fixed = np.full(self.num_shards, float(END_BYTES))
        self.num_kept = self.kept_bytes = self.num_unreadable_pixels = 0
        self._kept_examples: list[tuple[float, int]] = []
        self.factor = 1.0
        self.threshold = np.inf
        self.revision = 0
        self.missed: str | None = None
        self._promised: dict[int, float] = {}

    # ---- what was found ----

    def add(self, shard: int, analysis: pa.Table) -> None:
        """Take in the rows of `encode.tasks.ANALYSIS_SCHEMA` of one shard.

        Raises:
            ManifestError: They are not of this shard, or hold what no analysis gives.
        """
        analysis = analysis.sort_by("index")
        found = _coded(analysis, shard)
        index = analysis.column("index").to_numpy()
        if not np.array_equal(index, np.arange(self._first[shard], self._first[shard + 1])):
            raise ManifestError("the stored analysis does not have one row for each image: remove the archive's analyse/ folder and run again")
        # Broken and oversized images are stored as they are; their pixels must not buy bytes for the others.
        failed = np.isin(np.array(analysis.column("reason").to_pylist(), dtype=object), [reason for reason in Reason if reason.troubles])
        pixels = np.where(failed, 0.0, _numbers(analysis, "width") * _numbers(analysis, "height"))
        source = _numbers(analysis, "source_bytes")
        size = np.array([stored_bytes(int(value)) if value else 0 for value in source], np.float64)
        coded = np.isin(index, found.index)
        self.fixed[shard] += float(np.where(coded, 0.0, size).sum() + _numbers(analysis, "sidecar_bytes").sum())
        kept = ~coded & (source > 0)
        self.num_kept += int(kept.sum())
        self.kept_bytes += int(size[kept].sum())
        self.num_unreadable_pixels += int((failed & (source > 0)).sum())
        self._kept_examples = sorted([*self._kept_examples, *zip(size[kept].tolist(), index[kept].tolist(), strict=True)], reverse=True)[:3]
        self.total_pixels += int(pixels.sum())
        self.total_source_bytes += int(source.sum())
        self.num_coded += len(found.index)
        self._added[shard], self._has_coded[shard] = True, len(found.index) > 0
        if self._shards is not None:
            self._shards[shard] = found
        elif self.config.budget.is_total and len(found.index):
            # Now that it is at hand: reading every shard again for the first plan would take hours.
            self._wide.add(self._prepared(found)[1])
            self._counted[shard] = True

    @property
    def budget_bytes(self) -> float | None:
        """The budget in bytes, or None for a quality target."""
        budget = self.config.budget
        return budget.total_bytes(pixels=self.total_pixels, source_bytes=self.total_source_bytes) if budget.is_total else None

    def _read_again(self, shard: int) -> _Shard:
        assert self._analysis_of is not None
        return _coded(self._analysis_of(shard), shard)

    def _upgrades(self, shard: int) -> tuple[NDArray[np.int64], Upgrades]:
        return self._prepared(self._shards[shard] if self._shards is not None else self._recent(shard))

    def _prepared(self, held: _Shard) -> tuple[NDArray[np.int64], Upgrades]:
        anchors = np.arange(held.bytes.shape[1], dtype=np.float64)
        stored = held.bytes.astype(np.float64) + _HEADER_AND_MEAN_PADDING
        curves = CurveSet.from_anchors(anchors, stored, held.mse.astype(np.float64), held.pixels, held.original)
        limits, weights = self.preferences.limits(held.index), self.preferences.weights(held.index)
        return held.index, Upgrades.of(curves, self.config.objective, limits, weights, tie_breaks(held.index))

    def _walk(self, shards: Iterable[int]) -> Iterator[Upgrades]:
        return (self._upgrades(shard)[1] for shard in shards if self._has_coded[shard])

    # ---- deciding ----

    def solve(self, committed: Iterable[Commit] = (), reserved: Iterable[int] = ()) -> None:
        """Revise the threshold for all images outside committed and reserved (running) shards.

        Raises:
            BudgetInfeasibleError: The budget cannot hold the images, and none is committed yet. Later, `missed` says it and the rest goes
                as low as it may.
        """
        if not self._added.all():
            raise ManifestError("the analysis of some shards is missing")
        commits, running = list(committed), set(reserved)
        done = {record.shard_id for record in commits}
        pending = np.ones(self.num_shards, bool)
        pending[list(done | running)] = False
        self._pending = pending
        self.revision += 1
        budget = self.budget_bytes
        if budget is None:
            return
        for shard in np.flatnonzero(pending != self._counted):
            for upgrades in self._walk([int(shard)]):
                self._wide.add(upgrades, 1 if pending[shard] else -1)
            self._counted[shard] = pending[shard]
        self.factor = self._learned_factor(commits)
        left = budget - sum(record.counted_bytes for record in commits)
        left -= float(self.fixed.sum() - self.fixed[list(done)].sum())
        left -= sum(self.predicted_coded(shard) for shard in running) * self.factor
        shards = np.flatnonzero(pending).tolist()
        try:
            if not self._has_coded[pending].any():
                if left < 0:
                    raise infeasible(0.0, left)
                self.threshold = np.inf
            elif self._shards is None:
                self.threshold = quick_threshold(self._wide, left, self.factor)
            else:
                self.threshold = threshold_for(lambda: self._walk(shards), left, self.factor, self._wide)
        except BudgetInfeasibleError as error:
            if not commits:
                raise self._explained(error, shards, left) from error
            # Part of the dataset is archived already: the rest goes as low as its floors allow, and the run says at the end by how
            # much it missed.
            self.missed = str(self._explained(error, shards, left))
            self.threshold = np.inf

    @property
    def multiplier(self) -> float:
        """Error per predicted byte at the threshold: the lambda of the manifest; 0 where there is none."""
        equal_slopes = self.config.budget.is_total and self.config.objective != "minimum" and np.isfinite(self.threshold)
        return float(np.exp(self.threshold)) if equal_slopes else 0.0

    def _allocation(self, upgrades: Upgrades) -> Allocation:
        if self.config.budget.is_total:
            return upgrades.at(self.threshold)
        curves = upgrades.curves
        if self.config.budget.kind == "q":
            q = np.full(len(curves), self.config.budget.value)
        else:
            q = q_for_psnr(curves, self.config.budget.value)
        nearest = np.abs(q[:, None] - curves.q).argmin(axis=1)
        rows = np.arange(len(curves))
        clamped = np.where(q == curves.q[-1], "cap", "none").astype("U5")
        # An image that coding would not shrink is kept.
        return Allocation(q, np.minimum(curves.stored[rows, nearest], curves.original), curves.mse[rows, nearest], clamped, 0.0)

    def choices(self, shard: int) -> dict[int, Choice]:
        """The present choices of a shard's images, by number."""
        if not self._has_coded[shard]:
            return {}
        index, upgrades = self._upgrades(shard)
        chosen = self._allocation(upgrades)
        pixels = upgrades.curves.pixels.astype(np.int64).tolist()
        # Where the original is the best choice, no cap binds.
        best = np.where(upgrades.high >= upgrades.kept, np.inf, upgrades.curves.q[np.minimum(upgrades.high, len(upgrades.curves.q) - 1)])
        columns = (chosen.q.tolist(), chosen.stored.tolist(), chosen.mse.tolist(), chosen.clamped.tolist(), pixels, best.tolist())
        return {i: Choice(*values) for i, *values in zip(index.tolist(), *columns, strict=True)}

    def promise(self, shard: int) -> dict[int, Choice]:
        """As `choices`, remembered while the shard is running."""
        chosen = self.choices(shard)
        self._promised[shard] = sum(choice.predicted_bytes for choice in chosen.values())
        return chosen

    def predicted_coded(self, shard: int) -> float:
        """Uncorrected predicted bytes of a shard's images, as promised when it was sent out or else under the present threshold."""
        if shard in self._promised:
            return self._promised[shard]
        return sum(choice.predicted_bytes for choice in self.choices(shard).values())

    def room(self, shard: int) -> float:
        """Predicted bytes of the shard's images that a rate can make larger and smaller."""
        if not self._has_coded[shard]:
            return 0.0
        upgrades = self._upgrades(shard)[1]
        chosen = self._allocation(upgrades)
        movable = (chosen.q >= 1) & (chosen.q <= upgrades.curves.q[-1] - 1) & (chosen.stored < 0.8 * upgrades.curves.original)
        return float(np.where(np.isfinite(chosen.q), np.where(movable, chosen.stored, 1.0), 0.0).sum())

    # ---- looking ahead ----

    def name(self, index: int) -> str:
        """Name of an image, for messages."""
        return printable(self._names(index))

    def forecast(self) -> Forecast:
        """The plan of every pending image."""
        parts = []
        for shard in np.flatnonzero(self._pending & self._has_coded).tolist():
            index, upgrades = self._upgrades(shard)
            parts.append((index, upgrades.curves.pixels, self._allocation(upgrades)))
        if not parts:
            return Forecast(np.empty(0, np.int64), np.empty(0), _NOTHING)

        def joined(name: str) -> NDArray[np.generic]:
            return np.concatenate([getattr(part[2], name) for part in parts])

        columns: dict[str, Any] = {name: joined(name) for name in ("q", "stored", "mse", "clamped")}
        allocation = Allocation(**columns, multiplier=self.multiplier)
        return Forecast(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]), allocation)

    def predicted_total(self) -> float:
        """Predicted counted bytes of all pending shards: coded images, files kept as they are, ends of shards, counted sidecars."""
        fixed = float(self.fixed[self._pending].sum())
        if self._shards is None and self.budget_bytes is not None:
            return fixed + self._wide.cost(self.threshold)
        return fixed + self.forecast().allocation.total_bytes

    def outlook(self, num_points: int = 9) -> list[Outlook]:
        """What budgets between the least and the most that rates can spend would buy, floors and objective as configured, from the analysis alone."""
        shards = np.flatnonzero(self._has_coded).tolist()
        if not shards:
            return []
        wide = SlopeHistogram()
        for upgrades in self._walk(shards):
            wide.add(upgrades)
        least, most = wide.least(), wide.most()
        budgets = np.geomspace(least, max(most, least * (1 + 1e-6)), num_points)
        thresholds = [np.inf, *(quick_threshold(wide, float(budget)) for budget in budgets[1:])]
        bytes_, squares, decibels = np.zeros(num_points), np.zeros(num_points), np.zeros(num_points)
        spread, pixels, count = np.zeros((num_points, len(_PSNR_BINS) - 1)), 0.0, 0
        for upgrades in self._walk(shards):
            pixels += float(upgrades.curves.pixels.sum())
            count += len(upgrades.curves)
            for i, threshold in enumerate(thresholds):
                chosen = upgrades.at(threshold)
                psnr = 10 * np.log10(255.0**2 / np.maximum(chosen.mse, 1e-5))
                bytes_[i] += chosen.total_bytes
                squares[i] += float((chosen.mse * upgrades.curves.pixels).sum())
                decibels[i] += float(psnr.sum())
                spread[i] += np.histogram(psnr, _PSNR_BINS)[0]
        totals = bytes_ + float(self.fixed.sum())
        worst = [_PSNR_BINS[int(np.searchsorted(np.cumsum(row), 0.01 * count, side="right"))] for row in spread]
        return [
            Outlook(
                float(totals[i]),
                float(8 * totals[i] / max(self.total_pixels, 1)),
                float(10 * np.log10(255.0**2 / max(squares[i] / max(pixels, 1), 1e-5))),
                float(decibels[i] / count),
                float(worst[i]),
            )
            for i in range(num_points)
        ]

    def table(self) -> pa.Table:
        """The present plan, for `plan/`: the threshold in the metadata, and a row per pending image where the dataset is not too large for that."""
        forecast = self.forecast() if self._shards is not None else Forecast(np.empty(0, np.int64), np.empty(0), _NOTHING)
        chosen = forecast.allocation
        facts = {"revision": self.revision, "threshold": self.threshold, "factor": self.factor, "budget_bytes": self.budget_bytes}
        metadata = {f"msinn.{name}": str(value) for name, value in facts.items()}
        columns = {
            "index": forecast.index,
            "shard_id": (np.searchsorted(self._first, forecast.index, side="right") - 1).astype(np.int32),
            "q": chosen.q,
            "predicted_bytes": chosen.stored,
            "mse": chosen.mse,
            "clamp": chosen.clamped.tolist(),
        }
        return pa.table(columns, schema=PLAN_SCHEMA).replace_schema_metadata(metadata)

    # ---- helpers ----

    def _learned_factor(self, commits: list[Commit]) -> float:
        """Actual over predicted bytes so far, held near 1 until a few percent of the dataset are known."""
        predicted = sum(record.predicted_bytes for record in commits)
        actual = sum(record.coded_bytes for record in commits)
        prior = _PRIOR_SHARE * (self.budget_bytes or 0.0)
        return (actual + prior) / (predicted + prior) if predicted + prior > 0 else 1.0

    def _explained(self, error: BudgetInfeasibleError, shards: list[int], left: float) -> BudgetInfeasibleError:
        budget_bytes = self.budget_bytes
        assert budget_bytes is not None
        least = budget_bytes - left + error.least_bytes
        guilty = []
        for shard in shards:
            if self._has_coded[shard]:
                index, upgrades = self._upgrades(shard)
                cost = upgrades.at(np.inf).stored / np.maximum(upgrades.curves.pixels, 1)
                guilty += [(float(cost[i]), int(index[i])) for i in most_expensive(upgrades)]
                guilty = sorted(guilty, reverse=True)[:5]
        blame = [self.name(i) for _, i in guilty]
        floor = f" with every image at {self.config.min_psnr_db:g} dB or better" if self.config.min_psnr_db is not None else ""
        budget = self.config.budget
        scale = {"bpp": 8 / max(self.total_pixels, 1), "bytes": 1.0, "ratio": 1.0}[budget.kind]
        least_value = self.total_source_bytes / least if budget.kind == "ratio" else least * scale
        parts = []
        if self.num_kept:
            largest = ", ".join(self.name(i) for _, i in self._kept_examples)
            parts.append(f"{self.num_kept} files, {self.kept_bytes / 1e6:,.2f} MB, are kept as they are and cannot be made smaller: {largest}")
        if self.num_unreadable_pixels:
            parts.append(
                f"the bytes of {self.num_unreadable_pixels} of them count and their pixels do not, since they are broken or over --max-pixels"
            )
        if blame:
            parts.append(f"the most expensive images are {', '.join(blame)}")
        suspects = "; ".join(parts)
        return infeasible(
            least,
            budget_bytes,
            [i for _, i in guilty],
            f"{budget} allows {budget_bytes:,.0f} bytes, but the least possible{floor} is {least:,.0f} bytes "
            f"(--{budget.kind} {least_value:.6g}); {suspects}",
        )


_NOTHING = Allocation(np.empty(0), np.empty(0), np.empty(0), np.empty(0, "U5"), 0.0)


def _numbers(analysis: pa.Table, name: str) -> Array:
    return np.nan_to_num(np.asarray(analysis.column(name).to_numpy(), np.float64))


def _coded(analysis: pa.Table, shard: int) -> _Shard:
    """The images of an analysis that have curves."""
    some = analysis.filter(analysis.column("bytes").is_valid())
    if not some.num_rows:
        none = np.empty((0, 2), np.float32)
        return _Shard(np.empty(0, np.int64), none, none, np.empty(0), np.empty(0))

    def curves(name: str) -> NDArray[np.float32]:
        values = some.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if values.size % some.num_rows or values.size < 2 * some.num_rows or not np.isfinite(values).all() or (values < 0).any():
            raise ManifestError(f"the stored analysis of shard {shard} holds impossible curves: remove the archive's analyse/ folder and run again")
        return np.asarray(values.reshape(some.num_rows, -1), np.float32)

    original = np.array([stored_bytes(int(value)) for value in some.column("source_bytes").to_numpy()], np.float64)
    return _Shard(some.column("index").to_numpy(), curves("bytes"), curves("mse"), _numbers(some, "width") * _numbers(some, "height"), original)
