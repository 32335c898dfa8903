"""Parameters of the float network: of training checkpoints, of official research checkpoints, of model files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor

from msinn_core.config import PAPER_LAMBDAS, MsinnConfig
from msinn_core.entropy.tables import Tables
from msinn_core.errors import CheckpointError, CodecError
from msinn_core.float.model import Msinn
from msinn_core.model_file import UNREADABLE, Calibration, read_metadata, write_model

# What model files and training checkpoints hold beside the parameters.
_NOT_PARAMETERS = ("tables.", "calibration.", "raw.", "adam.", "soap.", "loss.")

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
    given = check_parameters(model, state)
    for name, value in given.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{name} holds values that are not finite")
    with torch.no_grad():
        for name, value in given.items():
            wanted[name].copy_(value)


def check_parameters(model: Msinn, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of `state` that are parameters, if they are those of `model` in name, shape and kind; the model may be one without values.

    Raises:
        CheckpointError: A parameter is missing, unknown, or of another shape or kind.
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
        if value.is_complex() or value.is_quantized:
            raise CheckpointError(f"{name} holds numbers of type {value.dtype}")
    return given


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


def model_bytes(
    config: MsinnConfig,
    state: Mapping[str, Tensor],
    *,
    name: str,
    tables: Tables | None = None,
    calibration: Calibration | None = None,
    half: bool = False,
) -> bytes:
    """A model file of the float profile.

    Args:
        config: The network's shape.
        state: Its parameters, unfolded, as `Msinn.state_dict` names them.
        name: What people call it.
        tables: CDF tables; built here once if not given.
        calibration: Constants of rate prediction; neutral ones if not given.
        half: Store the weights of convolutions as float16: half the size, and as good a start for training.

    Raises:
        CheckpointError: Parameters and configuration do not agree.
    """
    network = Msinn(config)
    load_parameters(network, state)
    tensors = {f"net.{key}": value.contiguous() for key, value in network.state_dict().items()}
    if half:
        tensors = {key: value.half() if key.endswith("weight") and "permute" not in key else value for key, value in tensors.items()}
    arrays = {key: value.numpy() for key, value in tensors.items()}
    return write_model(arrays, config, name=name, profile="float", tables=tables, calibration=calibration)


def float_network(config: MsinnConfig, arrays: Mapping[str, NDArray[Any]]) -> Msinn:
    """The network of a model file, folded for inference.

    Raises:
        CheckpointError: The parameters are not those of the configuration, or cannot be inverted.
    """
    state = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    # Shapes first: a few bytes of configuration can ask for any number of parameters, the file holds as many as it is long.
    with torch.device("meta"):
        check_parameters(Msinn(config), state)
    network = Msinn(config)
    load_parameters(network, state)
    try:
        return network.fold()
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"the network of the model file cannot be inverted: {error}") from error


def read_tensors(data: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file, of every type that torch has.

    Raises:
        CheckpointError: Not one, or damaged.
    """
    try:
        tensors = load(data)
    except UNREADABLE as error:
        raise CheckpointError(f"not a readable safetensors file: {error}") from error
    return read_metadata(data), tensors


def read_state(path: Path) -> tuple[dict[str, Tensor], MsinnConfig | None]:
    """Parameters and, if the file says it, configuration of a training checkpoint: safetensors or an official `.pth.tar`.

    Raises:
        CheckpointError: Unreadable, or a pickle that needs code to load.
    """
    try:
        if path.suffix == ".safetensors":
            metadata, state = read_tensors(path.read_bytes())
            if metadata.get("profile") == "int":
                raise CheckpointError(f"{path} is an integer model; begin from the float model that it was packed from")
            state = {
                key.removeprefix("net."): value.float() if value.dtype == torch.float16 else value
                for key, value in state.items()
                if not key.startswith(_NOT_PARAMETERS)
            }
            return state, MsinnConfig.from_json(metadata["config"]) if "config" in metadata else None
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except CodecError:
        raise
    except Exception as error:
        # torch.load and safetensors raise a dozen kinds for foreign bytes; all mean the same to the user.
        raise CheckpointError(f"{path} is no checkpoint that can be read safely (weights only): {type(error).__name__}") from error
    raw = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(raw, dict) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise CheckpointError(f"{path} holds no state_dict of tensors")
    return {key.removeprefix("module."): value for key, value in raw.items()}, None
