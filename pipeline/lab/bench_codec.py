"""`msinn bench codec`: where the time of encoding, verifying and analysing an image goes."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from msinn_core.codec import Codec
from msinn_core.coding import Latents
from msinn_core.entropy import rans
from msinn_core.integer.ops import Compiled
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
        _shares("encode", lambda: codec.encode(picture, q), backend, threads)
        _shares("decode", lambda: codec.decode(data), backend, threads)


def _verify_s(codec: Codec, latents: Latents, q: float, repeat: int) -> float:
    """Seconds of compressing, packing and checking as workers do it: without a second walk where the first is exact."""

    def verified() -> None:
        symbols = codec.compress(latents, q, keep_walk=True)
        codec.decode_known(codec.pack(symbols), symbols)

    return best(verified, repeat)[0]


_GROUPS = {"conv": "layers", "unit": "flow", "mix": "flow", "couple": "flow", "levels": "tables", "dequantise": "tables", "refine": "tables",
           "quantise": "tables", "narrow": "tables"}  # fmt: skip


def _shares(name: str, action: Callable[[], Any], backend: Any, threads: int) -> None:
    """Shares of one call by kind of work, and how near the layers come to what the machine's GEMM can do."""
    spent: dict[str, float] = defaultdict(float)
    products = 0

    def timed(group: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal products
            started = time.perf_counter()
            result = call(*arguments, **named)
            spent[group] += time.perf_counter() - started
            if group == "layers":
                products += arguments[0].shape[0] * arguments[0].shape[1] * arguments[1].weight.size
            return result

        return run

    before = rans.encode, rans.decode
    rans.encode, rans.decode = (timed("entropy coder", call) for call in before)
    for method, group in _GROUPS.items():
        setattr(backend, method, timed(group, getattr(backend, method)))
    try:
        started = time.perf_counter()
        action()
        total = time.perf_counter() - started
    finally:
        rans.encode, rans.decode = before
        for method in _GROUPS:
            delattr(backend, method)
    rest = total - sum(spent.values())
    shares = ", ".join(f"{group} {100 * seconds / total:.0f} %" for group, seconds in sorted(spent.items(), key=lambda item: -item[1]))
    rate = products / spent["layers"] / 1e9
    ceiling = _int8_gemm()
    print(
        f"{name}: {shares}, arranging {100 * rest / total:.0f} %; layers at {rate:.0f} GMAC/s in int16, {100 * rate / ceiling:.0f} % of this "
        f"machine's int8 GEMM on as many threads ({ceiling:.0f} GMAC/s; int16 can reach half)"
    )


def _int8_gemm() -> float:
    """GMAC/s of `torch._int_mm` at 2048 x 1152 x 128."""
    import torch

    a, b = (torch.randint(-64, 64, shape, dtype=torch.int8) for shape in ((2048, 1152), (1152, 128)))
    seconds, _ = best(lambda: torch._int_mm(a, b), 20)
    return 2048 * 1152 * 128 / seconds / 1e9
