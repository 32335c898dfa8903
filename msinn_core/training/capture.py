"""Forward and backward of a step as one CUDA graph: five thousand launches become one.

The network's kernels are small, so that launching them one by one takes longer than running them. A graph is recorded once per stage (size, batch,
precision) and replayed on buffers that stay where they are; gradients stay in place too, and must not be set to None between replays.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from msinn_core.float.transform import InvertibleUnit

_WARM_UP = 3
_NEWTON_STEPS = 2


class _WarmInverse(torch.autograd.Function):
    """Inverse of a matrix by Newton's iteration from the inverse of the step before, in place; errors square with each iteration."""

    @staticmethod
    def forward(ctx, matrix: Tensor, inverse: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        for _ in range(_NEWTON_STEPS):
            inverse.copy_(2 * inverse - inverse @ (matrix @ inverse))
        out = inverse.clone()
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (inverse,) = ctx.saved_tensors
        return -inverse.mT @ grad @ inverse.mT, None


def keep_inverses(network: nn.Module) -> None:
    """Let every unit with a learned matrix follow its inverse from step to step, without a library call that waits for the device."""
    for module in network.modules():
        if isinstance(module, InvertibleUnit):
            with torch.no_grad():
                inverse = torch.linalg.inv(module._matrix().double()).float()

            def follow(matrix: Tensor, inverse: Tensor = inverse) -> Tensor:
                out: Tensor = _WarmInverse.apply(matrix, inverse)  # type: ignore[no-untyped-call]
                return out

            module.inverter = follow


class CapturedStep:
    """A recorded forward and backward.

    Args:
        network: Its parameters' gradients are written by every replay.
        compute: From inputs to the loss (a scalar) and whatever else is wanted; it must not look at values.
        inputs: Of the shapes and kinds that every replay will have.
    """

    def __init__(self, network: nn.Module, compute: Callable[..., tuple[Tensor, tuple[Tensor, ...]]], inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(value.clone() for value in inputs)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                network.zero_grad(set_to_none=True)
                compute(*self._inputs)[0].backward()  # type: ignore[no-untyped-call]
        torch.cuda.current_stream().wait_stream(stream)
        network.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss, self._others = compute(*self._inputs)
            self._loss.backward()  # type: ignore[no-untyped-call]

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Replay; the results are overwritten by the next."""
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._loss, self._others
