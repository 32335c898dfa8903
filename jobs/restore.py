"""`msinn restore`: every image back."""

from __future__ import annotations

import argparse
import contextlib
import sys

from jobs.arguments import add_executor, add_limits, limits_of, placement_of
from jobs.output import finish


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("restore", help="every image back: decoded ones as PNG, the others as they were")
    p.add_argument("archive", metavar="DST")
    p.add_argument("out", metavar="OUT", help="folder or URL; the same command again goes on after an interrupt")
    p.add_argument("--where", metavar="SQL", help='only rows of the manifest that fulfil a condition, e.g. "psnr_db < 32"')
    add_executor(p)
    p.add_argument("--overwrite", action="store_true", help="replace files of other content that are there")
    p.add_argument("--workers", type=int, metavar="N")
    add_limits(p)
    p.set_defaults(command=_restore)


def _restore(arguments: argparse.Namespace) -> int:
    from pipeline.read.restore import restore
    from pipeline.run.report import reporter_for

    with contextlib.redirect_stdout(sys.stderr):  # what libraries print is not a result
        reporter = reporter_for(sys.stderr, quiet=arguments.quiet, verbose=arguments.verbose)
        try:
            result = restore(
                arguments.archive,
                arguments.out,
                where=arguments.where,
                overwrite=arguments.overwrite,
                placement=placement_of(arguments),
                reporter=reporter,
                limits=limits_of(arguments),
            )
        finally:
            reporter.close()
    if result.skipped:
        print(f"{result.skipped} images were there already, whole and equal", file=sys.stderr)
    if not result.images and not result.problems:
        print("no image fulfils the condition" if arguments.where else "the archive holds no image", file=sys.stderr)
    if result.failed_at_source:
        print(f"{result.failed_at_source} images could not be read when the archive was made; nothing is stored of them", file=sys.stderr)
    return finish(
        result.problems,
        f"{result.images} images and {result.sidecars} sidecars restored to {arguments.out}",
        "not everything came back exactly",
    )
