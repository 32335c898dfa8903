"""`msinn gc`: what killed attempts left behind, and generations that are given up."""

from __future__ import annotations

import argparse
import sys

from jobs.arguments import add_storage


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("gc", help="what killed attempts left in a sealed archive on which nobody works; nothing is removed without --delete")
    p.add_argument("archive", metavar="DST")
    add_storage(p)
    p.add_argument("--keep", type=int, metavar="N", help="give up all but the newest N generations: shards that only older ones use")
    p.add_argument("--unfinished", action="store_true", help="growths too that were begun and could still be finished")
    p.add_argument("--delete", action="store_true", help="remove it")
    p.set_defaults(command=_gc)


def _gc(arguments: argparse.Namespace) -> int:
    from pipeline.archive.archive import Archive
    from pipeline.read import gc

    dropped: list[int] = []
    if arguments.keep is not None:
        archive, dropped = gc.keeping(arguments.archive, arguments.keep)
    else:
        archive = Archive(arguments.archive, everything=True)
    found = gc.orphans(archive, unfinished=arguments.unfinished)
    if dropped:
        which = f"generation {dropped[0]}" if len(dropped) == 1 else f"generations {dropped[0]} to {dropped[-1]}"
        print(f"{which} can no longer be read {'from here on' if arguments.delete else 'after that'}; {archive.newest - dropped[-1]} are kept")
    for name, length in sorted(found.items()):
        print(f"{length:>15,}  {archive.store.path(name)}")
    if arguments.delete:
        gc.drop(archive, dropped)
        gc.collect(archive, found)
    elif not arguments.unfinished:
        for folder in gc.half_grown(archive):
            print(f"{archive.store.path(folder)} is a growth under way or killed: the same compress --grow finishes it", file=sys.stderr)
    what = "removed" if arguments.delete else "could be removed: say --delete" if found else "to remove"
    print(f"{len(found)} objects, {sum(found.values()):,} bytes {what}")
    return 0
