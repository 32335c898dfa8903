"""The audit as one HTML page: totals, distributions, and the worst images to look at. No scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from msinn_core.errors import CodecError
from pipeline import images
from pipeline.audit import summary
from pipeline.commit import Archive
from pipeline.errors import PipelineError
from pipeline.report import Reporter
from pipeline.restore import COLUMNS, Decoder

WORST = 24
_BINS = 40
_THUMBNAIL = 240
_WIDTH, _HEIGHT = 460, 150

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0}td,th{padding:.15em .9em .15em 0;text-align:left;vertical-align:top}td.n{text-align:right}
figure{display:inline-block;margin:0 1em 1em 0;width:240px;vertical-align:top;font-size:12px}figure img{max-width:240px;max-height:240px}
svg{margin-right:1em}.bad{color:#a00}code{background:#eee;padding:.1em .3em}"""


def page(archive: Archive, reporter: Reporter | None = None) -> str:
    """The report.

    Args:
        archive: What it is about.
        reporter: Told about progress.

    Raises:
        ManifestError: The archive's books are damaged.
    """
    facts = summary(archive)
    totals, sealed = facts["totals"], archive.seal()
    table = archive.manifest(["codec", "psnr_db", "bpp"])
    coded = table.filter(pc.equal(table.column("codec"), "msinn"))
    psnr, bpp = (np.asarray(coded.column(name).combine_chunks().drop_null(), np.float64) for name in ("psnr_db", "bpp"))
    stored = sealed["counted_bytes"] if sealed else totals["stored_bytes"]
    lines: list[tuple[str, str]] = [
        ("state", "sealed" if sealed else "<span class=bad>unfinished: what follows is of the committed images only</span>"),
        ("source", escape(str(archive.run["source"]))),
        ("asked for", escape(f"--{archive.run['config']['budget']['kind']} {archive.run['config']['budget']['value']:g}")),
        ("model", escape(f"{archive.run['model_name']} {archive.run['model_sha256'][:12]}")),
        ("images", f"{totals['images']:,}: {totals['coded']:,} coded, {totals['kept']:,} kept as they are, {totals['failed']:,} failed"),
        ("bytes", f"{totals['source_bytes']:,} → {stored:,}" + (f" (ratio {totals['source_bytes'] / stored:.2f})" if stored else "")),
    ]
    if sealed and sealed.get("budget_bytes"):
        lines.append(("budget", f"{stored:,} of {sealed['budget_bytes']:,.0f} bytes"))
    if totals["coded"]:
        pooled = totals["pooled_psnr_db"]
        mean = totals["mean_psnr_db"]
        text = "nothing lost" if mean is None else f"mean {mean:.2f} dB" + (f", pooled {pooled:.2f} dB" if pooled is not None else "")
        lines.append(("PSNR", text + ", of decoded pixels"))
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{escape(archive.store.url)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(archive.store.url)}</h1>",
        "<table>" + "".join(f"<tr><th>{name}<td>{value}" for name, value in lines) + "</table>",
    ]
    if totals["coded"]:
        parts += ["<h2>Distributions</h2>", _histogram(psnr, "PSNR, dB"), _histogram(bpp, "bits per pixel"), _percentiles(facts["percentiles"])]
        parts += [f"<h2>The worst {min(WORST, totals['coded'])}</h2>", *_worst(archive, reporter)]
    if facts["reasons"]:
        rows = "".join(
            f"<tr><td{' class=bad' if row['status'] == 'failed' else ''}>{escape(row['status'])}<td class=n>{row['images']:,}"
            f"<td>{escape(str(row['error_code']))}<td>{escape(str(row['example']))}"
            for row in facts["reasons"]
        )
        parts.append(f"<h2>Not coded</h2><table><tr><th>status<th>images<th>reason<th>for example{rows}</table>")
    sql = escape('"SELECT name, psnr_db, bpp FROM manifest ORDER BY psnr_db LIMIT 100"')
    parts.append(f"<p>More: <code>msinn audit {escape(archive.store.url)} {sql}</code>")
    return "\n".join(parts) + "\n"


def _histogram(values: NDArray[np.float64], label: str) -> str:
    """Counts over equal bins, as SVG with its range written below."""
    if not len(values):
        return ""
    counts, edges = np.histogram(values, bins=_BINS)
    width = _WIDTH / _BINS
    heights = _HEIGHT * counts / max(1, int(counts.max()))
    bars = "".join(
        f'<rect x="{i * width:.1f}" y="{_HEIGHT - height:.1f}" width="{width - 1:.1f}" height="{height:.1f}" fill="#468">'
        f"<title>{edges[i]:.3g} to {edges[i + 1]:.3g}: {counts[i]:,}</title></rect>"
        for i, height in enumerate(heights)
    )
    texts = f'<text x="0" y="{_HEIGHT + 16}">{edges[0]:.3g}</text><text x="{_WIDTH}" y="{_HEIGHT + 16}" text-anchor="end">{edges[-1]:.3g}</text>'
    middle = f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 16}" text-anchor="middle">{escape(label)}</text>'
    return f'<svg width="{_WIDTH}" height="{_HEIGHT + 22}" font-size="13">{bars}{texts}{middle}</svg>'


def _percentiles(marks: dict[str, Any]) -> str:
    at = (0, 1, 5, 50, 95, 99, 100)
    rows = "".join(
        f"<tr><th>{label}" + "".join(f"<td class=n>{value:{style}}" for value in (marks[f"{name}_{mark}"] for mark in at) if value is not None)
        for label, name, style in (("PSNR, dB", "psnr_db", ".2f"), ("bits per pixel", "bpp", ".3f"))
    )
    return "<table><tr><th>" + "".join(f"<th>p{mark}" for mark in at) + rows + "</table>"


def _db(value: float | None) -> str:
    return "lossless" if value is None else f"{value:.2f} dB"


def _worst(archive: Archive, reporter: Reporter | None) -> list[str]:
    """The images of the lowest PSNR as they decode now, small."""
    table = archive.manifest([*COLUMNS, "status", "psnr_db", "bpp"])
    coded = table.filter(pc.equal(table.column("codec"), "msinn")).sort_by([("psnr_db", "ascending"), ("key", "ascending")])
    torch.set_num_threads(1)  # as when encoding: a float model is the same for the same number of threads only
    decoder = Decoder(archive)
    figures = []
    if reporter is not None:
        reporter.phase("worst", min(WORST, len(coded)))
    for row in coded.slice(0, WORST).to_pylist():
        if reporter is not None:
            reporter.advance(images=1)
        try:
            payload = archive.store.read_range(row["shard_key"], row["offset"], row["length"])
            picture, problem = decoder.picture(row, payload)
            small = images.to_image(picture).convert("RGB")
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            out = io.BytesIO()
            small.save(out, "PNG")
            shown = f'<img src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}" alt="">'
            shown += f"<p class=bad>{escape(problem)}" if problem else ""
        except (PipelineError, CodecError, FileNotFoundError) as error:
            shown = f"<p class=bad>{escape(str(error))}"
        figures.append(
            f"<figure>{shown}<figcaption>{_db(row['psnr_db'])}, {row['bpp']:.3f} bpp<br>"
            f"{escape(row['key'])} {escape(row['name'])}</figcaption></figure>"
        )
    return figures
