"""Large pictures in bands of rows or columns, to the same bits, so that what lies between layers never is of the whole picture.

Arrays are NumPy's `[H, W, C]`, or tensors `[N, H, W, C]` of a batch on a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

BAND_BYTES = 4 << 20
"""Activations of one layer that are held at a time, about; of one picture."""

_LEAST_ROWS, _MOST_ROWS = 128, 256


def in_bands(x: Any, radius: int, width: int, run: Callable[..., Any], *beside: Any, held: int | None = None) -> Any:
    """`run(0, x, *beside)`, a band of rows at a time where `x` is large, so that what lies between the layers stays small; of columns where `x` is
    wide.

    Each band is computed with `radius` more rows on both sides, as far as its layers see; what the cut spoils is dropped, so that the result is the
    same to the bit.

    Args:
        x: `[..., H, W, C]`.
        radius: Rows (or columns) that an output row depends on, each way.
        width: Most channels between the layers.
        run: Called with the number of the first row and some rows; with 0 and some columns.
        beside: Further arrays of these rows and columns, cut likewise.
        held: In place of `BAND_BYTES`.
    """
    axis = 0 if x.shape[-2] <= 2 * x.shape[-3] else 1  # along which it is cut
    length, across = x.shape[axis - 3], x.shape[-2 - axis]
    # A multiple of 16: every band begins where the coarsest grid of the post-filter does.
    band = max(8 * radius, 16, (BAND_BYTES if held is None else held) // (2 * width * across)) // 16 * 16
    if length < 2 * band:
        return run(0, x, *beside)
    out = _Whole(axis, length)
    for start in range(0, length, band):
        end = min(length, start + band)
        first, last = max(0, start - radius), min(length, end + radius)
        rows = run(first if axis == 0 else 0, *(_cut(each, axis, first, last) for each in (x, *beside)))
        out.place(start, _cut(rows, axis, start - first, end - first))
    return out.array


def _cut(x: Any, axis: int, start: int, stop: int) -> Any:
    """Some rows or columns, contiguous."""
    part = x[..., start:stop, :, :] if axis == 0 else x[..., start:stop, :]
    return np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part.contiguous()


class _Whole:
    """An array put together of bands.

    Args:
        axis: 0 for bands of rows, 1 of columns.
        length: Of the whole along it.
    """

    def __init__(self, axis: int, length: int) -> None:
        self._axis, self._length = axis, length
        self.array: Any = None

    def place(self, start: int, part: Any) -> None:
        """A band, from row or column `start`; the first one tells what kind of array it is of."""
        if self.array is None:
            shape = list(part.shape)
            shape[self._axis - 3] = self._length
            self.array = np.empty(shape, part.dtype) if isinstance(part, np.ndarray) else part.new_empty(shape)
        stop = start + part.shape[self._axis - 3]
        if self._axis == 0:
            self.array[..., start:stop, :, :] = part
        else:
            self.array[..., start:stop, :] = part


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
    def of(cls, height: int, width: int, positions: int | None = None) -> PictureBands | None:
        """For a half-size grid of this height and width; None where it is small.

        The post-filter sees far, so that thin bands cost time: an eighth of the picture and at least 128 rows keeps what they hold under ten bytes
        per pixel.

        Args:
            height: Of the grid.
            width: Of the grid.
            positions: Of a band, about, but at least 128 rows; in place of an eighth of the picture.
        """
        axis = 0 if width <= 2 * height else 1
        length, across = (height, width)[axis], (height, width)[1 - axis]
        band = max(_LEAST_ROWS, min(_MOST_ROWS, length // 8) if positions is None else positions // across) // 16 * 16
        if length < 2 * (_MOST_ROWS if positions is None else band):
            return None
        return cls(axis, length, band)

    def _bounds(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.length, self.band):
            yield start, min(self.length, start + self.band)

    def _with(self, radius: int, start: int, stop: int) -> tuple[int, int]:
        return max(0, start - radius), min(self.length, stop + radius)

    def forward(self, pixels: Any, radius: int, run: Callable[[Any], Any]) -> tuple[Any, Any]:
        """The finest level of the analysis of a picture `[..., H, W, 3]`: latents and what goes to the next level, `[..., H/2, W/2, 6]` each.

        Args:
            pixels: The picture.
            radius: Rows that an output row depends on, each way, even.
            run: Both of a part of the picture, `[h, w, 12]`.
        """
        latents, onward = _Whole(self.axis, self.length), _Whole(self.axis, self.length)
        for start, stop in self._bounds():
            first, last = self._with(radius, start, stop)
            part = run(_cut(pixels, self.axis, 2 * first, 2 * last))
            part = _cut(part, self.axis, start - first, stop - first)
            latents.place(start, part[..., :6])
            onward.place(start, part[..., 6:])
        return latents.array, onward.array

    def inverse(
        self,
        halves: tuple[Any, Any],
        support: Any,
        radius: int,
        rise: Callable[[Any, Any, Any], Any],
        post_radius: int,
        finish: Callable[[Any], Any],
    ) -> Any:
        """A picture uint8 `[..., H, W, 3]` of the last step's latents.

        Args:
            halves: Checkerboard halves `[..., H/2, W/4, 6]`: anchors, then the rest.
            support: `[..., H/2, W/2, 6]`.
            radius: Rows on which a row of what `rise` gives depends, each way, even.
            rise: From parts of the three to that part of the picture's state, `[..., h, w, 3]` of twice the size.
            post_radius: Rows on which a row of the post-filter depends, each way, a multiple of 16.
            finish: From a part of the state to pixels.
        """
        axis = self.axis
        across = 2 if axis == 1 else 1  # columns of a half are every other one

        def risen(start: int, stop: int) -> Any:
            first, last = self._with(radius, start, stop)
            parts = [_cut(half, axis, first // across, last // across) for half in halves]
            return _cut(rise(parts[0], parts[1], _cut(support, axis, first, last)), axis, 2 * (start - first), 2 * (stop - first))

        out = _Whole(axis, 2 * self.length)
        window, begins, ends = None, 0, 0  # of the state, from row `begins` to row `ends`
        for start, stop in self._bounds():
            first, last = self._with(post_radius, start, stop)
            if window is None:
                window = risen(first, last)
            else:
                kept = _cut(window, axis, 2 * (first - begins), 2 * (ends - begins))
                if last > ends:
                    longer = _Whole(axis, 2 * (last - first))
                    longer.place(0, kept)
                    longer.place(2 * (ends - first), risen(ends, last))
                    kept = longer.array
                window = kept
            begins, ends = first, last
            out.place(2 * start, _cut(finish(window), axis, 2 * (start - first), 2 * (stop - first)))
        return out.array
