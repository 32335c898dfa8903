"""Made the source of `version-1/`, an archive of msinn at commit 2697d14 (archive version 1, manifest schema 1). Never run again.

The archive is `msinn compress SOURCE version-1 --q 4 --model ../integer/model.safetensors`, without its model, which is the golden one beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from tests.conftest import encoded, make_photos, png16


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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
