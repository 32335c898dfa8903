"""`msinn models`: which models there are, and how a research checkpoint becomes one."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path


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
    bringing.add_argument("--calibrate", metavar="FOLDER", help="images to measure the constants of rate prediction on (a dozen will do)")
    bringing.set_defaults(command=_import)


def _list(arguments: argparse.Namespace) -> int:
    from msinn_core.checkpoint import DEFAULT_MODEL, WEIGHTS, load_model, shipped_models

    for name, digest in shipped_models().items():
        model = load_model(name)
        facts = {
            "name": name,
            "sha256": digest,
            "profile": model.profile,
            "q_max": model.network.config.q_max,
            "parameters": sum(p.numel() for p in model.network.parameters()),
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
    from msinn_core.checkpoint import infer_config, model_bytes, parse_model, read_state
    from pipeline.errors import StorageError, UsageError

    output = Path(arguments.output)
    if output.suffix != ".safetensors":
        raise UsageError(f"{output} must end in .safetensors")
    state, config = read_state(Path(arguments.checkpoint))
    name = arguments.name or output.stem
    config = replace(config or infer_config(state), name=name)
    data = model_bytes(config, state, name=name)
    if arguments.calibrate:
        data = _calibrated(data, arguments.calibrate, state, name)
    try:
        output.write_bytes(data)
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror}") from error
    model = parse_model(data)
    print(f"{output}: {name}, {model.sha256}, {sum(p.numel() for p in model.network.parameters()):,} parameters")
    return 0


def _calibrated(data: bytes, source: str, state: object, name: str) -> bytes:
    from msinn_core import calibration
    from msinn_core.checkpoint import model_bytes, parse_model
    from msinn_core.codec import Codec, Picture
    from pipeline import images
    from pipeline.errors import SourceError
    from pipeline.sources import Fetcher, scan

    model = parse_model(data)
    codec, fetcher = Codec(model), Fetcher()
    pictures = []
    for record in scan(source).records:
        loaded = images.load(fetcher.fetch(record.part), max_pixels=codec.max_pixels)
        if loaded.picture is not None and loaded.picture.pixels.ndim == 3:
            pictures.append(Picture(pixels=loaded.picture.pixels))
    if not pictures:
        raise SourceError(f"{source} holds no colour image to calibrate on")
    fitted = calibration.fit(codec, pictures)
    return model_bytes(model.network.config, state, name=name, tables=model.tables, calibration=fitted)  # type: ignore[arg-type]
