"""`msinn bench peers`: bytes, PSNR and speed beside other codecs at one quality, in one run."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from msinn_core import metrics
from msinn_core.codec import Codec
from msinn_core.model_file import load_model
from msinn_core.picture import Picture
from pipeline.errors import UsageError
from pipeline.lab.bench_common import MAX_PIXELS, loaded
from pipeline.lab.peers import Peer, Pixels, available

_TRIES = 7


@dataclass
class _Row:
    """A codec at its setting; seconds of CPU of every round, over all images."""

    name: str
    encode: Callable[[Pixels], bytes]
    decode: Callable[[bytes], Pixels]
    psnr_db: float = 0.0
    bytes: int = 0
    encode_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)


def bench_peers(images: Sequence[str], *, model: str, q: float, peers: Sequence[str], rounds: int) -> None:
    """Print a table: our model at q, encoded alone and verified, and each peer at the setting that gives the same mean PSNR, all on one thread.

    Codecs take turns, so that what else the machine does falls on all of them; CPU time counts, that of started processes too, and the best round.

    Args:
        images: Files.
        model: Name or file.
        q: Rate index.
        peers: Short names; see `peers.available`.
        rounds: Turns of each.

    Raises:
        UsageError: No such peer, or it is not installed.
    """
    pictures = [loaded(image) for image in images]
    pixels = [picture.pixels for picture in pictures]
    megapixels = sum(one.shape[0] * one.shape[1] for one in pixels) / 1e6
    codec = Codec(load_model(model), max_pixels=MAX_PIXELS)
    rows = _ours(codec, q)
    _measure(rows[0], pixels)
    found, absent = available()
    for name in peers:
        if name not in found:
            raise UsageError(f"{name}: {absent.get(name) or 'no such codec; there are ' + ', '.join(found)}")
        rows.append(_matched(found[name], pixels, rows[0].psnr_db))
    for _ in range(rounds):
        for row in rows:
            _measure(row, pixels)
    print(f"{len(pixels)} images, {megapixels:.2f} Mpx, one thread, CPU time, best of {rounds}; ratios to {rows[0].name}\n")
    print("| codec | PSNR (dB) | bpp | bytes | encode Mpx/s | | decode Mpx/s | |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    first = rows[0]
    for row in rows:
        encode, decode = (megapixels / min(seconds) for seconds in (row.encode_s, row.decode_s))
        ratios = [row.bytes / first.bytes, min(first.encode_s) / min(row.encode_s), min(first.decode_s) / min(row.decode_s)]
        print(
            f"| {row.name} | {row.psnr_db:.2f} | {row.bytes * 8e-6 / megapixels:.3f} | {ratios[0]:.2f} | {encode:.2f} | {ratios[1]:.2f} "
            f"| {decode:.2f} | {ratios[2]:.2f} |"
        )


def _ours(codec: Codec, q: float) -> list[_Row]:
    """Encoding alone, and as workers do it: every symbol read back and compared, the picture that of the encoder's walk."""

    def verified(pixels: Pixels) -> bytes:
        symbols = codec.compress(codec.transform(Picture(pixels=pixels)), q, keep_walk=True)
        data = codec.pack(symbols)
        codec.decode_known(data, symbols)
        return data

    def decode(data: bytes) -> Pixels:
        return codec.decode(data)[0].pixels

    name = f"{codec.model.name}, q {q:g}"
    return [_Row(name, lambda pixels: codec.encode(Picture(pixels=pixels), q), decode), _Row(f"{name}, verified", verified, decode)]


def _matched(peer: Peer, pixels: Sequence[Pixels], target_db: float) -> _Row:
    """A peer at the setting whose mean PSNR is nearest, found by halving; settings are whole numbers, but for JPEG XL's distances."""
    low, high = float(peer.settings[0]), float(peer.settings[-1])
    whole = all(setting == int(setting) for setting in peer.settings)
    tried: dict[float, float] = {}
    for _ in range(_TRIES):
        # Distances fall by ratios.
        middle = round((low + high) / 2) if whole else float(np.sqrt(low * high))
        if middle not in tried:
            tried[middle] = _mean_db(peer, pixels, middle)
        if tried[middle] < target_db:
            low = middle
        else:
            high = middle
    setting = min(tried, key=lambda one: abs(tried[one] - target_db))
    return _Row(f"{peer.name} ({peer.version}), {setting:.3g}", lambda one: peer.encode(one, setting), peer.decode)


def _mean_db(peer: Peer, pixels: Sequence[Pixels], setting: float) -> float:
    return float(np.mean([metrics.psnr_db(metrics.mse(peer.decode(peer.encode(one, setting)), one)) for one in pixels]))


def _measure(row: _Row, pixels: Sequence[Pixels]) -> None:
    """One turn over all images."""
    started = _cpu_s()
    files = [row.encode(one) for one in pixels]
    between = _cpu_s()
    decoded = [row.decode(data) for data in files]
    row.encode_s.append(between - started)
    row.decode_s.append(_cpu_s() - between)
    row.bytes = sum(map(len, files))
    row.psnr_db = float(np.mean([metrics.psnr_db(metrics.mse(found, one)) for found, one in zip(decoded, pixels, strict=True)]))


def _cpu_s() -> float:
    """Of this process and of those that it started and that ended."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
