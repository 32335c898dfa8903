"""Shape of the network as one frozen, self-checking value."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msinn_core.errors import ConfigError

LEVEL_CHANNELS = (12, 24, 48, 96)
"""Channels inside level 0..3 of the transform (MSINN section III-A)."""

LATENT_CHANNELS = (48, 48, 24, 12, 6)
"""Channels of y5, y4, y3, y2, y1, the order in which they are coded."""

LATENT_STRIDES = (16, 16, 8, 4, 2)
"""Image pixels per latent position, y5..y1."""

NUM_LATENT_CHANNELS = sum(LATENT_CHANNELS)

SIZE_MULTIPLE = 32
"""Sides given to the network are multiples of this: the coarsest latents then have even sides, so that both checkerboard halves have one size."""

DEFAULT_MAX_PIXELS = 100_000_000
"""Pictures above this are refused. The integer profile needs up to 40 bytes of memory per pixel, 4 GB for such a picture; the float one 230."""

PAPER_LAMBDAS = (0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.0483, 0.0932, 0.18, 0.32, 0.569, 1.012, 1.8)

MAX_DEPTH, MAX_WIDTH = 32, 2048
"""Of what a file may ask for; the paper's network has depths of 4 and widths up to 192."""

_CHOICES = {
    "permutation": ("invconv", "shuffle", "reverse", "cross"),
    "coupling": ("affine", "additive"),
    "context_activation": ("gelu", "leaky_relu_0.01"),
    "post_filter": ("paper", "lite", "none"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MsinnConfig:
    """Everything that decides names and shapes of the parameters.

    Attributes:
        name: Preset or free name; not part of the shape.
        anchor_num: Number of anchor rates A; q runs over [0, A - 1].
        depths: Invertible units in transform level 0..3.
        hidden: Width of the coupling blocks in level 0..3.
        context_widths: Width of the context stacks of coding step k = 0..4 (y5..y1).
        cc_layers: Convolutions in each cross-scale stack.
        sc_layers: Masked convolutions in each spatial stack.
        lrp_layers: Convolutions in each latent residual prediction stack.
        context_activation: `gelu` (exact erf form) or `leaky_relu_0.01`.
        permutation: Channel permutation of a unit: `invconv`, `shuffle`, `reverse` or `cross`.
        coupling: `affine` or `additive`.
        actnorm: Whether units begin with a per-channel affine map.
        lrp: Whether latents get a residual prediction.
        post_filter: `paper` (U-Net with squeeze-excite), `lite`, or `none`.
        lambdas: Lagrange weight of the MSE per anchor.

    Raises:
        ConfigError: A value is outside its range.
    """

    name: str
    anchor_num: int
    depths: tuple[int, ...]
    hidden: tuple[int, ...]
    context_widths: tuple[int, ...]
    cc_layers: int
    sc_layers: int
    lrp_layers: int
    context_activation: str
    permutation: str
    coupling: str
    actnorm: bool
    lrp: bool
    post_filter: str
    lambdas: tuple[float, ...]

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ConfigError(f"{field} is {getattr(self, field)!r}; choose one of {', '.join(choices)}")
        for field, length in (("depths", 4), ("hidden", 4), ("context_widths", 5)):
            value = getattr(self, field)
            most = MAX_DEPTH if field == "depths" else MAX_WIDTH
            if len(value) != length or not all(type(v) is int and 1 <= v <= most for v in value):
                raise ConfigError(f"{field} is {value!r}; it takes {length} whole numbers from 1 to {most}")
        for field in ("cc_layers", "sc_layers", "lrp_layers"):
            if type(getattr(self, field)) is not int or not 2 <= getattr(self, field) <= 16:
                raise ConfigError(f"{field} is {getattr(self, field)!r}; it takes 2 to 16 layers")
        if type(self.anchor_num) is not int or not 2 <= self.anchor_num <= 64:
            raise ConfigError(f"anchor_num is {self.anchor_num!r}; it takes 2 to 64 anchor rates")
        if len(self.lambdas) != self.anchor_num:
            raise ConfigError(f"{len(self.lambdas)} lambdas for {self.anchor_num} anchors; give one lambda per anchor")
        if not all(type(value) in (int, float) and 0 < value < math.inf for value in self.lambdas):
            raise ConfigError("lambdas are no positive numbers")
        if not isinstance(self.name, str) or not isinstance(self.actnorm, bool) or not isinstance(self.lrp, bool):
            raise ConfigError("the name is no text, or actnorm or lrp neither true nor false")

    @property
    def q_max(self) -> float:
        """Largest valid q (best quality)."""
        return float(self.anchor_num - 1)

    def to_json(self) -> str:
        """One JSON object; `from_json` of it gives an equal value."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> MsinnConfig:
        """Build from parsed JSON.

        Raises:
            ConfigError: A key is missing, unknown, or has a bad value.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(mapping) - known:
            raise ConfigError(f"unknown configuration keys: {', '.join(sorted(unknown))}")
        if missing := known - set(mapping):
            raise ConfigError(f"missing configuration keys: {', '.join(sorted(missing))}")
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in mapping.items()}
        try:
            return cls(**values)
        except (TypeError, OverflowError) as error:
            raise ConfigError(f"a configuration value has the wrong type: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> MsinnConfig:
        """Parse what `to_json` wrote.

        Raises:
            ConfigError: Not a JSON object of this kind.
        """
        try:
            mapping = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the configuration is not JSON: {error}") from error
        if not isinstance(mapping, dict):
            raise ConfigError("the configuration is not a JSON object")
        return cls.from_mapping(mapping)


def preset(name: str, *, anchor_num: int = 12) -> MsinnConfig:
    """A named configuration.

    Args:
        name: `msinn-base` (the paper's network, 12.3 M parameters) or `msinn-lite` (2.8 M).
        anchor_num: 8 or 12 in the paper.

    Raises:
        ConfigError: No such preset.
    """
    lambdas = PAPER_LAMBDAS[:anchor_num]
    if name == "msinn-base":
        return MsinnConfig(
            name=name, anchor_num=anchor_num, depths=(4, 4, 4, 4), hidden=(128, 128, 128, 192), context_widths=(128,) * 5,
            cc_layers=5, sc_layers=4, lrp_layers=5, context_activation="gelu", permutation="invconv", coupling="affine",
            actnorm=True, lrp=True, post_filter="paper", lambdas=lambdas,
        )  # fmt: skip
    if name == "msinn-lite":
        return MsinnConfig(
            name=name, anchor_num=anchor_num, depths=(2, 3, 4, 4), hidden=(32, 48, 64, 96), context_widths=(96, 96, 64, 48, 32),
            cc_layers=4, sc_layers=3, lrp_layers=3, context_activation="leaky_relu_0.01", permutation="invconv", coupling="affine",
            actnorm=True, lrp=True, post_filter="lite", lambdas=lambdas,
        )  # fmt: skip
    raise ConfigError(f"no preset {name!r}; there are msinn-base and msinn-lite")
