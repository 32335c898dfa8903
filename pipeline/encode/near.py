"""Images within a largest error: each in the smallest of four ways, decoded from its bytes by another instruction set, and compared.

```
Item --> rounded samples, quickly --> the network at three or four rates, each with its residual, quickly --> the better way in earnest
     --> smaller than its exact form? --> Member --> decoded again: the picture that was meant, no sample off by more than N --> measured
         no: the exact form               other: MachineError
```
A residual belongs to the samples of the encoder's own walk. A machine that errs in these would break the promise on every other machine, so all
members are decoded by another code than encoded them, where other forms have a sample decoded so.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from msinn_core import metrics
from msinn_core.codec import Codec
from msinn_core.coding import Latents
from msinn_core.errors import CodecError
from msinn_core.picture import Picture
from pipeline.archive.layout import sha256
from pipeline.archive.shard import stored_bytes
from pipeline.encode.coder import IMAGE_ERRORS, encoder_of
from pipeline.encode.coders import Coders
from pipeline.encode.crosscheck import CrossCheck
from pipeline.encode.exact import ExactForms
from pipeline.encode.item import Item, Measured, Near, ms_since
from pipeline.formats.outcome import Coded, Kept, Reason
from pipeline.forms import jxl, near
from pipeline.forms.base import Refusal
from pipeline.forms.libraries import AbsentError, jxl_writer
from pipeline.forms.near import FOLDED, NUMBERED, ROUNDED, SHIFTED, Member
from pipeline.forms.pixels_exact import EFFORT
from pipeline.forms.samples import Samples
from pipeline.sources.record import printable

_QUICK_EFFORT = 3
_RESIDUAL_SHARE, _ROUNDED_SHARE = 0.62, 0.93
"""What the usual effort leaves of the quick one's bytes, on photographs: enough to tell rates apart, and ways that are not close."""

_CLOSE = 1.3
"""Ways whose quick sizes are further apart than this are not both tried in earnest."""

_Q_STEP, _Q_GRID = 1.0, 8
"""The rates around the first one that are tried, and parts of a rate that the best of them is rounded to."""

_Q_OF_11 = 12.0
"""The best rate for photos was found at `12 - 2 log2 N` of a model whose rates end at 11: 10 for N = 2, 8 for 4, 6 for 8."""


@dataclass(frozen=True, slots=True)
class _Try:
    """The network at a rate.

    Attributes:
        q: Rate index; `data`: the bitstream, `picture`: what it decodes to.
        bytes: With its residual, about.
    """

    q: float
    data: bytes
    picture: Picture
    bytes: float


@dataclass(frozen=True, slots=True)
class _Found:
    """A member that was made, and the picture that it is meant to give back; `coded` is its part of the network's."""

    member: Member
    picture: Picture
    coded: _Try | None


class NearLossless:
    """Makes near-lossless members. What has none that is smaller than its exact form takes that.

    Args:
        coders: The run's; the CPU's part of them.
        exact: Finds exact forms.
        cross_check: Has the other instruction set.
        largest_error: N, in code values of 8 bits.
        ms_ssim: Whether to measure MS-SSIM.
    """

    def __init__(self, coders: Coders, exact: ExactForms, cross_check: CrossCheck, largest_error: int, *, ms_ssim: bool = False) -> None:
        self._coders, self._exact, self._cross_check = coders, exact, cross_check
        self._error, self._ms_ssim = largest_error, ms_ssim

    def settled(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each that is to be coded in its smallest form.

        Raises:
            MachineError: This machine computes wrongly.
        """
        for item in items:
            if item.coded and item.source is not None and item.loaded.picture is not None:
                self._settle(item, item.source, item.loaded.picture)
            yield item

    def costed(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each that is to be coded with about the bytes that its smallest form takes, by quick real encodings at one rate."""
        for item in items:
            picture = item.loaded.picture
            if item.coded and item.source is not None and picture is not None:
                name = None
                try:
                    way = min(self._quick_rounded(picture), next(self._rates(item, picture)).bytes)
                    item.exact_bytes, name = math.ceil(way), near.NEAR.name
                except (*IMAGE_ERRORS, AbsentError):
                    item.exact_bytes = None
                cost, form = self._exact.cost(item)
                if cost is not None and (item.exact_bytes is None or stored_bytes(cost) <= stored_bytes(item.exact_bytes)):
                    item.exact_bytes, name = cost, form
                if item.exact_bytes is not None and stored_bytes(item.exact_bytes) >= stored_bytes(len(item.source)):
                    item.exact_bytes, name = None, None
                item.exact_form, item.outcome = name, Kept(Reason.PLANNED)
            yield item

    def _settle(self, item: Item, source: bytes, picture: Picture) -> None:
        started = time.perf_counter()
        try:
            found = self._smallest(item, picture)
        except AbsentError as error:
            self._exactly(item, Kept(Reason.PLANNED, str(error)))
            return
        except IMAGE_ERRORS as error:
            self._exactly(item, Kept(Reason.CODEC_FAILED, f"{type(error).__name__}: {error}"[:300]))
            return
        item.model_ms += ms_since(started)
        data = found.member.to_bytes()
        size = stored_bytes(len(data))
        cost, _ = self._exact.cost(item)
        if size >= stored_bytes(len(source)) or (cost is not None and stored_bytes(cost) < _CLOSE * size):
            # Only now in earnest: it takes as long as all of the above, and photographs never need it.
            self._exactly(item, Kept(Reason.PLANNED, f"its exact form is not larger than one with a largest error of {self._error}"))
            if item.payload_bytes <= size:
                return
            item.outcome, item.stored, item.settled = Coded(), None, False
        started = time.perf_counter()
        problem = self._problem(item, data, found, picture)
        if problem is not None:
            self._exactly(item, Kept(Reason.CODEC_FAILED, problem[:300]))
            return
        ms_ssim = metrics.ms_ssim(found.picture.pixels, picture.pixels) if self._ms_ssim else None
        item.measured = Measured(metrics.mse(found.picture.pixels, picture.pixels), ms_ssim, sha256(found.picture.content()), walked=False)
        item.data, item.q = data, None if found.coded is None else found.coded.q
        item.near = Near(writer=jxl_writer(), bitstream=found.member.bitstream)
        item.encoder = None if found.coded is None else encoder_of(self._codec(item))
        # From here on its picture is the one that comes back: that is what a plan says the size of.
        item.loaded = replace(item.loaded, picture=found.picture)
        item.verify_ms += ms_since(started)

    def _exactly(self, item: Item, outcome: Kept) -> None:
        item.outcome = outcome
        self._exact.settle(item)

    def _codec(self, item: Item) -> Codec:
        return self._coders.coders[item.task.model].checker

    # Finding the smallest ---------------------------------------------------------------------------------------------------------------------

    def _smallest(self, item: Item, picture: Picture) -> _Found:
        quick = self._quick_rounded(picture)
        best: _Try | None = None
        with contextlib.suppress(*IMAGE_ERRORS):  # what the network cannot have, too wide for a bitstream for example, has its samples rounded
            for tried in self._rates(item, picture, quick):
                if best is None or tried.bytes < best.bytes:
                    best = tried
        found: list[_Found] = []
        if best is None or quick < _CLOSE * best.bytes:
            found += [self._rounded(picture, way) for way in (ROUNDED, NUMBERED)]
        if best is not None and best.bytes < _CLOSE * quick:
            found += [self._with_residual(picture, best, way) for way in (FOLDED, SHIFTED)]
        return min(found, key=lambda one: len(one.member.picture) + len(one.member.bitstream))

    def _rates(self, item: Item, picture: Picture, limit: float = math.inf) -> Iterator[_Try]:
        """The first rate, those on both sides of it, and where a parabola through them is least; only the first where that is far over a limit."""
        codec = self._codec(item)
        latents, q_max = codec.transform(picture), codec.q_max
        first = min(q_max, max(0.0, round((_Q_OF_11 - 2 * math.log2(self._error)) * _Q_GRID) / _Q_GRID * q_max / 11.0))
        tries = {first: self._tried(codec, latents, picture, first)}
        yield tries[first]
        if tries[first].bytes > _CLOSE * limit:
            return
        for q in {max(0.0, first - _Q_STEP): None, min(q_max, first + _Q_STEP): None}:
            if q not in tries:
                tries[q] = self._tried(codec, latents, picture, q)
                yield tries[q]
        if len(tries) == 3:
            low, high = min(tries), max(tries)
            q = _least(*((q, tries[q].bytes) for q in (low, first, high)))
            if q not in tries:
                yield self._tried(codec, latents, picture, q)

    def _tried(self, codec: Codec, latents: Latents, picture: Picture, q: float) -> _Try:
        symbols = codec.compress(latents, q, keep_walk=True)
        data = codec.pack(symbols)
        coded, read = codec.decode_known(data, symbols)
        if not all(np.array_equal(a, b) for a, b in zip(read, symbols.symbols, strict=True)):
            raise CodecError("the decoder returns other symbols than were encoded")
        numbers = near.residual(picture.pixels, coded.pixels, self._error)
        left = _RESIDUAL_SHARE * len(jxl.encoded(near.folded(numbers, FOLDED), {}, effort=_QUICK_EFFORT))
        return _Try(symbols.q, data, coded, len(data) + left)

    def _quick_rounded(self, picture: Picture) -> float:
        whole = near.with_pixels(picture, near.rounded(picture.pixels, self._error))
        return _ROUNDED_SHARE * len(jxl.encoded(Samples.of_picture(whole).planes, {}, effort=_QUICK_EFFORT))

    def _rounded(self, picture: Picture, way: int) -> _Found:
        whole = near.with_pixels(picture, near.rounded(picture.pixels, self._error))
        stored = whole if way == ROUNDED else near.with_pixels(picture, near.numbered(picture.pixels, self._error))
        samples = Samples.of_picture(stored)
        packed = jxl.encoded(samples.planes, samples.metadata, effort=EFFORT)
        return _Found(Member(way=way, largest_error=self._error, bitstream=b"", picture=packed), whole, None)

    def _with_residual(self, picture: Picture, tried: _Try, way: int) -> _Found:
        numbers = near.residual(picture.pixels, tried.picture.pixels, self._error)
        packed = jxl.encoded(near.folded(numbers, way), {}, effort=EFFORT)
        whole = near.with_pixels(tried.picture, near.added(tried.picture.pixels, numbers, self._error))
        return _Found(Member(way=way, largest_error=self._error, bitstream=tried.data, picture=packed), whole, tried)

    # Proving it -------------------------------------------------------------------------------------------------------------------------------

    def _problem(self, item: Item, data: bytes, found: _Found, picture: Picture) -> str | None:
        """A sentence if a member does not decode, or not to what was promised.

        Raises:
            MachineError: It decodes to other samples than were meant.
        """
        other = self._cross_check.counterpart(item.task.model)
        try:
            back = near.restored(near.parse(data), lambda part: other.decode(part)[0], self._exact.decode_jxl)
        except (Refusal, *IMAGE_ERRORS) as error:
            return f"does not decode: {error}"
        if back.content() != found.picture.content() and found.coded is not None:
            raise self._cross_check.disagreement(printable(item.task.record.name), encoder_of(self._codec(item)), other, "decodes to other pixels")
        if near.largest_error(back, picture) > self._error or back.metadata() != picture.metadata():
            return f"does not come back with its metadata and every sample within {self._error}"
        return None


def _least(*points: tuple[float, float]) -> float:
    """Where a parabola through three points `(q, bytes)`, by rising q, is least: between the outer ones, in whole parts of a rate."""
    (low, a), (middle, b), (high, c) = points
    left, right = (b - a) / (middle - low), (c - b) / (high - middle)
    if right <= left:  # it has no least inside
        return low if a < c else high
    found = (low + middle) / 2 - left * (high - low) / 2 / (right - left)
    return min(high, max(low, round(found * _Q_GRID) / _Q_GRID))
