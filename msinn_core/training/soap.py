"""SOAP (Vyas et al. 2024, arXiv 2409.11321): Adam in the eigenbases of Shampoo's statistics, for many small weights at once.

Weights of one shape are one stacked tensor, so that a step is a few dozen batched products for the whole network. The same update one weight after
the other (pytorch-optimizer, which our tests compare with) is ten thousand launches on a GPU: longer than the step it serves.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

_SPECTRUM_FLOOR = 1e-30
_POLISHING = 2
_STEPS_BEFORE_CAPTURE = 3


@dataclass
class _Stack:
    """The weights of one shape `[s0, s1, ...]` and their state, stacked to `[K, s0, s1, ...]`.

    Attributes:
        weights: The K parameters.
        turned: Dimensions that have a basis: those longer than 1 and no longer than the limit.
        first: Mean gradient.
        second: Mean square of the turned gradient.
        statistics: `[K, s, s]` per turned dimension: mean of the gradient's outer products.
        bases: `[K, s, s]` per turned dimension, orthogonal, columns by falling eigenvalue.
    """

    weights: list[nn.Parameter]
    turned: list[int]
    first: Tensor
    second: Tensor
    statistics: dict[int, Tensor]
    bases: dict[int, Tensor] = field(default_factory=dict)

    def gradient(self) -> Tensor:
        """`[K, s0, s1, ...]`."""
        return torch.stack([weight.grad for weight in self.weights if weight.grad is not None])

    def kinds(self) -> dict[str, Tensor]:
        """The state by name."""
        statistics = {f"statistics{side}": value for side, value in self.statistics.items()}
        return {"first": self.first, "second": self.second, **statistics, **{f"basis{side}": value for side, value in self.bases.items()}}


class Soap:
    """The optimiser: `param_groups` (one, with `lr`), `zero_grad`, `step` as in torch.

    Args:
        parameters: Of two dimensions or more.
        lr: Learning rate.
        betas: Decay of the mean gradient, and of its square and the statistics.
        eps: Added to the denominator.
        frequency: Steps between renewals of the bases.
        longest: Sides above this length are not turned.
        capture: Record the step as a CUDA graph, for gradients that stay where they are.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        *,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        frequency: int = 10,
        longest: int = 1000,
        capture: bool = False,
    ) -> None:
        self.param_groups: list[dict[str, float]] = [{"lr": lr}]
        self.num_steps = 0
        self._betas, self._eps, self._frequency, self._capture = betas, eps, frequency, capture
        self._recorded: tuple[tuple[int, ...], torch.cuda.CUDAGraph] | None = None
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            by_shape[parameter.shape].append(parameter)
        self.stacks: list[_Stack] = []
        for shape, weights in by_shape.items():
            zeros = torch.zeros((len(weights), *shape), device=weights[0].device)
            turned = [side for side, length in enumerate(shape) if 1 < length <= longest]
            statistics = {side: zeros.new_zeros(len(weights), shape[side], shape[side]) for side in turned}
            self.stacks.append(_Stack(weights, turned, zeros, zeros.clone(), statistics))
        self._rate = torch.zeros((), device=self.stacks[0].first.device)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients."""
        for stack in self.stacks:
            for weight in stack.weights:
                if set_to_none or weight.grad is None:
                    weight.grad = None
                else:
                    weight.grad.zero_()

    def state(self, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
        """What a continuation needs, as named tensors, one per weight and kind.

        Args:
            names: Of the parameters.
        """
        tensors = {"step": torch.tensor(self.num_steps)}
        for stack in self.stacks:
            for kind, values in stack.kinds().items():
                tensors |= {f"{kind}.{names[weight]}": value for weight, value in zip(stack.weights, values, strict=True)}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor], names: Mapping[Tensor, str]) -> None:
        """Take over what `state` gave.

        Raises:
            KeyError: Something is missing.
        """
        self.num_steps = int(tensors["step"])
        if not self.num_steps:
            return
        for stack in self.stacks:

            def stacked(kind: str, stack: _Stack = stack) -> Tensor:
                return torch.stack([tensors[f"{kind}.{names[weight]}"] for weight in stack.weights]).to(stack.first.device)

            stack.first, stack.second = stacked("first"), stacked("second")
            stack.statistics = {side: stacked(f"statistics{side}") for side in stack.turned}
            stack.bases = {side: stacked(f"basis{side}") for side in stack.turned}

    @torch.no_grad()
    def step(self) -> None:
        """One update of all weights, every one of which has a gradient. The first only begins the statistics, as in the paper's own code."""
        self.num_steps += 1
        number = self.num_steps - 1
        if not number:
            for stack in self.stacks:
                self._gather(stack, stack.gradient())
                stack.bases = {side: _eigenbasis(value) for side, value in stack.statistics.items()}
            return
        beta1, beta2 = self._betas
        self._rate.fill_(-self.param_groups[0]["lr"] * math.sqrt(1 - beta2**number) / (1 - beta1**number))
        if not self._capture or number <= _STEPS_BEFORE_CAPTURE:
            self._advance()
        else:
            places = tuple(weight.grad.data_ptr() for stack in self.stacks for weight in stack.weights if weight.grad is not None)
            if self._recorded is None or self._recorded[0] != places:
                self._recorded = None
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self._advance()
                self._recorded = places, graph
            self._recorded[1].replay()
        if number % self._frequency == 0:
            for stack in self.stacks:
                _renew(stack)

    def _advance(self) -> None:
        """Everything of a step but what comes with `_frequency`. The state stays where it is: a recorded step reads and writes it there."""
        for stack in self.stacks:
            gradient = stack.gradient()
            stack.first.lerp_(gradient, 1 - self._betas[0])
            stack.second.lerp_(_turn(gradient, stack.bases).square_(), 1 - self._betas[1])
            direction = _turn(stack.first, stack.bases) / stack.second.sqrt().add_(self._eps)
            update = _turn(direction, {side: basis.mT for side, basis in stack.bases.items()}).mul_(self._rate)
            torch._foreach_add_(list[Tensor](stack.weights), [*update.unbind(0)])
            self._gather(stack, gradient)

    def _gather(self, stack: _Stack, gradient: Tensor) -> None:
        for side in stack.turned:
            rows = gradient.movedim(side + 1, 1).flatten(2)
            stack.statistics[side].lerp_(rows @ rows.mT, 1 - self._betas[1])


def _turn(x: Tensor, bases: dict[int, Tensor]) -> Tensor:
    """Every dimension that has a basis `[K, s, s]`, expressed in it."""
    for side, basis in bases.items():
        moved = x.movedim(side + 1, -1)
        x = (moved.flatten(1, -2) @ basis).reshape(moved.shape).movedim(-1, side + 1)
    return x


def _eigenbasis(statistics: Tensor) -> Tensor:
    identity = torch.eye(statistics.shape[-1], device=statistics.device)
    basis: Tensor = torch.linalg.eigh(statistics + _SPECTRUM_FLOOR * identity)[1].flip(-1).contiguous()
    return basis


def _renew(stack: _Stack) -> None:
    """One power iteration of every basis, columns put in order; the squares follow their columns."""
    for side, basis in stack.bases.items():
        product = stack.statistics[side] @ basis
        order = (basis * product).sum(1).argsort(dim=1, descending=True)
        index = order.reshape([len(order)] + [order.shape[1] if i == side else 1 for i in range(stack.second.ndim - 1)])
        stack.second.copy_(stack.second.gather(side + 1, index.expand_as(stack.second)))
        columns = product.gather(2, order[:, None, :].expand_as(product))
        basis.copy_(_orthogonal(columns))


def _orthogonal(columns: Tensor) -> Tensor:
    """The Q of `columns = Q R`, up to signs (which nothing depends on).

    On a GPU by Cholesky: the columns, at length 1, are nearly orthogonal already (the basis was nearly right), their Gram matrix is near the
    identity, and batched Cholesky is a hundred times faster there than Householder reflections. Two Newton-Schulz steps polish what rounding left.
    """
    if columns.device.type != "cuda":
        householder: Tensor = torch.linalg.qr(columns)[0]
        return householder
    length = columns.norm(dim=1, keepdim=True)
    identity = torch.eye(columns.shape[-1], device=columns.device)
    # A column of no length (weights whose gradient was zero throughout) keeps its place in an arbitrary, valid basis.
    columns = torch.where(length > _SPECTRUM_FLOOR, columns / length.clamp_min(_SPECTRUM_FLOOR), identity)
    factor, failed = torch.linalg.cholesky_ex(columns.mT @ columns + 1e-6 * identity)
    q: Tensor = torch.linalg.solve_triangular(factor.mT, columns, upper=True, left=False)
    for _ in range(_POLISHING):
        q = 1.5 * q - 0.5 * q @ (q.mT @ q)
    drift = (q.mT @ q - identity).abs().amax(dim=(1, 2))
    bad = (failed > 0) | ~(drift < 1e-3)
    if bool(bad.any()):
        q[bad] = torch.linalg.qr(columns[bad])[0]
    return q
