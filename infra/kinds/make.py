"""Datasets of one kind, for measuring what a model that learned a kind gains on others of it.

    python -m infra.kinds.make charts --count 360 --seed 1 --out KINDS/charts/train
    python -m infra.kinds.make charts --count 48 --seed 2 --held --out KINDS/charts/held

Kinds: `screens` (a browser's screenshots), `documents` (typeset pages, scanned), `charts` (charts and maps of matplotlib), `photographs` (tiles of
one source, from `--tiles`), `mixed` (tiles of all sources). `--held` has other words and contents, and some pages and charts that the other set has
none of.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

Named = tuple[str, bytes]
"""Name of a file, without a number, and its bytes."""


def _charts(arguments: argparse.Namespace) -> Iterator[Named]:
    from infra.kinds.charts import chart

    for number in range(arguments.count):
        name, picture = chart(number, seed=arguments.seed, held=arguments.held)
        yield f"{name}.png", png(picture)


def _screens(arguments: argparse.Namespace) -> Iterator[Named]:
    from infra.kinds.screens import screens

    for name, picture in screens(arguments.count, seed=arguments.seed, held=arguments.held):
        yield f"{name}.png", png(picture)


def _documents(arguments: argparse.Namespace) -> Iterator[Named]:
    from infra.kinds.documents import documents

    for name, data in documents(arguments.count, seed=arguments.seed, held=arguments.held):
        yield f"{name}.jpg", data


def _photographs(arguments: argparse.Namespace) -> Iterator[Named]:
    from infra.kinds.photographs import tiles

    source = arguments.source if arguments.kind == "photographs" else None
    yield from tiles(arguments.tiles, arguments.count, seed=arguments.seed, held=arguments.held, source=source, unseen=arguments.unseen)


KINDS: dict[str, Callable[[argparse.Namespace], Iterator[Named]]] = {
    "screens": _screens,
    "documents": _documents,
    "charts": _charts,
    "photographs": _photographs,
    "mixed": _photographs,
}


def png(picture: Image.Image) -> bytes:
    """Of a picture, its bytes as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def main() -> None:
    """Write one folder."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("kind", choices=sorted(KINDS))
    p.add_argument("--count", type=int, default=360)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--held", action="store_true", help="the held-out side: name another seed too")
    p.add_argument("--tiles", nargs="+", default=[], metavar="TAR", help="tars of tiles, `<number>_<source>.<suffix>`, for photographs and mixed")
    p.add_argument("--unseen", nargs="+", default=[], metavar="TAR", help="tars of tiles that the general model was not trained on: for --held alone")
    p.add_argument("--source", default="metadata", metavar="NAME", help="which tiles are photographs (default: metadata)")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = p.parse_args()
    if arguments.kind in ("photographs", "mixed") and not (arguments.tiles or arguments.unseen):
        p.error(f"{arguments.kind} are chosen among --tiles")
    arguments.out.mkdir(parents=True, exist_ok=True)
    started, num_bytes, number = time.monotonic(), 0, 0
    for number, (name, data) in enumerate(KINDS[arguments.kind](arguments), 1):
        (arguments.out / f"{arguments.kind}-{number:04d}-{name}").write_bytes(data)
        num_bytes += len(data)
    print(f"{arguments.out}: {number} pictures, {num_bytes / 2**20:.1f} MiB, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
