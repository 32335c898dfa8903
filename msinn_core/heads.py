"""Heads: from the state of a coarse level to the picture at 1/2, 1/4, 1/8 or 1/16 of its size (INTEGER.md, section 8).

```
first streams --> walk.begun: some steps, later streams taken as empty --> support --squeeze--> narrow --3x3 layer--> pixels
```
A head says how many of the ten streams it reads and how many steps are walked: the last of these may go beyond the streams, where latents stand at
their predicted means. All of it is whole numbers, so that every machine gives the same pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msinn_core.config import LATENT_CHANNELS, LATENT_STRIDES
from msinn_core.errors import CheckpointError
from msinn_core.integer.arrays import I32, STATE_BITS
from msinn_core.integer.ops import DENSE, Layer
from msinn_core.integer.packed import PackedTensors
from msinn_core.walk import NUM_STEPS

SCALES = (2, 4, 8, 16)
"""How many times smaller pictures can be had than they are, each way."""

OUT_BITS = 14
"""Fractional bits of what a head gives: 1.0 is full scale of a pixel."""

OUT_SHIFT = STATE_BITS - OUT_BITS
PREFIX = "heads."
"""Of its tensors' names in a file."""


def stride_after(num_steps: int) -> int:
    """Pixels of the picture, each way, for each position of the support after so many steps.

    >>> [stride_after(num_steps) for num_steps in (1, 2, 3, 4, 5)]
    [16, 8, 4, 2, 1]
    """
    return LATENT_STRIDES[0] >> num_steps - 1


def channels_of(scale: int, num_steps: int) -> int:
    """Channels of the support after so many steps, squeezed to 1 / `scale` of the picture's size."""
    return (LATENT_CHANNELS[0] >> num_steps - 1) * (scale // stride_after(num_steps)) ** 2


@dataclass(frozen=True)
class Head:
    """What makes pictures of one scale.

    Attributes:
        scale: One of `SCALES`.
        num_streams: Of the ten, from the first on, that it reads: 1 to 2 `num_steps`.
        num_steps: Of the walk: 1 to 5, so that the support has 1 / `scale` of the picture's size, or more.
        in_shift: int32 `[C]`, from state to the layer's inputs.
        layer: 3x3, of C inputs and 3 outputs: red, green, blue with `OUT_BITS` fractional bits.
    """

    scale: int
    num_streams: int
    num_steps: int
    in_shift: I32
    layer: Layer

    @property
    def num_squeezes(self) -> int:
        """How often the support is squeezed until it has the picture's size."""
        return (self.scale // stride_after(self.num_steps)).bit_length() - 1


def known(streams: Sequence[bytes]) -> list[bytes]:
    """Ten streams: these first ones, and empty ones, whose symbols are all 0: latents at their predicted means."""
    return [*streams, *[b""] * (2 * NUM_STEPS - len(streams))]


def read_heads(tensors: Mapping[str, NDArray[Any]]) -> dict[int, Head]:
    """Heads by scale; empty if a file has none.

    Args:
        tensors: Of a model file, or of a file of heads: `heads.SCALE.plan` (streams, steps), `.in_shift`, `.weight`, `.bias`, `.shift`.

    Raises:
        CheckpointError: A tensor is missing, of another shape or type, or breaks a bound of INTEGER.md.
    """
    named = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    parts = PackedTensors(named)
    return {scale: _head(parts, scale) for scale in SCALES if any(name.startswith(f"{scale}.") for name in named)}


def _head(parts: PackedTensors, scale: int) -> Head:
    num_streams, num_steps = (int(number) for number in parts.get(f"{scale}.plan", (2,), 1, 2 * NUM_STEPS))
    if num_steps > NUM_STEPS or num_streams > 2 * num_steps or stride_after(num_steps) > scale:
        raise CheckpointError(f"a head of scale {scale} reads {num_streams} streams and walks {num_steps} steps, which gives no such picture")
    channels = channels_of(scale, num_steps)
    layer = parts.layer(str(scale), DENSE, False)
    if layer.weight.shape[0] != 3 or layer.weight.shape[2] != channels:
        raise CheckpointError(f"a head of scale {scale} takes {layer.weight.shape[2]} channels to {len(layer.weight)}, not {channels} to 3")
    return Head(scale, num_streams, num_steps, parts.shift(f"{scale}.in_shift", (channels,)), layer)


def head_tensors(head: Head) -> dict[str, NDArray[Any]]:
    """What `read_heads` reads of one."""
    name = f"{PREFIX}{head.scale}"
    return {
        f"{name}.plan": np.array([head.num_streams, head.num_steps], np.int32),
        f"{name}.in_shift": head.in_shift,
        f"{name}.weight": head.layer.weight,
        f"{name}.bias": head.layer.bias,
        f"{name}.shift": head.layer.shift,
    }
