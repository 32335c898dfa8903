"""The price of a byte that an archive was made at: what its growth goes on with, so that old and new images look alike."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.archive.archive import Archive
from pipeline.archive.commits import Commit
from pipeline.archive.layer import Layer
from pipeline.archive.row import Row
from pipeline.errors import UsageError
from pipeline.formats.records import columns, rows_of
from pipeline.forms.avif import AVIF
from pipeline.forms.msinn import MSINN
from pipeline.limits import MAX_PARQUET_BYTES
from pipeline.plan.config import SLOPE, CompressConfig

_SHARDS = 64
"""So many shards tell the price, evenly drawn: plans are revised by little once they are under way."""

_LARGEST = 690.0
"""Of the logarithm of a price: the exponential of more is no number."""


def price_of(archive: Archive, commits: Sequence[Commit]) -> float:
    """Error that a byte took off where the plan stopped, in the unit of the archive's objective: the median over its images, weighted by pixels.

    Of the newest generation that was planned; 0 where every image has all that it can have.

    Args:
        archive: Its newest generation.
        commits: Of shards of which it has images.

    Raises:
        UsageError: No generation was.
        ManifestError: Its books are damaged.
    """
    for layer in reversed(archive.layers):
        config = CompressConfig.from_json(layer.run.config)
        if config.budget.kind == SLOPE:
            return config.budget.value
        if config.budget.is_total:
            found = _of_images(layer, commits) if config.objective != "minimum" else None
            found = _of_plan(archive, layer) if found is None else found
            if found is not None:
                return found
    raise UsageError(f"{archive.store.url} has no price to go on with, since nothing of it was coded under a budget: say --bpp, --psnr, --q ... too")


def _of_images(layer: Layer, commits: Sequence[Commit]) -> float | None:
    """The median of the column `lambda`; None if no image has one."""
    records = [record for record in commits if record.generation == layer.generation and record.coded]
    drawn = [records[int(i)] for i in np.linspace(0, len(records) - 1, min(_SHARDS, len(records)))]
    prices: list[tuple[float, int]] = []
    for record in drawn:
        part = layer.part(record, columns(Row, "multiplier", "pixels", "codec"))
        prices += [(row.multiplier, row.pixels or 1) for row in rows_of(Row, part) if row.codec in (MSINN.codec, AVIF.codec) and row.multiplier]
    if not prices:
        return None
    prices.sort()
    weights = np.cumsum([pixels for _, pixels in prices])
    return prices[int(np.searchsorted(weights, weights[-1] / 2))][0]


def _of_plan(archive: Archive, layer: Layer) -> float | None:
    """The threshold of the last revision of the plan that says one."""
    names = [name for name in archive.store.list(f"{layer.prefix}plan") if "/per-image-" not in name and name.endswith(".parquet")]
    for name in reversed(names):
        try:
            metadata = pq.read_schema(io.BytesIO(archive.store.read(name, limit=MAX_PARQUET_BYTES))).metadata or {}
            threshold = float(metadata[b"msinn.threshold"])
        except (pa.ArrowException, KeyError, ValueError):
            continue
        if not math.isnan(threshold):
            return math.exp(min(threshold, _LARGEST))
    return None
