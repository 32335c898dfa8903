"""Rate-aware rounding: what it promises about bits and error, and that both its forms agree."""

from __future__ import annotations

import numpy as np
import torch

from msinn_core.codec import Codec
from msinn_core.entropy.tables import gaussian_tables
from msinn_core.float.likelihood import gaussian_bits
from msinn_core.float.rounding import rate_aware_round, rate_aware_round_continuous
from msinn_core.integer.engine import IntegerEngine
from msinn_core.metrics import mse
from msinn_core.model_file import LoadedModel
from msinn_core.picture import Picture
from msinn_core.quantiser import DISTORTION_WEIGHT, widened_zone


def _case(model: LoadedModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    scales = torch.exp(torch.rand(200_000, generator=generator) * 6 - 2)
    indexes = torch.bucketize(scales, torch.from_numpy(model.tables.thresholds))
    return torch.randn(200_000, generator=generator) * scales, scales, indexes


def test_symbols_move_at_most_one_step_and_only_towards_zero(model: LoadedModel) -> None:
    exact, _, indexes = _case(model)
    symbols = rate_aware_round(exact, indexes, torch.from_numpy(widened_zone(model.tables)))
    moved = torch.round(exact) - symbols
    assert set(moved.abs().unique().tolist()) == {0.0, 1.0}
    assert bool((moved * torch.sign(exact) >= 0).all())
    assert not bool(((symbols == 0) & (exact.abs() > 1.5)).any())


def test_the_cost_it_minimises_never_rises(model: LoadedModel) -> None:
    exact, scales, _ = _case(model)

    def cost(symbols: torch.Tensor) -> torch.Tensor:
        return gaussian_bits(symbols, scales) + DISTORTION_WEIGHT * (exact - symbols).square()

    symbols = rate_aware_round_continuous(exact, scales)
    assert bool((cost(symbols) <= cost(torch.round(exact)) + 1e-4).all())
    assert float((symbols != torch.round(exact)).float().mean()) > 0.01


def test_tables_and_gaussian_agree(model: LoadedModel) -> None:
    exact, scales, indexes = _case(model)
    by_table = rate_aware_round(exact, indexes, torch.from_numpy(widened_zone(gaussian_tables())))
    # Tables quantise scales to 128 levels: decisions at the edge of the zone may differ, and nothing else.
    assert float((by_table != rate_aware_round_continuous(exact, scales)).float().mean()) < 0.005


def test_it_spends_fewer_bits_than_error_is_worth(codec: Codec, tile: Picture) -> None:
    latents = codec.transform(tile)
    aware = codec.pack(codec.compress(latents, 3.0))
    assert isinstance(codec.engine, IntegerEngine)
    zone, codec.engine.zone = codec.engine.zone, np.zeros_like(codec.engine.zone)
    try:
        plain = codec.pack(codec.compress(latents, 3.0))
    finally:
        codec.engine.zone = zone
    saved = 1 - len(aware) / len(plain)
    lost = mse(codec.decode(aware)[0].pixels, tile.pixels) / mse(codec.decode(plain)[0].pixels, tile.pixels) - 1
    assert saved > 0.02
    assert lost < 2 * saved
