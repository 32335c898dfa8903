"""Questions to the manifest: SQL, and the summary that hides nothing of the worst images."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.archive.archive import Archive
from pipeline.errors import UsageError
from pipeline.forms.family import WITH_LOSS

if TYPE_CHECKING:
    import duckdb

_WORST = 5
_LARGEST_SUM = 2**62


MAX_SECONDS = 600.0
MAX_RESULT_BYTES = 1 << 32
_MEMORY = "2GB"
_SPILL = "8GB"


def query(table: pa.Table, sql: str, *, max_seconds: float = MAX_SECONDS) -> pa.Table:
    """Run one SELECT; the view `manifest` is `table`. It reads nothing else, changes nothing, and can be interrupted.

    Args:
        table: Of a manifest.
        sql: DuckDB's.
        max_seconds: How long it may take.

    Raises:
        UsageError: The SQL is wrong, no SELECT, or takes more time, memory or room for its result than a question should.
    """
    import duckdb

    with tempfile.TemporaryDirectory(prefix="msinn-sql-") as private:
        # The spill folder is ours and goes with us; after these settings none can be changed.
        settings: dict[str, str | bool | int | float | list[str]] = {
            "enable_external_access": "false",
            "autoload_known_extensions": "false",
            "python_enable_replacements": "false",
            "memory_limit": _MEMORY,
            "temp_directory": private,
            "max_temp_directory_size": _SPILL,
            "lock_configuration": "true",
        }
        connection = duckdb.connect(config=settings)
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
                raise UsageError("the SQL is no single SELECT, and an audit only asks")
            connection.register("manifest", table)
            return _run(connection, statements[0], max_seconds)
        except (duckdb.Error, UnicodeError) as error:
            raise UsageError(f"the SQL does not work: {_hints(error)}") from error
        finally:
            connection.close()


def _run(connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement, max_seconds: float) -> pa.Table:
    """The result, computed in another thread: only so can this one hear an interrupt."""
    found: list[pa.Table | BaseException] = []

    def work() -> None:
        try:
            relation = connection.sql(statement)
            reader: pa.RecordBatchReader = relation.to_arrow_reader()
            batches, size = [], 0
            for batch in reader:
                size += batch.nbytes
                if size > MAX_RESULT_BYTES:
                    raise UsageError(f"the result has more than {MAX_RESULT_BYTES:,} bytes: ask for less of it, with LIMIT or fewer columns")
                batches.append(batch)
            found.append(pa.Table.from_batches(batches, schema=reader.schema))
        except BaseException as error:  # handed over below
            found.append(error)
        finally:
            ended.set()

    # Not `join`, which takes a thread for ended if it is interrupted itself.
    ended = threading.Event()
    threading.Thread(target=work, daemon=True).start()
    try:
        late = not ended.wait(max_seconds)
    finally:
        while not ended.wait(0.05):
            connection.interrupt()
    if late:
        raise UsageError(f"the SQL took more than {max_seconds:g} s and was stopped")
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _hints(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and set(line) != {"^"} and not line.startswith("LINE "))[:600]


def select(table: pa.Table, where: str) -> pa.Table:
    """Rows of a manifest that fulfil an SQL condition, in its order. Raises `UsageError` for bad SQL."""
    import pyarrow.compute as pc  # here: a tenth of a second, and not every command needs it

    # Not in brackets: an order and a limit may follow.
    keep = query(table, f"SELECT key FROM manifest WHERE {where}").column("key")
    return table.filter(pc.is_in(table.column("key"), value_set=keep.combine_chunks()))


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all rows of a manifest.

    Attributes:
        images: Rows; `coded`, `kept` and `failed` by status.
        source_bytes: Of the source files.
        stored_bytes: Of the members of shards, headers and padding included.
        pixels: Of images that decode.
        bpp: 8 x stored bytes / pixels; None without pixels.
        mean_psnr_db: Of images that lost something; None if none did.
        pooled_psnr_db: Of all pixels; None if nothing was lost.
        all_verified: Whether every coded image was read back from its bytes before it was committed.
    """

    images: int
    coded: int
    kept: int
    failed: int
    source_bytes: int
    stored_bytes: int
    pixels: int
    bpp: float | None
    mean_psnr_db: float | None
    pooled_psnr_db: float | None
    all_verified: bool


@dataclass(frozen=True, slots=True)
class Worst:
    """A coded image of low PSNR. Whoever wrote the manifest may have left out any of it."""

    key: str | None
    name: str | None
    psnr_db: float | None
    bpp: float | None
    q: float | None
    clamp: str | None


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """How many images are not coded for one reason, and one of them."""

    error_code: str | None
    status: str
    images: int
    example: str | None


@dataclass(frozen=True, slots=True)
class FormCount:
    """Images in one form, their files' bytes and what they take in shards; `exact` is the form's promise."""

    form: str | None
    exact: str | None
    images: int
    source_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What an archive holds.

    Attributes:
        totals: Over all rows.
        percentiles: Of coded images: `psnr_db_0` to `psnr_db_100` and `bpp_0` to `bpp_100`; None where there are none.
        worst: The lowest PSNR first.
        reasons: The commonest first.
        forms: The most bytes first.
    """

    totals: Totals
    percentiles: dict[str, float | None]
    worst: list[Worst]
    reasons: list[ReasonCount]
    forms: list[FormCount]


_LOSSY = f"({', '.join(repr(codec) for codec in WITH_LOSS)})"
"""In SQL."""


def summary(archive: Archive) -> Summary:
    """Totals, percentiles and the worst images, for `msinn audit` and the end of a run.

    Raises:
        ManifestError: The archive's books are damaged.
    """
    return summary_of(archive.manifest())


def summary_of(table: pa.Table) -> Summary:
    """As `summary`, of some rows of a manifest."""
    totals = query(
        table,
        f"""SELECT count(*) AS images, count(*) FILTER (status = 'coded') AS coded, count(*) FILTER (status = 'kept') AS kept,
        count(*) FILTER (status = 'failed') AS failed, {_sum("source_bytes")},
        {_sum("stored_bytes")},
        {_sum("pixels")},
        8.0 * sum(stored_bytes) / nullif(sum(pixels), 0) AS bpp,
        avg(psnr_db) AS mean_psnr_db,
        10 * log10(65025 / nullif(sum(mse * pixels) / nullif(sum(pixels) FILTER (mse IS NOT NULL), 0), 0)) AS pooled_psnr_db,
        coalesce(bool_and(decode_verified) FILTER (codec IN {_LOSSY}), true) AS all_verified FROM manifest""",
    ).to_pylist()[0]
    marks = [0.0, 0.01, 0.05, 0.5, 0.95, 0.99, 1.0]
    wanted = [
        f"quantile_cont({column}, {mark}) FILTER (codec IN {_LOSSY}) AS {column}_{round(mark * 100)}"
        for column in ("psnr_db", "bpp")
        for mark in marks
    ]
    percentiles = query(table, f"SELECT {', '.join(wanted)} FROM manifest").to_pylist()[0]
    worst = query(
        table, f"SELECT key, name, psnr_db, bpp, q, clamp FROM manifest WHERE codec IN {_LOSSY} ORDER BY psnr_db, key LIMIT {_WORST}"
    ).to_pylist()
    reasons = query(
        table,
        """SELECT error_code, status, count(*) AS images, min(name) AS example FROM manifest
        WHERE status <> 'coded' OR error_code = 'codec_failed' GROUP BY ALL ORDER BY images DESC""",
    ).to_pylist()
    forms = query(
        table,
        f"""SELECT form, exact, count(*) AS images, {_sum("source_bytes")},
        {_sum("stored_bytes")} FROM manifest WHERE codec IS NOT NULL GROUP BY ALL ORDER BY stored_bytes DESC, form""",
    ).to_pylist()
    return Summary(
        Totals(**totals),
        percentiles,
        [Worst(**row) for row in worst],
        [ReasonCount(**row) for row in reasons],
        [FormCount(**row) for row in forms],
    )


def _sum(column: str) -> str:
    """SQL for a sum of bytes or pixels. Whoever wrote a manifest may have written numbers whose sum no column holds: the largest stands for it."""
    return f"least(greatest(coalesce(sum({column}), 0), {-_LARGEST_SUM}), {_LARGEST_SUM})::BIGINT AS {column}"
