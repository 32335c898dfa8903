"""Pictures that no camera took, drawn by program: screenshots, text, charts, line art, pixel art, gradients, photographs pasted into pages.

    python -m infra.drawn.make --count 600 --seed 1 --photos PHOTOS --out drawn-train.tar
    python -m infra.drawn.make --valid --count 48 --seed 1 --photos OTHERS --out drawn-valid.tar

PNG members of 512 x 512 pixels, `<number>_<kind>.png`. Tile n depends on the seed, n, and the photographs alone (with one version of Pillow).
"""

from __future__ import annotations

import argparse
import io
import random
import tarfile
from pathlib import Path

from PIL import Image

from infra.drawn import held_out, kinds
from infra.drawn.page import SIDE, TRAIN_FONTS, VALID_FONTS, Page, style

JPEG_SHARE, DITHER_SHARE, RESCALE_SHARE = 0.08, 0.07, 0.06
"""Of tiles that were a JPEG once, were reduced to few colours with dithering, or were scaled after they were drawn."""


def tile(number: int, *, seed: int, valid: bool = False, photos: kinds.Photos = ()) -> tuple[str, Image.Image]:
    """Name of the kind and RGB picture of `SIDE` x `SIDE` of tile `number`; every kind comes once in as many tiles as there are kinds.

    Args:
        number: 0 and up.
        seed: Of the set.
        valid: Kinds and fonts that training never sees, in place of those of training.
        photos: RGB, to paste into pages, no side under 400 pixels; without any, kinds that need one are left out.
    """
    source = held_out if valid else kinds
    plain = {kind.__name__: kind for kind in source.PLAIN}
    mixed = {kind.__name__: kind for kind in source.WITH_PHOTO} if photos else {}
    turn, place = divmod(number, len(plain) + len(mixed))
    group = "valid" if valid else "train"
    name = random.Random(f"{group} {seed} turn {turn}").sample([*plain, *mixed], len(plain) + len(mixed))[place]
    rng = random.Random(f"{group} {seed} {number}")
    page = Page(rng, style(rng, VALID_FONTS if valid else TRAIN_FONTS))
    if name in plain:
        plain[name](page)
    else:
        mixed[name](page, photos)
    return name, _used(page.image, rng)


def _used(picture: Image.Image, rng: random.Random) -> Image.Image:
    """What may have happened to a picture before it was archived."""
    chance = rng.random()
    if chance < JPEG_SHARE:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=rng.randint(60, 96), subsampling=rng.choice(("4:4:4", "4:2:0")))
        with Image.open(buffer) as coded:
            return coded.convert("RGB")
    if chance < JPEG_SHARE + DITHER_SHARE:
        return picture.quantize(rng.choice((8, 16, 64, 256)), dither=Image.Dither.FLOYDSTEINBERG).convert("RGB")
    if chance < JPEG_SHARE + DITHER_SHARE + RESCALE_SHARE:
        part = rng.randint(300, 480)
        return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(0, 0, part, part))
    return picture


def write(path: Path, count: int, *, seed: int, valid: bool, photos: kinds.Photos) -> None:
    """A tar of `count` tiles; equal arguments give equal bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(count):
            name, picture = tile(number, seed=seed, valid=valid, photos=photos)
            buffer = io.BytesIO()
            picture.save(buffer, "PNG", optimize=True)
            member = tarfile.TarInfo(f"{number:05d}_{name}.png")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)


def photographs(source: str, limit: int) -> list[Image.Image]:
    """The first colour pictures of a source (folder, tar, Parquet, glob)."""
    from pipeline.lab.evaluation import pictures

    return [Image.fromarray(pixels) for _, pixels in pictures(source, limit)]


def main() -> None:
    """Write one tar."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--count", type=int, default=400)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--valid", action="store_true", help="kinds and fonts that training never sees")
    p.add_argument("--photos", metavar="SRC", help="photographs to paste into pages; for --valid others than for training")
    p.add_argument("--photo-count", type=int, default=150, metavar="N", help="how many of them are read")
    p.add_argument("--out", type=Path, required=True, metavar="FILE")
    arguments = p.parse_args()
    photos = photographs(arguments.photos, arguments.photo_count) if arguments.photos else []
    write(arguments.out, arguments.count, seed=arguments.seed, valid=arguments.valid, photos=photos)
    print(f"{arguments.out}: {arguments.count} tiles, {arguments.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
