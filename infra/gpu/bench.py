"""Everything that is open about a GPU, answered in minutes: exactness both ways, speed, where the time goes. Called by bench.sh; writes one JSON.

Each stage stands alone and is skipped, with a word, when its time is up: what is printed is what was measured on this machine in this run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from infra.gpu import launches, tiles
from infra.gpu.end_to_end import end_to_end
from msinn_core.codec import Codec
from msinn_core.coding import Symbols
from msinn_core.config import preset
from msinn_core.entropy.first_stream import StreamCoder
from msinn_core.flight import IN_FLIGHT
from msinn_core.float.model import Msinn
from msinn_core.integer.engine import golden_digest
from msinn_core.integer.gpu import layers as gpu_layers
from msinn_core.integer.gpu.backend import OnDevice, on_device
from msinn_core.integer.gpu.engine import DeviceEngine
from msinn_core.integer.network import IntegerNetwork
from msinn_core.integer.ops import Compiled
from msinn_core.integer.packing import pack
from msinn_core.integer.portable import Float64Layers
from msinn_core.model_file import LoadedModel, integer_model_bytes, load_model, parse_model
from msinn_core.picture import Picture

SIZES = ((2, 3, 5, 6), (6, 32, 40, 48), (48, 48, 30, 26), (96, 64, 12, 16), (12, 16, 64, 64), (192, 160, 9, 8), (64, 96, 31, 8))
"""Channels in and out, rows and columns, of the layers whose exactness is tested."""

RATES = (2.0, 4.5, 7.0, 10.0)


def main() -> None:
    """Run the stages."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("images", type=Path, help="folder of PNG")
    p.add_argument("--out", type=Path, required=True, help="JSON to write")
    p.add_argument("--device", default="cuda")
    p.add_argument("--model", default="msinn-lite")
    p.add_argument("--threads", type=int, default=16, help="of the host")
    p.add_argument("--seconds", type=float, default=300, help="no stage begins after this")
    p.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    p.add_argument("--files", type=int, default=300, help="of the runs end to end")
    p.add_argument("--tiles", action="store_true", help="try other sizes of blocks too: a minute more")
    p.add_argument("--limit", type=int, default=1000, help="images")
    arguments = p.parse_args()
    bench = Bench(arguments)
    stages = [bench.machine, bench.compile, bench.layers, bench.golden, bench.kodak, bench.launches, bench.network, bench.profile, bench.scales]
    stages += [bench.paper, bench.end_to_end]
    for stage in stages + ([bench.tiles, bench.tuned] if arguments.tiles else []):
        bench.run(stage)
        arguments.out.write_text(json.dumps(bench.found, indent=1))  # after each: what a time limit cuts off costs no other stage
    print(table_of(bench.found), flush=True)
    differs = []
    for name in ("layers", "kodak", "scales", "paper", "end_to_end"):
        found = bench.found[name] if isinstance(bench.found[name], list) else [bench.found[name]]
        differs += [f"{name}: {key}" for row in found if isinstance(row, dict) for key, count in row.items() if "different" in key and count]
    if bench.found["golden"] is False:
        differs.append("golden vector")
    if bench.failed or differs:
        sys.exit(f"failed: {', '.join(bench.failed) or 'nothing'}; not exact: {', '.join(differs) or 'nothing'}; see {arguments.out}")


class Bench:
    """The stages and what they found."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.started = time.perf_counter()
        self.found: dict[str, Any] = {}
        self.failed: list[str] = []
        self.best: dict[tuple[int, int, int], gpu_layers.Tile] = {}
        self.model = load_model(arguments.model)
        self.pictures = [np.asarray(Image.open(path).convert("RGB"), np.uint8) for path in sorted(arguments.images.glob("*.png"))[: arguments.limit]]
        self.codec = Codec(self.model, threads=1)
        self.on_gpu = self._on_gpu(self.model)
        assert isinstance(self.on_gpu.engine, DeviceEngine)
        self.engine = self.on_gpu.engine

    def _on_gpu(self, model: LoadedModel) -> Codec:
        """A codec on the device, whose golden vector nobody has looked at."""
        layers = gpu_layers.triton_layers(self.device) or Float64Layers()
        network = IntegerNetwork(model.config, model.integer, on_device(self.device, layers))
        codec = Codec(model, threads=1)
        codec.engine = DeviceEngine(network, StreamCoder(model.tables, model.weights), self.arguments.threads)
        return codec

    @cached_property
    def paper_model(self) -> LoadedModel:
        """A network of the paper's size with weights of chance: what it costs is the same."""
        torch.manual_seed(0)
        config = preset("msinn-base")
        packed = pack(Msinn(config).eval(), [torch.rand(1, 3, 64, 64)])
        golden = golden_digest(IntegerNetwork(config, packed, Compiled()))
        return parse_model(integer_model_bytes(config, packed, golden, name="paper-size"))

    def run(self, stage: Callable[[], Any]) -> None:
        """One stage, with its time."""
        name, since = stage.__name__, time.perf_counter()
        if since - self.started > self.arguments.seconds:
            self.found[name] = "no time left"
            return
        try:
            self.found[name] = stage()
        except Exception:  # machine time is scarce: the other stages still answer, and the exit code tells
            self.found[name] = traceback.format_exc(limit=4)
            self.failed.append(name)
        print(f"{name}: {time.perf_counter() - since:.1f} s: {str(self.found[name])[:1800]}", flush=True)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _time(self, run: Callable[[], Any], repeat: int = 5, warm: int = 1) -> float:
        """Median seconds, the device drained before and after."""
        for _ in range(warm):
            run()
        spent = []
        for _ in range(repeat):
            self._wait()
            since = time.perf_counter()
            run()
            self._wait()
            spent.append(time.perf_counter() - since)
        return statistics.median(spent)

    # Stages ----------------------------------------------------------------------------------------------------------------------------------------

    def machine(self) -> dict[str, Any]:
        """What runs here, and its copy rates."""
        found: dict[str, Any] = {"torch": torch.__version__, "layers": type(self.engine.network.backend._convolution).__name__}  # type: ignore[attr-defined]
        if self.device.type == "cuda":
            found["gpu"] = torch.cuda.get_device_name()
            host = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
            there = torch.empty(1 << 28, dtype=torch.uint8, device=self.device)
            found["to_device_gb_s"] = round((1 << 28) / self._time(lambda: there.copy_(host, non_blocking=True)) / 1e9, 1)
            found["to_host_gb_s"] = round((1 << 28) / self._time(lambda: host.copy_(there, non_blocking=True)) / 1e9, 1)
            other = torch.empty_like(there)
            found["device_copy_gb_s"] = round(2 * (1 << 28) / self._time(lambda: other.copy_(there), 20) / 1e9)
            a = torch.randn(4096, 4096, dtype=torch.float64, device=self.device)
            found["float64_tflop_s"] = round(2 * 4096**3 / self._time(lambda: a @ a) / 1e12, 1)
        return found

    def compile(self) -> dict[str, Any]:
        """Everything that will run, compiled on all cores."""
        if self.device.type != "cuda":
            return {}
        jobs: dict[Any, tuple[int, int, int, bool, gpu_layers.Tile]] = {}
        for kind, (cin, cout, _, _), adds in itertools.product(range(4), SIZES, (False, True)):
            tile = gpu_layers.tile_for(kind, cin, cout)
            jobs[kind, adds, tile, cin, cout % 16 == 0] = (kind, cin, cout, adds, tile)
        for kind, cin, cout, _ in tiles.SHAPES if self.arguments.tiles else ():
            for tile in tiles.candidates(cin, cout):
                jobs[kind, False, tile, cin, cout % 16 == 0] = (kind, cin, cout, False, tile)
        count = self.arguments.threads
        models = {"lite": self.model.data, "paper": self.paper_model.data}
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as processes:
            shares = {name: [processes.submit(launches.compile_share, data, i, count) for i in range(count)] for name, data in models.items()}
            list(processes.map(tiles.compile_some, [list(jobs.values())[i::count] for i in range(count)]))
            return {"of_chance": len(jobs), **{name: sum(share.result() for share in of) for name, of in shares.items()}}

    def layers(self) -> dict[str, Any]:
        """Random layers of every kind, at the bounds too, against the C kernel."""
        rng, device = np.random.default_rng(1), self.device
        convolution = self.engine.network.backend._convolution  # type: ignore[attr-defined]
        different = count = 0
        for kind in range(4):
            for cin, cout, h, w in SIZES:
                for large in (False, True):
                    layer = tiles.random_layer(rng, kind, cin, cout, large=large)
                    x = rng.integers(-32768, 32768, (2, h, w, cin)).astype(np.int16)
                    add = rng.integers(-32768, 32768, (2, h, w, cout)).astype(np.int16) if large else None
                    for parity in (0, 1):
                        placed = None if add is None else torch.from_numpy(add).to(device)
                        ours = convolution(torch.from_numpy(x).to(device), layer, parity, placed).cpu().numpy()
                        theirs = [Compiled().conv(x[i], layer, parity=parity, add=None if add is None else add[i]) for i in range(2)]
                        different += not np.array_equal(ours, np.stack(theirs))
                        count += 1
        return {"layers": count, "different": different}

    def golden(self) -> bool:
        """Whether the model's golden vector comes out."""
        return golden_digest(self.engine.network) == self.model.golden

    def kodak(self) -> dict[str, Any]:
        """Every image at four rates: coded by each, decoded by the other."""
        cases = [(Picture(pixels=pixels), RATES[i % len(RATES)]) for i, pixels in enumerate(self.pictures)]
        with ThreadPoolExecutor(self.arguments.threads) as threads:
            codecs = [Codec(self.model) for _ in cases]
            by_cpu = list(threads.map(lambda codec, case: codec.encode(*case), codecs, cases))
            by_gpu = self.on_gpu.encode_many([case[0] for case in cases], [case[1] for case in cases])
            cpu_of_gpu = list(threads.map(lambda codec, data: codec.decode(data)[0].pixels, codecs, by_gpu))
        gpu_of_cpu, gpu_of_gpu = self.on_gpu.decode_many(by_cpu), self.on_gpu.decode_many(by_gpu)

        def pixels(result: Any) -> Any:
            return result[0].pixels if isinstance(result, tuple) else None

        with ThreadPoolExecutor(self.arguments.threads) as threads:
            cpu_of_cpu = list(threads.map(lambda codec, data: codec.decode(data)[0].pixels, codecs, by_cpu))
        self.bitstreams = by_cpu
        return {
            "images": len(cases),
            "bitstreams_different": sum(a != b for a, b in zip(by_cpu, by_gpu, strict=True)),
            "pixels_different_of_cpu_streams": sum(not np.array_equal(a, pixels(b)) for a, b in zip(cpu_of_cpu, gpu_of_cpu, strict=True)),
            "pixels_different_of_gpu_streams": sum(not np.array_equal(a, pixels(b)) for a, b in zip(cpu_of_gpu, gpu_of_gpu, strict=True)),
        }

    def _batch(self, n: int) -> NDArray[np.uint8]:
        pictures = [x if x.shape[1] >= x.shape[0] else np.rot90(x) for x in self.pictures]
        return np.stack([np.ascontiguousarray(pictures[i % len(pictures)][:512, :768]) for i in range(n)])

    def network(self) -> list[dict[str, Any]]:
        """Mpx/s by batch."""
        return [self._measured(n, self.on_gpu) for n in self.arguments.batches]

    def paper(self) -> dict[str, Any]:
        """The same of a network of the paper's size; and whether it gives the CPU's bytes and pixels."""
        codec, on_gpu = Codec(self.paper_model, threads=self.arguments.threads), self._on_gpu(self.paper_model)
        picture = Picture(pixels=np.ascontiguousarray(self.pictures[0][:256, :384]))
        data = codec.encode(picture, 6.0)
        different = {
            "golden_different": int(golden_digest(on_gpu.engine.network) != self.paper_model.golden),  # type: ignore[attr-defined]
            "bitstreams_different": int(on_gpu.encode(picture, 6.0) != data),
            "pixels_different": int(not np.array_equal(on_gpu.decode(data)[0].pixels, codec.decode(data)[0].pixels)),
        }
        return {**different, "rows": [self._measured(n, on_gpu) for n in self.arguments.batches]}

    def launches(self) -> dict[str, Any]:
        """Of a batch, counted on the CPU, whatever its size: with one kernel for each operation between the layers, and in torch."""
        found: dict[str, Any] = {}
        try:
            layers = gpu_layers.TritonLayers()
        except ImportError:
            return found
        for name, model in (("lite", self.model), ("paper", self.paper_model)):
            for form, make in (("fused", on_device), ("in_torch", OnDevice)):
                network = IntegerNetwork(model.config, model.integer, make(torch.device("cpu"), layers))
                engine = DeviceEngine(network, StreamCoder(model.tables, model.weights), 1)
                shape = 2, 4, 6
                counts = {"decode": launches.of_decode(engine, shape).counts, "encode": launches.of_encode(engine, shape).counts}
                found[f"{name} {form}"] = {what: {"all": of.total(), "layers": of["triton conv"]} for what, of in counts.items()}
        return found

    def scales(self) -> list[dict[str, Any]]:
        """Pictures decoded at a scale, in batches and one by one: Mpx/s of the full pictures; and how many differ from the CPU's."""
        count = max(self.arguments.batches)
        pictures = [Picture(pixels=one) for one in self._batch(count)]
        data = self.on_gpu.encode_many(pictures, [RATES[i % len(RATES)] for i in range(count)])
        megapixels = sum(picture.pixels.size for picture in pictures) / 3e6
        rows = []
        for scale in self.on_gpu.heads:
            parts: list[tuple[bytes | memoryview, bytes | None]] = [(one, None) for one in data]
            found = self.on_gpu.decode_reduced_batch(parts, scale)
            expected = [self.codec.decode_reduced(one, scale) for one in data[:4]]
            some = [isinstance(a, Picture) and np.array_equal(a.pixels, b.pixels) for a, b in zip(found, expected, strict=False)]
            batch = self._time(partial(self.on_gpu.decode_reduced_batch, parts, scale), 3)
            alone = self._time(partial(self.on_gpu.decode_reduced, data[0], scale), 3)
            row = {"scale": scale, "batch": count, "mpx_s": round(megapixels / batch, 1), "one_by_one_mpx_s": round(megapixels / count / alone, 1)}
            rows.append({**row, "different": some.count(False)})
            print(rows[-1], flush=True)
        return rows

    def _measured(self, n: int, codec: Codec) -> dict[str, Any]:
        """The parts alone, and whole batches from and to host memory, one after the other and three in flight."""
        engine, pixels = codec.engine, self._batch(n)
        assert isinstance(engine, DeviceEngine)
        shape = (pixels.shape[1] // 16, pixels.shape[2] // 16)
        megapixels = n * pixels.shape[1] * pixels.shape[2] / 1e6
        rates = [RATES[i % len(RATES)] for i in range(n)]
        latents = engine.transform_many(pixels)

        def entropy_encode(coded: Any) -> list[bytes]:
            streams = [(n, *pair) for symbols, indexes, _ in coded for n, pair in enumerate(zip(symbols, indexes, strict=True))]
            return list(engine.threads.map(lambda stream: engine.coder.encode(*stream, shape[1] // 2), streams))

        coded = engine.compress_many(latents, rates, shape)
        flat = entropy_encode(coded)
        streams = [flat[10 * i : 10 * i + 10] for i in range(n)]

        def encode() -> None:
            entropy_encode(engine.compress_many(engine.transform_many(pixels), rates, shape))

        def decode() -> None:
            engine.decode_many(streams, rates, shape)

        pictures = [Picture(pixels=one) for one in pixels]
        data = [codec.pack(Symbols(pictures[i], rates[i], *coded[i][:2])) for i in range(n)]

        def in_flight(run: Callable[[int], Any], batches: int = 2 * IN_FLIGHT) -> float:
            """Seconds a batch, of several that follow each other as a worker's do: `Codec`'s own way of many pictures."""
            run(IN_FLIGHT)
            since = time.perf_counter()
            run(batches)
            return (time.perf_counter() - since) / batches

        row = {
            "batch": n,
            "transform": round(megapixels / self._time(lambda: engine.transform_many(pixels), 3), 1),
            "compress": round(megapixels / self._time(lambda: engine.compress_many(latents, rates, shape), 3), 1),
            "entropy_encode": round(megapixels / self._time(lambda: entropy_encode(coded), 3), 1),
            "encode": round(megapixels / self._time(encode, 3), 1),
            "decode": round(megapixels / self._time(decode, 3), 1),
            "encode_3_in_flight": round(megapixels / in_flight(lambda k: codec.encode_many(pictures * k, rates * k, batch=n)), 1),
            "decode_3_in_flight": round(megapixels / in_flight(lambda k: codec.decode_many(data * k, batch=n)), 1),
        }
        if self.device.type == "cuda":
            row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        print(row, flush=True)
        return row

    def profile(self) -> dict[str, Any]:
        """Device time by kernel of one decode of 32, without the entropy coder."""
        from torch.profiler import ProfilerActivity, profile

        n = 32 if self.device.type == "cuda" else 1
        pixels = self._batch(n)
        shape = (pixels.shape[1] // 16, pixels.shape[2] // 16)
        streams = []
        for symbols, indexes, _ in self.engine.compress_many(self.engine.transform_many(pixels), [6.0] * n, shape):
            coded = enumerate(zip(symbols, indexes, strict=True))
            streams.append([self.engine.coder.encode(number, *pair, shape[1] // 2) for number, pair in coded])
        self.engine.decode_many(streams, [6.0] * n, shape)
        self._wait()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            self.engine.decode_many(streams, [6.0] * n, shape)
            self._wait()
        events = [e for e in found.key_averages() if e.self_device_time_total > 0 and not e.key.startswith("aten::")]
        events.sort(key=lambda e: -e.self_device_time_total)
        total = sum(e.self_device_time_total for e in events)
        return {
            "megapixels": n * pixels.shape[1] * pixels.shape[2] / 1e6,
            "device_ms": round(total / 1e3, 2),
            "kernels": sum(e.count for e in events),
            "largest": [(e.key[:70], e.count, round(e.self_device_time_total / 1e3, 2)) for e in events[:22]],
        }

    def tiles(self) -> list[Any]:
        """Layer shapes that cost most, by size of block: microseconds of each choice."""
        rows = []
        for shape in tiles.SHAPES if self.device.type == "cuda" else ():
            if time.perf_counter() - self.started < self.arguments.seconds:
                row, best = tiles.timed(shape, self.device, self._time)
                if best is not None:
                    self.best[shape[:3]] = best
                print(row, flush=True)
                rows.append(row)
        return rows

    def tuned(self) -> dict[str, Any]:
        """The same as `network` for one batch, with the best blocks found."""
        if self.device.type != "cuda":
            return {}
        convolution = gpu_layers.TritonLayers()
        convolution.tile_for = lambda kind, cin, cout: self.best.get((kind, cin, cout)) or gpu_layers.tile_for(kind, cin, cout)
        before = self.engine.network.backend._convolution  # type: ignore[attr-defined]
        self.engine.network.backend._convolution = convolution  # type: ignore[attr-defined]
        try:
            return self._measured(32, self.on_gpu)
        finally:
            self.engine.network.backend._convolution = before  # type: ignore[attr-defined]

    def end_to_end(self) -> dict[str, Any]:
        """The pipeline's workers, files to archive and back."""
        return end_to_end(self.pictures, self.arguments.device, self.arguments.model, self.arguments.files)


def table_of(found: dict[str, Any]) -> str:
    """What was found, for people."""
    lines: list[str] = []
    paper = found.get("paper")
    for what, rows in (("", found.get("network")), (", paper's size", paper["rows"] if isinstance(paper, dict) else None)):
        if isinstance(rows, list):
            names = [name for name in rows[0] if name != "batch"]
            lines += [f"Mpx/s by batch{what}".ljust(32) + "".join(f"{row['batch']:>9}" for row in rows)]
            lines += [name.ljust(32) + "".join(f"{row[name]:>9}" for row in rows) for name in names]
    if isinstance(found.get("end_to_end"), dict):
        lines += ["", f"{found['end_to_end']['files']} files".ljust(28) + "  seconds    Mpx/s"]
        lines += [row["what"].ljust(28) + f"{row['seconds']:>9.2f}{row['mpx_s']:>9.1f}" for row in found["end_to_end"]["rows"]]
    lines += ["", *(f"{name}: {found.get(name)}" for name in ("layers", "golden", "kodak", "launches", "scales"))]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
