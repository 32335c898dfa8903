"""Verbs that read an archive: `status`, `verify`, `audit`, `restore`, `get`, `gc`, `inspect`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.commit import Archive


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verbs."""
    p = verbs.add_parser("status", help="how far an archive is, from the store alone")
    p.add_argument("archive", metavar="DST")
    p.add_argument("--json", action="store_true")
    p.set_defaults(command=_status)

    p = verbs.add_parser("verify", help="check every byte, or decode every image")
    p.add_argument("archive", metavar="DST")
    how = p.add_mutually_exclusive_group()
    how.add_argument("--fixity", action="store_true", help="hash every object and compare (the default)")
    how.add_argument("--decode", action="store_true", help="decode every image and compare its pixels' hash")
    p.add_argument("--sample", type=_share, default=1.0, metavar="1%", help="with --decode: a random share of the images")
    p.add_argument("--workers", type=int, metavar="N")
    p.set_defaults(command=_verify)

    p = verbs.add_parser("audit", help="quality and size: percentiles, the worst images, or any SQL over the view `manifest`")
    p.add_argument("archive", metavar="DST")
    p.add_argument("sql", nargs="?", metavar="SQL", help='e.g. "SELECT name, psnr_db FROM manifest ORDER BY psnr_db LIMIT 10"')
    p.add_argument("--json", action="store_true", help="JSON lines instead of a table")
    p.add_argument("--html", metavar="FILE", help="a page with distributions and the worst images to look at")
    p.set_defaults(command=_audit)

    p = verbs.add_parser("restore", help="every image back: decoded ones as PNG, the others as they were")
    p.add_argument("archive", metavar="DST")
    p.add_argument("out", metavar="OUT", help="empty folder, or URL")
    p.add_argument("--where", metavar="SQL", help='only rows of the manifest that fulfil a condition, e.g. "psnr_db < 32"')
    p.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    p.add_argument("--workers", type=int, metavar="N")
    p.set_defaults(command=_restore)

    p = verbs.add_parser("get", help="one image by key or name, reading only its bytes")
    p.add_argument("archive", metavar="DST")
    p.add_argument("key", metavar="KEY")
    p.add_argument("-o", "--output", metavar="FILE", help="where to write (default: its name, here; - for standard output)")
    p.add_argument("--original", action="store_true", help="the stored payload itself")
    p.set_defaults(command=_get)

    p = verbs.add_parser("gc", help="what killed attempts left in a sealed archive on which nobody works; nothing is removed without --delete")
    p.add_argument("archive", metavar="DST")
    p.add_argument("--delete", action="store_true", help="remove it")
    p.set_defaults(command=_gc)

    p = verbs.add_parser("inspect", help="what a bitstream, model file or shard is")
    p.add_argument("file", metavar="FILE")
    p.set_defaults(command=_inspect)


def _share(text: str) -> float:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write 1% or 0.01") from error


def _status(arguments: argparse.Namespace) -> int:
    from pipeline.commit import Archive

    archive = Archive(arguments.archive)
    records = archive.commits()
    run = archive.run
    facts = {
        "state": "sealed" if archive.sealed else "unfinished",
        "source": run["source"],
        "budget": f"--{run['config']['budget']['kind']} {run['config']['budget']['value']:g}",
        "model": f"{run['model_name']} {run['model_sha256'][:12]}",
        "shards": f"{len(records)} of {run['shards']}",
        "images": f"{sum(r.images for r in records)} of {run['images']}",
        "passthrough": sum(r.passthrough for r in records),
        "failed": sum(r.failed for r in records),
        "counted_bytes": sum(r.counted_bytes for r in records),
    }
    if arguments.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        print(f"{name:<15}{value:,}" if isinstance(value, int) else f"{name:<15}{value}")
    if not archive.sealed:
        print("to finish it, run the same `msinn compress` again")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from pipeline import verify

    if arguments.decode:
        with contextlib.redirect_stdout(sys.stderr):  # Ray speaks of lost workers there
            result = verify.decode(arguments.archive, sample=arguments.sample, workers=arguments.workers)
        done = f"{result.images} images and {result.sidecars} sidecars decoded and compared"
    else:
        result = verify.fixity(arguments.archive)
        done = f"{result.images} images checked byte for byte"
    return _finish(result.problems, done, "verification failed")


def _gc(arguments: argparse.Namespace) -> int:
    from pipeline import gc
    from pipeline.commit import Archive

    archive = Archive(arguments.archive)
    found = gc.orphans(archive)
    for name, size in sorted(found.items()):
        print(f"{size:>15,}  {archive.store.path(name)}")
    if arguments.delete:
        gc.collect(archive, found)
    what = "removed" if arguments.delete else "could be removed: say --delete" if found else "to remove"
    print(f"{len(found)} objects, {sum(found.values()):,} bytes {what}")
    return 0


def _finish(problems: list[str], done: str, verdict: str) -> int:
    from jobs.cli import EXIT_VERIFY

    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{done}; {len(problems)} problems" if problems else f"{done}; no problems")
    if problems:
        print(f"msinn: {verdict}: see above", file=sys.stderr)
    return EXIT_VERIFY if problems else 0


def _audit(arguments: argparse.Namespace) -> int:
    from pipeline.audit import query, summary
    from pipeline.commit import Archive
    from pipeline.errors import UsageError

    archive = Archive(arguments.archive)
    if arguments.html is not None:
        return _write_page(archive, arguments)
    if arguments.sql is not None and not arguments.sql.strip():
        raise UsageError("the SQL is empty")
    if arguments.sql is None:
        facts = summary(archive)
        if arguments.json:
            print(json.dumps(facts, default=str))
        else:
            print_summary(facts, archive.seal())
        return 0
    table = query(archive.manifest(), arguments.sql)
    rows = table.to_pylist()
    if arguments.json:
        for row in rows:
            print(json.dumps(row, default=str))
        return 0
    from rich.console import Console
    from rich.table import Table

    shown = Table(*table.column_names)
    for row in rows:
        shown.add_row(*(_cell(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 200).print(shown)
    return 0


def _write_page(archive: Archive, arguments: argparse.Namespace) -> int:
    from pipeline.errors import StorageError, UsageError
    from pipeline.page import page

    if arguments.sql is not None or arguments.json:
        raise UsageError("--html is a report of its own: without SQL and --json")
    text = page(archive)
    try:
        Path(arguments.html).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {arguments.html}: {error.strerror}") from error
    print(f"{arguments.html}: {len(text):,} bytes")
    return 0


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def print_summary(facts: dict[str, Any], sealed: dict[str, Any] | None) -> None:
    """Totals, percentiles, worst images and reasons, as text."""
    totals, marks = facts["totals"], facts["percentiles"]
    print(f"images      {totals['images']:,}: {totals['coded']:,} coded, {totals['passthrough']:,} kept as they are, {totals['failed']:,} failed")
    if sealed is None:
        print("            the archive is unfinished, these are the committed images only: run the same msinn compress to finish it")
    # What the budget bounds, ends of shards included; before the seal only the members are known.
    stored = sealed["counted_bytes"] if sealed else totals["stored_bytes"]
    if stored and totals["pixels"]:
        ratio, bpp = totals["source_bytes"] / stored, 8 * stored / totals["pixels"]
        print(f"bytes       {totals['source_bytes']:,} -> {stored:,} (ratio {ratio:.2f}, {bpp:.4f} bpp)")
    if sealed and sealed.get("budget_bytes"):
        counted, budget = sealed["counted_bytes"], sealed["budget_bytes"]
        print(f"budget      {counted:,} of {budget:,.0f} bytes ({100 * counted / budget - 100:+.3f} %)")
    if totals["coded"]:
        print(f"PSNR        mean {totals['mean_psnr_db']:.2f} dB, pooled {totals['pooled_psnr_db'] or 100:.2f} dB, every image decoded and measured")
        print("            " + "  ".join(f"p{mark} {marks[f'psnr_db_{mark}']:.2f}" for mark in (0, 1, 5, 50, 95, 99, 100)))
        print("bpp         " + "  ".join(f"p{mark} {marks[f'bpp_{mark}']:.3f}" for mark in (0, 1, 5, 50, 95, 99, 100)))
        print(
            "worst       "
            + "\n            ".join(f"{row['psnr_db']:.2f} dB  {row['bpp']:.3f} bpp  {row['key']}  {row['name']}" for row in facts["worst"])
        )
    for row in facts["reasons"]:
        print(f"{row['status']:<12}{row['images']:,} x {row['error_code']}, for example {row['example']}")


def _restore(arguments: argparse.Namespace) -> int:
    from pipeline.restore import restore

    with contextlib.redirect_stdout(sys.stderr):  # as above
        result = restore(arguments.archive, arguments.out, where=arguments.where, overwrite=arguments.overwrite, workers=arguments.workers)
    if not result.images and not result.problems:
        print("no image fulfils the condition" if arguments.where else "the archive holds no image", file=sys.stderr)
    if result.failed_at_source:
        print(f"{result.failed_at_source} images could not be read when the archive was made; nothing is stored of them", file=sys.stderr)
    return _finish(
        result.problems,
        f"{result.images} images and {result.sidecars} sidecars restored to {arguments.out}",
        "not everything came back exactly",
    )


def _get(arguments: argparse.Namespace) -> int:
    from pipeline.errors import UsageError
    from pipeline.restore import get

    name, data, problems = get(arguments.archive, arguments.key, original=arguments.original)
    output = arguments.output or Path(name).name
    if output == "-":
        sys.stdout.buffer.write(data)
    else:
        if arguments.output is None and Path(output).exists():
            raise UsageError(f"{output} exists: name another file with -o")
        try:
            Path(output).write_bytes(data)
        except OSError as error:
            raise UsageError(f"cannot write {output}: {error.strerror}") from error
        kind = " of PNG" if data.startswith(b"\x89PNG") else ""
        print(f"{output}: {len(data):,} bytes{kind}", file=sys.stderr)
    return _finish_quiet(problems)


def _finish_quiet(problems: list[str]) -> int:
    from jobs.cli import EXIT_VERIFY

    for problem in problems:
        print(problem, file=sys.stderr)
    return EXIT_VERIFY if problems else 0


def _inspect(arguments: argparse.Namespace) -> int:
    from msinn_core.bitstream import MAGIC
    from msinn_core.errors import BitstreamError
    from pipeline.errors import SourceError

    path = Path(arguments.file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    if path.suffix == ".safetensors":
        _inspect_model(data)
    elif path.suffix == ".tar" and data[:4] != MAGIC:
        from pipeline.archive import iterate_bytes

        for name, offset, member in iterate_bytes(data):
            print(f"{offset:>12} {len(member):>10}  {name}")
    else:
        try:
            _inspect_bitstream(data)
        except BitstreamError as error:
            raise type(error)(f"{path}: {error}") from error
    return 0


def _inspect_model(data: bytes) -> None:
    from msinn_core.checkpoint import parse_model

    model = parse_model(data)
    parameters = model.num_parameters
    print(f"model      {model.name}, profile {model.profile}, {parameters:,} parameters, {len(data):,} bytes")
    print(f"sha256     {model.sha256}")
    print(f"tables     {len(model.tables.offsets)} scales, {len(model.tables.cdf):,} counts")
    print(f"config     {model.config.to_json()}")


def _inspect_bitstream(data: bytes) -> None:
    from msinn_core import bitstream

    stream = bitstream.parse(data)
    bpp = 8 * len(data) / (stream.width * stream.height)
    print(f"picture    {stream.width} x {stream.height} {stream.colour}, q {stream.q:g}, profile {stream.profile}")
    print(f"size       {len(data):,} bytes, {bpp:.4f} bpp; header and payload CRC32C agree")
    print(f"model      {stream.model_id.hex()} (first half of its SHA-256)")
    for k, name in enumerate(("y5", "y4", "y3", "y2", "y1")):
        anchors, rest = (len(stream.streams[2 * k + i]) for i in (0, 1))
        print(f"{name:<11}{anchors:,} + {rest:,} bytes (anchors + rest)")
    names = {bitstream.ICC: "ICC", bitstream.EXIF: "EXIF", bitstream.XMP: "XMP", bitstream.ALPHA: "alpha"}
    names |= {bitstream.JPEG_SEGMENTS: "JPEG data", bitstream.PNG_CHUNKS: "PNG data"}
    for kind, box in stream.boxes.items():
        print(f"{names[kind]:<11}{len(box):,} bytes")
