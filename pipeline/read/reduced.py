"""Pictures of less than full size from an archive: of coded images only the bytes are read that they take, and only the coarse levels decoded.

```
coded, and its model has heads --> header and first streams in one request, mostly; alpha plane --> Codec.decode_reduced
another form, or no heads      --> the whole payload --> decoded in full, checked, area-downscaled
```
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from msinn_core import bitstream
from msinn_core.codec import Codec
from msinn_core.errors import BitstreamError, CodecError, DeviceError, PixelLimitError
from msinn_core.heads import Head
from msinn_core.picture import Picture
from msinn_core.reduction import area_reduced, reduced_picture, reduced_side
from pipeline.archive.archive import Archive
from pipeline.archive.row import Row
from pipeline.errors import ManifestError
from pipeline.forms.family import WITH_LOSS
from pipeline.forms.msinn import MSINN
from pipeline.forms.samples import Samples
from pipeline.limits import DEFAULT, Limits
from pipeline.read.decoder import Decoder, ReadRange, read_part, too_large

_SHARES = (0.16, 0.25, 0.29, 0.35, 0.46, 0.58, 0.78, 0.98, 1.0, 1.0)
"""Of a payload of 1 bit per pixel, up to the end of each stream; of validation tiles three in four need less, and of the others a second request
fetches what is missing. A larger first one would read a third too much, to spare few."""

_COARSER = 0.25
"""Where there are fewer bits per pixel, a larger share of them is of the coarse levels: by this power."""


class NoPictureError(ManifestError):
    """A file that is kept as it was, of which the archive never made a picture."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Part:
    """What was read of a payload.

    Attributes:
        data: Its first bytes, or all of it.
        alpha: Of the section with its alpha plane, where that was read by itself.
        head: What is to decode it; None: all of it was read, to be decoded in full.
    """

    data: bytes
    alpha: bytes | None = None
    head: Head | None = None


class Reduced:
    """Reads and decodes images of an archive at one scale.

    Args:
        archive: Where they are.
        decoder: Of it.
        scale: 2, 4, 8 or 16: how many times smaller, each way, rounded up.
        limits: What is read and decoded at most; pixels are those of the full picture.
    """

    def __init__(self, archive: Archive, decoder: Decoder, scale: int, limits: Limits = DEFAULT) -> None:
        self.scale = scale
        self._archive, self._decoder, self._limits = archive, decoder, limits

    def read(self, row: Row, *, via: ReadRange | None = None) -> Part:
        """What the picture of a row takes. Safe to call from several threads.

        Args:
            row: Of the manifest.
            via: Reads whole payloads in place of the store.

        Raises:
            ManifestError: It is lost or damaged.
            CodecError: Its model cannot be used.
            StorageError: The store cannot be read.
        """
        head = self._decoder.codec_of(row).heads.get(self.scale) if row.codec == MSINN.codec else None
        if head is None:
            return Part(read_part(self._archive, row, row.offset, row.length, self._limits, via=via))
        try:
            return self._prefix(row, head)
        except BitstreamError as error:
            raise damaged(row, error) from error

    def _prefix(self, row: Row, head: Head) -> Part:
        size = row.length or 0
        data = self._bytes(row, 0, min(size, _likely_bytes(row, head)))
        found = bitstream.prefix_of(data, head.num_streams)
        if found.size > len(data):
            data += self._bytes(row, len(data), found.size - len(data))
        alpha = None if found.alpha is None else self._bytes(row, *found.alpha)
        return Part(data, alpha, head)

    def _bytes(self, row: Row, first: int, count: int) -> bytes:
        """Of a row's payload."""
        if first + count > (row.length or 0):
            raise BitstreamError(f"its header says {first + count:,} bytes or more, and its row {row.length or 0:,}")
        return read_part(self._archive, row, None if row.offset is None else row.offset + first, count, self._limits)

    def picture(self, row: Row, part: Part) -> tuple[Picture | Samples, str | None]:
        """The picture of what `read` gave, and a sentence if it is not exactly what it should be (see `Decoder.picture`).

        Raises:
            ManifestError: Damaged.
            NoPictureError: A kept file of which the archive never made a picture.
            CodecError: It does not decode.
        """
        if part.head is not None:
            return self._by_head(row, part), None
        if row.codec in WITH_LOSS:
            picture, problem = self._decoder.picture(row, part.data)
            return reduced_picture(picture, self.scale), problem
        found = self._decoder.exact(row, part.data)
        if isinstance(found, bytes):
            loaded = self._decoder.loader.load(found, name=row.name)
            if loaded.picture is None:
                why = loaded.message or loaded.reason
                raise NoPictureError(
                    f"{row.name} is kept as the file it was and is no picture to be made smaller ({why}): ask for it without a scale"
                )
            return reduced_picture(loaded.picture, self.scale), None
        alpha = None if found.alpha is None else area_reduced(found.alpha, self.scale)
        return replace(found, pixels=area_reduced(found.pixels, self.scale), alpha=alpha), None

    def _by_head(self, row: Row, part: Part) -> Picture:
        codec = self._decoder.codec_of(row)
        try:
            picture = codec.decode_reduced(part.data, self.scale, part.alpha)
        except PixelLimitError as error:
            raise too_large(row, error) from error
        except BitstreamError as error:
            raise damaged(row, error) from error
        except DeviceError as error:
            self._decoder.gives_way(error)
            codec = Codec(codec.model, max_pixels=self._limits.max_pixels)
            picture = codec.decode_reduced(part.data, self.scale, part.alpha)
        return self.checked(row, picture, codec)

    def checked(self, row: Row, picture: Picture, codec: Codec) -> Picture:
        """What a codec made by a head. Raises `ManifestError` if it is not of the row's size."""
        self._decoder.used.add(f"{codec.engine.device} ({codec.engine.name})")
        if row.width is not None and row.height is not None:
            meant = reduced_side(row.height, self.scale), reduced_side(row.width, self.scale)
            if picture.pixels.shape[:2] != meant:
                raise ManifestError(f"{row.name}: its bytes in {row.shard_key} are of a picture of another size than its row says")
        return picture


def damaged(row: Row, error: CodecError) -> ManifestError:
    """What is told of an image whose first bytes do not decode: their SHA-256 is known of all bytes together alone."""
    return ManifestError(f"{row.name}: its bytes in {row.shard_key} are damaged ({error}, at offset {row.offset})")


def _likely_bytes(row: Row, head: Head) -> int:
    """How many bytes are asked for first: three times in four enough, and never fewer than the header."""
    length = row.length or 0
    bits_per_pixel = 8 * length / max(1, row.pixels or 0)
    share = min(1.0, _SHARES[head.num_streams - 1] / math.pow(max(bits_per_pixel, 0.01), _COARSER))
    return bitstream.MAX_HEADER_BYTES + round(length * share)
