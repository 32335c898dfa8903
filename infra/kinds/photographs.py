"""Photographs: tiles of tars, by source, divided so that no tile is on both sides."""

from __future__ import annotations

import random
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

_HELD_SHARE = 8
"""One tile in so many, by its name, is for the held-out side."""


def tiles(
    tars: Sequence[str], count: int, *, seed: int, held: bool, source: str | None = None, unseen: Sequence[str] = ()
) -> Iterator[tuple[str, bytes]]:
    """Names and bytes, as they are, of tiles that are named `<number>_<source>.<suffix>`; fewer than `count` if there are not so many.

    Args:
        tars: Files, divided between both sides.
        count: At most so many.
        seed: Of the choice.
        held: The held-out side.
        source: Only tiles of this source; those of all if None.
        unseen: Files that the general model was not trained on: all theirs are held out, and come before others.
    """
    whole = _named(unseen, source, None) if held else []
    parts = _named(tars, source, held)
    rng = random.Random(f"photographs {held} {seed}")
    chosen = rng.sample(whole, min(count, len(whole)))
    chosen += rng.sample(parts, min(count - len(chosen), len(parts)))
    for path in dict.fromkeys(path for path, _ in chosen):
        names = {name for of, name in chosen if of == path}
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name in names and (file := tar.extractfile(member)) is not None:
                    yield f"{Path(path).stem}-{Path(member.name).name}", file.read()


def _named(tars: Sequence[str], source: str | None, held: bool | None) -> list[tuple[str, str]]:
    """Tar and member of the tiles of a source, of one side or of both (None)."""
    found = []
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                number, _, of = Path(member.name).stem.partition("_")
                side = zlib.crc32(number.encode()) % _HELD_SHARE == 0
                if member.isfile() and source in (None, of) and held in (None, side):
                    found.append((path, member.name))
    return found
