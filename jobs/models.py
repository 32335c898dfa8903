"""`msinn models`: which models there are, and how a research checkpoint becomes one."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from msinn_core.assembly import float_model, integer_model
    from msinn_core.checkpoint import infer_config, read_state
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
    table_pictures = _pictures(arguments.fit_tables) if arguments.fit_tables else []
    if arguments.profile == "int":
        data = integer_model(config, state, name=name, pictures=pictures, table_pictures=table_pictures)
    else:
        data = float_model(config, state, name=name, pictures=pictures, table_pictures=table_pictures, half=arguments.half)
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
