"""`msinn audit`: what an archive holds: a summary, SQL over the manifest, a page."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.arguments import add_generation, add_limits, add_storage, limits_of
from jobs.exits import EXIT_VERIFY
from jobs.output import raw
from pipeline.text import shown

if TYPE_CHECKING:
    from pipeline.archive.archive import Archive
    from pipeline.read.audit import Summary


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("audit", help="quality and size: percentiles, the worst images, or any SQL over the view `manifest`")
    p.add_argument("archive", metavar="DST")
    add_storage(p)
    p.add_argument("sql", nargs="?", metavar="SQL", help='e.g. "SELECT name, psnr_db FROM manifest ORDER BY psnr_db LIMIT 10"')
    shape = p.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="JSON lines instead of a table")
    shape.add_argument("--csv", action="store_true", help="CSV instead of a table")
    p.add_argument("--html", metavar="FILE", help="a page to look at: budget, distributions, the worst images beside their originals")
    where = p.add_mutually_exclusive_group()
    where.add_argument("--source", metavar="SRC", help="with --html: where the originals are now (default: where they were, if on this machine)")
    where.add_argument("--no-originals", action="store_true", help="with --html: open no source files")
    add_generation(p)
    add_limits(p)
    p.set_defaults(command=_audit)


def _audit(arguments: argparse.Namespace) -> int:
    from pipeline.archive.archive import Archive
    from pipeline.errors import UsageError
    from pipeline.read.audit import query, summary

    archive = Archive(arguments.archive, arguments.generation)
    if arguments.html is not None:
        return _write_page(archive, arguments)
    if arguments.source is not None or arguments.no_originals:
        raise UsageError("--source and --no-originals are for the page: say --html FILE")
    if arguments.csv and arguments.sql is None:
        raise UsageError('--csv is for the rows of a query: give SQL, such as "SELECT * FROM manifest"')
    if arguments.sql is not None and not arguments.sql.strip():
        raise UsageError("the SQL is empty")
    if arguments.sql is None:
        facts = summary(archive)
        if arguments.json:
            print(json.dumps(dataclasses.asdict(facts), default=str))
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

    if arguments.sql is not None or arguments.json or arguments.csv:
        raise UsageError("--html is a report of its own: without SQL, --json and --csv")
    reporter = reporter_for(sys.stderr, quiet=arguments.quiet, verbose=arguments.verbose)
    try:
        made = page(archive, reporter, limits_of(arguments), source=arguments.source, originals=not arguments.no_originals)
    finally:
        reporter.close()
    data = made.text.encode("utf-8")
    try:
        Path(arguments.html).write_bytes(data)
    except OSError as error:
        raise StorageError(f"cannot write {arguments.html}: {error.strerror}") from error
    print(f"{arguments.html}: {len(data):,} bytes")
    if made.problems:
        more = f"; and {len(made.problems) - 1:,} more, see the top of the page" if len(made.problems) > 1 else ""
        print(f"the archive is damaged: {shown(made.problems[0])[:600]}{more}", file=sys.stderr)
        return EXIT_VERIFY
    return 0


def _db(value: float | None) -> str:
    return "lossless" if value is None else f"{value:.2f} dB"


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else shown(value)


def print_summary(facts: Summary, sealed: dict[str, Any] | None) -> None:
    """Totals, percentiles, worst images and reasons, as text."""
    totals, marks = facts.totals, facts.percentiles
    print(f"images      {totals.images:,}: {totals.coded:,} coded, {totals.kept:,} kept to the byte, {totals.failed:,} failed")
    if sealed is None:
        print("            the archive is unfinished, these are the committed images only: run the same msinn compress to finish it")
    # What the budget bounds, ends of shards included; before the seal only the members are known.
    stored = sealed["counted_bytes"] if sealed else totals.stored_bytes
    if stored and totals.pixels:
        ratio, bpp = totals.source_bytes / stored, 8 * stored / totals.pixels
        print(f"bytes       {totals.source_bytes:,} -> {stored:,} (ratio {ratio:.2f}, {bpp:.4f} bpp)")
    if sealed and sealed.get("budget_bytes"):
        counted, budget = sealed["counted_bytes"], sealed["budget_bytes"]
        print(f"budget      {counted:,} of {budget:,.0f} bytes ({100 * counted / budget - 100:+.3f} %)")
    for of in facts.forms:
        print(f"{'form':<12}{shown(of.form)}, exact: {shown(of.exact)}: {of.images:,} images, {of.source_bytes:,} -> {of.stored_bytes:,} bytes")
    if any(of.exact == "no" for of in facts.forms):
        if totals.mean_psnr_db is not None:
            pooled = f", pooled {totals.pooled_psnr_db:.2f} dB" if totals.pooled_psnr_db is not None else ""
            print(f"PSNR        mean {totals.mean_psnr_db:.2f} dB{pooled}, every image decoded and measured (kept files, which lose nothing, aside)")
            print("            " + "  ".join(f"p{mark} {marks[f'psnr_db_{mark}']:.2f}" for mark in (0, 1, 5, 50, 95, 99, 100)))
        print("bpp         " + "  ".join(f"p{mark} {marks[f'bpp_{mark}']:.3f}" for mark in (0, 1, 5, 50, 95, 99, 100)))
        print(
            "worst       "
            + "\n            ".join(f"{_db(row.psnr_db)}  {row.bpp:.3f} bpp  {shown(row.key)}  {shown(row.name)}" for row in facts.worst)
        )
    for row in facts.reasons:
        print(f"{shown(row.status):<12}{row.images:,} x {shown(row.error_code)}, for example {shown(row.example)}")
