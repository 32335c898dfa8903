"""Everything back: whole archives, selections by SQL, or one image by byte range."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from msinn_core import bitstream
from msinn_core.checkpoint import LoadedModel, load_model, parse_model, shipped_models
from msinn_core.codec import Codec
from msinn_core.errors import PixelLimitError
from msinn_core.picture import Picture
from pipeline.archive import manifest
from pipeline.archive.archive import Archive, Books
from pipeline.archive.commits import Commit
from pipeline.archive.layout import STILL, is_shard_name, sha256
from pipeline.errors import ManifestError, StorageError, UsageError
from pipeline.execute import actors
from pipeline.execute.executor import Executor, InProcess, Job, Trials, WorkersError, isolate, patience, processors
from pipeline.formats import images
from pipeline.limits import DEFAULT, Limits
from pipeline.read.audit import select
from pipeline.read.salvage import Salvage
from pipeline.read.target import Target
from pipeline.run.report import Reporter
from pipeline.sources.record import printable
from pipeline.sources.scan import LITTER
from pipeline.store.storage import Store

_UNEXPLAINED_DEATHS = 5
INLINE_IMAGES = 16
"""Selections up to this size are restored in this process: starting Ray would take longer."""


@dataclass
class Result:
    """What became of a restore or a verification.

    Attributes:
        images: Images written (or checked).
        sidecars: Sidecars written.
        failed_at_source: Rows of which nothing was ever stored.
        skipped: Images among them that were there already, whole and equal.
        problems: One sentence for each image or object that is damaged or differs.
    """

    images: int = 0
    skipped: int = 0
    sidecars: int = 0
    failed_at_source: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, other: Result) -> None:
        """Sum up."""
        self.images += other.images
        self.skipped += other.skipped
        self.sidecars += other.sidecars
        self.failed_at_source += other.failed_at_source
        self.problems += other.problems


class Decoder:
    """Decodes payloads of one archive, each with the model that its row names.

    Args:
        archive: Where the models are.
        limits: What is decoded at most.
        threads: Of an integer network, which gives the same pixels for every number of them.
    """

    def __init__(self, archive: Archive, limits: Limits = DEFAULT, threads: int = 1) -> None:
        self._archive = archive
        self._threads = threads
        self._limits = limits
        self._codecs: dict[tuple[str, str], Codec] = {}
        self._missing: dict[str, Exception] = {}

    def codec(self, model_sha256: str, device: str) -> Codec:
        """The codec of a model, loaded once. A float model runs on the kind of device that encoded. Raises `ManifestError` or `CheckpointError`."""
        wanted = device
        if (model_sha256, wanted) not in self._codecs:
            model = self._model(model_sha256)
            device = device if model.profile == "float" else "cpu"
            self._codecs[model_sha256, wanted] = Codec(model, device=device, max_pixels=self._limits.max_pixels, threads=self._threads)
        return self._codecs[model_sha256, wanted]

    def _model(self, digest: str) -> LoadedModel:
        if digest in self._missing:
            raise self._missing[digest]
        try:
            return parse_model(self._archive.model_bytes(digest))
        except (ManifestError, StorageError) as error:
            # The archive lost it; the same file, by its hash, may have come with this msinn.
            if digest in shipped_models().values():
                return load_model(digest)
            if not isinstance(error, StorageError) or not self._archive.passes(error):
                self._missing[digest] = error
            raise

    def picture(self, row: dict[str, Any], payload: bytes) -> tuple[Picture, str | None]:
        """The picture of a coded row's payload, and a sentence if it is not exactly what was verified when it was encoded.

        Raises:
            ManifestError: The payload is damaged.
            CodecError: It does not decode.
        """
        check_payload(row, payload)
        codec = self.codec(row["model_sha256"], "cuda" if (row["encoder"] or "").startswith("cuda") else "cpu")
        try:
            picture, _ = codec.decode(payload)
        except PixelLimitError as error:
            raise ManifestError(f"{row['name']}: {error}: --max-pixels {error.pixels} decodes it, if you trust this archive") from error
        problem = None
        if row["recon_sha256"] is not None and sha256(picture.content()) != row["recon_sha256"]:
            problem = f"{row['name']}: decodes to other pixels than on the machine that encoded it ({row['encoder']}); " + (
                "the float profile promises the same pixels only on like machines"
                if codec.model.profile == "float"
                else "its bytes are whole, so this machine computes wrongly: restore on another, and report it"
            )
        return picture, problem


def check_payload(row: dict[str, Any], payload: bytes) -> None:
    """Raises `ManifestError` if these are not the bytes that the manifest names."""
    if sha256(payload) != row["payload_sha256"]:
        raise ManifestError(f"{row['name']}: its bytes in {row['shard_key']} are damaged (SHA-256 differs at offset {row['offset']})")


class RestoreWorker:
    """Restores rows of one shard at a time. Lives in an actor or in this process.

    Args:
        url: The archive.
        target: Where files go; None only checks.
        overwrite: Replace files of other content that are there; otherwise they stay, and are a problem.
        limits: What is decoded at most.
        threads: See `Decoder`.
    """

    def __init__(self, url: str, target: str | None, overwrite: bool = False, limits: Limits = DEFAULT, threads: int = 1) -> None:
        import torch

        # As when encoding: a float model is the same for the same number of threads only.
        torch.set_num_threads(1)
        self.archive = Archive(url)
        self.limits = limits
        self.decoder = Decoder(self.archive, limits, threads)
        self.target = Target(target) if target is not None else None
        self.overwrite = overwrite

    def restore(self, rows: list[dict[str, Any]]) -> Result:
        """Write the images and sidecars of these rows of one shard; damaged ones are named, the others come back all the same."""
        result = Result()
        for row in rows:
            if row["codec"] is None:
                result.failed_at_source += 1
                result.add(self._sidecars(row))
                continue
            try:
                # The pixels of a salvaged row are known only once it is decoded.
                known = row["codec"] != "msinn" or row["recon_sha256"] is not None
                if known and self._is_there(row["restore_name"], lambda data, row=row: _equals(row, data)):  # type: ignore[misc]
                    result.images += 1
                    result.skipped += 1
                    result.add(self._sidecars(row))
                    continue
                payload = self._read(row, row["offset"], row["length"])
                if row["codec"] == "msinn":
                    picture, problem = self.decoder.picture(row, payload)
                    data = images.to_png(picture)
                    result.problems += [problem] if problem else []
                else:
                    check_payload(row, payload)
                    data = payload
                if not known and self._is_there(row["restore_name"], lambda there, data=data: bool(there == data)):  # type: ignore[misc]
                    result.skipped += 1
                else:
                    self._write(row["restore_name"], data, row["mtime"])
                result.images += 1
            except Exception as error:  # whatever one image does, the others come back
                self._raise_outage(error)
                text = str(error) or type(error).__name__
                result.problems.append(text if row["name"] in text else f"{row['name']}: {text}")
            result.add(self._sidecars(row))
        return result

    def _raise_outage(self, error: Exception) -> None:
        # What may pass is for the pool to try again, not a verdict on an image.
        if isinstance(error, StorageError) and error.transient and not (self.archive.store.local and (self.target is None or self.target.local)):
            raise error

    def _sidecars(self, row: dict[str, Any]) -> Result:
        result = Result()
        for side in row["sidecars"] or []:
            try:
                if self._is_there(side["restore_name"], lambda data, side=side: sha256(data) == side["sha256"]):  # type: ignore[misc]
                    result.sidecars += 1
                    continue
                data = self._read(row, side["offset"], side["length"])
                if sha256(data) != side["sha256"]:
                    raise ManifestError(f"{side['name']}: its bytes in {row['shard_key']} are damaged")
                self._write(side["restore_name"], data, side.get("mtime"))
                result.sidecars += 1
            except Exception as error:  # likewise
                self._raise_outage(error)
                text = str(error) or type(error).__name__
                result.problems.append(text if side["name"] in text else f"{side['name']}: {text}")
        return result

    def _read(self, row: dict[str, Any], offset: int, length: int) -> bytes:
        return read_part(self.archive, row, offset, length, self.limits)

    def _is_there(self, name: str, equal: Callable[[bytes], bool]) -> bool:
        """Whether an earlier restore wrote this file, whole.

        Raises:
            ManifestError: Something else is there, and was not to be overwritten.
        """
        if self.target is None or self.overwrite:
            return False
        there = self.target.read(name)
        if there is None:
            return False
        if equal(there):
            return True
        raise ManifestError(f"{self.target.store.path(name)} is there with other content and stays as it is: --overwrite replaces it")

    def _write(self, name: str, data: bytes, mtime: datetime | None = None) -> None:
        if self.target is not None:
            self.target.write(name, data, mtime)


def read_part(archive: Archive, row: dict[str, Any], offset: int, length: int, limits: Limits = DEFAULT) -> bytes:
    """Bytes of a row's payload or sidecar.

    Raises:
        ManifestError: The shard is gone, or the row points elsewhere or says more than the reader takes.
        StorageError: They cannot be read.
    """
    check_place(row["name"], row["shard_key"], offset, length, limits)
    try:
        return archive.store.read_range(row["shard_key"], offset, length)
    except FileNotFoundError as error:
        raise ManifestError(f"{row['name']}: {archive.store.path(row['shard_key'])} is missing") from error


def check_place(name: str, shard: Any, offset: Any, length: Any, limits: Limits) -> None:
    """Raises `ManifestError` for what is no range of a shard of the archive, or one that is larger than the reader takes."""
    if not is_shard_name(shard):
        raise ManifestError(f"{name}: its row points to {shard!r}, which is no shard of the archive: the manifest is not to be trusted")
    if type(offset) is not int or type(length) is not int or not 0 <= offset < 2**62 or length < 0:
        raise ManifestError(f"{name}: its row says no range of bytes: the manifest is damaged")
    if length > limits.max_file_bytes:
        raise ManifestError(f"{name} has {length:,} bytes, over the limit of {limits.max_file_bytes:,}: say --max-file-bytes {length}")


def _equals(row: dict[str, Any], data: bytes) -> bool:
    """Whether a restored file holds what a row says: the kept file's bytes, or a PNG of the very pixels that were measured."""
    if row["codec"] != "msinn":
        return bool(sha256(data) == row["payload_sha256"])
    if row["recon_sha256"] is None:
        return False
    try:
        with images.opened(data, formats=("PNG",)) as image:
            if image.width * image.height != row["width"] * row["height"]:
                return False
            array = np.asarray(image)
    except Exception:  # whatever is there, it is not that picture
        return False
    planes = array if image.mode in ("L", "RGB") else array[..., :-1]
    alpha = b"" if image.mode in ("L", "RGB") else np.ascontiguousarray(array[..., -1]).tobytes()
    planes = planes[..., 0] if image.mode == "LA" else planes
    return image.mode in ("L", "LA", "RGB", "RGBA") and bool(sha256(np.ascontiguousarray(planes).tobytes() + alpha) == row["recon_sha256"])


COLUMNS = [
    "key", "name", "restore_name", "shard_key", "offset", "length", "payload_sha256", "codec", "model_sha256", "recon_sha256", "sidecars",
    "encoder", "width", "height", "mtime", "lossless", "status", "pixels",
]  # fmt: skip


def restore(
    url: str,
    target: str,
    *,
    where: str | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    reporter: Reporter | None = None,
    limits: Limits = DEFAULT,
    cluster: str | None = None,
    executor: str = "auto",
) -> Result:
    """Write every image (decoded ones as PNG, the others as they were) and every sidecar under `target`.

    Args:
        url: The archive.
        target: Folder or URL. Files that an earlier, interrupted restore left there, whole, are not written again; other files are never touched.
        where: SQL condition over the manifest, e.g. `psnr_db < 32`.
        overwrite: Replace what is there.
        workers: Parallel decoders.
        reporter: Told about progress.
        limits: What is decoded at most.
        cluster: Ray address, or None for a local instance.
        executor: `ray`, `local` for this process alone, or `auto`, which takes this process for few images.

    Raises:
        UsageError: `target` holds files that are not of this restore, or the condition is not SQL.
        ManifestError: There is no archive.
    """
    archive = Archive(url)
    out = Store(target)
    if out.local and archive.store.local and f"{os.path.realpath(out.root)}{os.sep}".startswith(f"{os.path.realpath(archive.store.root)}{os.sep}"):
        raise UsageError(f"{target} lies inside the archive: choose a folder outside it")
    rows, problems = rows_left(archive, where)
    rows, twice = _with_single_names(rows)
    problems += twice
    names_map = _names_map(rows)
    # Where nothing is there yet, nothing need be compared.
    compare = not overwrite and _holds_some(out, rows, {names_map})
    if out.local:
        try:
            os.makedirs(out.root, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot create {target}: {error.strerror}") from error
    result = run_over_shards(url, target, rows, workers, overwrite=not compare, reporter=reporter, limits=limits, cluster=cluster, executor=executor)
    if len(rows):
        Target(target).write(names_map, names_table(rows))
    result.problems = problems + result.problems
    return result


NAMES = "msinn-names.csv"
"""What a restore writes beside the images: which file holds which original."""


def _with_single_names(rows: pa.Table) -> tuple[pa.Table, list[str]]:
    """Rows of which no two write one file: whoever made such an archive, neither image shall replace the other. And a sentence for each new name."""
    taken: set[str] = set()
    problems: list[str] = []

    def single(name: str, key: str) -> str:
        found = name
        for count in itertools.count(1):
            if found.casefold() not in taken:
                break
            stem, suffix = os.path.splitext(name)
            found = f"{stem}~{key}.{count}{suffix}"
        taken.add(found.casefold())
        if found != name:
            problems.append(f"two files of the archive are to be restored as {name}: the second is restored as {found}")
        return found

    names, sidecars = [], []
    for row in rows.select(["key", "restore_name", "sidecars"]).to_pylist():
        names.append(single(row["restore_name"], row["key"]))
        sidecars.append([{**side, "restore_name": single(side["restore_name"], row["key"])} for side in row["sidecars"] or []])
    if not problems:
        return rows, []
    for name, values in (("restore_name", names), ("sidecars", sidecars)):
        field = rows.schema.field(name)
        rows = rows.set_column(rows.column_names.index(name), field, pa.array(values, field.type))
    return rows, problems


def _names_map(rows: pa.Table) -> str:
    taken = set(rows.column("restore_name").to_pylist())
    return next(name for name in (NAMES, *(f"msinn-names~{i}.csv" for i in range(len(taken) + 1))) if name not in taken)


def names_table(rows: pa.Table) -> bytes:
    """CSV of all rows: `name` (original), `restored_as`, `lossless` (the file itself), `status`, `sidecar_of` (empty for images)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "restored_as", "lossless", "status", "sidecar_of"))
    for row in rows.select(["name", "restore_name", "codec", "status", "sidecars", "lossless"]).to_pylist():
        writer.writerow((row["name"], row["restore_name"] if row["codec"] else "", str(bool(row["lossless"])).lower(), row["status"], ""))
        for side in row["sidecars"] or []:
            writer.writerow((side["name"], side["restore_name"], "true", "kept", row["name"]))
    return text.getvalue().encode("utf-8", "replace")


def _holds_some(out: Store, rows: pa.Table, own: set[str]) -> bool:
    """Whether files are there that an earlier restore wrote. Raises `UsageError` for others: the folder is somebody else's."""
    found = out.list("") if out.local is False or os.path.isdir(out.root) else []
    if not found:
        return False
    for row in rows.select(["restore_name", "sidecars"]).to_pylist():
        own |= {row["restore_name"], *(side["restore_name"] for side in row["sidecars"] or [])}
    others = [name for name in found if name.lstrip("/") not in own and name.rpartition("/")[2] not in LITTER]
    if others:
        raise UsageError(
            f"{out.url} is not empty and holds other files, {printable(others[0])} for example: choose another folder, or say --overwrite"
        )
    return True


def rows_left(archive: Archive, where: str | None = None) -> tuple[pa.Table, list[str]]:
    """All rows, or those that fulfil an SQL condition; where the books are damaged, what can be put together otherwise.

    Returns:
        A table of `COLUMNS`, in archive order, and a sentence for everything that is lost, damaged or not finished.

    Raises:
        UsageError: Bad SQL.
    """
    books = archive.books()
    problems = unfinished(archive, books) + books.problems
    wanted = COLUMNS if where is None else None
    lost: dict[int, tuple[Commit | None, str]] = {shard: (None, sentence) for shard, sentence in books.lost.items()}
    tables: dict[int, pa.Table] = {}

    def read(record: Commit) -> tuple[pa.Table, list[str]] | str:
        try:
            return usable(archive.manifest_part(record, wanted), archive.store.path(record.manifest))
        except (ManifestError, StorageError) as error:
            if isinstance(error, StorageError) and archive.passes(error):
                raise
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        for record, part in zip(books.commits, pool.map(read, books.commits), strict=True):
            if isinstance(part, str):
                lost[record.shard_id] = (record, part)
            else:
                tables[record.shard_id] = part[0]
                problems += part[1]
    if where is not None:
        problems += [f"{sentence}: a condition cannot find its images, but a restore of everything can" for _, sentence in lost.values()]
    else:
        found = _salvaged(archive, books, lost)
        problems += [sentence for sentence, _ in found.values()]
        tables |= {shard: table for shard, (_, table) in found.items()}
    schema = _schema(COLUMNS if where is None else manifest.READ_SCHEMA.names)
    table = pa.concat_tables([tables[shard].replace_schema_metadata(None) for shard in sorted(tables)]) if tables else schema.empty_table()
    return (select(table, where).select(COLUMNS) if where is not None else table), problems


_TEXTS = ("key", "name", "restore_name", "shard_key")
_OF_SIDECAR = ("name", "restore_name", "offset", "length", "sha256")


def usable(table: pa.Table, place: str) -> tuple[pa.Table, list[str]]:
    """Rows that say what every row must, and a sentence for each of the others."""
    texts = [table.column(name) for name in _TEXTS]
    sides = table.column("sidecars").combine_chunks().flatten()
    inner = [sides.field(name) for name in _OF_SIDECAR]
    if not any(column.null_count for column in texts) and not sides.null_count and not any(column.null_count for column in inner):
        return table, []
    good, problems = [], []
    for i, row in enumerate(table.select([*_TEXTS, "sidecars"]).to_pylist()):
        lacking = [name for name in _TEXTS if row[name] is None]
        if any(side is None or any(side[name] is None for name in _OF_SIDECAR) for side in row["sidecars"] or []):
            lacking.append("what a sidecar needs")
        if lacking:
            problems.append(f"{place}: row {i} ({row['name'] or row['key'] or 'without a name'}) lacks {', '.join(lacking)}, and cannot be restored")
        else:
            good.append(i)
    return table.take(pa.array(good, pa.int64())), problems


def _salvaged(archive: Archive, books: Books, lost: dict[int, tuple[Commit | None, str]]) -> dict[int, tuple[str, pa.Table]]:
    """For every shard whose books or object are lost a sentence, and the rows that can be had all the same."""
    salvage = Salvage(archive)
    wanted = dict(lost)
    for record in books.commits:
        if not salvage.present(record.shard):
            # Another attempt at the shard may have left its own.
            wanted.setdefault(record.shard_id, (None, f"{archive.store.path(record.shard)} is missing"))
    committed = {record.shard_id for record in books.commits}
    for shard in salvage.numbers():
        if shard < archive.run["shards"] and shard not in committed:
            wanted.setdefault(shard, (None, f"shard {shard} is not committed"))
    result = {}
    for shard, (commit, sentence) in wanted.items():
        rows, how = salvage.rows(shard, commit)
        if rows or shard in lost:
            table = pa.Table.from_pylist([{name: row.get(name) for name in COLUMNS} for row in rows], schema=_schema(COLUMNS))
            result[shard] = (f"{sentence}: {how}", table)
    return result


def _schema(columns: list[str]) -> pa.Schema:
    return pa.schema([manifest.READ_SCHEMA.field(name) for name in columns])


def unfinished(archive: Archive, books: Books) -> list[str]:
    """A sentence if the archive does not hold all of its source yet."""
    shards = archive.run["shards"]
    known = {record.shard_id for record in books.commits if record.shard_id < shards} | {shard for shard in books.lost if shard < shards}
    if len(known) < shards:
        first = next(shard for shard in itertools.count() if shard not in known)
        return [f"{shards - len(known)} of {shards} shards are not committed, shard {first} among them: run the same compress to finish"]
    return [] if archive.sealed else ["the archive is not sealed: run the same compress to finish"]


def run_over_shards(
    url: str,
    target: str | None,
    rows: pa.Table,
    workers: int | None,
    *,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    limits: Limits = DEFAULT,
    cluster: str | None = None,
    executor: str = "auto",
) -> Result:
    """Restore or check rows, shard by shard, in this process or on Ray."""
    # Workers run in other folders; a relative path would name another place there.
    url, target = Store(url).url, Store(target).url if target is not None else None
    result = Result()
    if reporter is not None:
        reporter.phase("restore" if target is not None else "decode", len(rows))

    def done(part: Result) -> None:
        result.add(part)
        if reporter is not None:
            reporter.advance(images=part.images)

    edges = _shard_edges(rows)
    parts = (rows.slice(start, end - start).to_pylist() for start, end in itertools.pairwise(edges))
    pool: Executor
    if executor == "local" or (executor == "auto" and cluster is None and workers is None and len(rows) <= INLINE_IMAGES):
        pool = InProcess(RestoreWorker, url, target, overwrite, limits, processors())
    else:
        pool = actors.Pool(min(actors.connect(cluster, workers), max(1, len(edges) - 1)), RestoreWorker, url, target, overwrite, limits)
    try:

        def following() -> Job | None:
            part = next(parts, None)
            return None if part is None else job_of(part)

        def job_of(part: list[dict[str, Any]]) -> Job:
            def split(job: Job) -> Trials:
                culprit = yield from isolate(part, lambda some: replace(job, args=(some,), patience_s=patience(len(some))))
                if culprit is not None:
                    result.problems.append(
                        f"{culprit['name']} kills the worker that decodes it: `msinn get --original` gives its bytes; more memory may be all it takes"
                    )
                elif (deaths := unexplained.get(key, 0) + 1) > _UNEXPLAINED_DEATHS:
                    raise WorkersError("workers keep dying and no single image explains it: try fewer of them (--workers)")
                else:
                    unexplained[key] = deaths
                return job_of([row for row in part if row is not culprit])

            key = part[0]["shard_key"] if part else ""
            return Job(f"shard {key}", "restore", (part,), split, patience_s=patience(len(part)))

        unexplained: dict[str, int] = {}
        pool.run(following, lambda job, part: done(part), reporter.tick if reporter is not None else None)
    finally:
        pool.close()
    return result


def _shard_edges(rows: pa.Table) -> list[int]:
    """Where the rows of each shard begin, and the end: rows lie in archive order."""
    if not len(rows):
        return [0]
    shards = rows.column("shard_key").combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(rows)]


def metadata_of(url: str, wanted: str, *, limits: Limits = DEFAULT) -> dict[str, bytes]:
    """What a coded image carries beside its pixels, by file name: `exif.bin`, `profile.icc`, `packet.xmp`, `jpeg-segments.bin`, `png-chunks.bin`.

    Raises:
        UsageError: No such image, or the file itself is kept.
        ManifestError: Damaged.
    """
    archive = Archive(url)
    row, payload = _payload(archive, wanted, limits)
    if row["codec"] != "msinn":
        raise UsageError(f"{row['name']} is kept as the file it was: `msinn get` gives it whole, with all its metadata")
    return {_METADATA_FILES[kind]: data for kind, data in bitstream.parse(payload).boxes.items() if kind in _METADATA_FILES}


def _payload(archive: Archive, wanted: str, limits: Limits) -> tuple[dict[str, Any], bytes]:
    """The row of an image, and its payload, checked."""
    try:
        row = _find(archive, wanted)
    except ManifestError as error:
        raise error if STILL in str(error) else ManifestError(f"{error}; {STILL}") from error
    if row["codec"] is None:
        raise UsageError(f"{row['name']} could not be read when the archive was made: nothing is stored of it")
    payload = read_part(archive, row, row["offset"], row["length"], limits)
    check_payload(row, payload)
    return row, payload


_METADATA_FILES = {
    bitstream.EXIF: "exif.bin",
    bitstream.ICC: "profile.icc",
    bitstream.XMP: "packet.xmp",
    bitstream.JPEG_SEGMENTS: "jpeg-segments.bin",
    bitstream.PNG_CHUNKS: "png-chunks.bin",
}


def get(url: str, wanted: str, *, original: bool = False, limits: Limits = DEFAULT) -> tuple[str, bytes, list[str]]:
    """One image by key or original name, reading its byte range only.

    Args:
        url: The archive.
        wanted: Key (`000000042`), or original or restored name.
        original: The payload as stored (`.msn` or the untouched file) instead of a PNG.
        limits: What is decoded at most.

    Returns:
        A file name, the bytes, and problems (see `Decoder.picture`).

    Raises:
        UsageError: No such image, or nothing was ever stored of it.
        ManifestError: Damaged.
    """
    archive = Archive(url)
    row, payload = _payload(archive, wanted, limits)
    if original or row["codec"] != "msinn":
        return (row["member"] if original else row["restore_name"]), payload, []
    import torch

    torch.set_num_threads(1)
    picture, problem = Decoder(archive, limits).picture(row, payload)
    return row["restore_name"], images.to_png(picture), [problem] if problem else []


def _find(archive: Archive, wanted: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    columns = [*COLUMNS, "member"]
    if wanted.isdigit() and len(wanted) == 9:
        firsts = archive.run["shard_first"]
        shard = max((i for i, first in enumerate(firsts) if first <= int(wanted)), default=0)
        if (record := archive.record(shard)) is not None:
            rows = usable(archive.manifest_part(record, columns), record.manifest)[0].to_pylist()
            found = [row for row in rows if row["key"] == wanted]
    else:
        for record in archive.commits():
            rows = usable(archive.manifest_part(record, columns), record.manifest)[0].to_pylist()
            found += [row for row in rows if wanted in (row["name"], row["restore_name"], os.path.basename(row["name"]))]
        exact = [row for row in found if wanted in (row["name"], row["restore_name"])]
        found = exact or found
        if len(found) > 1:
            raise UsageError(
                f"{len(found)} images are called {wanted!r}, {found[0]['name']} and {found[1]['name']} among them: give the whole name or the key"
            )
    if not found:
        raise UsageError(f'{archive.store.url} holds no image {wanted!r}: msinn audit DST "SELECT key, name FROM manifest" lists them')
    return found[0]
