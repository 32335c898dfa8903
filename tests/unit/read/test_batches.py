"""A restore on a GPU, with this machine's CPU in its place: the same files, problems and sums as image by image, whatever the device does."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load

from jobs.cli import main
from msinn_core import bitstream
from msinn_core.codec import Codec
from msinn_core.errors import DeviceMemoryError
from msinn_core.integer.gpu.engine import DeviceEngine
from msinn_core.model_file import LoadedModel, integer_model_bytes
from pipeline.archive.archive import Archive
from pipeline.archive.conversion import Conversion
from pipeline.execute.placement import Placement
from pipeline.plan.config import Budget, CompressConfig
from pipeline.read import verify
from pipeline.read.restore import restore
from pipeline.read.worker import Result
from pipeline.run.compress import Run
from pipeline.run.report import JsonReporter
from tests.conftest import fails_at

LOCAL = Placement(executor="local")
GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def archive(small_photos: Path, tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards, so that batches have room."""
    monkeypatch.setattr("pipeline.run.shards.SMALL_SET_SHARDS", 2)
    model = tmp_path / "tiny.safetensors"
    model.write_bytes(tiny.data)
    config = CompressConfig(budget=Budget(kind="q", value=3.0), model=str(model))
    Run(str(small_photos), str(tmp_path / "dst"), config, JsonReporter(io.StringIO()), placement=LOCAL).execute()
    return tmp_path / "dst"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def facts(result: Result) -> tuple[Any, ...]:
    return result.images, result.skipped, result.sidecars, result.failed_at_source, sorted(result.problems)


def both(archive: Path, tmp_path: Path) -> tuple[Result, Result, str]:
    """The results of both devices, compared, and what was said of the GPU's."""
    log = io.StringIO()
    ours = restore(str(archive), str(tmp_path / "ours"), placement=LOCAL, device="cuda", reporter=JsonReporter(log))
    theirs = restore(str(archive), str(tmp_path / "theirs"), placement=LOCAL)
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")
    assert facts(ours) == facts(theirs)
    return ours, theirs, log.getvalue()


@pytest.mark.usefixtures("gpu")
def test_a_batch_restores_what_single_images_restore(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    right = DeviceEngine.decode_many
    monkeypatch.setattr(DeviceEngine, "decode_many", lambda self, streams, *rest: (sizes.append(len(streams)), right(self, streams, *rest))[1])
    ours, theirs, _ = both(archive, tmp_path)
    assert (ours.images, ours.problems) == (12, [])
    assert sum(sizes) == 10
    assert max(sizes) >= 2
    assert any("Float64Layers" in name for name in ours.computed_on)
    assert not any("Float64Layers" in name for name in theirs.computed_on)
    # What is there is not decoded again; what is missing is.
    (tmp_path / "ours" / "photo003.png").unlink()
    sizes.clear()
    again = restore(str(archive), str(tmp_path / "ours"), placement=LOCAL, device="cuda")
    assert (again.images, again.skipped, sizes) == (12, 11, [1])
    assert verify.decode(str(archive), placement=LOCAL, device="cuda").problems == []


@pytest.mark.usefixtures("gpu")
def test_damage_costs_its_image_and_is_told_alike(archive: Path, tmp_path: Path) -> None:
    shard = sorted((archive / "shards").iterdir())[0]
    data = bytearray(shard.read_bytes())
    data[1024 + 300] ^= 255
    shard.chmod(0o644)
    shard.write_bytes(data)
    ours, _, _ = both(archive, tmp_path)
    assert (ours.images, len(ours.problems)) == (11, 1)
    assert "photo000" in ours.problems[0]


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_computes_wrongly_is_told_by_the_hash(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = DeviceEngine.decode_many

    def wrong(self: DeviceEngine, *arguments: Any) -> Any:
        pixels, symbols = right(self, *arguments)
        pixels[0, 1, 1, 1] ^= 1
        return pixels, symbols

    monkeypatch.setattr(DeviceEngine, "decode_many", wrong)
    problems = verify.decode(str(archive), placement=LOCAL, device="cuda").problems
    assert problems
    assert all("this machine computes wrongly" in problem for problem in problems)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("most", [1, 0])
def test_too_little_memory_costs_no_image(most: int, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = DeviceEngine.decode_many

    def small(self: DeviceEngine, streams: Any, *rest: Any) -> Any:
        if len(streams) > most:
            raise DeviceMemoryError("cuda has too little memory for this batch")
        return right(self, streams, *rest)

    monkeypatch.setattr(DeviceEngine, "decode_many", small)
    ours, _, said = both(archive, tmp_path)
    assert ours.problems == []
    assert "not used any more" not in said
    assert any("Float64Layers" in name for name in ours.computed_on) == (most == 1)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("number", [0, 2])
def test_a_device_that_fails_in_mid_shard_costs_nothing(number: int, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.execute.placement.DEVICE_WORKERS", 1)
    monkeypatch.setattr(DeviceEngine, "_gains", fails_at(number, DeviceEngine._gains, RuntimeError("CUDA error: unspecified launch failure")))
    ours, _, said = both(archive, tmp_path)
    assert (ours.images, ours.problems) == (12, [])
    assert said.count("a GPU is not used any more") == 1
    assert "unspecified launch failure" in said


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("scale", [2, 8])
def test_a_batch_gives_the_smaller_pictures_that_single_images_give(
    scale: int, small_photos: Path, tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = load((GOLDEN / "heads" / "heads.safetensors").read_bytes())
    model = tmp_path / "tiny.safetensors"
    model.write_bytes(integer_model_bytes(tiny.config, tiny.integer, tiny.golden, name="with heads", tables=tiny.tables, heads=heads))
    config = CompressConfig(budget=Budget(kind="q", value=3.0), model=str(model))
    Run(str(small_photos), str(tmp_path / "dst"), config, JsonReporter(io.StringIO()), placement=LOCAL).execute()
    sizes: list[int] = []
    right = DeviceEngine.decode_reduced_many

    def seen(self: DeviceEngine, streams: Any, *rest: Any) -> Any:
        if len(streams) > 4:
            raise DeviceMemoryError("cuda has too little memory for this batch")
        sizes.append(len(streams))
        return right(self, streams, *rest)

    monkeypatch.setattr(DeviceEngine, "decode_reduced_many", seen)
    # One that is damaged in its first stream costs itself alone.
    row = next(row for row in Archive(str(tmp_path / "dst")).manifest().to_pylist() if row["codec"] == "msinn")
    shard = tmp_path / "dst" / row["shard_key"]
    data = bytearray(shard.read_bytes())
    data[row["offset"] + bitstream.prefix_of(bytes(data[row["offset"] :][: row["length"]]), 1).size - 1] ^= 255
    shard.chmod(0o644)
    shard.write_bytes(data)
    made = {}
    for device in ("cpu", "cuda"):
        conversion = Conversion("png", scale=scale)
        found = restore(str(tmp_path / "dst"), str(tmp_path / device), placement=LOCAL, device=device, conversion=conversion)
        made[device] = facts(found), files(tmp_path / device)
        assert any("Float64Layers" in name for name in found.computed_on) == (device == "cuda")
    assert made["cuda"] == made["cpu"]
    assert len(made["cpu"][0][-1]) == 1
    assert max(sizes) >= 2
    assert sum(sizes) == 13, "ten; those of the damaged one's batch again, one by one; and itself, to say what is wrong"


def test_auto_says_once_what_it_found(archive: Path, tmp_path: Path, tiny: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a GPU: the CPU, and no warning."""
    assert main(["restore", str(archive), str(tmp_path / "out"), "--device", "auto"]) == 0
    said = capsys.readouterr()
    assert said.out.count("decoded on") == 1
    assert f"cpu ({Codec(tiny).engine.name})" in said.out
    assert "warning" not in said.err
    assert main(["verify", str(archive), "--decode", "--device", "auto"]) == 0
    assert capsys.readouterr().out.count("decoded on") == 1
    command = [
        "compress",
        str(tmp_path / "in"),
        str(tmp_path / "auto"),
        "--q",
        "3",
        "--model",
        str(tmp_path / "tiny.safetensors"),
        "--device",
        "auto",
    ]
    assert main(command) == 3  # a broken file among them
    said = capsys.readouterr()
    assert said.out.count("encoded on") == 1
    assert "warning" not in said.err
    assert files(tmp_path / "auto" / "shards") == files(archive / "shards")


@pytest.mark.usefixtures("gpu")
def test_auto_takes_a_gpu_that_is_there(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert main(["restore", str(archive), str(tmp_path / "out"), "--device", "auto", "--executor", "local"]) == 0
    assert "Float64Layers" in capsys.readouterr().out
