"""`avif`: a picture with loss in AVIF, for what was drawn. AV1 has tools for what repeats and for few colours, which the network has not: of
screenshots and charts it needs half the bytes for the same error.

A decoder of AV1 gives the same samples as every other, by its specification. So that the colours are the same too they are whole numbers: 8 bits,
4:4:4, full range, YCgCo (ITU-T H.273, matrix 8), where with o = Co - 128 and g = Cg - 128: R = Y - g + o, G = Y + g, B = Y - g - o, each clamped to
0..255. Metadata lies at the end of the file, as in a JPEG XL file (`jxl`): boxes that other readers skip. So does alpha, as lossless JPEG XL: what
AVIF has for it is not exact at these qualities.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from msinn_core.picture import Picture
from pipeline.formats.images import MAX_METADATA_BYTES
from pipeline.forms import jxl
from pipeline.forms.base import Bounds, Exact, Refusal
from pipeline.forms.libraries import AbsentError, imagecodecs
from pipeline.forms.samples import Samples

SPEED = 6
"""libavif's, 0 to 10: half a second for a megapixel. 4 takes four times as long and some 20 % off the bytes."""

LEVELS = (5, 97)
"""libavif's qualities, 0 to 99, at the least and the largest rate index."""

MOST_PIXELS, LEAST_SIDE, MOST_SIDE = 32_000_000, 16, 16_384
"""Of a picture that is put into this form; what is read is bounded by the reader."""

_YCGCO, _BT709, _SRGB = 8, 1, 13
_REPEATS = 0.2
_MOST_ALPHA_BYTES = MAX_METADATA_BYTES // 2


class Avif:
    """What the family says of it, and its decoder. Its encoder is `encode.drawn`."""

    name = "avif"
    exact = Exact.NO
    codec = "avif"

    def decode(self, codec: str, payload: bytes, bounds: Bounds) -> Samples:
        """The samples of a file.

        Raises:
            Refusal: Damaged, or over a bound.
            AbsentError: There is no library.
        """
        width, height = size(payload)
        bounds.allow(width, height)
        pieces = jxl.pieces_of(payload)
        packed_alpha = pieces.pop(jxl.ALPHA, None)
        if packed_alpha is not None and jxl.size(packed_alpha) != (width, height):
            raise Refusal("its alpha is of another size")
        library = imagecodecs()
        try:
            planes = np.asarray(library.avif_decode(payload, numthreads=1))
            if planes.shape != (height, width, 3) or planes.dtype != np.uint8:
                raise Refusal(f"it decodes to {planes.dtype} {list(planes.shape)}, and its header says {width} x {height} pixels")
            found = Samples.of_planes(planes, pieces)
            if packed_alpha is None:
                return found
            alpha = np.asarray(library.jpegxl_decode(packed_alpha, numthreads=1)).reshape(height, width, -1)
            if alpha.shape[2] != 1 or alpha.dtype != np.uint8:
                raise Refusal("its alpha is no plane of 8 bits")
            return replace(found, alpha=np.ascontiguousarray(alpha[:, :, 0]))
        except Refusal:
            raise
        except ImportError as error:
            raise _absent(error) from error
        except MemoryError as error:
            raise Refusal("it takes more memory than its size explains") from error
        except Exception as error:  # whatever the library says of hostile bytes
            raise Refusal(f"{type(error).__name__}: {error}"[:200]) from error


AVIF = Avif()


def encoded(pixels: NDArray[np.uint8], level: int, carried: dict[str, bytes]) -> bytes:
    """A file of a picture.

    Args:
        pixels: uint8 `[H, W, 3]`.
        level: libavif's quality, 0 to 99.
        carried: See `carried_with`.

    Raises:
        AbsentError: There is no library; or what that raises.
    """
    library = imagecodecs()
    try:
        made = library.avif_encode(
            np.ascontiguousarray(pixels), level=level, speed=SPEED, bitspersample=8, pixelformat="444", codec="aom", primaries=_BT709,
            transfer=_SRGB, matrix=_YCGCO, numthreads=1,
        )  # fmt: skip
    except ImportError as error:
        raise _absent(error) from error
    return jxl.with_metadata(bytes(made), carried)


def carried_with(picture: Picture) -> dict[str, bytes]:
    """What travels with the colours of a picture: metadata, and its alpha.

    Raises:
        Refusal: The alpha is too large for that.
        AbsentError: There is no library.
    """
    found = Samples.of_picture(picture).metadata
    if picture.alpha is not None:
        found[jxl.ALPHA] = jxl.encoded(picture.alpha, {})
        if len(found[jxl.ALPHA]) > _MOST_ALPHA_BYTES:
            raise Refusal("its alpha is too large")
    return found


def _absent(error: ImportError) -> AbsentError:
    return AbsentError(f"AVIF needs an imagecodecs that was built with it ({error}): pip install --force-reinstall imagecodecs")


def level_at(share: float) -> int:
    """The quality at a share of the rates, in [0, 1]."""
    return round(LEVELS[0] + share * (LEVELS[1] - LEVELS[0]))


def suits(picture: Picture) -> bool:
    """Whether a picture may be one that was drawn: RGB, of which every fifth pixel or more is like its neighbour to the left."""
    pixels = picture.pixels
    if pixels.ndim != 3:
        return False
    height, width = pixels.shape[:2]
    if min(height, width) < LEAST_SIDE or max(height, width) > MOST_SIDE or height * width > MOST_PIXELS:
        return False
    repeated = (pixels[:, 1:] == pixels[:, :-1]).all(axis=2)
    return bool(repeated.mean() >= _REPEATS)


def is_avif(data: bytes) -> bool:
    """Whether a file begins as one of a single AVIF picture does."""
    return data[4:12] == b"ftypavif"


def size(data: bytes) -> tuple[int, int]:
    """Width and height of a file as this form has them, from its header alone: one picture, of one item.

    Raises:
        Refusal: It has no such header, or describes more than one picture.
    """
    if not is_avif(data):
        raise Refusal("no AVIF file")
    content = next((content for kind, content in jxl.boxes(data) if kind == b"meta"), b"")[4:]
    for wanted in (b"iprp", b"ipco"):
        content = next((inner for kind, inner in jxl.boxes(content) if kind == wanted), b"")
    sizes = [inner for kind, inner in jxl.boxes(content) if kind == b"ispe"]
    if len(sizes) != 1 or len(sizes[0]) != 12:
        raise Refusal("its header does not describe one picture")
    width, height = int.from_bytes(sizes[0][4:8], "big"), int.from_bytes(sizes[0][8:12], "big")
    if not width or not height:
        raise Refusal("a picture without pixels")
    return width, height


@lru_cache(1)
def writer() -> str:
    """Library and versions, as the manifest has them. Raises `AbsentError`."""
    library = imagecodecs()
    return f"{library.avif_version()}, imagecodecs {library.__version__}"
