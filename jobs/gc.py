"""`msinn gc`: what killed attempts left behind."""

from __future__ import annotations

import argparse


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("gc", help="what killed attempts left in a sealed archive on which nobody works; nothing is removed without --delete")
    p.add_argument("archive", metavar="DST")
    p.add_argument("--delete", action="store_true", help="remove it")
    p.set_defaults(command=_gc)


def _gc(arguments: argparse.Namespace) -> int:
    from pipeline.archive.archive import Archive
    from pipeline.read import gc

    archive = Archive(arguments.archive)
    found = gc.orphans(archive)
    for name, length in sorted(found.items()):
        print(f"{length:>15,}  {archive.store.path(name)}")
    if arguments.delete:
        gc.collect(archive, found)
    what = "removed" if arguments.delete else "could be removed: say --delete" if found else "to remove"
    print(f"{len(found)} objects, {sum(found.values()):,} bytes {what}")
    return 0
