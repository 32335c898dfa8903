"""Model files: safetensors only, identified by the SHA-256 of their bytes; import of official research checkpoints.

A model file holds the network (`net.*` of the float profile, `int.*` of the integer profile), the CDF tables (`tables.*`), the constants of rate
prediction (`calibration.*`) and, as metadata, format version, name, profile and configuration. Nothing in it is executed and nothing in it is
recomputed by a decoder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from msinn_core.config import LATENT_CHANNELS, PAPER_LAMBDAS, MsinnConfig
from msinn_core.entropy.tables import Tables, gaussian_tables
from msinn_core.errors import CheckpointError, CodecError, ConfigError
from msinn_core.model import Msinn

FORMAT = "msinn-model-1"
WEIGHTS = Path(__file__).parent / "weights"
DEFAULT_MODEL = "msinn-lite"

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


@dataclass(frozen=True)
class Calibration:
    """Constants of rate prediction, measured once per model on validation pictures (see `calibration.fit`).

    Attributes:
        level_weights: `[5]`, squared error of the picture per squared error of y5..y1.
        log_mse_bias: `[A]`, natural log of true over predicted MSE at each anchor.
        log_rate_bias: `[A]`, natural log of true over predicted bits at each anchor.
    """

    level_weights: NDArray[np.float64]
    log_mse_bias: NDArray[np.float64]
    log_rate_bias: NDArray[np.float64]

    @classmethod
    def neutral(cls, anchor_num: int) -> Calibration:
        """Before anything was measured: an orthonormal transform and no bias."""
        return cls(np.ones(len(LATENT_CHANNELS)), np.zeros(anchor_num), np.zeros(anchor_num))


@dataclass(frozen=True)
class LoadedModel:
    """A model file, checked and ready.

    Attributes:
        name: As stored in the file.
        sha256: Hex digest of the whole file: the model's identity.
        profile: `float` or `int`.
        config: Shape of the network.
        network: Folded for inference; None for an integer model.
        integer: Packed tensors of an integer model; empty for a float one.
        golden: Digest that an integer backend must reproduce (`engines.golden_digest`).
        tables: CDF tables.
        calibration: Constants of rate prediction.
        data: The file's bytes, to be archived beside what is coded with it.
    """

    name: str
    sha256: str
    profile: str
    config: MsinnConfig
    network: Msinn | None
    integer: dict[str, NDArray[Any]]
    golden: bytes
    tables: Tables
    calibration: Calibration
    data: bytes

    @property
    def num_parameters(self) -> int:
        """Weights of the network."""
        if self.network is not None:
            return sum(p.numel() for p in self.network.parameters())
        return sum(array.size for name, array in self.integer.items() if not name.startswith(("tables.", "levels.")))


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
    return _file(tensors, config, name, "float", tables, calibration)


def integer_model_bytes(
    config: MsinnConfig,
    packed: Mapping[str, NDArray[Any]],
    golden: bytes,
    *,
    name: str,
    tables: Tables | None = None,
    calibration: Calibration | None = None,
) -> bytes:
    """A model file of the integer profile.

    Args:
        config: The network's shape.
        packed: From `integer.packing.pack`.
        golden: Their golden vector.
        name: What people call it.
        tables: CDF tables; built here once if not given.
        calibration: Constants of rate prediction; neutral ones if not given.
    """
    tensors = {f"int.{key}": torch.from_numpy(np.array(value, order="C")) for key, value in packed.items()}
    tensors["golden.sha256"] = torch.frombuffer(bytearray(golden), dtype=torch.uint8)
    return _file(tensors, config, name, "int", tables, calibration)


def _file(tensors: dict[str, Tensor], config: MsinnConfig, name: str, profile: str, tables: Tables | None, calibration: Calibration | None) -> bytes:
    tables = tables or gaussian_tables()
    calibration = calibration or Calibration.neutral(config.anchor_num)
    tensors |= {
        "tables.cdf": torch.from_numpy(tables.cdf.astype(np.int32)),
        "tables.starts": torch.from_numpy(tables.starts.copy()),
        "tables.offsets": torch.from_numpy(tables.offsets.copy()),
        "tables.thresholds": torch.from_numpy(tables.thresholds.copy()),
        "calibration.level_weights": torch.from_numpy(calibration.level_weights.copy()),
        "calibration.log_mse_bias": torch.from_numpy(calibration.log_mse_bias.copy()),
        "calibration.log_rate_bias": torch.from_numpy(calibration.log_rate_bias.copy()),
    }
    return save(tensors, metadata={"format": FORMAT, "name": name, "profile": profile, "config": config.to_json()})


def parse_model(data: bytes) -> LoadedModel:
    """The model of a file's bytes.

    Raises:
        CheckpointError: Not a model file, damaged, incomplete, or of an unknown format or profile.
    """
    metadata, tensors = read_safetensors(data)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"this file is of format {metadata.get('format')!r}, not {FORMAT}: make one with `msinn models import`")
    profile = metadata.get("profile", "")
    if profile not in ("float", "int"):
        raise CheckpointError(f"the model is of profile {profile!r}; this version runs float and int models")
    try:
        config = MsinnConfig.from_json(metadata["config"])
        tables = Tables(
            cdf=tensors["tables.cdf"].numpy().astype(np.uint32),
            starts=tensors["tables.starts"].numpy().astype(np.int32),
            offsets=tensors["tables.offsets"].numpy().astype(np.int32),
            thresholds=tensors["tables.thresholds"].numpy().astype(np.float32),
        )
        calibration = Calibration(
            *(tensors[f"calibration.{key}"].numpy().astype(np.float64) for key in ("level_weights", "log_mse_bias", "log_rate_bias"))
        )
        golden = tensors["golden.sha256"].numpy().tobytes() if profile == "int" else b""
        integer = {key.removeprefix("int."): value.numpy() for key, value in tensors.items() if key.startswith("int.")}
    except (KeyError, ConfigError) as error:
        raise CheckpointError(f"the model file is incomplete: {error}") from error
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"the model file holds a tensor of the wrong type: {error}") from error
    constants = (calibration.level_weights, calibration.log_mse_bias, calibration.log_rate_bias)
    if [array.shape for array in constants] != [(len(LATENT_CHANNELS),), (config.anchor_num,), (config.anchor_num,)]:
        raise CheckpointError("the rate prediction constants of the model file have the wrong lengths")
    if not all(bool(np.isfinite(array).all()) and float(np.abs(array).max()) < 1e6 for array in constants):
        raise CheckpointError("the rate prediction constants of the model file are no numbers to predict with")
    network = None
    if profile == "float":
        state = {key.removeprefix("net."): value for key, value in tensors.items() if key.startswith("net.")}
        # Shapes first: a few bytes of configuration can ask for any number of parameters, the file holds as many as it is long.
        with torch.device("meta"):
            check_parameters(Msinn(config), state)
        network = Msinn(config)
        load_parameters(network, state)
        try:
            network.fold()
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"the network of the model file cannot be inverted: {error}") from error
    return LoadedModel(
        name=metadata.get("name", "unnamed"),
        sha256=hashlib.sha256(data).hexdigest(),
        profile=profile,
        config=config,
        network=network,
        integer=integer,
        golden=golden,
        tables=tables,
        calibration=calibration,
        data=data,
    )


def read_safetensors(data: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file.

    Raises:
        CheckpointError: Not one, or damaged.
    """
    # safetensors' byte loader drops the metadata, so the header is read here: 8 bytes of length, then JSON.
    from safetensors.torch import load

    try:
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    except (SafetensorError, ValueError, RecursionError, KeyError, TypeError, RuntimeError, OverflowError, AttributeError) as error:
        raise CheckpointError(f"not a readable safetensors file: {error}") from error
    if not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("the metadata of the safetensors file are no texts")
    return metadata, tensors


def read_state(path: Path) -> tuple[dict[str, Tensor], MsinnConfig | None]:
    """Parameters and, if the file says it, configuration of a training checkpoint: safetensors or an official `.pth.tar`.

    Raises:
        CheckpointError: Unreadable, or a pickle that needs code to load.
    """
    try:
        if path.suffix == ".safetensors":
            metadata, state = read_safetensors(path.read_bytes())
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


def shipped_models() -> dict[str, str]:
    """Name to SHA-256 of the models that come with the package."""
    index: dict[str, str] = json.loads((WEIGHTS / "index.json").read_text())
    return index


def load_model(which: str = DEFAULT_MODEL) -> LoadedModel:
    """A model by shipped name, by the beginning of its SHA-256 (8 digits or more), or by path.

    Raises:
        CheckpointError: No such model, or a shipped file differs from its recorded hash.
    """
    shipped = shipped_models()
    name = next((n for n, digest in shipped.items() if which == n or (len(which) >= 8 and digest.startswith(which))), None)
    path = WEIGHTS / f"{name}.safetensors" if name else Path(which)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"no model {which!r}: give one of {', '.join(shipped)}, a SHA-256, or the path of a .safetensors file ({error.strerror})"
        ) from error
    if name and hashlib.sha256(data).hexdigest() != shipped[name]:
        raise CheckpointError(f"the shipped model {name} is damaged: its SHA-256 differs from the recorded one; install msinn again")
    return parse_model(data)
