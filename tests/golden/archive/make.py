"""Made the sources of the archives here. Never run again for a version that is there.

`version-1/` is of msinn at commit 2697d14 (archive version 1, manifest schema 1), `version-2/` of the first that wrote archive version 2, manifest
schema 2 and bitstream version 2, `version-3/` of the first that stored models in the compact form: `msinn compress SOURCE version-N --q 4 (1 since
version 2) --model ../integer/model.safetensors`, without its model, which is the golden one beside it. `version-3-models/` is the same with two
models of which images take turns: the golden one, and that one with a card, as a difference to it. `version-4/` is of the first that stored exact
forms, of the same sources; `version-4-lossless/` of those that `lossless` makes, by `--lossless`: every form that needs no model. `version-5/` is of
the first that let archives grow: of the same sources, and then, by `--grow`, of what `grown` makes of them.
`version-6/` is of the first that had near-lossless members, of those that `near` makes, by `--max-error 4` and the golden model, with which rounded
samples win: members with a residual are in `../near`.
`version-7/` is of the first that coded what was drawn in AVIF, of those that `mixed` makes, by `--bpp 3 --forms all` and the golden model.

    python -m tests.golden.archive.make FOLDER [--lossless | --grown | --near | --mixed]
"""

from __future__ import annotations

import sys
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image, ImageCms

from tests.conftest import PHOTOS, encoded, make_photos, png16
from tests.integration.test_avif import noisy


def main(folder: Path) -> None:
    """Six photos, one with EXIF and a sidecar; files that are kept, broken or cannot be read."""
    make_photos(folder, 6, 64)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(folder / "photo000.png") as photo:
        (folder / "turned.jpg").write_bytes(encoded(photo.resize((128, 96)), "JPEG", exif=exif, quality=95))
    (folder / "turned.json").write_bytes(b'{"label": 1}')
    (folder / "deep.png").write_bytes(png16(20, 10))
    (folder / "broken.jpg").write_bytes((folder / "turned.jpg").read_bytes()[:900])
    (folder / "notes.txt").write_bytes(b"no image")
    (folder / "gone.png").symlink_to("/nonexistent")
    # Since version 2: what files hold beside their pixels is coded with them.
    with Image.open(sorted(PHOTOS.rglob("*.webp"))[0]) as photo:
        part = photo.convert("RGB").crop((40, 100, 168, 196))
    (folder / "commented.jpg").write_bytes(encoded(part, "JPEG", comment=b"by hand", dpi=(300, 300), quality=100, subsampling=0))
    (folder / "printed.png").write_bytes(encoded(part, "PNG", dpi=(300, 300)))


def grown(folder: Path) -> None:
    """What became of `main`'s files: one added, one changed, one gone, one that could not be read is there."""
    with Image.open(sorted(PHOTOS.rglob("*.webp"))[1]) as photo:
        whole = photo.convert("RGB")
    whole.crop((0, 0, 96, 64)).save(folder / "added.png")
    whole.crop((96, 64, 160, 128)).save(folder / "photo001.png")
    (folder / "photo002.png").unlink()
    (folder / "gone.png").unlink()
    whole.crop((200, 64, 264, 128)).save(folder / "gone.png")


def lossless(folder: Path) -> None:
    """JPEGs that JPEG XL and Lepton take, whole and not; pictures of 8 and 16 bits, with metadata and alpha; files that no form shrinks."""
    folder.mkdir(exist_ok=True)
    photos = sorted(PHOTOS.rglob("*.webp"))
    with Image.open(photos[0]) as photo:
        part = photo.convert("RGB").crop((40, 100, 136, 164))
        large = photo.convert("RGB").crop((40, 100, 200, 228))
    samples = np.asarray(part)
    jpeg = encoded(large, "JPEG", quality=90, comment=b"by hand")
    # Long segments are what JPEG XL packs better than Lepton.
    text = b"".join(f"<rdf:li>{number * number:x}</rdf:li>".encode() for number in range(2000))
    files = {
        "plain.jpg": jpeg,
        "progressive.jpg": encoded(large, "JPEG", progressive=True, subsampling=0),
        "described.jpg": encoded(large, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + text, quality=90),
        "cut.jpg": jpeg[: len(jpeg) * 2 // 3],
        "tailed.jpg": jpeg + b"a video, say",
        "cmyk.jpg": encoded(part.convert("CMYK"), "JPEG"),
        "misnamed.png": jpeg,
        "rgb.png": encoded(part, "PNG", dpi=(300, 300), icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        "grey.bmp": encoded(part.convert("L"), "BMP"),
        "deep.png": imagecodecs.png_encode(samples.astype(np.uint16) * 257 + 3),
        "deep.tif": encoded(Image.fromarray(samples[:, :, 0].astype(np.uint16) * 201), "TIFF"),
        "palette.png": encoded(part.quantize(16), "PNG", transparency=3),
        "alpha.png": encoded(Image.fromarray(np.dstack([samples, samples[:, :, 1]])), "PNG"),
        "cmyk.tif": encoded(Image.new("CMYK", (64, 64), (1, 2, 3, 4)), "TIFF"),
        "notes.txt": b"no image",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)


def near(folder: Path) -> None:
    """Pictures of 8 bits with metadata and alpha; one of 16 bits and a JPEG, which lie exactly."""
    folder.mkdir(exist_ok=True)
    with Image.open(sorted(PHOTOS.rglob("*.webp"))[0]) as photo:
        part = photo.convert("RGB").crop((40, 100, 136, 164))
    samples = np.asarray(part)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files = {
        "rgb.png": encoded(part, "PNG", dpi=(300, 300), icc_profile=profile),
        "grey.bmp": encoded(part.convert("L"), "BMP"),
        "alpha.png": encoded(Image.fromarray(np.dstack([samples, samples[:, :, 1]])), "PNG"),
        "deep.png": imagecodecs.png_encode(samples.astype(np.uint16) * 257 + 3),
        "plain.jpg": encoded(part, "JPEG", quality=75),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)


def mixed(folder: Path) -> None:
    """Drawn pictures, one with metadata; a photo."""
    folder.mkdir(exist_ok=True)
    for i in range(2):
        Image.fromarray(noisy(i)).save(folder / f"screen{i}.png", dpi=(300, 300))
    with Image.open(sorted(PHOTOS.rglob("*.webp"))[0]) as photo:
        photo.convert("RGB").crop((40, 100, 136, 164)).save(folder / "photo.png")


if __name__ == "__main__":
    made = {"--lossless": lossless, "--grown": grown, "--near": near, "--mixed": mixed}
    next((make for option, make in made.items() if option in sys.argv), main)(Path(sys.argv[1]))
