"""`msinn models`: which models there are, and how a research checkpoint becomes one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from msinn_core.config import MsinnConfig
    from msinn_core.picture import Picture


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("models", help="list shipped models, or import a checkpoint")
    p.set_defaults(command=_list, json=False)
    actions = p.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="shipped models (the default)")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(command=_list)
    bringing = actions.add_parser("import", help="a checkpoint (.pth.tar of the research code, or .safetensors) to a model file")
    bringing.add_argument("checkpoint", metavar="CKPT")
    bringing.add_argument("-o", "--output", required=True, metavar="OUT.safetensors")
    bringing.add_argument("--name", help="name of the model (default: the output's)")
    bringing.add_argument(
        "--profile", choices=("int", "float"), default="int", help="int: what archives are made with (default); float: for evaluation"
    )
    bringing.add_argument(
        "--calibrate", metavar="FOLDER", help="a dozen photographs: they set integer ranges, CDF tables and the constants of rate prediction"
    )
    bringing.add_argument(
        "--fit-tables", metavar="FOLDER", help="pictures for the CDF tables alone, trained on or not (default: those of --calibrate)"
    )
    bringing.add_argument("--half", action="store_true", help="float profile: store weights as float16, as a start for training")
    bringing.set_defaults(command=_import)


def _list(arguments: argparse.Namespace) -> int:
    from msinn_core.model_file import DEFAULT_MODEL, WEIGHTS, load_model, shipped_models

    for name, digest in shipped_models().items():
        model = load_model(name)
        facts = {
            "name": name,
            "sha256": digest,
            "profile": model.profile,
            "q_max": model.config.q_max,
            "parameters": model.num_parameters,
            "bytes": len(model.data),
            "file": str(WEIGHTS / f"{name}.safetensors"),
        }
        if arguments.json:
            print(json.dumps(facts))
        else:
            default = " (default)" if name == DEFAULT_MODEL else ""
            print(f"{name}{default}: {digest[:12]}, profile {model.profile}, q 0 to {facts['q_max']:g}, {facts['parameters']:,} parameters")
            print(f"    {facts['file']}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from msinn_core import calibration
    from msinn_core.checkpoint import infer_config, model_bytes, read_state
    from msinn_core.codec import Codec
    from msinn_core.model_file import parse_model
    from pipeline.errors import StorageError, UsageError

    output = Path(arguments.output)
    if output.suffix != ".safetensors":
        raise UsageError(f"{output} must end in .safetensors")
    if arguments.profile == "int" and not arguments.calibrate:
        raise UsageError(
            "an integer model is packed by the ranges of real pictures: give --calibrate FOLDER with a dozen photographs, or --profile float"
        )
    if arguments.fit_tables and not arguments.calibrate:
        raise UsageError("--fit-tables is for a model that is calibrated: give --calibrate FOLDER too")
    state, config = read_state(Path(arguments.checkpoint))
    name = arguments.name or output.stem
    config = replace(config or infer_config(state), name=name)
    pictures = _pictures(arguments.calibrate) if arguments.calibrate else []
    if arguments.profile == "int":
        make = _packed(config, state, name, pictures)
    else:
        make = partial(model_bytes, config, state, name=name, half=arguments.half)
    data = make()
    if pictures:
        # The constants of rate prediction are those of the tables, so tables come first.
        tables = calibration.fit_tables(parse_model(data), _pictures(arguments.fit_tables) if arguments.fit_tables else pictures)
        data = make(tables=tables, calibration=calibration.fit(Codec(parse_model(make(tables=tables))), pictures))
    try:
        output.write_bytes(data)
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror}") from error
    model = parse_model(data)
    print(f"{output}: {name}, profile {model.profile}, {model.sha256}, {model.num_parameters:,} parameters")
    return 0


def _pictures(source: str) -> list[Picture]:
    from msinn_core.picture import Picture
    from pipeline.errors import SourceError
    from pipeline.formats import images
    from pipeline.sources import Fetcher, scan

    fetcher, pictures = Fetcher(), []
    for record in scan(source).records:
        loaded = images.load(fetcher.fetch(record.part), max_pixels=32_000_000)
        if loaded.picture is not None and loaded.picture.pixels.ndim == 3:
            pictures.append(Picture(pixels=loaded.picture.pixels))
    if not pictures:
        raise SourceError(f"{source} holds no colour image to calibrate on")
    return pictures


def _packed(config: MsinnConfig, state: Mapping[str, Tensor], name: str, pictures: list[Picture]) -> partial[bytes]:
    """Makes a model file of the integer profile, of tables and constants that are still to be measured."""
    import torch

    from msinn_core.checkpoint import load_parameters
    from msinn_core.config import SIZE_MULTIPLE
    from msinn_core.engines import golden_digest
    from msinn_core.float.model import Msinn
    from msinn_core.integer.network import IntegerNetwork
    from msinn_core.integer.packing import pack
    from msinn_core.integer.portable import Portable
    from msinn_core.model_file import integer_model_bytes

    network = Msinn(config)
    load_parameters(network, state)
    crops = []
    for picture in pictures:
        height, width = (min(512, side - side % SIZE_MULTIPLE) for side in picture.pixels.shape[:2])
        if height and width:
            crops.append(torch.from_numpy(picture.pixels[:height, :width].copy()).permute(2, 0, 1)[None].float() / 255)
    packed = pack(network, crops)
    golden = golden_digest(IntegerNetwork(config, packed, Portable()))
    return partial(integer_model_bytes, config, packed, golden, name=name)
