"""`msinn status`: how far an archive is, from the store alone."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from typing import TYPE_CHECKING, Any

from jobs.arguments import add_storage
from pipeline.text import redacted, shown

if TYPE_CHECKING:
    from pipeline.archive.archive import Archive
    from pipeline.archive.commits import Commit


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("status", help="how far an archive is, from the store alone")
    p.add_argument("archive", metavar="DST")
    add_storage(p)
    p.add_argument("--json", action="store_true")
    p.set_defaults(command=_status)


def _status(arguments: argparse.Namespace) -> int:
    from pipeline.archive.archive import Archive, MissingArchiveError
    from pipeline.store.base import open_store

    try:
        archive = Archive(arguments.archive)
    except MissingArchiveError:
        analysed = open_store(arguments.archive).ages("analyse")
        if not analysed:
            raise
        # Nothing binds the place before the plan is known to be feasible.
        begun = {"state": "analysing, or planned only", "shards_analysed": len(analysed), "last_sign_s": round(time.time() - max(analysed.values()))}
        print(json.dumps(begun) if arguments.json else "\n".join(f"{name:<17}{value}" for name, value in begun.items()))
        return 0
    records = archive.commits()
    run = archive.run
    pace = {} if archive.sealed else _pace(archive, records)
    generations = _generations(archive)
    sealed = archive.seal() if archive.newest > 1 else None
    shards = f"{len(records)} of {run.shards}" if sealed is None else f"{len(records)}"
    images = f"{sum(r.images for r in records)} of {run.images}" if sealed is None else f"{sealed['images']}"
    facts: dict[str, Any] = {
        "state": "sealed" if archive.sealed else "unfinished",
        "source": redacted(run.source),
        "budget": run.budget,
        "model": run.model,
        "shards": shards,
        "images": images,
        "kept": sum(r.kept for r in records),
        "failed": sum(r.failed for r in records),
        "jpeg_exact": sum(r.jpeg_exact for r in records),
        "pixels_exact": sum(r.pixels_exact for r in records),
        "counted_bytes": sum(r.counted_bytes for r in records),
        **pace,
    }
    if sealed is not None:
        facts |= {name: sealed[name] for name in ("kept", "failed", "jpeg_exact", "pixels_exact", "counted_bytes")}
    if arguments.json:
        print(json.dumps(facts | {"generations": generations}))
        return 0
    for name, value in facts.items():
        print(f"{name:<15}{value:,}" if isinstance(value, int) else f"{name:<15}{shown(value)}")
    if len(generations) > 1:
        _print_generations(generations)
    if not archive.sealed:
        print("to finish it, run the same `msinn compress` again")
    return 0


def _generations(archive: Archive) -> list[dict[str, Any]]:
    """What each generation is, those that are begun and not sealed too; one that is the first and unfinished is said by the rest."""
    from pipeline.archive.layer import Layer
    from pipeline.archive.layout import GENERATIONS, RUN

    facts: list[dict[str, Any]] = []
    for number, sealed in archive.seals():
        first = number == 1
        facts.append(
            {
                "generation": number,
                "state": "dropped" if number < archive.oldest else "sealed",
                "images": sealed.get("images"),
                "added": sealed.get("images") if first else sealed["added"],
                "changed": 0 if first else sealed["changed"],
                "vanished": 0 if first else sealed["vanished"],
                "counted_bytes": sealed["counted_bytes"],
                "own_bytes": sealed["counted_bytes"] if first else sealed.get("own", {}).get("counted_bytes"),
                "budget": archive.layers[number - 1].run.budget if number <= len(archive.layers) else "?",
                "sealed_at": sealed.get("sealed_at"),
            }
        )
    for name in archive.store.list(GENERATIONS):
        if name.startswith(f"{GENERATIONS}/{archive.newest + 1:05d}-") and name.endswith(f"/{RUN}"):
            layer = Layer.read(archive.store, name.removesuffix(f"/{RUN}"))
            done = len(layer.books(None).commits)
            facts.append({"generation": layer.generation, "state": f"unfinished, {done} of {layer.run.shards} shards", "images": layer.run.images})
    return facts


def _print_generations(generations: list[dict[str, Any]]) -> None:
    print("generation   images    added  changed vanished      counted bytes   of its own  sealed")
    for found in generations:
        if found["state"].startswith("unfinished"):
            print(f"{found['generation']:>10} {found['images']:>8,} to add: {found['state']}; the same compress --grow finishes it")
            continue
        numbers = [found[name] or 0 for name in ("images", "added", "changed", "vanished", "counted_bytes", "own_bytes")]
        widths = (8, 8, 8, 8, 18, 12)
        line = " ".join(f"{number:>{width},}" for number, width in zip(numbers, widths, strict=True))
        note = " (dropped)" if found["state"] == "dropped" else ""
        print(f"{found['generation']:>10} {line}  {shown(found['sealed_at'])}{note}")


def _pace(archive: Archive, records: list[Commit]) -> dict[str, Any]:
    """What the times of the objects say of a run that is not finished."""
    from pipeline.archive.layout import commit_name

    now = time.time()
    written = archive.store.ages("commits")
    signs = [*written.values(), *archive.store.ages("plan").values(), *archive.store.ages("analyse").values()]
    age = now - max(signs) if signs else None
    times = sorted(written.values())
    images = {commit_name(record.shard_id): record.images for record in records}
    facts: dict[str, Any] = {}
    usual = 0.0
    if len(times) > 1 and times[-1] > times[0]:
        usual = max(b - a for a, b in itertools.pairwise(times))
        since = times[max(0, len(times) - 50)]
        since = since if since < times[-1] else times[0]  # stores that know whole seconds only
        rate = sum(images.get(name, 0) for name, when in written.items() if when > since) / (times[-1] - since)
        facts["images_per_s"] = round(rate, 2)
        left = archive.run.images - sum(images.values())
        facts["seconds_left"] = round(left / rate) if rate else None
    if age is not None:
        facts["last_sign_s"] = round(age)
        facts["last_commit_s"] = round(now - times[-1]) if times else None
        running = age < max(600.0, 3 * usual)
        facts["activity"] = (
            f"running, as far as the store can tell (last written {age:.0f} s ago)"
            if running
            else f"stopped, or slow (nothing written for {age:.0f} s)"
        )
    return facts
