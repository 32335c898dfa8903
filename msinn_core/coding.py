"""One picture to bytes and back with one loaded model. `codec.Codec` adds batches.

```
transform(picture) -> latents            once per picture
analyse(picture)   -> R(q), D(q)         one context pass serves every q
compress(latents, q) -> symbols          the network's part
pack(symbols) -> bytes                   the entropy coder's part, needs no network and may run in another thread
decode(bytes) -> picture, symbols        everything back
decode_known(bytes, symbols)             the same without a second walk, for an encoder that verifies
decode_reduced(beginning, scale)         a picture 2, 4, 8 or 16 times smaller, from the first bytes and by the coarse levels alone
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from msinn_core import bitstream, metrics
from msinn_core.bitstream import Bitstream
from msinn_core.config import DEFAULT_MAX_PIXELS, LATENT_STRIDES
from msinn_core.engine import Engine, FlatSymbols, ReducingEngine, narrowed
from msinn_core.engines import engine_for
from msinn_core.entropy.first_stream import StreamCoder
from msinn_core.errors import BitstreamError, CheckpointError, ConfigError, PixelLimitError
from msinn_core.framing import boxes_of, colour_of, finished_picture, padded_pixels, padded_side
from msinn_core.heads import Head
from msinn_core.integer.backend import Backend
from msinn_core.integer.ops import other_backends
from msinn_core.model_file import LoadedModel, heads_of
from msinn_core.picture import Picture
from msinn_core.prediction import Curves, curves_of, part_of, probe_rates, stretched
from msinn_core.walk import HasPicture


@dataclass(frozen=True)
class Latents:
    """A transformed picture: y5..y1 of the padded size, as the engine has them, the picture itself, and the engine."""

    picture: Picture
    y: list[Any]
    engine: Engine = field(repr=False)


@dataclass(frozen=True)
class Symbols:
    """What is to be coded: per stream (k = 0..4, anchors then the rest) symbols, of the least whole numbers that hold them, and table indexes uint8,
    both flat.

    Attributes:
        walked: The walk that gave them, which has the decoder's padded picture for whoever asks; None if `compress` was not told to keep it, or
            where no such picture is promised to be the decoder's.
    """

    picture: Picture
    q: float
    symbols: list[FlatSymbols]
    indexes: list[NDArray[np.uint8]]
    walked: HasPicture | None = field(default=None, repr=False)


Decoded = tuple[Picture, list[FlatSymbols]]
"""A picture and its ten arrays of symbols."""


class PictureCodec:
    """Encoder and decoder of one model on one device, for one picture after the other. Results are the same for every call order.

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
        self.coder = StreamCoder(model.tables, model.weights)
        self.engine: Engine = engine_for(model, device=device, threads=threads, backend=backend)

    @cached_property
    def heads(self) -> Mapping[int, Head]:
        """By scale; empty if neither the model's file nor the package has any: `decode_reduced` is not for such a model.

        Raises:
            CheckpointError: The package's heads are damaged.
        """
        return heads_of(self.model) if isinstance(self.engine, ReducingEngine) else {}

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
        return Latents(picture, self.engine.transform(padded_pixels(picture)), self.engine)

    def _shape(self, width: int, height: int) -> tuple[int, int]:
        return padded_side(height) // LATENT_STRIDES[0], padded_side(width) // LATENT_STRIDES[0]

    def compress(self, latents: Latents, q: float, *, keep_walk: bool = False, last: bool = False) -> Symbols:
        """Symbols and table indexes at rate index q (rounded to 1/1024).

        Args:
            latents: From `transform`.
            q: Rate index.
            keep_walk: For `decode_known`: the symbols hold their walk too, 12 bytes per pixel until its picture is asked for, 3 afterwards. Only
                integer models have one to keep.
            last: The latents are not asked for again: they may be let go of as they are coded, and are of no use afterwards.

        Raises:
            ConfigError: q out of range.
        """
        q = self.quantise_q(q)
        height, width = latents.picture.pixels.shape[:2]
        symbols, indexes, walked = self.engine.compress(latents.y, q, self._shape(width, height), last=last)
        return Symbols(latents.picture, q, symbols, indexes, walked if keep_walk else None)

    def pack(self, symbols: Symbols) -> bytes:
        """Entropy-code and serialise. Raises `CodecError` if the picture does not fit the format."""
        picture = symbols.picture
        height, width = picture.pixels.shape[:2]
        columns = self._shape(width, height)[1] // 2
        return Bitstream(
            profile=self.model.profile,
            colour=colour_of(picture),
            model_id=bytes.fromhex(self.model.sha256)[:16],
            width=width,
            height=height,
            q=symbols.q,
            streams=tuple(self.coder.encode(n, s, i, columns) for n, (s, i) in enumerate(zip(symbols.symbols, symbols.indexes, strict=True))),
            boxes=boxes_of(picture),
        ).to_bytes()

    def encode(self, picture: Picture, q: float) -> bytes:
        """`transform`, `compress` and `pack` in one call."""
        return self.pack(self.compress(self.transform(picture), q, last=True))

    def decode(self, data: bytes | memoryview) -> Decoded:
        """The picture of a bitstream, and its ten symbol arrays (what a verifying encoder compares).

        Raises:
            BitstreamError: Any of its kinds: see `bitstream.parse`; also a foreign model, or streams that do not fit.
            PixelLimitError: Over the pixel limit.
        """
        stream = self._parse(data)
        padded, symbols = self.engine.decode(stream.streams, stream.q, self._shape(stream.width, stream.height))
        return finished_picture(stream, padded), symbols

    def decode_reduced(self, data: bytes | memoryview, scale: int, alpha: bytes | None = None) -> Picture:
        """A picture `scale` times smaller each way, rounded up, from the beginning of a bitstream, by the coarse levels of the network alone.

        The same pixels on every machine. Close to the full picture area-downscaled, and not equal to it.

        Args:
            data: As much of the bitstream as `bitstream.prefix_of(data, heads[scale].num_streams)` says, or more.
            scale: One of `heads`.
            alpha: The bytes of the alpha plane's section, if there is one and `data` end before it.

        Raises:
            ConfigError: There is no head for this scale.
            BitstreamError: As in `decode`; damage in a stream that is read is found by the stream's end.
            PixelLimitError: The full picture is over the pixel limit.
        """
        head, engine = self._head(scale)
        stream = self._allowed(bitstream.parse_prefix(data, head.num_streams, alpha))
        padded = engine.decode_reduced(stream.streams, stream.q, self._shape(stream.width, stream.height), head)
        return finished_picture(stream, padded, scale)

    def _head(self, scale: int) -> tuple[Head, ReducingEngine]:
        """Of a scale, and the engine, which takes heads. Raises `ConfigError` where there is none."""
        head = self.heads.get(scale)
        if head is None or not isinstance(self.engine, ReducingEngine):
            raise ConfigError(f"model {self.model.name} has no head for scale {scale}: decode in full, and reduce")
        return head, self.engine

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
        columns = self._shape(stream.width, stream.height)[1] // 2
        streams = enumerate(zip(stream.streams, symbols.indexes, strict=True))
        read = [narrowed(self.coder.decode(n, part, indexes, columns)) for n, (part, indexes) in streams]
        return finished_picture(stream, symbols.walked.picture()), read

    def counterpart(self) -> Self:
        """A codec of the same model that computes in another way, to decode what this one encoded.

        Of an integer model it uses the CPU's next lower instruction set, or torch after the lowest; beside a GPU the CPU's best. It is this codec
        itself where no other way gives the golden vector, and for float models.
        """
        for backend in () if self.engine.backend is None else other_backends(self.engine.backend, self._threads):
            try:
                return type(self)(self.model, max_pixels=self.max_pixels, threads=self._threads, backend=backend)
            except CheckpointError:
                continue
        return self

    def _parse(self, data: bytes | memoryview) -> Bitstream:
        return self._allowed(bitstream.parse(data))

    def _allowed(self, stream: Bitstream) -> Bitstream:
        """A bitstream that this codec may decode."""
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
        self._check_size(picture.pixels.shape[1], picture.pixels.shape[0])
        part = part_of(picture, sampled=sampled)
        return stretched(self.model, self.curves(self.transform(part), last=True), part, picture)

    def cost(self, picture: Picture, q: int) -> float:
        """What a picture costs with this model, for comparing models: `bits per pixel + lambda * MSE` at an anchor, of real bytes of bands of it.
        Predictions would not do: they are worst for pictures that a model was not made for.

        Args:
            picture: The picture.
            q: The anchor.

        Raises:
            PixelLimitError: Over the pixel limit.
        """
        part = part_of(picture, sampled=True)
        height, width = part.pixels.shape[:2]
        self._check_size(width, height)
        symbols = self.compress(self.transform(part), q, keep_walk=True, last=True)
        data = self.pack(symbols)
        decoded, _ = self.decode_known(data, symbols)
        return 8 * len(data) / (height * width) + self.model.config.lambdas[q] * metrics.mse(decoded.pixels, part.pixels)

    def curves(self, latents: Latents, *, last: bool = False) -> Curves:
        """Predicted bytes and MSE at every anchor from one context pass, without coding anything.

        At the probe rate the bits are the tables' own. Elsewhere the probe's residuals are requantised and looked up again; what a real pass at
        that rate would predict better or worse is a smooth function of q, measured once per model and stored with it.

        Args:
            latents: From `transform`.
            last: See `compress`.
        """
        height, width = latents.picture.pixels.shape[:2]
        tally = self.engine.tally(latents.y, probe_rates(self.model), self._shape(width, height), last=last)
        return curves_of(self.model, tally, latents.picture)
