"""Values on the command line that several verbs take."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING

from msinn_core.config import DEFAULT_MAX_PIXELS

if TYPE_CHECKING:
    from pipeline.execute.connection import Resources
    from pipeline.execute.placement import Placement
    from pipeline.limits import Limits

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def add_scale(p: argparse.ArgumentParser) -> None:
    """Declare `--scale`."""
    p.add_argument(
        "--scale",
        type=int,
        default=1,
        metavar="N",
        help="2, 4, 8 or 16: pictures so many times smaller each way, by the first bytes of coded images alone",
    )


def size(text: str) -> float:
    """Bytes from `500000`, `500k`, `1.5G`, `2Gi`."""
    number = text.rstrip("kKMGTiB")
    unit = text[len(number) :].removesuffix("B")
    unit = "k" if unit == "K" else unit
    if unit not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 500000, 500k, 1.5G or 2Gi")
    try:
        return float(number) * _UNITS[unit]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 500000, 500k, 1.5G or 2Gi") from error


def minutes(text: str) -> float:
    """Minutes from `30`, `30m`, `90s`, `2h`."""
    units = {"s": 1 / 60, "m": 1.0, "h": 60.0}
    unit = units.get(text[-1:])
    try:
        value = float(text if unit is None else text[:-1]) * (unit or 1.0)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e5:
        raise argparse.ArgumentTypeError(f"{text!r} is no time to learn: write 30, 30m, 90s or 2h")
    return value


def add_generation(p: argparse.ArgumentParser) -> None:
    """Which generation of an archive that has grown."""
    p.add_argument("--generation", type=int, metavar="N", help="the archive as it was first (1), or after a growth (default: the newest)")


def add_storage(p: argparse.ArgumentParser, *of: str) -> None:
    """Settings of the archive's store.

    Args:
        p: The verb's.
        of: Its arguments that say where archives are; `archive` if not given.
    """
    p.add_argument(
        "--storage-option", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of the archive's store, as fsspec takes it: endpoint_url=https://..., profile=NAME; env:NAME as VALUE is that variable's, "
        "for secrets; repeat",
    )  # fmt: skip
    p.set_defaults(storage_option_of=of or ("archive",))


def add_source_storage(p: argparse.ArgumentParser) -> None:
    """Settings of the source's store."""
    p.add_argument("--source-option", action="append", default=[], metavar="KEY=VALUE", help="the same of the store of SRC; repeat")
    p.set_defaults(source_option_of=("source",))


def add_target_storage(p: argparse.ArgumentParser, of: str) -> None:
    """Settings of the store that files are written to; `of`: the argument that says where."""
    p.add_argument("--target-option", action="append", default=[], metavar="KEY=VALUE", help="the same of the store that is written to; repeat")
    p.set_defaults(target_option_of=(of,))


def use_storage(arguments: argparse.Namespace) -> None:
    """Let what the command opens be opened with the settings that were given. Raises `UsageError` for one that is none."""
    for option in ("storage_option", "source_option", "target_option"):
        if not getattr(arguments, option, None):
            continue
        from pipeline.archive.models import archive_of
        from pipeline.errors import UsageError
        from pipeline.store.options import use_options

        words = f"--{option.replace('_', '-')}"
        named = [address for name in getattr(arguments, f"{option}_of") if (address := getattr(arguments, name)) is not None]
        stores = [address for address in named if "://" in address and not address.startswith("file://")]
        if not stores:
            raise UsageError(f"{words} is about an object store, and {f'{named[0]} is a folder of this machine' if named else 'none is named'}")
        settings = dict(_setting(words, pair) for pair in getattr(arguments, option))
        for address in stores:
            use_options(archive_of(address), settings)


def _setting(words: str, pair: str) -> tuple[str, object]:
    """A setting of a store: text, or what JSON says (numbers, true, objects). What is wrong is said without its value, which may be a secret."""
    from pipeline.errors import UsageError

    key, equals, value = pair.partition("=")
    if not equals or not key.isidentifier():
        raise UsageError(f"{words} takes KEY=VALUE")
    if value.startswith("env:"):
        found = os.environ.get(value.removeprefix("env:"))
        if found is None:
            raise UsageError(f"{words} {key}={value}: there is no such variable in the environment")
        return key, found
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


def add_executor(p: argparse.ArgumentParser) -> None:
    """Who does the work."""
    p.add_argument("--cluster", metavar="ADDR", help="address of a running Ray cluster (default: a local one, started and ended here)")
    p.add_argument(
        "--executor",
        choices=("auto", "local", "processes", "ray"),
        default="auto",
        help="this process alone, processes of this machine, Ray, or what suits size and options (default: auto)",
    )


def placement_of(arguments: argparse.Namespace, resources: Resources | None = None) -> Placement:
    """Who was asked to do the work. Raises `UsageError` for a cluster or several workers of this process."""
    from pipeline.errors import UsageError
    from pipeline.execute.connection import Resources
    from pipeline.execute.placement import Placement

    if arguments.executor == "local" and (arguments.cluster is not None or (arguments.workers or 1) > 1):
        raise UsageError("--executor local is this process alone: it takes neither --cluster nor --workers")
    resources = resources or Resources()
    if arguments.executor == "processes":
        _check_processes(arguments, resources)
    return Placement(executor=arguments.executor, cluster=arguments.cluster, workers=arguments.workers, resources=resources)


def _check_processes(arguments: argparse.Namespace, resources: Resources) -> None:
    from pipeline.errors import UsageError
    from pipeline.execute import processes
    from pipeline.execute.connection import Resources

    if arguments.cluster is not None or resources != Resources() or arguments.device != "cpu":
        raise UsageError("--executor processes are this machine's CPU: they take none of --cluster, --label, --memory-per-worker and --device")
    if not processes.available():
        raise UsageError("--executor processes takes Linux: choose local or ray")


def add_device(p: argparse.ArgumentParser) -> None:
    """Where the network runs."""
    p.add_argument(
        "--device",
        choices=("cpu", "cuda", "auto"),
        default="cpu",
        help="where the network runs, to the same result: auto is a GPU where there is one that passes the self-test (default: cpu)",
    )


def add_limits(p: argparse.ArgumentParser) -> None:
    """What is decoded at most."""
    says = "decode no larger picture, whatever the archive says (default: %(default)s)"
    p.add_argument("--max-pixels", type=int, default=DEFAULT_MAX_PIXELS, metavar="N", help=says)
    p.add_argument("--max-file-bytes", type=size, default=2 * 2**30, metavar="N", help="read no larger file into memory (2Gi)")


def limits_of(arguments: argparse.Namespace) -> Limits:
    """The limits asked for. Raises `UsageError` for values below 1."""
    from pipeline.errors import UsageError
    from pipeline.limits import Limits

    if arguments.max_pixels < 1 or arguments.max_file_bytes < 1:
        raise UsageError("--max-pixels and --max-file-bytes take 1 or more")
    return Limits(max_pixels=arguments.max_pixels, max_file_bytes=int(arguments.max_file_bytes))
