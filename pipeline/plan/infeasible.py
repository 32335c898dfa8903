"""Why a budget cannot be met, in words: what is least possible, and which files are to blame."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from pipeline.errors import BudgetInfeasibleError
from pipeline.plan.allocation import infeasible, most_expensive
from pipeline.plan.config import CompressConfig
from pipeline.plan.findings import Findings

_NAMED = 5
"""So many of the most expensive images are named."""


def explained(
    config: CompressConfig, findings: Findings, pending: Iterable[int], least: float, budget_bytes: float, name: Callable[[int], str]
) -> BudgetInfeasibleError:
    """The error with all that is known.

    Args:
        config: The run's.
        findings: Of all images.
        pending: Shards that are still to be encoded.
        least: Bytes of the archive at the least rates that are allowed.
        budget_bytes: The budget.
        name: Of an image, by its number.
    """
    guilty: list[tuple[float, int]] = []
    for shard in pending:
        if findings.has_coded[shard]:
            index, upgrades = findings.upgrades(shard)
            cost = upgrades.at(np.inf).stored / np.maximum(upgrades.curves.pixels, 1)
            guilty += [(float(cost[i]), int(index[i])) for i in most_expensive(upgrades)]
            guilty = sorted(guilty, reverse=True)[:_NAMED]
    blamed = [i for _, i in guilty]
    floor = f" with every image at {config.min_psnr_db:g} dB or better" if config.min_psnr_db is not None else ""
    budget = config.budget
    scale = {"bpp": 8 / max(findings.total_pixels, 1), "bytes": 1.0, "ratio": 1.0}[budget.kind]
    least_value = findings.total_source_bytes / least if budget.kind == "ratio" else least * scale
    return infeasible(
        least,
        budget_bytes,
        blamed,
        f"{budget} allows {budget_bytes:,.0f} bytes, but the least possible{floor} is {least:,.0f} bytes "
        f"(--{budget.kind} {least_value:.6g}); {'; '.join(_suspects(findings, blamed, name))}",
    )


def _suspects(findings: Findings, blamed: list[int], name: Callable[[int], str]) -> list[str]:
    parts = []
    if findings.num_kept:
        largest = ", ".join(map(name, findings.largest_kept))
        parts.append(f"{findings.num_kept} files, {findings.kept_bytes / 1e6:,.2f} MB, are kept as they are and cannot be made smaller: {largest}")
    if findings.num_unreadable_pixels:
        parts.append(
            f"the bytes of {findings.num_unreadable_pixels} of them count and their pixels do not, since they are broken or over --max-pixels"
        )
    if blamed:
        parts.append(f"the most expensive images are {', '.join(map(name, blamed))}")
    return parts
