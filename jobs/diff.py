"""`msinn diff`: an archive against a folder."""

from __future__ import annotations

import argparse
import json

from jobs.arguments import add_generation, add_limits, add_storage, limits_of
from jobs.exits import EXIT_SOME_FAILED
from pipeline.text import shown


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("diff", help="an archive against a folder (its source, or what was restored): what is missing, what is different, and how")
    p.add_argument("archive", metavar="DST")
    add_storage(p)
    p.add_argument("folder", metavar="FOLDER", help="folder or URL")
    p.add_argument("--json", action="store_true", help="JSON lines instead of text")
    add_generation(p)
    add_limits(p)
    p.set_defaults(command=_diff)


def _diff(arguments: argparse.Namespace) -> int:
    from pipeline.read.diff import DIFFERENT, ONLY_IN_ARCHIVE, ONLY_IN_FOLDER, Comparison

    comparison = Comparison()
    for found in comparison.run(arguments.archive, arguments.folder, limits_of(arguments), generation=arguments.generation):
        if arguments.json:
            print(json.dumps({"kind": found.kind, "name": found.name, "how": found.how}))
        else:
            print(f"{found.kind:<19}  {shown(found.name)}" + (f": {shown(found.how)}" if found.how else ""))
    kinds = ("the source", "as restored", DIFFERENT, ONLY_IN_ARCHIVE, ONLY_IN_FOLDER)
    if not arguments.json:
        print(", ".join(f"{comparison.counts[kind]:,} {kind}" for kind in kinds))
    return EXIT_SOME_FAILED if any(comparison.counts[kind] for kind in (DIFFERENT, ONLY_IN_ARCHIVE, ONLY_IN_FOLDER)) else 0
