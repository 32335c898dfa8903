"""The search for a quality: the least q at which an image, as its bytes decode, has the PSNR that was asked for."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from msinn_core import bitstream, metrics
from pipeline.encode.coder import Coder
from pipeline.encode.item import Item
from pipeline.formats.outcome import Kept, Reason
from pipeline.plan.curves import mse_of_psnr

PSNR_WINDOW_DB = 0.05
"""A quality target is met from above by at most this much."""

_DB_PER_Q = 1.8
"""Slope of PSNR over q before two rates are measured: about what every image shows."""

_TRIES = 8


def verify(coder: Coder, item: Item, target_psnr_db: float | None) -> None:
    """Measure a coded item, and search another q while a quality target or the image's own floor is missed.

    Args:
        coder: Codes it again.
        item: With the symbols and data of its first q.
        target_psnr_db: What every image is to have, and at most `PSNR_WINDOW_DB` more; None: its task's floor counts, which may be passed.
    """
    if coder.measure(item):
        for q in tries(item, coder.q_max, target_psnr_db):
            coder.compress(item, q)
            coder.pack(item)
            if item.coded:
                coder.measure(item)


def tries(item: Item, q_max: float, target_psnr_db: float | None) -> Iterator[float]:
    """Rates at which a measured item is to be coded and measured again, one after the other; at their end it is as it shall be, or kept.

    Args:
        item: Measured now, and each time before the next is asked for, unless it is no longer coded.
        q_max: Largest q.
        target_psnr_db: See `verify`.
    """
    if not item.coded or item.measured is None:
        return
    target = target_psnr_db if target_psnr_db is not None else item.task.min_psnr_db
    if target is None or (target_psnr_db is None and item.measured.mse <= mse_of_psnr(target)):
        return
    found = yield from _search(item, q_max, target)
    if found and target_psnr_db is None:
        item.clamp = "floor"


@dataclass
class Bracket:
    """Rates that were measured on both sides of a target. PSNR rises with q.

    Attributes:
        target_db: The target.
        q_max: Largest q; the least is 0.
        above: `(q, psnr_db)` of the least q at or above the target, if there is one.
        below: The same of the largest q below it.
    """

    target_db: float
    q_max: float
    above: tuple[float, float] | None = None
    below: tuple[float, float] | None = None

    def add(self, q: float, psnr_db: float) -> bool:
        """Take in a measurement; whether the search is at its end: in the window, or at the end of all rates."""
        if psnr_db >= self.target_db:
            if self.above is None or q < self.above[0]:
                self.above = q, psnr_db
            return psnr_db <= self.target_db + PSNR_WINDOW_DB or q <= 0
        if self.below is None or q > self.below[0]:
            self.below = q, psnr_db
            return q >= self.q_max
        return False

    def following(self, q: float, psnr_db: float) -> float:
        """The q to try after this one: between both sides if there are two, else up or down the usual slope."""
        aim = self.target_db + PSNR_WINDOW_DB / 2
        if self.above is not None and self.below is not None:
            (high, high_db), (low, low_db) = self.above, self.below
            share = (aim - low_db) / max(high_db - low_db, 1e-6)
            found = low + min(0.95, max(0.05, share)) * (high - low)
        else:
            found = q + (aim - psnr_db) / _DB_PER_Q
        return min(self.q_max, max(0.0, found))


def _search(item: Item, q_max: float, target_db: float) -> Generator[float, None, bool]:
    """Leave the item at the least q seen at or above the target. False, and kept, if there is none or it cannot be coded."""
    bracket = Bracket(target_db, q_max)
    best = None
    for _ in range(_TRIES):
        assert item.symbols is not None
        assert item.measured is not None
        q, psnr_db = item.symbols.q, metrics.psnr_db(item.measured.mse)
        ended = bracket.add(q, psnr_db)
        if bracket.above == (q, psnr_db):
            best = item.symbols, item.data, item.measured
        following = bracket.following(q, psnr_db)
        if ended or abs(following - q) < 1 / bitstream.Q_STEPS:
            break
        yield following
        if not item.coded:
            return False
    if best is None:
        assert item.measured is not None
        ends_db = metrics.psnr_db(item.measured.mse)
        item.outcome = Kept(Reason.QUALITY_UNREACHABLE, f"the codec ends at {ends_db:.2f} dB, below {target_db:g} dB")
        return False
    item.symbols, item.data, item.measured = best
    return True
