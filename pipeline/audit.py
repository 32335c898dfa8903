"""Questions to the manifest: SQL, and the summary that hides nothing of the worst images."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit import Archive
from pipeline.errors import UsageError

_WORST = 5


def query(table: pa.Table, sql: str) -> pa.Table:
    """Run SQL; the view `manifest` is `table`.

    Raises:
        UsageError: The SQL is wrong; the sentence is DuckDB's.
    """
    import duckdb

    # Questions only: a query neither reads nor writes files of its own.
    connection = duckdb.connect(config={"enable_external_access": "false"})
    try:
        connection.register("manifest", table)
        relation = connection.sql(sql)
        # A statement without a result, such as SET, gives no relation.
        result: pa.Table = relation.to_arrow_table() if relation is not None else pa.table({})
        return result
    except duckdb.Error as error:
        hints = [line.strip() for line in str(error).splitlines() if line.strip() and set(line.strip()) != {"^"} and not line.startswith("LINE ")]
        raise UsageError(f"the SQL does not work: {' '.join(hints)[:600]}") from error
    finally:
        connection.close()


def select(table: pa.Table, where: str) -> pa.Table:
    """Rows of a manifest that fulfil an SQL condition, in its order. Raises `UsageError` for bad SQL."""
    keep = query(table, f"SELECT key FROM manifest WHERE {where}").column("key")
    return table.filter(pc.is_in(table.column("key"), value_set=keep.combine_chunks()))


def summary(archive: Archive) -> dict[str, Any]:
    """Totals, percentiles and the worst images, for `msinn audit` and the end of a run.

    Returns:
        `totals`, `percentiles` (rows of `bpp` and `psnr_db` at p0..p100), `worst` (lowest PSNR) and `reasons` (counts by error_code).
    """
    table = archive.manifest()
    totals = query(
        table,
        """SELECT count(*) AS images, count(*) FILTER (status = 'coded') AS coded, count(*) FILTER (status = 'kept') AS kept,
        count(*) FILTER (status = 'failed') AS failed, coalesce(sum(source_bytes), 0)::BIGINT AS source_bytes,
        coalesce(sum(stored_bytes), 0)::BIGINT AS stored_bytes,
        coalesce(sum(pixels), 0)::BIGINT AS pixels,
        8.0 * sum(stored_bytes) / nullif(sum(pixels), 0) AS bpp,
        avg(psnr_db) AS mean_psnr_db,
        10 * log10(65025 / nullif(sum(mse * pixels) / nullif(sum(pixels) FILTER (mse IS NOT NULL), 0), 0)) AS pooled_psnr_db,
        coalesce(bool_and(decode_verified) FILTER (codec = 'msinn'), true) AS all_verified FROM manifest""",
    ).to_pylist()[0]
    marks = [0.0, 0.01, 0.05, 0.5, 0.95, 0.99, 1.0]
    wanted = [
        f"quantile_cont({column}, {mark}) FILTER (codec = 'msinn') AS {column}_{round(mark * 100)}" for column in ("psnr_db", "bpp") for mark in marks
    ]
    percentiles = query(table, f"SELECT {', '.join(wanted)} FROM manifest").to_pylist()[0]
    worst = query(
        table, f"SELECT key, name, psnr_db, bpp, q, clamp FROM manifest WHERE codec = 'msinn' ORDER BY psnr_db, key LIMIT {_WORST}"
    ).to_pylist()
    reasons = query(
        table,
        "SELECT error_code, status, count(*) AS images, min(name) AS example FROM manifest WHERE status <> 'coded' GROUP BY ALL ORDER BY images DESC",
    ).to_pylist()
    return {"totals": totals, "percentiles": percentiles, "worst": worst, "reasons": reasons}
