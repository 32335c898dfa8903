"""Where training starts: the informed initialisation, and growing a network by anchors (DESIGN: CODEC section 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from msinn_core.config import LATENT_CHANNELS, MsinnConfig
from msinn_core.errors import CheckpointError
from msinn_core.float.model import Msinn
from msinn_core.float.transform import InvertibleConv1x1, InvertibleUnit

STEP_PER_SQRT_LAMBDA = 0.02
"""`gain = sqrt(lambda) / 0.02`: the uniform quantiser's optimal step for an orthonormal transform at slope lambda."""

# Luma first, then two chroma differences: the orthonormal decorrelation of natural RGB.
_COLOUR = ((1 / math.sqrt(3),) * 3, (1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)), (1 / math.sqrt(6), -2 / math.sqrt(6), 1 / math.sqrt(6)))


def _haar(channels: int) -> Tensor:
    """Orthonormal `[4C, 4C]` over squeezed channels: diagonal and vertical details of all C channels, then horizontal ones and means.

    The first half leaves the transform as a latent, the second goes down a level.
    """
    bands = torch.tensor([[1.0, -1, -1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, 1, 1, 1]]) / 2
    return torch.kron(bands, torch.eye(channels))


def _halves_swapped(matrix: Tensor) -> Tensor:
    return matrix.roll(len(matrix) // 2, dims=0)


def informed(model: Msinn, x: Tensor) -> None:
    """Initialise in place: gains by lambda, a Haar and colour transform in the first unit of each level, halves swapped in the others.

    Coupling blocks end in zero convolutions, so that the transform starts orthonormal. The scale head starts at the spread of each latent channel.
    Permutations without a matrix stay as they are.

    Args:
        model: Just constructed.
        x: `[N, 3, H, W]` float32 in [0, 1], a few dozen training crops: they set the spread.
    """
    with torch.no_grad():
        for number, level in enumerate(model.levels):
            units: list[InvertibleUnit] = list(level)  # type: ignore[arg-type]
            matrices = [unit.permute.weight for unit in units if isinstance(unit.permute, InvertibleConv1x1)]
            for weight in matrices[1:]:
                weight.copy_(_halves_swapped(torch.eye(len(weight))))
            if matrices:
                channels = len(matrices[0]) // 4
                first = _haar(channels)
                if number == 0:
                    first = first @ torch.kron(torch.eye(4), torch.tensor(_COLOUR))
                # After an odd number of swaps the halves must lie as they would without any.
                matrices[0].copy_(_halves_swapped(first) if len(matrices) % 2 == 0 else first)
        spread = torch.cat([y.std(dim=(0, 2, 3)) for y in model.analysis(x)])[None, :, None, None].clamp_min(1e-3)
        gain = (torch.tensor(model.config.lambdas, device=x.device).sqrt() / STEP_PER_SQRT_LAMBDA)[:, None, None, None]
        model.gain.copy_(gain.expand_as(model.gain))
        model.inv_gain.copy_((1 / gain).expand_as(model.inv_gain))
        # Scales come out of the head in units of the channel's spread, so that 1 is the honest first guess for all of them.
        model.scale_gain.copy_(gain * spread)
        for head, channels in zip(model.entropy_parameters, LATENT_CHANNELS, strict=True):
            last = head[-1]  # type: ignore[index]
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            last.weight.mul_(0.1)
            last.bias[:channels] = 1.0
            last.bias[channels:] = 0.0


def extend_anchors(state: Mapping[str, Tensor], old: MsinnConfig, new: MsinnConfig) -> dict[str, Tensor]:
    """Parameters of `old` for `new`, which may have more anchors: the paper's way from 8 to 12.

    The new anchors continue the last one's gains by `sqrt(lambda)`.

    Raises:
        CheckpointError: The networks differ in more than the number of anchors.
    """
    shape = {key: getattr(old, key) for key in old.__slots__ if key not in ("name", "anchor_num", "lambdas")}
    differing = [key for key, value in shape.items() if getattr(new, key) != value]
    if differing:
        raise CheckpointError(
            f"the start has another {' and '.join(differing)} than the configuration: {', '.join(str(shape[k]) for k in differing)}"
        )
    if new.anchor_num < old.anchor_num:
        raise CheckpointError(f"the start has {old.anchor_num} anchors; the configuration asks for only {new.anchor_num}")
    result = dict(state)
    if new.anchor_num > old.anchor_num:
        ratio = torch.tensor([math.sqrt(value / old.lambdas[-1]) for value in new.lambdas[old.anchor_num :]])[:, None, None, None]
        for key, factor in (("gain", ratio), ("inv_gain", 1 / ratio), ("scale_gain", ratio)):
            result[key] = torch.cat((state[key], state[key][-1:] * factor))
    return result
