"""One shard end to end: fetch, decode, code, decode again, compare, measure, write, publish, commit. Knows no Ray.

Fetching and image decoding run ahead in threads; the entropy coder of one image runs beside the network of the next.
"""

from __future__ import annotations

import os
import platform
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from msinn_core import bitstream, metrics
from msinn_core.codec import Codec
from msinn_core.engines import BatchEngine
from msinn_core.errors import CodecError, DeviceMemoryError
from msinn_core.integer.ops import COMPILED
from msinn_core.model_file import LoadedModel
from pipeline.archive import manifest
from pipeline.archive.commits import Commit, commit
from pipeline.archive.layout import sha256
from pipeline.archive.members import member_name, suffix_of
from pipeline.archive.shard import END_BYTES, Member, ShardWriter, stored_bytes, verify_members
from pipeline.encode.item import Item, released
from pipeline.encode.tasks import ANALYSIS_SCHEMA, ImageTask, ShardTask, WorkConfig
from pipeline.errors import SourceError
from pipeline.formats import images
from pipeline.formats.decoding import Loader
from pipeline.formats.outcome import Coded, Kept, Missing, Outcome, Reason
from pipeline.limits import MAX_PARQUET_BYTES
from pipeline.plan.curves import PASSTHROUGH_Q, mse_of_psnr
from pipeline.plan.trim import Trimmer
from pipeline.sources import Fetcher, SourceRecord
from pipeline.sources.record import printable, utc
from pipeline.store.base import Store, content_name

PSNR_WINDOW_DB = 0.05
"""A quality target is met from above by at most this much."""

_IMAGE_ERRORS = (CodecError, RuntimeError, MemoryError)
"""What coding one image may raise (RuntimeError is torch's out-of-memory): it is kept as its file and named in the report, the others go on."""

_DB_PER_Q = 1.8
_SEARCH_TRIES = 8
_LOOKAHEAD = 3
_TRIM_PIXELS = 16_000_000
"""Images that are trimmed together stay in memory with their latents and symbols, about 30 bytes per pixel."""


class ShardWorker:
    """Holds one model and encodes or analyses shards with it.

    Args:
        model: The model; its SHA-256 goes into every bitstream.
        store: The archive.
        config: The run's.
        device: Of the network.
        threads: Of the integer network.
    """

    def __init__(self, model: LoadedModel, store: Store, config: WorkConfig, *, device: str = "cpu", threads: int = 1) -> None:
        if model.profile == "float" or config.ms_ssim or not COMPILED:
            from msinn_core.float_engine import compute_on_one_thread

            compute_on_one_thread()
        self.codec = Codec(model, device=device, max_pixels=config.max_pixels, threads=threads)
        # What a GPU encoded is decoded by the CPU before it counts: an error of the device, its compiler or our kernels shows.
        on_gpu = isinstance(self.codec.engine, BatchEngine)
        self.checker = Codec(model, max_pixels=config.max_pixels, threads=threads) if on_gpu else self.codec
        self.loader = Loader(config.max_pixels)
        self.store = store
        self.config = config
        self.fetcher = Fetcher()
        self.encoder = f"{self.codec.engine.device} ({self.codec.engine.name}), msinn {version('msinn')}, {platform.machine()}"
        self.worker = f"{socket.gethostname()}:{os.getpid()}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What users should know of this machine; see `execute.base.remarks_of`."""
        said = []
        if not COMPILED:
            said.append(
                "a worker has no compiled kernels (no C compiler when msinn was installed there): the same bytes, in a hundred times the time"
            )
        if self.config.device != "cpu" and self.codec.engine.device == "cpu":
            said.append(
                f"--device {self.config.device}: a worker computes on its CPU ({self.codec.engine.name}), to the same bytes; on its machine "
                "`python -c \"import torch; torch.zeros(1, device='cuda')\"` says what its GPU lacks"
            )
        return tuple(said)

    # ---- analysis ----

    def analyse(self, records: list[SourceRecord]) -> pa.Table:
        """Predicted curves of every image; see `ANALYSIS_SCHEMA`. Images that cannot be coded get a reason and no curve."""
        rows = []
        for item in self._load([ImageTask(record, 0.0) for record in records], with_sidecars=self.config.count_sidecars):
            record = item.task.record
            row: dict[str, Any] = {
                "index": record.index,
                "source_bytes": None if item.source is None else len(item.source),
                "width": item.loaded.info.width,
                "height": item.loaded.info.height,
                "reason": item.reason,
                "sidecar_bytes": self._sidecar_bytes(item),
                "bytes": None,
                "mse": None,
            }
            if item.loaded.picture is not None and item.coded:
                try:
                    curves = self.codec.analyse(item.loaded.picture, sampled=self.config.sampled_analysis)
                    if not (np.isfinite(curves.bytes).all() and np.isfinite(curves.mse).all()):
                        raise CodecError("the predicted curves are not finite")
                    row |= {"bytes": curves.bytes, "mse": curves.mse}
                except _IMAGE_ERRORS:
                    row["reason"] = Reason.CODEC_FAILED
            rows.append(row)
        return pa.Table.from_pylist(rows, schema=ANALYSIS_SCHEMA)

    # ---- encoding ----

    def encode(self, task: ShardTask) -> Commit:
        """Encode, verify, publish and commit one shard.

        Returns:
            The commit in force (another attempt's, if that was first).

        Raises:
            StorageError: The store failed.
            ManifestError: The local disk does not give back what was written.
        """
        with tempfile.TemporaryDirectory(prefix="msinn-") as folder, ThreadPoolExecutor(1) as coder:
            path = Path(folder) / "shard.tar"
            writer = ShardWriter(path)
            try:
                if task.limit_bytes is None:
                    items: Iterator[Item] = self._encode_stream(task, coder)
                else:
                    items = iter(self._encode_within(task, coder))
                rows, members = self._write(task, items, writer)
            except BaseException:
                writer.abandon()
                raise
            shard_sha256, shard_bytes = writer.finish()
            verify_members(path, members)
            return self._publish(task, rows, path, shard_sha256, shard_bytes)

    def remake(self, task: ShardTask, record: Commit) -> str | None:
        """Encode a shard again whose object was lost: the same pictures at the same rates are the same bytes, under the same name.

        Returns:
            None, or a sentence why it cannot be done: a source changed or is gone.
        """
        asked = self.config
        # The rates are settled: a quality target would be searched anew, from another start.
        self.config = replace(asked, target_psnr_db=None)
        with tempfile.TemporaryDirectory(prefix="msinn-") as folder, ThreadPoolExecutor(1) as coder:
            path = Path(folder) / "shard.tar"
            writer = ShardWriter(path)
            try:
                rows, members = self._write(task, self._encode_stream(task, coder), writer)
            except BaseException:
                writer.abandon()
                raise
            finally:
                self.config = asked
            digest, _ = writer.finish()
            if digest != record.shard_sha256:
                names = self._unlike(rows, record)
                changed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "the model"
                older = " (an earlier msinn made it, which kept less of what files hold beside their pixels)" if record.words == 1 else ""
                return f"{self.store.path(record.shard)} is lost and cannot be made again: {changed} changed since, or is gone{older}"
            verify_members(path, members)
            self.store.publish(path, record.shard)
        return None

    def _unlike(self, rows: list[dict[str, Any]], record: Commit) -> list[str]:
        """Names of images that are not as the manifest has them."""
        made = {row["key"]: (row["payload_sha256"], row["sidecars"]) for row in rows}
        digests = ["key", "name", "payload_sha256", "sidecars"]
        there = manifest.read(self.store.read(record.manifest, limit=MAX_PARQUET_BYTES), columns=digests).to_pylist()
        return [row["name"] for row in there if made.get(row["key"], (None, [])) != (row["payload_sha256"], row["sidecars"])]

    def _load(self, tasks: list[ImageTask] | tuple[ImageTask, ...], *, with_sidecars: bool = True) -> Iterator[Item]:
        """Fetch and decode ahead, in order."""
        with ThreadPoolExecutor(_LOOKAHEAD) as pool:
            waiting: deque[Future[Item]] = deque()
            remaining = iter(tasks)
            for task in remaining:
                waiting.append(pool.submit(self._load_one, task, with_sidecars))
                if len(waiting) > _LOOKAHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _load_one(self, task: ImageTask, with_sidecars: bool) -> Item:
        started = time.perf_counter()
        record = task.record
        sidecars, lost = [], []
        for (name, part), keep in zip(record.sidecars, record.keep_sidecars, strict=True) if with_sidecars else ():
            try:
                sidecars.append((printable(name), keep, member_name(record.key, name), utc(part.mtime_us), self.fetcher.fetch(part)))
            except SourceError as error:
                lost.append(str(error))
        try:
            if task.skip_reason == Reason.UNREADABLE:
                raise SourceError(f"{record.source_uri} is left out, as it was before")
            source = self.fetcher.fetch(record.part)
        except SourceError as error:
            item = Item(task, None, images.LoadedImage(info=images.ImageInfo()), _ms(started), 0.0, sidecars=sidecars, lost=[*lost, str(error)])
            item.outcome = Missing(Reason.UNREADABLE, str(error))
            return item
        fetched = time.perf_counter()
        if task.skip_reason is not None:
            loaded = images.LoadedImage(info=images.ImageInfo(), reason=task.skip_reason, message="kept as it is")
        else:
            loaded = self.loader.load(source, name=record.name)
        item = Item(task, source, loaded, (fetched - started) * 1e3, _ms(fetched), sidecars=sidecars, clamp=task.clamp, lost=lost)
        item.outcome = Coded() if loaded.reason is None else Kept(loaded.reason, loaded.message)
        if item.coded and task.q == PASSTHROUGH_Q:
            item.outcome = Kept(Reason.NOT_SMALLER, "the plan keeps the original: coding it would not save bytes")
        return item

    def _encode_stream(self, task: ShardTask, coder: ThreadPoolExecutor) -> Iterator[Item]:
        """Images in order; the entropy coder of one overlaps with the network of the next."""
        previous: tuple[Item, Future[None]] | None = None
        for item in self._load(task.images):
            self._start(item, item.task.q)
            current = (item, coder.submit(self._pack, item))
            if previous is not None:
                yield self._finish(*previous)
            previous = current
        if previous is not None:
            yield self._finish(*previous)

    def _encode_within(self, task: ShardTask, coder: ThreadPoolExecutor) -> list[Item]:
        """The trim: the shard's last images, held in memory together, take up exactly what the others leave of the limit."""
        assert task.limit_bytes is not None
        first, last = _split_for_trim(task.images)
        items = [released(item) for item in self._encode_stream(replace(task, images=first), coder)]
        used = END_BYTES + sum(self._counted_bytes(item) for item in items)
        trimmed = list(self._load(last))
        used += sum(self._counted_bytes(item) for item in trimmed if not item.coded) + sum(
            self._sidecar_bytes(item) for item in trimmed if item.coded
        )
        coded = [item for item in trimmed if item.coded]

        def encode(i: int, q: float) -> int:
            self._start(coded[i], q)
            self._pack(coded[i])
            # An image that outgrows its file will be kept as that file.
            return min(stored_bytes(len(data)) for data in (coded[i].payload, coded[i].source) if data is not None)

        ranges = [(item.task.min_q, min(item.task.max_q, self.codec.q_max)) for item in coded]
        most = [float(stored_bytes(len(item.source))) if item.source is not None else np.inf for item in coded]
        trimmer = Trimmer(encode, [item.task.q for item in coded], ranges, most)
        pinned: set[int] = set()
        for _ in range(3):
            trimmer.run(task.limit_bytes - used, pinned)
            raised = set()
            for i, item in enumerate(coded):
                if i not in pinned and item.coded:
                    before = item.symbols
                    self._verify(item)
                    if item.symbols is not before or not item.coded:
                        raised.add(i)
                        trimmer.sizes[i] = min(stored_bytes(len(data)) for data in (item.payload, item.source) if data is not None)
            if not raised:
                break
            pinned |= raised
        for item in coded:
            self._keep_if_larger(item)
            item.latents = None
        return items + [released(item) for item in trimmed]

    def _counted_bytes(self, item: Item) -> int:
        return (stored_bytes(len(item.payload)) if item.payload is not None else 0) + self._sidecar_bytes(item)

    def rehearse(self, task: ShardTask) -> int:
        """Everything of `encode` but writing, to find out what an image does to its worker; returns the number of images."""
        with ThreadPoolExecutor(1) as coder:
            return sum(1 for _ in self._encode_stream(task, coder))

    def pace(self, task: ShardTask) -> tuple[int, float]:
        """Pixels and seconds of encoding some images in full (fetched, coded, decoded, compared) but not written: a plan's duration rests on them."""
        started = time.perf_counter()
        with ThreadPoolExecutor(1) as coder:
            pixels = sum((item.loaded.info.width or 0) * (item.loaded.info.height or 0) for item in self._encode_stream(task, coder))
        return pixels, time.perf_counter() - started

    def _sidecar_bytes(self, item: Item) -> int:
        return sum(stored_bytes(len(data)) for *_, data in item.sidecars) if self.config.count_sidecars else 0

    def _start(self, item: Item, q: float) -> None:
        """The network's part of coding at q."""
        if not item.coded or item.loaded.picture is None:
            return
        started = time.perf_counter()
        try:
            try:
                self._compress(item, self.checker if item.on_checker else self.codec, q)
            except DeviceMemoryError:  # one image is too large for the device, not for the machine
                item.latents, item.on_checker = None, True
                self._compress(item, self.checker, q)
        except _IMAGE_ERRORS as error:
            item.outcome = Kept(Reason.CODEC_FAILED, f"{type(error).__name__}: {error}"[:300])
            item.latents = None
        item.model_ms += _ms(started)

    @staticmethod
    def _compress(item: Item, codec: Codec, q: float) -> None:
        assert item.loaded.picture is not None
        if item.latents is None:
            item.latents = codec.transform(item.loaded.picture)
        item.symbols = codec.compress(item.latents, q)

    def _pack(self, item: Item) -> None:
        if item.coded and item.symbols is not None:
            started = time.perf_counter()
            try:
                item.data = self.codec.pack(item.symbols)
            except _IMAGE_ERRORS as error:
                item.outcome = Kept(Reason.CODEC_FAILED, str(error)[:300])
            item.entropy_ms += _ms(started)

    def _finish(self, item: Item, packed: Future[None]) -> Item:
        packed.result()
        if item.coded:
            self._verify(item)
            self._keep_if_larger(item)
        item.latents = None
        return item

    def _keep_if_larger(self, item: Item) -> None:
        if item.coded and item.source is not None and stored_bytes(len(item.data or b"")) >= stored_bytes(len(item.source)):
            item.outcome = Kept(Reason.NOT_SMALLER, "the original file is not larger than the coded one")

    def _measure(self, item: Item) -> bool:
        """Decode from the bytes, compare with what the encoder meant, measure. False if the decoder does not agree."""
        assert item.data is not None
        assert item.symbols is not None
        assert item.loaded.picture is not None
        started = time.perf_counter()
        original = item.loaded.picture
        try:
            decoded, symbols = self.checker.decode(item.data)
        except _IMAGE_ERRORS as error:
            item.outcome = Kept(Reason.CODEC_FAILED, f"does not decode: {error}"[:300])
            return False
        same = all(np.array_equal(a, b) for a, b in zip(symbols, item.symbols.symbols, strict=True))
        kept = decoded.metadata() == original.metadata()
        alpha = original.alpha is None if decoded.alpha is None else original.alpha is not None and np.array_equal(decoded.alpha, original.alpha)
        if not (same and kept and alpha):
            item.outcome = Kept(Reason.CODEC_FAILED, "the decoder returns other symbols or metadata than were encoded")
            return False
        item.mse = metrics.mse(decoded.pixels, original.pixels)
        item.ms_ssim = metrics.ms_ssim(decoded.pixels, original.pixels) if self.config.ms_ssim else None
        item.recon_sha256 = sha256(decoded.content())
        item.verify_ms += _ms(started)
        return True

    def _verify(self, item: Item) -> None:
        """Measure, and search another q while a quality target or floor is missed."""
        if not self._measure(item):
            return
        exact, floor = self.config.target_psnr_db, item.task.min_psnr_db
        target = exact if exact is not None else floor
        if target is None or (exact is None and item.mse <= mse_of_psnr(target)):
            return
        self._search(item, target)

    def _search(self, item: Item, target_db: float) -> None:
        """Bracket and interpolate q until PSNR lies in [target, target + 0.05]; keep the cheapest q seen at or above the target."""
        assert item.symbols is not None
        good: tuple[float, Any] | None = None
        bad_q = -1.0
        good_db = bad_db = 0.0
        for _ in range(_SEARCH_TRIES):
            q, psnr = item.symbols.q, metrics.psnr_db(item.mse)
            if psnr >= target_db:
                if good is None or q < good[0]:
                    good, good_db = (q, (item.symbols, item.data, item.mse, item.ms_ssim, item.recon_sha256)), psnr
                if psnr <= target_db + PSNR_WINDOW_DB or q <= 0:
                    break
            elif q > bad_q:
                bad_q, bad_db = q, psnr
                if q >= self.codec.q_max:
                    break
            aim = target_db + PSNR_WINDOW_DB / 2
            if good is not None and bad_q >= 0:
                share = (aim - bad_db) / max(good_db - bad_db, 1e-6)
                following = bad_q + min(0.95, max(0.05, share)) * (good[0] - bad_q)
            else:
                following = q + (aim - psnr) / _DB_PER_Q
            following = min(self.codec.q_max, max(0.0, following))
            if abs(following - q) < 1 / bitstream.Q_STEPS:
                break
            self._start(item, following)
            self._pack(item)
            if not item.coded or not self._measure(item):
                return
        if good is None:
            item.outcome = Kept(Reason.QUALITY_UNREACHABLE, f"the codec ends at {metrics.psnr_db(item.mse):.2f} dB, below {target_db:g} dB")
            return
        item.symbols, item.data, item.mse, item.ms_ssim, item.recon_sha256 = good[1]
        item.clamp = "floor" if self.config.target_psnr_db is None else item.clamp

    # ---- writing ----

    def _write(self, task: ShardTask, items: Iterator[Item], writer: ShardWriter) -> tuple[list[dict[str, Any]], list[Member]]:
        rows, members = [], []
        for item in items:
            record = item.task.record
            member = None
            if item.payload is not None:
                suffix = "msn" if item.coded else suffix_of(record.name)
                member = writer.add(f"{record.key}.{suffix}", item.payload)
                members.append(member)
            sidecars: list[dict[str, Any]] = []
            for number, (name, keep, wanted, mtime, data) in enumerate(item.sidecars):
                taken = {member.name if member else None, *(side["member"] for side in sidecars)}
                side = writer.add(f"{record.key}.{number}.side" if wanted in taken else wanted, data)
                members.append(side)
                sidecars.append(
                    {
                        "name": name,
                        "restore_name": keep,
                        "member": side.name,
                        "offset": side.offset,
                        "length": side.length,
                        "sha256": side.sha256,
                        "mtime": mtime,
                    }
                )
            rows.append(self._row(task, item, member, sidecars))
            item.loaded = replace(item.loaded, picture=None)  # the pixels are no longer needed
            item.source = None
        return rows, members

    def _row(self, task: ShardTask, item: Item, member: Member | None, sidecars: list[dict[str, Any]]) -> dict[str, Any]:
        record, info, picture = item.task.record, item.loaded.info, item.loaded.picture
        coded = item.coded
        pixels = info.width * info.height if info.width and info.height else None
        stored = stored_bytes(member.length) if member else 0
        outcome: Outcome = item.outcome
        if item.lost and not isinstance(outcome, Missing):
            outcome = Missing(Reason.SIDECAR, "; ".join(item.lost))
        decodes = pixels is not None and not (item.reason is not None and item.reason.troubles)
        mse = item.mse if coded else 0.0 if decodes else None
        return {
            "key": record.key,
            "name": printable(record.name),
            "restore_name": record.restore_name if coded else record.keep_name,
            "source_uri": record.source_uri,
            "member": member.name if member else None,
            "source_bytes": None if item.source is None else len(item.source),
            "source_sha256": None if item.source is None else sha256(item.source),
            "source_format": info.format,
            "mtime": record.mtime,
            "width": info.width,
            "height": info.height,
            "pixels": pixels if decodes else None,
            "channels": info.channels,
            "bit_depth": info.bit_depth,
            "orientation": info.orientation,
            "icc": len(picture.icc) if picture and picture.icc else None,
            "exif": len(picture.exif) if picture and picture.exif else None,
            "xmp": len(picture.xmp) if picture and picture.xmp else None,
            "metadata": [{"kind": kind, "bytes": size} for kind, size in item.loaded.carried.listed],
            "metadata_lost": item.loaded.carried.dropped if coded else None,
            "shard_id": task.shard_id,
            "offset": member.offset if member else None,
            "length": member.length if member else None,
            "stored_bytes": stored,
            "payload_sha256": member.sha256 if member else None,
            "sidecars": sidecars,
            "codec": None if member is None else "msinn" if coded else "kept",
            "model_sha256": self.codec.model.sha256 if coded else None,
            "bitstream_version": item.data[4] if coded and item.data else None,
            "q": (item.q if item.symbols is None else item.symbols.q) if coded else None,
            "lambda": task.multiplier if coded and task.plan_rev else None,
            "plan_rev": task.plan_rev if task.plan_rev else None,
            "clamp": item.clamp if coded else None,
            "bpp": 8 * member.length / pixels if member and pixels else None,
            "bpp_stored": 8 * stored / pixels if member and pixels else None,
            "predicted_bytes": item.task.predicted_bytes or None,
            "mse": mse,
            "psnr_db": metrics.psnr_db(mse) if coded and mse else None,
            "lossless": member is not None and (not coded or mse == 0),
            "ms_ssim": item.ms_ssim if coded else None,
            "decode_verified": coded,
            "recon_sha256": item.recon_sha256 if coded else None,
            "encoder": self.encoder if coded else None,
            "status": outcome.status,
            "error_code": outcome.reason,
            "error": outcome.message,
            "attempt": task.attempt,
            "fetch_ms": item.fetch_ms,
            "decode_ms": item.decode_ms,
            "model_ms": item.model_ms,
            "entropy_ms": item.entropy_ms,
            "verify_ms": item.verify_ms,
            "worker": self.worker,
            "encoded_at": datetime.now(UTC),
        }

    def _publish(self, task: ShardTask, rows: list[dict[str, Any]], path: Path, shard_sha256: str, shard_bytes: int) -> Commit:
        stem = f"{task.shard_id:05d}"
        shard_name = content_name("shards", stem, shard_sha256, "tar")
        for row in rows:
            row["shard_key"] = shard_name
        data = manifest.to_bytes(rows)
        manifest_name = content_name("manifest", stem, sha256(data), "parquet")
        sidecar_bytes = sum(stored_bytes(side["length"]) for row in rows for side in row["sidecars"])
        coded = [row for row in rows if row["codec"] == "msinn"]
        record = Commit(
            shard_id=task.shard_id,
            attempt=task.attempt,
            shard=shard_name,
            shard_sha256=shard_sha256,
            shard_bytes=shard_bytes,
            manifest=manifest_name,
            manifest_sha256=sha256(data),
            counted_bytes=shard_bytes - (0 if self.config.count_sidecars else sidecar_bytes),
            predicted_bytes=float(sum(row["predicted_bytes"] or 0 for row in coded)),
            coded_bytes=sum(row["stored_bytes"] for row in coded),
            images=len(rows),
            coded=sum(row["status"] == "coded" for row in rows),
            kept=sum(row["status"] == "kept" for row in rows),
            failed=sum(row["status"] == "failed" for row in rows),
            pixels=sum(row["pixels"] or 0 for row in rows),
            troubled=sum(row["status"] == "kept" and row["error_code"].undecodable for row in rows),
            source_bytes=sum(row["source_bytes"] or 0 for row in rows),
            squared_error=float(sum((row["mse"] or 0) * (row["pixels"] or 0) for row in rows)),
            plan_rev=task.plan_rev,
        )
        self.store.publish(path, shard_name)
        self.store.publish_bytes(data, manifest_name)
        return commit(self.store, record)


def _split_for_trim(tasks: tuple[ImageTask, ...]) -> tuple[tuple[ImageTask, ...], tuple[ImageTask, ...]]:
    """Cut off the last images up to a bound in pixels; at least one of them can be coded if any can."""
    pixels = 0
    for start in range(len(tasks) - 1, -1, -1):
        pixels += tasks[start].pixels
        if pixels > _TRIM_PIXELS and any(task.q != PASSTHROUGH_Q and task.skip_reason is None for task in tasks[start + 1 :]):
            return tasks[: start + 1], tasks[start + 1 :]
    return (), tasks


def _ms(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
