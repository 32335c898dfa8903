"""Values on the command line that several verbs take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.execute.connection import Resources
    from pipeline.execute.placement import Placement
    from pipeline.limits import Limits

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


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


def add_executor(p: argparse.ArgumentParser) -> None:
    """Who does the work."""
    p.add_argument("--cluster", metavar="ADDR", help="address of a running Ray cluster (default: a local one, started and ended here)")
    p.add_argument(
        "--executor", choices=("auto", "local", "ray"), default="auto", help="this process alone, Ray, or what suits size and options (default: auto)"
    )


def placement_of(arguments: argparse.Namespace, resources: Resources | None = None) -> Placement:
    """Who was asked to do the work. Raises `UsageError` for a cluster or several workers of this process."""
    from pipeline.errors import UsageError
    from pipeline.execute.connection import Resources
    from pipeline.execute.placement import Placement

    if arguments.executor == "local" and (arguments.cluster is not None or (arguments.workers or 1) > 1):
        raise UsageError("--executor local is this process alone: it takes neither --cluster nor --workers")
    return Placement(executor=arguments.executor, cluster=arguments.cluster, workers=arguments.workers, resources=resources or Resources())


def add_limits(p: argparse.ArgumentParser) -> None:
    """What is decoded at most."""
    p.add_argument("--max-pixels", type=int, default=32_000_000, metavar="N", help="decode no larger picture, whatever the archive says (32000000)")
    p.add_argument("--max-file-bytes", type=size, default=2 * 2**30, metavar="N", help="read no larger file into memory (2Gi)")


def limits_of(arguments: argparse.Namespace) -> Limits:
    """The limits asked for. Raises `UsageError` for values below 1."""
    from pipeline.errors import UsageError
    from pipeline.limits import Limits

    if arguments.max_pixels < 1 or arguments.max_file_bytes < 1:
        raise UsageError("--max-pixels and --max-file-bytes take 1 or more")
    return Limits(max_pixels=arguments.max_pixels, max_file_bytes=int(arguments.max_file_bytes))
