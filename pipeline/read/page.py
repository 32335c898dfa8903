"""The audit as one HTML page: what became of the budget, how good the images are, and the worst of them to look at beside their originals.

One file of at most some 15 MB that loads nothing. All of it is there without a script; with its own one the list of the worst can be searched and
sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from pipeline.archive.archive import Archive
from pipeline.archive.row import Row
from pipeline.errors import ManifestError
from pipeline.formats.records import rows_of
from pipeline.forms.family import WITH_LOSS
from pipeline.limits import DEFAULT, Limits
from pipeline.read import page_facts
from pipeline.read.audit import Summary, summary_of
from pipeline.read.originals import Originals
from pipeline.read.page_html import clipped, document, html, join
from pipeline.read.page_images import Worst
from pipeline.read.page_sections import (
    budget_section,
    bytes_by_kind,
    distributions,
    listed,
    rate_section,
    reasons,
    stored_bytes,
    worst_section,
)
from pipeline.run.report import Reporter
from pipeline.text import redacted

LISTED = 300
"""Rows of the list of the worst."""

_SAID = 8
"""Problems that are named; the others are counted."""

_FEWEST_LISTED = 2


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        text: The HTML.
        problems: A sentence for everything that is damaged or missing; all of it, or that it is so, stands on top of the page.
    """

    text: str
    problems: list[str]


def page(archive: Archive, reporter: Reporter | None = None, limits: Limits = DEFAULT, *, source: str | None = None, originals: bool = True) -> Page:
    """The report.

    Args:
        archive: What it is about. Of one whose books are damaged it shows what they still say.
        reporter: Told about progress.
        limits: What is decoded at most.
        source: Where the source is now; see `originals.Originals`.
        originals: Whether source files are looked for at all.

    Raises:
        OutageError: The store cannot be read at the moment.
    """
    found = page_facts.readable(archive)
    problems = list(found.problems)
    sealed = _sealed(archive, problems)
    table = found.table
    is_coded = pc.fill_null(pc.is_in(table.column("codec"), pa.array(WITH_LOSS)), False)
    coded = table.select(["psnr_db", "key", "bpp", "clamp"]).filter(is_coded)
    order = pc.sort_indices(coded, sort_keys=[("psnr_db", "ascending"), ("key", "ascending")])[:LISTED]
    candidates = list(rows_of(Row, table.take(pc.indices_nonzero(is_coded).take(order))))
    searched = Originals(archive, source, limits) if originals else None
    looks = Worst(archive, found.commits, searched, limits).look(candidates, reporter)
    problems += [problem for problem in dict.fromkeys(looks.problems) if problem not in problems]
    if source is not None and reporter is not None and looks.figures and not looks.with_original:
        reporter.warn(f"no original of the worst images is in {source}: the page says of each what was found in its place")
    facts = summary_of(table)
    url = redacted(archive.store.url)
    body = [
        html("<header><h1>{}</h1>{}{}</header>\n<main>", clipped(url), _state(sealed, found.unfinished, problems), _overview(archive, facts, sealed)),
        budget_section(table, facts, sealed),
        distributions(coded, facts, page_facts.config_of(archive)),
        rate_section(archive, facts, sealed),
        bytes_by_kind(table),
        worst_section(candidates, looks, len(coded)),
        listed(candidates, looks, len(coded)),
        reasons(table),
        _more(url),
    ]
    script = len(candidates) >= _FEWEST_LISTED
    return Page(document(f"msinn audit of {clipped(url)}", [part for part in body if part], script=script), problems)


def _sealed(archive: Archive, problems: list[str]) -> dict[str, Any] | None:
    try:
        return archive.seal()
    except ManifestError as error:
        if str(error) not in problems:
            problems.append(str(error))
        return None


def _state(sealed: dict[str, Any] | None, unfinished: str | None, problems: Sequence[str]) -> Markup:
    """What whoever opens the page must know before all else."""
    parts = []
    if problems:
        some = join(html("<li>{}", clipped(problem, 400)) for problem in problems[:_SAID])
        more = html("<li>and {:,} more", len(problems) - _SAID) if len(problems) > _SAID else Markup("")
        parts.append(
            html(
                '<div class="alarm" role="alert"><p><strong class="bad">Damaged: something of this archive is lost.</strong> What follows is '
                "of what is still readable. <code>msinn verify</code> finds everything, <code>msinn restore</code> gives back all that is there.</p>"
                "<ul>{}{}</ul></div>",
                some, more,
            )
        )  # fmt: skip
    if unfinished is not None:
        parts.append(
            html(
                '<div class="alarm" role="alert"><p><strong class="bad">Unfinished: what follows is of the committed images only.</strong> '
                "{}</p></div>",
                unfinished[:1].upper() + unfinished[1:],
            )
        )
    if not parts and sealed is not None:
        parts.append(Markup('<p><span class="good">Sealed</span>, and its books are whole: every shard that they name is there.</p>'))
    return join(parts)


def _overview(archive: Archive, facts: Summary, sealed: dict[str, Any] | None) -> Markup:
    totals = facts.totals
    stored = stored_bytes(facts, sealed)
    lines: list[tuple[str, str]] = [
        ("source", clipped(redacted(archive.run.source))),
        ("asked for", clipped(archive.layers[-1].run.budget, 80)),
        ("model", clipped(archive.run.model, 80)),
        ("images", f"{totals.images:,}: {totals.coded:,} coded, {totals.kept:,} kept to the byte, {totals.failed:,} failed"),
    ]
    if stored:
        bpp = f", {8 * stored / totals.pixels:.3f} bits per pixel" if totals.pixels else ""
        lines.append(("bytes", f"{totals.source_bytes:,} → {stored:,} (ratio {totals.source_bytes / stored:.2f}{bpp})"))
    if totals.mean_psnr_db is not None:
        pooled = f", {totals.pooled_psnr_db:.2f} dB of all pixels together" if totals.pooled_psnr_db is not None else ""
        lines.append(("PSNR", f"{totals.mean_psnr_db:.2f} dB on average{pooled}; of decoded pixels"))
    return html("<dl>{}</dl>", join(html("<dt>{}</dt><dd>{}</dd>", *line) for line in lines))


def _more(url: str) -> Markup:
    sql = '"SELECT name, psnr_db, bpp FROM manifest ORDER BY psnr_db LIMIT 100"'
    return html("</main>\n<footer><h2>More</h2><p><code>msinn audit {} {}</code></p></footer>", clipped(url), sql)
