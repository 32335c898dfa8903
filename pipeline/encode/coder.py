"""One image coded: the network's part, the entropy coder's part, and the proof that the bytes decode to what was meant.

```
Item --> compress at q, transformed once --> symbols, and the picture of their walk --> pack --> data --> measure --> Measured
         DeviceError: the CPU instead                                                             anything else: Kept(CODEC_FAILED)
measure   whole numbers: every symbol, box and header field read from the bytes and compared; the picture is the walk's
          floats: decoded from the bytes by the CPU, a walk of its own
```
What the first way cannot show, that the machine computes rightly, `crosscheck` shows on a sample. A GPU codes many at once: see `batches`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Protocol

import numpy as np

from msinn_core import metrics
from msinn_core.codec import Codec
from msinn_core.coding import Decoded
from msinn_core.errors import CodecError, DeviceError, DeviceMemoryError
from msinn_core.integer.ops import COMPILED
from msinn_core.model_file import LoadedModel
from msinn_core.picture import Picture
from msinn_core.prediction import Curves
from pipeline.archive.layout import sha256
from pipeline.encode.item import Item, Measured, ms_since, same_alpha
from pipeline.encode.tasks import WorkConfig
from pipeline.formats.outcome import Kept, Reason

IMAGE_ERRORS = (CodecError, RuntimeError, MemoryError)
"""What coding one image may raise (RuntimeError is torch's out-of-memory): it is kept as its file and named in the report, the others go on."""


class Coder(Protocol):
    """What codes images: one model, or several of which each image has one."""

    @property
    def q_max(self) -> float:
        """Largest rate index."""

    def compress(self, item: Item, q: float, *, tentative: bool = False) -> None:
        """The network's part: see `ImageCoder`, here and below."""

    def pack(self, item: Item) -> None:
        """The entropy coder's part."""

    def measure(self, item: Item) -> bool:
        """Decode, compare, measure."""


class ImageCoder:
    """Codes images with one model. What it cannot code it gives the outcome `Kept`, never an exception.

    Args:
        model: The model; its SHA-256 goes into every bitstream.
        config: The run's.
        device: Of the network.
        threads: Of the integer network.

    Attributes:
        codec: What codes: of the device, while it works.
        checker: The CPU's. It codes what is too large for the device, and everything once that has failed.
        lost: A sentence once the device has failed.
    """

    def __init__(self, model: LoadedModel, config: WorkConfig, *, device: str = "cpu", threads: int = 1) -> None:
        if model.profile == "float" or config.ms_ssim or not COMPILED:
            from msinn_core.float.engine import compute_on_one_thread

            compute_on_one_thread()
        self.codec = Codec(model, device=device, max_pixels=config.max_pixels, threads=threads)
        self.checker = Codec(model, max_pixels=config.max_pixels, threads=threads) if self.codec.batches else self.codec
        self.lost: str | None = None
        self._ms_ssim = config.ms_ssim
        self._searches = config.target_psnr_db is not None

    @property
    def model(self) -> LoadedModel:
        """The model."""
        return self.codec.model

    @property
    def q_max(self) -> float:
        """Largest rate index."""
        return self.codec.q_max

    def gives_way(self, error: Exception) -> None:
        """The device could not do something: if it failed, and has not merely too little memory, the CPU does everything from now on."""
        if not isinstance(error, DeviceMemoryError) and self.codec is not self.checker:
            self.codec = self.checker
            self.lost = (str(error) or type(error).__name__)[:300]

    def compress(self, item: Item, q: float, *, tentative: bool = False) -> None:
        """The network's part of coding at q: `symbols`. Nothing for an image that is not to be coded.

        Args:
            item: With its picture.
            q: Rate index.
            tentative: It may well be coded again before it is measured: the last level of its walk is left until then.
        """
        if not item.coded or item.loaded.picture is None:
            return
        started = time.perf_counter()
        try:
            try:
                self._compress(item, item.loaded.picture, q, tentative=tentative)
            except DeviceError as error:  # of the device, not of the machine
                self.gives_way(error)
                item.on_checker = True
                self._compress(item, item.loaded.picture, q, tentative=tentative)
            item.measured = None
        except IMAGE_ERRORS as error:
            item.outcome = Kept(Reason.CODEC_FAILED, f"{type(error).__name__}: {error}"[:300])
            item.latents = None
        item.model_ms += ms_since(started)

    def _compress(self, item: Item, picture: Picture, q: float, *, tentative: bool) -> None:
        codec = self.checker if item.on_checker else self.codec
        if item.latents is None or item.latents.engine is not codec.engine:
            item.latents = codec.transform(picture)
        again = tentative or self._searches or item.task.min_psnr_db is not None
        item.symbols = codec.compress(item.latents, q, keep_walk=True, last=not again)
        if not again:
            item.latents = None
        item.encoder = encoder_of(codec)
        if item.symbols.walked is not None and not tentative:
            item.symbols.walked.picture()  # now: what it is computed from need not wait in memory

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
        """Decode from the bytes, compare with what the encoder meant, measure: `measured`. False, and kept, if the decoder does not agree.

        Nothing is done twice for the same symbols.
        """
        assert item.data is not None
        assert item.symbols is not None
        assert item.loaded.picture is not None
        if item.measured is not None:
            return True
        started = time.perf_counter()
        original = item.loaded.picture
        try:
            decoded, symbols = self._read_back(item)
        except IMAGE_ERRORS as error:
            item.outcome = Kept(Reason.CODEC_FAILED, f"does not decode: {error}"[:300])
            return False
        same = all(np.array_equal(a, b) for a, b in zip(symbols, item.symbols.symbols, strict=True))
        if not (same and decoded.metadata() == original.metadata() and same_alpha(decoded, original)):
            item.outcome = Kept(Reason.CODEC_FAILED, "the decoder returns other symbols or metadata than were encoded")
            return False
        ms_ssim = metrics.ms_ssim(decoded.pixels, original.pixels) if self._ms_ssim else None
        item.measured = Measured(metrics.mse(decoded.pixels, original.pixels), ms_ssim, sha256(decoded.content()), item.symbols.walked is not None)
        item.verify_ms += ms_since(started)
        return True

    def _read_back(self, item: Item) -> Decoded:
        assert item.data is not None
        assert item.symbols is not None
        try:
            return self.checker.decode_known(item.data, item.symbols)
        except DeviceError as error:  # the walk's picture, asked for only now, went with the device; the bytes have all of it
            self.gives_way(error)
            item.symbols = replace(item.symbols, walked=None)
            return self.checker.decode_known(item.data, item.symbols)

    def curves(self, picture: Picture, *, sampled: bool) -> Curves | None:
        """Predicted rate and distortion of a picture; None if it cannot be coded.

        Args:
            picture: The picture.
            sampled: Look at bands of it only: half the time, less exact.
        """
        try:
            try:
                curves = self.codec.analyse(picture, sampled=sampled)
            except DeviceError as error:
                self.gives_way(error)
                curves = self.checker.analyse(picture, sampled=sampled)
        except IMAGE_ERRORS:
            return None
        return curves if is_finite(curves) else None


def is_finite(curves: Curves) -> bool:
    """Whether a plan can use them."""
    return bool(np.isfinite(curves.bytes).all() and np.isfinite(curves.mse).all())


def encoder_of(codec: Codec) -> str:
    """What computes, for the manifest: device and instruction set, or its name."""
    return f"{codec.engine.device} ({codec.engine.name})"
