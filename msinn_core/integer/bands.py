"""Large pictures in bands of rows or columns, to the same bits, so that what lies between layers never is of the whole picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]

BAND_BYTES = 4 << 20
"""Activations of one layer that are held at a time, about."""

_LEAST_ROWS, _MOST_ROWS = 128, 256


def in_bands(x: NDArray[Any], radius: int, width: int, run: Callable[..., NDArray[Any]], *beside: NDArray[Any]) -> NDArray[Any]:
    """`run(0, x, *beside)`, a band of rows at a time where `x` is large, so that what lies between the layers stays small; of columns where `x` is
    wide.

    Each band is computed with `radius` more rows on both sides, as far as its layers see; what the cut spoils is dropped, so that the result is the
    same to the bit.

    Args:
        x: `[H, W, C]`.
        radius: Rows (or columns) that an output row depends on, each way.
        width: Most channels between the layers.
        run: Called with the number of the first row and some rows; with 0 and some columns.
        beside: Further arrays of these rows and columns, cut likewise.
    """
    axis = _long_axis(x)
    length, across = x.shape[axis], x.shape[1 - axis]
    # A multiple of 16: every band begins where the coarsest grid of the post-filter does.
    band = max(8 * radius, 16, BAND_BYTES // (2 * width * across)) // 16 * 16
    if length < 2 * band:
        return run(0, x, *beside)
    out: NDArray[Any] | None = None
    for start in range(0, length, band):
        end = min(length, start + band)
        first, last = max(0, start - radius), min(length, end + radius)
        part = _cut(run(first if axis == 0 else 0, *(_cut(each, axis, first, last) for each in (x, *beside))), axis, start - first, end - first)
        if out is None:
            out = np.empty((*x.shape[:2], part.shape[2]), part.dtype)
        _place(out, axis, start, part)
    assert out is not None
    return out


def _long_axis(x: NDArray[Any]) -> int:
    """Along which `x` is cut: rows, unless it is wide."""
    return 0 if x.shape[1] <= 2 * x.shape[0] else 1


def _cut(x: NDArray[Any], axis: int, start: int, stop: int) -> NDArray[Any]:
    """Some rows or columns, contiguous."""
    return x[start:stop] if axis == 0 else np.ascontiguousarray(x[:, start:stop])


def _place(out: NDArray[Any], axis: int, start: int, part: NDArray[Any]) -> None:
    if axis == 0:
        out[start : start + len(part)] = part
    else:
        out[:, start : start + part.shape[1]] = part


@dataclass(frozen=True)
class PictureBands:
    """The finest level of the transform and the post-filter in bands, to the same bits: a band is computed with as many more rows (or columns) on
    both sides as its layers see.

    Rows and columns are counted on the half-size grid, on which the finest level works.

    Attributes:
        axis: 0 for bands of rows, 1 of columns.
        length: Of the grid along it.
        band: Rows of a band, a multiple of 16.
    """

    axis: int
    length: int
    band: int

    @classmethod
    def of(cls, height: int, width: int) -> PictureBands | None:
        """For a half-size grid of this height and width; None where it is small.

        The post-filter sees far, so that thin bands cost time: an eighth of the picture and at least 128 rows keeps what they hold under ten bytes
        per pixel.
        """
        axis = 0 if width <= 2 * height else 1
        length = (height, width)[axis]
        if length < 2 * _MOST_ROWS:
            return None
        return cls(axis, length, max(_LEAST_ROWS, min(_MOST_ROWS, length // 8)) // 16 * 16)

    def _bounds(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.length, self.band):
            yield start, min(self.length, start + self.band)

    def _with(self, radius: int, start: int, stop: int) -> tuple[int, int]:
        return max(0, start - radius), min(self.length, stop + radius)

    def forward(self, pixels: NDArray[np.uint8], radius: int, run: Callable[[NDArray[np.uint8]], I32]) -> tuple[I32, I32]:
        """The finest level of the analysis of a picture `[H, W, 3]`: latents and what goes to the next level, `[H/2, W/2, 6]` each.

        Args:
            pixels: The picture.
            radius: Rows that an output row depends on, each way, even.
            run: Both of a part of the picture, `[h, w, 12]`.
        """
        shape = pixels.shape[0] // 2, pixels.shape[1] // 2, 6
        latents, onward = np.empty(shape, np.int32), np.empty(shape, np.int32)
        for start, stop in self._bounds():
            first, last = self._with(radius, start, stop)
            part = run(_cut(pixels, self.axis, 2 * first, 2 * last))
            part = _cut(part, self.axis, start - first, stop - first)
            _place(latents, self.axis, start, part[..., :6])
            _place(onward, self.axis, start, part[..., 6:])
        return latents, onward

    def inverse(
        self,
        halves: tuple[I32, I32],
        support: I32,
        radius: int,
        rise: Callable[[I32, I32, I32], I32],
        post_radius: int,
        finish: Callable[[I32], NDArray[np.uint8]],
    ) -> NDArray[np.uint8]:
        """A picture `[H, W, 3]` of the last step's latents.

        Args:
            halves: Checkerboard halves `[H/2, W/4, 6]`: anchors, then the rest.
            support: `[H/2, W/2, 6]`.
            radius: Rows on which a row of what `rise` gives depends, each way, even.
            rise: From parts of the three to that part of the picture's state, `[h, w, 3]` of twice the size.
            post_radius: Rows on which a row of the post-filter depends, each way, a multiple of 16.
            finish: From a part of the state to pixels.
        """
        axis = self.axis
        across = 2 if axis == 1 else 1  # columns of a half are every other one

        def risen(start: int, stop: int) -> I32:
            first, last = self._with(radius, start, stop)
            parts = [_cut(half, axis, first // across, last // across) for half in halves]
            return _cut(rise(parts[0], parts[1], _cut(support, axis, first, last)), axis, 2 * (start - first), 2 * (stop - first))

        out = np.empty((2 * support.shape[0], 2 * support.shape[1], 3), np.uint8)
        window, begins, ends = None, 0, 0  # of the state, from row `begins` to row `ends`
        for start, stop in self._bounds():
            first, last = self._with(post_radius, start, stop)
            if window is None:
                window = risen(first, last)
            else:
                kept = _cut(window, axis, 2 * (first - begins), 2 * (ends - begins))
                window = np.concatenate((kept, risen(ends, last)), axis=axis) if last > ends else np.ascontiguousarray(kept)
            begins, ends = first, last
            _place(out, axis, 2 * start, _cut(finish(window), axis, 2 * (start - first), 2 * (stop - first)))
        return out
