"""Kinds of chart, each drawn on one of matplotlib's axes: what varies is numbers, their number, colours, markers, legends, grids and words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Array = NDArray[np.float64]
Say = Callable[[], str]

SEQUENTIAL = ("viridis", "magma", "Blues", "YlOrRd", "cividis", "Greys", "PuBuGn", "inferno", "YlGn", "copper", "turbo", "plasma")
DIVERGING = ("RdBu", "coolwarm", "PiYG", "Spectral", "BrBG", "seismic")
_MARKERS = ("", "", "", "o", "s", "^", "x", ".", "D", "+")
_LINES = ("-", "-", "-", "--", ":", "-.")


def colours(rng: Rng) -> str:
    """Name of a colour map."""
    return str(rng.choice(SEQUENTIAL + DIVERGING))


def walk(rng: Rng, count: int) -> Array:
    """A series: trend, season and noise in some proportion."""
    x = np.linspace(0, 1, count)
    drift = np.cumsum(rng.normal(0, 1, count)) * rng.choice((0, 0.2, 1))
    season = rng.uniform(0, 8) * np.sin(2 * np.pi * (x * rng.integers(1, 9) + rng.random()))
    return np.asarray(rng.uniform(-5, 30) + rng.normal(0, 20) * x + drift + season + rng.normal(0, rng.choice((0.0, 0.3, 1.5)), count))


def finish(axes: Any, rng: Rng, *, legend: bool = False) -> None:
    """Grid, legend, frame and ticks, each by chance."""
    if rng.random() < 0.4:
        axes.grid(True, alpha=rng.uniform(0.2, 1), linestyle=str(rng.choice(_LINES)))
    if legend and axes.get_legend_handles_labels()[0] and rng.random() < 0.8:
        axes.legend(frameon=bool(rng.random() < 0.6), loc=str(rng.choice(("best", "upper right", "lower left", "upper left"))))
    if rng.random() < 0.25:
        axes.spines[["top", "right"]].set_visible(False)
    if rng.random() < 0.15:
        axes.minorticks_on()


def lines(axes: Any, rng: Rng, say: Say) -> None:
    """A few series with their marks and names."""
    count = int(rng.choice((8, 20, 60, 200, 600)))
    for _ in range(rng.integers(1, 7)):
        marker = str(rng.choice(_MARKERS)) if count < 100 else ""
        axes.plot(walk(rng, count), label=say(), marker=marker, linestyle=str(rng.choice(_LINES)), linewidth=rng.uniform(0.6, 2.6))
    if rng.random() < 0.15:
        axes.axhline(rng.uniform(0, 20), color="0.5", linewidth=0.8)
    finish(axes, rng, legend=True)


def steps(axes: Any, rng: Rng, say: Say) -> None:
    """Counts that rise in steps."""
    for _ in range(rng.integers(1, 4)):
        axes.step(np.arange(40), np.cumsum(rng.poisson(2, 40)), where="mid", label=say())
    finish(axes, rng, legend=True)


def bars(axes: Any, rng: Rng, say: Say) -> None:
    """Bars beside each other, upright or lying, with values on them now and then."""
    count, groups = int(rng.integers(3, 13)), int(rng.integers(1, 4))
    lying = rng.random() < 0.3
    for group in range(groups):
        at = np.arange(count) + (group - (groups - 1) / 2) * 0.8 / groups
        draw = axes.barh if lying else axes.bar
        drawn = draw(at, rng.gamma(3, 10, count), 0.8 / groups, label=say())
        if groups == 1 and rng.random() < 0.4:
            axes.bar_label(drawn, fmt="%.1f", fontsize="small")
    names = [say()[:9] for _ in range(count)]
    if lying:
        axes.set_yticks(range(count), names)
    else:
        axes.set_xticks(range(count), names, rotation=int(rng.choice((0, 30, 45, 90))))
    finish(axes, rng, legend=groups > 1)


def stacked_bars(axes: Any, rng: Rng, say: Say) -> None:
    """Bars on each other, hatched now and then."""
    count = int(rng.integers(4, 20))
    below = np.zeros(count)
    hatches = ("//", "..", "xx", "") if rng.random() < 0.2 else ("",)
    for part in range(rng.integers(2, 6)):
        values = rng.gamma(2, 5, count)
        axes.bar(range(2000, 2000 + count), values, bottom=below, label=say(), hatch=hatches[part % len(hatches)], width=rng.uniform(0.6, 1))
        below = below + values
    finish(axes, rng, legend=True)


def scatter(axes: Any, rng: Rng, say: Say) -> None:
    """Clouds of points, coloured by a value or by group; a fitted line now and then."""
    if rng.random() < 0.4:
        x, y = rng.normal(size=(2, int(rng.choice((80, 300, 900)))))
        drawn = axes.scatter(x, y + x * rng.normal(), c=x * y, s=rng.uniform(4, 60), cmap=colours(rng), alpha=rng.uniform(0.4, 1))
        axes.figure.colorbar(drawn, ax=axes)
    else:
        for _ in range(rng.integers(1, 5)):
            x, y = rng.normal(rng.normal(0, 2, (2, 1)), rng.uniform(0.3, 1.5), (2, int(rng.choice((30, 120, 400)))))
            axes.scatter(x, y, s=rng.uniform(4, 70), label=say(), alpha=rng.uniform(0.4, 1), marker=str(rng.choice(("o", "s", "^", "x", "D"))))
    finish(axes, rng, legend=True)


def histogram(axes: Any, rng: Rng, say: Say) -> None:
    """Distributions over each other."""
    for _ in range(rng.integers(1, 4)):
        kind = str(rng.choice(("bar", "step", "stepfilled")))
        axes.hist(rng.gamma(rng.uniform(1, 6), 2, 2000), bins=int(rng.choice((12, 30, 80))), alpha=rng.uniform(0.4, 1), label=say(), histtype=kind)
    finish(axes, rng, legend=True)


def box(axes: Any, rng: Rng, say: Say) -> None:
    """Quartiles, whiskers and outliers."""
    groups = [rng.normal(rng.uniform(0, 5), rng.uniform(0.5, 2), 60) for _ in range(rng.integers(3, 10))]
    axes.boxplot(groups, notch=bool(rng.random() < 0.3), patch_artist=bool(rng.random() < 0.5))
    axes.set_xticklabels([say()[:7] for _ in groups], rotation=int(rng.choice((0, 45))))
    finish(axes, rng)


def areas(axes: Any, rng: Rng, say: Say) -> None:
    """Areas on each other, or a band about a line."""
    if rng.random() < 0.6:
        values = np.abs([walk(rng, 60) for _ in range(rng.integers(2, 6))])
        axes.stackplot(np.arange(60), values, labels=[say() for _ in values], alpha=rng.uniform(0.6, 1))
    else:
        for _ in range(rng.integers(1, 4)):
            middle, width = walk(rng, 80), np.abs(rng.normal(2, 1)) + 0.5
            axes.plot(middle, label=say())
            axes.fill_between(np.arange(80), middle - width, middle + width, alpha=0.25)
    finish(axes, rng, legend=True)


def pie(axes: Any, rng: Rng, say: Say) -> None:
    """Shares of a whole, or of a ring."""
    parts = rng.gamma(2, 1, int(rng.integers(3, 9)))
    ring = {"width": 0.4, "edgecolor": "w"} if rng.random() < 0.4 else {"edgecolor": "w"}
    axes.pie(parts, labels=[say() for _ in parts], autopct="%.0f%%" if rng.random() < 0.7 else None, wedgeprops=ring, startangle=rng.uniform(0, 360))


def errors(axes: Any, rng: Rng, say: Say) -> None:
    """Measured points with bars, and the curve they should lie on."""
    x = np.sort(rng.uniform(0, 10, 18))
    for _ in range(rng.integers(1, 4)):
        y = 10 * np.exp(-x / rng.uniform(2, 9)) + rng.normal(0, 0.3, 18)
        axes.errorbar(x, y, yerr=rng.uniform(0.1, 1, 18), fmt=str(rng.choice(("o", "s", "^"))), capsize=rng.uniform(0, 4), label=say())
        axes.plot(x, 10 * np.exp(-x / 4), linewidth=0.8)
    if rng.random() < 0.3:
        axes.set_yscale("log")
    finish(axes, rng, legend=True)


def heat_map(axes: Any, rng: Rng, say: Say) -> None:
    """A matrix in colours, small ones with their numbers in the cells."""
    rows, columns = rng.integers(5, 16, 2) if rng.random() < 0.6 else rng.integers(20, 70, 2)
    values = rng.normal(size=(rows, columns)) + np.outer(np.sin(np.arange(rows) / 3), np.cos(np.arange(columns) / 4)) * 2
    shown = axes.imshow(values, cmap=colours(rng), aspect="auto", interpolation="nearest")
    if rng.random() < 0.7:
        axes.figure.colorbar(shown, ax=axes)
    if max(rows, columns) < 16:
        axes.set_xticks(range(columns), [say()[:6] for _ in range(columns)], rotation=60)
        if rng.random() < 0.6 and axes.get_gridspec().nrows == 1:
            for (i, j), value in np.ndenumerate(values):
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize="x-small", color="w" if abs(value) > 1 else "k")


def candles(axes: Any, rng: Rng, say: Say) -> None:
    """Prices: bodies, wicks, and the volume below."""
    closing = 100 + np.cumsum(rng.normal(0, 2, 60))
    opening = np.append(100, closing[:-1])
    rise = np.where(closing >= opening, "tab:green", "tab:red")
    axes.vlines(range(60), np.minimum(opening, closing) - rng.gamma(2, 0.6, 60), np.maximum(opening, closing) + rng.gamma(2, 0.6, 60), colors=rise)
    axes.bar(range(60), closing - opening, 0.7, bottom=opening, color=rise)
    axes.bar(range(60), rng.gamma(3, 1, 60), 0.7, bottom=closing.min() - 25, color="0.7", label=say())
    finish(axes, rng, legend=True)


def waterfall(axes: Any, rng: Rng, say: Say) -> None:
    """What adds to a sum and what takes from it, joined by thin lines."""
    change = rng.normal(2, 8, 10)
    after = np.cumsum(change)
    axes.bar(range(10), change, bottom=after - change, color=np.where(change > 0, "C0", "C1"))
    axes.step(np.arange(10) + 0.5, after, where="post", color="0.4", linewidth=0.8)
    axes.set_xticks(range(10), [say()[:8] for _ in range(10)], rotation=45)
    finish(axes, rng)


def spectrum(axes: Any, rng: Rng, say: Say) -> None:
    """A noisy density over frequency, on logarithmic axes."""
    x = np.logspace(0, 4, 500)
    for _ in range(rng.integers(1, 4)):
        peak = 1 + rng.uniform(5, 50) / (1 + ((x - rng.uniform(50, 3000)) / rng.uniform(20, 300)) ** 2)
        axes.loglog(x, peak / x ** rng.uniform(0.2, 1.2) * np.exp(rng.normal(0, 0.25, 500)), linewidth=0.7, label=say())
    axes.grid(True, which=str(rng.choice(("major", "both"))), alpha=0.4)
    axes.legend()


def violins(axes: Any, rng: Rng, say: Say) -> None:
    """Densities side by side."""
    axes.violinplot([rng.gamma(rng.uniform(1, 6), 1, 120) for _ in range(6)], showmedians=True)
    axes.set_xticks(range(1, 7), [say()[:8] for _ in range(6)])
    finish(axes, rng)


def hexagons(axes: Any, rng: Rng, say: Say) -> None:
    """Counts in six-sided cells."""
    x, y = rng.normal(size=(2, 6000))
    axes.figure.colorbar(axes.hexbin(x, y + x**2 * rng.uniform(-0.5, 0.5), gridsize=int(rng.integers(18, 40)), cmap=colours(rng)), label=say())


def polar(axes: Any, rng: Rng, say: Say) -> None:
    """A rose of bars, or curves about a centre."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    if rng.random() < 0.5:
        axes.bar(angles, rng.gamma(3, 1, 24), width=0.24, alpha=0.8, color=[f"C{i % 8}" for i in range(24)])
    else:
        for _ in range(3):
            axes.plot(angles, rng.gamma(4, 1, 24), label=say())
        axes.legend(loc="lower left")
