"""Context model: cross-scale, spatial (checkerboard), parameters, latent residual prediction (MSINN section III-B)."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from msinn_core.config import LATENT_CHANNELS, MsinnConfig
from msinn_core.float.layers import MaskedConv2d, conv3x3_stack, stack


def cc_transforms(config: MsinnConfig) -> nn.ModuleList:
    """Cross-scale stacks of steps 1..4: support `[N, C, h, w]` -> `[N, 2C, h, w]`."""
    return nn.ModuleList(
        conv3x3_stack(c, config.context_widths[k], 2 * c, config.cc_layers, config.context_activation) for k, c in enumerate(LATENT_CHANNELS) if k > 0
    )


def sc_transforms(config: MsinnConfig) -> nn.ModuleList:
    """Spatial stacks of steps 0..4: latents on anchors, zero elsewhere -> `[N, 2C, h, w]`, valid off the anchors."""

    def one(c: int, width: int) -> nn.Sequential:
        sizes = [c, *[width] * (config.sc_layers - 1), 2 * c]
        kinds = ["edges"] + ["corners"] * (config.sc_layers - 1)
        convs: list[nn.Module] = [MaskedConv2d(a, b, kind) for a, b, kind in zip(sizes[:-1], sizes[1:], kinds, strict=True)]
        return stack(convs, config.context_activation)

    return nn.ModuleList(one(c, width) for c, width in zip(LATENT_CHANNELS, config.context_widths, strict=True))


def entropy_parameters(config: MsinnConfig) -> nn.ModuleList:
    """1x1 stacks of steps 0..4: `[N, 4C, ..]` -> `[N, 2C, ..]`, scales first, then means."""

    def one(c: int) -> nn.Sequential:
        sizes = [4 * c, 10 * c // 3, 8 * c // 3, 2 * c]
        convs: list[nn.Module] = [nn.Conv2d(a, b, 1) for a, b in pairwise(sizes)]
        return stack(convs, config.context_activation)

    return nn.ModuleList(one(c) for c in LATENT_CHANNELS)


def lrp_transforms(config: MsinnConfig) -> nn.ModuleList:
    """Latent residual prediction of steps 0..4: `cat(y_hat, support)` -> `[N, C, h, w]`; step 0 has no support."""
    return nn.ModuleList(
        conv3x3_stack(c if k == 0 else 2 * c, config.context_widths[k], c, config.lrp_layers, config.context_activation)
        for k, c in enumerate(LATENT_CHANNELS)
    )
