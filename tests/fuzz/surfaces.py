"""What comes from outside, surface by surface: how a hostile input is made from a seed, and what reading it may do at most."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import struct
import tempfile
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load, save

from msinn_core import bitstream, compact
from msinn_core.codec import Codec
from msinn_core.compacting import compacted
from msinn_core.entropy import rans
from msinn_core.errors import CodecError
from msinn_core.heads import SCALES, read_heads
from msinn_core.integer.ops import Compiled
from msinn_core.model_file import LoadedModel, parse_model
from msinn_core.picture import Picture
from pipeline.archive import manifest
from pipeline.archive.archive import Archive
from pipeline.archive.layout import sha256
from pipeline.archive.row import Row
from pipeline.archive.shard import iterate_bytes, iterate_damaged
from pipeline.errors import PipelineError
from pipeline.formats import images
from pipeline.formats.parquet import read_bounded
from pipeline.formats.records import rows_of
from pipeline.formats.tars import TarDamageError, members
from pipeline.forms import avif, jxl, near
from pipeline.forms.base import Refusal
from pipeline.forms.process import Forms
from pipeline.forms.samples import Samples
from pipeline.plan.config import Budget, CompressConfig
from pipeline.plan.preferences import Preferences
from pipeline.read.rows import rows_left
from pipeline.read.target import Target
from pipeline.read.worker import RestoreWorker
from pipeline.sources.record import FILE, Part, SourceRecord, from_table, is_safe_name, safe_name, with_restore_names
from pipeline.text import redacted, shown, shown_lines
from tests.fuzz.mutate import mutated, seeds

GOLDEN = Path(__file__).parents[1] / "golden"
MAX_PIXELS = 1 << 17
_ODD = (None, True, -1, 0, 1e400, 2**31, 2**63, 10**30, "", "x", "../../etc/passwd", "\x1b]0;x\x07", [], {}, [[]], float("nan"))


class Surface(ABC):
    """One way in.

    Attributes:
        name: As `--surface` takes it.
        refusals: Exceptions that refuse an input; any other is a finding.
        dear: Whether an input takes milliseconds rather than microseconds.
    """

    name = ""
    refusals: tuple[type[Exception], ...] = (PipelineError,)
    dear = False

    @abstractmethod
    def make(self, random: Random) -> bytes:
        """An input."""

    @abstractmethod
    def read(self, data: bytes) -> None:
        """Read it as the product does; raises one of `refusals`, or nothing."""


def _golden_model() -> LoadedModel:
    return parse_model((GOLDEN / "integer" / "model.safetensors").read_bytes())


def mended(data: bytes) -> bytes:
    """A mutated bitstream with both checksums made right, as far as it has any."""
    out = bytearray(data)
    if len(out) < bitstream._FIXED.size:
        return data
    table_end = bitstream._FIXED.size + out[bitstream._FIXED.size - 1] * bitstream._ENTRY.size
    if len(out) < table_end + 8:
        return data
    out[table_end : table_end + 4] = struct.pack("<I", google_crc32c.value(bytes(out[table_end + 8 :])))
    out[table_end + 4 : table_end + 8] = struct.pack("<I", google_crc32c.value(bytes(out[: table_end + 4])))
    return bytes(out)


class Bitstreams(Surface):
    """Bitstreams, half of them with mended checksums, through every instruction set, which must agree."""

    name, refusals, dear = "bitstreams", (CodecError,), True

    def __init__(self) -> None:
        model = dataclasses.replace(_golden_model(), heads=read_heads(load((GOLDEN / "heads" / "heads.safetensors").read_bytes())))
        self.codecs = [Codec(model, backend=Compiled(isa=isa), max_pixels=MAX_PIXELS) for isa in range(4)]
        self.seeds = [path.read_bytes() for path in sorted((GOLDEN / "integer").glob("*.msn"))]
        # Small ones are mutated more often where it matters.
        decoded = self.codecs[0].decode(self.seeds[0])[0]
        small = dataclasses.replace(decoded, pixels=decoded.pixels[:20, :24].copy(), exif=b"exif" * 30, png_chunks=b"chunk" * 9)
        self.seeds += [self.codecs[0].encode(small, q) for q in (0.0, 4.0, 11.0)] * 4

    def make(self, random: Random) -> bytes:
        data = mutated(random.choice(self.seeds), random)
        return mended(data) if random.random() < 0.7 else data

    def read(self, data: bytes) -> None:
        which = len(data) % 4
        first = self._decode(0, data)
        other = self._decode(which, data)
        if first != other:
            raise AssertionError(f"instruction sets 0 and {which} disagree: {first[:80]!r}, {other[:80]!r}")
        if first.startswith(b"!"):
            raise CodecError(first.decode())

    def _decode(self, isa: int, data: bytes) -> bytes:
        try:
            return self.codecs[isa].decode(data)[0].content()
        except CodecError as error:
            return b"!" + str(error).encode()


class Beginnings(Bitstreams):
    """The same, as readers of smaller pictures see them, who cannot compare the checksum of the payload."""

    name = "beginnings"

    def _decode(self, isa: int, data: bytes) -> bytes:
        try:
            return self.codecs[isa].decode_reduced(data, SCALES[len(data) // 4 % len(SCALES)]).content()
        except CodecError as error:
            return b"!" + str(error).encode()


class Nears(Surface):
    """Near-lossless members: bytes, their headers, their parts (damaged, exchanged, of other sizes), most with lengths and checksums made right."""

    name, refusals, dear = "near", (Refusal, CodecError), True

    def __init__(self) -> None:
        self.codec = Codec(_golden_model(), max_pixels=MAX_PIXELS)
        self.forms = Forms(MAX_PIXELS, 1 << 24)
        random = np.random.default_rng(0)
        self.parts: dict[bool, list[bytes]] = {False: [], True: []}
        """Bitstreams, and files of JPEG XL."""
        self.seeds = [path.read_bytes() for path in sorted((GOLDEN / "near").glob("*.msr"))]
        for shape in ((20, 24, 3), (24, 20, 3), (33, 17)):
            pixels = np.clip(random.normal(120, 50, shape), 0, 255).astype(np.uint8)
            picture = Picture(pixels=pixels, exif=b"exif" * 9)
            data = self.codec.encode(picture, 3.0)
            self.parts[False].append(data)
            coded = self.codec.decode(data)[0].pixels
            for way in (near.ROUNDED, near.NUMBERED, near.FOLDED, near.SHIFTED):
                alone = way in near.WITHOUT_NETWORK
                left = near.rounded(pixels, 2) if way == near.ROUNDED else near.numbered(pixels, 2)
                planes = left if alone else near.folded(near.residual(pixels, coded, 2), way)
                if alone and len(shape) == 3:
                    planes = np.concatenate((planes, pixels[..., :1]), axis=2)
                packed = jxl.encoded(planes, {})
                self.parts[True].append(packed)
                self.seeds.append(near.Member(way=way, largest_error=2, bitstream=b"" if alone else data, picture=packed).to_bytes())
        self.parts[True].append(jxl.encoded(random.integers(0, 65536, (20, 24, 3)).astype(np.uint16), {}))

    def close(self) -> None:
        self.forms.close()

    def make(self, random: Random) -> bytes:
        data = random.choice(self.seeds)
        kind = random.random()
        if kind < 0.2:
            return mutated(data, random)
        member = near.parse(data)
        stream, picture = member.bitstream, member.picture
        if kind < 0.45:
            stream = mended(mutated(stream, random)) if stream else stream
        elif kind < 0.8:
            picture = mutated(picture, random)
        else:
            stream, picture = (random.choice(self.parts[False]) if stream else b""), random.choice(self.parts[True])
        way, error = member.way, member.largest_error
        if random.random() < 0.3:
            way, error = random.choice((0, 1, 2, 3, 4, 255)), random.choice((0, 1, 2, 127, 128, 255))
        return near.Member(way=way, largest_error=error, bitstream=stream, picture=picture).to_bytes()

    def read(self, data: bytes) -> None:
        near.model_named(data)
        member = near.parse(data)
        size = near.size(member)
        found = near.restored(member, lambda part: self.codec.decode(part)[0], lambda part: self.forms.decode("jxl", part))
        assert found.pixels.dtype == np.uint8
        assert (found.pixels.shape[1], found.pixels.shape[0]) == size
        found.content()


class Avifs(Surface):
    """AVIF members: damaged boxes, headers and samples, metadata of ours at the end."""

    name, refusals, dear = "avif", (Refusal,), True

    def __init__(self) -> None:
        self.forms = Forms(MAX_PIXELS, 1 << 24)
        random = np.random.default_rng(0)
        self.seeds = []
        for shape in ((20, 24, 3), (33, 17, 3), (16, 90, 3)):
            pixels = np.full(shape, 250, np.uint8)
            pixels[3:9, 4:15] = random.integers(0, 256, (6, 11, 3))
            self.seeds += [avif.encoded(pixels, level, {"exif": b"Exif\0\0" * 9, "png_chunks": b"chunks"}) for level in avif.LEVELS]

    def close(self) -> None:
        self.forms.close()

    def make(self, random: Random) -> bytes:
        return mutated(random.choice(self.seeds), random)

    def read(self, data: bytes) -> None:
        found = self.forms.decode("avif", data)
        assert isinstance(found, Samples)
        assert found.pixels.dtype == np.uint8
        assert (found.pixels.shape[1], found.pixels.shape[0]) == avif.size(data)


class Streams(Surface):
    """Symbol streams under indexes that are not theirs."""

    name, refusals = "streams", (CodecError,)

    def __init__(self) -> None:
        self.tables = _golden_model().tables
        random = np.random.default_rng(0)
        self.seeds = []
        for scale in (0.3, 2, 40, 1000, 10**8):
            indexes = random.integers(0, len(self.tables.offsets), 200).astype(np.uint8)
            symbols = np.rint(random.normal(0, scale, 200)).astype(np.int32)
            self.seeds.append(indexes.tobytes() + rans.encode(symbols, indexes, self.tables))

    def make(self, random: Random) -> bytes:
        return mutated(random.choice(self.seeds), random)

    def read(self, data: bytes) -> None:
        indexes = np.frombuffer(data[:200], np.uint8)
        symbols = rans.decode(data[200:], indexes, self.tables)
        if rans.encode(symbols, indexes, self.tables) != data[200:] and symbols.any():
            raise AssertionError("a stream that decodes is not the stream of its symbols")


class Models(Surface):
    """Model files: bytes, headers, configurations and values of tensors changed; what is accepted decodes a picture."""

    name, refusals, dear = "models", (CodecError,), True

    def __init__(self) -> None:
        self.seed = (GOLDEN / "integer" / "model.safetensors").read_bytes()
        size = int.from_bytes(self.seed[:8], "little")
        self.header = json.loads(self.seed[8 : 8 + size])
        self.body = self.seed[8 + size :]
        self.stream = bitstream.parse(min((path.read_bytes() for path in (GOLDEN / "integer").glob("*.msn")), key=len))

    def make(self, random: Random) -> bytes:
        kind = random.random()
        if kind < 0.3:
            return mutated(self.seed, random)
        header, body = json.loads(json.dumps(self.header)), bytearray(self.body)
        if kind < 0.6:
            # Values of one tensor, small ones as often as large ones.
            name = random.choice([key for key in header if key != "__metadata__"])
            start, end = header[name]["data_offsets"]
            width = 2 if header[name]["dtype"] in ("I16", "F16") else 4
            for _ in range(random.randint(1, 3)):
                if end - start >= width:
                    at = start + width * random.randrange((end - start) // width)
                    value = random.choice((0, 1, -1, 14, 15, 16, 17, 31, 1 << 20, (1 << 31) - 1, -(1 << 31), 0x7F800000, 0x7FC00000, 32767, -32768))
                    body[at : at + width] = (value & (256**width - 1)).to_bytes(width, "little")
        elif kind < 0.8:
            config = json.loads(header["__metadata__"]["config"])
            key = random.choice(list(config))
            config[key] = random.choice([*_ODD, 4096, [4096] * 4, [1] * 5, "gelu", 16, 64])
            header["__metadata__"]["config"] = json.dumps(config)
            if random.random() < 0.3:
                header["__metadata__"]["profile"] = random.choice(["float", "int", ""])
        else:
            name = random.choice(list(header))
            if random.random() < 0.5 or not isinstance(header[name], dict):
                header[name] = random.choice(_ODD)
            else:
                header[name][random.choice(list(header[name]))] = random.choice([*_ODD, [0, 8], [1], "F32", "F64", "BF16", "BOOL"])
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + bytes(body)

    def read(self, data: bytes) -> None:
        model = parse_model(data)
        codec = Codec(model, max_pixels=MAX_PIXELS)
        stream = dataclasses.replace(self.stream, model_id=bytes.fromhex(model.sha256)[:16], profile=model.profile)
        codec.decode(stream.to_bytes())


class Compacts(Surface):
    """Compact models, by themselves and as differences: bytes, what they say of their lengths, segments and scales; most with lengths made right."""

    name, refusals, dear = "compacts", (CodecError,), True

    def __init__(self) -> None:
        base, relative = (self._model(change) for change in (0, 3))
        self.bases = {sha256(base): base}
        self.seeds = [compacted(base), compacted(relative, base), (GOLDEN / "integer" / "tuned.compact").read_bytes()]

    @staticmethod
    def _model(change: int) -> bytes:
        rng = np.random.default_rng(0)
        tensors = {f"int.{i}.weight": rng.normal(0, 90, (8, 9, 6)).astype(np.int16) for i in range(3)}
        tensors |= {f"int.{i}.bias": rng.integers(-(2**28), 2**28, 40).astype(np.int32) for i in range(3)}
        return save({name: value + value.dtype.type(change * (len(name) % 2 + name.endswith("1.weight"))) for name, value in tensors.items()})

    def make(self, random: Random) -> bytes:
        data = random.choice(self.seeds)
        if random.random() < 0.25:
            return mutated(data, random)
        fixed = compact._fixed(data)
        ends = [compact.FIXED.size, compact.FIXED.size + fixed.deflated, compact.FIXED.size + fixed.deflated + fixed.planes]
        notes, planes, stream = zlib.decompress(data[ends[0] : ends[1]]), data[ends[1] : ends[2]], data[ends[2] :]
        which = random.random()
        if which < 0.7:
            # The segments' records stand first: half of the changes are among them.
            notes = mutated(notes, random)
        elif which < 0.85:
            planes = mutated(planes, random)
        else:
            stream = mutated(stream, random)
        if random.random() < 0.2:
            claims = random.choice((0, 1, 2**16, 2**25, 2**25 + 1, 2**32 - 1))
            fixed = fixed._replace(**{random.choice(("size", "segments")): claims})
        deflated = zlib.compress(notes)
        fixed = fixed._replace(deflated=len(deflated), notes=len(notes), planes=len(planes), stream=len(stream))
        return compact.FIXED.pack(*fixed) + deflated + planes + stream

    def read(self, data: bytes) -> None:
        def base_of(digest: str) -> bytes:
            if digest not in self.bases:
                raise CodecError("no such base")
            return self.bases[digest]

        out = compact.expand(data, base_of)
        assert sha256(out) == compact.head(data).sha256


class Tars(Surface):
    """Tars as sources and as shards."""

    name, refusals = "tars", (PipelineError, TarDamageError)

    def __init__(self) -> None:
        import tarfile

        self.seeds = []
        for style in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w", format=style) as file:
                for name in ("000000001.msn", "ä" * 60 + ".png" if style != tarfile.USTAR_FORMAT else "b.png", "c/d.jpg"):
                    info = tarfile.TarInfo(name)
                    info.size, info.mtime = 700, 1_600_000_000
                    file.addfile(info, io.BytesIO(bytes(700)))
            self.seeds.append(out.getvalue())
        self.seeds += [path.read_bytes() for path in sorted((Path(__file__).parent / "regressions").glob("*.tar"))]

    def make(self, random: Random) -> bytes:
        data = bytearray(mutated(random.choice(self.seeds), random))
        if random.random() < 0.6:
            # Checksums made right, so that what was changed is believed.
            for at in range(0, len(data) - 511, 512):
                if data[at + 257 : at + 262] == b"ustar":
                    data[at + 148 : at + 156] = b" " * 8
                    data[at + 148 : at + 156] = b"%06o\0 " % (sum(data[at : at + 512]) & 0o777777)
        return bytes(data)

    def read(self, data: bytes) -> None:
        class Counting(io.BytesIO):
            total = 0

            def read(self, size: int | None = -1, /) -> bytes:
                found = super().read(size)
                self.total += len(found)
                return found

        file = Counting(data)
        for _ in iterate_damaged(file):
            pass
        assert file.total <= len(data), f"{file.total} bytes read of {len(data)}"
        file = Counting(data)
        count = 0
        try:
            for _ in members(file, len(data)):
                count += 1
                assert count <= len(data) // 512 + 1
        finally:
            assert file.total <= 4 * len(data) + 4096, f"{file.total} bytes read of {len(data)}"
        list(iterate_bytes(data))


class Parquets(Surface):
    """Parts of manifests and listings."""

    name, refusals, dear = "parquet", (PipelineError, pa.ArrowException, KeyError, TypeError, AttributeError), True

    def __init__(self) -> None:
        self.seeds = [path.read_bytes() for path in sorted((GOLDEN / "archive").glob("version-*/manifest/*.parquet"))]
        self.listings = [path.read_bytes() for path in sorted((GOLDEN / "archive").glob("version-*/scan/*.parquet"))]

    def make(self, random: Random) -> bytes:
        return mutated(random.choice(self.seeds + self.listings), random)

    def read(self, data: bytes) -> None:
        try:
            manifest.read(data).to_pylist()
        except PipelineError:
            from_table(read_bounded(data))


class Books(Surface):
    """A whole archive in which one book, or one value of it, was changed, and its hashes made right: restored to a folder."""

    name, refusals, dear = "books", (PipelineError,), True

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="msinn-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.archives = []
        for place in sorted((GOLDEN / "archive").glob("version-*")):
            copy = Path(shutil.copytree(place, self.root / place.name))
            (copy / "model").mkdir(exist_ok=True)
            run = json.loads((copy / "run.json").read_text())
            suffix = "safetensors" if run["archive_version"] < 3 else "compact"
            shutil.copy(GOLDEN / "integer" / f"model.{suffix}", copy / "model" / f"{run['model_sha256']}.{suffix}")
            self.archives.append({str(path.relative_to(copy)): path.read_bytes() for path in copy.rglob("*") if path.is_file()})
            shutil.rmtree(copy)
        self.model = next(iter(name for name in self.archives[0] if name.startswith("model/")))

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def make(self, random: Random) -> bytes:
        """An archive's objects as JSON of latin-1."""
        objects = dict(random.choice(self.archives))
        name = random.choice([name for name in objects if not name.startswith(("shards/", "model/"))] + ["run.json"] * 2)
        if random.random() < 0.3:
            objects[name] = mutated(objects[name], random)
        elif name.endswith(".json"):
            value = json.loads(objects[name])
            _change(value, random)
            objects[name] = json.dumps(value).encode()
        elif name.startswith("manifest/"):
            objects = self._with_row(objects, name, random)
        if random.random() < 0.5:
            objects.pop("MANIFEST.json", None)
        return json.dumps({key: data.decode("latin-1") for key, data in objects.items()}).encode()

    @staticmethod
    def _with_row(objects: dict[str, bytes], name: str, random: Random) -> dict[str, bytes]:
        table = pq.read_table(io.BytesIO(objects[name]))
        rows = table.to_pylist()
        row = random.choice(rows)
        key = random.choice([key for key in row if key not in ("mtime", "encoded_at")])
        odd = ("../../escape.png", "/etc/passwd", "simplecache::x", "a\0b", "", "C:\\x", "shards/../../../etc/passwd", "/dev/zero", "x" * 300)
        kind = table.schema.field(key).type
        if key == "sidecars" and row[key]:
            row[key][0][random.choice(["restore_name", "name", "offset", "length", "sha256"])] = None
        elif pa.types.is_string(kind):
            row[key] = random.choice((*odd, None)) if table.schema.field(key).nullable else random.choice(odd)
        elif pa.types.is_integer(kind):
            row[key] = random.choice((-1, 0, 1, 100))
        if random.random() < 0.2:
            row["restore_name"] = rows[0]["restore_name"]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), sink)
        changed = sink.getvalue()
        out = {**objects, name: changed}
        for other, data in objects.items():
            if other.startswith("commits/") and json.loads(data)["manifest"] == name:
                out[other] = json.dumps({**json.loads(data), "manifest_sha256": sha256(changed)}).encode()
        out.pop("MANIFEST.json", None)
        return out

    def read(self, data: bytes) -> None:
        place, out = self.root / "archive", self.root / "out" / "inner"
        for folder in (place, out):
            shutil.rmtree(folder, ignore_errors=True)
        for name, text in json.loads(data).items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode("latin-1"))
        out.mkdir(parents=True)
        archive = Archive(str(place))
        archive.seal()
        rows, problems = rows_left(archive)
        worker = RestoreWorker(str(place), str(out))
        for row in rows_of(Row, rows):
            problems += worker.restore([row]).problems
        assert all(isinstance(problem, str) for problem in problems)
        assert os.listdir(self.root / "out") == ["inner"], "something was written beside the target"
        if problems:
            raise PipelineError(problems[0])


def _change(value: Any, random: Random) -> None:
    """Change one value somewhere in a JSON object."""
    while True:
        key = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
        if isinstance(value[key], dict | list) and value[key] and random.random() < 0.6:
            value = value[key]
            continue
        kind = random.random()
        if kind < 0.15 and isinstance(value, dict):
            del value[key]
        elif kind < 0.3 and isinstance(value, dict):
            value["unknown"] = 1
        else:
            value[key] = random.choice(_ODD)
        return


class Tables(Surface):
    """Tables of wishes."""

    name = "tables"

    def __init__(self) -> None:
        self.names = ["a.png", "b.png", "ä.png"]
        self.config = CompressConfig(budget=Budget(kind="bpp", value=1.0), preferences_sha256="0" * 64)
        csv = "name,weight,min_psnr_db,max_bpp\na.png,2,30,1.5\nb.png,,35,\n"
        sink = io.BytesIO()
        pq.write_table(pa.table({"name": ["a.png", "ä.png"], "weight": [1.0, 3.0]}), sink)
        self.seeds = [csv.encode()] * 3 + [sink.getvalue()]

    def make(self, random: Random) -> bytes:
        data = random.choice(self.seeds)
        if data[:4] != b"PAR1" and random.random() < 0.5:
            cells = [line.split(",") for line in data.decode().splitlines()]
            line = random.choice(cells)
            line[random.randrange(len(line))] = str(random.choice((*_ODD, "nan", "inf", "1e308", "a.png", "min_q", '"')))
            return "\n".join(map(",".join, cells)).encode("utf-8", "surrogateescape")
        return mutated(data, random)

    def read(self, data: bytes) -> None:
        found = Preferences.from_table(self.config, data, self.names, "--per-image")
        found.limits(np.arange(3))


class Images(Surface):
    """Image files of every kind that is decoded."""

    name, dear = "images", True

    def __init__(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (40, 48, 3)).astype(np.uint8)
        self.seeds = seeds(pixels)

    def make(self, random: Random) -> bytes:
        return mutated(random.choice(list(self.seeds.values())), random)

    def read(self, data: bytes) -> None:
        loaded = images.load(data, max_pixels=1_000_000, name="x.png")
        assert (loaded.picture is None) == (loaded.reason is not None)
        if loaded.picture is not None and len(data) % 8 == 0:
            images.to_png(loaded.picture)


_ALPHABET = (
    *"ab./\\:~ \0\n\t",
    *("..", "::", "://", "\x1b[2J", "\x9b", "\u202e", "\u2028", "é", "\udcff", "CON", "[/b]", "<script>", "a" * 120),
)


class Names(Surface):
    """Names of files: made safe, written, shown."""

    name = "names"

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="msinn-names-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        (self.root / "out").mkdir()
        (self.root / "outside").mkdir()
        (self.root / "out" / "a").symlink_to(self.root / "outside")
        self.target = Target(str(self.root / "out"))

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def make(self, random: Random) -> bytes:
        parts = ["".join(random.choice(_ALPHABET) for _ in range(random.randint(1, 8))) for _ in range(3)]
        return "\x01".join(parts).encode("utf-8", "surrogatepass")

    def read(self, data: bytes) -> None:
        names = data.decode("utf-8", "surrogatepass").split("\x01")
        for name in names:
            assert is_safe_name(safe_name(name)), safe_name(name)
            assert not set(map(ord, shown(name))) & {*range(32), *range(127, 160), 0x202E, 0x2028}
            assert "\x1b" not in shown_lines(name)
            redacted(name)
        records = with_restore_names(SourceRecord(index=i, name=name, part=Part(FILE, name, 1)) for i, name in enumerate(names))
        used = [record.keep_name for record in records] + [record.restore_name for record in records if record.restore_name != record.keep_name]
        assert len({name.casefold() for name in used}) == len(used), used
        for name in (*names, *used):
            assert is_safe_name(name) or name in names
            if hash(name) % 8 == 0:
                try:
                    self.target.write(name, b"x")
                finally:
                    assert not os.listdir(self.root / "outside"), name
                    assert sorted(os.listdir(self.root)) == ["out", "outside"], name


class Broken(Surface):
    """Finds fault with itself: for the test of the campaign."""

    name, dear = "_broken", True

    def make(self, random: Random) -> bytes:
        return bytes([random.randrange(4)])

    def read(self, data: bytes) -> None:
        if data == b"\0":
            raise PipelineError("refused")
        if data == b"\1":
            raise RuntimeError("wrong")
        if data == b"\2":
            os.abort()


SURFACES: dict[str, Callable[[], Surface]] = {
    surface.name: surface
    for surface in (Bitstreams, Beginnings, Nears, Avifs, Streams, Models, Compacts, Tars, Parquets, Books, Tables, Images, Names)
}
HIDDEN: dict[str, Callable[[], Surface]] = {Broken.name: Broken}


def quiet() -> None:
    """No warnings of libraries about what is meant to be odd."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
