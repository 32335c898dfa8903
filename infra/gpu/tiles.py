"""Sizes of blocks of the kernels, tried on the layers that cost most; with bench.py's `--tiles`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from msinn_core.integer.gpu import layers as gpu_layers
from msinn_core.integer.ops import NUM_TAPS, Layer

SHAPES = ((0, 32, 32, 1), (0, 6, 32, 1), (3, 32, 12, 1), (3, 6, 32, 1), (0, 16, 16, 1), (0, 12, 16, 1), (0, 48, 48, 4), (0, 64, 64, 16))
"""Kind, inputs, outputs, and share of the finest positions, of the layers that cost most."""


def compile_some(jobs: list[tuple[int, int, int, bool, gpu_layers.Tile]]) -> None:
    """Run layers of some shapes once, so that Triton's cache on disk has them. In a process of its own: compiling is what takes time, on one core."""
    rng = np.random.default_rng(0)
    for kind, cin, cout, adds, tile in jobs:
        convolution = with_tile(tile)
        x = torch.zeros((1, 8, 8, cin), dtype=torch.int16, device="cuda")
        add = torch.zeros((1, 8, 8, cout), dtype=torch.int16, device="cuda") if adds else None
        try:
            convolution(x, random_layer(rng, kind, cin, cout, large=False), 0, add)
        except Exception as error:  # shown where it is timed
            print(tile, str(error)[:80])


def timed(shape: tuple[int, int, int, int], device: torch.device, seconds_of: Callable[..., float]) -> tuple[dict[str, Any], gpu_layers.Tile | None]:
    """Microseconds of every choice for one layer, and the best of them."""
    kind, cin, cout, share = shape
    layer = random_layer(np.random.default_rng(2), kind, cin, cout, large=False)
    side = int(share**0.5)
    x = torch.randint(-3000, 3000, (16, 256 // side, 384 // side, cin), dtype=torch.int16, device=device)
    row: dict[str, Any] = {"layer": (kind, cin, cout), "positions": x.numel() // cin}
    best = None
    for tile in candidates(cin, cout):
        convolution = with_tile(tile)
        name = f"{tile.positions}x{tile.out}x{tile.inner}w{tile.warps}"
        try:
            seconds = seconds_of(partial(convolution, x, layer, 0, None), 5, warm=2)
        except Exception as error:  # too much shared memory, say
            row[name] = str(error)[:80]
            continue
        row[name] = round(1e6 * seconds)
        if best is None or seconds < best[0]:
            best = seconds, tile
    return row, None if best is None else best[1]


def with_tile(tile: gpu_layers.Tile) -> gpu_layers.TritonLayers:
    """Layers that all use one size of block."""
    convolution = gpu_layers.TritonLayers()
    convolution.tile_for = lambda kind, cin, cout: tile
    return convolution


def candidates(cin: int, cout: int) -> list[gpu_layers.Tile]:
    """Block sizes worth a look."""
    tiles = []
    for positions, out, inner, warps in itertools.product((64, 128, 256), (16, 32, 64), (32, 64), (4, 8)):
        # Accumulators of 32 bits a thread: two of each position and limb of an output. More than 128 leave no room for anything else.
        accumulators = 4 * positions * out // (32 * warps)
        if (out == 16 or out < 2 * cout) and (inner == 32 or cin > 32) and 16 <= accumulators <= 128:
            tiles.append(gpu_layers.Tile(positions, out, inner, warps))
    return tiles


def random_layer(rng: np.random.Generator, kind: int, cin: int, cout: int, *, large: bool) -> Layer:
    """A layer within the packer's bound: many small weights, or two of the largest."""
    weight = rng.integers(-32767, 32768, (cout, NUM_TAPS[kind], cin)).astype(np.int64)
    if large:
        weight[:] = 0
        weight[:, 0, 0], weight[:, -1, -1] = 32639, -32639
    else:
        weight = (weight * (((1 << 31) - (1 << 20)) / 32768 / np.abs(weight).sum(axis=(1, 2), keepdims=True))).astype(np.int64)
    shift = rng.integers(1, 17, cout).astype(np.int32)
    return Layer(weight.astype(np.int16), rng.integers(-1000, 1000, cout).astype(np.int32), shift, kind, large)
