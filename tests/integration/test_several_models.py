"""Archives whose images have different models: each takes the one that needs the fewest bytes, and everything that reads knows which."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from msinn_core.assembly import refitted_model
from msinn_core.bitstream import model_named
from msinn_core.model_file import LoadedModel, parse_model, with_card
from msinn_core.picture import Picture
from pipeline.archive.archive import Archive
from pipeline.encode.coders import Coders, cost_rate
from pipeline.encode.tasks import WorkConfig
from pipeline.errors import ManifestError
from pipeline.plan.config import Budget, CompressConfig
from pipeline.read.decoder import Decoder
from pipeline.run.compress import Outcome, Run
from pipeline.run.report import JsonReporter
from tests.conftest import make_photos


def texture(seed: int, side: int = 96) -> Image.Image:
    """Noise, which photographs have less of."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))


@pytest.fixture(scope="module")
def models(tiny: LoadedModel, photo: np.ndarray) -> list[LoadedModel]:
    photos = [photo[40 * i : 40 * i + 96, 30 * i : 30 * i + 96].copy() for i in range(10)]
    kinds = {"photos": photos, "textures": [np.asarray(texture(i)) for i in range(10)]}
    return [parse_model(refitted_model(tiny, name=name, pictures=[Picture(pixels=each) for each in kind])) for name, kind in kinds.items()]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = make_photos(tmp_path / "in", 12, 96, ".bmp")
    for i in range(6):
        texture(100 + i).save(folder / f"texture{i}.bmp")
    return folder


def run(images: Path, destination: Path, models: list[LoadedModel], kind: str, value: float) -> Outcome:
    config = CompressConfig(budget=Budget(kind=kind, value=value))
    return Run(str(images), str(destination), config, JsonReporter(io.StringIO()), own_models=lambda _: models).execute()


@pytest.mark.parametrize(("kind", "value"), [("bpp", 6.0), ("q", 4.0), ("psnr", 20.0)])
def test_each_image_has_the_model_that_needs_the_fewest_bytes(
    kind: str, value: float, images: Path, models: list[LoadedModel], tmp_path: Path
) -> None:
    dst = tmp_path / "dst"
    assert run(images, dst, models, kind, value).sealed is not None
    archive = Archive(str(dst))
    assert archive.run.models == [model.sha256 for model in models]
    rows = {row["name"]: row for row in archive.manifest().to_pylist()}
    for name, row in rows.items():
        if row["codec"] == "msinn":
            assert row["model_sha256"] == models["texture" in name].sha256, name
    assert any("texture" in name for name, row in rows.items() if row["codec"] == "msinn")
    assert main(["-q", "verify", str(dst), "--decode"]) == 0


def test_a_growth_gives_each_new_image_one_of_the_archives_models(images: Path, models: list[LoadedModel], tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    run(images, dst, models, "bpp", 6.0)
    for i in range(4):
        texture(200 + i).save(images / f"more-texture{i}.bmp")
    make_photos(images, 16, 96, ".bmp")
    config = CompressConfig(budget=Budget(kind="bpp", value=6.0))
    outcome = Run(str(images), str(dst), config, JsonReporter(io.StringIO()), grow=True).execute()
    assert outcome.grown is not None
    assert (outcome.grown.added, outcome.grown.changed) == (8, 0)
    rows = [row for row in Archive(str(dst)).manifest().to_pylist() if row["shard_key"].startswith("generations/") and row["codec"] == "msinn"]
    assert {row["model_sha256"] for row in rows} == {model.sha256 for model in models}
    assert all(row["model_sha256"] == models["texture" in row["name"]].sha256 for row in rows)
    assert main(["-q", "verify", str(dst), "--decode"]) == 0


def test_what_is_lost_is_made_again_with_the_same_models_and_salvaged_with_them(images: Path, models: list[LoadedModel], tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    run(images, dst, models, "q", 4.0)
    shards = {path: path.read_bytes() for path in (dst / "shards").iterdir()}
    assert len(shards) > 1
    for path in shards:
        path.unlink()
    run(images, dst, models, "q", 4.0)
    assert {path: path.read_bytes() for path in (dst / "shards").iterdir()} == shards
    # Without the books the bitstreams themselves say whose they are.
    assert main(["-q", "restore", str(dst), str(tmp_path / "before")]) == 0
    for path in (dst / "manifest").iterdir():
        path.unlink()
    assert main(["-q", "restore", str(dst), str(tmp_path / "out")]) == 5
    before, after = ({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.png")} for name in ("before", "out"))
    assert after == before
    assert len(before) == 18


def test_a_lost_model_is_named(images: Path, models: list[LoadedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst = tmp_path / "dst"
    run(images, dst, models, "q", 4.0)
    (lost,) = [path for path in (dst / "model").iterdir() if models[1].sha256 in path.name]
    lost.unlink()
    assert main(["-q", "verify", str(dst)]) == 5
    with pytest.raises(ManifestError, match=f"was begun with model {models[1].sha256[:12]}, which is missing"):
        run(images, dst, models, "q", 4.0)
    assert models[1].sha256[:12] in "".join(capsys.readouterr())


def test_models_that_the_run_does_not_name_are_not_read(images: Path, models: list[LoadedModel], tmp_path: Path) -> None:
    """Each would be held in memory by whoever restores, and rows may name thousands that take a few hundred bytes."""
    dst = tmp_path / "dst"
    run(images, dst, models, "q", 4.0)
    record = json.loads((dst / "run.json").read_text())
    (dst / "run.json").write_text(json.dumps(record | {"further_models": []}))
    rows = Archive(str(dst)).manifest().to_pylist()
    row = next(row for row in rows if row["model_sha256"] == models[1].sha256)
    with pytest.raises(ManifestError, match="is not made with model"):
        Decoder(Archive(str(dst))).codec(row["model_sha256"], "cpu")
    both = Decoder(Archive(str(dst)))
    assert both.codec(models[0].sha256, "cpu") is both.codec(models[0].sha256, "cuda"), "one codec a model"


def test_models_are_compared_at_the_rates_that_they_learned(model: LoadedModel) -> None:
    def learned(q_range: object) -> LoadedModel:
        return parse_model(with_card(model.data, {"q_range": q_range}))

    assert [cost_rate(learned(said)) for said in ([0.0, 2.0], [7.5, 11.0], None, [3], [-1, 99], ["a", "b"])] == [1, 9, 6, 6, 6, 6]
    assert cost_rate(model) == 6


def test_the_choice_is_by_cost(models: list[LoadedModel], photo: np.ndarray) -> None:
    coders = Coders(models, WorkConfig(target_psnr_db=None, max_pixels=10**6, count_sidecars=False, ms_ssim=False))
    assert coders.cheapest(Picture(pixels=photo[:128, :128].copy())) == 0
    assert coders.cheapest(Picture(pixels=np.asarray(texture(7)))) == 1


def test_bytes_say_whose_they_are(models: list[LoadedModel]) -> None:
    from msinn_core.codec import Codec

    data = Codec(models[1]).encode(Picture(pixels=np.asarray(texture(1))), 3.0)
    assert model_named(data) == models[1].sha256[:32]
    assert model_named(data[:10]) is None
    assert model_named(b"RIFF" + data[4:]) is None
