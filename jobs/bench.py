"""`msinn bench`: speed as ratios within one run, on real symbols and images."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("bench", help="measure the entropy coder or the codec on an image")
    p.add_argument("what", choices=("coder", "codec"))
    p.add_argument("image", metavar="IMAGE")
    p.add_argument("--q", type=float, default=5.0)
    p.add_argument("--repeat", type=int, default=5, metavar="N", help="best of N")
    p.add_argument("--model", default="msinn-lite")
    p.set_defaults(command=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    import torch

    from msinn_core.checkpoint import load_model
    from msinn_core.codec import Codec
    from pipeline import images
    from pipeline.errors import SourceError

    torch.set_num_threads(1)
    try:
        data = Path(arguments.image).read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {arguments.image}: {error.strerror}") from error
    loaded = images.load(data, max_pixels=32_000_000)
    if loaded.picture is None:
        raise SourceError(f"{arguments.image} cannot be coded: {loaded.message}")
    codec = Codec(load_model(arguments.model))
    if arguments.what == "coder":
        _coder(codec, codec.compress(codec.transform(loaded.picture), arguments.q), arguments.repeat)
    else:
        _codec(codec, loaded.picture, arguments.q, arguments.repeat)
    return 0


def _best(action: Callable[[], Any], repeat: int) -> tuple[float, Any]:
    """Least seconds of `repeat` calls, and the last result."""
    best, result = float("inf"), None
    for _ in range(repeat):
        started = time.perf_counter()
        result = action()
        best = min(best, time.perf_counter() - started)
    return best, result


def _coder(codec: Any, symbols: Any, repeat: int) -> None:
    """Our kernel, the portable form, constriction and compressai on the same symbols and tables."""
    import numpy as np

    from msinn_core.entropy import portable, rans

    tables = codec.model.tables
    flat, indexes = np.concatenate(symbols.symbols), np.concatenate(symbols.indexes)
    bits, base, size = tables.symbol_bits()
    position = flat - tables.offsets[indexes]
    inside = (position >= 0) & (position < size[indexes])
    entropy = float(bits[base[indexes] + np.where(inside, position, size[indexes])].sum(dtype=np.float64)) / 8
    print(
        f"{len(flat):,} symbols at q {symbols.q:g}, {len(tables.offsets)} tables, entropy of the tables {entropy:,.0f} bytes; "
        f"one thread, best of {repeat}"
    )
    print(f"{'coder':<34}{'encode M/s':>11}{'decode M/s':>11}{'bytes':>11}{'overhead':>10}")

    def show(name: str, encode_s: float, decode_s: float, size_bytes: int) -> None:
        million = len(flat) / 1e6
        print(f"{name:<34}{million / encode_s:>11.1f}{million / decode_s:>11.1f}{size_bytes:>11,}{100 * (size_bytes / entropy - 1):>9.3f}%")

    if rans.COMPILED:
        encode_s, data = _best(lambda: rans.encode(flat, indexes, tables), repeat)
        decode_s, back = _best(lambda: rans.decode(data, indexes, tables), repeat)
        assert np.array_equal(back, flat)
        show("msinn rANS (C kernel)", encode_s, decode_s, len(data))
    arrays = (tables.cdf, tables.starts, tables.offsets)
    out = np.empty(len(flat), np.int32)
    encode_s, slow = _best(lambda: portable.encode(flat, indexes, *arrays), 1)
    decode_s, _ = _best(lambda: portable.decode(slow, indexes, *arrays, tables.lookup, out), 1)
    show("msinn rANS (portable Python)", encode_s, decode_s, len(slow))
    for name, bench in (("constriction", _constriction), ("compressai", _compressai)):
        try:
            bench(flat, indexes, tables, repeat, show)
        except ImportError as error:
            print(f"{name:<34}not installed ({error.name}): pip install 'msinn[train,test]'")


def _constriction(flat: Any, indexes: Any, tables: Any, repeat: int, show: Any) -> None:
    """Range coder, symbols grouped by table, the sorting included. Outliers are clipped: it has no escapes, so its bytes are slightly too few."""
    import constriction
    import numpy as np

    models = [
        constriction.stream.model.Categorical(np.diff(tables.table(t).astype(np.float64)) / 65536, perfect=False) for t in range(len(tables.offsets))
    ]
    widths = np.diff(tables.starts) - 2
    plain = np.clip(flat - tables.offsets[indexes], 0, widths[indexes] - 1).astype(np.int32)

    def grouped() -> tuple[Any, Any]:
        order = np.argsort(indexes, kind="stable")
        return order, np.bincount(indexes, minlength=len(models))

    def encode() -> Any:
        order, counts = grouped()
        coder, start, ordered = constriction.stream.queue.RangeEncoder(), 0, plain[order]
        for t, count in enumerate(counts):
            if count:
                coder.encode(ordered[start : start + count], models[t])
            start += count
        return coder.get_compressed()

    def decode(words: Any) -> Any:
        order, counts = grouped()
        coder = constriction.stream.queue.RangeDecoder(words)
        parts = [coder.decode(models[t], int(count)) for t, count in enumerate(counts) if count]
        result = np.empty(len(indexes), np.int32)
        result[order] = np.concatenate(parts)
        return result

    encode_s, words = _best(encode, repeat)
    decode_s, back = _best(lambda: decode(words), repeat)
    assert np.array_equal(back, plain)
    show(
        f"constriction {constriction.__version__ if hasattr(constriction, '__version__') else ''} range, grouped",
        encode_s,
        decode_s,
        4 * len(words),
    )


def _compressai(flat: Any, indexes: Any, tables: Any, repeat: int, show: Any) -> None:
    """Its rANS as its users call it: Python lists in and out, the conversion included."""
    import numpy as np

    from msinn_core.training.compat import import_compressai

    ans = import_compressai().ans
    # Its tables end in the escape too, with cumulative counts from 0 to 65536.
    cdfs = [tables.table(t).tolist() for t in range(len(tables.offsets))]
    sizes = [len(cdf) for cdf in cdfs]
    offsets = tables.offsets.tolist()

    def encode() -> bytes:
        result: bytes = ans.RansEncoder().encode_with_indexes(flat.tolist(), indexes.tolist(), cdfs, sizes, offsets)
        return result

    encode_s, data = _best(encode, repeat)
    decode_s, back = _best(lambda: np.array(ans.RansDecoder().decode_with_indexes(data, indexes.tolist(), cdfs, sizes, offsets)), repeat)
    assert np.array_equal(back, flat)
    show("compressai rANS, lists", encode_s, decode_s, len(data))


def _codec(codec: Any, picture: Any, q: float, repeat: int) -> None:
    """Where the time of encoding, verifying and analysing goes."""
    height, width = picture.pixels.shape[:2]
    megapixels = width * height / 1e6
    transform_s, latents = _best(lambda: codec.transform(picture), repeat)
    compress_s, symbols = _best(lambda: codec.compress(latents, q), repeat)
    pack_s, data = _best(lambda: codec.pack(symbols), repeat)
    decode_s, _ = _best(lambda: codec.decode(data), repeat)
    curves_s, _ = _best(lambda: codec.curves(latents), repeat)
    encode_s = transform_s + compress_s + pack_s
    print(f"{width} x {height}, q {q:g}, {len(data):,} bytes; profile {codec.model.profile}, one thread, best of {repeat}")
    for name, seconds in (
        ("transform", transform_s), ("context and quantiser", compress_s), ("entropy coder and framing", pack_s), ("encode", encode_s),
        ("decode", decode_s), ("encode and verify", encode_s + decode_s), ("analyse (transform and curves)", transform_s + curves_s),
    ):  # fmt: skip
        print(f"{name:<32}{1e3 * seconds:>9.1f} ms{megapixels / seconds:>9.2f} Mpx/s{100 * seconds / encode_s:>8.0f} % of encode")
