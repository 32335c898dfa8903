"""The sections of the page, each from what is known of the archive: budget, distributions, rate and distortion, bytes, the worst, reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.archive.archive import Archive
from pipeline.archive.row import Row
from pipeline.plan.config import CompressConfig
from pipeline.read import page_charts as charts
from pipeline.read import page_facts
from pipeline.read.audit import Summary
from pipeline.read.page_html import clipped, counted, html, join, measured, size, sortable
from pipeline.read.page_images import SHOWN, Looks, decibels

_BOUNDS = (("floor", "A floor"), ("cap", "A cap, or the best rate that there is,"))


def stored_bytes(facts: Summary, sealed: dict[str, Any] | None) -> int:
    """What the budget bounds, ends of shards included; before the seal only the members are known."""
    return int(sealed["counted_bytes"]) if sealed else facts.totals.stored_bytes


def budget_section(table: pa.Table, facts: Summary, sealed: dict[str, Any] | None) -> Markup:
    """What became of the budget, as a bar divided by forms; nothing where nothing is stored."""
    stored = stored_bytes(facts, sealed)
    if not stored:
        return Markup("")
    budget = sealed.get("budget_bytes") if sealed else None
    forms = page_facts.kinds(table, "form")
    parts: list[tuple[str, float]] = [(clipped(form.name, 40), float(form.stored_bytes)) for form in forms[:3]]
    if others := sum(form.stored_bytes for form in forms[3:]):
        parts.append(("other forms", float(others)))
    if (rest := stored - sum(value for _, value in parts)) > 0:
        parts.append(("ends of shards and counted sidecars", float(rest)))
    if budget:
        share = 100 * stored / budget
        what = html(
            '<p><strong class="{}">{:.2f} %</strong> of the budget: {:,} of {:,.0f} bytes.</p>',
            "good" if share <= 100 else "bad",
            share,
            stored,
            budget,
        )
    elif sealed:
        what = html("<p>{:,} bytes; no budget of bytes was set.</p>", stored)
    else:
        what = html("<p>{:,} bytes so far; whether they keep the budget is known at the end.</p>", stored)
    entries = [(f"{name}, {size(value)}", colour) for (name, value), colour in zip(parts, charts.COLOURS, strict=False)]
    return html("<section><h2>Budget</h2>{}{}{}</section>", what, charts.bar(parts, budget), charts.legend(entries))


def _values(table: pa.Table, name: str) -> NDArray[np.float64]:
    return np.asarray(table.column(name).combine_chunks().drop_null(), np.float64)


def distributions(coded: pa.Table, facts: Summary, config: CompressConfig | None) -> Markup:
    """PSNR in dB and bits per pixel of the coded images, with floors and caps, and their percentiles.

    Args:
        coded: Their `psnr_db`, `bpp` and `clamp`.
        facts: Of all images.
        config: What the run was asked for, where that can be read.
    """
    if not len(coded):
        return Markup("")
    marks: dict[str, list[tuple[float, str]]] = {"psnr_db": [], "bpp": []}
    if config is not None:
        wanted = (("psnr_db", config.min_psnr_db, "floor"), ("psnr_db", config.max_psnr_db, "cap"), ("bpp", config.min_bpp, "floor"),
                  ("bpp", config.max_bpp, "cap"))  # fmt: skip
        for column, value, name in wanted:
            if value is not None and math.isfinite(value):
                marks[column].append((value, f"{name} {value:g}"))
        if config.budget.kind == "psnr":
            marks["psnr_db"].append((config.budget.value, f"asked for {config.budget.value:g}"))
    psnr, bpp = _values(coded, "psnr_db"), _values(coded, "bpp")
    notes = [f"{counted(len(coded) - len(psnr))} lost nothing by being coded: without a PSNR."] if len(psnr) < len(coded) else []
    clamps = {each["values"]: each["counts"] for each in coded.column("clamp").value_counts().to_pylist()}
    notes += [f"{what} decided the rate of {counted(clamps[name])}." for name, what in _BOUNDS if clamps.get(name)]
    if config is not None and config.preferences_sha256 is not None:
        notes.append("Single images had floors, caps or weights of their own (--per-image), which are not drawn.")
    drawn = charts.histogram(psnr, "PSNR", "dB", marks["psnr_db"]) + charts.histogram(bpp, "bits per pixel", "bpp", marks["bpp"])
    said = join(html('<p class="small soft">{}</p>', note) for note in notes)
    return html('<section><h2>Distributions</h2><div class="charts">{}</div>{}{}</section>', drawn, said, _percentiles(facts.percentiles))


def _percentiles(marks: dict[str, float | None]) -> Markup:
    at = (0, 1, 5, 50, 95, 99, 100)
    rows = join(
        html(
            "<tr><th scope=row>{}</th>{}</tr>",
            label,
            join(
                html('<td class="{}">{}</td>', _column(mark), "-" if (value := marks[f"{name}_{mark}"]) is None else f"{value:{style}}")
                for mark in at
            ),
        )
        for label, name, style in (("PSNR, dB", "psnr_db", ".2f"), ("bits per pixel", "bpp", ".3f"))
    )
    heads = join(html('<th scope=col class="{}">p{}</th>', _column(mark), mark) for mark in at)
    caption = "<p class=small><span class=soft>p1: 1 % of the coded images lie below</span></p>"
    return html('<div class="wide"><table><thead><tr><th></th>{}</tr></thead><tbody>{}</tbody></table></div>{}', heads, rows, Markup(caption))


def _column(mark: int) -> str:
    return "n more" if mark in (5, 95) else "n"


def rate_section(archive: Archive, facts: Summary, sealed: dict[str, Any] | None) -> Markup:
    """What other budgets would have bought, and where the archive lies; or why that is not known."""
    totals, stored = facts.totals, stored_bytes(facts, sealed)
    if not totals.pixels or not stored:
        return Markup("")
    curve = page_facts.curve(archive)
    if isinstance(curve, str):
        drawn = html("<p>No curve of rate and distortion: {}.</p>", clipped(curve))
    else:
        points = (("pooled", totals.pooled_psnr_db), ("mean", totals.mean_psnr_db), ("p1", facts.percentiles["psnr_db_1"]))
        chosen = [(name, value) for name, value in points if value is not None]
        of = f"a sample of {counted(curve.images)}, of {curve.of_shards:,} of {curve.shards:,} shards" if curve.of_shards else counted(curve.images)
        if curve.generations is not None:
            those = ", ".join(map(str, curve.generations[:20]))
            of += f", of generation{'s' if len(curve.generations) > 1 else ''} {those} alone: of the others no analysis is stored"
        drawn = charts.curves(curve.points, 8 * stored / totals.pixels, chosen)
        drawn += html(
            '<p class="small soft">Lines: what budgets buy, as the stored analysis predicts it from {}. Points: what the archive has, measured on '
            "decoded pixels.{}</p>",
            of, " Wishes for single images (--per-image) are not in the lines." if curve.without_wishes else "",
        )  # fmt: skip
    return html('<section><h2>What other budgets buy</h2><div class="charts">{}</div></section>', html("<div>{}</div>", drawn))


def bytes_by_kind(table: pa.Table) -> Markup:
    """Images and bytes by form and by the format of the source."""
    if not len(table):
        return Markup("")
    tables = []
    for column, title in (("form", "Form"), ("source_format", "Format")):
        kinds = page_facts.kinds(table, column)
        whole = max(sum(kind.stored_bytes for kind in kinds), 1)
        rows = join(
            html(
                '<tr><td>{}</td><td class="n">{:,}</td><td class="n more">{}</td><td class="n">{}</td><td class="n">{}</td>'
                '<td class="n">{:.1f} %</td></tr>',
                clipped(kind.name, 40), kind.images, size(kind.source_bytes), size(kind.stored_bytes),
                f"{kind.source_bytes / kind.stored_bytes:.2f}" if kind.stored_bytes else "-", 100 * kind.stored_bytes / whole,
            )
            for kind in kinds
        )  # fmt: skip
        heads = "".join(
            f'<th scope=col class="{"n more" if name == "files" else "n"}">{name}</th>' for name in ("images", "files", "stored", "ratio", "share")
        )
        tables.append(
            html('<div class="wide"><table><thead><tr><th scope=col>{}{}</tr></thead><tbody>{}</tbody></table></div>', title, Markup(heads), rows)
        )
    return html('<section><h2>Bytes by form and format</h2><div class="charts">{}</div></section>', join(tables))


def worst_section(candidates: Sequence[Row], looks: Looks, coded: int) -> Markup:
    """The worst images as they were looked at.

    Args:
        candidates: The worst first.
        looks: What was seen of them.
        coded: How many coded images there are.
    """
    if not looks.figures:
        return Markup("")
    said = [f"The {len(looks.figures):,} lowest PSNR of {coded:,} coded images" if len(looks.figures) > 1 else "The lowest PSNR"]
    if looks.alike:
        copies = (
            "1 near-copy of these is left out here and stands"
            if looks.alike == 1
            else f"{looks.alike:,} near-copies of these are left out here and stand"
        )
        said.append(f"{copies} in the list below")
    if len(looks.figures) < min(SHOWN, len(candidates) - looks.alike):
        said.append(f"{looks.looked:,} were looked at, and no more")
    alone = len(looks.figures) - looks.with_original
    said.append(
        "each at 1:1, in the region of 256 x 256 pixels that lost most" if not alone
        else f"{alone:,} of them without an original, so that their middle is shown" if looks.with_original
        else "without originals, so that their middle is shown"
    )  # fmt: skip
    return html("<section><h2>The worst to look at</h2><p>{}.</p>{}</section>", "; ".join(said), join(looks.figures))


def listed(candidates: Sequence[Row], looks: Looks, coded: int) -> Markup:
    """The list of the worst, which a script may search and sort; those that are shown have a link to there."""
    if not candidates:
        return Markup("")
    rows = join(
        html(
            '<tr><td class="n" data-v="{0}">{0}</td><td class="n" data-v="{1}">{2}</td><td class="n" data-v="{3}">{4}</td>'
            '<td class="n more" data-v="{5}">{6}</td><td class="n more" data-v="{7}">{8}</td><td class="more">{9}</td>'
            '<td class="name">{10}</td></tr>',
            number + 1, sortable(row.psnr_db, 999.0), decibels(row).removesuffix(" dB"), sortable(row.bpp), measured(row.bpp, 3),
            (row.width or 0) * (row.height or 0), f"{row.width} x {row.height}" if row.width and row.height else "?", sortable(row.q),
            measured(row.q, 2), "" if row.clamp == "none" else clipped(row.clamp or "", 20),
            html('<a href="#worst-{}">{}</a>', looks.shown[number], clipped(row.name)) if number in looks.shown else clipped(row.name),
        )
        for number, row in enumerate(candidates)
    )  # fmt: skip
    heads = (
        '<th scope=col class=n>#</th><th scope=col class=n>PSNR, dB</th><th scope=col class=n>bpp</th><th scope=col class="n more">pixels</th>'
        '<th scope=col class="n more">q</th><th scope=col class=more>bound by</th><th scope=col>name</th>'
    )
    tools = (
        '<div id="tools" hidden><label>Search names and values<br><input id="search" type="search" autocomplete="off"></label> '
        '<p id="count" class="small soft" role="status"></p></div>'
    )
    title = f"The worst {len(candidates):,} of {coded:,}" if len(candidates) < coded else f"All {coded:,} coded images, the worst first"
    return html(
        '<section><h2>{}</h2>{}<div class="wide"><table id="worst"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div></section>',
        title, Markup(tools), Markup(heads), rows,
    )  # fmt: skip


def reasons(table: pa.Table) -> Markup:
    """What is not coded, by reason, with a few examples of each."""
    causes, more = page_facts.causes(table)
    if not causes:
        return Markup("")
    parts = []
    for cause in causes:
        examples = join(
            html('<li>{}{}</li>', clipped(name), html(' <span class="soft">{}</span>', clipped(error)) if error else Markup(""))
            for name, error in cause.examples
        )  # fmt: skip
        rest = cause.images - len(cause.examples)
        examples += html('<li class="soft">and {:,} more</li>', rest) if rest > 0 else Markup("")
        grade = "bad" if cause.status == "failed" else "soft"
        parts.append(
            html(
                '<h3><span class="{}">{}</span>: {}, {}</h3><ul>{}</ul>',
                grade, clipped(cause.status, 20), clipped(cause.reason, 60), counted(cause.images), examples,
            )
        )  # fmt: skip
    if more:
        parts.append(html("<p>and {:,} further reasons</p>", more))
    about = "<p>Failed: something of it is missing. Kept: the file itself lies in the archive, to the byte.</p>"
    return html("<section><h2>Not coded</h2>{}{}</section>", Markup(about), join(parts))
