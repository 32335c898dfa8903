"""Charts among the kinds of page that training sees: bars, curves, pies."""

from __future__ import annotations

import math

from infra.drawn.page import SIDE, Page, blend


def _axes(page: Page, ticks: int) -> tuple[int, int, int, int]:
    rng, look, face = page.rng, page.look, page.font(9, 13)
    left, top, right, bottom = rng.randint(36, 70), rng.randint(24, 60), SIDE - rng.randint(10, 40), SIDE - rng.randint(30, 60)
    grid = rng.random() < 0.6
    for i in range(ticks + 1):
        y, x = bottom - (bottom - top) * i / ticks, left + (right - left) * i / ticks
        if grid:
            page.line([(left, y), (right, y)], blend(look.paper, look.ink, 0.15))
        page.text(left - 30, y - 7, f"{i * 10 ** rng.randint(0, 1)}", face, look.muted)
        page.text(x - 8, bottom + 6, page.words(1)[:5], face, look.muted)
    page.line([(left, top), (left, bottom), (right, bottom)], look.ink, rng.choice((1, 2)))
    page.text(left, 6, page.words(4), page.font(13, 20))
    return left, top, right, bottom


def bars(page: Page) -> None:
    """A bar chart, grouped or stacked, with axes and a legend."""
    rng, look = page.rng, page.look
    left, top, right, bottom = _axes(page, rng.randint(4, 9))
    groups, series = rng.randint(3, 12), rng.randint(1, 4)
    pitch = (right - left) / groups
    for group in range(groups):
        base = float(bottom)
        for i in range(series):
            height = (bottom - top) * rng.random() / series
            stacked = series > 2
            x = left + pitch * (group + 0.1) + (0 if stacked else i * pitch * 0.8 / series)
            page.rect(x, base - height, pitch * 0.8 / (1 if stacked else series), height, look.accents[i])
            base -= height if stacked else 0
    for i in range(series):
        page.rect(right - 90, top + 18 * i, 10, 10, look.accents[i])
        page.text(right - 75, top + 18 * i - 2, page.words(1), page.font(10, 13))


def curves(page: Page) -> None:
    """Plotted lines, with markers or points alone."""
    rng, look = page.rng, page.look
    left, top, right, bottom = _axes(page, rng.randint(4, 9))
    for colour in look.accents[: rng.randint(1, 5)]:
        count, value, points = rng.choice((12, 40, 200)), rng.random(), []
        drift = rng.uniform(0.01, 0.15)
        for i in range(count):
            value = min(1.0, max(0.0, value + rng.gauss(0, drift)))
            points.append((left + (right - left) * i / (count - 1), bottom - (bottom - top) * value))
        if rng.random() < 0.75:
            page.line(points, colour, rng.randint(1, 3))
        if count < 200:
            for x, y in points:
                page.ellipse(x, y, 3, 3, colour)


def pies(page: Page) -> None:
    """Pie and ring charts with labels."""
    rng, look = page.rng, page.look
    for _ in range(rng.randint(3, 7)):
        x, y, radius = rng.randint(90, SIDE - 90), rng.randint(90, SIDE - 90), rng.randint(40, 150)
        cuts = sorted(rng.uniform(0, 360) for _ in range(rng.randint(3, 8)))
        for i, (start, end) in enumerate(zip(cuts, [*cuts[1:], cuts[0] + 360], strict=True)):
            page.pie(x, y, radius, start, end, blend(look.accents[i % 5], look.paper, 0.12 * (i // 5)))
            middle = math.radians((start + end) / 2)
            page.text(x + 1.1 * radius * math.cos(middle) - 10, y + 1.1 * radius * math.sin(middle) - 6, page.words(1), page.font(10, 13))
        if rng.random() < 0.4:
            page.ellipse(x, y, radius * 0.55, radius * 0.55, look.paper)
