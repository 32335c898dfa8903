"""What exact forms save: JPEG files to the byte, pictures to the sample, and a budget over all forms; figures from real bytes that were decoded.

python -m infra.forms.measure jpegs TILES.tar WORK [--number 1000]
python -m infra.forms.measure tiles PHOTOS.tar FOLDER       (50 photos and 50 drawn pictures, for the next)
python -m infra.forms.measure pixels FOLDER WORK
python -m infra.forms.measure mixed TILES.tar WORK
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import resource
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image

from infra.drawn.make import tile
from jobs.cli import main as msinn
from pipeline.archive.archive import Archive
from pipeline.forms.base import Bounds
from pipeline.forms.pixels_exact import PixelsExact
from pipeline.read.audit import query
from pipeline.read.restore import restore

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif")
_BOUNDS = Bounds(max_pixels=32_000_000, max_file_bytes=1 << 31)
QUALITIES, SUBSAMPLINGS = (60, 75, 85, 90, 95), (0, 1, 2)


def pictures(tar: str, number: int) -> Iterator[Image.Image]:
    """The first pictures of a tar, as RGB."""
    with tarfile.open(tar) as archive:
        for member in archive:
            if number and member.isfile() and member.name.lower().endswith(_SUFFIXES):
                file = archive.extractfile(member)
                assert file is not None
                yield Image.open(io.BytesIO(file.read())).convert("RGB")
                number -= 1


def _saved(picture: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def odd(picture: Image.Image) -> dict[str, bytes]:
    """JPEG files of every odd kind that can be made here."""
    plain = _saved(picture, "JPEG", quality=85)
    progressive = _saved(picture, "JPEG", progressive=True)
    scans = [i for i in range(len(progressive) - 1) if progressive[i : i + 2] == b"\xff\xda"]
    rng = np.random.default_rng(0)
    return {
        "cut.jpg": plain[: len(plain) * 2 // 3],
        "missing-scans.jpg": progressive[: scans[-3]] + b"\xff\xd9",
        "tail-5mb.jpg": plain + rng.bytes(5 << 20),
        "motion.jpg": plain + b"\0\0\0\x18ftypmp42" + rng.bytes(200_000),
        "two.jpg": plain + plain,
        "mpo.jpg": _saved(picture, "MPO", save_all=True, append_images=[picture.rotate(90)]),
        "cmyk.jpg": _saved(picture.convert("CMYK"), "JPEG"),
        "grey.jpg": _saved(picture.convert("L"), "JPEG"),
        "restarts.jpg": _saved(picture, "JPEG", restart_marker_rows=1),
        "no-end.jpg": plain[:-2],
        "called.png": plain,
        "arithmetic.jpg": (Path(__file__).parents[2] / "tests" / "unit" / "forms" / "arithmetic.jpg").read_bytes(),
        "12-bit.jpg": imagecodecs.jpeg8_encode(np.asarray(picture).astype(np.uint16) * 16, bitspersample=12),
        "empty.jpg": b"\xff\xd8\xff",
        "one-pixel.jpg": _saved(picture.resize((1, 1)), "JPEG"),
    }


def jpegs(tar: str, work: Path, number: int) -> None:
    """Save tiles as JPEG files of several kinds, archive them by `--lossless`, restore and compare."""
    source = work / "jpegs"
    source.mkdir(parents=True)
    combinations = [(quality, sampling) for quality in QUALITIES for sampling in SUBSAMPLINGS]
    per_picture = 4
    made = 0
    for i, picture in enumerate(pictures(tar, -(-number // per_picture))):
        for k in range(per_picture):
            quality, sampling = combinations[(per_picture * i + k) % len(combinations)]
            exif = Image.Exif()
            exif[0x010E] = f"tile {i}"
            data = _saved(picture, "JPEG", quality=quality, subsampling=sampling, progressive=k == 1, exif=exif if k % 2 else b"")
            (source / f"{i:04d}-q{quality}-s{sampling}-{k}.jpg").write_bytes(data)
            made += 1
        if i == 0:
            for name, data in odd(picture).items():
                (source / name).write_bytes(data)
    started = time.perf_counter()
    msinn(["-q", "compress", str(source), str(work / "jpegs-archive"), "--lossless", "--executor", "local"])
    seconds = time.perf_counter() - started
    result = restore(str(work / "jpegs-archive"), str(work / "jpegs-back"))
    rows = Archive(str(work / "jpegs-archive")).manifest()
    same = [
        row["name"]
        for row in rows.select(["name"]).to_pylist()
        if hashlib.sha256((source / row["name"]).read_bytes()).digest() == hashlib.sha256((work / "jpegs-back" / row["name"]).read_bytes()).digest()
    ]
    print(f"{len(rows)} files, {len(same)} back to the byte, problems {result.problems}; {seconds:.0f} s to archive")
    for sql in (
        "SELECT codec, count(*) n, sum(source_bytes) source, sum(length) stored FROM manifest GROUP BY 1 ORDER BY 1",
        "SELECT name, left(error, 150) error FROM manifest WHERE codec = 'kept'",
    ):
        print(json.dumps(query(rows, sql).to_pylist(), indent=1, default=float))


def tiles(tar: str, folder: Path) -> None:
    """The first 50 photos of a tar and 50 drawn pictures, as PNG."""
    folder.mkdir(parents=True)
    for i, picture in enumerate(pictures(tar, 50)):
        picture.save(folder / f"photo{i:02d}.png", optimize=True)
    for i in range(50):
        kind, picture = tile(i, seed=18)
        picture.save(folder / f"drawn{i:02d}-{kind}.png", optimize=True)


def _peers(work: Path) -> dict[str, Callable[[Image.Image, bytes], bytes]]:
    """Lossless codecs: of a picture and its PNG file, the file that each makes. Those that are not installed are left out, and said."""
    peers: dict[str, Callable[[Image.Image, bytes], bytes]] = {
        "PNG, Pillow optimize": lambda picture, png: _saved(picture, "PNG", optimize=True, compress_level=9),
        "WebP, method 6": lambda picture, png: _saved(picture, "WEBP", lossless=True, quality=100, method=6, exact=True),
    }
    try:
        import oxipng  # type: ignore[import-not-found]

        peers["PNG, oxipng -o 4"] = lambda picture, png: oxipng.optimize_from_memory(png, level=4)
    except ImportError:
        print("no oxipng: pip install pyoxipng")
    if shutil.which("cjxl"):

        def cjxl(picture: Image.Image, png: bytes) -> bytes:
            (work / "x.png").write_bytes(png)
            subprocess.run(["cjxl", "x.png", "x.jxl", "-e", "7", "-d", "0", "--num_threads=0", "--quiet"], cwd=work, check=True, capture_output=True)
            return (work / "x.jxl").read_bytes()

        peers["cjxl -e 7 -d 0"] = cjxl
    else:
        print("no cjxl: apt install libjxl-tools")
    return peers


def _cpu_seconds() -> float:
    """Of this process and of those that it waited for."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def pixels(folder: Path, work: Path) -> None:
    """A folder of pictures in a `--lossless` archive and by lossless codecs, each decoded and compared: bytes, and seconds of processor time."""
    work.mkdir(parents=True)
    source = work / "source"
    source.mkdir()
    peers = _peers(work)
    totals = {name: [0, 0.0] for name in ("PNG as it was", "pixels-exact", *peers)}
    for path in sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES):
        picture = Image.open(path).convert("RGB")
        png = path.read_bytes() if path.suffix == ".png" else _saved(picture, "PNG")
        (source / f"{path.stem}.png").write_bytes(png)
        totals["PNG as it was"][0] += len(png)
        started = _cpu_seconds()
        totals["pixels-exact"][0] += len(PixelsExact().encode(_saved(picture, "BMP"), "x.bmp", _BOUNDS).data)
        totals["pixels-exact"][1] += _cpu_seconds() - started
        for name, made in peers.items():
            started = _cpu_seconds()
            data = made(picture, png)
            totals[name][0] += len(data)
            totals[name][1] += _cpu_seconds() - started
            back = imagecodecs.jpegxl_decode(data) if name.startswith("cjxl") else np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            assert np.array_equal(back if back.ndim == 3 else np.stack(3 * [back], 2), np.asarray(picture)), (name, path)
    started = time.perf_counter()
    code = msinn(["-q", "compress", str(source), str(work / "archive"), "--lossless", "--executor", "local"])
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    result = restore(str(work / "archive"), str(work / "back"))
    back_seconds = time.perf_counter() - started
    rows = Archive(str(work / "archive")).manifest()
    for row in rows.select(["name", "restore_name"]).to_pylist():
        with Image.open(source / row["name"]) as was, Image.open(work / "back" / row["restore_name"]) as found:
            assert np.array_equal(np.asarray(was.convert("RGB")), np.asarray(found.convert("RGB"))), row
    sql = """SELECT form, codec, count(*) n, sum(source_bytes) source, sum(length) payload, sum(stored_bytes) stored
        FROM manifest GROUP BY 1, 2 ORDER BY 1, 2"""
    print(f"archive: exit code {code}, {seconds:.0f} s to archive, {back_seconds:.0f} s to restore, problems {result.problems}, every sample equal")
    print(json.dumps(query(rows, sql).to_pylist(), indent=1, default=float))
    print(json.dumps({name: {"bytes": taken, "cpu_s": round(cpu, 1)} for name, (taken, cpu) in totals.items()}, indent=1))


def mixed(tar: str, work: Path) -> None:
    """Photos, screenshots, JPEG files and 16-bit pictures under budgets, with exact forms and without; at 8 and 16, where 16 bits leave
    little room or none, without those too."""
    source = work / "mixed"
    source.mkdir(parents=True)
    for i, picture in enumerate(pictures(tar, 24)):
        if i < 8:
            picture.save(source / f"photo{i}.png")
        elif i < 20:
            picture.save(source / f"camera{i}.jpg", quality=(75, 85, 92, 95)[i % 4], subsampling=(0, 2)[i % 2])
        elif i < 22:
            picture.resize((96, 96)).save(source / f"small{i}.png")
        else:
            (source / f"deep{i}.png").write_bytes(imagecodecs.png_encode(np.asarray(picture).astype(np.uint16) * 257))
    for i in range(10):
        kind, picture = tile(i, seed=18)
        picture.save(source / f"screen{i}-{kind}.png")
    shallow = work / "mixed-8-bit"
    shutil.copytree(source, shallow, ignore=shutil.ignore_patterns("deep*"))
    for ratio in (2, 4, 8, 16):
        for forms in ("msinn", "all"):
            _budgeted(source, work / f"{ratio}-{forms}", ratio, forms)
            if ratio >= 8:
                _budgeted(shallow, work / f"{ratio}-{forms}-8-bit", ratio, forms)


def _budgeted(source: Path, place: Path, ratio: int, forms: str) -> None:
    """Archive a folder by a ratio, and print what came of it."""
    said = io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = msinn(["-q", "compress", str(source), str(place), "--ratio", str(ratio), "--forms", forms, "--executor", "local", "--json"])
    seconds = time.perf_counter() - started
    if code != 0:
        print(f"{source.name} --ratio {ratio} --forms {forms}: exit code {code}: {said.getvalue().strip()}", flush=True)
        return
    archive = Archive(str(place))
    sealed = archive.seal() or {}
    counts = ", ".join(f"count(*) FILTER (form = '{name}') AS \"{name}\"" for name in ("msinn", "jpeg-exact", "pixels-exact", "kept"))
    sql = f"""SELECT {counts}, 10 * log10(65025 / (sum(mse * pixels) / sum(pixels))) pooled_db,
        avg(10 * log10(65025 / greatest(mse, 1 / 12))) mean_db, min(psnr_db) worst_db FROM manifest"""
    facts = query(archive.manifest(), sql).to_pylist()[0]
    landing = f"{sealed['counted_bytes']} of {sealed['budget_bytes']:.0f} bytes ({sealed['counted_bytes'] / sealed['budget_bytes'] - 1:+.3%})"
    print(f"{source.name} --ratio {ratio} --forms {forms}: {landing}, {seconds:.0f} s: {json.dumps(facts, default=float)}", flush=True)


def main() -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    for name, arguments in (("jpegs", ("tar", "work")), ("tiles", ("tar", "folder")), ("pixels", ("folder", "work")), ("mixed", ("tar", "work"))):
        sub = what.add_parser(name)
        for argument in arguments:
            sub.add_argument(argument)
        if name == "jpegs":
            sub.add_argument("--number", type=int, default=1000)
    given = parser.parse_args()
    if given.what == "jpegs":
        jpegs(given.tar, Path(given.work), given.number)
    elif given.what == "tiles":
        tiles(given.tar, Path(given.folder))
    elif given.what == "pixels":
        pixels(Path(given.folder), Path(given.work))
    else:
        mixed(given.tar, Path(given.work))


if __name__ == "__main__":
    main()
