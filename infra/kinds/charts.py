"""Charts as people make them with matplotlib: one figure, one to four axes, any of its styles; what is drawn stands in `plots` and `maps`."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from infra.kinds import maps, plots
from infra.kinds.words import Words, words

Plot = Callable[[Any, np.random.Generator, Callable[[], str]], None]

SHARED: tuple[Plot, ...] = (
    plots.lines, plots.steps, plots.bars, plots.stacked_bars, plots.scatter, plots.histogram, plots.box, plots.areas, plots.pie, plots.errors,
    plots.heat_map, plots.candles, plots.waterfall, plots.spectrum, maps.contours, maps.filled_contours, maps.streets, maps.regions, maps.relief,
    maps.arrows,
)  # fmt: skip
HELD_ALONE: tuple[Plot, ...] = (plots.violins, plots.hexagons, plots.polar, maps.streams, maps.routes)
"""Kinds of chart that only held-out pictures have: a third of them."""

_HELD_ALONE_SHARE = 1 / 3
_STYLES = (
    "default", "default", "default", "ggplot", "bmh", "dark_background", "fivethirtyeight", "Solarize_Light2", "grayscale", "tableau-colorblind10",
    "seaborn-v0_8-darkgrid", "seaborn-v0_8-whitegrid", "seaborn-v0_8-ticks", "seaborn-v0_8-white", "petroff10", "classic",
)  # fmt: skip
_FONTS = ("DejaVu Sans", "DejaVu Sans", "DejaVu Serif", "STIXGeneral", "Liberation Sans", "Roboto", "Open Sans", "Lato", "Noto Sans", "Carlito")


def chart(number: int, *, seed: int, held: bool = False) -> tuple[str, Image.Image]:
    """Kind and RGB picture of chart `number`; one version of matplotlib draws the same for the same arguments.

    Args:
        number: 0 and up.
        seed: Of the set.
        held: For the held-out set: other words, and kinds of chart that the other set does not have.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    text = random.Random(f"charts {held} {seed} {number}")
    rng = np.random.default_rng(text.getrandbits(63))
    only = HELD_ALONE if held and rng.random() < _HELD_ALONE_SHARE else SHARED
    kind = only[number % len(only)]
    installed = {font.name for font in matplotlib.font_manager.fontManager.ttflist}
    font = text.choice([name for name in _FONTS if name in installed])
    with pyplot.style.context([text.choice(_STYLES), {"font.family": font, "font.size": text.choice((8, 9, 10, 10, 11, 12))}]):
        figure = _figure(kind, rng, text, words(held))
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi="figure")
        pyplot.close(figure)
    with Image.open(data) as image:
        return kind.__name__.replace("_", "-"), image.convert("RGB")


def _figure(kind: Plot, rng: np.random.Generator, text: random.Random, said: Words) -> Any:
    """One to four axes of a kind, sides of the picture between 480 and 900 pixels."""
    from matplotlib import pyplot

    dpi = text.choice((72, 80, 96, 100, 110, 120, 144))
    size = (rng.integers(560, 900) / dpi, rng.integers(480, 660) / dpi)
    grid = text.choice(((1, 1),) * 6 + ((1, 2), (2, 1), (2, 2))) if dpi < 120 else (1, 1)
    options = {"projection": "polar"} if kind is plots.polar else {}
    figure, axes = pyplot.subplots(*grid, figsize=size, dpi=dpi, squeeze=False, subplot_kw=options, layout="constrained")

    def words_of_chart() -> str:
        return said.title(text, 1, 2)[:16]

    for one in axes.ravel():
        kind(one, rng, words_of_chart)
        if rng.random() < 0.8:
            one.set_title(said.title(text, 2, 6)[: 54 // grid[1]])
        if rng.random() < 0.7 and kind not in (plots.pie, plots.polar):
            one.set_xlabel(said.title(text, 1, 3)[:30])
            one.set_ylabel(said.title(text, 1, 3)[:30])
    if rng.random() < 0.15:
        figure.suptitle(said.title(text, 3, 7)[:60])
    return figure
