"""`msinn bench codec`: where the time of encoding, verifying and analysing an image goes."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from msinn_core.codec import Codec
from msinn_core.coding import Latents
from msinn_core.entropy import rans
from msinn_core.integer import ops
from msinn_core.integer.ops import CORNERS, DENSE, EDGES, NUM_TAPS, POINT, Compiled
from msinn_core.model_file import load_model
from pipeline.lab.bench_common import MAX_PIXELS, best, loaded


def bench_codec(image: str, *, models: Sequence[str], q: float, repeat: int, threads: int) -> None:
    """Print the times of each step with each model, one after the other.

    Args:
        image: File.
        models: Names or files.
        q: Rate index.
        repeat: The best of so many calls counts.
        threads: Of the network.
    """
    import torch

    torch.set_num_threads(threads)
    picture = loaded(image)
    for which in models:
        _codec(Codec(load_model(which), threads=threads, max_pixels=MAX_PIXELS), picture, q, repeat, threads)


def _codec(codec: Any, picture: Any, q: float, repeat: int, threads: int) -> None:
    """Where the time of encoding, verifying and analysing goes."""
    height, width = picture.pixels.shape[:2]
    megapixels = width * height / 1e6
    transform_s, latents = best(lambda: codec.transform(picture), repeat)
    compress_s, symbols = best(lambda: codec.compress(latents, q), repeat)
    pack_s, data = best(lambda: codec.pack(symbols), repeat)
    decode_s, _ = best(lambda: codec.decode(data), repeat)
    verify_s = _verify_s(codec, latents, q, repeat) - compress_s - pack_s
    curves_s, _ = best(lambda: codec.curves(latents), repeat)
    encode_s = transform_s + compress_s + pack_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"\n{codec.model.name}, profile {codec.model.profile}: {width} x {height}, q {q:g}, {len(data):,} bytes; {threads} thread(s), "
        f"best of {repeat}; peak memory of the process so far {peak:,.0f} MiB"
    )
    for name, seconds in (
        ("transform", transform_s), ("context and quantiser", compress_s), ("entropy coder and framing", pack_s), ("encode", encode_s),
        ("decode", decode_s), ("encode and verify", encode_s + verify_s), ("analyse (transform and curves)", transform_s + curves_s),
    ):  # fmt: skip
        print(f"{name:<32}{1e3 * seconds:>9.1f} ms{megapixels / seconds:>9.2f} Mpx/s{100 * seconds / encode_s:>8.0f} % of encode")
    backend = getattr(getattr(codec.engine, "network", None), "backend", None)
    if isinstance(backend, Compiled):
        _shares("encode", lambda: codec.encode(picture, q), backend, threads, repeat)
        _shares("decode", lambda: codec.decode(data), backend, threads, repeat)


def _verify_s(codec: Codec, latents: Latents, q: float, repeat: int) -> float:
    """Seconds of compressing, packing and checking as workers do it: without a second walk where the first is exact."""

    def verified() -> None:
        symbols = codec.compress(latents, q, keep_walk=True)
        codec.decode_known(codec.pack(symbols), symbols)

    return best(verified, repeat)[0]


_GROUPS = {"conv": "layers", "unit": "flow", "mix": "flow", "couple": "flow", "levels": "tables", "dequantise": "tables", "refine": "tables",
           "quantise": "tables", "narrow": "tables"}  # fmt: skip
_KINDS = {DENSE: "3x3", EDGES: "4 neighbours", CORNERS: "centre, corners", POINT: "1x1"}
_MOST_ROWS = 10


@dataclass
class _Spent:
    """On layers of one shape: seconds of all threads, products, calls of the kernel."""

    seconds: float = 0.0
    products: int = 0
    calls: int = 0

    def add(self, seconds: float, products: int, calls: int = 1) -> None:
        self.seconds += seconds
        self.products += products
        self.calls += calls


class _Timed:
    """In place of the kernel: does the same, and sums up where the time goes."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self.groups: dict[str, float] = defaultdict(float)
        self.layers: dict[tuple[int, int, int], _Spent] = defaultdict(_Spent)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._kernel, name)
        return self.timed(_GROUPS[name], function) if name in _GROUPS else function

    def timed(self, group: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            started = time.thread_time()
            result = function(*arguments, **named)
            seconds = time.thread_time() - started
            self.groups[group] += seconds
            if group == "layers":
                width, cin, cout, kind = arguments[7:11]
                rows = arguments[14] - arguments[13]
                self.layers[kind, cin, cout].add(seconds, rows * width * cin * cout * NUM_TAPS[kind])
            return result

        return run


def _shares(name: str, action: Callable[[], Any], backend: Compiled, threads: int, repeat: int) -> None:
    """Shares of the call that took the least CPU time by kind of work, and how near layers come to what this machine can multiply."""
    total, timed = min((_measured(action) for _ in range(repeat)), key=lambda result: result[0])
    shares = ", ".join(f"{group} {100 * seconds / total:.0f} %" for group, seconds in sorted(timed.groups.items(), key=lambda item: -item[1]))
    rest = total - sum(timed.groups.values())
    whole = _Spent()
    for spent in timed.layers.values():
        whole.add(spent.seconds, spent.products, spent.calls)
    ceiling = ceiling_gmacs(backend, threads)
    rate = whole.products / whole.seconds / 1e9
    print(
        f"{name}, shares of CPU time: {shares}, arranging {100 * rest / total:.0f} %; layers at {rate:.0f} GMAC/s in int16, where {backend.name} "
        f"can do {ceiling:.0f} with operands in registers, on {threads} thread(s)" + " each" * (threads > 1)
    )
    shapes = sorted(timed.layers.items(), key=lambda item: -item[1].seconds)
    rows = [(f"{_KINDS[kind]}, {cin} to {cout} channels", spent) for (kind, cin, cout), spent in shapes]
    if len(rows) > _MOST_ROWS:
        others = _Spent()
        for _, spent in rows[_MOST_ROWS:]:
            others.add(spent.seconds, spent.products, spent.calls)
        rows[_MOST_ROWS:] = [(f"{len(rows) - _MOST_ROWS} other shapes", others)]
    print(f"  {'layers':<40}{'calls':>6}{'ms':>9}{'share':>8}{'GMAC/s':>8}  of ceiling")
    for label, spent in [*rows, ("all", whole)]:
        rate = spent.products / spent.seconds / 1e9
        print(
            f"  {label:<40}{spent.calls:>6}{1e3 * spent.seconds:>9.2f}{100 * spent.seconds / total:>6.0f} %{rate:>8.0f}{100 * rate / ceiling:>8.0f} %"
        )


def _measured(action: Callable[[], Any]) -> tuple[float, _Timed]:
    """CPU seconds of a call, in all threads, and where they go."""
    timed = _Timed(ops.kernel)
    before = ops.kernel, rans.encode, rans.decode
    ops.kernel, rans.encode, rans.decode = timed, timed.timed("entropy coder", rans.encode), timed.timed("entropy coder", rans.decode)
    try:
        started = time.process_time()
        action()
        return time.process_time() - started, timed
    finally:
        ops.kernel, rans.encode, rans.decode = before


def ceiling_gmacs(backend: Compiled, threads: int) -> float:
    """Products of int16 with operands in registers, in 10^9 a second, that each of so many threads at once can do: the best of short turns."""

    def turn(rounds: int) -> float:
        started = time.thread_time()
        products: int = ops.kernel.ceiling(rounds, backend.level)
        return products / max(1e-9, time.thread_time() - started) / 1e9

    # Turns of about a fifth of a millisecond: short, so that some are not disturbed.
    products = ops.kernel.ceiling(1, backend.level)
    rounds = int(2e5 * max(turn(10_000) for _ in range(5)) / products)
    with ThreadPoolExecutor(threads) as pool:
        return max(sum(pool.map(turn, [rounds] * threads)) / threads for _ in range(100))
