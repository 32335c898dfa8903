"""Verbs that read an archive: `status`, `verify`, `audit`, `restore`, `get`, `gc`, `inspect`."""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.arguments import add_executor, executor_of, size
from jobs.output import raw
from pipeline.text import redacted, shown

if TYPE_CHECKING:
    from pipeline.archive.archive import Archive
    from pipeline.archive.commits import Commit
    from pipeline.limits import Limits
    from pipeline.run.report import Reporter


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
    add_executor(p)
    p.add_argument("--sample", type=_share, default=1.0, metavar="1%", help="with --decode: a random share of the images")
    p.add_argument("--workers", type=int, metavar="N")
    _add_limits(p)
    p.set_defaults(command=_verify)

    p = verbs.add_parser("audit", help="quality and size: percentiles, the worst images, or any SQL over the view `manifest`")
    p.add_argument("archive", metavar="DST")
    p.add_argument("sql", nargs="?", metavar="SQL", help='e.g. "SELECT name, psnr_db FROM manifest ORDER BY psnr_db LIMIT 10"')
    shape = p.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="JSON lines instead of a table")
    shape.add_argument("--csv", action="store_true", help="CSV instead of a table")
    p.add_argument("--html", metavar="FILE", help="a page with distributions and the worst images to look at")
    _add_limits(p)
    p.set_defaults(command=_audit)

    p = verbs.add_parser("restore", help="every image back: decoded ones as PNG, the others as they were")
    p.add_argument("archive", metavar="DST")
    p.add_argument("out", metavar="OUT", help="folder or URL; the same command again goes on after an interrupt")
    p.add_argument("--where", metavar="SQL", help='only rows of the manifest that fulfil a condition, e.g. "psnr_db < 32"')
    add_executor(p)
    p.add_argument("--overwrite", action="store_true", help="replace files of other content that are there")
    p.add_argument("--workers", type=int, metavar="N")
    _add_limits(p)
    p.set_defaults(command=_restore)

    p = verbs.add_parser("get", help="one image by key or name, reading only its bytes")
    p.add_argument("archive", metavar="DST")
    p.add_argument("key", metavar="KEY")
    p.add_argument("-o", "--output", metavar="FILE", help="where to write (default: its name, here; - for standard output)")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--original", action="store_true", help="the stored payload itself")
    what.add_argument("--metadata", action="store_true", help="list what the image carries beside its pixels; with -o FOLDER write it there")
    _add_limits(p)
    p.set_defaults(command=_get)

    p = verbs.add_parser("gc", help="what killed attempts left in a sealed archive on which nobody works; nothing is removed without --delete")
    p.add_argument("archive", metavar="DST")
    p.add_argument("--delete", action="store_true", help="remove it")
    p.set_defaults(command=_gc)

    p = verbs.add_parser("inspect", help="what a bitstream, model file or shard is")
    p.add_argument("file", metavar="FILE")
    p.set_defaults(command=_inspect)


def _add_limits(p: argparse.ArgumentParser) -> None:
    p.add_argument("--max-pixels", type=int, default=32_000_000, metavar="N", help="decode no larger picture, whatever the archive says (32000000)")
    p.add_argument("--max-file-bytes", type=size, default=2 * 2**30, metavar="N", help="read no larger file into memory (2Gi)")


def _limits(arguments: argparse.Namespace) -> Limits:
    from pipeline.errors import UsageError
    from pipeline.limits import Limits

    if arguments.max_pixels < 1 or arguments.max_file_bytes < 1:
        raise UsageError("--max-pixels and --max-file-bytes take 1 or more")
    return Limits(max_pixels=arguments.max_pixels, max_file_bytes=int(arguments.max_file_bytes))


def _share(text: str) -> float:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write 1% or 0.01") from error


def _status(arguments: argparse.Namespace) -> int:
    from pipeline.archive.archive import Archive, MissingArchiveError
    from pipeline.store.storage import Store

    try:
        archive = Archive(arguments.archive)
    except MissingArchiveError:
        analysed = Store(arguments.archive).ages("analyse")
        if not analysed:
            raise
        # Nothing binds the place before the plan is known to be feasible.
        begun = {"state": "analysing, or planned only", "shards_analysed": len(analysed), "last_sign_s": round(time.time() - max(analysed.values()))}
        print(json.dumps(begun) if arguments.json else "\n".join(f"{name:<17}{value}" for name, value in begun.items()))
        return 0
    records = archive.commits()
    run = archive.run
    pace = {} if archive.sealed else _pace(archive, records)
    facts = {
        "state": "sealed" if archive.sealed else "unfinished",
        "source": redacted(run["source"]),
        "budget": f"--{run['config']['budget']['kind']} {run['config']['budget']['value']:g}",
        "model": f"{run['model_name']} {run['model_sha256'][:12]}",
        "shards": f"{len(records)} of {run['shards']}",
        "images": f"{sum(r.images for r in records)} of {run['images']}",
        "kept": sum(r.kept for r in records),
        "failed": sum(r.failed for r in records),
        "counted_bytes": sum(r.counted_bytes for r in records),
        **pace,
    }
    if arguments.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        print(f"{name:<15}{value:,}" if isinstance(value, int) else f"{name:<15}{shown(value)}")
    if not archive.sealed:
        print("to finish it, run the same `msinn compress` again")
    return 0


def _pace(archive: Archive, records: list[Commit]) -> dict[str, Any]:
    """What the times of the objects say of a run that is not finished."""
    from pipeline.archive.layout import commit_name

    now = time.time()
    written = archive.store.ages("commits")
    signs = [*written.values(), *archive.store.ages("plan").values(), *archive.store.ages("analyse").values()]
    age = now - max(signs) if signs else None
    times = sorted(written.values())
    images = {commit_name(record.shard_id): record.images for record in records}
    facts: dict[str, Any] = {}
    usual = 0.0
    if len(times) > 1 and times[-1] > times[0]:
        usual = max(b - a for a, b in itertools.pairwise(times))
        since = times[max(0, len(times) - 50)]
        since = since if since < times[-1] else times[0]  # stores that know whole seconds only
        rate = sum(images.get(name, 0) for name, when in written.items() if when > since) / (times[-1] - since)
        facts["images_per_s"] = round(rate, 2)
        left = int(archive.run["images"]) - sum(images.values())
        facts["seconds_left"] = round(left / rate) if rate else None
    if age is not None:
        facts["last_sign_s"] = round(age)
        facts["last_commit_s"] = round(now - times[-1]) if times else None
        running = age < max(600.0, 3 * usual)
        facts["activity"] = (
            f"running, as far as the store can tell (last written {age:.0f} s ago)"
            if running
            else f"stopped, or slow (nothing written for {age:.0f} s)"
        )
    return facts


def _verify(arguments: argparse.Namespace) -> int:
    from pipeline.read import verify
    from pipeline.run.report import reporter_for

    reporter = reporter_for(sys.stderr, quiet=arguments.quiet, verbose=arguments.verbose)
    try:
        return _verified(arguments, verify, reporter)
    finally:
        reporter.close()


def _verified(arguments: argparse.Namespace, verify: Any, reporter: Reporter) -> int:
    from pipeline.archive.archive import Archive

    if arguments.decode:
        with contextlib.redirect_stdout(sys.stderr):  # Ray speaks of lost workers there
            result = verify.decode(
                arguments.archive,
                sample=arguments.sample,
                workers=arguments.workers,
                reporter=reporter,
                limits=_limits(arguments),
                cluster=arguments.cluster,
                executor=executor_of(arguments),
            )
        done = f"{result.images} images and {result.sidecars} sidecars decoded and compared"
    else:
        reporter.phase("verify", int(Archive(arguments.archive).run["images"]))
        result = verify.fixity(arguments.archive, on_shard=lambda record: reporter.advance(images=record.images))
        done = f"{result.images} images checked byte for byte"
    return _finish(result.problems, done, "verification failed")


def _gc(arguments: argparse.Namespace) -> int:
    from pipeline.archive.archive import Archive
    from pipeline.read import gc

    archive = Archive(arguments.archive)
    found = gc.orphans(archive)
    for name, length in sorted(found.items()):
        print(f"{length:>15,}  {archive.store.path(name)}")
    if arguments.delete:
        gc.collect(archive, found)
    what = "removed" if arguments.delete else "could be removed: say --delete" if found else "to remove"
    print(f"{len(found)} objects, {sum(found.values()):,} bytes {what}")
    return 0


def _finish(problems: list[str], done: str, verdict: str) -> int:
    from jobs.cli import EXIT_VERIFY

    for problem in problems:
        print(redacted(shown(problem)), file=sys.stderr)
    print(f"{done}; {len(problems)} problems" if problems else f"{done}; no problems")
    if problems:
        print(f"msinn: {verdict}: see above", file=sys.stderr)
    return EXIT_VERIFY if problems else 0


def _audit(arguments: argparse.Namespace) -> int:
    from pipeline.archive.archive import Archive
    from pipeline.errors import UsageError
    from pipeline.read.audit import query, summary

    archive = Archive(arguments.archive)
    if arguments.html is not None:
        return _write_page(archive, arguments)
    if arguments.csv and arguments.sql is None:
        raise UsageError('--csv is for the rows of a query: give SQL, such as "SELECT * FROM manifest"')
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
    if arguments.csv:
        # Data for a program is written as it is, for a terminal as it can be shown.
        writer = csv.writer(sys.stdout if sys.stdout.isatty() else raw(sys.stdout), lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows([json.dumps(value, default=str) if isinstance(value, list | dict) else value for value in row.values()] for row in rows)
        return 0
    _print_rows(table.column_names, rows)
    return 0


def _print_rows(names: list[str], rows: list[dict[str, Any]]) -> None:
    """A table where it fits, otherwise a block of lines for each row."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=raw(sys.stdout), width=None if sys.stdout.isatty() else 200)
    names = [shown(name) for name in names]
    cells = [[_cell(value) for value in row.values()] for row in rows]
    widest = [max([len(name), *(len(line[i]) for line in cells)]) for i, name in enumerate(names)]
    if sum(widest) + 3 * len(names) + 1 > console.width and len(names) > 1:
        for number, line in enumerate(cells):
            print(f"-[ row {number} ]" + "-" * 20)
            for name, cell in zip(names, line, strict=True):
                print(f"{name:<{max(map(len, names))}}  {cell}")
        return
    rendered = Table()
    for name in names:
        rendered.add_column(Text(name))
    for line in cells:
        rendered.add_row(*map(Text, line))
    console.print(rendered)


def _write_page(archive: Archive, arguments: argparse.Namespace) -> int:
    from pipeline.errors import StorageError, UsageError
    from pipeline.read.page import page
    from pipeline.run.report import reporter_for

    if arguments.sql is not None or arguments.json:
        raise UsageError("--html is a report of its own: without SQL and --json")
    reporter = reporter_for(sys.stderr, quiet=arguments.quiet, verbose=arguments.verbose)
    try:
        text = page(archive, reporter, _limits(arguments))
    finally:
        reporter.close()
    try:
        Path(arguments.html).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {arguments.html}: {error.strerror}") from error
    print(f"{arguments.html}: {len(text):,} bytes")
    return 0


def _db(value: float | None) -> str:
    return "lossless" if value is None else f"{value:.2f} dB"


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else shown(value)


def print_summary(facts: dict[str, Any], sealed: dict[str, Any] | None) -> None:
    """Totals, percentiles, worst images and reasons, as text."""
    totals, marks = facts["totals"], facts["percentiles"]
    print(f"images      {totals['images']:,}: {totals['coded']:,} coded, {totals['kept']:,} kept as they are, {totals['failed']:,} failed")
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
        if totals["mean_psnr_db"] is not None:
            pooled = f", pooled {totals['pooled_psnr_db']:.2f} dB" if totals["pooled_psnr_db"] is not None else ""
            print(
                f"PSNR        mean {totals['mean_psnr_db']:.2f} dB{pooled}, every image decoded and measured (kept files, which lose nothing, aside)"
            )
            print("            " + "  ".join(f"p{mark} {marks[f'psnr_db_{mark}']:.2f}" for mark in (0, 1, 5, 50, 95, 99, 100)))
        print("bpp         " + "  ".join(f"p{mark} {marks[f'bpp_{mark}']:.3f}" for mark in (0, 1, 5, 50, 95, 99, 100)))
        print(
            "worst       "
            + "\n            ".join(
                f"{_db(row['psnr_db'])}  {row['bpp']:.3f} bpp  {shown(row['key'])}  {shown(row['name'])}" for row in facts["worst"]
            )
        )
    for row in facts["reasons"]:
        print(f"{shown(row['status']):<12}{row['images']:,} x {shown(row['error_code'])}, for example {shown(row['example'])}")


def _restore(arguments: argparse.Namespace) -> int:
    from pipeline.read.restore import restore
    from pipeline.run.report import reporter_for

    with contextlib.redirect_stdout(sys.stderr):  # as above
        reporter = reporter_for(sys.stderr, quiet=arguments.quiet, verbose=arguments.verbose)
        try:
            result = restore(
                arguments.archive,
                arguments.out,
                where=arguments.where,
                overwrite=arguments.overwrite,
                workers=arguments.workers,
                reporter=reporter,
                limits=_limits(arguments),
                cluster=arguments.cluster,
                executor=executor_of(arguments),
            )
        finally:
            reporter.close()
    if result.skipped:
        print(f"{result.skipped} images were there already, whole and equal", file=sys.stderr)
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
    from pipeline.formats.images import IMAGE_SUFFIXES
    from pipeline.read.get import get

    if arguments.metadata:
        return _get_metadata(arguments)
    name, data, problems = get(arguments.archive, arguments.key, original=arguments.original, limits=_limits(arguments))
    output = arguments.output or Path(name).name
    if output == "-":
        sys.stdout.buffer.write(data)
    else:
        given, true = (_SAME_FORMAT.get(suffix, suffix) for suffix in (Path(output).suffix.lower(), Path(name).suffix.lower()))
        if given and given != true and true[1:] in IMAGE_SUFFIXES and not arguments.original:
            raise UsageError(f"what comes back is {name}, and {output} is called otherwise: name it {Path(output).with_suffix(Path(name).suffix)}")
        if arguments.output is None and Path(output).exists():
            raise UsageError(f"{output} exists: name another file with -o")
        try:
            Path(output).write_bytes(data)
        except OSError as error:
            raise UsageError(f"cannot write {output}: {error.strerror}") from error
        kind = " of PNG" if data.startswith(b"\x89PNG") else ""
        print(f"{shown(output)}: {len(data):,} bytes{kind}", file=sys.stderr)
    return _finish_quiet(problems)


_SAME_FORMAT = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}


def _get_metadata(arguments: argparse.Namespace) -> int:
    from pipeline.errors import UsageError
    from pipeline.formats.segments import jpeg_segments, png_chunks, segment_name
    from pipeline.read.get import metadata_of

    found = metadata_of(arguments.archive, arguments.key, limits=_limits(arguments))
    for name, data in found.items():
        print(f"{len(data):>10,}  {name}")
        if name == "jpeg-segments.bin":
            for marker, content in jpeg_segments(data):
                print(f"{len(content):>14,}  {shown(segment_name(marker, content))}")
        if name == "png-chunks.bin":
            for kind, content, _ in png_chunks(data):
                print(f"{len(content):>14,}  {shown(kind.decode('latin-1'))}")
    if not found:
        print("the image carries nothing beside its pixels", file=sys.stderr)
    if arguments.output is not None:
        try:
            Path(arguments.output).mkdir(parents=True, exist_ok=True)
            for name, data in found.items():
                Path(arguments.output, name).write_bytes(data)
        except OSError as error:
            raise UsageError(f"cannot write to {arguments.output}: {error.strerror}") from error
    return 0


def _finish_quiet(problems: list[str]) -> int:
    from jobs.cli import EXIT_VERIFY

    for problem in problems:
        print(redacted(shown(problem)), file=sys.stderr)
    return EXIT_VERIFY if problems else 0


def _inspect(arguments: argparse.Namespace) -> int:
    from msinn_core.bitstream import MAGIC
    from msinn_core.errors import BadMagicError, BitstreamError
    from pipeline.errors import SourceError, UsageError

    path = Path(arguments.file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    if path.suffix == ".safetensors":
        _inspect_model(data)
    elif path.suffix == ".tar" and data[:4] != MAGIC:
        from pipeline.archive.shard import iterate_bytes

        for name, offset, member in iterate_bytes(data):
            print(f"{offset:>12} {len(member):>10}  {shown(name)}")
    else:
        try:
            _inspect_bitstream(data)
        except BadMagicError as error:
            raise UsageError(f"{path} is no msinn bitstream, model (.safetensors) or shard (.tar)") from error
        except BitstreamError as error:
            raise type(error)(f"{path}: {error}") from error
    return 0


def _inspect_model(data: bytes) -> None:
    from msinn_core.model_file import parse_model

    model = parse_model(data)
    parameters = model.num_parameters
    print(f"model      {shown(model.name)}, profile {model.profile}, {parameters:,} parameters, {len(data):,} bytes")
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
