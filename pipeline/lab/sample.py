"""A sample of a dataset for a model of its own: drawn over the whole listing, near-duplicates on one side, bounded in images and memory."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msinn_core.config import DEFAULT_MAX_PIXELS, SIZE_MULTIPLE
from msinn_core.training.data import cut
from pipeline.errors import SourceError, UsageError
from pipeline.formats.decoding import Loader
from pipeline.sources import Fetcher, SourceRecord

TRAIN_IMAGES, HELD_OUT_IMAGES = 400, 32
"""Most images of either side. More say little that is new of one kind, and take longer to read than to learn from."""

LEAST_IMAGES = 24
"""With fewer there is nothing to compare on, and nothing to gain: the model's own bytes are those of a hundred photographs."""

_MEASURED_PIXELS = 4_000_000
"""Of held-out images: enough that the interval is narrow, few enough that comparing takes a minute or two."""

_HELD_OUT_SHARE, LEAST_MEASURED = 0.2, 12
"""An interval over fewer images is too narrow: of 4, one comparison in six of equal models was `certain`."""

_LARGEST_SIDE = 512
"""Of what is kept of a held-out image: its centre."""

_TILES_PER_IMAGE = 4
_THUMBNAIL = 9
_NEAR_BITS = 6
"""Images whose 144 bits of thumbnail differ in so few are copies of each other: scaled, recompressed, or neighbours of one series."""

_NEAR_VALUES = 5
"""So are those whose thumbnails differ nowhere by more code values: where an image is smooth, its bits are those of the noise of a file."""

_READERS = 4

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """What was drawn.

    Attributes:
        tiles: uint8 `[S, S, 3]`, of the images to train on, a few of each.
        owners: Number, among the images to train on, of the one that each tile is of.
        tile: S, a multiple of 32.
        train: The images to train on, cropped as `held_out`, up to `HELD_OUT_IMAGES` of them: for tables, ranges and constants.
        held_out: Those to compare on, their centres of at most 512 x 512 pixels.
        num_train: Images to train on.
        mean_pixels: Of an image.
        digest: SHA-256 over the source bytes of all images used: what the model is derived from.
        left_out: Images drawn that could not be used, by reason.
    """

    tiles: list[Pixels]
    owners: list[int]
    tile: int
    train: list[Pixels]
    held_out: list[Pixels]
    num_train: int
    mean_pixels: float
    digest: str
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def used_share(self) -> float:
        """Of the images that were drawn: those that can be coded, as far as a sample tells."""
        used = self.num_train + len(self.held_out)
        return used / (used + sum(self.left_out.values()))

    @property
    def first_tiles(self) -> list[Pixels]:
        """One tile of every image to train on that has any, in their order."""
        pairs = zip(self.tiles, self.owners, [-1, *self.owners], strict=False)
        return [tile for tile, owner, before in pairs if owner != before]

    def part(self, chosen: NDArray[np.bool_]) -> Sample:
        """The sample of some of the images to train on, with the held-out ones of all.

        Args:
            chosen: Whether each of `first_tiles` is of a chosen image.
        """
        owners = {owner for owner, is_chosen in zip(dict.fromkeys(self.owners), chosen.tolist(), strict=True) if is_chosen}
        tiles = [(tile, owner) for tile, owner in zip(self.tiles, self.owners, strict=True) if owner in owners]
        firsts = [tile for tile, is_chosen in zip(self.first_tiles, chosen.tolist(), strict=True) if is_chosen]
        some = firsts[:: max(1, len(firsts) // HELD_OUT_IMAGES)][:HELD_OUT_IMAGES]
        digest = hashlib.sha256(self.digest.encode() + bytes(chosen)).hexdigest()
        return replace(
            self, tiles=[tile for tile, _ in tiles], owners=[owner for _, owner in tiles], train=some, num_train=len(owners), digest=digest
        )


@dataclass(frozen=True)
class _Drawn:
    sha256: bytes
    num_pixels: int
    pixels: Pixels
    bits: NDArray[np.bool_]
    thumbnail: NDArray[np.int16]


def candidates(records: Sequence[SourceRecord], seed: int) -> list[SourceRecord]:
    """Records of the whole listing in a random order: more than a sample takes, for some will not do."""
    order = np.random.default_rng(seed).permutation(len(records))[: 4 * (TRAIN_IMAGES + HELD_OUT_IMAGES)]
    return [records[number] for number in order.tolist()]


def draw(records: Sequence[SourceRecord], *, seed: int = 1, largest_tile: int = 256, checking: bool = False) -> Sample:
    """Draw a sample.

    Args:
        records: `candidates` of the listing, or all of it in a random order.
        seed: Of the tiles.
        largest_tile: Largest side of the tiles.
        checking: Nothing is learned from it, so that fewer images will do.

    Raises:
        UsageError: Too few images can be used, or all are near-copies of each other.
    """
    left_out: Counter[str] = Counter()
    drawn = _decoded(records, left_out)
    sides = _sides([image.bits for image in drawn], [image.thumbnail for image in drawn])
    train, held_out = ([image for image, side in zip(drawn, sides, strict=True) if side == which] for which in (False, True))
    if len(drawn) < (LEAST_MEASURED if checking else LEAST_IMAGES):
        reasons = "".join(f"; {count} {reason}" for reason, count in sorted(left_out.items()))
        if checking:
            raise UsageError(
                f"{len(drawn)} images of the source can be measured{reasons}: whether a model fits takes {LEAST_MEASURED} or more to say"
            )
        raise UsageError(f"{len(drawn)} images of the source can be learned from{reasons}: a model of its own needs {LEAST_IMAGES} or more")
    if not held_out or not train:
        raise UsageError(f"the {len(drawn)} images that were drawn are near-copies of each other: none can be held out to compare on")
    shortest = sorted(min(image.pixels.shape[:2]) for image in train)[len(train) // 10]
    tile = max(SIZE_MULTIPLE, min(largest_tile, shortest - shortest % SIZE_MULTIPLE))
    rng = np.random.default_rng(seed)
    tiles = [(found, owner) for owner, image in enumerate(train) for found in _some_tiles(image.pixels, tile, rng)]
    digest = hashlib.sha256(b"".join(image.sha256 for image in (*train, *held_out))).hexdigest()
    few = train[:: max(1, len(train) // HELD_OUT_IMAGES)][:HELD_OUT_IMAGES]
    return Sample(
        tiles=[pixels for pixels, _ in tiles],
        owners=[owner for _, owner in tiles],
        tile=tile,
        train=[_centre(image.pixels) for image in few],
        held_out=[_centre(image.pixels) for image in held_out],
        num_train=len(train),
        mean_pixels=float(np.mean([image.num_pixels for image in drawn])),
        digest=digest,
        left_out=left_out,
    )


def _decoded(records: Sequence[SourceRecord], left_out: Counter[str]) -> list[_Drawn]:
    """Images in their order until there are enough, decoded in a process of their own like all that strangers made; grey ones as three equal
    channels, as the codec takes them."""
    fetcher, loader = Fetcher(), Loader(DEFAULT_MAX_PIXELS)

    def load(record: SourceRecord) -> _Drawn | str:
        try:
            data = fetcher.fetch(record.part)
        except SourceError:
            return "unreadable"
        loaded = loader.load(data, name=record.name)
        if loaded.picture is None:
            return str(loaded.reason or "broken").replace("_", " ")
        pixels = loaded.picture.pixels
        if min(pixels.shape[:2]) < 2 * SIZE_MULTIPLE:
            return "smaller than 64 x 64"
        pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
        signs, thumbnail = _thumbnail_bits(pixels), _thumbnail(pixels)
        return _Drawn(hashlib.sha256(data).digest(), pixels.shape[0] * pixels.shape[1], _window(pixels), signs, thumbnail)

    found: list[_Drawn] = []
    with contextlib.closing(loader), ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(records), 4 * _READERS):
            for drawn in readers.map(load, records[start : start + 4 * _READERS]):
                if isinstance(drawn, str):
                    left_out[drawn] += 1
                elif len(found) < TRAIN_IMAGES + HELD_OUT_IMAGES:
                    found.append(drawn)
            if len(found) == TRAIN_IMAGES + HELD_OUT_IMAGES:
                break
    return found


def _window(pixels: Pixels) -> Pixels:
    """Of a very large image a window of twice the largest side, so that a sample fits into memory whatever the images."""
    height, width = (min(side, 2 * _LARGEST_SIDE) for side in pixels.shape[:2])
    row, column = ((whole - part) // 2 for whole, part in zip(pixels.shape[:2], (height, width), strict=True))
    return np.ascontiguousarray(pixels[row : row + height, column : column + width])


def _thumbnail_bits(pixels: Pixels) -> NDArray[np.bool_]:
    """`[144]`: whether brightness rises from each cell of a 9 x 9 thumbnail to its right neighbour, and to the one below."""
    small = np.asarray(Image.fromarray(pixels).convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX), np.int16)
    return np.concatenate(((np.diff(small, axis=1) > 0).ravel(), (np.diff(small, axis=0) > 0).ravel()))


def _thumbnail(pixels: Pixels) -> NDArray[np.int16]:
    """`[243]`: means of red, green and blue over the cells of a 9 x 9 thumbnail."""
    return np.asarray(Image.fromarray(pixels).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX), np.int16).ravel()


def _sides(bits: Sequence[NDArray[np.bool_]], thumbnails: Sequence[NDArray[np.int16]]) -> list[bool]:
    """Whether each image is held out: a fifth of them, whole groups of near-copies at a time."""
    groups = _groups(bits, thumbnails)
    wanted = min(HELD_OUT_IMAGES, max(LEAST_MEASURED, int(_HELD_OUT_SHARE * len(bits))))
    held: set[int] = set()
    # Single images first: large groups of copies say little on either side, and belong to what is learned.
    for group, count in sorted(Counter(groups).items(), key=lambda item: (item[1], item[0])):
        if wanted >= count and len(set(groups)) - len(held) > 1:
            held.add(group)
            wanted -= count
    return [group in held for group in groups]


def _groups(bits: Sequence[NDArray[np.bool_]], thumbnails: Sequence[NDArray[np.int16]]) -> list[int]:
    """A group number per image: near-copies share theirs."""
    groups: list[int] = []
    signs, values = np.array(bits), np.array(thumbnails)
    for i in range(len(bits)):
        alike = (signs[:i] != signs[i]).sum(axis=1) <= _NEAR_BITS
        near = np.flatnonzero(alike | (np.abs(values[:i] - values[i]).max(axis=1, initial=0) <= _NEAR_VALUES))
        joined = {groups[number] for number in near}
        group = min(joined, default=i)
        groups = [group if number in joined else number for number in groups]
        groups.append(group)
    return groups


def _some_tiles(pixels: Pixels, side: int, rng: np.random.Generator) -> Iterator[Pixels]:
    tiles = list(cut(pixels, side))
    for number in rng.permutation(len(tiles))[:_TILES_PER_IMAGE]:
        yield np.ascontiguousarray(tiles[number])


def _centre(pixels: Pixels) -> Pixels:
    height, width = (min(side, _LARGEST_SIDE) for side in pixels.shape[:2])
    row, column = ((whole - part) // 2 for whole, part in zip(pixels.shape[:2], (height, width), strict=True))
    return np.ascontiguousarray(pixels[row : row + height, column : column + width])


def within(pictures: Sequence[Pixels], pixels: int = _MEASURED_PIXELS) -> list[Pixels]:
    """The first of them that have so many pixels together; at least one."""
    total = 0
    chosen: list[Pixels] = []
    for picture in pictures:
        total += picture.shape[0] * picture.shape[1]
        if chosen and total > pixels:
            break
        chosen.append(picture)
    return chosen
