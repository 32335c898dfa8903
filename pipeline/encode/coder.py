"""One image coded: the network's part, the entropy coder's part, and the proof that the bytes decode to what was meant.

```
Item --> compress at q, transformed once --> symbols --> pack --> data --> measure: decode, compare --> Measured
         DeviceMemoryError: the CPU instead                                   anything else: Kept(CODEC_FAILED)
```
"""

from __future__ import annotations

import time

import numpy as np

from msinn_core import metrics
from msinn_core.codec import Codec, Curves, Symbols
from msinn_core.engines import BatchEngine
from msinn_core.errors import CodecError, DeviceMemoryError
from msinn_core.integer.ops import COMPILED
from msinn_core.model_file import LoadedModel
from msinn_core.picture import Picture
from pipeline.archive.layout import sha256
from pipeline.encode.item import Item, Measured, ms_since
from pipeline.encode.tasks import WorkConfig
from pipeline.formats.outcome import Kept, Reason

IMAGE_ERRORS = (CodecError, RuntimeError, MemoryError)
"""What coding one image may raise (RuntimeError is torch's out-of-memory): it is kept as its file and named in the report, the others go on."""


class ImageCoder:
    """Codes images with one model. What it cannot code it gives the outcome `Kept`, never an exception.

    Args:
        model: The model; its SHA-256 goes into every bitstream.
        config: The run's.
        device: Of the network.
        threads: Of the integer network.
    """

    def __init__(self, model: LoadedModel, config: WorkConfig, *, device: str = "cpu", threads: int = 1) -> None:
        if model.profile == "float" or config.ms_ssim or not COMPILED:
            from msinn_core.float.engine import compute_on_one_thread

            compute_on_one_thread()
        self.codec = Codec(model, device=device, max_pixels=config.max_pixels, threads=threads)
        # What a GPU encoded is decoded by the CPU before it counts: an error of the device, its compiler or our kernels shows.
        on_gpu = isinstance(self.codec.engine, BatchEngine)
        self.checker = Codec(model, max_pixels=config.max_pixels, threads=threads) if on_gpu else self.codec
        self._ms_ssim = config.ms_ssim

    @property
    def model(self) -> LoadedModel:
        """The model."""
        return self.codec.model

    @property
    def q_max(self) -> float:
        """Largest rate index."""
        return self.codec.q_max

    def compress(self, item: Item, q: float) -> None:
        """The network's part of coding at q: `symbols`. Nothing for an image that is not to be coded."""
        if not item.coded or item.loaded.picture is None:
            return
        started = time.perf_counter()
        try:
            try:
                item.symbols = self._compressed(item, item.loaded.picture, q)
            except DeviceMemoryError:  # one image is too large for the device, not for the machine
                item.latents, item.on_checker = None, True
                item.symbols = self._compressed(item, item.loaded.picture, q)
        except IMAGE_ERRORS as error:
            item.outcome = Kept(Reason.CODEC_FAILED, f"{type(error).__name__}: {error}"[:300])
            item.latents = None
        item.model_ms += ms_since(started)

    def _compressed(self, item: Item, picture: Picture, q: float) -> Symbols:
        codec = self.checker if item.on_checker else self.codec
        if item.latents is None:
            item.latents = codec.transform(picture)
        return codec.compress(item.latents, q)

    def pack(self, item: Item) -> None:
        """The entropy coder's part: `data`. Needs no network, and may run in another thread beside it."""
        if item.coded and item.symbols is not None:
            started = time.perf_counter()
            try:
                item.data = self.codec.pack(item.symbols)
            except IMAGE_ERRORS as error:
                item.outcome = Kept(Reason.CODEC_FAILED, str(error)[:300])
            item.entropy_ms += ms_since(started)

    def measure(self, item: Item) -> bool:
        """Decode from the bytes, compare with what the encoder meant, measure: `measured`. False, and kept, if the decoder does not agree."""
        assert item.data is not None
        assert item.symbols is not None
        assert item.loaded.picture is not None
        started = time.perf_counter()
        original = item.loaded.picture
        try:
            decoded, symbols = self.checker.decode(item.data)
        except IMAGE_ERRORS as error:
            item.outcome = Kept(Reason.CODEC_FAILED, f"does not decode: {error}"[:300])
            return False
        same = all(np.array_equal(a, b) for a, b in zip(symbols, item.symbols.symbols, strict=True))
        if not (same and decoded.metadata() == original.metadata() and _same_alpha(decoded, original)):
            item.outcome = Kept(Reason.CODEC_FAILED, "the decoder returns other symbols or metadata than were encoded")
            return False
        ms_ssim = metrics.ms_ssim(decoded.pixels, original.pixels) if self._ms_ssim else None
        item.measured = Measured(metrics.mse(decoded.pixels, original.pixels), ms_ssim, sha256(decoded.content()))
        item.verify_ms += ms_since(started)
        return True

    def curves(self, picture: Picture, *, sampled: bool) -> Curves | None:
        """Predicted rate and distortion of a picture; None if it cannot be coded.

        Args:
            picture: The picture.
            sampled: Look at bands of it only: half the time, less exact.
        """
        try:
            curves = self.codec.analyse(picture, sampled=sampled)
        except IMAGE_ERRORS:
            return None
        return curves if np.isfinite(curves.bytes).all() and np.isfinite(curves.mse).all() else None


def _same_alpha(decoded: Picture, original: Picture) -> bool:
    if decoded.alpha is None or original.alpha is None:
        return decoded.alpha is original.alpha
    return np.array_equal(decoded.alpha, original.alpha)
