"""`msinn get`: one image, reading only its bytes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jobs.arguments import add_generation, add_limits, add_scale, add_storage, add_target_storage, limits_of
from jobs.output import finish, print_full, print_problems
from pipeline.text import shown

_SAME_FORMAT = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("get", help="one image, or several, by key, name or glob, reading only their bytes")
    p.add_argument("archive", metavar="DST")
    add_storage(p)
    p.add_argument("keys", metavar="KEY", nargs="+", help="key, original or restored name, or a glob such as 'photos/*.png' or '**/*.png'")
    p.add_argument(
        "-o", "--output", metavar="FILE", help="where to write (default: its name, here; - for standard output); for several a folder or URL"
    )
    add_target_storage(p, "output")
    p.add_argument("--overwrite", action="store_true", help="with several: replace files of other content that are there")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--original", action="store_true", help="the stored payload itself")
    what.add_argument("--metadata", action="store_true", help="list what the image carries beside its pixels; with -o FOLDER write it there")
    add_scale(p)
    add_generation(p)
    add_limits(p)
    p.set_defaults(command=_get)


def _get(arguments: argparse.Namespace) -> int:
    from pipeline.errors import UsageError
    from pipeline.formats.images import IMAGE_SUFFIXES
    from pipeline.read.get import get

    if arguments.scale != 1 and (arguments.metadata or arguments.original):
        raise UsageError("--scale makes a smaller picture: leave out --metadata and --original")
    several = len(arguments.keys) > 1 or any(sign in arguments.keys[0] for sign in "*?")
    if several and (arguments.metadata or arguments.original):
        raise UsageError("--metadata and --original are of one image: give one key")
    if several:
        return _get_several(arguments)
    (arguments.key,) = arguments.keys
    if arguments.metadata:
        return _get_metadata(arguments)
    found = get(
        arguments.archive,
        arguments.key,
        original=arguments.original,
        scale=arguments.scale,
        generation=arguments.generation,
        limits=limits_of(arguments),
    )
    name, data = found.name, found.data
    output = arguments.output or Path(name).name
    if output == "-":
        sys.stdout.buffer.write(data)
    else:
        given, true = (_SAME_FORMAT.get(suffix, suffix) for suffix in (Path(output).suffix.lower(), Path(name).suffix.lower()))
        if given and given != true and true[1:] in IMAGE_SUFFIXES and not arguments.original:
            raise UsageError(f"what comes back is {name}, and {output} is called otherwise: name it {Path(output).with_suffix(Path(name).suffix)}")
        if arguments.output is None and Path(output).exists():
            raise UsageError(f"{output} exists: name another file with -o")
        try:
            Path(output).write_bytes(data)
        except OSError as error:
            raise UsageError(f"cannot write {output}: {error.strerror}") from error
        kind = " of PNG" if data.startswith(b"\x89PNG") else ""
        print(f"{shown(output)}: {len(data):,} bytes{kind}", file=sys.stderr)
    if found.why_full is not None:
        print(f"the picture was decoded in full and made smaller: {shown(found.why_full)}", file=sys.stderr)
    return print_problems(found.problems)


def _get_several(arguments: argparse.Namespace) -> int:
    from pipeline.errors import UsageError
    from pipeline.read.get import get_many

    if arguments.output in (None, "-"):
        raise UsageError("several images go into a folder: name it with -o")
    result = get_many(
        arguments.archive,
        arguments.keys,
        arguments.output,
        overwrite=arguments.overwrite,
        scale=arguments.scale,
        generation=arguments.generation,
        limits=limits_of(arguments),
    )
    if result.skipped:
        print(f"{result.skipped} images were there already, whole and equal", file=sys.stderr)
    print_full(result.full)
    done = f"{result.images} images and {result.sidecars} sidecars written to {shown(arguments.output)}"
    return finish(result.problems, done, "not everything came back exactly")


def _get_metadata(arguments: argparse.Namespace) -> int:
    from pipeline.errors import UsageError
    from pipeline.formats.segments import jpeg_segments, png_chunks, segment_name
    from pipeline.read.get import metadata_of

    found = metadata_of(arguments.archive, arguments.key, generation=arguments.generation, limits=limits_of(arguments))
    for name, data in found.items():
        print(f"{len(data):>10,}  {name}")
        if name == "jpeg-segments.bin":
            for marker, content in jpeg_segments(data):
                print(f"{len(content):>14,}  {shown(segment_name(marker, content))}")
        if name == "png-chunks.bin":
            for kind, content, _ in png_chunks(data):
                print(f"{len(content):>14,}  {shown(kind.decode('latin-1'))}")
    if not found:
        print("the image carries nothing beside its pixels", file=sys.stderr)
    if arguments.output is not None:
        try:
            Path(arguments.output).mkdir(parents=True, exist_ok=True)
            for name, data in found.items():
                Path(arguments.output, name).write_bytes(data)
        except OSError as error:
            raise UsageError(f"cannot write to {arguments.output}: {error.strerror}") from error
    return 0
