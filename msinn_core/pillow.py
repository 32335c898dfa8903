"""Pillow opens `.msn` files: after `register()`, `Image.open("x.msn")` works wherever the model is at hand.

>>> from PIL import Image
>>> from msinn_core.codec import Codec
>>> from msinn_core.model_file import load_model
>>> from msinn_core.picture import Picture
>>> import io, numpy
>>> register()  # the shipped models; register(load_model("mine.safetensors")) for others
>>> data = Codec(load_model()).encode(Picture(pixels=numpy.zeros((40, 30, 3), numpy.uint8)), q=3.0)
>>> image = Image.open(io.BytesIO(data))
>>> image.convert("L").size
(30, 40)
>>> image = Image.open(io.BytesIO(data))
>>> image.thumbnail((4, 4))  # Pillow asks for a draft first: only the coarse levels are decoded
>>> image.size
(3, 4)
"""

from __future__ import annotations

import io
import threading
from typing import Any

from PIL import Image, ImageFile

from msinn_core import bitstream
from msinn_core.bitstream import Bitstream
from msinn_core.codec import Codec
from msinn_core.config import DEFAULT_MAX_PIXELS
from msinn_core.errors import CodecError
from msinn_core.model_file import LoadedModel, load_model, shipped_models
from msinn_core.picture import Picture
from msinn_core.reduction import reduced_side

FORMAT, ENDING, MIME = "MSINN", ".msn", "image/x-msinn"


class _AtHand:
    """Models that files are opened with, each loaded when a file first names it."""

    def __init__(self) -> None:
        self.models: dict[str, LoadedModel] = {}
        self.max_pixels = DEFAULT_MAX_PIXELS
        self._codecs: dict[str, Codec] = {}
        # A codec takes one call at a time.
        self._lock = threading.Lock()

    def decode(self, stream: Bitstream, data: bytes, scale: int = 1) -> Picture:
        """The picture of a bitstream, or one so many times smaller, of `scales`. Raises `CodecError`."""
        with self._lock:
            codec = self._codec(stream)
            return codec.decode(data)[0] if scale == 1 else codec.decode_reduced(data, scale)

    def scales(self, stream: Bitstream) -> list[int]:
        """How many times smaller the model of a bitstream gives pictures without decoding them in full; none if it is not at hand."""
        with self._lock:
            try:
                return list(self._codec(stream).heads)
            except CodecError:
                return []

    def _codec(self, stream: Bitstream) -> Codec:
        named = stream.model_id.hex()
        if named not in self._codecs or self._codecs[named].max_pixels != self.max_pixels:
            self._codecs[named] = Codec(self._model(named), max_pixels=self.max_pixels)
        return self._codecs[named]

    def _model(self, named: str) -> LoadedModel:
        if named in self.models:
            return self.models[named]
        digest = next((digest for digest in shipped_models().values() if digest.startswith(named)), None)
        if digest is None:
            raise CodecError(
                f"it is coded with model {named[:12]}, which is not at hand: msinn_core.pillow.register takes the model of the archive that the file "
                "is from"
            )
        return load_model(digest)


_AT_HAND = _AtHand()


def register(*models: LoadedModel, max_pixels: int | None = None) -> None:
    """Have Pillow open `.msn` files in this process. Calling it again adds models.

    Args:
        models: At hand beside the shipped ones.
        max_pixels: Of a picture that is decoded; `DEFAULT_MAX_PIXELS` until it is said.
    """
    for model in models:
        _AT_HAND.models[model.sha256[:32]] = model
    if max_pixels is not None:
        _AT_HAND.max_pixels = max_pixels
    Image.register_open(FORMAT, MsinnImageFile, _accepts)
    Image.register_extension(FORMAT, ENDING)
    Image.register_mime(FORMAT, MIME)


def _accepts(prefix: bytes) -> bool:
    return prefix.startswith(bitstream.MAGIC)


class MsinnImageFile(ImageFile.ImageFile):
    """A coded picture: mode L, LA, RGB or RGBA; `exif`, `icc_profile` and `xmp` in `info`. It is decoded when its pixels are first needed.

    Where the model has heads, `draft`, and with it `thumbnail`, takes a half, a quarter, an eighth or a sixteenth of the sides from the coarse levels
    of the network alone.

    Raises:
        OSError: The file is damaged, over the limit, or its model is not at hand: one sentence says which.
    """

    format = FORMAT
    format_description = "msinn bitstream"
    # One that was pickled comes back decoded, without having been opened.
    _data: bytes | None = None
    _scale = 1

    def _open(self) -> None:
        assert self.fp is not None
        self._data = data = self.fp.read()
        try:
            self._stream = bitstream.parse(data)
        except CodecError as error:
            raise OSError(f"{self._called()}: {error}") from error
        boxes = self._stream.boxes
        self._size = (self._stream.width, self._stream.height)
        self._mode = ("L" if self._stream.colour == "grey" else "RGB") + ("A" if bitstream.ALPHA in boxes else "")
        named = (("exif", bitstream.EXIF), ("icc_profile", bitstream.ICC), ("xmp", bitstream.XMP))
        self.info |= {name: boxes[kind] for name, kind in named if kind in boxes}

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> tuple[str, tuple[int, int, float, float]] | None:
        """Have a smaller picture decoded, as Pillow's `Image.draft`: of all that can be had the smallest that is not smaller than `size`.

        Args:
            mode: Is not changed.
            size: Pixels that are wanted at least; None changes nothing.

        Returns:
            The mode, and the box of the smaller picture that the whole one takes; None if it stays at full size, or is smaller already.
        """
        if size is None or self._data is None or self._scale > 1:
            return None
        fits = min(self.width // max(1, size[0]), self.height // max(1, size[1]))
        scale = max((scale for scale in _AT_HAND.scales(self._stream) if scale <= fits), default=1) if fits > 1 else 1
        if scale == 1:
            return None
        box = (0, 0, self.width / scale, self.height / scale)
        self._scale, self._size = scale, (reduced_side(self.width, scale), reduced_side(self.height, scale))
        return self.mode, box

    def load(self) -> Any:
        """See Pillow's `Image.load`."""
        if self._data is not None:
            try:
                picture = _AT_HAND.decode(self._stream, self._data, self._scale)
            except CodecError as error:
                raise OSError(f"{self._called()}: {error}") from error
            if self.fp is not None and self._exclusive_fp:
                self.fp.close()
            # From here on it is a file of raw samples, which Pillow reads itself.
            self.fp, self._data = io.BytesIO(picture.interleaved().tobytes()), None
            self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), 0, self.mode)]
        return super().load()

    def _called(self) -> str:
        return str(self.filename or "this .msn file")
