"""Layers on tensors of a batch, `[N, H, W, C]`, in Triton. In float64, which any device has, they are `portable.Float64Layers`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from msinn_core.errors import CheckpointError
from msinn_core.integer.ops import NUM_TAPS, Layer

LARGEST_WEIGHT = 127 * 256 + 127
"""Of two int8 limbs. Larger ones would need a third."""


_COMPILED: set[tuple[Any, ...]] = set()
_COMPILING = threading.Lock()
"""Triton promises nothing of two threads that compile at once, nor does its interpreter of two that compute: batches under way side by side would."""


def name_of(kernel: Any) -> str:
    """Of a kernel, compiled or interpreted."""
    name: str = kernel.fn.__name__
    return name


def launch(kernel: Any, grid: tuple[int, ...], /, *arguments: Tensor | int, **constants: Any) -> None:
    """Start a kernel of Triton's; the first time in a form, and always under the interpreter, one thread at a time."""
    # All that Triton compiles anew for; the function, since a hash of the kernel itself takes a lock.
    form = (kernel.fn, *(_kind(argument) for argument in arguments), *constants.values())
    with contextlib.nullcontext() if form in _COMPILED and not interpreted(kernel) else _COMPILING:
        # Said, for Triton 3.9 warns of whoever does not: its default will change.
        kernel[grid](*arguments, **{"enable_fp_fusion": True, **constants})
        _COMPILED.add(form)


def _kind(argument: Tensor | int) -> Any:
    """Of an argument, as Triton's specialisation sees it."""
    return argument if isinstance(argument, int) else (argument.dtype, argument.data_ptr() % 16, argument.device)


def interpreted(kernel: Any) -> bool:
    """Whether Triton computes on this machine's CPU, for tests."""
    return type(kernel).__name__ == "InterpretedFunction"


class Convolution(Protocol):
    """How a layer is computed."""

    def __call__(self, x: Tensor, layer: Layer, parity: int, add: Tensor | None) -> Tensor:
        """int16 `[N, H, W, cout]` of `[N, H, W, cin]`, contiguous; `parity` is of the output positions; `add` is added at the end, saturating."""


@dataclass(frozen=True)
class Tile:
    """Work of one program: positions, output channels, inputs at a time, and warps."""

    positions: int
    out: int
    inner: int
    warps: int

    def room(self, cin: int) -> int:
        """Of a tap's channels among the inputs: whole blocks, or a share of one that is a power of two."""
        return -(-cin // self.inner) * self.inner if cin >= self.inner else max(8, 1 << (cin - 1).bit_length())


def tile_for(kind: int, cin: int, cout: int) -> Tile:
    """By the fewest instructions that leave room for eight warps or more beside each other, counted for A100 and H100; not measured.

    What was measured (`infra/reference/gpu-bench-h200.json`) was a kernel of twice the instructions.
    """
    if cout <= 16:
        return Tile(128, 16, 32, 4)
    return Tile(128, 32 if cout <= 32 else 64, 32, 8)


def triton_layers(device: torch.device) -> TritonLayers | None:
    """Layers in Triton where it is installed; on the CPU only under its interpreter, for tests."""
    try:
        layers = TritonLayers()
    except ImportError:
        return None
    return layers if device.type != "cpu" or layers.interpreted else None


class TritonLayers:
    """Two int8 limbs of activations by two of weights on the tensor cores (`kernels`).

    Raises:
        ImportError: Triton is not installed.
        CheckpointError: From a call, for a layer whose weights need three limbs.
    """

    def __init__(self) -> None:
        from msinn_core.integer.gpu import kernels

        self._kernels: Any = kernels
        self.tile_for: Callable[[int, int, int], Tile] = tile_for
        self.interpreted = interpreted(kernels.conv)
        self._weights: dict[int, tuple[Layer, Tile, Tensor, Tensor, Tensor]] = {}

    def _placed(self, layer: Layer, device: torch.device) -> tuple[Tile, Tensor, Tensor, Tensor]:
        if id(layer) not in self._weights:
            weight = layer.weight.astype(np.int64)
            if np.abs(weight).max(initial=0) > LARGEST_WEIGHT:
                raise CheckpointError(f"a weight of this model is {int(np.abs(weight).max())}; the GPU kernels take {LARGEST_WEIGHT}, two limbs")
            cout, taps, cin = weight.shape
            tile = self.tile_for(layer.kind, cin, cout)
            room = tile.room(cin)
            blocks = -(-taps * room // tile.inner)
            padded = np.zeros((-(-cout // tile.out) * tile.out, blocks * tile.inner // room, room), np.int64)
            padded[:cout, :taps, :cin] = weight
            padded = padded.reshape(len(padded), blocks, tile.inner).transpose(1, 0, 2)
            low = (padded + 128 & 255) - 128
            limbs = np.ascontiguousarray(np.stack(((padded - low) >> 8, low), axis=2), np.int8)
            bias, shift = np.zeros(padded.shape[1], np.int32), np.ones(padded.shape[1], np.int32)
            whole = layer.bias.astype(np.int64) + (np.int64(1) << layer.shift.astype(np.int64) - 1) + 128 * weight.sum(axis=(1, 2))
            bias[:cout] = whole.astype(np.uint64).astype(np.uint32).view(np.int32)  # modulo 2^32
            shift[:cout] = layer.shift
            placed = [torch.from_numpy(array).to(device) for array in (limbs, bias, shift)]
            self._weights[id(layer)] = layer, tile, placed[0], placed[1], placed[2]
        return self._weights[id(layer)][1:]

    def __call__(self, x: Tensor, layer: Layer, parity: int, add: Tensor | None) -> Tensor:
        tile, limbs, bias, shift = self._placed(layer, x.device)
        n, height, width, cin = x.shape
        cout = len(layer.weight)
        out = torch.empty((n, height, width, cout), dtype=torch.int16, device=x.device)
        positions = n * height * width
        grid = (-(-positions // tile.positions), len(bias) // tile.out)
        launch(
            self._kernels.conv, grid, x, limbs, bias, shift, out if add is None else add, out, positions, height, width, parity & 1,
            cout, len(bias), int(layer.leaky),
            cin=cin, room=tile.room(cin), kind=layer.kind, taps=NUM_TAPS[layer.kind], adds=add is not None,
            block_m=tile.positions, block_n=tile.out, block_k=tile.inner, num_warps=tile.warps,
        )  # fmt: skip
        return out
