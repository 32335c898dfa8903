"""The plan of a run: budgets in bytes, curves per image, a q for every pending image, revised as real sizes come in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import images
from pipeline.archive import END_BYTES, stored_bytes
from pipeline.commit import Commit
from pipeline.config import CompressConfig
from pipeline.errors import BudgetInfeasibleError, ManifestError
from pipeline.rate import Allocation, CurveSet, allocate, cheapest, q_for_psnr
from pipeline.sources.record import printable

_HEADER_AND_MEAN_PADDING = 512 + 256
_PRIOR_SHARE = 0.02

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
    """What the plan says of one image: rate, predicted stored bytes and MSE, and what bound it."""

    q: float
    predicted_bytes: float
    mse: float
    clamp: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a budget would buy: predicted bytes of the archive, bits per pixel, pooled and mean PSNR, and PSNR of the worst 1 %."""

    counted_bytes: float
    bpp: float
    pooled_psnr_db: float
    mean_psnr_db: float
    p1_psnr_db: float


class Planner:
    """Keeps the books of a run whose budget is a total, or whose images have a quality target.

    Args:
        config: The run's.
        analysis: Rows of `worker.ANALYSIS_SCHEMA`, sorted by index, one per record.
        shard_ids: `[N]`, shard of each record.
    """

    def __init__(self, config: CompressConfig, analysis: pa.Table, shard_ids: NDArray[np.int32]) -> None:
        self.config = config
        self.shard_ids = shard_ids
        if analysis.column("index").to_pylist() != list(range(len(shard_ids))):
            raise ManifestError("the stored analysis does not have one row for each image: remove the archive's analyse/ folder and run again")
        self.names: list[str] = []
        coded = ~np.array(analysis.column("bytes").is_null())
        self.coded = np.flatnonzero(coded)
        size = np.array([0 if value is None else stored_bytes(value) for value in analysis.column("source_bytes").to_pylist()], np.float64)
        width, height = (np.nan_to_num(np.array(analysis.column(name).to_pylist(), np.float64)) for name in ("width", "height"))
        # Broken and oversized images are stored as they are; their pixels must not buy bytes for the others.
        failed = np.isin(np.array(analysis.column("reason").to_pylist(), dtype=object), list(images.FAILURES))
        self.pixels = np.where(failed, 0.0, width * height)
        self.total_pixels = int(self.pixels.sum())
        self.total_source_bytes = int(sum(value or 0 for value in analysis.column("source_bytes").to_pylist()))
        if len(self.coded):
            curves: Array = np.array([analysis.column("bytes")[int(i)].as_py() for i in self.coded], np.float64)
            mse: Array = np.array([analysis.column("mse")[int(i)].as_py() for i in self.coded], np.float64)
        else:
            curves, mse = np.empty((0, 2)), np.empty((0, 2))
        anchors = np.arange(curves.shape[1], dtype=np.float64)
        self.curves = CurveSet.from_anchors(anchors, curves + _HEADER_AND_MEAN_PADDING, mse, self.pixels[self.coded], size[self.coded])
        # Bytes of each shard that no rate changes: its end, the files kept as they are, counted sidecars.
        self.num_shards = int(shard_ids.max()) + 1
        self.fixed = np.full(self.num_shards, float(END_BYTES))
        kept = np.where(coded, 0.0, size) + np.array(analysis.column("sidecar_bytes").to_pylist(), np.float64)
        np.add.at(self.fixed, shard_ids, kept)
        self.budget_bytes = (
            config.budget.total_bytes(pixels=self.total_pixels, source_bytes=self.total_source_bytes) if config.budget.is_total else None
        )
        self.factor = 1.0
        self.multiplier = 0.0
        self.revision = 0
        self.missed: str | None = None
        self.choices: dict[int, Choice] = {}

    def solve(self, committed: Iterable[Commit] = (), reserved: Iterable[int] = ()) -> Allocation:
        """Revise the choices of all images outside committed and reserved (running) shards.

        Raises:
            BudgetInfeasibleError: The budget cannot hold the images, and none is committed yet. Later, `missed` says it and the rest goes
                as low as it may.
        """
        commits, running = list(committed), set(reserved)
        settled = {record.shard_id for record in commits} | running
        pending_rows = np.flatnonzero(~np.isin(self.shard_ids[self.coded], list(settled)))
        pending = self.curves.take(pending_rows)
        if self.budget_bytes is None:
            allocation = self._by_quality(pending)
        else:
            self.factor = self._learned_factor(commits)
            left = self.budget_bytes - sum(record.counted_bytes for record in commits)
            left -= sum(self.fixed[shard] for shard in range(self.num_shards) if shard not in {r.shard_id for r in commits})
            left -= sum(self.predicted_coded(shard) for shard in running) * self.factor
            try:
                allocation = allocate(pending.scaled(self.factor), left, objective=self.config.objective, min_psnr_db=self.config.min_psnr_db)
            except BudgetInfeasibleError as error:
                if not commits:
                    raise self._explained(error, pending_rows, left) from error
                # Part of the dataset is archived already: the rest goes as low as its floors allow, and the run says at the end by how
                # much it missed.
                self.missed = str(self._explained(error, pending_rows, left))
                allocation = cheapest(pending.scaled(self.factor), min_psnr_db=self.config.min_psnr_db)
        self.revision += 1
        self.multiplier = allocation.multiplier
        raw = np.where(np.isinf(allocation.q), allocation.stored, allocation.stored / self.factor)
        for row, q, stored, mse, clamp in zip(pending_rows, allocation.q, raw, allocation.mse, allocation.clamped, strict=True):
            self.choices[int(self.coded[row])] = Choice(float(q), float(stored), float(mse), str(clamp))
        return allocation

    def outlook(self, num_points: int = 9) -> list[Outlook]:
        """What budgets between the least and the most that rates can spend would buy, floors and objective as configured, from the analysis alone."""
        if not len(self.curves):
            return []
        least = cheapest(self.curves, min_psnr_db=self.config.min_psnr_db).total_bytes
        most = float(np.minimum(self.curves.stored[:, -1], self.curves.original).sum())
        fixed, found = float(self.fixed.sum()), []
        for budget in np.geomspace(least * (1 + 1e-9), max(most, least * (1 + 1e-6)), num_points):
            chosen = allocate(self.curves, float(budget), objective=self.config.objective, min_psnr_db=self.config.min_psnr_db)
            psnr = 10 * np.log10(255.0**2 / np.maximum(chosen.mse, 1e-5))
            pooled = float((chosen.mse * self.curves.pixels).sum() / max(self.curves.pixels.sum(), 1))
            total = chosen.total_bytes + fixed
            found.append(
                Outlook(
                    total,
                    8 * total / max(self.total_pixels, 1),
                    float(10 * np.log10(255.0**2 / max(pooled, 1e-5))),
                    float(psnr.mean()),
                    float(np.percentile(psnr, 1)),
                )
            )
        return found

    def _by_quality(self, pending: CurveSet) -> Allocation:
        assert self.config.budget.kind == "psnr"
        q = q_for_psnr(pending, self.config.budget.value)
        nearest = np.abs(q[:, None] - pending.q).argmin(axis=1)
        rows = np.arange(len(pending))
        stored, mse = pending.stored[rows, nearest], pending.mse[rows, nearest]
        return Allocation(q, stored, mse, np.full(len(pending), "none", "U5"), 0.0)

    def _learned_factor(self, commits: list[Commit]) -> float:
        """Actual over predicted bytes so far, held near 1 until a few percent of the dataset are known."""
        predicted = sum(record.predicted_bytes for record in commits)
        actual = sum(record.coded_bytes for record in commits)
        prior = _PRIOR_SHARE * (self.budget_bytes or 0.0)
        return (actual + prior) / (predicted + prior) if predicted + prior > 0 else 1.0

    def predicted_coded(self, shard: int) -> float:
        """Uncorrected predicted bytes of a shard's images under the present choices."""
        return sum(self.choices[int(i)].predicted_bytes for i in self.coded[self.shard_ids[self.coded] == shard] if int(i) in self.choices)

    def predicted_total(self) -> float:
        """Predicted counted bytes of the whole archive: coded images, files kept as they are, ends of shards, counted sidecars."""
        return sum(choice.predicted_bytes for choice in self.choices.values()) + float(self.fixed.sum())

    def codes(self, shard: int) -> bool:
        """Whether the shard has an image whose size a rate can change."""
        return any(np.isfinite(self.choices[int(i)].q) for i in self.coded[self.shard_ids[self.coded] == shard] if int(i) in self.choices)

    def table(self) -> pa.Table:
        """The present choices, for `plan/`."""
        rows = sorted(self.choices.items())
        return pa.table(
            {
                "index": [i for i, _ in rows],
                "shard_id": [int(self.shard_ids[i]) for i, _ in rows],
                "q": [choice.q for _, choice in rows],
                "predicted_bytes": [choice.predicted_bytes for _, choice in rows],
                "mse": [choice.mse for _, choice in rows],
                "clamp": [choice.clamp for _, choice in rows],
            },
            schema=PLAN_SCHEMA,
        )

    def _explained(self, error: BudgetInfeasibleError, rows: NDArray[np.intp], left: float) -> BudgetInfeasibleError:
        assert self.budget_bytes is not None
        least = self.budget_bytes - left + error.least_bytes  # type: ignore[attr-defined]
        blame = [printable(self.names[int(self.coded[rows[i]])]) for i in error.blame if self.names]  # type: ignore[attr-defined]
        floor = f" with every image at {self.config.min_psnr_db:g} dB or better" if self.config.min_psnr_db is not None else ""
        budget = self.config.budget
        scale = {"bpp": 8 / max(self.total_pixels, 1), "bytes": 1.0, "ratio": 1.0}[budget.kind]
        least_value = self.total_source_bytes / least if budget.kind == "ratio" else least * scale
        guilty = f"the most expensive images are {', '.join(blame)}" if blame else "all of it files that are kept as they are"
        return BudgetInfeasibleError(
            f"{budget} allows {self.budget_bytes:,.0f} bytes, but the least possible{floor} is {least:,.0f} bytes "
            f"(--{budget.kind} {least_value:.6g}); {guilty}"
        )
