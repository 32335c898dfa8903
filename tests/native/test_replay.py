"""The kernels on other processors: calls recorded here, done again without intrinsics, on emulated ARM with and without NEON, and big-endian."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from msinn_core.codec import Codec
from msinn_core.entropy import rans
from msinn_core.entropy.first_stream import CHANNELS, NUM_NEIGHBOURS, Prediction
from msinn_core.entropy.tables import Tables
from msinn_core.errors import BitstreamError
from msinn_core.integer import ops
from msinn_core.integer.ops import CORNERS, DENSE, EDGES, NUM_TAPS, POINT, Compiled, Layer
from msinn_core.integer.portable import Portable
from msinn_core.model_file import load_model, parse_model
from msinn_core.picture import Picture
from tests.native.recording import NORMATIVE, recording

pytestmark = pytest.mark.skipif(ops.kernel is None or rans.kernel is None, reason="the kernels are not compiled: install with a C compiler")

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "integer"
SOURCES = [HERE / "replay.c", *(HERE.parents[1] / "msinn_core" / name for name in ("integer/_int16.c", "entropy/_rans.c"))]
SHAPES = [(1, 1, 2, 1), (2, 3, 6, 12), (5, 13, 10, 17), (3, 40, 4, 33), (33, 1, 12, 16), (1, 31, 48, 96)]


@dataclass(frozen=True)
class Processor:
    """One on which the kernels are replayed: its compiler, its emulator, and the instruction sets that must be there."""

    name: str
    compiler: str
    emulator: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    sets: tuple[str, ...] | None = None  # None: those of this machine


PROCESSORS = [
    Processor("here", "gcc"),
    Processor("here without intrinsics", "gcc", (), ("-DMSINN_PLAIN_C", "-fsanitize=undefined", "-fno-sanitize-recover=all"), ("scalar",)),
    Processor("aarch64", "aarch64-linux-gnu-gcc", ("qemu-aarch64-static",), (), ("NEON", "scalar")),
    Processor("aarch64 without intrinsics", "aarch64-linux-gnu-gcc", ("qemu-aarch64-static",), ("-DMSINN_PLAIN_C",), ("scalar",)),
    Processor("s390x, big-endian", "s390x-linux-gnu-gcc", ("qemu-s390x-static",), (), ("scalar",)),
]


Replay = Callable[[Processor, Path], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Replay:
    """Lets a processor do a recording again, by `replay`, which is built for it once."""
    programs: dict[str, Path] = {}

    def run(processor: Processor, recorded: Path) -> subprocess.CompletedProcess[str]:
        if processor.name not in programs:
            programs[processor.name] = built(processor, tmp_path_factory.mktemp("replay"))
        return subprocess.run([*processor.emulator, str(programs[processor.name]), str(recorded)], capture_output=True, text=True, check=False)

    return run


def built(processor: Processor, folder: Path) -> Path:
    """The program `replay` for a processor."""
    for tool in (processor.compiler, *processor.emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (Debian: gcc-aarch64-linux-gnu, gcc-s390x-linux-gnu, qemu-user-static)")
    program = folder / "replay"
    warnings = ("-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers", "-Wno-unused-function")
    own = (processor.compiler, "-O3", "-static", *warnings, *processor.flags, f"-I{HERE}")
    if "-fsanitize=undefined" in processor.flags:
        own = tuple(word for word in own if word != "-static")
    subprocess.run([*own, *map(str, SOURCES), "-o", str(program), "-lm"], check=True, capture_output=True, text=True)
    return program


def layer_at_the_bound(rng: np.random.Generator, cin: int, cout: int, kind: int, leaky: bool) -> Layer:
    """Sums of weights as large as INTEGER.md, section 1 allows; even channels of one sign, so that inputs of -32768 reach the bound itself."""
    taps = NUM_TAPS[kind]
    share = rng.dirichlet(np.ones(taps * cin), cout)
    weight = np.minimum(np.floor(share * 65534), 32767).astype(np.int64).reshape(cout, taps, cin)
    weight[1::2] *= rng.choice([-1, 1], weight[1::2].shape)
    weight[2::4] *= -1
    shift = rng.integers(1, 14, cout)
    room = (1 << 31) - 1 - 32768 * np.abs(weight).sum(axis=(1, 2)) - (1 << (shift - 1))
    assert (room > 0).all()
    bias = np.minimum(room, 1 << 30) * rng.choice([-1, 1], cout)
    return Layer(weight.astype(np.int16), bias.astype(np.int32), shift.astype(np.int32), kind, leaky)


def random_layers() -> None:
    """Layers of every kind and parity at the bound, inputs at the ends of their range; units of known and other widths; what lies between."""
    backend, plain = Compiled(), Portable()
    rng = np.random.default_rng(17)
    for kind in (DENSE, EDGES, CORNERS, POINT):
        for h, w, cin, cout in SHAPES:
            for lowest in (True, False):
                x = np.full((h, w, cin), -32768, np.int16) if lowest else rng.integers(-32768, 32767, (h, w, cin), endpoint=True).astype(np.int16)
                add = None if lowest else rng.integers(-32768, 32767, (h, w, cout), endpoint=True).astype(np.int16)
                layer = layer_at_the_bound(rng, cin, cout, kind, not lowest)
                for parity in (0, 1):
                    assert np.array_equal(backend.conv(x, layer, parity=parity, add=add), plain.conv(x, layer, parity=parity, add=add))
    for channels in (12, 24, 48, 96, 10):
        for affine in (True, False):
            z = rng.integers(-(1 << 26), 1 << 26, (3, 7, channels), endpoint=True).astype(np.int32)
            st = rng.integers(-32768, 32767, (3, 7, channels if affine else channels // 2), endpoint=True).astype(np.int16)
            table = rng.integers(1, 1 << 25, 65536, endpoint=True).astype(np.int32)
            matrix = np.floor(rng.dirichlet(np.ones(channels), channels).T * ((1 << 26) - channels)) * rng.choice([-1.0, 1.0], (channels, channels))
            bias = rng.integers(-(1 << 26), 1 << 26, channels).astype(np.float64)
            out = backend.unit(z, st, table, 16, matrix, bias, affine)
            assert np.array_equal(out, plain.unit(z, st, table, 16, matrix, bias, affine))
            backend.narrow(out, rng.integers(0, 30, channels, endpoint=True).astype(np.int32))
    parameters = rng.integers(-32768, 32767, (4, 7, 24), endpoint=True).astype(np.int16)
    symbols = rng.integers(-(1 << 24), 1 << 24, (4, 7, 12), endpoint=True).astype(np.int32)
    inv_gain = rng.integers(1, (1 << 31) - 1, 12).astype(np.int32)
    log_gain = rng.integers(-(15 << 16), 15 << 16, 12).astype(np.int32)
    backend.levels(parameters, rng.integers(0, 15 << 16, 32768).astype(np.int32), log_gain, -200_000, 4_000, 128)
    y = backend.dequantise(symbols, parameters, inv_gain, 14)
    backend.refine(y, parameters[..., :12].copy(), rng.integers(-32768, 32767, 4096).astype(np.int16), inv_gain)


def streams_and_refusals(tables: Tables) -> None:
    """Escapes of every length, and streams that must be refused with the same words everywhere."""
    rng = np.random.default_rng(3)
    symbols = (rng.integers(-9, 9, 4000) * (1 << rng.integers(0, 28, 4000))).astype(np.int32)
    symbols[:2] = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    indexes = rng.integers(0, len(tables.offsets), 4000).astype(np.uint8)
    data = rans.encode(symbols, indexes, tables)
    assert np.array_equal(rans.decode(data, indexes, tables), symbols)
    first = Prediction(tables, rng.integers(-9000, 9000, (CHANNELS, NUM_NEIGHBOURS)).astype(np.int16))
    past, known = symbols[: 5 * 7 * CHANNELS] >> 4, np.tile(indexes[:CHANNELS], 5 * 7)
    predicted = rans.encode(*first.residuals(past, known, 7), tables)
    assert np.array_equal(first.decode(predicted, known, 7), past)
    for cut, alter in ((-4, b""), (None, b"\0\0\0\0"), (400, b"\xff" * 8 + data[408:]), (6, b"")):
        with pytest.raises(BitstreamError):
            rans.decode(data[:cut] + alter, indexes, tables)
        with pytest.raises(BitstreamError):
            first.decode(predicted[:cut] + alter, known, 7)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Calls of random layers at the bounds, of two golden bitstreams decoded, and of a picture coded and decoded with the shipped model."""
    path = tmp_path_factory.mktemp("native") / "calls"
    photo = np.random.default_rng(5).integers(0, 255, (35, 51, 3), endpoint=True).astype(np.uint8)
    seen: set[str] = set()
    with recording(path) as recorders:
        random_layers()
        golden = Codec(parse_model((GOLDEN / "model.safetensors").read_bytes()))
        for name in ("colour-5.53.msn", "grey-11.00.msn"):
            golden.decode((GOLDEN / name).read_bytes())
        shipped = Codec(load_model("msinn-lite"))
        shipped.decode(shipped.encode(Picture(pixels=photo), 6.2))
        streams_and_refusals(shipped.model.tables)
        for recorder in recorders:
            seen |= recorder.seen
    assert seen == set(NORMATIVE)
    yield path
    path.unlink()  # 120 MB


@pytest.mark.parametrize("processor", PROCESSORS, ids=[processor.name.replace(" ", "-") for processor in PROCESSORS])
def test_every_processor_gives_the_same_bits(processor: Processor, recorded: Path, replay: Replay) -> None:
    ran = replay(processor, recorded)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    here = [ops.kernel.isa_name(level) for level in range(ops.kernel.isa(), -1, -1)]
    assert [line.partition(":")[0] for line in lines] == list(processor.sets or here)
    assert all(", 0 differ" in line and int(line.partition(": ")[2].split()[0]) > 500 for line in lines), ran.stdout
    if "big-endian" in processor.name:
        assert all(line.endswith("big-endian") for line in lines)


def test_a_wrong_number_is_found(recorded: Path, replay: Replay, tmp_path: Path) -> None:
    """One bit of what the first layer gave, and the end of the recording."""
    data = bytearray(recorded.read_bytes())
    first = data.index(b"conv", 1 + data.index(b"conv"))  # the second call begins after the first one's results
    data[first - 1 - 8 - 1 - 10 * 9 - 1] ^= 1  # before it: length of a name, of a result, of an error, and ten numbers
    wrong = tmp_path / "wrong"
    wrong.write_bytes(data)
    ran = replay(PROCESSORS[1], wrong)
    assert ran.returncode == 1
    assert "differ" in ran.stdout
    wrong.write_bytes(data[:-3])
    assert replay(PROCESSORS[1], wrong).returncode == 2


LOADS = """
import hashlib, importlib.util, json, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("msinn_core.integer._int16", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules[spec.name] = module
from msinn_core.codec import Codec
from msinn_core.model_file import parse_model
golden = Path(sys.argv[2])
codec = Codec(parse_model((golden / "model.safetensors").read_bytes()))
name = "colour-5.53.msn"
digest = hashlib.sha256(codec.decode((golden / name).read_bytes())[0].content()).hexdigest()
print(codec.engine.backend.name, digest == json.loads((golden / "expected.json").read_text())[name])
"""


def test_the_extension_without_intrinsics_decodes_a_golden_bitstream(tmp_path: Path) -> None:
    """Built as where the processor is neither x86 nor 64-bit ARM, and loaded by Python in another process."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:  # the kernels came compiled, in a wheel
        pytest.skip("needs a C compiler (Debian: gcc)")
    built, source = tmp_path / "_int16.abi3.so", SOURCES[1]
    include = sysconfig.get_paths()["include"]
    subprocess.run([compiler, "-shared", "-fPIC", "-O3", "-DMSINN_PLAIN_C", f"-I{include}", str(source), "-o", str(built), "-lm"], check=True)
    ran = subprocess.run([sys.executable, "-c", LOADS, str(built), str(GOLDEN)], capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["scalar", "True"], ran.stdout + ran.stderr
