"""A shard on a GPU, with this machine's CPU in its place: the same bytes in the same order as one by one, whatever the device does."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from msinn_core.assembly import refitted_model
from msinn_core.bitstream import model_named
from msinn_core.codec import Codec
from msinn_core.errors import DeviceMemoryError
from msinn_core.integer.gpu.engine import DeviceEngine
from msinn_core.integer.network import IntegerNetwork
from msinn_core.integer.portable import Float64Layers
from msinn_core.model_file import LoadedModel, parse_model
from msinn_core.picture import Picture
from pipeline.archive.archive import Archive
from pipeline.encode.analysis import analyse
from pipeline.encode.coders import Coders
from pipeline.encode.item import Item
from pipeline.encode.load import ItemLoader
from pipeline.encode.stream import encode_stream
from pipeline.encode.tasks import ImageTask, WorkConfig
from pipeline.execute.placement import Placement
from pipeline.formats import images
from pipeline.formats.outcome import Kept, Reason
from pipeline.plan.config import Budget, CompressConfig
from pipeline.run.compress import Run
from pipeline.run.report import JsonReporter
from pipeline.sources.record import Part, SourceRecord
from tests.conftest import fails_at
from tests.unit.forms.test_avif import drawn

CONFIG = WorkConfig(target_psnr_db=None, max_pixels=10**6, count_sidecars=False, ms_ssim=False)


class Given(ItemLoader):
    """Makes items of pictures at hand; one is broken, and one is to be kept."""

    def __init__(self, pictures: list[Picture]) -> None:
        super().__init__(10**6)
        self._pictures = pictures

    def load(self, task: ImageTask, with_sidecars: bool, only_cost: bool = False) -> Item:
        picture = self._pictures[task.record.index]
        item = Item(task, bytes(10**6), images.LoadedImage(info=images.ImageInfo(), picture=picture))
        if task.record.index == 2:
            item.loaded = images.LoadedImage(info=images.ImageInfo(), reason=Reason.BROKEN)
            item.outcome = Kept(Reason.BROKEN)
        return item


@pytest.fixture
def pictures(photo: NDArray[np.uint8]) -> list[Picture]:
    """Three padded sizes, one of them twice as large, grey and coloured."""
    crops = [photo[7 * i : 7 * i + (32, 30, 64)[i % 3], 11 * i : 11 * i + (41, 64, 33)[i % 3]].copy() for i in range(10)]
    return [Picture(pixels=crop[..., 1].copy() if i == 4 else crop) for i, crop in enumerate(crops)]


def coded(coder: Coders, pictures: list[Picture], target_psnr_db: float | None = None) -> list[tuple[Any, ...]]:
    """What a shard holds and says of each image; of several models each has every other one."""
    floors = [None, 27.0, None, 29.0, None] * 2
    tasks = [
        ImageTask(SourceRecord(i, f"{i}.png", Part("file", f"{i}.png", 0)), 1.0 + i, min_psnr_db=floors[i], model=i % len(coder.coders))
        for i in range(len(pictures))
    ]
    found = []
    for item in encode_stream(tasks, Given(pictures), coder, target_psnr_db):
        item.release()
        measured = None if item.measured is None else (item.measured.mse, item.measured.recon_sha256, item.measured.walked)
        found.append((item.task.record.index, item.reason, item.q, item.clamp, item.data, measured))
    return found


@pytest.mark.parametrize("target", [None, 27.0])
def test_a_batch_changes_nothing(target: float | None, gpu: None, tiny: LoadedModel, pictures: list[Picture]) -> None:
    ours = coded(Coders([tiny], CONFIG, device="cuda", threads=2), pictures, target)
    theirs = coded(Coders([tiny], CONFIG), pictures, target)
    assert ours == theirs
    assert [row[0] for row in ours] == list(range(10))
    assert [row[1] for row in ours] == [Reason.BROKEN if i == 2 else None for i in range(10)]
    if target is None:
        assert [row[3] for row in ours].count("floor") >= 1, "no floor moves an image: nothing was searched"


def test_images_of_a_batch_may_have_different_models(gpu: None, tiny: LoadedModel, pictures: list[Picture]) -> None:
    noise = [Picture(pixels=np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)) for i in range(4)]
    models = [tiny, parse_model(refitted_model(tiny, name="another", pictures=noise))]
    ours = coded(Coders(models, CONFIG, device="cuda", threads=2), pictures)
    assert ours == coded(Coders(models, CONFIG), pictures)
    assert [model_named(row[4])[:12] for row in ours if row[4]] == [models[row[0] % 2].sha256[:12] for row in ours if row[4]]  # type: ignore[index]


def test_images_do_share_batches(gpu: None, tiny: LoadedModel, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    right = DeviceEngine.transform_many
    monkeypatch.setattr(DeviceEngine, "transform_many", lambda self, pixels: (sizes.append(len(pixels)), right(self, pixels))[1])
    coded(Coders([tiny], CONFIG, device="cuda"), pictures)
    assert sum(sizes) == 9
    assert max(sizes) >= 3


@pytest.mark.parametrize("most", [1, 0])
def test_too_little_memory_costs_no_image(most: int, gpu: None, tiny: LoadedModel, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves, then one by one, then the CPU."""
    right = DeviceEngine.compress_many

    def small(self: DeviceEngine, latents: Any, *rest: Any) -> Any:
        if len(latents) > most:
            raise DeviceMemoryError("cuda has too little memory for this batch")
        return right(self, latents, *rest)

    monkeypatch.setattr(DeviceEngine, "compress_many", small)
    coder = Coders([tiny], CONFIG, device="cuda")
    assert coded(coder, pictures) == coded(Coders([tiny], CONFIG), pictures)
    assert coder.lost is None
    assert coder.codec is not coder.checkers[0], "memory is no reason to give the device up"


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(("kind", "name"), [(DeviceEngine, "transform_many"), (IntegerNetwork, "spatial"), (Float64Layers, "__call__")])
def test_a_device_that_fails_in_mid_shard_costs_nothing(
    number: int, kind: type, name: str, gpu: None, tiny: LoadedModel, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the engine, in the middle of a walk, in a kernel: the CPU does the rest, and all of that batch."""
    theirs = coded(Coders([tiny], CONFIG), pictures)
    coder = Coders([tiny], CONFIG, device="cuda")
    engine = coder.codec.engine
    assert isinstance(engine, DeviceEngine)
    error = RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")
    if kind is DeviceEngine:
        monkeypatch.setattr(engine, name, fails_at(number, engine.transform_many, error))
    elif kind is IntegerNetwork:
        monkeypatch.setattr(engine.network, name, fails_at(7 * number, engine.network.spatial, error))
    else:
        monkeypatch.setattr(engine.backend, "_convolution", fails_at(150 * number, engine.backend._convolution, error))  # type: ignore[attr-defined]
    assert coded(coder, pictures) == theirs
    assert coder.lost is not None
    assert "illegal memory access" in coder.lost
    assert coder.codec is coder.checkers[0]


def shards_of(archive: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (archive / "shards").iterdir()}


@pytest.mark.parametrize(("kind", "value"), [("q", 3.0), ("psnr", 27.0), ("bpp", 8.0)])
def test_a_run_whose_device_fails_writes_the_same_shards_and_says_it_once(
    kind: str, value: float, gpu: None, tiny: LoadedModel, small_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "tiny.safetensors"
    model.write_bytes(tiny.data)
    said, rows = {}, {}
    for name in ("cpu", "cuda", "lost"):
        if name == "lost":
            error = RuntimeError("CUDA error: the launch failed")
            monkeypatch.setattr(DeviceEngine, "_gains", fails_at(2, DeviceEngine._gains, error))
        config = CompressConfig(budget=Budget(kind=kind, value=value), model=str(model), device="cpu" if name == "cpu" else "cuda")
        log = io.StringIO()
        monkeypatch.setattr("pipeline.execute.placement.DEVICE_WORKERS", 1)
        Run(str(small_photos), str(tmp_path / name), config, JsonReporter(log), placement=Placement(executor="local")).execute()
        said[name] = log.getvalue()
        columns = ["key", "status", "q", "mse", "payload_sha256", "recon_sha256", "clamp", "error_code"]
        rows[name] = Archive(str(tmp_path / name)).manifest(columns).to_pylist()
    if kind != "bpp":  # a budget's plan rests on curves, which a device's sums differ in by a millionth
        assert shards_of(tmp_path / "cpu") == shards_of(tmp_path / "cuda") == shards_of(tmp_path / "lost")
        assert rows["cpu"] == rows["cuda"] == rows["lost"]
    assert [row["status"] for row in rows["lost"]] == [row["status"] for row in rows["cpu"]]
    assert said["lost"].count("a GPU is not used any more") == 1
    assert "the launch failed" in said["lost"]
    assert "not used any more" not in said["cuda"]


def test_what_avif_codes_passes_a_gpu_by(gpu: None, tiny: LoadedModel, small_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "tiny.safetensors"
    model.write_bytes(tiny.data)
    screen = drawn(96, 128)
    screen[:, 80:] = np.random.default_rng(0).integers(90, 130, (96, 48, 3), np.uint8)
    Image.fromarray(screen).save(small_photos / "screen.bmp")
    monkeypatch.setattr("pipeline.execute.placement.DEVICE_WORKERS", 1)
    rows = {}
    for device in ("cpu", "cuda"):
        config = CompressConfig(budget=Budget(kind="bpp", value=4.0), model=str(model), device=device, forms="all", avif=True)
        Run(str(small_photos), str(tmp_path / device), config, JsonReporter(io.StringIO()), placement=Placement(executor="local")).execute()
        rows[device] = {row["name"]: row for row in Archive(str(tmp_path / device)).manifest(["name", "form", "encoder", "recon_sha256"]).to_pylist()}
        assert (rows[device]["screen.bmp"]["form"], rows[device]["screen.bmp"]["encoder"]) == ("avif", None)
    assert {row["form"] for row in rows["cuda"].values()} > {"avif", "msinn"}


def test_a_run_goes_on_where_there_is_no_gpu(
    gpu: None, tiny: LoadedModel, small_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun with `--device cuda` and killed; resumed with `--device cpu`."""
    model, archive = tmp_path / "tiny.safetensors", tmp_path / "archive"
    model.write_bytes(tiny.data)
    monkeypatch.setattr("pipeline.execute.placement.DEVICE_WORKERS", 1)

    def run(device: str, name: str) -> None:
        config = CompressConfig(budget=Budget(kind="q", value=3.0), model=str(model), device=device)
        Run(str(small_photos), str(tmp_path / name), config, JsonReporter(io.StringIO()), placement=Placement(executor="local")).execute()

    run("cuda", "archive")
    (archive / "MANIFEST.json").unlink()
    lost, kept = sorted((archive / "commits").iterdir())[:2]
    lost.unlink()
    before = kept.read_bytes()
    run("cpu", "archive")
    run("cpu", "alone")
    assert Archive(str(archive)).sealed
    assert kept.read_bytes() == before
    assert shards_of(archive) == shards_of(tmp_path / "alone")


def test_the_manifest_says_what_coded_each_image(
    gpu: None, tiny: LoadedModel, small_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "tiny.safetensors"
    model.write_bytes(tiny.data)
    monkeypatch.setattr("pipeline.execute.placement.DEVICE_WORKERS", 1)
    monkeypatch.setattr(DeviceEngine, "_gains", fails_at(1, DeviceEngine._gains, RuntimeError("CUDA error")))
    config = CompressConfig(budget=Budget(kind="q", value=3.0), model=str(model), device="cuda")
    Run(str(small_photos), str(tmp_path / "dst"), config, JsonReporter(io.StringIO()), placement=Placement(executor="local")).execute()
    encoders = {row["encoder"] for row in Archive(str(tmp_path / "dst")).manifest(["encoder"]).to_pylist() if row["encoder"]}
    assert len(encoders) == 2
    assert any("Float64Layers" in encoder for encoder in encoders)
    assert any(f"cpu ({Codec(tiny).engine.name})" in encoder for encoder in encoders)


@pytest.mark.parametrize("fault", [None, "memory", "lost"])
@pytest.mark.parametrize("sampled", [False, True])
def test_an_analysis_in_batches_predicts_what_single_images_do(
    sampled: bool, fault: str | None, gpu: None, tiny: LoadedModel, photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of a device are those of the CPU but for their order; sampled, images of one size of part go together."""
    crops = [photo[i : i + (480 if i % 2 else 60), : 33 + i].copy() for i in range(5)]
    pictures = [Picture(pixels=crop) for crop in crops]
    config = replace(CONFIG, sampled_analysis=sampled)
    tasks = [ImageTask(SourceRecord(i, f"{i}.png", Part("file", f"{i}.png", 0)), 1.0) for i in range(5)]
    sizes: list[int] = []
    right = DeviceEngine.tally_many

    def tally_many(self: DeviceEngine, latents: Any, *rest: Any) -> Any:
        sizes.append(len(latents))
        if fault == "memory" and len(latents) > 1:
            raise DeviceMemoryError("cuda has too little memory for this batch")
        if fault == "lost" and len(sizes) > 1:
            raise RuntimeError("CUDA error")
        return right(self, latents, *rest)

    monkeypatch.setattr(DeviceEngine, "tally_many", tally_many)
    coder = Coders([tiny], config, device="cuda")
    ours = analyse(Given(pictures).ahead(tasks), coder, config).to_pylist()
    theirs = analyse(Given(pictures).ahead(tasks), Coders([tiny], config), config).to_pylist()
    assert [row["index"] for row in ours] == list(range(5))
    assert [row["reason"] for row in ours] == [row["reason"] for row in theirs] == [None, None, "broken_image", None, None]
    for mine, other in zip(ours, theirs, strict=True):
        if mine["reason"] is None:
            assert np.allclose(mine["bytes"], other["bytes"], rtol=1e-3)
            assert np.allclose(mine["mse"], other["mse"], rtol=1e-3)
    assert (coder.lost is not None) == (fault == "lost")
    if fault is None:
        assert sorted(sizes) == [2, 2]
