"""What the page says, gathered from books that may be damaged: rows that are readable, sentences for those that are not, and the stored analysis."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.archive import manifest
from pipeline.archive.archive import Archive
from pipeline.archive.commits import Commit
from pipeline.archive.layer import Layer
from pipeline.archive.layout import GENERATIONS
from pipeline.archive.row import Row
from pipeline.errors import ManifestError, NotFoundError, OutageError, PipelineError, StorageError
from pipeline.formats.parquet import read_bounded
from pipeline.formats.records import columns
from pipeline.limits import MAX_PARQUET_BYTES
from pipeline.plan.config import CompressConfig
from pipeline.plan.findings import Findings
from pipeline.plan.outlook import Outlook, outlook
from pipeline.plan.preferences import Preferences
from pipeline.read.audit import query
from pipeline.read.salvage import Salvage
from pipeline.run.analysis import folder_of
from pipeline.run.context import SAMPLED_ABOVE

COLUMNS = columns(
    Row, "key", "name", "shard_key", "status", "codec", "form", "exact", "source_format", "source_bytes", "stored_bytes", "pixels", "width",
    "height", "psnr_db", "mse", "bpp", "q", "clamp", "decode_verified", "error_code", "error", "source_sha256", "recon_sha256",
)  # fmt: skip
"""What the page needs to know of every image."""

_READERS = 8
_CURVE_IMAGES, _CURVE_SHARDS = 20_000, 256
"""So many images, of so many shards at most, say what budgets would buy to a hundredth of a decibel; of more a sample is taken."""

_CURVE_POINTS = 24
_MOST_ANCHORS = 64
"""Of a stored curve: a model has six."""

_ANALYSIS = re.compile(r"(?:generations/)?analyse/[0-9a-f]{12}/\d{5,9}\.parquet")

_EXAMPLES, _REASONS, _KINDS = 5, 40, 20


@dataclass(frozen=True)
class Readable:
    """What an archive's books still say.

    Attributes:
        table: Rows of `COLUMNS`.
        commits: Of the shards that these are of, by the object name of the shard.
        unfinished: A sentence if the run that makes it has not ended, else None.
        problems: A sentence for everything that is damaged or missing.
    """

    table: pa.Table
    commits: dict[str, Commit]
    unfinished: str | None
    problems: list[str]


def readable(archive: Archive) -> Readable:
    """Read what can be read. Sees whether shards are there, not whether their bytes are whole: that is for `verify`.

    Raises:
        OutageError: The store cannot be read at the moment.
    """
    books = archive.books()
    problems = [*books.problems, *books.lost.values()]
    tables, commits = [], {}
    salvages = {layer.generation: Salvage(archive, layer) for layer in archive.layers}

    def read(record: Commit) -> pa.Table | str:
        try:
            return archive.manifest_part(record, COLUMNS)
        except OutageError:
            raise
        except (ManifestError, StorageError) as error:
            return str(error)

    with ThreadPoolExecutor(_READERS) as pool:
        for record, part in zip(books.commits, pool.map(read, books.commits), strict=True):
            if isinstance(part, str):
                problems.append(part)
                continue
            tables.append(part.replace_schema_metadata(None))
            commits[record.shard] = record
            if not salvages[record.generation].present(record.shard):
                problems.append(f"{archive.store.path(record.shard)} is missing, with {record.images:,} images")
    schema = pa.schema([manifest.READ_SCHEMA.field(name) for name in COLUMNS])
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    return Readable(table, commits, next(iter(books.unfinished), None), problems)


def config_of(archive: Archive) -> CompressConfig | None:
    """What the run was asked for; None if another version of msinn, or somebody else, wrote it in other words."""
    try:
        return CompressConfig.from_json(archive.run.config)
    except (PipelineError, TypeError, ValueError, AttributeError):
        return None


@dataclass(frozen=True)
class Kind:
    """Images of one form or format; bytes of their files and in shards."""

    name: str
    images: int
    source_bytes: int
    stored_bytes: int


def kinds(table: pa.Table, column: str) -> list[Kind]:
    """Bytes by `form` or `source_format`, the most bytes first; the last stands for all that are left."""
    rows = query(
        table,
        f"""SELECT coalesce({column}, 'none known') AS name, count(*) AS images, coalesce(sum(source_bytes), 0)::HUGEINT::DOUBLE AS source_bytes,
        coalesce(sum(stored_bytes), 0)::HUGEINT::DOUBLE AS stored_bytes FROM manifest GROUP BY ALL ORDER BY stored_bytes DESC, name""",
    ).to_pylist()
    found = [Kind(row["name"], row["images"], int(row["source_bytes"]), int(row["stored_bytes"])) for row in rows]
    if len(found) <= _KINDS:
        return found
    rest = found[_KINDS:]
    sums = (sum(of.images for of in rest), sum(of.source_bytes for of in rest), sum(of.stored_bytes for of in rest))
    return [*found[:_KINDS], Kind(f"{len(rest)} others", *sums)]


@dataclass(frozen=True)
class Cause:
    """Images that are not coded for one reason; a few of their names, each with the reason in words."""

    status: str
    reason: str
    images: int
    examples: list[tuple[str, str]]


def causes(table: pa.Table) -> tuple[list[Cause], int]:
    """Reasons, what failed first and then the commonest, and how many further ones there are."""
    rows = query(
        table,
        f"""SELECT status, coalesce(error_code, 'no reason given') AS reason, count(*) AS images,
        arg_min({{'name': name, 'error': error}}, key, {_EXAMPLES}) AS examples
        FROM manifest WHERE status <> 'coded' OR error_code = 'codec_failed' GROUP BY ALL ORDER BY images DESC, status, reason""",
    ).to_pylist()
    found = [
        Cause(row["status"], row["reason"], row["images"], [(each["name"], each["error"] or "") for each in row["examples"]])
        for row in sorted(rows, key=lambda row: row["status"] != "failed")[:_REASONS]
    ]
    return found, max(0, len(rows) - _REASONS)


@dataclass(frozen=True)
class Curve:
    """What budgets would have bought, as the stored analysis predicts.

    Attributes:
        points: Rising in bytes.
        images: How many they are from; `of_shards`: of how many of all `shards`, where not of all, else None.
        without_wishes: Whether single images had floors, caps or weights, which are not in it.
        generations: Those whose images are in it, where others have some too, else None.
    """

    points: list[Outlook]
    images: int
    of_shards: int | None
    shards: int
    without_wishes: bool = False
    generations: list[int] | None = None


def curve(archive: Archive) -> Curve | str:
    """The curve of the dataset, or a sentence that says why there is none. Of an archive that has grown: of the images that it still has, as far as
    the analyses of their generations are stored.

    Raises:
        OutageError: The store cannot be read at the moment.
    """
    names: dict[str, Layer] = {}
    missing: dict[int, str] = {}
    configs: list[CompressConfig] = []
    shards = 0
    for layer in archive.layers:
        if not layer.run.shards:
            continue
        shards += layer.run.shards
        found = _stored(archive, layer)
        if isinstance(found, str):
            missing[layer.generation] = found
        else:
            configs.append(found[0])
            names |= dict.fromkeys(found[1], layer)
    if not configs:
        return next(iter(missing.values()), "the archive holds no images")
    config = configs[0]
    order = np.random.default_rng(0).permutation(len(names))[:_CURVE_SHARDS].tolist()
    tables: list[pa.Table] = []
    try:
        listed = list(names)
        for number in order:
            tables.append(_curves_of(archive, names[listed[number]], listed[number]))
            if sum(map(len, tables)) >= _CURVE_IMAGES:
                break
        images = sum(map(len, tables))
        with np.errstate(all="ignore"):
            points = _points(tables, config)
    except OutageError:
        raise
    except (ManifestError, NotFoundError, StorageError, pa.ArrowException, ValueError, KeyError, TypeError, IndexError, ArithmeticError) as error:
        return f"the stored analysis is damaged: {error}"
    if not points:
        return "no image of the stored analysis can be coded"
    without_wishes = any(each.preferences_sha256 is not None for each in configs)
    generations = sorted({layer.generation for layer in names.values()}) if missing else None
    return Curve(points, images, len(tables) if len(tables) < shards and generations is None else None, shards, without_wishes, generations)


def _stored(archive: Archive, layer: Layer) -> tuple[CompressConfig, list[str]] | str:
    """Options of a generation and names of its analysis; or a sentence that says why there is none."""
    run = layer.run
    try:
        config = CompressConfig.from_json(run.config)
    except (PipelineError, TypeError, ValueError, AttributeError):
        return "the run was begun with options of another version of msinn, so that its analysis cannot be told"
    if not config.budget.has_threshold and config.budget.kind != "psnr":
        return f"a run with {config.budget} predicts nothing, so that no analysis is stored"
    if not run.needs_model:
        return "every image was to lie exactly, so that there is nothing to choose"
    # Growths keep theirs beside their folders, for whatever budget they are finished with.
    prefix = f"{GENERATIONS}/" if layer.generation > 1 else ""
    folder = _folder(archive, layer, config, prefix)
    if folder is None:
        return "analyses of several plans are stored, and which of them the run followed depends on the table of --per-image"
    names = sorted(name for name in archive.store.list(prefix + folder) if _ANALYSIS.fullmatch(name))
    return (config, names) if names else "the archive holds no analysis of its run"


def _folder(archive: Archive, layer: Layer, config: CompressConfig, prefix: str) -> str | None:
    """Where the analysis of a run lies; None where that cannot be told."""
    run = layer.run
    if config.preferences_sha256 is not None:
        # It depends on which images were to lose nothing, and the table knows these by their names: but seldom is there more than one.
        folders = {name.rpartition("/")[0].removeprefix(prefix) for name in archive.store.list(f"{prefix}analyse")}
        return None if len(folders) > 1 else next(iter(folders), "analyse")
    sampled = run.images > SAMPLED_ABOVE and config.budget.has_threshold
    return folder_of(config, run.scan_digest, run.models, sampled=sampled)


def _curves_of(archive: Archive, layer: Layer, name: str) -> pa.Table:
    """Of images that the archive still has."""
    table = read_bounded(archive.store.read(name, limit=MAX_PARQUET_BYTES)).sort_by("index")
    gone = archive.removed_keys((layer.generation, int(name.rpartition("/")[2].removesuffix(".parquet"))))
    if gone:
        numbers = pa.array([int(key) - layer.run.first_key for key in gone], pa.int64())
        table = table.filter(pc.invert(pc.is_in(table.column("index").cast(pa.int64()), value_set=numbers)))
    if any((pc.max(pc.list_value_length(table.column(field))).as_py() or 0) > _MOST_ANCHORS for field in ("bytes", "mse")):
        raise ManifestError(f"{archive.store.path(name)} holds impossible curves")
    return table


def _points(tables: list[pa.Table], config: CompressConfig) -> list[Outlook]:
    """Of images that are numbered anew: which ones they are says nothing here."""
    tables = [table for table in tables if len(table)]
    if not tables:
        return []
    sizes = [len(table) for table in tables]
    findings = Findings(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), config.objective, Preferences(config))
    first = 0
    for shard, table in enumerate(tables):
        numbers = pa.array(np.arange(first, first + len(table)), pa.int64())
        findings.add(shard, table.set_column(table.schema.get_field_index("index"), "index", numbers))
        first += len(table)
    return outlook(findings, _CURVE_POINTS)
