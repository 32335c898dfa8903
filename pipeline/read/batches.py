"""Images of an archive decoded by a GPU: batches of one padded size, several under way at once, out in the order of their rows.

```
Stored, with its payload --> in_batches --> decoded on the device --> host threads: compared with the hash of what was verified, PNG
DeviceMemoryError: halves; one image alone, or a device that failed: left to the CPU, which decodes it when its turn comes
```
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from msinn_core.codec import Codec
from msinn_core.coding import Decoded
from msinn_core.engine import BatchEngine
from msinn_core.errors import CodecError, DeviceMemoryError
from msinn_core.flight import in_batches
from msinn_core.picture import Picture
from pipeline.archive.conversion import Conversion
from pipeline.archive.row import Row
from pipeline.formats import images
from pipeline.forms import samples
from pipeline.forms.family import WITH_LOSS
from pipeline.read.decoder import Decoder
from pipeline.read.reduced import Part, Reduced


@dataclass
class Stored:
    """An image on its way out of an archive.

    Attributes:
        row: Of the manifest.
        conversion: What it is written as, if not what its form gives back.
        payload: Of a coded image (checked, beside a GPU), or in an exact form; None for files that are kept, and once it is decoded.
        part: What was read of it for a smaller picture, and `reduced`, which decodes that; None where a full one is wanted.
        full: Whether a smaller picture was made of the full one.
        data: The file that is to be written.
        there: It is there already, whole and equal.
        problem: A sentence if it is not exactly what was verified.
        error: Why nothing comes back.
    """

    row: Row
    conversion: Conversion | None = None
    payload: bytes | None = None
    part: Part | None = None
    reduced: Reduced | None = None
    full: bool = False
    data: bytes | None = None
    there: bool = False
    problem: str | None = None
    error: Exception | None = None

    @property
    def known(self) -> bool:
        """Whether the row says what its file holds: what a salvaged one decodes to is known only once it is decoded."""
        row = self.row
        if self.converted:
            return False
        return (row.payload_sha256 if row.codec == "kept" else row.source_sha256 if row.exact == "bytes" else row.recon_sha256) is not None

    @property
    def converted(self) -> bool:
        """Whether another file is written than its form gives back."""
        return self.conversion is not None and self.conversion.format_of(self.row) is not None

    def finish(self, picture: Picture, problem: str | None, decoder: Decoder) -> None:
        """Its picture is there."""
        made = self.conversion.file_of(self.row, picture, decoder.loader) if self.conversion is not None else images.to_png(picture)
        self.data, self.problem, self.payload, self.part = made, problem, None, None


def decode_one(image: Stored, decoder: Decoder) -> None:
    """Decode an image that is not decoded yet; what it raises is its `error`."""
    if image.payload is None and image.part is None:
        return
    try:
        if image.part is not None and image.reduced is not None and image.conversion is not None:
            smaller, image.problem = image.reduced.picture(image.row, image.part)
            image.data, image.full = image.conversion.file_of(image.row, smaller, decoder.loader), image.part.head is None
            image.part = None
            return
        assert image.payload is not None
        if image.row.codec in WITH_LOSS:
            image.finish(*decoder.picture(image.row, image.payload), decoder)
            return
        found = decoder.exact(image.row, image.payload)
        if image.conversion is not None:
            image.data = image.conversion.file_of(image.row, found, decoder.loader)
        else:
            image.data = found if isinstance(found, bytes) else samples.to_png(found)
        image.payload = None
    except Exception as error:  # whatever one image does, the others come back
        image.error, image.payload, image.part = error, None, None


def decode_batches(stored: Iterable[Stored], decoder: Decoder, codec: Codec, engine: BatchEngine) -> Iterator[Stored]:
    """The images, in their order, decoded.

    Args:
        stored: As they are read.
        decoder: Of the archive.
        codec: On a device; rows of other models are decoded by themselves.
        engine: Its engine.
    """

    def size_of(image: Stored) -> tuple[int, int] | None:
        if image.row.codec != "msinn" or image.row.model_sha256 not in (None, codec.model.sha256) or decoder.lost is not None:
            return None
        if image.part is not None and image.reduced is not None and image.part.head is not None:
            return codec.reduced_size_of(image.part.data, image.reduced.scale, image.part.alpha)
        return None if image.payload is None else codec.size_of(image.payload)

    def run(batch: list[Stored]) -> None:
        # At a scale, those of full size that are no pictures of the kind that is wanted may have the same size.
        for some in ([image for image in batch if image.payload is not None], [image for image in batch if image.part is not None]):
            if some:
                _decode(some, decoder, codec, engine)

    for image in in_batches(stored, size_of, run, engine):
        decode_one(image, decoder)
        yield image


def _decode(batch: list[Stored], decoder: Decoder, codec: Codec, engine: BatchEngine) -> None:
    """Decode, compare and finish the images of a batch; what is left with its payload is the CPU's.

    Raises:
        DeviceMemoryError: The device has too little memory for all of them.
    """
    reduced = batch[0].reduced
    found: Sequence[Decoded | Picture | CodecError]
    try:
        if reduced is None:
            found = codec.decode_batch([image.payload for image in batch if image.payload is not None])
        else:
            found = codec.decode_reduced_batch([(image.part.data, image.part.alpha) for image in batch if image.part is not None], reduced.scale)
    except DeviceMemoryError:
        raise
    except Exception as error:  # whatever a device, a driver or a compiler raises: the CPU does without them, or says what is wrong with an image
        decoder.gives_way(error)
        return

    def finish(image: Stored, one: Decoded | Picture | CodecError) -> None:
        # What a damaged stream raises is said by the CPU: it alone decides that an image is lost.
        try:
            if isinstance(one, tuple):
                image.finish(one[0], decoder.compared(image.row, one[0], codec), decoder)
            elif isinstance(one, Picture) and reduced is not None:
                image.finish(reduced.checked(image.row, one, codec), None, decoder)
        except Exception as error:  # whatever one image does, the others come back
            image.error, image.payload, image.part = error, None, None

    list(engine.threads.map(finish, batch, found))
