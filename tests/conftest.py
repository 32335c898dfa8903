from __future__ import annotations

import io
import os
import struct
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
import torch
from numpy.typing import NDArray
from PIL import Image

# Whichever test imports Triton first: its own functions are made for the interpreter, or for a GPU, when it is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

from infra.local.proxy import FaultProxy
from infra.local.s3 import BUCKET, LocalS3
from msinn_core.codec import Codec
from msinn_core.integer.gpu import backend as gpu_backend
from msinn_core.integer.gpu import layers as gpu_layers
from msinn_core.integer.gpu.backend import on_device
from msinn_core.model_file import LoadedModel, load_model, parse_model
from msinn_core.picture import Picture
from tests.matrix import MATRIX, Matrix

PHOTOS = Path(__file__).parents[1] / "infra" / "demo" / "photos"


LONGEST = (
    "test_faults.py", "test_cluster.py", "test_campaign.py", "test_tune.py", "test_s3.py", "test_growth.py", "test_train_command.py",
    "test_tune_faults.py", "test_gpu.py", "test_archive.py", "test_forms.py", "test_ill_will.py", "test_executor.py", "test_mixed.py",
    "test_store.py", "test_scales.py", "test_replay.py", "test_near.py", "test_docs.py", "test_several_models.py", "test_strangers.py",
)  # fmt: skip
"""Files that take more than some 20 s begin first, the longest before the others, so that the processes of a parallel run end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; all others in their order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model() -> LoadedModel:
    return load_model()


@pytest.fixture(scope="session")
def codec(model: LoadedModel) -> Codec:
    return Codec(model)


@pytest.fixture(scope="session")
def photo() -> NDArray[np.uint8]:
    """A real 512 x 512 photo, `[H, W, 3]`."""
    path = sorted(PHOTOS.rglob("*.webp"))[0]
    return np.array(Image.open(path).convert("RGB"))


@pytest.fixture(scope="session")
def tile(photo: NDArray[np.uint8]) -> Picture:
    return Picture(pixels=photo[100:196, 40:168].copy())


@pytest.fixture(scope="session")
def tiny() -> LoadedModel:
    """The golden model: every kind of layer, in a few channels."""
    return parse_model((Path(__file__).parent / "golden" / "integer" / "model.safetensors").read_bytes())


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks for CUDA gets a GPU's engine, in float64 on the CPU."""
    monkeypatch.setattr(gpu_layers, "triton_layers", lambda where: None)
    monkeypatch.setattr(gpu_backend, "on_device", lambda where, layers, **how: on_device(torch.device("cpu"), layers, **how))


def fails_at(number: int, right: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """A function that raises from its `number`-th call on, as a driver does whose device is gone."""
    calls = iter(range(10**9))

    def called(*arguments: Any) -> Any:
        if next(calls) >= number:
            raise error
        return right(*arguments)

    return called


@pytest.fixture
def small_photos(tmp_path: Path, photo: NDArray[np.uint8]) -> Path:
    """Twelve files: ten that the tiny model makes smaller, of two sizes, and two that are kept."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(10):
        Image.fromarray(photo[9 * i : 9 * i + 64, : 64 + 32 * (i % 2)]).save(folder / f"photo{i:03d}.bmp")
    Image.new("CMYK", (20, 20)).save(folder / "photo005.tif")
    (folder / "photo006.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="session")
def ray_pool() -> Iterator[None]:
    """One local Ray for all tests that need it."""
    from pipeline.execute import connection

    connection.connect(None, 2)
    yield
    connection.disconnect()


@pytest.fixture
def matrix() -> Matrix:
    """Where tests of faults say what they cost."""
    return MATRIX


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """A real S3 server, and the environment that points at it."""
    server = LocalS3(tmp_path_factory.mktemp("s3"))
    yield server
    server.close()


@pytest.fixture
def s3(s3_server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty folder on the S3 server."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield f"s3://{BUCKET}/{uuid.uuid4().hex}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3_proxy(s3_server: LocalS3, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The way to `s3` leads through a proxy that has no faults yet."""
    proxy = FaultProxy(s3_server.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    s3fs.S3FileSystem.clear_instance_cache()
    yield proxy
    proxy.close()


def encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


def png16(width: int, height: int) -> bytes:
    """A 16-bit RGB PNG, which Pillow can read but not write."""
    rows = b"".join(b"\0" + np.random.default_rng(y).integers(0, 255, width * 6, dtype=np.uint8).tobytes() for y in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def make_photos(folder: Path, count: int, size: int = 96, suffix: str = ".png") -> Path:
    """`count` different crops of the demo photos as PNG, or in another format."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.rglob("*.webp"))]
    for i in range(count):
        image = sources[i % len(sources)]
        x, y = (37 * i) % (512 - size), (53 * i) % (512 - size)
        image.crop((x, y, x + size, y + size)).save(folder / f"photo{i:03d}{suffix}")
    return folder


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Processes of a parallel run send their rows of the fault matrix to the one that prints it."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["matrix"] = MATRIX.rows


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """Called by pytest-xdist, in the process that prints."""
    MATRIX.rows += map(tuple, getattr(node, "workeroutput", {}).get("matrix", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The fault matrix of this run."""
    if MATRIX.rows:
        terminalreporter.section("faults")
        terminalreporter.write_line(MATRIX.table())
