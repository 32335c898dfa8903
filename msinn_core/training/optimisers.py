"""The optimiser of a run: Adam for everything, or SOAP for the convolutions with Adam for gains, actnorm, biases and 1x1 matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from msinn_core.errors import CheckpointError, ConfigError
from msinn_core.training.config import TrainConfig

_SLOW = ("permute", "actnorm")
_SOAP_PREFIX, _ADAM_PREFIX = "soap.", "adam."
_SOAP_STEP = "soap.step"
_LARGEST_SIDE = 1000
"""SOAP rotates the sides of a weight up to this length; longer ones would need too large an eigenbasis."""


class Optimisers:
    """The optimisers of a network, stepped together.

    Args:
        network: Whose parameters are learned.
        config: `optimiser`, `learning_rate` (Adam's), `soap_rate`, `slow_share`.
        device: Where the network is.

    Raises:
        ConfigError: SOAP is asked for and pytorch-optimizer is not installed.
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
        self.soap = _soap(turned, config.soap_rate) if turned else None
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
            tensors[_SOAP_STEP] = torch.tensor(self.soap.param_groups[0].get("step", 0))
            for parameter, kept in self.soap.state.items():
                name = self._names[parameter]
                named = {key: kept[key] for key in ("exp_avg", "exp_avg_sq")}
                named |= {f"{key}{side}": value for key in ("GG", "Q") for side, value in enumerate(kept[key]) if len(value)}
                for key, value in named.items():
                    tensors[f"{_SOAP_PREFIX}{key}.{name}"] = value
                    tensors[f"{_SOAP_PREFIX}{key}.order.{name}"] = torch.tensor(_order(value))
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
        if self.soap is None or not int(tensors.get(_SOAP_STEP, torch.tensor(0))):
            return
        group = self.soap.param_groups[0]
        group["step"] = int(tensors[_SOAP_STEP])
        try:
            for parameter in group["params"]:
                name = self._names[parameter]

                def kept_as(key: str, name: str = name) -> Tensor:
                    # Sums run in the order of memory: a continuation must lay tensors out as they were to repeat the curve to the bit.
                    order = tensors[f"{_SOAP_PREFIX}{key}.order.{name}"].tolist()
                    laid = tensors[f"{_SOAP_PREFIX}{key}.{name}"].to(self._device).permute(order).contiguous()
                    return laid.permute([order.index(i) for i in range(len(order))])

                state: dict[str, Any] = {key: kept_as(key) for key in ("exp_avg", "exp_avg_sq")}
                for key in ("GG", "Q"):
                    state[key] = [kept_as(f"{key}{side}") if length <= _LARGEST_SIDE else [] for side, length in enumerate(parameter.shape)]
                state |= {"precondition_frequency": group["precondition_frequency"], "shampoo_beta": group["betas"][1]}
                self.soap.state[parameter] = state
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"the training state lacks something of the optimiser: {error}") from error

    def _placed(self, value: Tensor) -> Tensor:
        on_device = self._device if self._device.type == "cuda" else torch.device("cpu")
        if value.ndim == 4 and self._channels_last:
            return value.to(on_device, memory_format=torch.channels_last)
        return value.to(on_device)


def _soap(parameters: list[nn.Parameter], rate: float) -> Any:
    try:
        from pytorch_optimizer import SOAP
    except ImportError as error:
        raise ConfigError("optimiser = \"soap\" needs pytorch-optimizer: pip install 'msinn[train]'") from error
    return SOAP(
        parameters, lr=rate, betas=(0.95, 0.95), weight_decay=0.0, precondition_frequency=10, max_precondition_dim=_LARGEST_SIDE, merge_dims=False
    )


def _order(value: Tensor) -> list[int]:
    """Dimensions from the outermost in memory to the innermost; those of length 1, whose place means nothing, last."""
    return sorted(range(value.ndim), key=lambda i: (value.shape[i] == 1, -value.stride()[i], i))
