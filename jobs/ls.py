"""`msinn ls`: the files of an archive, as a restore would name them."""

from __future__ import annotations

import argparse
import json

from jobs.arguments import add_generation, add_storage
from pipeline.text import shown


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("ls", help="the files of an archive, by the names that restore gives them")
    p.add_argument("archive", metavar="DST")
    add_storage(p)
    p.add_argument("names", metavar="NAME", nargs="*", help="keys, names or globs such as 'photos/*.png' or '**/*.png' (default: all)")
    add_generation(p)
    shape = p.add_mutually_exclusive_group()
    shape.add_argument("-l", "--long", action="store_true", help="stored bytes, form, PSNR, pixels, key and original name too")
    shape.add_argument("--json", action="store_true", help="the same as JSON lines")
    p.set_defaults(command=_ls)


def _ls(arguments: argparse.Namespace) -> int:
    from pipeline.read.filesystem import MsinnFileSystem

    fs = MsinnFileSystem(arguments.archive, generation=arguments.generation)
    files = fs.files
    for name in files.matching(arguments.names) if arguments.names else files:
        if not (arguments.long or arguments.json):
            print(shown(name))
            continue
        info = fs.info(name)
        if arguments.json:
            print(json.dumps({key: value for key, value in info.items() if key != "type"}, default=str))
            continue
        size = f"{info['width']} x {info['height']}" if info.get("width") else "-"
        quality = "exact" if info.get("exact") != "no" else f"{info['psnr_db']:.2f} dB" if info["psnr_db"] is not None else "-"
        print(
            f"{info['stored']:>12,}  {info.get('form') or 'sidecar':<12}  {quality:>8}  {size:>13}  {info.get('key') or '-':<9}  {shown(name)}",
            end="",
        )
        print("" if info["original"] == name else f"  (was {shown(info['original'])})")
    return 0
