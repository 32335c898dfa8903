"""Training tiles on the device, and the crops cut from them there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from msinn_core.errors import ConfigError
from msinn_core.training.augment import PEAK, jpeg, recolour, rounded

COLOUR_GAINS, GAMMAS = (0.8, 1.2), (0.8, 1.25)
JPEG_QUALITIES = (60, 98)


def cut(pixels: NDArray[np.uint8], side: int) -> Iterator[NDArray[np.uint8]]:
    """Square tiles of a picture, spread evenly, overlapping no more than they must; none if a side is shorter.

    Args:
        pixels: uint8 `[H, W, 3]`.
        side: Of the tiles, in pixels.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < side:
        return
    rows, columns = (np.linspace(0, length - side, max(1, length // side)).round().astype(int) for length in (height, width))
    for row in rows:
        for column in columns:
            yield pixels[row : row + side, column : column + side]


class Tiles:
    """A ring of uint8 tiles `[capacity, 3, S, S]` on a device. A set larger than the ring streams through it: the oldest tile makes place.

    The content after n tiles is a function of n alone, so that a resumed run sees the same crops.

    Args:
        capacity: Tiles kept.
        side: Of the tiles.
        device: Where they live.
    """

    def __init__(self, capacity: int, side: int, device: torch.device) -> None:
        if capacity < 1:
            raise ConfigError("not one training tile fits into resident_mib: raise it")
        self.side = side
        self.device = device
        self.capacity = capacity
        self.num_seen = 0
        self._tiles = torch.empty((0, 3, side, side), dtype=torch.uint8, device=device)

    def __len__(self) -> int:
        return min(self.num_seen, self.capacity)

    def restart(self, num_seen: int) -> None:
        """Empty the ring so that the next tile is number `num_seen`; the caller appends `capacity` tiles before crops are cut."""
        self._tiles = torch.empty((self.capacity, 3, self.side, self.side), dtype=torch.uint8, device=self.device)
        self.num_seen = num_seen

    def extend(self, tiles: list[NDArray[np.uint8]]) -> None:
        """Append tiles uint8 `[S, S, 3]`."""
        if not tiles:
            return
        stacked = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2)
        room = self.capacity - len(self._tiles)
        if room > 0:
            self._tiles = torch.cat((self._tiles, stacked[:room].to(self.device).contiguous()))
        for i in range(room if room > 0 else 0, len(tiles)):
            self._tiles[(self.num_seen + i) % self.capacity] = stacked[i].to(self.device)
        self.num_seen += len(tiles)

    def crops(
        self, batch: int, side: int, downscale_share: float, generator: torch.Generator, *, colour_share: float = 0.0, jpeg_share: float = 0.0
    ) -> Tensor:
        """`[batch, 3, side, side]` float32 in [0, 1], multiples of 1/255: random places, flips and turns, and what the shares say.

        Args:
            batch: Crops.
            side: In pixels, at most that of the tiles; with a `jpeg_share` a multiple of 16.
            downscale_share: Share of crops that are antialiased down from up to twice the side.
            generator: On the CPU; decides everything.
            colour_share: Share of crops whose colours are changed (`COLOUR_GAINS`, `GAMMAS`).
            jpeg_share: Share of crops that were a JPEG file (`JPEG_QUALITIES`, two of three with subsampled chroma).

        Raises:
            ConfigError: There are no tiles.
        """
        if not len(self):
            raise ConfigError("there are no training tiles")
        which = torch.randint(len(self), (batch,), generator=generator).tolist()
        scaled = (torch.rand(batch, generator=generator) < downscale_share).tolist()
        sides = (side * (1 + torch.rand(batch, generator=generator))).int().clamp(max=self.side).tolist()
        places = torch.rand((batch, 2), generator=generator).tolist()
        turns = torch.randint(8, (batch,), generator=generator).tolist()
        crops = []
        for i in range(batch):
            size = sides[i] if scaled[i] else side
            row, column = (int(place * (self.side - size + 1)) for place in places[i])
            crop = self._tiles[which[i], :, row : row + size, column : column + size][None].float()
            if size != side:
                crop = rounded(F.interpolate(crop, size=(side, side), mode="bicubic", antialias=True, align_corners=False))
            crop = torch.rot90(crop, turns[i] % 4, (2, 3))
            crops.append(crop.flip(3) if turns[i] >= 4 else crop)
        x = torch.cat(crops)
        # A share of nothing draws nothing, so that runs without it go on with the numbers they had.
        if colour_share:
            self._recolour(x, colour_share, generator)
        if jpeg_share:
            self._through_jpeg(x, jpeg_share, generator)
        return x / PEAK

    def _recolour(self, x: Tensor, share: float, generator: torch.Generator) -> None:
        chosen = torch.rand(len(x), generator=generator) < share
        gamma = torch.empty(len(x)).uniform_(*GAMMAS, generator=generator)
        gain = torch.empty(len(x), 3).uniform_(*COLOUR_GAINS, generator=generator)
        if chosen.any():
            at, gamma, gain = (self._sent(value) for value in (chosen.nonzero()[:, 0], gamma[chosen], gain[chosen]))
            x[at] = recolour(x[at], gamma, gain)

    def _through_jpeg(self, x: Tensor, share: float, generator: torch.Generator) -> None:
        chosen = torch.rand(len(x), generator=generator) < share
        quality = torch.randint(JPEG_QUALITIES[0], JPEG_QUALITIES[1] + 1, (len(x),), generator=generator).float()
        halved = torch.rand(len(x), generator=generator) < 2 / 3
        for subsampled in (False, True):
            these = chosen & (halved == subsampled)
            if these.any():
                at = self._sent(these.nonzero()[:, 0])
                x[at] = jpeg(x[at], self._sent(quality[these]), subsampled=subsampled)

    def _sent(self, value: Tensor) -> Tensor:
        """On the device, without waiting for what the device has yet to do."""
        return value.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else value
