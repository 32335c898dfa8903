"""`msinn verify`: every byte hashed, or every image decoded."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from jobs.arguments import add_device, add_executor, add_generation, add_limits, add_storage, limits_of, placement_of
from jobs.output import finish, print_devices

if TYPE_CHECKING:
    from pipeline.run.report import Reporter


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("verify", help="check every byte, or decode every image")
    p.add_argument("archive", metavar="DST")
    add_storage(p)
    how = p.add_mutually_exclusive_group()
    how.add_argument("--fixity", action="store_true", help="hash every object and compare (the default)")
    how.add_argument("--decode", action="store_true", help="decode every image and compare its pixels' hash")
    add_executor(p)
    add_device(p)
    add_generation(p)
    p.add_argument("--sample", type=_share, default=1.0, metavar="1%", help="with --decode: a random share of the images")
    p.add_argument("--workers", type=int, metavar="N")
    add_limits(p)
    p.set_defaults(command=_verify)


def _share(text: str) -> float:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write 1% or 0.01") from error


def _verify(arguments: argparse.Namespace) -> int:
    from pipeline.read import verify
    from pipeline.run.report import reporter_for

    reporter = reporter_for(sys.stderr, quiet=arguments.quiet, verbose=arguments.verbose)
    try:
        return _verified(arguments, verify, reporter)
    finally:
        reporter.close()


def _verified(arguments: argparse.Namespace, verify: Any, reporter: Reporter) -> int:
    from pipeline.archive.archive import Archive

    if arguments.decode:
        with contextlib.redirect_stdout(sys.stderr):  # Ray speaks of lost workers there
            result = verify.decode(
                arguments.archive,
                generation=arguments.generation,
                sample=arguments.sample,
                placement=placement_of(arguments),
                reporter=reporter,
                limits=limits_of(arguments),
                device=arguments.device,
            )
        if arguments.device == "auto":
            print_devices("decoded on", result.computed_on)
        done = f"{result.images} images and {result.sidecars} sidecars decoded and compared"
    else:
        reporter.phase("verify", sum(layer.run.images for layer in Archive(arguments.archive, arguments.generation, without_run=True).layers))
        result = verify.fixity(arguments.archive, generation=arguments.generation, on_shard=lambda record: reporter.advance(images=record.images))
        done = f"{result.images} images checked byte for byte"
    # Where the sources are, what is lost can be made again; where they are not, what is there comes back.
    advice = "the same `msinn compress` makes lost shards again, `msinn restore` gives all that is there"
    return finish(result.problems, done, f"verification failed ({advice})")
