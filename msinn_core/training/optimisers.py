"""The optimiser of a run: Adam for everything, or SOAP for the convolutions with Adam for gains, actnorm, biases and 1x1 matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from msinn_core.errors import CheckpointError
from msinn_core.training.config import TrainConfig
from msinn_core.training.soap import Soap

_SLOW = ("permute", "actnorm")
_SOAP_PREFIX, _ADAM_PREFIX = "soap.", "adam."


class Optimisers:
    """The optimisers of a network, stepped together.

    Args:
        network: Whose parameters are learned.
        config: `optimiser`, `learning_rate` (Adam's), `soap_rate`, `slow_share`.
        device: Where the network is.
    """

    def __init__(self, network: nn.Module, config: TrainConfig, device: torch.device) -> None:
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
        self._device = device
        self._channels_last = config.channels_last
        slow: list[nn.Parameter] = []
        fast: list[nn.Parameter] = []
        turned: list[nn.Parameter] = []
        for name, parameter in network.named_parameters():
            is_slow = any(part in name for part in _SLOW)
            rotates = config.optimiser == "soap" and parameter.ndim == 4 and not is_slow and min(parameter.shape[:2]) > 1
            (slow if is_slow else turned if rotates else fast).append(parameter)
        relative = 1.0 / config.learning_rate
        groups = [{"params": fast, "share": 1.0}, {"params": slow, "share": config.slow_share}]
        self.adam = torch.optim.Adam(groups, lr=config.learning_rate, fused=device.type == "cuda")
        capture = config.capture and device.type == "cuda"
        self.soap = Soap(turned, config.soap_rate, frequency=config.soap_frequency, capture=capture) if turned else None
        for group in self.soap.param_groups if self.soap is not None else ():
            group["share"] = config.soap_rate * relative

    def _all(self) -> Iterable[Any]:
        return (self.adam,) if self.soap is None else (self.adam, self.soap)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate in force: Adam's; the others' are shares of it."""
        for optimiser in self._all():
            for group in optimiser.param_groups:
                group["lr"] = group["share"] * rate

    def zero_grad(self) -> None:
        """Forget gradients."""
        for optimiser in self._all():
            optimiser.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Update all parameters."""
        for optimiser in self._all():
            optimiser.step()

    def state(self) -> dict[str, Tensor]:
        """What a continuation needs, as named tensors."""
        tensors: dict[str, Tensor] = {}
        for parameter, kept in self.adam.state.items():
            tensors |= {f"{_ADAM_PREFIX}{key}.{self._names[parameter]}": value for key, value in kept.items()}
        if self.soap is not None:
            tensors |= {f"{_SOAP_PREFIX}{name}": value for name, value in self.soap.state(self._names).items()}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave.

        Raises:
            CheckpointError: SOAP's part is incomplete.
        """
        for parameter, name in self._names.items():
            kept = {
                key: tensors[f"{_ADAM_PREFIX}{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{_ADAM_PREFIX}{key}.{name}" in tensors
            }
            if kept:
                self.adam.state[parameter] = {key: self._placed(value) for key, value in kept.items()}
        if self.soap is None:
            return
        kept = {name.removeprefix(_SOAP_PREFIX): value for name, value in tensors.items() if name.startswith(_SOAP_PREFIX)}
        try:
            self.soap.restore(kept, self._names)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"the training state lacks something of the optimiser: {error}") from error

    def _placed(self, value: Tensor) -> Tensor:
        on_device = self._device if self._device.type == "cuda" else torch.device("cpu")
        if value.ndim == 4 and self._channels_last:
            return value.to(on_device, memory_format=torch.channels_last)
        return value.to(on_device)
