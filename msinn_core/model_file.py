"""Model files: safetensors only, identified by the SHA-256 of their bytes.

A model file holds the network (`net.*` of the float profile, `int.*` of the integer profile), the CDF tables (`tables.*`), the weights of the first
stream's prediction (`first.weights`, of format 2), the constants of rate prediction (`calibration.*`), heads (`heads.*`, of newer integer models;
readers that do not know them pass over them) and, as metadata, format version, name, profile and configuration. Nothing in it is executed and nothing
in it is recomputed by a decoder. Integer models are read and run without torch.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from msinn_core.config import LATENT_CHANNELS, MsinnConfig
from msinn_core.entropy.first_stream import StreamCoder
from msinn_core.entropy.tables import Tables, gaussian_tables
from msinn_core.errors import CheckpointError, ConfigError
from msinn_core.heads import Head, read_heads

if TYPE_CHECKING:
    from msinn_core.float.model import Msinn

FORMAT = "msinn-model-1"
PREDICTING_FORMAT = "msinn-model-2"
"""Of models that have weights for the first stream: who does not know them cannot read what is coded with these."""

HEADS_FORMAT = "msinn-heads-1"
"""Of files of heads for models that were made before heads were: `weights/heads.json` says for which."""

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT_MODEL = "msinn-lite"


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
        weights: Of the prediction of the first stream (`entropy.first_stream`); None if the model does without.
        calibration: Constants of rate prediction.
        data: The file's bytes, to be archived beside what is coded with it.
        card: Where it comes from, as JSON; empty if the file does not say.
        heads: By scale, those that the file has; see `heads_of`.
    """

    name: str
    sha256: str
    profile: str
    config: MsinnConfig
    network: Msinn | None
    integer: dict[str, NDArray[Any]]
    golden: bytes
    tables: Tables
    weights: NDArray[np.int16] | None
    calibration: Calibration
    data: bytes
    card: str = ""
    heads: Mapping[int, Head] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        """Weights of the network."""
        if self.network is not None:
            return sum(p.numel() for p in self.network.parameters())
        return sum(array.size for name, array in self.integer.items() if not name.startswith(("tables.", "levels.")))


def integer_model_bytes(
    config: MsinnConfig,
    packed: Mapping[str, NDArray[Any]],
    golden: bytes,
    *,
    name: str,
    tables: Tables | None = None,
    weights: NDArray[np.int16] | None = None,
    calibration: Calibration | None = None,
    heads: Mapping[str, NDArray[Any]] | None = None,
) -> bytes:
    """A model file of the integer profile.

    Args:
        config: The network's shape.
        packed: From `integer.packing.pack`.
        golden: Their golden vector.
        name: What people call it.
        tables: CDF tables; built here once if not given.
        weights: Of the prediction of the first stream.
        calibration: Constants of rate prediction; neutral ones if not given.
        heads: Tensors of `heads.head_tensors`; without them the model's pictures of less than full size are made of full ones.
    """
    tensors: dict[str, NDArray[Any]] = {f"int.{key}": np.array(value, order="C") for key, value in packed.items()}
    tensors["golden.sha256"] = np.frombuffer(golden, np.uint8)
    if weights is not None:
        tensors["first.weights"] = weights
    tensors |= heads or {}
    return write_model(tensors, config, name=name, profile="int", tables=tables, calibration=calibration)


def write_model(
    tensors: Mapping[str, NDArray[Any]],
    config: MsinnConfig,
    *,
    name: str,
    profile: str,
    tables: Tables | None = None,
    calibration: Calibration | None = None,
) -> bytes:
    """A model file of the network's tensors.

    Args:
        tensors: `net.*` or `int.*`, the golden vector, and `first.weights` if there are any.
        config: The network's shape.
        name: What people call it.
        profile: `float` or `int`.
        tables: CDF tables; built here once if not given.
        calibration: Constants of rate prediction; neutral ones if not given.
    """
    tables = tables or gaussian_tables()
    calibration = calibration or Calibration.neutral(config.anchor_num)
    everything = dict(tensors) | {
        "tables.cdf": tables.cdf.astype(np.int32),
        "tables.starts": tables.starts,
        "tables.offsets": tables.offsets,
        "tables.thresholds": tables.thresholds,
        "calibration.level_weights": calibration.level_weights,
        "calibration.log_mse_bias": calibration.log_mse_bias,
        "calibration.log_rate_bias": calibration.log_rate_bias,
    }
    contiguous = {key: np.ascontiguousarray(value) if value.ndim else value for key, value in everything.items()}
    form = PREDICTING_FORMAT if "first.weights" in contiguous else FORMAT
    return save(contiguous, metadata={"format": form, "name": name, "profile": profile, "config": config.to_json()})


def with_card(data: bytes, card: Mapping[str, Any]) -> bytes:
    """The same model with a card: where it comes from, for people. It is part of the file, and so of the model's identity.

    Args:
        data: A model file.
        card: What JSON can say.

    Raises:
        CheckpointError: Not a model file.
    """
    metadata, tensors = _read(data)
    return save(tensors, metadata={**metadata, "card": json.dumps(card, sort_keys=True)})


def card_of(model: LoadedModel) -> dict[str, Any]:
    """What its card says; nothing if it has none that can be read."""
    try:
        said = json.loads(model.card or "{}")
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def parse_model(data: bytes) -> LoadedModel:
    """The model of a file's bytes.

    Raises:
        CheckpointError: Not a model file, damaged, incomplete, or of an unknown format or profile.
    """
    metadata, tensors = _read(data)
    form = metadata.get("format")
    if form not in (FORMAT, PREDICTING_FORMAT):
        raise CheckpointError(f"this file is of format {form!r}, not {FORMAT} or {PREDICTING_FORMAT}: make one with `msinn models import`")
    profile = metadata.get("profile", "")
    if profile not in ("float", "int"):
        raise CheckpointError(f"the model is of profile {profile!r}; this version runs float and int models")
    if form == PREDICTING_FORMAT and profile != "int":
        raise CheckpointError(f"a model of profile {profile!r} is of format {FORMAT}, not {form}")
    try:
        config = MsinnConfig.from_json(metadata["config"])
        tables = Tables(
            cdf=tensors["tables.cdf"].astype(np.uint32),
            starts=tensors["tables.starts"].astype(np.int32),
            offsets=tensors["tables.offsets"].astype(np.int32),
            thresholds=tensors["tables.thresholds"].astype(np.float32),
        )
        calibration = Calibration(*(tensors[f"calibration.{key}"].astype(np.float64) for key in ("level_weights", "log_mse_bias", "log_rate_bias")))
        golden = tensors["golden.sha256"].tobytes() if profile == "int" else b""
        integer = {key.removeprefix("int."): value for key, value in tensors.items() if key.startswith("int.")}
        weights = tensors["first.weights"] if form == PREDICTING_FORMAT else None
        StreamCoder(tables, weights)
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
        from msinn_core.checkpoint import float_network

        network = float_network(config, {key.removeprefix("net."): value for key, value in tensors.items() if key.startswith("net.")})
    return LoadedModel(
        name=metadata.get("name", "unnamed"),
        sha256=hashlib.sha256(data).hexdigest(),
        profile=profile,
        config=config,
        network=network,
        integer=integer,
        golden=golden,
        tables=tables,
        weights=weights,
        calibration=calibration,
        data=data,
        card=metadata.get("card", ""),
        heads=read_heads(tensors) if profile == "int" else {},
    )


UNREADABLE = (SafetensorError, ValueError, RecursionError, KeyError, TypeError, RuntimeError, OverflowError, AttributeError)
"""What safetensors raises for foreign bytes."""


def read_metadata(data: bytes) -> dict[str, str]:
    """Metadata of a safetensors file: its byte loaders drop them. 8 bytes of length, then JSON.

    Raises:
        CheckpointError: Not one, or damaged.
    """
    try:
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
        texts = all(isinstance(value, str) for value in metadata.values())
    except UNREADABLE as error:
        raise CheckpointError(f"not a readable safetensors file: {error}") from error
    if not texts:
        raise CheckpointError("the metadata of the safetensors file are no texts")
    return dict(metadata)


def _read(data: bytes) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    try:
        arrays = {name: np.require(value, requirements=["A", "C"]) for name, value in load(data).items()}
        if sys.byteorder == "big":  # the file is little-endian, and safetensors' arrays are its bytes; the golden vector tells if that changes
            arrays = {name: value.byteswap() for name, value in arrays.items()}
    except KeyError as error:
        raise CheckpointError(f"a tensor of the file holds numbers of type {error}, which no model file of ours does") from error
    except UNREADABLE as error:
        raise CheckpointError(f"not a readable safetensors file: {error}") from error
    return read_metadata(data), arrays


def shipped_models() -> dict[str, str]:
    """Name to SHA-256 of the models that come with the package."""
    index: dict[str, str] = json.loads((WEIGHTS / "index.json").read_text())
    return index


def retired_models() -> dict[str, str]:
    """SHA-256 of models that came with earlier versions, to a git commit that has them."""
    retired: dict[str, str] = json.loads((WEIGHTS / "retired.json").read_text())
    return retired


def shipped_heads() -> dict[str, dict[str, str]]:
    """Name and SHA-256 of the files of heads that come with the package, by the SHA-256 of the model that they are for."""
    index: dict[str, dict[str, str]] = json.loads((WEIGHTS / "heads.json").read_text())
    return index


def heads_bytes(tensors: Mapping[str, NDArray[Any]], model_sha256: str) -> bytes:
    """A file of heads (`heads.head_tensors`) for a model that has none in its own file."""
    return save({name: np.ascontiguousarray(value) for name, value in tensors.items()}, metadata={"format": HEADS_FORMAT, "model": model_sha256})


def heads_of(model: LoadedModel) -> Mapping[int, Head]:
    """Heads of a model by scale: those of its file, else those that the package has for this very file, else none.

    Raises:
        CheckpointError: The package's file of them is damaged.
    """
    shipped = None if model.heads or model.profile != "int" else shipped_heads().get(model.sha256)
    if shipped is None:
        return model.heads
    try:
        data = (WEIGHTS / shipped["file"]).read_bytes()
    except OSError as error:
        raise CheckpointError(f"the shipped heads {shipped['file']} cannot be read ({error.strerror}); install msinn again") from error
    if hashlib.sha256(data).hexdigest() != shipped["sha256"]:
        raise CheckpointError(f"the shipped heads {shipped['file']} are damaged: their SHA-256 differs from the recorded one; install msinn again")
    metadata, tensors = _read(data)
    if metadata.get("format") != HEADS_FORMAT or metadata.get("model") != model.sha256:
        raise CheckpointError(f"the shipped heads {shipped['file']} are of format {metadata.get('format')!r}, or of another model")
    return read_heads(tensors)


def shipped_model_bytes(digest: str) -> bytes | None:
    """The file of a model that comes with the package, by its SHA-256; None if none has it."""
    name = next((name for name, theirs in shipped_models().items() if theirs == digest), None)
    return None if name is None else _shipped_bytes(name)


def load_model(which: str = DEFAULT_MODEL) -> LoadedModel:
    """A model by shipped name, by the beginning of its SHA-256 (8 digits or more), or by path, in the compact form too.

    Raises:
        CheckpointError: No such model, or a shipped file differs from its recorded hash.
    """
    from msinn_core.model_folder import model_file_bytes

    shipped = shipped_models()
    name = next((n for n, digest in shipped.items() if which == n or (len(which) >= 8 and digest.startswith(which))), None)
    if name is not None:
        return parse_model(_shipped_bytes(name))
    try:
        return parse_model(model_file_bytes(Path(which)))
    except OSError as error:
        raise CheckpointError(
            f"no model {which!r}: give one of {', '.join(shipped)}, a SHA-256, or the path of a .safetensors file ({error.strerror})"
        ) from error


def _shipped_bytes(name: str) -> bytes:
    try:
        data = (WEIGHTS / f"{name}.safetensors").read_bytes()
    except OSError as error:
        raise CheckpointError(f"the shipped model {name} cannot be read ({error.strerror}); install msinn again") from error
    if hashlib.sha256(data).hexdigest() != shipped_models()[name]:
        raise CheckpointError(f"the shipped model {name} is damaged: its SHA-256 differs from the recorded one; install msinn again")
    return data
