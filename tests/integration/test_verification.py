"""What is verified before a shard is committed: the same manifest as by decoding every image, and machines that compute wrongly found out."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.cli import main
from msinn_core.codec import Codec
from msinn_core.coding import Latents, Symbols
from msinn_core.integer.ops import COMPILED, Compiled
from msinn_core.model_file import load_model
from pipeline.archive.archive import Archive
from pipeline.encode.tasks import WorkConfig
from pipeline.encode.worker import ShardWorker
from pipeline.errors import MachineError
from pipeline.execute.placement import Placement
from pipeline.plan.config import Budget, CompressConfig
from pipeline.read import verify
from pipeline.run.compress import Outcome, Run, make_worker
from pipeline.run.report import JsonReporter
from tests.conftest import make_photos

LOCAL = Placement(executor="local")

MEASURED = ("name", "status", "q", "payload_sha256", "mse", "psnr_db", "ms_ssim", "recon_sha256", "lossless", "decode_verified", "clamp", "member")


def run(source: Path, destination: Path, kind: str, value: float, **options: Any) -> Outcome:
    config = CompressConfig(budget=Budget(kind=kind, value=value), **options)
    return Run(str(source), str(destination), config, JsonReporter(io.StringIO()), placement=LOCAL).execute()


def rows(archive: Path) -> list[dict[str, Any]]:
    return Archive(str(archive)).manifest().to_pylist()  # type: ignore[no-any-return]


@pytest.fixture
def pictures(tmp_path: Path, photo: NDArray[np.uint8]) -> Path:
    """One of each kind, as files that coding makes smaller."""
    folder = make_photos(tmp_path / "in", 3, 96)
    Image.fromarray(photo[:180, :170]).save(folder / "odd.bmp")
    Image.fromarray(photo[:173, :161, 1]).save(folder / "grey.bmp")
    Image.fromarray(np.dstack((photo[:90, :75], photo[:90, 100:175, 0]))).save(folder / "alpha.png")
    Image.fromarray(photo[:512, :1].repeat(4, axis=0)).save(folder / "narrow.bmp")
    return folder


@pytest.mark.parametrize(("kind", "value", "options"), [("q", 5.0, {"ms_ssim": True}), ("psnr", 35.0, {}), ("bpp", 3.0, {"min_psnr_db": 33.0})])
def test_the_manifest_is_that_of_full_decodes(
    kind: str, value: float, options: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a quality is searched, and where a shard is trimmed."""
    run(pictures, tmp_path / "new", kind, value, **options)
    right, decodes = Codec.compress, []

    def forgetful(self: Codec, latents: Latents, q: float, *, keep_walk: bool = False, last: bool = False) -> Symbols:
        decodes.append(keep_walk)
        return right(self, latents, q, last=last)

    monkeypatch.setattr(Codec, "compress", forgetful)
    run(pictures, tmp_path / "old", kind, value, **options)
    assert all(decodes), "a codec of this run was not asked to keep its walk: nothing was compared"
    new, old = ([{name: row[name] for name in MEASURED} for row in rows(tmp_path / which)] for which in ("new", "old"))
    assert new == old
    assert [row["status"] for row in new] == ["coded"] * 7
    assert all(row["decode_verified"] for row in new)
    assert verify.decode(str(tmp_path / "new"), placement=LOCAL).problems == []


def test_a_sample_or_every_image_is_decoded(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, decoded = Codec.decode, []

    def counted(self: Codec, data: bytes) -> Any:
        decoded.append(self.engine.name)
        return right(self, data)

    monkeypatch.setattr(Codec, "decode", counted)
    arguments = ["compress", str(pictures), str(tmp_path / "all"), "--q", "4"]
    assert main([*arguments, "--verify", "full"]) == 0
    assert len(decoded) == 7
    assert not COMPILED or set(decoded) == {Codec(load_model()).counterpart().engine.name}
    assert json.loads((tmp_path / "all" / "run.json").read_bytes())["config"]["verify_sample"] == 1.0
    decoded.clear()
    assert main(["compress", str(pictures), str(tmp_path / "some"), "--q", "4", "--verify-sample", "0"]) == 0
    assert len(decoded) == len(list((tmp_path / "some" / "shards").iterdir()))


def test_options_of_verification(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compress", str(pictures), str(tmp_path / "dst"), "--q", "4"]
    for extra, sentence in ((["--verify", "full", "--verify-sample", "0.5"], "contradicts"), (["--verify-sample", "1.5"], "a share from 0 to 1")):
        assert main([*arguments, *extra]) == 2
        assert sentence in capsys.readouterr().err
    assert main(arguments) == 0
    assert main([*arguments, "--verify", "full"]) == 2
    assert "verify_sample was 0.03125, now 1.0" in capsys.readouterr().err
    # An archive that an msinn without the option began goes on with what is usual now.
    path = tmp_path / "dst" / "run.json"
    begun = json.loads(path.read_bytes())
    del begun["config"]["verify_sample"]
    path.chmod(0o644)
    path.write_text(json.dumps(begun))
    assert main(arguments) == 0


class Slipping(Compiled):
    """A machine that gets one value wrong, behind all symbols."""

    def unit(self, z: NDArray[np.int32], *rest: object) -> NDArray[np.int32]:  # type: ignore[override]
        out = super().unit(z, *rest)  # type: ignore[arg-type]
        if out.shape[2] == 12:
            out[1, 1, 5] += 20_000
        return out


def slipping_worker(models: Sequence[bytes], url: str, config: WorkConfig, threads: int = 1) -> ShardWorker:
    """A real worker on such a machine. Its model has passed the self-test."""
    worker = make_worker(models, url, config)
    worker.coder.codec.engine.backend.__class__ = Slipping
    return worker


def mixed_worker(models: Sequence[bytes], url: str, config: WorkConfig, threads: int = 1) -> ShardWorker:
    """The first of a pool's workers is on such a machine, the others are not."""
    try:
        os.close(os.open(f"{url}.taken", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        time.sleep(2)  # the first has its first shard by then
        return make_worker(models, url, config)
    return slipping_worker(models, url, config)


needs_kernel = pytest.mark.skipif(not COMPILED, reason="the integer kernel is not compiled: install with a C compiler")


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@needs_kernel
@pytest.mark.parametrize(("kind", "value"), [("q", 4.0), ("bpp", 3.0)])
def test_in_process_a_machine_that_computes_wrongly_ends_the_run(kind: str, value: float, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "in", 9, 64)
    config, destination = CompressConfig(budget=Budget(kind=kind, value=value)), tmp_path / "dst"
    with pytest.raises(MachineError, match=rf"worker \S+:{os.getpid()} computes wrongly: photo00\d\.png, encoded there with .* to other pixels"):
        Run(str(photos), str(destination), config, JsonReporter(io.StringIO()), placement=LOCAL, worker=slipping_worker).execute()
    assert (names_of(destination / "commits"), names_of(destination / "shards"), names_of(destination / "manifest")) == ([], [], [])
    # On another machine the same command goes on.
    assert Run(str(photos), str(destination), config, JsonReporter(io.StringIO()), placement=LOCAL).execute().sealed is not None


@needs_kernel
def test_a_lost_shard_is_not_made_again_on_a_machine_that_computes_wrongly(tmp_path: Path) -> None:
    photos, destination = make_photos(tmp_path / "in", 5, 64), tmp_path / "dst"
    run(photos, destination, "q", 4.0)
    before = {path.name: path.read_bytes() for path in (destination / "shards").iterdir()}
    lost = sorted(before)[0]
    (destination / "shards" / lost).unlink()
    config = CompressConfig(budget=Budget(kind="q", value=4.0))
    with pytest.raises(MachineError):
        Run(str(photos), str(destination), config, JsonReporter(io.StringIO()), placement=LOCAL, worker=slipping_worker).execute()
    assert lost not in names_of(destination / "shards")
    run(photos, destination, "q", 4.0)
    assert {path.name: path.read_bytes() for path in (destination / "shards").iterdir()} == before


@needs_kernel
@pytest.mark.usefixtures("ray_pool")
@pytest.mark.parametrize("executor", ["ray", "processes"])
def test_a_worker_that_computes_wrongly_is_retired_and_the_others_go_on(tmp_path: Path, executor: str) -> None:
    photos, destination, log = make_photos(tmp_path / "in", 40, 64), tmp_path / "dst", io.StringIO()
    config = CompressConfig(budget=Budget(kind="q", value=4.0))
    placement = Placement(executor=executor, workers=2)
    outcome = Run(str(photos), str(destination), config, JsonReporter(log), placement=placement, worker=mixed_worker).execute()
    assert outcome.sealed is not None
    troubles = [line for line in map(json.loads, log.getvalue().splitlines()) if line.get("event") == "trouble"]
    assert [line["kind"] for line in troubles] == ["machine"]
    found = rows(destination)
    (worker,) = {row["worker"] for row in found}
    assert "computes wrongly" in troubles[0]["reason"]
    assert worker not in troubles[0]["reason"]
    assert [row["status"] for row in found] == ["coded"] * 40
    assert verify.decode(str(destination), placement=LOCAL).problems == []


@needs_kernel
@pytest.mark.usefixtures("ray_pool")
def test_on_ray_the_last_worker_that_computes_wrongly_ends_the_run(tmp_path: Path) -> None:
    photos, destination = make_photos(tmp_path / "in", 20, 64), tmp_path / "dst"
    config, placement = CompressConfig(budget=Budget(kind="q", value=4.0)), Placement(executor="ray", workers=2)
    with pytest.raises(MachineError, match="computes wrongly"):
        Run(str(photos), str(destination), config, JsonReporter(io.StringIO()), placement=placement, worker=slipping_worker).execute()
    assert (names_of(destination / "commits"), names_of(destination / "shards")) == ([], [])
