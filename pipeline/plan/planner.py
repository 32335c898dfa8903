"""The plan of a run: budgets in bytes, a threshold over all pending images, revised as real sizes come in.

The plan is a number. With a shard's analysis (`findings`) it says each image's q, so that nothing is kept per image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.archive.commits import Commit
from pipeline.errors import BudgetInfeasibleError, ManifestError
from pipeline.plan.allocation import Allocation, Upgrades, infeasible
from pipeline.plan.config import SLOPE, Budget, CompressConfig
from pipeline.plan.curves import q_for_psnr
from pipeline.plan.findings import Array, Findings, Older
from pipeline.plan.histogram import SlopeHistogram, quick_threshold, threshold_for
from pipeline.plan.infeasible import explained
from pipeline.plan.preferences import Preferences
from pipeline.sources.record import printable

_PRIOR_SHARE = 0.02
"""Of the budget: so much is taken to be as predicted, whatever the first shards say."""

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
    """What the plan says of one image: rate, predicted stored bytes and MSE, and what bound it; its pixels, the largest q that its caps
    allow, and the stored bytes of its smallest exact form."""

    q: float
    predicted_bytes: float
    mse: float
    clamp: str
    pixels: int = 0
    max_q: float = np.inf
    exact_bytes: float = np.inf


@dataclass(frozen=True)
class Forecast:
    """The plan of all pending images.

    Attributes:
        index: `[N]`, their numbers.
        pixels: `[N]`.
        allocation: Their choices; bytes as predicted, without the closed loop's factor.
        form: `[N]`, names of the forms that these are.
        source_bytes: `[N]`, of their files.
    """

    index: NDArray[np.int64]
    pixels: Array
    allocation: Allocation
    form: NDArray[np.str_]
    source_bytes: Array


class Planner:
    """Keeps the books of a run whose budget is a total, or whose images have a quality target. Give it each shard's analysis by `add`, then `solve`.

    Args:
        config: The run's.
        shard_ids: `[N]`, shard of each record; rising.
        preferences: Of single images.
        analysis_of: Reads a shard's analysis again; needed above `findings.CACHED_IMAGES`.
        names: Of the records, for messages.
        older: What the budget counts beside these images.
    """

    def __init__(
        self,
        config: CompressConfig,
        shard_ids: NDArray[np.int32],
        *,
        preferences: Preferences | None = None,
        analysis_of: Callable[[int], pa.Table] | None = None,
        names: Callable[[int], str] = str,
        older: Older | None = None,
    ) -> None:
        self.config = config
        self.older = older or Older()
        self.preferences = preferences or Preferences(config)
        self.findings = Findings(shard_ids, config.objective, self.preferences, analysis_of)
        self._names = names
        self._wide, self._counted = SlopeHistogram(), np.zeros(self.findings.num_shards, bool)
        self._pending = np.ones(self.findings.num_shards, bool)
        self._promised: dict[int, float] = {}
        self.factor = 1.0
        self.threshold = _threshold_of(config.budget)
        self.revision = 0
        self.missed: str | None = None

    def add(self, shard: int, analysis: pa.Table) -> None:
        """Take in a shard's analysis; see `Findings.add`."""
        curves = self.findings.add(shard, analysis)
        if self.findings.has_coded[shard] and not self.findings.in_memory and self.config.budget.is_total:
            # Now that it is at hand: reading every shard again for the first plan would take hours.
            self._wide.add(self.findings.prepared(curves)[1])
            self._counted[shard] = True

    @property
    def budget_bytes(self) -> float | None:
        """The budget of these images in bytes: what the whole has less what older generations take of it. None for a quality target or a price."""
        budget, older = self.config.budget, self.older
        if not budget.is_total:
            return None
        pixels, source_bytes = self.findings.total_pixels + older.pixels, self.findings.total_source_bytes + older.source_bytes
        return budget.total_bytes(pixels=pixels, source_bytes=source_bytes) - older.counted_bytes

    # ---- deciding ----

    def solve(self, committed: Iterable[Commit] = (), reserved: Iterable[int] = ()) -> None:
        """Revise the threshold for all images outside committed and reserved (running) shards.

        Raises:
            BudgetInfeasibleError: The budget cannot hold the images, and none is committed yet. Later, `missed` says it and the rest goes
                as low as it may.
        """
        if not self.findings.complete:
            raise ManifestError("the analysis of some shards is missing")
        commits, running = list(committed), set(reserved)
        done = {record.shard_id for record in commits}
        pending = np.ones(self.findings.num_shards, bool)
        pending[list(done | running)] = False
        self._pending = pending
        self.revision += 1
        budget = self.budget_bytes
        if budget is None:
            return
        self._recount(pending)
        self.factor = self._learned_factor(commits)
        left = budget - sum(record.counted_bytes for record in commits)
        left -= float(self.findings.fixed.sum() - self.findings.fixed[list(done)].sum())
        left -= sum(self.predicted_coded(shard) for shard in running) * self.factor
        try:
            self.threshold = self._threshold(pending, left)
        except BudgetInfeasibleError as error:
            least = budget - left + error.least_bytes
            better = explained(self.config, self.findings, np.flatnonzero(pending).tolist(), least, budget, self.name, self.older)
            if not commits:
                raise better from error
            # Part of the dataset is archived already: the rest goes as low as its floors allow, and the run says at the end by how
            # much it missed.
            self.missed = str(better)
            self.threshold = np.inf

    def _recount(self, pending: NDArray[np.bool_]) -> None:
        """Let the histogram hold the pending shards and no others."""
        for shard in np.flatnonzero(pending != self._counted):
            for upgrades in self.findings.walk([int(shard)]):
                self._wide.add(upgrades, 1 if pending[shard] else -1)
            self._counted[shard] = pending[shard]

    def _threshold(self, pending: NDArray[np.bool_], left: float) -> float:
        """What `left` bytes buy for the pending shards.

        Raises:
            BudgetInfeasibleError: Not even the least that is allowed.
        """
        if not self.findings.has_coded[pending].any():
            if left < 0:
                raise infeasible(0.0, left)
            return float(np.inf)
        if not self.findings.in_memory:
            return quick_threshold(self._wide, left, self.factor)
        shards = np.flatnonzero(pending).tolist()
        return threshold_for(lambda: self.findings.walk(shards), left, self.factor, self._wide)

    @property
    def multiplier(self) -> float:
        """Error per predicted byte at the threshold: the lambda of the manifest; 0 where there is none."""
        equal_slopes = self.config.budget.has_threshold and self.config.objective != "minimum" and np.isfinite(self.threshold)
        return float(np.exp(self.threshold)) if equal_slopes else 0.0

    def _allocation(self, upgrades: Upgrades) -> Allocation:
        if self.config.budget.has_threshold:
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
        if not self.findings.has_coded[shard]:
            return {}
        index, upgrades = self.findings.upgrades(shard)
        chosen = self._allocation(upgrades)
        pixels = upgrades.curves.pixels.astype(np.int64).tolist()
        # Where the original is the best choice, no cap binds.
        best = np.where(upgrades.high >= upgrades.kept, np.inf, upgrades.curves.q[np.minimum(upgrades.high, len(upgrades.curves.q) - 1)])
        columns = (
            chosen.q.tolist(), chosen.stored.tolist(), chosen.mse.tolist(), chosen.clamped.tolist(), pixels, best.tolist(),
            upgrades.curves.original.tolist(),
        )  # fmt: skip
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
        if not self.findings.has_coded[shard]:
            return 0.0
        upgrades = self.findings.upgrades(shard)[1]
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
        for shard in np.flatnonzero(self._pending & self.findings.has_coded).tolist():
            index, upgrades = self.findings.upgrades(shard)
            chosen = self._allocation(upgrades)
            form = np.where(np.isfinite(chosen.q), self.findings.coded_forms(shard), self.findings.forms(shard))
            parts.append((index, upgrades.curves.pixels, chosen, form, self.findings.source_bytes(shard)))
        if not parts:
            return _NO_FORECAST

        def joined(name: str) -> NDArray[np.generic]:
            return np.concatenate([getattr(part[2], name) for part in parts])

        columns: dict[str, Any] = {name: joined(name) for name in ("q", "stored", "mse", "clamped")}
        allocation = Allocation(**columns, multiplier=self.multiplier)
        index, pixels, form, source = (np.concatenate([part[i] for part in parts]) for i in (0, 1, 3, 4))
        return Forecast(index, pixels, allocation, form, source)

    def predicted_total(self) -> float:
        """Predicted counted bytes of all pending shards: coded images, files kept as they are, ends of shards, counted sidecars."""
        fixed = float(self.findings.fixed[self._pending].sum())
        if not self.findings.in_memory and self.budget_bytes is not None:
            return fixed + self._wide.cost(self.threshold)
        return fixed + self.forecast().allocation.total_bytes

    def table(self) -> pa.Table:
        """The present plan, for `plan/`: the threshold in the metadata, and a row per pending image where the dataset is not too large for that."""
        forecast = self.forecast() if self.findings.in_memory else _NO_FORECAST
        chosen = forecast.allocation
        facts = {"revision": self.revision, "threshold": self.threshold, "factor": self.factor, "budget_bytes": self.budget_bytes}
        metadata = {f"msinn.{name}": str(value) for name, value in facts.items()}
        columns = {
            "index": forecast.index,
            "shard_id": (np.searchsorted(self.findings.first, forecast.index, side="right") - 1).astype(np.int32),
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


def _threshold_of(budget: Budget) -> float:
    """The threshold that a price is; nothing is bought until a total is divided."""
    if budget.kind != SLOPE:
        return float(np.inf)
    return float(np.log(budget.value)) if budget.value > 0 else float(-np.inf)


_NOTHING = Allocation(np.empty(0), np.empty(0), np.empty(0), np.empty(0, "U5"), 0.0)
_NO_FORECAST = Forecast(np.empty(0, np.int64), np.empty(0), _NOTHING, np.empty(0, "U12"), np.empty(0))
