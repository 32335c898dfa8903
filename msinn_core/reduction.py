"""Area-downscaling in whole numbers: what a picture of less than full size is where the network has no head for it, and of alpha planes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msinn_core.picture import Picture


def reduced_side(side: int, scale: int) -> int:
    """Pixels of a side that becomes `scale` times smaller: rounded up, so that every pixel has its share.

    >>> [reduced_side(side, 4) for side in (1, 4, 5, 768)]
    [1, 1, 2, 192]
    """
    return -(-side // scale)


def area_reduced(plane: NDArray[np.uint8] | NDArray[np.uint16], scale: int) -> NDArray[Any]:
    """The mean of each `scale` x `scale` block, rounded half up: `[ceil(H / scale), ceil(W / scale), ...]` of `[H, W, ...]`, of the same type.

    At the right and lower edge the mean of what there is of a block. Exact: the same on every machine.

    >>> area_reduced(np.array([[0, 1, 9], [1, 1, 9]], np.uint8), 2).tolist()
    [[1, 9]]
    """
    if scale == 1:
        return plane
    height, width = plane.shape[:2]
    # Columns first: of a large picture what lies between is to be small.
    sums = np.add.reduceat(plane, np.arange(0, width, scale), axis=1, dtype=np.uint32)
    sums = np.add.reduceat(sums, np.arange(0, height, scale), axis=0, dtype=np.uint32)
    rows, columns = (np.minimum(scale, side - np.arange(0, side, scale)).astype(np.uint32) for side in (height, width))
    counts = np.multiply.outer(rows, columns).reshape(*sums.shape[:2], *(1,) * (plane.ndim - 2))
    found: NDArray[Any] = ((2 * sums + counts) // (2 * counts)).astype(plane.dtype)
    return found


def reduced_picture(picture: Picture, scale: int) -> Picture:
    """A picture so many times smaller, with all that came with it. Colour and alpha are reduced each by itself."""
    alpha = None if picture.alpha is None else area_reduced(picture.alpha, scale)
    return replace(picture, pixels=area_reduced(picture.pixels, scale), alpha=alpha)
