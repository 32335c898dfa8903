"""Pictures to bytes and back with one loaded model.

```
transform(picture) -> latents            once per picture
curves(latents)    -> R(q), D(q)         one context pass serves every q
compress(latents, q) -> symbols          the network's part
pack(symbols) -> bytes                   the entropy coder's part, needs no network and may run in another thread
decode(bytes) -> picture, symbols        everything back
```
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msinn_core import bitstream, context
from msinn_core.bitstream import Bitstream
from msinn_core.checkpoint import LoadedModel
from msinn_core.config import LATENT_CHANNELS, LATENT_STRIDES, SIZE_MULTIPLE
from msinn_core.entropy import rans
from msinn_core.errors import BitstreamError, CodecError, ConfigError
from msinn_core.layers import pack
from msinn_core.quantiser import rate_aware_round, widened_zone

DEFAULT_MAX_PIXELS = 32_000_000
"""Pictures above this are refused: the float profile needs about 230 bytes of memory per pixel."""

PROBE_Q_SHARE = 6 / 11
"""Where in [0, A - 1] the one context pass of `curves` runs: the middle, where its extrapolation errs least on both sides."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Decoded pixels and what travels with them.

    Attributes:
        pixels: uint8 `[H, W, 3]` (RGB) or `[H, W]` (grey).
        alpha: uint8 `[H, W]`, kept losslessly, or None.
        icc: ICC profile; `exif` and `xmp` likewise: bytes or None.
    """

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)) or 0 in shape:
            raise ConfigError(f"pixels are uint8 [H, W] or [H, W, 3], not {self.pixels.dtype} {list(shape)}")
        if self.alpha is not None and (self.alpha.dtype != np.uint8 or self.alpha.shape != shape[:2]):
            raise ConfigError("alpha is uint8 of the picture's height and width")

    def content(self) -> bytes:
        """Bytes whose SHA-256 names the decoded picture: pixels row by row, then alpha if there is any."""
        return self.pixels.tobytes() + (b"" if self.alpha is None else self.alpha.tobytes())


@dataclass(frozen=True)
class Latents:
    """A transformed picture: y5..y1 (batch of one) of the padded size, and the picture itself."""

    picture: Picture
    y: list[Tensor]


@dataclass(frozen=True)
class Symbols:
    """What is to be coded: per stream (k = 0..4, anchors then the rest) symbols int32 and table indexes uint8, both flat."""

    picture: Picture
    q: float
    symbols: list[NDArray[np.int32]]
    indexes: list[NDArray[np.uint8]]


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


@dataclass
class _Collector:
    """Encoder side of the walk: rounds, remembers."""

    y: list[Tensor]
    thresholds: Tensor
    zone: Tensor
    symbols_out: list[NDArray[np.int32]] = field(default_factory=list)
    indexes_out: list[NDArray[np.uint8]] = field(default_factory=list)

    def symbols(self, k: int, parity: int, means: Tensor, scales: Tensor, gain: Tensor) -> Tensor:
        indexes = _table_indexes(scales, self.thresholds)
        exact = ((pack(self.y[k], parity) - means) * gain).contiguous()
        rounded = rate_aware_round(exact, indexes.to(torch.int64).reshape(exact.shape), self.zone)
        self.symbols_out.append(_flat(rounded.to(torch.int32)))
        self.indexes_out.append(_flat(indexes))
        return rounded


@dataclass
class _Reader:
    """Decoder side of the walk: reads."""

    streams: tuple[bytes, ...]
    model: LoadedModel
    thresholds: Tensor
    symbols_out: list[NDArray[np.int32]] = field(default_factory=list)

    def symbols(self, k: int, parity: int, means: Tensor, scales: Tensor, gain: Tensor) -> Tensor:
        stream = self.streams[len(self.symbols_out)]
        flat = rans.decode(stream, _flat(_table_indexes(scales, self.thresholds)), self.model.tables)
        self.symbols_out.append(flat)
        return torch.from_numpy(flat).to(means.device, torch.float32).reshape(means.shape)


@dataclass
class _Prober:
    """Walks like the encoder and remembers residuals and scales, from which every other q follows."""

    y: list[Tensor]
    scale_gains: list[Tensor]
    thresholds: Tensor
    zone: Tensor
    residuals: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)

    def symbols(self, k: int, parity: int, means: Tensor, scales: Tensor, gain: Tensor) -> Tensor:
        residual = pack(self.y[k], parity) - means
        self.residuals.append((k, residual, scales / self.scale_gains[k]))
        return rate_aware_round((residual * gain).contiguous(), _table_indexes(scales, self.thresholds).to(torch.int64), self.zone)


def _table_indexes(scales: Tensor, thresholds: Tensor) -> Tensor:
    # A contiguous copy: streams run in C order whatever the memory format of the convolutions.
    return torch.bucketize(scales.contiguous(), thresholds, out_int32=True).to(torch.uint8)


def _flat(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.cpu().numpy().reshape(-1)
    return array


def _padded(side: int) -> int:
    return -(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE


class Codec:
    """Encoder and decoder of one model on one device. One call at a time; results are the same for every call order.

    Args:
        model: From `checkpoint.load_model`.
        device: Where the network runs.
        max_pixels: Pictures above are refused, before anything is allocated for them.
    """

    def __init__(self, model: LoadedModel, *, device: str = "cpu", max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self.model = model
        self.max_pixels = max_pixels
        self._device = torch.device(device)
        self._net = model.network.to(self._device)
        self._thresholds = torch.from_numpy(model.tables.thresholds).to(self._device)
        self._zone = torch.from_numpy(widened_zone(model.tables)).to(self._device)
        self._costs = model.tables.symbol_bits()

    @property
    def q_max(self) -> float:
        """Largest q (best quality)."""
        return self.model.network.config.q_max

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
            raise CodecError(f"{width} x {height} pixels are over the limit of {self.max_pixels} pixels")

    @torch.inference_mode()
    def transform(self, picture: Picture) -> Latents:
        """Latents of a picture; its sides are padded to multiples of 32 by repeating the last row and column.

        Raises:
            CodecError: Over the pixel limit.
        """
        height, width = picture.pixels.shape[:2]
        self._check_size(width, height)
        pixels = picture.pixels if picture.pixels.ndim == 3 else np.repeat(picture.pixels[:, :, None], 3, axis=2)
        padding = ((0, _padded(height) - height), (0, _padded(width) - width), (0, 0))
        pixels = np.pad(pixels, padding, mode="edge") if any(p[1] for p in padding) else np.require(pixels, requirements=["C", "W"])
        # A view with channels last, the convolutions' fast layout.
        x = torch.from_numpy(pixels).to(self._device)[None].permute(0, 3, 1, 2).float() / 255
        return Latents(picture, self._net.analysis(x))

    def _shape(self, width: int, height: int) -> tuple[int, int, int]:
        return 1, _padded(height) // LATENT_STRIDES[0], _padded(width) // LATENT_STRIDES[0]

    @torch.inference_mode()
    def compress(self, latents: Latents, q: float) -> Symbols:
        """Symbols and table indexes at rate index q (rounded to 1/1024). Raises `ConfigError` for q out of range."""
        q = self.quantise_q(q)
        height, width = latents.picture.pixels.shape[:2]
        collector = _Collector(latents.y, self._thresholds, self._zone)
        self._net.walk(collector, self._net.gains(q), self._shape(width, height), finest=False)
        return Symbols(latents.picture, q, collector.symbols_out, collector.indexes_out)

    def pack(self, symbols: Symbols) -> bytes:
        """Entropy-code and serialise. Raises `CodecError` if the picture does not fit the format."""
        picture = symbols.picture
        height, width = picture.pixels.shape[:2]
        return Bitstream(
            profile=self.model.profile,
            colour="rgb" if picture.pixels.ndim == 3 else "grey",
            model_id=bytes.fromhex(self.model.sha256)[:16],
            width=width,
            height=height,
            q=symbols.q,
            streams=tuple(rans.encode(s, i, self.model.tables) for s, i in zip(symbols.symbols, symbols.indexes, strict=True)),
            boxes=_boxes(picture),
        ).to_bytes()

    def encode(self, picture: Picture, q: float) -> bytes:
        """`transform`, `compress` and `pack` in one call."""
        return self.pack(self.compress(self.transform(picture), q))

    @torch.inference_mode()
    def decode(self, data: bytes | memoryview) -> tuple[Picture, list[NDArray[np.int32]]]:
        """The picture of a bitstream, and its ten symbol arrays (what a verifying encoder compares).

        Raises:
            BitstreamError: Any of its kinds: see `bitstream.parse`; also a foreign model, or streams that do not fit.
            CodecError: Over the pixel limit.
        """
        stream = bitstream.parse(data)
        bitstream.check_model(stream, self.model.sha256, self.model.profile)
        self._check_size(stream.width, stream.height)
        if stream.q > self.q_max:
            raise BitstreamError(f"the bitstream declares q = {stream.q}; its model ends at {self.q_max:g}")
        reader = _Reader(stream.streams, self.model, self._thresholds)
        x_hat = self._net.walk(reader, self._net.gains(stream.q), self._shape(stream.width, stream.height))
        assert x_hat is not None
        pixels = (x_hat[0, :, : stream.height, : stream.width].clamp(0, 1) * 255).round()
        if stream.colour == "grey":
            array = pixels.mean(dim=0).round().to(torch.uint8).cpu().numpy()
        else:
            array = pixels.permute(1, 2, 0).to(torch.uint8).contiguous().cpu().numpy()
        boxes = stream.boxes
        alpha = _read_alpha(boxes[bitstream.ALPHA], stream) if bitstream.ALPHA in boxes else None
        picture = Picture(pixels=array, alpha=alpha, icc=boxes.get(bitstream.ICC), exif=boxes.get(bitstream.EXIF), xmp=boxes.get(bitstream.XMP))
        return picture, reader.symbols_out

    @torch.inference_mode()
    def curves(self, latents: Latents) -> Curves:
        """Predicted bytes and MSE at every anchor from one context pass, without coding anything.

        At the probe rate the bits are the tables' own. Elsewhere the probe's residuals are requantised and looked up again; what a real pass at
        that rate would predict better or worse is a smooth function of q, measured once per model and stored with it.
        """
        height, width = latents.picture.pixels.shape[:2]
        calibration = self.model.calibration
        anchors = np.arange(int(self.q_max) + 1, dtype=np.float64)
        probe_q = self.quantise_q(PROBE_Q_SHARE * self.q_max)
        gains = self._net.gains(probe_q)
        prober = _Prober(latents.y, [gains.level(k)[2] for k in range(context.NUM_STEPS)], self._thresholds, self._zone)
        self._net.walk(prober, gains, self._shape(width, height), finest=False)
        exact = sum(self._quantise(r, s, *gains.level(k))[1] for k, r, s in prober.residuals)
        at_all = [self._net.gains(q) for q in (*anchors, probe_q)]
        bits, squares = np.zeros(len(at_all)), np.zeros((len(at_all), len(LATENT_CHANNELS)))
        for k, residual, scale in prober.residuals:
            # A quarter of the positions of the two finest latents says as much: they are nine tenths of all symbols.
            step = 2 if k >= 3 and min(residual.shape[2:]) >= 32 else 1
            num_positions = residual.shape[2] * residual.shape[3]
            residual, scale = residual[..., ::step, ::step].contiguous(), scale[..., ::step, ::step].contiguous()
            share = num_positions / (residual.shape[2] * residual.shape[3])
            for i, at in enumerate(at_all):
                error, used = self._quantise(residual, scale, *at.level(k))
                bits[i] += share * used
                squares[i, k] += share * error
        num_samples = 3 * _padded(width) * _padded(height)
        mse = (squares[:-1] @ calibration.level_weights) / num_samples * 255**2 * np.exp(calibration.log_mse_bias)
        rate = exact * bits[:-1] / max(bits[-1], 1e-9) * np.exp(calibration.log_rate_bias)
        fixed = len(Bitstream(
            profile=self.model.profile, colour="rgb", model_id=bytes(16), width=width, height=height, q=0.0,
            streams=(b"",) * bitstream.NUM_STREAMS, boxes=_boxes(latents.picture),
        ).to_bytes())  # fmt: skip
        return Curves(anchors, rate / 8 + fixed + 6 * bitstream.NUM_STREAMS, mse)

    def _quantise(self, residual: Tensor, scale: Tensor, gain: Tensor, inv_gain: Tensor, scale_gain: Tensor) -> tuple[float, float]:
        """Summed squared error and table bits of residuals at other gains."""
        bits, base, size = self._costs
        indexes = _table_indexes(scale * scale_gain, self._thresholds)
        symbols = rate_aware_round((residual * gain).contiguous(), indexes.to(torch.int64), self._zone)
        error = float((residual - symbols * inv_gain).square().sum())
        table = _flat(indexes)
        position = _flat(symbols.to(torch.int64)) - self.model.tables.offsets[table]
        size_of = size[table]
        position = np.where((position >= 0) & (position < size_of), position, size_of)
        return error, float(bits[base[table] + position].sum(dtype=np.float64))


def _boxes(picture: Picture) -> dict[int, bytes]:
    boxes = {bitstream.ICC: picture.icc, bitstream.EXIF: picture.exif, bitstream.XMP: picture.xmp}
    if picture.alpha is not None:
        boxes[bitstream.ALPHA] = _write_alpha(picture.alpha)
    return {kind: data for kind, data in boxes.items() if data is not None}


def _write_alpha(alpha: NDArray[np.uint8]) -> bytes:
    # PNG filter "up" on every row, then deflate: masks are flat, and any reader has zlib.
    rows = alpha.astype(np.int16)
    rows[1:] -= alpha[:-1]
    return zlib.compress(rows.astype(np.uint8).tobytes(), 9)


def _read_alpha(data: bytes, stream: Bitstream) -> NDArray[np.uint8]:
    size = stream.width * stream.height
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise BitstreamError(f"the alpha plane does not inflate: {error}") from error
    if len(raw) != size or not inflater.eof:
        raise BitstreamError(f"the alpha plane does not inflate to {stream.width} x {stream.height} samples")
    rows = np.frombuffer(raw, np.uint8).reshape(stream.height, stream.width)
    return np.cumsum(rows, axis=0, dtype=np.uint8)
