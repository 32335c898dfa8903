"""The page's charts, as SVG that needs no script: histograms with a count axis, a bar against a budget, curves of rate and distortion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.plan.outlook import Outlook
from pipeline.read.page_html import html, join

Array = NDArray[np.float64]

_WIDTH, _HEIGHT = 460, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 22, 40
_BINS = 40
_LARGEST = 1e6
"""Of values that are drawn. Whoever wrote a manifest may have put anything there."""

_FENCE = 3.0
"""An axis reaches this many times the distance of the quartiles beyond them: of a bell 1 value in 500,000 lies outside."""

COLOURS = "abcde"


@dataclass(frozen=True)
class Axis:
    """The part of a distribution that is drawn.

    Attributes:
        low: Least value on the axis; `high`: largest; in the unit of the values.
        below: Values that lie under it; `above`: over it.
    """

    low: float
    high: float
    below: int
    above: int


def axis_of(values: Array, marks: Sequence[float] = ()) -> Axis:
    """An axis on which a few outliers do not push all others into one bar.

    Args:
        values: `[N]`, finite, at least one.
        marks: Places that should be on it too, where they are not far from the values.
    """
    first, third = np.percentile(values, (25, 75))
    spread = _FENCE * (third - first)
    low, high = float(max(values.min(), first - spread)), float(min(values.max(), third + spread))
    if high <= low:  # more than half of them are equal
        low, high = (float(value) for value in np.percentile(values, (5, 95)))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    below, above = int((values < low).sum()), int((values > high).sum())
    near = [mark for mark in marks if low - (high - low) <= mark <= high + (high - low)]
    low, high = min([low, *near]), max([high, *near])
    if high <= low:  # all of them are
        low, high = low - 0.5, high + 0.5
    return Axis(low, high, below, above)


def ticks(low: float, high: float, wanted: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, about as many as wanted; `whole` numbers alone for counts.

    >>> ticks(0, 17, 4, whole=True)
    [0.0, 5.0, 10.0, 15.0]
    """
    rough = max((high - low) / max(wanted, 1), 1e-12)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= rough * 0.99), 10 * power)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, math.floor(high / step + 1e-9) + 1)]


def histogram(given: Array, label: str, unit: str, marks: Sequence[tuple[float, str]] = ()) -> Markup:
    """How many images have which value, with a count axis.

    Args:
        given: `[N]`; what is no number is left out.
        label: Of what: `PSNR`.
        unit: Of the values: `dB`.
        marks: Floors and the like, each with its name.
    """
    values = given[np.isfinite(given) & (np.abs(given) <= _LARGEST)]
    if not len(values):
        return Markup("")
    axis = axis_of(values, [place for place, _ in marks])
    inside = values[(values >= axis.low) & (values <= axis.high)]
    counts, edges = np.histogram(inside, bins=int(np.clip(2 * math.sqrt(len(inside)), 8, _BINS)), range=(axis.low, axis.high))
    most = int(counts.max())
    scale = _Scale(axis.low, axis.high, 0, max(most, 1) * 1.02)
    digits = max(0, 2 - math.floor(math.log10(max(edges[1] - edges[0], 1e-6)))) if edges[1] - edges[0] < 10 else 0
    bars = join(
        html(
            '<rect class="a" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{:.{}f} to {:.{}f} {}: {:,}</title></rect>',
            scale.x(edges[i]), scale.y(count), max(1.0, scale.x(edges[i + 1]) - scale.x(edges[i]) - 1),
            scale.y(0) - scale.y(count), edges[i], digits, edges[i + 1], digits, unit, count,
        )
        for i, count in enumerate(counts.tolist())
        if count
    )  # fmt: skip
    lines = join(_mark(scale, place, name) for place, name in marks if axis.low <= place <= axis.high)
    off = [f"{name} lies outside the axis" for place, name in marks if not axis.low <= place <= axis.high]
    note = "; ".join(filter(None, [_outside(values, axis, unit), *off]))
    summary = (
        f"Histogram of {label}: {len(values):,} images, from {values.min():.4g} to {values.max():.4g} {unit}, half below {np.median(values):.4g}"
    )
    body = _grid(scale, ticks(axis.low, axis.high, 6), ticks(0, most, 4, whole=True)) + bars + lines
    return _figure(body, f"{label}, {unit}", "images", summary, note)


def _outside(values: Array, axis: Axis, unit: str) -> str:
    if not axis.below + axis.above:
        return ""
    parts = [f"{axis.below:,} below, from {values.min():.4g} {unit}"] if axis.below else []
    parts += [f"{axis.above:,} above, up to {values.max():.4g} {unit}"] if axis.above else []
    count = axis.below + axis.above
    return f"{count:,} of {len(values):,} {'lies' if count == 1 else 'lie'} outside the axis: {'; '.join(parts)}"


def curves(points: Sequence[Outlook], chosen_bpp: float, chosen: Sequence[tuple[str, float]]) -> Markup:
    """What other budgets would have bought, and what this one did.

    Args:
        points: Of the analysis, rising in bytes.
        chosen_bpp: Bits per pixel of the archive as stored, above 0.
        chosen: Measured PSNR in dB of `pooled`, `mean` and `p1`, where they are known.
    """
    sane = [point for point in points if 0 < point.bpp < _LARGEST and abs(point.p1_psnr_db) + abs(point.pooled_psnr_db) < _LARGEST]
    if len(sane) < 2 or not 0 < chosen_bpp < _LARGEST:
        return Markup("")
    # Beyond what anybody sees, where originals lie, decibels rise to the sky: the axis ends some way above the choice.
    top = max([value for _, value in chosen] + [40.0]) + 10
    values = [value for point in sane for value in (point.pooled_psnr_db, point.mean_psnr_db, point.p1_psnr_db) if value <= top]
    values += [value for _, value in chosen]
    if not values:
        return Markup("")
    low, high = min(sane[0].bpp, chosen_bpp), max(sane[-1].bpp, chosen_bpp)
    scale = _Scale(math.log10(low) - 0.02, math.log10(high) + 0.02, min(values) - 1, max(values) + 1)
    names = (("pooled_psnr_db", "all pixels together", "a"), ("mean_psnr_db", "mean of images", "b"), ("p1_psnr_db", "1 % of images lie below", "c"))
    lines = join(
        html(
            '<polyline class="{}" points="{}"/>',
            colour, " ".join(f"{scale.x(math.log10(point.bpp)) - _LEFT:.1f},{scale.y(getattr(point, name)) - _TOP:.1f}" for point in sane),
        )
        for name, _, colour in names
    )  # fmt: skip
    colours = {"pooled": "a", "mean": "b", "p1": "c"}
    x = scale.x(math.log10(chosen_bpp))
    dots = join(
        html(
            '<circle class="point {}" cx="{:.1f}" cy="{:.1f}" r="5"><title>chosen: {:.3f} bits per pixel, {} {:.2f} dB</title></circle>',
            colours[name], x, scale.y(value), chosen_bpp, name, value,
        )
        for name, value in chosen
    )  # fmt: skip
    inner = html('<svg x="{}" y="{}" width="{}" height="{}">{}</svg>', _LEFT, _TOP, _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM, lines)
    places = [value for value in (factor * 10.0**power for power in range(-3, 4) for factor in (1, 2, 5)) if low * 0.96 <= value <= high * 1.04]
    grid = _grid(scale, [math.log10(value) for value in places], ticks(scale.bottom, scale.top, 5), [f"{value:g}" for value in places])
    middle = ", ".join(f"{name} {value:.2f} dB" for name, value in chosen)
    summary = (
        f"Curves of PSNR over bits per pixel, from {sane[0].bpp:.3g} to {sane[-1].bpp:.3g}; the archive lies at {chosen_bpp:.3g} bits per pixel"
        + (f", {middle}" if middle else "")
    )
    body = grid + _mark(scale, math.log10(chosen_bpp), "chosen") + inner + dots
    return _figure(body, "bits per pixel, as stored", "PSNR, dB", summary, "", legend([(name, colour) for _, name, colour in names]))


def bar(parts: Sequence[tuple[str, float]], budget: float | None) -> Markup:
    """Bytes, divided, against a budget.

    Args:
        parts: Names and bytes, 0 or more; at most five.
        budget: Bytes, or None where none was set.
    """
    total = sum(value for _, value in parts)
    whole = max(total, budget or 0, 1)
    x, boxes = 0.0, []
    for colour, (name, value) in zip(COLOURS, parts, strict=False):
        width = _WIDTH * value / whole
        about = f"{name}: {value:,.0f} bytes"
        boxes.append(html('<rect class="{}" x="{:.2f}" y="4" width="{:.2f}" height="18"><title>{}</title></rect>', colour, x, width, about))
        x += width
    frame = html('<rect class="axis" x="0.5" y="4.5" width="{}" height="17" fill="none"/>', _WIDTH - 1)
    mark = Markup("")
    if budget:
        place = min(_WIDTH * budget / whole, _WIDTH - 1)
        mark = html('<line class="mark" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="26"/>', place)
    summary = f"{total:,.0f} bytes" + (f" of a budget of {budget:,.0f}: {100 * total / budget:.2f} %" if budget else ", no budget of bytes was set")
    return html('<svg viewBox="0 0 {} 26" role="img" aria-label="{}">{}{}{}</svg>', _WIDTH, summary, frame, join(boxes), mark)


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Names beside patches of their colours."""
    patch = '<li><svg viewBox="0 0 8 8" aria-hidden="true"><rect class="{}" width="8" height="8"/></svg>{}</li>'
    return html('<ul class="legend">{}</ul>', join(html(patch, colour, name) for name, colour in entries))


@dataclass(frozen=True)
class _Scale:
    """Values to places in a chart."""

    left: float
    right: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        return _LEFT + (value - self.left) / (self.right - self.left) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.bottom) / (self.top - self.bottom) * (_HEIGHT - _TOP - _BOTTOM)


def _grid(scale: _Scale, across: Sequence[float], up: Sequence[float], names: Sequence[str] | None = None) -> Markup:
    below = join(
        html('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>', scale.x(place), _HEIGHT - _BOTTOM + 16, name)
        for place, name in zip(across, names or [f"{place:g}" for place in across], strict=True)
    )
    beside = join(
        html(
            '<line class="axis" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/><text x="{3}" y="{4:.1f}" text-anchor="end">{5}</text>',
            _LEFT, _WIDTH - _RIGHT, scale.y(value), _LEFT - 6, scale.y(value) + 4, f"{value:,g}" if value < 1e5 else f"{value:.3g}",
        )
        for value in up
    )  # fmt: skip
    return beside + below


def _mark(scale: _Scale, place: float, name: str) -> Markup:
    x = scale.x(place)
    side = "end" if x > _WIDTH * 0.7 else "start"
    return html(
        '<line class="mark" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/><text class="mark" x="{3:.1f}" y="{4}" text-anchor="{5}">{6}</text>',
        x, _TOP - 4, _HEIGHT - _BOTTOM, x + (-4 if side == "end" else 4), _TOP - 8, side, name,
    )  # fmt: skip


def _figure(body: Markup, across: str, up: str, summary: str, note: str, below: Markup | None = None) -> Markup:
    labels = html(
        '<text x="{}" y="{}" text-anchor="middle">{}</text><text x="0" y="12">{}</text>', (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, across, up
    )
    drawing = html('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg>', _WIDTH, _HEIGHT, summary, body, labels)
    return html("<figure>{}{}{}</figure>", drawing, below or Markup(""), html("<figcaption>{}</figcaption>", note) if note else Markup(""))
