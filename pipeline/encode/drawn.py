"""Pictures that were drawn, with loss in AVIF (`forms.avif`), where the run offers that and it takes fewer bytes than the network for the same error.

The rate index q of a model is a quality of libavif here, whose steps are coarser: a search for a PSNR ends up to a decibel above it.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from msinn_core import bitstream, metrics
from msinn_core.coding import Symbols
from msinn_core.picture import Picture
from msinn_core.prediction import Curves, part_of
from pipeline.archive.layout import sha256
from pipeline.encode.item import Item, Measured, ms_since, same_alpha
from pipeline.formats.outcome import Kept, Reason
from pipeline.forms import avif, jxl
from pipeline.forms.base import Bounds, Refusal
from pipeline.forms.libraries import AbsentError

_ERRORS = (AbsentError, Refusal, RuntimeError, ValueError, TypeError, MemoryError)
"""What the library raises: the picture is kept as its file and named, the others go on."""

_MIDDLE, _OTHERS = 0.5, (0.0, 0.25, 0.75, 1.0)
"""Shares of the rates at which a picture is encoded to know its curve; between them it is a straight line in the logarithms."""

_HOPELESS = 1.3
"""Where the first of these takes so many times the network's bytes for its quality, the others are not tried."""

_LEAST_MSE = 1e-3
"""Of a curve, whose logarithm counts: 78 dB."""

_COMPARED_DB = (30.0, 46.0)
_LEAST_SAVING = 0.03
"""Between these qualities it must take so much less than the network, on average: a form that others need a library for is worth something."""


class DrawnCoder:
    """Codes pictures in AVIF; see `coder.Coder`.

    Args:
        q_max: Largest rate index of the run's models.
        max_pixels: Of a picture.
        ms_ssim: Whether MS-SSIM is measured.
    """

    def __init__(self, q_max: float, max_pixels: int, *, ms_ssim: bool) -> None:
        self.q_max = q_max
        self._bounds = Bounds(max_pixels=max_pixels, max_file_bytes=0)
        self._ms_ssim = ms_ssim

    def cheaper(self, picture: Picture, network: Curves, *, sampled: bool) -> Curves | None:
        """The curves of a picture in AVIF, measured, if it was drawn and takes fewer bytes so than by the network; else None.

        Args:
            picture: The picture.
            network: What the network's would be.
            sampled: Look at bands of it only.
        """
        if not avif.suits(picture):
            return None
        try:
            found = self._curves(picture, network, sampled=sampled)
        except _ERRORS:
            return None
        return found if found is not None and _saves(found, network) else None

    def _curves(self, picture: Picture, network: Curves, *, sampled: bool) -> Curves | None:
        """None where it is hopeless."""
        part = part_of(picture, sampled=sampled)
        scale = picture.pixels.shape[0] / part.pixels.shape[0]
        more = len(jxl.with_metadata(b"", avif.carried_with(picture)))

        def measured(share: float) -> tuple[float, float]:
            data = avif.encoded(part.pixels, avif.level_at(share), {})
            return len(data) * scale + more, max(_LEAST_MSE, metrics.mse(self._decoded(data).pixels, part.pixels))

        knots = {_MIDDLE: measured(_MIDDLE)}
        size, mse = knots[_MIDDLE]
        if size > _HOPELESS * np.exp(np.interp(_db(np.array(mse)), *_by_quality(network))):
            return None
        knots |= {share: measured(share) for share in _OTHERS}
        shares = sorted(knots)
        sizes, errors = (np.interp(network.q / self.q_max, shares, values) for values in np.log([knots[share] for share in shares]).T)
        return Curves(network.q, np.exp(sizes, dtype=np.float64), np.exp(errors, dtype=np.float64))

    def _decoded(self, data: bytes) -> Picture:
        return avif.AVIF.decode(avif.AVIF.codec, data, self._bounds).picture()

    def compress(self, item: Item, q: float, *, tentative: bool = False) -> None:
        """See `coder.ImageCoder.compress`; the bytes too. A quality that was tried before is not encoded again."""
        if not item.coded or (picture := item.loaded.picture) is None:
            return
        started = time.perf_counter()
        try:
            level = avif.level_at(min(1.0, max(0.0, q / self.q_max)))
            if item.carried is None:  # of one that has alpha it takes as long as a quality
                item.carried = avif.carried_with(picture)
            if level not in item.tried:
                item.tried[level] = avif.encoded(picture.pixels, level, item.carried)
            item.writer = avif.writer()
            item.data, item.measured = item.tried[level], None
            item.symbols = Symbols(picture, round(q * bitstream.Q_STEPS) / bitstream.Q_STEPS, [], [])
        except _ERRORS as error:
            item.outcome = Kept(Reason.CODEC_FAILED, f"{type(error).__name__}: {error}"[:300])
        item.entropy_ms += ms_since(started)

    def pack(self, item: Item) -> None:
        """Nothing: it is done."""

    def measure(self, item: Item) -> bool:
        """See `coder.ImageCoder.measure`: decoded from the bytes, and compared."""
        assert item.data is not None
        assert item.loaded.picture is not None
        if item.measured is not None:
            return True
        started = time.perf_counter()
        original = item.loaded.picture
        try:
            decoded = self._decoded(item.data)
        except _ERRORS as error:
            item.outcome = Kept(Reason.CODEC_FAILED, f"does not decode: {error}"[:300])
            return False
        if decoded.pixels.shape != original.pixels.shape or decoded.metadata() != original.metadata() or not same_alpha(decoded, original):
            item.outcome = Kept(Reason.CODEC_FAILED, "AVIF does not come back with its size, alpha and metadata")
            return False
        ms_ssim = metrics.ms_ssim(decoded.pixels, original.pixels) if self._ms_ssim else None
        item.measured = Measured(metrics.mse(decoded.pixels, original.pixels), ms_ssim, sha256(decoded.content()), False)
        item.verify_ms += ms_since(started)
        return True

    def picture(self, item: Item) -> Picture:
        """What the data of an item decodes to. Raises `Refusal`."""
        assert item.data is not None
        return self._decoded(item.data)


def _saves(one: Curves, other: Curves) -> bool:
    """Whether the first takes less on average over the qualities that both reach."""
    (db, sizes), (other_db, other_sizes) = (_by_quality(curves) for curves in (one, other))
    low, high = max(db[0], other_db[0], _COMPARED_DB[0]), min(db[-1], other_db[-1], _COMPARED_DB[1])
    if low >= high:
        return False
    at = np.linspace(low, high, 9)
    saving = np.interp(at, other_db, other_sizes) - np.interp(at, db, sizes)
    return bool(saving.mean() > -np.log(1 - _LEAST_SAVING))


def _by_quality(curves: Curves) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """PSNR in dB, rising, and the logarithm of bytes there."""
    return np.maximum.accumulate(_db(curves.mse)), np.log(curves.bytes)


def _db(mse: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(10 * np.log10(255**2 / np.maximum(mse, _LEAST_MSE)))
