"""Pictures to bytes and back with one loaded model.

```
transform(picture) -> latents            once per picture
analyse(picture)   -> R(q), D(q)         one context pass serves every q
compress(latents, q) -> symbols          the network's part
pack(symbols) -> bytes                   the entropy coder's part, needs no network and may run in another thread
decode(bytes) -> picture, symbols        everything back
decode_known(bytes, symbols)             the same without a second walk, for an encoder that verifies
```
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msinn_core import bitstream
from msinn_core.bitstream import Bitstream
from msinn_core.config import LATENT_STRIDES
from msinn_core.engines import BatchEngine, Engine, engine_for
from msinn_core.entropy import rans
from msinn_core.errors import BitstreamError, CheckpointError, CodecError, ConfigError, DeviceMemoryError, PixelLimitError
from msinn_core.framing import boxes_of, colour_of, finished_picture, padded_pixels, padded_side
from msinn_core.integer.network import Backend
from msinn_core.integer.ops import other_backends
from msinn_core.model_file import LoadedModel
from msinn_core.picture import DEFAULT_MAX_PIXELS, Picture
from msinn_core.walk import Walked

BAND_ROWS, ROWS_PER_BAND = 128, 384
"""A sampled analysis looks at bands of 128 rows, one for each 384, at least two: over 124 images of 512 rows this costs half as much, predicts an
image's bytes within 9 % instead of 3 % (standard deviation) and their sum within 1.5 % instead of 0.5 %, most of it the same for all sets, which the
closed loop takes out. (Measured with earlier weights. With those of 2026-11-26 the whole analysis predicts an image's bytes within 3.5 / 1.3 / 6.8 %
at q = 1 / 5 / 9, and the sum of 16 tiles within 1.5 %.)"""

PROBE_Q_SHARE = 6 / 11
"""Where in [0, A - 1] the one context pass of `curves` runs: the middle, where its extrapolation errs least on both sides."""


@dataclass(frozen=True)
class Latents:
    """A transformed picture: y5..y1 of the padded size, as the engine has them, and the picture itself."""

    picture: Picture
    y: list[Any]


@dataclass(frozen=True)
class Symbols:
    """What is to be coded: per stream (k = 0..4, anchors then the rest) symbols int32 and table indexes uint8, both flat.

    Attributes:
        walked: The walk that gave them, which has the decoder's padded picture for whoever asks; None if `compress` was not told to keep it, or
            where no such picture is promised to be the decoder's.
    """

    picture: Picture
    q: float
    symbols: list[NDArray[np.int32]]
    indexes: list[NDArray[np.uint8]]
    walked: Walked[Any] | None = field(default=None, repr=False)


Decoded = tuple[Picture, list[NDArray[np.int32]]]
"""A picture and its ten arrays of symbols."""


@dataclass(frozen=True)
class Curves:
    """Predicted rate and distortion at the anchor rates.

    Attributes:
        q: `[A]`.
        bytes: Size of the bitstream at each q, header and boxes included.
        mse: In 8-bit code values.
    """

    q: NDArray[np.float64]
    bytes: NDArray[np.float64]
    mse: NDArray[np.float64]


class Codec:
    """Encoder and decoder of one model on one device. One call at a time; results are the same for every call order.

    Args:
        model: From `model_file.load_model`.
        device: Where the network runs.
        max_pixels: Pictures above are refused, before anything is allocated for them.
        threads: CPU threads of the integer network; the float one follows torch.
        backend: Integer backend to use instead of the best there is.

    Raises:
        CheckpointError: The machine does not reproduce the model's golden vector.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        device: str = "cpu",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        threads: int = 1,
        backend: Backend | None = None,
    ) -> None:
        self.model = model
        self.max_pixels = max_pixels
        self._threads = threads
        self.engine: Engine = engine_for(model, device=device, threads=threads, backend=backend)

    @property
    def q_max(self) -> float:
        """Largest q (best quality)."""
        return self.model.config.q_max

    def quantise_q(self, q: float) -> float:
        """The nearest q that a bitstream can carry.

        Raises:
            ConfigError: q outside [0, A - 1].
        """
        if not 0 <= q <= self.q_max:
            raise ConfigError(f"q is {q}; model {self.model.name} takes 0 to {self.q_max:g}")
        return round(q * bitstream.Q_STEPS) / bitstream.Q_STEPS

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            error = PixelLimitError(f"{width} x {height} pixels are over the limit of {self.max_pixels} pixels")
            error.pixels = width * height
            raise error

    def transform(self, picture: Picture) -> Latents:
        """Latents of a picture; its sides are padded to multiples of 32 by repeating the last row and column.

        Raises:
            PixelLimitError: Over the pixel limit.
        """
        height, width = picture.pixels.shape[:2]
        self._check_size(width, height)
        return Latents(picture, self.engine.transform(padded_pixels(picture)))

    def _shape(self, width: int, height: int) -> tuple[int, int]:
        return padded_side(height) // LATENT_STRIDES[0], padded_side(width) // LATENT_STRIDES[0]

    def compress(self, latents: Latents, q: float, *, keep_walk: bool = False) -> Symbols:
        """Symbols and table indexes at rate index q (rounded to 1/1024).

        Args:
            latents: From `transform`.
            q: Rate index.
            keep_walk: For `decode_known`: the symbols hold their walk too, 12 bytes per pixel until its picture is asked for, 3 afterwards. Only
                integer models on the CPU have one to keep.

        Raises:
            ConfigError: q out of range.
        """
        q = self.quantise_q(q)
        height, width = latents.picture.pixels.shape[:2]
        symbols, indexes, walked = self.engine.compress(latents.y, q, self._shape(width, height))
        return Symbols(latents.picture, q, symbols, indexes, walked if keep_walk else None)

    def encode_many(self, pictures: Sequence[Picture], rates: Sequence[float], *, batch: int = 32) -> list[bytes]:
        """Bitstreams of pictures, each at a q of its own: the same as `encode` gives one by one, on a GPU in batches of one padded size.

        Args:
            pictures: RGB or grey.
            rates: A q for each.
            batch: Pictures a batch at most; a GPU without the memory for them gets smaller ones.

        Raises:
            ConfigError: A q out of range.
            PixelLimitError: A picture over the pixel limit.
        """
        if len(rates) != len(pictures):
            raise ConfigError(f"{len(pictures)} pictures but {len(rates)} rates")
        qs = [self.quantise_q(q) for q in rates]
        for picture in pictures:
            self._check_size(picture.pixels.shape[1], picture.pixels.shape[0])
        engine = self.engine
        if not isinstance(engine, BatchEngine):
            return [self.encode(picture, q) for picture, q in zip(pictures, qs, strict=True)]
        out: list[bytes] = [b""] * len(pictures)

        def run(chosen: list[int], shape: tuple[int, int]) -> None:
            latents = engine.transform_many(np.stack([padded_pixels(pictures[i]) for i in chosen]))
            coded = engine.compress_many(latents, [qs[i] for i in chosen], shape)
            packed = engine.threads.map(lambda i, parts: self.pack(Symbols(pictures[i], qs[i], parts.symbols, parts.indexes)), chosen, coded)
            for i, data in zip(chosen, packed, strict=True):
                out[i] = data

        shapes = [self._shape(picture.pixels.shape[1], picture.pixels.shape[0]) for picture in pictures]
        _in_batches(shapes, batch, run)
        return out

    def decode_many(self, bitstreams: Sequence[bytes | memoryview], *, batch: int = 32) -> list[Decoded | CodecError]:
        """What `decode` gives for each bitstream, or the error it raises: one that is damaged says nothing about the others."""
        engine = self.engine
        out: list[Decoded | CodecError] = [CodecError("not decoded")] * len(bitstreams)
        parsed: dict[int, Bitstream] = {}
        for i, data in enumerate(bitstreams):
            try:
                parsed[i] = self._parse(data)
                if not isinstance(engine, BatchEngine):
                    out[i] = self.decode(data)
            except CodecError as error:
                out[i] = error
                parsed.pop(i, None)
        if not isinstance(engine, BatchEngine):
            return out
        numbers = list(parsed)

        def run(chosen: list[int], shape: tuple[int, int]) -> None:
            streams = [parsed[numbers[i]] for i in chosen]
            try:
                padded, symbols = engine.decode_many([stream.streams for stream in streams], [stream.q for stream in streams], shape)
                for i, stream, pixels, mine in zip(chosen, streams, padded, symbols, strict=True):
                    # A copy: the batch's pinned memory must not live as long as one of its pictures.
                    out[numbers[i]] = finished_picture(stream, pixels.copy()), mine
            except CodecError as error:
                if isinstance(error, DeviceMemoryError) and len(chosen) > 1:
                    raise
                if len(chosen) == 1:
                    out[numbers[chosen[0]]] = error
                else:
                    for i in chosen:
                        run([i], shape)

        _in_batches([self._shape(stream.width, stream.height) for stream in parsed.values()], batch, run)
        return out

    def pack(self, symbols: Symbols) -> bytes:
        """Entropy-code and serialise. Raises `CodecError` if the picture does not fit the format."""
        picture = symbols.picture
        height, width = picture.pixels.shape[:2]
        return Bitstream(
            profile=self.model.profile,
            colour=colour_of(picture),
            model_id=bytes.fromhex(self.model.sha256)[:16],
            width=width,
            height=height,
            q=symbols.q,
            streams=tuple(rans.encode(s, i, self.model.tables) for s, i in zip(symbols.symbols, symbols.indexes, strict=True)),
            boxes=boxes_of(picture),
        ).to_bytes()

    def encode(self, picture: Picture, q: float) -> bytes:
        """`transform`, `compress` and `pack` in one call."""
        return self.pack(self.compress(self.transform(picture), q))

    def decode(self, data: bytes | memoryview) -> tuple[Picture, list[NDArray[np.int32]]]:
        """The picture of a bitstream, and its ten symbol arrays (what a verifying encoder compares).

        Raises:
            BitstreamError: Any of its kinds: see `bitstream.parse`; also a foreign model, or streams that do not fit.
            PixelLimitError: Over the pixel limit.
        """
        stream = self._parse(data)
        padded, symbols = self.engine.decode(stream.streams, stream.q, self._shape(stream.width, stream.height))
        return finished_picture(stream, padded), symbols

    def decode_known(self, data: bytes | memoryview, symbols: Symbols) -> Decoded:
        """What `decode` gives of the bitstream of known symbols; without a second walk if they hold theirs.

        Header, boxes and all ten streams are read from the bytes; the streams by the encoder's table indexes, where a decoder finds these by a walk
        of its own. The pixels are those of the encoder's walk: whole numbers are exact, so that whoever reads the same symbols finds the same
        indexes and pixels. That the machine computes rightly is not shown by it: see `counterpart`. Symbols without a walk are decoded.

        Args:
            data: What `pack` made of the symbols.
            symbols: Of `compress`, of this codec or another of the same model.

        Returns:
            The picture, and the symbols of the ten streams as the bytes have them: compare those.

        Raises:
            BitstreamError: As in `decode`; also a header that says other than the symbols' picture and q.
            PixelLimitError: Over the pixel limit.
        """
        if symbols.walked is None:
            return self.decode(data)
        stream = self._parse(data)
        pixels = symbols.picture.pixels
        meant = pixels.shape[1], pixels.shape[0], colour_of(symbols.picture), symbols.q
        if (stream.width, stream.height, stream.colour, stream.q) != meant:
            raise BitstreamError(f"the header says {stream.width} x {stream.height} {stream.colour} at q = {stream.q}, not what was encoded")
        read = [rans.decode(part, indexes, self.model.tables) for part, indexes in zip(stream.streams, symbols.indexes, strict=True)]
        return finished_picture(stream, symbols.walked.picture()), read

    def counterpart(self) -> Codec:
        """A codec of the same model that computes in another way, to decode what this one encoded.

        Of an integer model it uses the CPU's next lower instruction set, or torch after the lowest; beside a GPU the CPU's best. It is this codec
        itself where no other way gives the golden vector, and for float models.
        """
        for backend in () if self.engine.backend is None else other_backends(self.engine.backend, self._threads):
            try:
                return Codec(self.model, max_pixels=self.max_pixels, threads=self._threads, backend=backend)
            except CheckpointError:
                continue
        return self

    def _parse(self, data: bytes | memoryview) -> Bitstream:
        """A bitstream that this codec may decode."""
        stream = bitstream.parse(data)
        bitstream.check_model(stream, self.model.sha256, self.model.profile)
        self._check_size(stream.width, stream.height)
        if stream.q > self.q_max:
            raise BitstreamError(f"the bitstream declares q = {stream.q}; its model ends at {self.q_max:g}")
        return stream

    def analyse(self, picture: Picture, *, sampled: bool = False) -> Curves:
        """Predicted bytes and MSE of a picture at every anchor.

        Args:
            picture: The picture.
            sampled: Look at some bands of its rows only, put together to one smaller picture.

        Raises:
            PixelLimitError: Over the pixel limit.
        """
        height, width = picture.pixels.shape[:2]
        self._check_size(width, height)
        bands = max(2, -(-height // ROWS_PER_BAND))
        if not sampled or 2 * bands * BAND_ROWS > height:
            return self.curves(self.transform(picture))
        starts = [round((i + 0.5) * height / bands - BAND_ROWS / 2) for i in range(bands)]
        part = Picture(pixels=np.concatenate([picture.pixels[start : start + BAND_ROWS] for start in starts]))
        found = self.curves(self.transform(part))
        stretched = (found.bytes - self._overhead(part)) * (height / (bands * BAND_ROWS)) + self._overhead(picture)
        return Curves(found.q, stretched, found.mse)

    def _overhead(self, picture: Picture) -> int:
        """Bytes of a bitstream that no rate changes."""
        height, width = picture.pixels.shape[:2]
        empty = Bitstream(
            profile=self.model.profile, colour="rgb", model_id=bytes(16), width=width, height=height, q=0.0,
            streams=(b"",) * bitstream.NUM_STREAMS, boxes=boxes_of(picture),
        )  # fmt: skip
        return len(empty.to_bytes()) + 6 * bitstream.NUM_STREAMS

    def curves(self, latents: Latents) -> Curves:
        """Predicted bytes and MSE at every anchor from one context pass, without coding anything.

        At the probe rate the bits are the tables' own. Elsewhere the probe's residuals are requantised and looked up again; what a real pass at
        that rate would predict better or worse is a smooth function of q, measured once per model and stored with it.
        """
        height, width = latents.picture.pixels.shape[:2]
        calibration = self.model.calibration
        anchors = np.arange(int(self.q_max) + 1, dtype=np.float64)
        probe_q = self.quantise_q(PROBE_Q_SHARE * self.q_max)
        tally = self.engine.tally(latents.y, [*anchors, probe_q], self._shape(width, height))
        num_samples = 3 * padded_side(width) * padded_side(height)
        mse = (tally.squares[:-1] @ calibration.level_weights) / num_samples * 255**2 * np.exp(calibration.log_mse_bias)
        rate = tally.bits[:-1] * np.exp(calibration.log_rate_bias)
        return Curves(anchors, rate / 8 + self._overhead(latents.picture), mse)


def _in_batches(shapes: list[tuple[int, int]], batch: int, run: Callable[[list[int], tuple[int, int]], None]) -> None:
    """`run(numbers, shape)` for items of one shape, `batch` of them at most; halves where the device's memory is too small."""
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, shape in enumerate(shapes):
        by_shape[shape].append(i)
    for shape, numbers in by_shape.items():
        waiting = [numbers[i : i + batch] for i in range(0, len(numbers), batch)]
        while waiting:
            chosen = waiting.pop(0)
            try:
                run(chosen, shape)
            except DeviceMemoryError:
                if len(chosen) == 1:
                    raise
                half = len(chosen) // 2
                waiting = [chosen[:half], chosen[half:], *waiting]
