"""`msinn models`: which models there are and how they differ, their files, and how a research checkpoint becomes one."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.arguments import add_storage
from pipeline.text import shown

if TYPE_CHECKING:
    from msinn_core.model_file import LoadedModel
    from msinn_core.picture import Picture
    from pipeline.lab.models import Listed


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("models", help="list, compare and export models, or import a checkpoint")
    p.set_defaults(command=_list, where=None, json=False)
    actions = p.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="shipped models (the default), or those of an archive or a folder")
    listing.add_argument("where", nargs="?", metavar="WHERE", help="an archive, or a folder of model files")
    add_storage(listing, "where")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(command=_list)
    comparing = actions.add_parser("compare", help="whether two models are of one network, what differs, and what that takes as a difference")
    comparing.add_argument("a", metavar="A", help="name, SHA-256, path, archive, or ARCHIVE/model/NAME")
    comparing.add_argument("b", metavar="B", help="likewise")
    add_storage(comparing, "a", "b")
    comparing.add_argument("--json", action="store_true")
    comparing.set_defaults(command=_compare)
    taking = actions.add_parser("export", help="the file of a model that is stored in an archive")
    taking.add_argument("archive", metavar="ARCHIVE", help="or a path in the compact form")
    add_storage(taking)
    taking.add_argument("sha256", nargs="?", metavar="SHA256", help="the beginning of it (default: the model that the archive was made with)")
    taking.add_argument("-o", "--output", required=True, metavar="OUT.safetensors")
    taking.set_defaults(command=_export)
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
    from jobs.output import print_problems
    from pipeline.lab.models import models_at, shipped

    problems, count = [], 0
    for listed in models_at(arguments.where) if arguments.where else shipped():
        count += 1
        if arguments.json:
            print(json.dumps(listed.facts()))
        elif listed.model is not None:
            _show(listed, listed.model)
        if listed.problem:
            problems.append(listed.problem)
    if not count and not arguments.json:
        print("no models")
    return print_problems(problems)


def _show(listed: Listed, model: LoadedModel) -> None:
    from msinn_core.model_file import DEFAULT_MODEL, card_of, shipped_models

    shipped = {digest: name for name, digest in shipped_models().items()}
    default = " (default)" if shipped.get(model.sha256) == DEFAULT_MODEL else ""
    used = ", what the archive is made with" if listed.used else ""
    what = f"profile {model.profile}, q 0 to {model.config.q_max:g}, {model.num_parameters:,} parameters"
    print(f"{shown(model.name)}{default}: {model.sha256[:12]}, {what}{used}")
    said = card_of(model)
    if origin := said.get("derived_from"):
        print(f"    learned {_learned(said)} from {shipped.get(str(origin), 'model')} {shown(str(origin)[:12])}")
    how = f", stored in {listed.stored_bytes:,}" if listed.stored_bytes != len(model.data) else ""
    how = f", {listed.compact_bytes:,} in the compact form" if listed.compact_bytes else how
    how += f" as a difference to {listed.base[:12]}" if listed.base else ""
    print(f"    {len(model.data):,} bytes{how}")
    print(f"    {shown(listed.place)}")


def _learned(said: dict[str, Any]) -> str:
    """What a card says of how a model was made, in words."""
    numbers = {key: said.get(key) for key in ("images", "minutes", "bd_rate_percent")}
    words = [f"of {numbers['images']:,} images"] if isinstance(numbers["images"], int) else []
    words += [f"for {numbers['minutes']:g} minutes"] if isinstance(numbers["minutes"], int | float) else []
    rates = numbers["bd_rate_percent"]
    if isinstance(rates, list) and len(rates) == 3 and all(isinstance(rate, int | float) for rate in rates):
        words.append(f"({rates[0]:+.1f} % bytes on others, {rates[1]:+.1f} to {rates[2]:+.1f})")
    return " ".join(words)


def _compare(arguments: argparse.Namespace) -> int:
    from pipeline.lab.models import compared, model_at

    a, b = model_at(arguments.a), model_at(arguments.b)
    found = compared(a, b)
    if arguments.json:
        print(json.dumps({"a": a.sha256, "b": b.sha256, **asdict(found)}))
        return 0
    for letter, model in (("A", a), ("B", b)):
        print(f"{letter}: {shown(model.name)}, {model.sha256[:12]}, profile {model.profile}, {model.num_parameters:,} parameters")
    if a.sha256 == b.sha256:
        print("the same file")
        return 0
    same = "of the same network" if not found.config else "of different networks: " + _pairs(found.config)
    print(f"{same}; {len(found.alone)} tensors that only one has" if found.alone else same)
    print(f"\n{'part':<14}{'tensors':>8}{'differ':>8}  by (share of B that A does not say)")
    for part, (count, differ, much) in found.parts.items():
        print(f"{shown(part):<14}{count:>8}{differ:>8}" + (f"  {much:.1%}" if differ else ""))
    if found.card:
        print(f"\ncard: {_pairs(found.card)}")
    sizes = {name: "too large" if size is None else f"{size:,}" for name, size in found.bytes.items()}
    print(f"\nB has {sizes['file']} bytes; in the compact form {sizes['alone']}, as a difference to A {sizes['difference']}")
    return 0


def _pairs(values: dict[str, tuple[Any, Any]]) -> str:
    return "; ".join(shown(f"{key} {a} | {b}") for key, (a, b) in values.items())


def _export(arguments: argparse.Namespace) -> int:
    from pipeline.lab.models import exported

    output = _named(arguments.output)
    data = exported(arguments.archive, arguments.sha256)
    _write(output, data)
    print(f"{output}: {hashlib.sha256(data).hexdigest()}, {len(data):,} bytes")
    return 0


def _named(name: str) -> Path:
    from pipeline.errors import UsageError

    if Path(name).suffix != ".safetensors":
        raise UsageError(f"{name} must end in .safetensors")
    return Path(name)


def _write(output: Path, data: bytes) -> None:
    from pipeline.errors import StorageError

    try:
        output.write_bytes(data)
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror}") from error


def _import(arguments: argparse.Namespace) -> int:
    from msinn_core.assembly import float_model, integer_model
    from msinn_core.checkpoint import infer_config, read_state
    from msinn_core.model_file import parse_model
    from pipeline.errors import UsageError

    output = _named(arguments.output)
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
    _write(output, data)
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
