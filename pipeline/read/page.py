"""The audit as one HTML page: totals, distributions, and the worst images to look at. No scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.archive.archive import Archive
from pipeline.archive.row import Row
from pipeline.formats import images
from pipeline.formats.records import columns, rows_of
from pipeline.limits import DEFAULT, Limits
from pipeline.read.audit import summary
from pipeline.read.decoder import Decoder, read_part
from pipeline.read.rows import COLUMNS
from pipeline.run.report import Reporter
from pipeline.text import redacted, shown

WORST = 24
_BINS = 40
_THUMBNAIL = 240
_WIDTH, _HEIGHT = 460, 150

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0}td,th{padding:.15em .9em .15em 0;text-align:left;vertical-align:top}td.n{text-align:right}
figure{display:inline-block;margin:0 1em 1em 0;width:240px;vertical-align:top;font-size:12px}figure img{max-width:240px;max-height:240px}
svg{margin-right:1em}.bad{color:#a00}code{background:#eee;padding:.1em .3em}"""


def page(archive: Archive, reporter: Reporter | None = None, limits: Limits = DEFAULT) -> str:
    """The report.

    Args:
        archive: What it is about.
        reporter: Told about progress.
        limits: What is decoded at most.

    Raises:
        ManifestError: The archive's books are damaged.
    """
    facts = summary(archive)
    totals, sealed = facts.totals, archive.seal()
    table = archive.manifest(columns(Row, "codec", "psnr_db", "bpp"))
    coded = table.filter(pc.equal(table.column("codec"), "msinn"))
    psnr, bpp = (np.asarray(coded.column(name).combine_chunks().drop_null(), np.float64) for name in ("psnr_db", "bpp"))
    stored = sealed["counted_bytes"] if sealed else totals.stored_bytes
    bad = _html("<span class=bad>unfinished: what follows is of the committed images only</span>")
    lines: list[tuple[str, str]] = [
        ("state", "sealed" if sealed else bad),
        ("source", redacted(archive.run.source)),
        ("asked for", archive.run.budget),
        ("model", f"{archive.run.model_name} {archive.run.model_sha256[:12]}"),
        ("images", f"{totals.images:,}: {totals.coded:,} coded, {totals.kept:,} kept as they are, {totals.failed:,} failed"),
        ("bytes", f"{totals.source_bytes:,} → {stored:,}" + (f" (ratio {totals.source_bytes / stored:.2f})" if stored else "")),
    ]
    if sealed and sealed.get("budget_bytes"):
        lines.append(("budget", f"{stored:,} of {sealed['budget_bytes']:,.0f} bytes"))
    if totals.coded:
        pooled = totals.pooled_psnr_db
        mean = totals.mean_psnr_db
        text = "nothing lost" if mean is None else f"mean {mean:.2f} dB" + (f", pooled {pooled:.2f} dB" if pooled is not None else "")
        lines.append(("PSNR", text + ", of decoded pixels"))
    url = redacted(archive.store.url)
    parts = [
        _html("<!doctype html><meta charset=utf-8><title>{}</title><style>{}</style>", url, Markup(_STYLE)),
        _html("<h1>{}</h1>", url),
        _html("<table>{}</table>", _join(_html("<tr><th>{}<td>{}", name, value) for name, value in lines)),
    ]
    if totals.coded:
        parts += [
            _html("<h2>Distributions</h2>"),
            _histogram(psnr, "PSNR, dB"),
            _histogram(bpp, "bits per pixel"),
            _percentiles(facts.percentiles),
            _html("<h2>The worst {}</h2>", min(WORST, totals.coded)),
            *_worst(archive, reporter, limits),
        ]
    if facts.reasons:
        rows = _join(
            _html(
                "<tr><td class={}>{}<td class=n>{}<td>{}<td>{}",
                "bad" if row.status == "failed" else "good", row.status, f"{row.images:,}", row.error_code, row.example,
            )
            for row in facts.reasons
        )  # fmt: skip
        parts.append(_html("<h2>Not coded</h2><table><tr><th>status<th>images<th>reason<th>for example{}</table>", rows))
    sql = '"SELECT name, psnr_db, bpp FROM manifest ORDER BY psnr_db LIMIT 100"'
    parts.append(_html("<p>More: <code>msinn audit {} {}</code>", url, sql))
    return "\n".join(parts) + "\n"


def _html(template: str, *values: object) -> Markup:
    """A template of ours with values from anywhere: each is escaped unless it is `Markup` already, and shows no control characters."""
    return Markup(template).format(*(value if isinstance(value, Markup) else shown(value) for value in values))


def _join(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def _histogram(values: NDArray[np.float64], label: str) -> Markup:
    """Counts over equal bins, as SVG with its range written below."""
    if not len(values):
        return Markup("")
    counts, edges = np.histogram(values, bins=_BINS)
    width = _WIDTH / _BINS
    heights = _HEIGHT * counts / max(1, int(counts.max()))
    bars = _join(
        _html(
            '<rect x="{}" y="{}" width="{}" height="{}" fill="#468"><title>{} to {}: {}</title></rect>',
            *(f"{value:.1f}" for value in (i * width, _HEIGHT - height, width - 1, height)),
            f"{edges[i]:.3g}", f"{edges[i + 1]:.3g}", f"{counts[i]:,}",
        )
        for i, height in enumerate(heights)
    )  # fmt: skip
    texts = _html(
        '<text x="0" y="{0}">{2}</text><text x="{1}" y="{0}" text-anchor="end">{3}</text>',
        _HEIGHT + 16,
        _WIDTH,
        *(f"{edges[i]:.3g}" for i in (0, -1)),
    )
    middle = _html('<text x="{}" y="{}" text-anchor="middle">{}</text>', _WIDTH / 2, _HEIGHT + 16, label)
    return _html('<svg width="{}" height="{}" font-size="13">{}{}{}</svg>', _WIDTH, _HEIGHT + 22, bars, texts, middle)


def _percentiles(marks: dict[str, float | None]) -> Markup:
    at = (0, 1, 5, 50, 95, 99, 100)
    rows = _join(
        _html(
            "<tr><th>{}{}", label, _join(_html("<td class=n>{}", f"{value:{style}}") for mark in at if (value := marks[f"{name}_{mark}"]) is not None)
        )
        for label, name, style in (("PSNR, dB", "psnr_db", ".2f"), ("bits per pixel", "bpp", ".3f"))
    )
    return _html("<table><tr><th>{}{}</table>", _join(_html("<th>p{}", mark) for mark in at), rows)


def _db(value: float | None) -> str:
    return "lossless" if value is None else f"{value:.2f} dB"


def _worst(archive: Archive, reporter: Reporter | None, limits: Limits) -> list[Markup]:
    """The images of the lowest PSNR as they decode now, small."""
    table = archive.manifest([*COLUMNS, *columns(Row, "psnr_db", "bpp")])
    coded = table.filter(pc.equal(table.column("codec"), "msinn")).sort_by([("psnr_db", "ascending"), ("key", "ascending")])
    decoder = Decoder(archive, limits)
    figures = []
    if reporter is not None:
        reporter.phase("worst", min(WORST, len(coded)))
    for row in rows_of(Row, coded.slice(0, WORST)):
        if reporter is not None:
            reporter.advance(images=1)
        try:
            payload = read_part(archive, row, row.offset, row.length, limits)
            picture, problem = decoder.picture(row, payload)
            small = images.to_image(picture).convert("RGB")
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            out = io.BytesIO()
            small.save(out, "PNG")
            image = _html('<img src="data:image/png;base64,{}" alt="">', base64.b64encode(out.getvalue()).decode())
            image += _html("<p class=bad>{}", problem) if problem else Markup("")
        except Exception as error:  # whatever one image does, the page shows the others
            image = _html("<p class=bad>{}", error)
        caption = (_db(row.psnr_db), "?" if row.bpp is None else f"{row.bpp:.3f}", row.key, row.name)
        figures.append(_html("<figure>{}<figcaption>{}, {} bpp<br>{} {}</figcaption></figure>", image, *caption))
    return figures
