"""`msinn restore`: every image back."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from typing import TYPE_CHECKING

from jobs.arguments import add_device, add_executor, add_generation, add_limits, add_scale, add_storage, add_target_storage, limits_of, placement_of
from jobs.exits import EXIT_SOME_FAILED
from jobs.output import finish, print_devices, print_full

if TYPE_CHECKING:
    from pipeline.archive.conversion import Conversion


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("restore", help="every image back: decoded ones as PNG, the others as they were")
    p.add_argument("archive", metavar="DST")
    add_storage(p)
    p.add_argument("out", metavar="OUT", help="folder or URL; the same command again goes on after an interrupt")
    add_target_storage(p, "out")
    p.add_argument("--where", metavar="SQL", help='only rows of the manifest that fulfil a condition, e.g. "psnr_db < 32"')
    add_generation(p)
    p.add_argument("--to", choices=("files", "webdataset", "parquet"), default="files", help="tars with sidecars, or Parquet with an Image column")
    add_executor(p)
    add_device(p)
    p.add_argument("--overwrite", action="store_true", help="replace files of other content that are there")
    p.add_argument("--workers", type=int, metavar="N")
    p.add_argument(
        "--as", dest="form", choices=("png", "jpeg", "webp", "avif", "jxl", "original"),
        help="write every picture so; files of that format that are stored to the byte come back so. original: nothing else",
    )  # fmt: skip
    p.add_argument("--quality", type=int, metavar="N", help="1 to 100, with --as jpeg, webp, avif (default: 95) or jxl (default: without loss)")
    add_scale(p)
    p.add_argument("--dry-run", action="store_true", help="say what it would take on disk; write nothing")
    add_limits(p)
    p.set_defaults(command=_restore)


def _restore(arguments: argparse.Namespace) -> int:
    from pipeline.archive.conversion import Conversion
    from pipeline.errors import UsageError
    from pipeline.read.export import export
    from pipeline.read.restore import restore
    from pipeline.run.report import reporter_for

    if arguments.quality is not None and arguments.form is None:
        raise UsageError("--quality belongs to --as jpeg, webp, avif or jxl")
    conversion = None
    if arguments.form is not None or arguments.scale != 1:
        conversion = Conversion(arguments.form or "png", arguments.quality, arguments.scale)
    if arguments.dry_run:
        return _foresee(arguments, conversion)

    with contextlib.redirect_stdout(sys.stderr):  # what libraries print is not a result
        reporter = reporter_for(sys.stderr, quiet=arguments.quiet, verbose=arguments.verbose)
        try:
            write = restore if arguments.to == "files" else functools.partial(export, container=arguments.to)
            result = write(
                arguments.archive,
                arguments.out,
                generation=arguments.generation,
                where=arguments.where,
                overwrite=arguments.overwrite,
                placement=placement_of(arguments),
                reporter=reporter,
                limits=limits_of(arguments),
                device=arguments.device,
                conversion=conversion,
            )
        finally:
            reporter.close()
    if result.skipped:
        print(f"{result.skipped} images were there already, whole and equal", file=sys.stderr)
    if not result.images and not result.problems:
        print("no image fulfils the condition" if arguments.where else "the archive holds no image", file=sys.stderr)
    if result.failed_at_source:
        print(f"{result.failed_at_source} images could not be read when the archive was made; nothing is stored of them", file=sys.stderr)
    if result.left_out:
        print(f"{result.left_out} images are not stored to the byte and were left out: without --as original they come back as PNG", file=sys.stderr)
    print_full(result.full)
    if arguments.device == "auto":
        print_devices("decoded on", result.computed_on)
    code = finish(
        result.problems,
        f"{result.images} images and {result.sidecars} sidecars restored to {arguments.out}",
        "not everything came back exactly",
    )
    return code or (EXIT_SOME_FAILED if result.left_out or result.failed_at_source else 0)


def _foresee(arguments: argparse.Namespace, conversion: Conversion | None) -> int:
    from pipeline.read.restore import foresee

    found = foresee(arguments.archive, generation=arguments.generation, where=arguments.where, limits=limits_of(arguments), conversion=conversion)
    print(f"{found.images:,} images would take about {found.same_bytes + found.made_bytes:,} bytes on disk, sidecars aside:")
    print(f"{found.same_bytes:>18,}  files that come back to the byte")
    print(f"{found.made_bytes:>18,}  files made of pictures, by what a few of them take")
    if found.left_out:
        print(f"{found.left_out:>18,}  images are not stored to the byte, and would be left out")
    return 0
