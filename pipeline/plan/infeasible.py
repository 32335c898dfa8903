"""Why a budget cannot be met, in words: what is least possible, and which files are to blame."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from pipeline.errors import BudgetInfeasibleError
from pipeline.plan.allocation import infeasible, most_expensive
from pipeline.plan.config import CompressConfig
from pipeline.plan.findings import Findings, Older

_NAMED = 5
"""So many of the most expensive images are named."""


def explained(
    config: CompressConfig,
    findings: Findings,
    pending: Iterable[int],
    least: float,
    budget_bytes: float,
    name: Callable[[int], str],
    older: Older | None = None,
) -> BudgetInfeasibleError:
    """The error with all that is known.

    Args:
        config: The run's.
        findings: Of all images.
        pending: Shards that are still to be encoded.
        least: Bytes of the archive at the least rates that are allowed.
        budget_bytes: The budget.
        name: Of an image, by its number.
        older: What the budget counts beside these images.
    """
    guilty: list[tuple[float, int]] = []
    for shard in pending:
        if findings.has_coded[shard]:
            index, upgrades = findings.upgrades(shard)
            cost = upgrades.at(np.inf).stored / np.maximum(upgrades.curves.pixels, 1)
            guilty += [(float(cost[i]), int(index[i])) for i in most_expensive(upgrades)]
            guilty = sorted(guilty, reverse=True)[:_NAMED]
    blamed = [i for _, i in guilty]
    if config.min_psnr_db == np.inf and config.preferences_sha256 is None:
        floor = " with every image exact"
    else:
        floor = (
            f" with every image at {config.min_psnr_db:g} dB or better" if config.min_psnr_db is not None and np.isfinite(config.min_psnr_db) else ""
        )
    budget = config.budget
    there, pixels, source_bytes = 0, findings.total_pixels, findings.total_source_bytes
    images = ""
    if older is not None and older.counted_bytes:
        there, pixels, source_bytes = older.counted_bytes, pixels + older.pixels, source_bytes + older.source_bytes
        images = f" for the new images, beside the {there:,} of the older ones"
    scale = {"bpp": 8 / max(pixels, 1), "bytes": 1.0, "ratio": 1.0}[budget.kind]
    least_value = source_bytes / (least + there) if budget.kind == "ratio" else (least + there) * scale
    return infeasible(
        least,
        budget_bytes,
        blamed,
        f"{budget} allows {budget_bytes:,.0f} bytes{images}, but the least possible{floor} is {least:,.0f} bytes "
        f"(--{budget.kind} {least_value:.6g}); {'; '.join(_suspects(findings, blamed, budget_bytes, name))}",
    )


def _suspects(findings: Findings, blamed: list[int], budget_bytes: float, name: Callable[[int], str]) -> list[str]:
    parts = []
    alone = findings.kept_bytes > budget_bytes
    if findings.num_kept:
        largest = ", ".join(map(name, findings.largest_kept))
        how = "are kept as they are or lie exactly" if findings.fixed_forms.keys() - {"kept"} else "are kept as they are"
        how = f"alone more than that, {how}" if alone else how
        parts.append(f"{findings.num_kept} files, {findings.kept_bytes / 1e6:,.2f} MB, {how} and cannot be made smaller: {largest}")
    if findings.num_unreadable_pixels:
        parts.append(
            f"the bytes of {findings.num_unreadable_pixels} of them count and their pixels do not, since they are broken or over --max-pixels"
        )
    if blamed and not alone:  # else no rate of theirs would help
        parts.append(f"the most expensive images are {', '.join(map(name, blamed))}")
    return parts
