"""`msinn bench`: speed as ratios within one run, on real symbols and images; errors of predictions; the plan of very many images."""

from __future__ import annotations

import argparse
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import bench_run


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("bench", help="measure the entropy coder or the codec, or prove that decoding is exact here")
    actions = p.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, text, run in (
        ("coder", "our rANS, constriction and compressai on the symbols of an image", _bench_coder),
        ("codec", "encode, decode, verify and analyse an image with each model", _bench_codec),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("image", metavar="IMAGE")
        action.add_argument("--q", type=float, default=5.0)
        action.add_argument("--repeat", type=int, default=5, metavar="N", help="best of N")
        action.add_argument("--model", nargs="+", default=["msinn-lite"] if name == "coder" else ["msinn-lite-float", "msinn-lite"], metavar="M")
        action.add_argument("--threads", type=int, default=1, metavar="N")
        action.set_defaults(command=run)
    action = actions.add_parser("exact", help="decode images with every backend, instruction set and thread count, and compare SHA-256")
    action.add_argument("images", metavar="IMAGES")
    action.add_argument("--q", type=float, default=5.0)
    action.add_argument("--model", nargs="+", default=["msinn-lite"], metavar="M", help="of either profile")
    action.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    action.set_defaults(command=_bench_exact)
    action = actions.add_parser("predict", help="predicted bytes and PSNR against real encodes at nine rates, and what the analysis costs")
    action.add_argument("images", metavar="IMAGES")
    action.add_argument("--model", default="msinn-lite", metavar="M")
    action.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    action.set_defaults(command=_bench_predict)
    action = actions.add_parser("plan", help="plan simulated images by histograms, and compare with the exact solver on the first 100000")
    action.add_argument("--images", type=int, default=10_000_000, metavar="N")
    action.add_argument("--objective", choices=("mse", "psnr", "minimum"), default="mse")
    action.set_defaults(command=_bench_plan)
    bench_run.add_actions(actions)


def _loaded(path: str) -> Any:
    from pipeline.errors import SourceError
    from pipeline.formats import images

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    loaded = images.load(data, max_pixels=200_000_000)
    if loaded.picture is None:
        raise SourceError(f"{path} cannot be coded: {loaded.message}")
    return loaded.picture


def _bench_coder(arguments: argparse.Namespace) -> int:
    import torch

    from msinn_core.codec import Codec
    from msinn_core.model_file import load_model

    torch.set_num_threads(arguments.threads)
    picture = _loaded(arguments.image)
    codec = Codec(load_model(arguments.model[0]))
    _coder(codec, codec.compress(codec.transform(picture), arguments.q), arguments.repeat)
    return 0


def _bench_codec(arguments: argparse.Namespace) -> int:
    import torch

    from msinn_core.codec import Codec
    from msinn_core.model_file import load_model

    torch.set_num_threads(arguments.threads)
    picture = _loaded(arguments.image)
    for which in arguments.model:
        codec = Codec(load_model(which), threads=arguments.threads, max_pixels=200_000_000)
        _codec(codec, picture, arguments.q, arguments.repeat, arguments.threads)
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


def _codec(codec: Any, picture: Any, q: float, repeat: int, threads: int) -> None:
    """Where the time of encoding, verifying and analysing goes."""
    from msinn_core.integer.ops import Compiled

    height, width = picture.pixels.shape[:2]
    megapixels = width * height / 1e6
    transform_s, latents = _best(lambda: codec.transform(picture), repeat)
    compress_s, symbols = _best(lambda: codec.compress(latents, q), repeat)
    pack_s, data = _best(lambda: codec.pack(symbols), repeat)
    decode_s, _ = _best(lambda: codec.decode(data), repeat)
    curves_s, _ = _best(lambda: codec.curves(latents), repeat)
    encode_s = transform_s + compress_s + pack_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"\n{codec.model.name}, profile {codec.model.profile}: {width} x {height}, q {q:g}, {len(data):,} bytes; {threads} thread(s), "
        f"best of {repeat}; peak memory of the process so far {peak:,.0f} MiB"
    )
    for name, seconds in (
        ("transform", transform_s), ("context and quantiser", compress_s), ("entropy coder and framing", pack_s), ("encode", encode_s),
        ("decode", decode_s), ("encode and verify", encode_s + decode_s), ("analyse (transform and curves)", transform_s + curves_s),
    ):  # fmt: skip
        print(f"{name:<32}{1e3 * seconds:>9.1f} ms{megapixels / seconds:>9.2f} Mpx/s{100 * seconds / encode_s:>8.0f} % of encode")
    backend = getattr(getattr(codec.engine, "network", None), "backend", None)
    if isinstance(backend, Compiled):
        _shares("encode", lambda: codec.encode(picture, q), backend, threads)
        _shares("decode", lambda: codec.decode(data), backend, threads)


_GROUPS = {"conv": "layers", "unit": "flow", "mix": "flow", "couple": "flow", "levels": "tables", "dequantise": "tables", "refine": "tables",
           "quantise": "tables", "narrow": "tables"}  # fmt: skip


def _shares(name: str, action: Callable[[], Any], backend: Any, threads: int) -> None:
    """Shares of one call by kind of work, and how near the layers come to what the machine's GEMM can do."""
    from msinn_core.entropy import rans

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
    seconds, _ = _best(lambda: torch._int_mm(a, b), 20)
    return 2048 * 1152 * 128 / seconds / 1e9


def _bench_exact(arguments: argparse.Namespace) -> int:
    """Bitstreams of one configuration, decoded by all others."""
    import hashlib

    import torch

    from msinn_core.codec import Codec
    from msinn_core.errors import CodecError
    from msinn_core.integer import ops, portable
    from msinn_core.model_file import load_model
    from msinn_core.picture import Picture
    from pipeline.lab.evaluation import pictures

    names = {ops.AVX512: "AVX-512 VNNI", ops.AVX2: "AVX2", ops.SSE41: "SSE4.1", ops.SCALAR: "scalar"}
    differing = 0
    for which in arguments.model:
        model = load_model(which)
        configurations: list[tuple[str, int, Any]] = [("torch float32, 1 thread", 1, None), ("torch float32, 2 threads", 2, None)]
        if model.profile == "int":
            best = ops.kernel.isa() if ops.kernel else -1
            configurations = [
                (f"compiled, {names[isa]}, {threads} thread(s)", threads, ops.Compiled(threads, isa))
                for isa in range(best, -1, -1)
                for threads in (1, 2)
            ] + [("portable float64", 1, portable.Portable())]
        first: dict[str, tuple[bytes, bytes]] = {}
        print(f"{model.name}, profile {model.profile}, q {arguments.q:g}: the first row's files decoded by each row; each row's files against them")
        for label, threads, backend in configurations:
            torch.set_num_threads(threads)
            try:
                codec = Codec(model, threads=threads, backend=backend, max_pixels=200_000_000)
            except CodecError as error:
                print(f"  {label:<34} FAILS: {error}")
                differing += 1
                continue
            other_pixels = other_streams = failed = 0
            for name, pixels in pictures(arguments.images, arguments.limit):
                picture = Picture(pixels=pixels)
                data = codec.encode(picture, arguments.q)
                if name not in first:
                    first[name] = data, hashlib.sha256(codec.decode(data)[0].content()).digest()
                reference, digest = first[name]
                other_streams += data != reference
                try:
                    other_pixels += hashlib.sha256(codec.decode(reference)[0].content()).digest() != digest
                except CodecError:
                    failed += 1
            differing += other_pixels + failed
            said = f"{other_pixels} decode to other pixels, {failed} do not decode; {other_streams} other bitstreams"
            print(f"  {label:<34} of {len(first)} images: {said}")
    return 5 if differing else 0


def _bench_predict(arguments: argparse.Namespace) -> int:
    import numpy as np
    import torch

    from msinn_core import metrics
    from msinn_core.codec import Codec
    from msinn_core.model_file import load_model
    from pipeline.formats import images
    from pipeline.plan.curves import CurveSet
    from pipeline.sources import Fetcher, scan

    torch.set_num_threads(1)
    codec, fetcher = Codec(load_model(arguments.model)), Fetcher()
    rates, grid = np.linspace(0, codec.q_max, 9), np.arange(int(codec.q_max) + 1, dtype=np.float64)
    real: list[Any] = []
    predicted: dict[Any, list[Any]] = defaultdict(list)
    seconds: dict[Any, float] = defaultdict(float)
    for record in scan(arguments.images).records[: arguments.limit]:
        picture = images.load(fetcher.fetch(record.part), max_pixels=200_000_000, name=record.name).picture
        if picture is None:
            continue
        found = []
        for q in rates:
            started = time.perf_counter()
            data = codec.encode(picture, float(q))
            encoded = time.perf_counter()
            decoded, _ = codec.decode(data)
            found.append((len(data), metrics.mse(decoded.pixels, picture.pixels)))
            seconds["encode"] += (encoded - started) / len(rates)
            seconds["encode and verify"] += (time.perf_counter() - started) / len(rates)
        real.append(found)
        for name, sampled in (("full", False), ("sampled", True)):
            started = time.perf_counter()
            curves = codec.analyse(picture, sampled=sampled)
            seconds[name] += time.perf_counter() - started
            at = CurveSet.from_anchors(grid, curves.bytes[None], curves.mse[None], np.ones(1), np.full(1, np.inf))
            place = [int(np.abs(at.q - q).argmin()) for q in rates]
            predicted[name].append(np.stack((at.stored[0, place], at.mse[0, place]), axis=1))
    actual = np.array(real)
    print(f"{len(real)} images, one thread; each rate: error of the sum of bytes, of an image's bytes (std), of its PSNR (mean and std)")
    for name, values in predicted.items():
        guess = np.array(values)
        total = guess[..., 0].sum(axis=0) / actual[..., 0].sum(axis=0) - 1
        single = np.log(guess[..., 0] / actual[..., 0]).std(axis=0)
        decibels = 10 * np.log10(actual[..., 1] / guess[..., 1])
        shares = [seconds[name] / seconds[what] for what in ("encode", "encode and verify")]
        print(f"{name} analysis: {shares[0]:.2f} of encode, {shares[1]:.2f} of encode and verify")
        for i, q in enumerate(rates):
            print(
                f"  q {q:5.2f}  {100 * total[i]:+6.2f} %  {100 * single[i]:5.2f} %  {decibels[:, i].mean():+5.2f} dB  {decibels[:, i].std():4.2f} dB"
            )
    return 0


def _bench_plan(arguments: argparse.Namespace) -> int:
    import numpy as np

    from pipeline.plan.allocation import Upgrades, allocate, tie_breaks
    from pipeline.plan.curves import CurveSet
    from pipeline.plan.histogram import SlopeHistogram, quick_threshold, threshold_for

    anchors, chunk = np.arange(12.0), 8192

    def curves(start: int, count: int) -> CurveSet:
        """Exponents differ between images and from anchor to anchor; a tenth of the curves is not convex, as with photographs."""
        rng = np.random.default_rng(start)
        pixels = rng.uniform(2e5, 1.2e7, count)
        rise, fall = rng.normal(0.29, 0.04, (count, 1)), rng.normal(0.42, 0.06, (count, 1))
        size = rng.normal(-3.4, 0.6, (count, 1)) + np.log(pixels)[:, None] + np.cumsum(rng.normal(rise, 0.015, (count, 12)), axis=1)
        error = rng.normal(4.2, 0.7, (count, 1)) - np.cumsum(rng.normal(fall, 0.015, (count, 12)), axis=1)
        original = np.exp(size[:, 6]) * rng.uniform(1, 20, count)
        return CurveSet.from_anchors(anchors, np.exp(size) + 768, np.exp(error), pixels, original)

    def parts(images: int) -> Any:
        for start in range(0, images, chunk):
            count = min(chunk, images - start)
            yield Upgrades.of(curves(start, count), arguments.objective, ties=tie_breaks(np.arange(start, start + count)))

    def planned(images: int) -> tuple[SlopeHistogram, float]:
        wide = SlopeHistogram()
        for part in parts(images):
            wide.add(part)
        budget = wide.least() * 3
        return wide, quick_threshold(wide, budget)

    started = time.perf_counter()
    wide, threshold = planned(arguments.images)
    took = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{arguments.images:,} images planned in {took:.1f} s (curves made on the way), peak memory {memory:.2f} GiB, threshold {threshold:.6f}")
    few = min(100_000, arguments.images)
    wide, threshold = planned(few)
    budget = wide.least() * 3
    quick = sum(part.at(threshold).total_bytes for part in parts(few))
    exact_threshold = threshold_for(lambda: parts(few), budget, wide=wide)
    walked = sum(part.at(exact_threshold).total_bytes for part in parts(few))
    every = [curves(start, min(chunk, few - start)) for start in range(0, few, chunk)]
    together = CurveSet(every[0].q, *(np.concatenate([getattr(one, name) for one in every]) for name in ("stored", "mse", "pixels", "original")))
    exact = allocate(together, budget, objective=arguments.objective).total_bytes
    print(f"{few:,} images against the exact solver: histogram {100 * (quick / exact - 1):+.5f} %, walked twice {100 * (walked / exact - 1):+.5f} %")
    return 0
