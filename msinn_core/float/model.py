"""The network in IEEE floats: it serves training, estimation and evaluation. The walk over its levels is `walk.walk`."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from msinn_core.config import LATENT_CHANNELS, NUM_LATENT_CHANNELS, SIZE_MULTIPLE, MsinnConfig
from msinn_core.errors import ConfigError
from msinn_core.float import context
from msinn_core.float.gain import Gains, gains_at
from msinn_core.float.layers import MaskedConv2d, pack, reduced_precision, unpack, unsqueeze
from msinn_core.float.likelihood import gaussian_bits
from msinn_core.float.postfilter import post_filter
from msinn_core.float.rounding import rate_aware_round_continuous
from msinn_core.float.transform import InvertibleUnit, Level, analysis, synthesis
from msinn_core.walk import finished, walk


class SymbolCoder(Protocol):
    """What happens to the symbols of one checkerboard half: estimated, collected for a stream, or read from one."""

    def symbols(self, k: int, parity: int, means: Tensor, scales: Tensor, gain: Tensor) -> Tensor:
        """Whole-number symbols `[N, C, h, w/2]` (float) of coding step `k` at positions of `parity`.

        Args:
            k: Coding step 0..4 (y5..y1).
            parity: `(row + col) % 2` of the positions.
            means: Predicted means, packed `[N, C, h, w/2]`, in units of the latent.
            scales: Predicted Gaussian scales in units of symbols, packed.
            gain: `[N or 1, C, 1, 1]`; symbol = round((y - means) * gain).
        """


class Estimator:
    """Bits of the symbols from the Gaussian likelihood.

    Args:
        latents: y5..y1.
        rate_aware: Round as our encoders do (`quantiser`), not to the nearest.
        training: Values pass their gradient straight through the rounding.
        noise: When training, the rate is taken at values plus uniform noise. Without, it is the symbols' own: the scales learn what the rounding does
            to the distribution, while the values keep the gradient that noise gives (a rounded value has none of its own: trained straight
            through, gains only ever rise).
    """

    def __init__(self, latents: list[Tensor], *, training: bool, rate_aware: bool = False, noise: bool = True) -> None:
        self.latents = latents
        self.rate_aware = rate_aware
        self.training = training
        self.noise = noise
        self.bits: list[Tensor] = [latents[0].new_zeros(latents[0].shape[0]) for _ in latents]

    def symbols(self, k: int, parity: int, means: Tensor, scales: Tensor, gain: Tensor) -> Tensor:
        exact = (pack(self.latents[k], parity) - means) * gain
        rounded = rate_aware_round_continuous(exact, scales) if self.rate_aware else torch.round(exact)
        symbols = exact + (rounded - exact).detach() if self.training else rounded
        if not self.training:
            bits = gaussian_bits(rounded, scales)
        elif self.noise:
            bits = gaussian_bits(exact + (torch.rand_like(exact) - 0.5), scales)
        else:
            noisy = gaussian_bits(exact + (torch.rand_like(exact) - 0.5), scales.detach())
            bits = gaussian_bits(rounded, scales) + (noisy - noisy.detach())
        self.bits[k] = self.bits[k] + bits.sum(dim=(1, 2, 3))
        return symbols


class Msinn(nn.Module):
    """Multi-scale invertible network codec.

    `model(x, q)` takes `x` `[N, 3, H, W]` float32 in [0, 1], H and W multiples of 32, and `q` in [0, A - 1] (a number or `[N]`); it returns
    `x_hat` `[N, 3, H, W]` (not clamped) and `bits` `[N, 5]`, estimated bits of y5..y1.
    """

    def __init__(self, config: MsinnConfig) -> None:
        super().__init__()
        self.config = config
        shape = (config.anchor_num, NUM_LATENT_CHANNELS, 1, 1)
        self.initial_scale = nn.Parameter(torch.ones(1, LATENT_CHANNELS[0], 1, 1))
        self.gain = nn.Parameter(torch.ones(shape))
        self.inv_gain = nn.Parameter(torch.ones(shape))
        self.scale_gain = nn.Parameter(torch.ones(shape))
        self.g_a0, self.g_a1, self.g_a2, self.g_a3 = (Level(level, config) for level in range(4))
        self.cc_transforms = context.cc_transforms(config)
        self.sc_transforms = context.sc_transforms(config)
        self.entropy_parameters = context.entropy_parameters(config)
        self.lrp_transforms = context.lrp_transforms(config) if config.lrp else None
        self.post_net = post_filter(config.post_filter)
        self.reduced: torch.dtype | None = None
        self.noise = True
        self.rate_aware = False

    @property
    def levels(self) -> list[Level]:
        """Transform levels 0..3, finest first."""
        return [self.g_a0, self.g_a1, self.g_a2, self.g_a3]

    def fold(self) -> Msinn:
        """Prepare for inference: masks and 1x1 inverses computed once, convolutions channels-last, no gradients. Returns itself."""
        self.eval().requires_grad_(False)
        for module in self.modules():
            if isinstance(module, InvertibleUnit):
                module.fold()
            elif isinstance(module, MaskedConv2d):
                module.fold_mask()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def reduce_precision(self, dtype: torch.dtype | None) -> None:
        """For training: run couplings and context stacks under autocast. The flow's main path, gains, likelihoods and post-filter stay float32."""
        self.reduced = dtype
        for module in self.modules():
            if isinstance(module, InvertibleUnit):
                module.reduced = dtype

    def gains(self, q: float | Tensor) -> Gains:
        """Gains at q. Raises `ConfigError` outside [0, A - 1]."""
        return gains_at(self.gain, self.inv_gain, self.scale_gain, q)

    def analysis(self, x: Tensor) -> list[Tensor]:
        """`g_a`: `[N, 3, H, W]` -> latents y5..y1.

        Raises:
            ConfigError: H or W is not a multiple of 32.
        """
        if x.shape[-2] % SIZE_MULTIPLE or x.shape[-1] % SIZE_MULTIPLE:
            raise ConfigError(f"the network takes sides that are multiples of {SIZE_MULTIPLE}, not {x.shape[-2]} x {x.shape[-1]}: pad first")
        return analysis(self.levels, x)

    def synthesis(self, latents: list[Tensor]) -> Tensor:
        """`g_s`, the inverse of `analysis`; no post-filter."""
        return synthesis(self.levels, latents)

    # The protocol of `walk.Network`; arrays are `[N, C, H, W]`, `y` and support in units of the latent ----------------------------------------------

    def cross_scale(self, k: int, support: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        if support is None:
            n, h, w = shape
            scale = self.initial_scale.expand(n, -1, h, w)
            return torch.cat((scale, torch.zeros_like(scale)), dim=1)
        with reduced_precision(support, self.reduced):
            cc: Tensor = self.cc_transforms[k - 1](support).float()
        return cc

    def halve(self, x: Tensor, parity: int) -> Tensor:
        return pack(x, parity)

    def predict(self, k: int, cc: Tensor, sc: Tensor | None) -> Tensor:
        parameters: Tensor = self.entropy_parameters[k](torch.cat((cc, torch.zeros_like(cc) if sc is None else sc), dim=1)).float()
        return parameters

    def code(self, coder: SymbolCoder, k: int, parity: int, parameters: Tensor, gains: Gains) -> Tensor:
        gain, inv_gain, scale_gain = gains.level(k)
        scales, means = parameters.chunk(2, dim=1)
        return coder.symbols(k, parity, means, scales * scale_gain, gain) * inv_gain + means

    def spatial(self, k: int, anchors: Tensor, parity: int) -> Tensor:
        with reduced_precision(anchors, self.reduced):
            return pack(self.sc_transforms[k](unpack(anchors, 1 - parity)).float(), parity)

    def join(self, anchors: Tensor, parity: int, rest: Tensor) -> Tensor:
        return unpack(anchors, parity, rest)

    def refine(self, k: int, y: Tensor, support: Tensor | None, gains: Gains) -> Tensor:
        if self.lrp_transforms is None:
            return y
        with reduced_precision(y, self.reduced):
            prediction = self.lrp_transforms[k](y if support is None else torch.cat((y, support), dim=1)).float()
            return y + 0.5 * torch.tanh(prediction) * gains.level(k)[1]

    def rise(self, k: int, y: Tensor, support: Tensor | None) -> Tensor:
        return y if support is None else unsqueeze(self.levels[4 - k].inverse(torch.cat((y, support), dim=1)))

    def finish(self, halves: tuple[Tensor, Tensor], support: Tensor | None, gains: Gains) -> Tensor:
        picture: Tensor = finished(self, halves, support, gains)
        return picture

    def picture(self, support: Tensor) -> Tensor:
        return support if self.post_net is None else self.post_net(support)

    def forward(self, x: Tensor, q: float | Tensor) -> tuple[Tensor, Tensor]:
        """See the class. Raises `ConfigError` for a bad size, and outside training for a bad q."""
        latents = self.analysis(x)
        estimator = Estimator(latents, training=self.training, rate_aware=self.rate_aware, noise=self.noise)
        n, _, h, w = latents[0].shape
        gains = gains_at(self.gain, self.inv_gain, self.scale_gain, q, checked=not self.training)
        x_hat = walk(self, estimator, gains, (n, h, w)).picture()
        return x_hat, torch.stack(estimator.bits, dim=1)
