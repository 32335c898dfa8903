"""Pictures to bytes and back with one loaded model: one by one (`coding`), and on a device many at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msinn_core import bitstream
from msinn_core.bitstream import Bitstream
from msinn_core.coding import Decoded, Latents, PictureCodec, Symbols
from msinn_core.engine import BatchEngine
from msinn_core.errors import CodecError, ConfigError, DeviceError, DeviceLostError, DeviceMemoryError
from msinn_core.flight import MOST_PICTURES, in_batches
from msinn_core.framing import finished_picture, padded_pixels, padded_side, padded_size
from msinn_core.heads import stride_after
from msinn_core.picture import Picture
from msinn_core.prediction import Curves, curves_of, part_of, probe_rates, stretched


class Codec(PictureCodec):
    """Encoder and decoder of one model on one device. One call at a time; results are the same for every call order, and for every batch."""

    @property
    def batches(self) -> BatchEngine | None:
        """The engine, if it is quick with many pictures at once."""
        return self.engine if isinstance(self.engine, BatchEngine) else None

    def transform_many(self, pictures: Sequence[Picture]) -> list[Latents]:
        """`transform` of pictures of one padded size at once, on a device.

        Raises:
            PixelLimitError: A picture over the pixel limit.
            DeviceError: Too little memory for so many, or the device failed.
        """
        engine = self._on_device()
        for picture in pictures:
            self._check_size(picture.pixels.shape[1], picture.pixels.shape[0])
        latents = engine.transform_many(np.stack([padded_pixels(picture) for picture in pictures]))
        return [Latents(picture, y, engine) for picture, y in zip(pictures, latents, strict=True)]

    def compress_many(self, latents: Sequence[Latents], rates: Sequence[float], *, keep_walk: bool = False) -> list[Symbols]:
        """`compress` of pictures of one padded size at once, on a device, each at a q of its own.

        Raises:
            ConfigError: A q out of range.
            DeviceError: Too little memory for so many, or the device failed.
        """
        qs = [self.quantise_q(q) for q in rates]
        shape = self._shape(*latents[0].picture.pixels.shape[1::-1])
        coded = self._on_device().compress_many([one.y for one in latents], qs, shape)
        return [
            Symbols(one.picture, q, parts.symbols, parts.indexes, parts.walked if keep_walk else None)
            for one, q, parts in zip(latents, qs, coded, strict=True)
        ]

    def _on_device(self) -> BatchEngine:
        if self.batches is None:
            raise ConfigError(f"{self.engine.name} takes one picture at a time")
        return self.batches

    def encode_many(self, pictures: Sequence[Picture], rates: Sequence[float], *, batch: int = MOST_PICTURES) -> list[bytes]:
        """Bitstreams of pictures, each at a q of its own: the same as `encode` gives one by one, on a GPU in batches of one padded size.

        Args:
            pictures: RGB or grey.
            rates: A q for each.
            batch: Pictures a batch at most; a GPU without the memory for them gets smaller ones.

        Raises:
            ConfigError: A q out of range.
            PixelLimitError: A picture over the pixel limit.
            DeviceError: The device has too little memory for one picture, or failed.
        """
        if len(rates) != len(pictures):
            raise ConfigError(f"{len(pictures)} pictures but {len(rates)} rates")
        qs = [self.quantise_q(q) for q in rates]
        for picture in pictures:
            self._check_size(picture.pixels.shape[1], picture.pixels.shape[0])
        engine = self.batches
        if engine is None:
            return [self.encode(picture, q) for picture, q in zip(pictures, qs, strict=True)]
        out: list[bytes] = [b""] * len(pictures)

        def run(chosen: list[int]) -> None:
            symbols = self.compress_many(self.transform_many([pictures[i] for i in chosen]), [qs[i] for i in chosen])
            for i, data in zip(chosen, engine.threads.map(self.pack, symbols), strict=True):
                out[i] = data

        for _ in in_batches(range(len(pictures)), lambda i: padded_size(pictures[i]), run, engine, most=batch):
            pass
        return out

    def decode_many(self, bitstreams: Sequence[bytes | memoryview], *, batch: int = MOST_PICTURES) -> list[Decoded | CodecError]:
        """What `decode` gives for each bitstream, or the error it raises: one that is damaged says nothing about the others.

        Raises:
            DeviceLostError: The device failed.
        """
        out: list[Decoded | CodecError] = [CodecError("not decoded")] * len(bitstreams)
        engine = self.batches
        if engine is None:
            for i, data in enumerate(bitstreams):
                try:
                    out[i] = self.decode(data)
                except CodecError as error:
                    out[i] = error
            return out

        def run(chosen: list[int]) -> None:
            for i, found in zip(chosen, self.decode_batch([bitstreams[i] for i in chosen]), strict=True):
                out[i] = found

        for _ in in_batches(range(len(bitstreams)), lambda i: self.size_of(bitstreams[i]), run, engine, most=batch):
            pass
        for i, found in enumerate(out):
            if type(found) is CodecError:  # its header is not read: nothing has had it
                out[i] = self._decoded(bitstreams[i])
        return out

    def size_of(self, data: bytes | memoryview) -> tuple[int, int] | None:
        """Padded height and width of a bitstream's picture; None if this codec does not decode it."""
        try:
            stream = self._parse(data)
        except CodecError:
            return None
        return padded_side(stream.height), padded_side(stream.width)

    def _decoded(self, data: bytes | memoryview) -> Decoded | CodecError:
        try:
            return self.decode(data)
        except DeviceLostError:
            raise
        except CodecError as error:
            return error

    def decode_batch(self, bitstreams: Sequence[bytes | memoryview]) -> list[Decoded | CodecError]:
        """What `decode` gives for each of some bitstreams of one padded size, or its error; on a device, at once.

        Raises:
            DeviceMemoryError: The device has too little memory for more than one of them.
            DeviceLostError: The device failed.
        """
        streams = [self._parse(data) for data in bitstreams]
        shape = self._shape(streams[0].width, streams[0].height)
        try:
            padded, symbols = self._on_device().decode_many([stream.streams for stream in streams], [stream.q for stream in streams], shape)
        except DeviceError as error:
            if isinstance(error, DeviceMemoryError) and len(streams) == 1:
                return [error]
            raise
        except CodecError:
            return [self._decoded(data) for data in bitstreams]  # which one it is, one by one
        pictures = [_finished(stream, pixels) for stream, pixels in zip(streams, padded, strict=True)]
        return [picture if isinstance(picture, CodecError) else (picture, mine) for picture, mine in zip(pictures, symbols, strict=True)]

    def reduced_size_of(self, data: bytes | memoryview, scale: int, alpha: bytes | None = None) -> tuple[int, int] | None:
        """By what `decode_reduced_batch` takes together, and how much: rows of the support by columns of the padded picture, since where positions
        are fewer channels are more. None if this codec does not decode it so."""
        try:
            head, _ = self._head(scale)
            stream = self._allowed(bitstream.parse_prefix(data, head.num_streams, alpha))
        except CodecError:
            return None
        return padded_side(stream.height) // stride_after(head.num_steps), padded_side(stream.width)

    def decode_reduced_batch(self, parts: Sequence[tuple[bytes | memoryview, bytes | None]], scale: int) -> list[Picture | CodecError]:
        """What `decode_reduced` gives of each of some beginnings of bitstreams, with their alpha planes, of one padded size; on a device, at once.

        Raises:
            ConfigError: There is no head for this scale.
            DeviceMemoryError: The device has too little memory for more than one of them.
            DeviceLostError: The device failed.
        """
        head, _ = self._head(scale)
        streams = [self._allowed(bitstream.parse_prefix(data, head.num_streams, alpha)) for data, alpha in parts]
        shape = self._shape(streams[0].width, streams[0].height)
        try:
            padded = self._on_device().decode_reduced_many([stream.streams for stream in streams], [stream.q for stream in streams], shape, head)
        except DeviceError as error:
            if isinstance(error, DeviceMemoryError) and len(streams) == 1:
                return [error]
            raise
        except CodecError:
            return [self._reduced(data, scale, alpha) for data, alpha in parts]
        return [_finished(stream, pixels, scale) for stream, pixels in zip(streams, padded, strict=True)]

    def _reduced(self, data: bytes | memoryview, scale: int, alpha: bytes | None) -> Picture | CodecError:
        try:
            return self.decode_reduced(data, scale, alpha)
        except DeviceLostError:
            raise
        except CodecError as error:
            return error

    def analyse_many(self, pictures: Sequence[Picture], *, sampled: bool = False) -> list[Curves]:
        """`analyse` of pictures whose parts (`part_of`) have one padded size, at once, on a device.

        Raises:
            PixelLimitError: A picture over the pixel limit.
            DeviceError: Too little memory for so many, or the device failed.
        """
        for picture in pictures:
            self._check_size(picture.pixels.shape[1], picture.pixels.shape[0])
        parts = [part_of(picture, sampled=sampled) for picture in pictures]
        latents = self.transform_many(parts)
        tallies = self._on_device().tally_many([one.y for one in latents], probe_rates(self.model), self._shape(*parts[0].pixels.shape[1::-1]))
        return [
            stretched(self.model, curves_of(self.model, tally, part), part, whole)
            for tally, part, whole in zip(tallies, parts, pictures, strict=True)
        ]


def _finished(stream: Bitstream, pixels: NDArray[np.uint8], scale: int = 1) -> Picture | CodecError:
    """One picture of a batch, or what is wrong with what came with it. A copy: the batch's pinned memory must not live as long as one picture."""
    try:
        return finished_picture(stream, pixels.copy(), scale)
    except CodecError as error:
        return error
