"""The trim of a shard: its last images, held in memory together, take up exactly what the others leave of a limit. `plan.trim` chooses rates."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.archive.shard import END_BYTES
from pipeline.encode.coders import Coders
from pipeline.encode.item import Item
from pipeline.encode.load import ItemLoader
from pipeline.encode.search import verify
from pipeline.encode.stream import encode_stream
from pipeline.encode.tasks import ImageTask, WorkConfig
from pipeline.plan.trim import Trimmer

TRIM_PIXELS = 16_000_000
"""Images that are trimmed together stay in memory with their latents, symbols and walks, about 36 bytes per pixel."""

_ROUNDS = 3
"""An image whose floor moves it after a trim is pinned, and the others are trimmed again."""


def encode_within(tasks: Sequence[ImageTask], limit_bytes: int, loader: ItemLoader, coder: Coders, config: WorkConfig) -> list[Item]:
    """All images of a shard, released, as `encode_stream` has them, within a limit that they use up.

    Args:
        tasks: What is wanted of each image; the rates of the last ones are a start.
        limit_bytes: Of the shard with its end; sidecars count if the run counts them.
        loader: Fetches and decodes image files.
        coder: Codes.
        config: The run's.

    Raises:
        StorageError: The source's store failed.
    """
    first, last = split_for_trim(tasks)
    items = []
    for item in encode_stream(first, loader, coder, config.target_psnr_db):
        item.release()
        items.append(item)
    trimmed = list(loader.ahead(last))
    coded = [item for item in trimmed if item.coded]
    used = END_BYTES + sum(item.payload_bytes for item in items) + sum(item.payload_bytes for item in trimmed if not item.coded)
    if config.count_sidecars:
        used += sum(item.sidecar_bytes for item in (*items, *trimmed))
    _trim(coded, limit_bytes - used, coder, config.target_psnr_db)
    for item in coded:
        item.keep_if_larger()
    for item in trimmed:
        item.release()
    return items + trimmed


def _trim(items: list[Item], limit_bytes: int, coder: Coders, target_psnr_db: float | None) -> None:
    """Code the items so that together they take up the limit; each is measured at the rate at which it stays."""

    def encode(i: int, q: float) -> int:
        coder.compress(items[i], q, tentative=True)
        coder.pack(items[i])
        return items[i].least_bytes

    ranges = [_range(item, coder.q_max, movable=not (item.drawn and any(not other.drawn for other in items))) for item in items]
    most = [float(item.most_bytes) for item in items]
    trimmer = Trimmer(encode, [item.task.q for item in items], ranges, most)
    pinned: set[int] = set()
    for _ in range(_ROUNDS):
        trimmer.run(limit_bytes, pinned)
        moved = set()
        for i, item in enumerate(items):
            if i not in pinned and item.coded:
                before = item.symbols
                verify(coder, item, target_psnr_db)
                if item.symbols is not before or not item.coded:
                    moved.add(i)
                    trimmer.sizes[i] = item.least_bytes
        if not moved:
            break
        pinned |= moved


def _range(item: Item, q_max: float, *, movable: bool) -> tuple[float, float]:
    """Rates that an item may take. AVIF has few, and is slow to try: where others can make up the bytes it stays where the plan has it."""
    return (item.task.min_q, min(item.task.max_q, q_max)) if movable else (item.task.q, item.task.q)


def split_for_trim(tasks: Sequence[ImageTask]) -> tuple[Sequence[ImageTask], Sequence[ImageTask]]:
    """Cut off the last images up to `TRIM_PIXELS`; at least one of them can be coded if any can."""
    pixels = 0
    for start in range(len(tasks) - 1, -1, -1):
        pixels += tasks[start].pixels
        if pixels > TRIM_PIXELS and any(task.to_code for task in tasks[start + 1 :]):
            return tasks[: start + 1], tasks[start + 1 :]
    return (), tasks
