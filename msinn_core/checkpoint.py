"""Model files: safetensors only, identified by the SHA-256 of their bytes; import of official research checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from msinn_core.config import PAPER_LAMBDAS, MsinnConfig
from msinn_core.errors import CheckpointError
from msinn_core.model import Msinn

# Buffers of the research code whose values follow from the shape: never loaded.
_DERIVED = re.compile(r"(\.mask$|^gaussian_conditional\.|^lower_bound\.)")


def _indices(names: list[str], pattern: str) -> list[int]:
    found = {int(m.group(1)) for name in names if (m := re.match(pattern, name))}
    return sorted(found)


def infer_config(state: Mapping[str, Tensor]) -> MsinnConfig:
    """Configuration of a checkpoint from names and shapes alone.

    Options without parameters cannot be told apart and get the research code's defaults: context GELU; without a permutation matrix the
    `shuffle` (if it stores indices) or `reverse` permutation.

    Raises:
        CheckpointError: Names or shapes are not those of an MSINN.
    """
    names = list(state)
    try:
        depths = tuple(len(_indices(names, rf"g_a{level}\.(\d+)\.")) for level in range(4))
        out = state["g_a0.0.block.1.conv.weight"].shape[0]
        if "g_a0.0.permute.weight" in state:
            permutation = "invconv"
        else:
            permutation = "shuffle" if "g_a0.0.permute.indices" in state else "reverse"
        anchor_num = state["gain"].shape[0]
        lrp = any(name.startswith("lrp_transforms.") for name in names)
        if "post_net.unet.conv1.up_dim.weight" in state:
            post = "paper"
        else:
            post = "lite" if "post_net.c1.up_dim.weight" in state else "none"
        return MsinnConfig(
            name="imported",
            anchor_num=anchor_num,
            depths=depths,
            hidden=tuple(state[f"g_a{level}.0.block.0.conv1.weight"].shape[0] for level in range(4)),
            context_widths=tuple(state[f"sc_transforms.{k}.0.weight"].shape[0] for k in range(5)),
            cc_layers=len(_indices(names, r"cc_transforms\.0\.(\d+)\.weight")),
            sc_layers=len(_indices(names, r"sc_transforms\.0\.(\d+)\.weight")),
            lrp_layers=len(_indices(names, r"lrp_transforms\.0\.(\d+)\.weight")) if lrp else 5,
            context_activation="gelu",
            permutation=permutation,
            coupling="affine" if out == 12 else "additive",
            actnorm="g_a0.0.actnorm.bias" in state,
            lrp=lrp,
            post_filter=post,
            lambdas=PAPER_LAMBDAS[:anchor_num],
        )
    except KeyError as error:
        raise CheckpointError(f"this is no MSINN checkpoint: parameter {error} is missing") from error


def load_parameters(model: Msinn, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into `model`; names must match exactly, masks and the like aside.

    Raises:
        CheckpointError: A parameter is missing, unknown, of another shape, or not finite.
    """
    wanted = model.state_dict()
    given = {name: value for name, value in state.items() if not _DERIVED.search(name)}
    optional = {name for name in wanted if name.endswith(".inited")}
    if missing := set(wanted) - set(given) - optional:
        raise CheckpointError(f"{len(missing)} parameters are missing, {min(missing)} among them")
    if unknown := set(given) - set(wanted):
        raise CheckpointError(f"{len(unknown)} parameters are unknown, {min(unknown)} among them")
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            raise CheckpointError(f"{name} has shape {list(value.shape)}; the network needs {list(wanted[name].shape)}")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{name} holds values that are not finite")
    with torch.no_grad():
        for name, value in given.items():
            wanted[name].copy_(value)


def import_official(state_dict: Mapping[str, Tensor]) -> Msinn:
    """The network of an official checkpoint, folded for inference.

    Args:
        state_dict: Names and tensors as the research code saves them (`torch.load(..., weights_only=True)`, its `state_dict` entry).

    Returns:
        A model; `model(x, q)` gives `x_hat` `[N, 3, H, W]` and `bits` `[N, 5]` (y5..y1).

    Raises:
        CheckpointError: Not an MSINN checkpoint.
    """
    model = Msinn(infer_config(state_dict))
    load_parameters(model, state_dict)
    return model.fold()
