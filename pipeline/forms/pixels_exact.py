"""`pixels-exact`: every sample of a picture of 8 or 16 bits as lossless JPEG XL, with its colour profile and metadata.

Grey, RGB, both with alpha, palettes by their RGB or RGBA. What comes back is a PNG of the same samples; chunks and tags of the source's own format
are carried as far as `formats.metadata` carries them, its compression and order are not.
"""

from __future__ import annotations

import hashlib

import numpy as np

from pipeline.forms import jxl, samples
from pipeline.forms.base import Bounds, Exact, Refusal, Stored
from pipeline.forms.libraries import AbsentError, imagecodecs, jxl_writer, missing
from pipeline.forms.samples import NotSampledError, Samples

EFFORT = 7
_COST_EFFORT, _QUICK_EFFORT = 5, 2
_PHOTO_BPP, _PHOTO_SHARE = 7.0, 0.9
"""From so many bits per pixel on, at the quickest effort, the usual one needs about this share of the bytes: 0.84 to 0.95 on photos."""


class PixelsExact:
    """See the module."""

    name = "pixels-exact"
    exact = Exact.PIXELS
    codecs: tuple[str, ...] = ("jxl",)

    def takes(self, data: bytes, name: str) -> bool:
        """Whether it may be a picture of samples that nobody has coded with loss: of such ones no lossless coding is smaller."""
        lossy = data.startswith(b"\xff\xd8\xff") or data[4:8] in (b"ftyp", b"jP  ", b"JXL ") or data[:4] == b"\xff\x4f\xff\x51"
        return not lossy and not (data[:4] == b"RIFF" and b"VP8L" not in data[: 1 << 16])

    def missing(self) -> list[str]:
        """See `Form.missing`."""
        return missing(imagecodecs)

    def encode(self, data: bytes, name: str, bounds: Bounds) -> Stored:
        """See `Form.encode`."""
        original = self._samples(data, name, bounds)
        packed = _packed(original, EFFORT)
        if len(packed) >= len(data):
            raise Refusal("no smaller so")
        back = self.decode(self.codecs[0], packed, bounds)
        same = np.array_equal(back.planes, original.planes) and back.planes.dtype == original.planes.dtype
        if not same or back.metadata != original.metadata or (back.alpha is None) != (original.alpha is None):
            raise Refusal("lossless JPEG XL does not give the same samples and metadata back")
        digest = hashlib.sha256(back.content()).hexdigest()
        return Stored(form=self.name, exact=self.exact, codec=self.codecs[0], data=packed, writer=jxl_writer(), recon_sha256=digest)

    def decode(self, codec: str, payload: bytes, bounds: Bounds) -> Samples:
        """See `Form.decode`: the samples."""
        width, height = jxl.size(payload)
        bounds.allow(width, height)
        metadata = jxl.metadata_of(payload)
        library = imagecodecs()
        try:
            planes = np.asarray(library.jpegxl_decode(payload, numthreads=1))
            if planes.shape[:2] != (height, width):
                raise Refusal(f"it decodes to {list(planes.shape)} samples, and its header says {width} x {height} pixels")
            return Samples.of_planes(planes, metadata)
        except Refusal:
            raise
        except MemoryError as error:
            raise Refusal("it takes more memory than its size explains") from error
        except Exception as error:  # whatever the library says of hostile bytes
            raise Refusal(f"{type(error).__name__}: {error}"[:200]) from error

    def cost(self, data: bytes, name: str, bounds: Bounds) -> int | None:
        """See `Form.cost`: of what looks like a photo, by the quickest effort, elsewhere by one that finds what repeats."""
        try:
            original = self._samples(data, name, bounds)
            quick = len(_packed(original, _QUICK_EFFORT))
            if 8 * quick > _PHOTO_BPP * original.pixels.shape[0] * original.pixels.shape[1]:
                return round(_PHOTO_SHARE * quick)
            return min(quick, len(_packed(original, _COST_EFFORT)))
        except Refusal:
            return None

    def _samples(self, data: bytes, name: str, bounds: Bounds) -> Samples:
        try:
            return samples.load(data, max_pixels=bounds.max_pixels, name=name, on_header=bounds.on_header)
        except NotSampledError as error:
            raise Refusal(str(error)) from error


def _packed(original: Samples, effort: int) -> bytes:
    """Lossless JPEG XL with the metadata."""
    try:
        return jxl.encoded(original.planes, original.metadata, effort=effort)
    except AbsentError:
        raise
    except MemoryError as error:
        raise Refusal("it takes more memory than its size explains") from error
    except Exception as error:  # whatever the library says
        raise Refusal(f"{type(error).__name__}: {error}"[:200]) from error
