"""`msinn bench coder`: our rANS, its portable form, constriction and compressai on the symbols of an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from msinn_core.codec import Codec
from msinn_core.entropy import portable, rans
from msinn_core.model_file import load_model
from pipeline.lab.bench_common import best, loaded


def bench_coder(image: str, *, model: str, q: float, repeat: int, threads: int) -> None:
    """Print symbols per second and bytes of each coder, on the same symbols and tables.

    Args:
        image: File.
        model: Name or file.
        q: Rate index.
        repeat: The best of so many calls counts.
        threads: Of torch; the coders have one.
    """
    import torch

    torch.set_num_threads(threads)
    codec = Codec(load_model(model))
    _coder(codec, codec.compress(codec.transform(loaded(image)), q), repeat)


def _coder(codec: Any, symbols: Any, repeat: int) -> None:
    """Our kernel, the portable form, constriction and compressai on the same symbols and tables."""
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
        encode_s, data = best(lambda: rans.encode(flat, indexes, tables), repeat)
        decode_s, back = best(lambda: rans.decode(data, indexes, tables), repeat)
        assert np.array_equal(back, flat)
        show("msinn rANS (C kernel)", encode_s, decode_s, len(data))
    arrays = (tables.cdf, tables.starts, tables.offsets)
    out = np.empty(len(flat), np.int32)
    encode_s, slow = best(lambda: portable.encode(flat, indexes, *arrays), 1)
    decode_s, _ = best(lambda: portable.decode(slow, indexes, *arrays, tables.lookup, out), 1)
    show("msinn rANS (portable Python)", encode_s, decode_s, len(slow))
    for name, bench in (("constriction", _constriction), ("compressai", _compressai)):
        try:
            bench(flat, indexes, tables, repeat, show)
        except ImportError as error:
            print(f"{name:<34}not installed ({error.name}): pip install 'msinn[train,test]'")


def _constriction(flat: Any, indexes: Any, tables: Any, repeat: int, show: Any) -> None:
    """Range coder, symbols grouped by table, the sorting included. Outliers are clipped: it has no escapes, so its bytes are slightly too few."""
    import constriction

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

    encode_s, words = best(encode, repeat)
    decode_s, back = best(lambda: decode(words), repeat)
    assert np.array_equal(back, plain)
    show(
        f"constriction {constriction.__version__ if hasattr(constriction, '__version__') else ''} range, grouped",
        encode_s,
        decode_s,
        4 * len(words),
    )


def _compressai(flat: Any, indexes: Any, tables: Any, repeat: int, show: Any) -> None:
    """Its rANS as its users call it: Python lists in and out, the conversion included."""

    from msinn_core.training.compat import import_compressai

    ans = import_compressai().ans
    # Its tables end in the escape too, with cumulative counts from 0 to 65536.
    cdfs = [tables.table(t).tolist() for t in range(len(tables.offsets))]
    sizes = [len(cdf) for cdf in cdfs]
    offsets = tables.offsets.tolist()

    def encode() -> bytes:
        result: bytes = ans.RansEncoder().encode_with_indexes(flat.tolist(), indexes.tolist(), cdfs, sizes, offsets)
        return result

    encode_s, data = best(encode, repeat)
    decode_s, back = best(lambda: np.array(ans.RansDecoder().decode_with_indexes(data, indexes.tolist(), cdfs, sizes, offsets)), repeat)
    assert np.array_equal(back, flat)
    show("compressai rANS, lists", encode_s, decode_s, len(data))
