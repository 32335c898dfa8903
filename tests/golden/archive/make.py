"""Made the sources of the archives here. Never run again for a version that is there.

`version-1/` is of msinn at commit 2697d14 (archive version 1, manifest schema 1), `version-2/` of the first that wrote archive version 2, manifest
schema 2 and bitstream version 2: `msinn compress SOURCE version-N --q 4 (1 for version 2) --model ../integer/model.safetensors`, without its model,
which is the golden one beside it.

    python -m tests.golden.archive.make FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from tests.conftest import PHOTOS, encoded, make_photos, png16


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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
