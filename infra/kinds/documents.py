"""Scanned documents: sheets that a browser sets and prints, of many kinds, fonts and sizes, as a scanner sees them."""

from __future__ import annotations

import html
import random
from collections.abc import Callable, Iterator

import numpy as np

from infra.kinds import browser
from infra.kinds.scan import scan
from infra.kinds.sheets import Sheet
from infra.kinds.words import words

_BATCH = 12
"""Sheets of one document: of one size and density."""

_SIZES_MM = ((210, 297), (210, 297), (216, 279), (148, 210), (176, 250))
_DPI = (90, 100, 100, 110, 120, 150)
_HELD_ALONE_SHARE = 1 / 3
_FONTS = (
    "Latin Modern Roman", "TeX Gyre Termes", "TeX Gyre Pagella", "TeX Gyre Schola", "TeX Gyre Bonum", "TeX Gyre Heros", "EB Garamond",
    "Linux Libertine O",
    "Liberation Serif", "Liberation Sans", "DejaVu Serif", "Noto Serif", "Noto Sans", "Latin Modern Sans", "Carlito", "TeX Gyre Cursor",
)  # fmt: skip

Kind = Callable[[Sheet], str]

SHARED: tuple[Kind, ...] = (
    Sheet.article, Sheet.letter, Sheet.report, Sheet.textbook, Sheet.manual, Sheet.form, Sheet.invoice, Sheet.newspaper, Sheet.references,
    Sheet.novel,
)  # fmt: skip
HELD_ALONE: tuple[Kind, ...] = (Sheet.dictionary, Sheet.play, Sheet.exam)
"""Kinds of sheet that only held-out pictures have: a third of them."""

_CSS = """
*{box-sizing:border-box}body{margin:0}.sheet{break-after:page;overflow:hidden;text-align:justify;hyphens:auto}
h1,h2,h3{text-align:left;margin:.6em 0 .3em}
p{margin:0 0 .5em}table{border-collapse:collapse;width:100%;font-size:.9em}td,th{padding:2px 6px;text-align:left}
.ruled td,.ruled th{border:1px solid #333}
.lines tr:first-child{border-top:2px solid #000;border-bottom:1px solid #000}.lines{border-bottom:2px solid #000}math{font-family:"Latin Modern Math"}
pre{font-family:"Latin Modern Mono","DejaVu Sans Mono";font-size:.85em;background:#f2f2f2;padding:4px;overflow:hidden;text-align:left}
.eq{display:flex;justify-content:space-between;margin:.6em 0;overflow:hidden}
.box{border:1px solid #000;min-height:1.7em;padding:2px 5px}figure{margin:.6em 0;text-align:center}
"""


def sheet(number: int, *, seed: int, held: bool = False, size: tuple[int, int] = (210, 297)) -> tuple[str, str]:
    """Kind and HTML of sheet `number`.

    Args:
        number: 0 and up.
        seed: Of the set.
        held: For the held-out set: other words, and kinds of sheet that the other set does not have.
        size: Width and height in mm.
    """
    rng = random.Random(f"documents {held} {seed} {number}")
    kinds = HELD_ALONE if held and rng.random() < _HELD_ALONE_SHARE else SHARED
    kind = kinds[number % len(kinds)]
    inside = kind(Sheet(rng, words(held)))
    points, margin = rng.choice((8.5, 9, 10, 10, 11, 12)) * (0.85 if size[0] < 160 else 1), rng.uniform(0.06, 0.14) * size[0]
    style = f"width:{size[0]}mm;height:{size[1] - 1}mm;padding:{margin:.1f}mm;font:{points}pt/{rng.uniform(1.1, 1.5):.2f} '{rng.choice(_FONTS)}'"
    head = f"<div style='display:flex;justify-content:space-between;font-size:.8em;margin-bottom:1em'><span>{rng.randint(1, 400)}</span>"
    head = f"{head}<i>{html.escape(words(held).title(rng, 2, 6))}</i></div>" if rng.random() < 0.6 else ""
    return kind.__name__, f'<div class=sheet lang=en style="{style}">{head}{inside}</div>'


def documents(count: int, *, seed: int, held: bool = False) -> Iterator[tuple[str, bytes]]:
    """Kind and JPEG of scanned sheets.

    Raises:
        RuntimeError: There is no browser or no `pdftoppm`, or one of them failed.
    """
    for first in range(0, count, _BATCH):
        rng = random.Random(f"documents {held} {seed} batch {first}")
        width, height = rng.choice(_SIZES_MM)
        made = [sheet(number, seed=seed, held=held, size=(width, height)) for number in range(first, min(first + _BATCH, count))]
        page = (
            f"<!doctype html><meta charset=utf-8><style>@page{{size:{width}mm {height}mm;margin:0}}{_CSS}</style>{''.join(text for _, text in made)}"
        )
        printed = browser.printed(page, rng.choice(_DPI))
        if len(printed) < len(made):
            raise RuntimeError(f"{len(made)} sheets were printed on {len(printed)}")
        for i, (name, _) in enumerate(made):
            yield name, scan(printed[i], np.random.default_rng(rng.getrandbits(63)), printed[i - 1])
