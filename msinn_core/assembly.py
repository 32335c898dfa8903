"""From parameters to a model file: packed to integers where asked for, with tables of its symbols, heads, constants of rate prediction and its golden
vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from msinn_core import calibration
from msinn_core.checkpoint import load_parameters, model_bytes
from msinn_core.codec import Codec
from msinn_core.config import SIZE_MULTIPLE, MsinnConfig
from msinn_core.errors import CheckpointError
from msinn_core.float.model import Msinn
from msinn_core.heads_fitting import fit_heads
from msinn_core.integer.engine import golden_digest
from msinn_core.integer.network import IntegerNetwork
from msinn_core.integer.packing import pack
from msinn_core.integer.portable import Portable
from msinn_core.model_file import LoadedModel, integer_model_bytes, parse_model
from msinn_core.picture import Picture

_CROP = 512
"""Ranges of activations are measured on crops of this side."""


def integer_model(
    config: MsinnConfig,
    state: Mapping[str, Tensor],
    *,
    name: str,
    pictures: Sequence[Picture],
    table_pictures: Sequence[Picture] = (),
    threads: int = 1,
) -> bytes:
    """A model file of the integer profile.

    Args:
        config: Of the network.
        state: Its parameters.
        name: What people call it.
        pictures: RGB, a dozen or more, 256 x 256 or larger: they set integer ranges and the constants of rate prediction.
        table_pictures: For the CDF tables, trained on or not; `pictures` if empty.
        threads: Of the measuring codec.

    Raises:
        CheckpointError: The parameters do not fit the network, or no picture is large enough.
    """
    network = Msinn(config)
    load_parameters(network, state)
    crops = [crop for picture in pictures if (crop := _crop(picture)) is not None]
    if not crops:
        raise CheckpointError(f"no picture to calibrate on is {SIZE_MULTIPLE} x {SIZE_MULTIPLE} pixels or larger")
    packed = pack(network, crops)
    golden = golden_digest(IntegerNetwork(config, packed, Portable()))
    return _measured(partial(integer_model_bytes, config, packed, golden, name=name), pictures, table_pictures, threads)


def refitted_model(model: LoadedModel, *, name: str, pictures: Sequence[Picture], table_pictures: Sequence[Picture] = (), threads: int = 1) -> bytes:
    """A model file of the same integer network, with CDF tables and constants of other pictures.

    Args:
        model: Of the integer profile.
        name: What people call the new one.
        pictures: See `integer_model`; they set the constants of rate prediction.
        table_pictures: For the CDF tables; `pictures` if empty.
        threads: Of the measuring codec.
    """
    make = partial(integer_model_bytes, model.config, model.integer, model.golden, name=name)
    return _measured(make, pictures, table_pictures, threads)


def float_model(
    config: MsinnConfig,
    state: Mapping[str, Tensor],
    *,
    name: str,
    pictures: Sequence[Picture] = (),
    table_pictures: Sequence[Picture] = (),
    half: bool = False,
) -> bytes:
    """A model file of the float profile.

    Args:
        config: Of the network.
        state: Its parameters.
        name: What people call it.
        pictures: For the constants of rate prediction; none of them, and no tables of its own, if empty.
        table_pictures: See `integer_model`.
        half: Store float16, as a start for training.
    """
    make = partial(model_bytes, config, state, name=name, half=half)
    return _measured(make, pictures, table_pictures, 1) if pictures else make()


def _measured(make: Callable[..., bytes], pictures: Sequence[Picture], table_pictures: Sequence[Picture], threads: int) -> bytes:
    # The constants of rate prediction are those of the tables, so tables come first.
    tables, weights = calibration.fit_tables(parse_model(make()), table_pictures or pictures, threads=threads)
    make = partial(make, tables=tables) if weights is None else partial(make, tables=tables, weights=weights)
    model = parse_model(make())
    codec = Codec(model, threads=threads)
    if model.profile == "int":
        make = partial(make, heads=fit_heads(codec, [*table_pictures, *pictures]))
    return make(calibration=calibration.fit(codec, pictures))


def _crop(picture: Picture) -> Tensor | None:
    """The upper left corner, `[1, 3, H, W]` in [0, 1]; None of a picture that is too small."""
    height, width = (min(_CROP, side - side % SIZE_MULTIPLE) for side in picture.pixels.shape[:2])
    if not height or not width:
        return None
    return torch.from_numpy(picture.pixels[:height, :width].copy()).permute(2, 0, 1)[None].float() / 255
