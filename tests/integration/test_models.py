"""Models in archives: in the compact form, found again in whichever form, by every verb and on every store; and what `msinn models` says of them."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
from safetensors.numpy import load

from jobs.cli import main
from msinn_core.compact import head
from msinn_core.compacting import compacted
from msinn_core.model_file import load_model, with_card
from pipeline.archive.archive import Archive
from pipeline.archive.models import publish_models, stored_model
from pipeline.read import verify
from pipeline.read.restore import restore
from pipeline.store.base import open_store
from tests.conftest import make_photos
from tests.unit.core.test_model_folder import GENERAL, GOLDEN, tuned

MODEL = GOLDEN / "model.safetensors"
DIGEST = hashlib.sha256(GENERAL).hexdigest()


def compress(source: Path, destination: object, model: object = MODEL) -> int:
    return main(["-q", "compress", str(source), str(destination), "--q", "2", "--model", str(model)])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("in"), 4, 64)


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made") / "archive"
    assert compress(photos, place) == 0
    return place


@pytest.fixture
def archive(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "archive"))


def unfinished(archive: Path) -> None:
    """As a run leaves it that was killed before its last shard."""
    (archive / "MANIFEST.json").unlink()
    sorted((archive / "commits").iterdir())[-1].unlink()


def test_an_archive_carries_its_model_in_the_compact_form(archive: Path, tmp_path: Path) -> None:
    assert [path.name for path in (archive / "model").iterdir()] == [f"{DIGEST}.compact"]
    assert (archive / "model" / f"{DIGEST}.compact").stat().st_size < 0.5 * len(GENERAL)
    assert Archive(str(archive)).model_bytes() == GENERAL
    for book in ("run.json", "MANIFEST.json"):
        values = json.loads((archive / book).read_text())
        assert (values["archive_version"], values["model_sha256"]) == (4, DIGEST)
    assert restore(str(archive), str(tmp_path / "out")).problems == []
    assert main(["inspect", str(archive / "model" / f"{DIGEST}.compact")]) == 0


def test_a_difference_needs_nothing_outside_the_archive(archive: Path) -> None:
    models = [GENERAL, tuned(4), tuned(5)]
    publish_models(open_store(str(archive)), models)
    digests = [hashlib.sha256(model).hexdigest() for model in models]
    forms = {path.name.partition(".")[0]: head(path.read_bytes()) for path in (archive / "model").iterdir()}
    assert {digest: forms[digest].base for digest in digests} == {digests[0]: None, digests[1]: DIGEST, digests[2]: DIGEST}
    assert [Archive(str(archive)).model_bytes(digest) for digest in digests] == models


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "another", "lost"])
def test_a_damaged_model_is_one_sentence(archive: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = archive / "model" / f"{DIGEST}.compact"
    data = path.read_bytes()
    changed = {"flipped": data[:9000] + bytes([data[9000] ^ 4]) + data[9001:], "cut": data[:-9], "empty": b"", "another": compacted(tuned(4))}
    path.unlink() if how == "lost" else path.write_bytes(changed[how])
    problems = verify.fixity(str(archive)).problems
    assert len(problems) == 1
    assert str(archive / "model") in problems[0]
    assert main(["verify", str(archive), "--decode"]) == 5
    assert "Traceback" not in capsys.readouterr().err


def test_an_archive_that_holds_the_file_itself_is_read(archive: Path, tmp_path: Path) -> None:
    """As before version 3, or where somebody put it there."""
    (archive / "model" / f"{DIGEST}.compact").unlink()
    assert len(verify.fixity(str(archive)).problems) == 1
    shutil.copy(MODEL, archive / "model" / f"{DIGEST}.safetensors")
    assert verify.fixity(str(archive)).problems == []
    assert restore(str(archive), str(tmp_path / "out")).problems == []


def test_an_archive_of_version_2_is_finished_as_one(archive: Path, photos: Path) -> None:
    (archive / "run.json").write_text((archive / "run.json").read_text().replace('"archive_version": 4', '"archive_version": 2'))
    shutil.rmtree(archive / "model")
    (archive / "model").mkdir()
    shutil.copy(MODEL, archive / "model" / f"{DIGEST}.safetensors")
    unfinished(archive)
    assert compress(photos, archive) == 0
    assert json.loads((archive / "MANIFEST.json").read_text())["archive_version"] == 2
    assert [path.name for path in (archive / "model").iterdir()] == [f"{DIGEST}.safetensors"]
    assert verify.fixity(str(archive)).problems == []


@pytest.mark.parametrize("store", ["folder", "remote"])
def test_a_run_goes_on_with_the_model_that_the_archive_holds(archive: Path, photos: Path, store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By what the message says, by its path and by the path of its file in earlier archives."""
    place = str(archive)
    unfinished(archive)
    if store == "remote":
        place = f"memory://{uuid.uuid4().hex}"
        fsspec.filesystem("memory").put(str(archive), place.removeprefix("memory:/"), recursive=True)
    assert compress(photos, place, "msinn-lite") == 2
    advice = capsys.readouterr().err
    assert f"resume with --model {DIGEST[:12]}, which is in it" in advice
    for which in (DIGEST[:12], DIGEST, f"{place}/model/{DIGEST}.compact", f"{place}/model/{DIGEST}.safetensors"):
        assert compress(photos, place, which) == 0
        assert verify.fixity(place).problems == []
        open_store(place).remove("MANIFEST.json")
    assert compress(photos, place, DIGEST[:6]) == 2


def test_another_archives_model_is_used_from_where_it_lies(archive: Path, photos: Path, tmp_path: Path) -> None:
    own = with_card(GENERAL, {"derived_from": DIGEST})
    digest = hashlib.sha256(own).hexdigest()
    publish_models(open_store(str(archive)), [GENERAL, own])
    assert (archive / "model" / f"{digest}.compact").stat().st_size < 1000
    assert compress(photos, tmp_path / "second", archive / "model" / f"{digest}.compact") == 0
    assert Archive(str(tmp_path / "second")).model_bytes() == own
    assert head((tmp_path / "second" / "model" / f"{digest}.compact").read_bytes()).base is None


def test_the_shipped_model_is_found_in_an_archive_on_s3(s3: str) -> None:
    model = load_model()
    publish_models(open_store(s3), [model.data])
    assert open_store(s3).list("model") == [f"model/{model.sha256}.compact"]
    assert open_store(s3).size(f"model/{model.sha256}.compact") < 3_000_000
    assert stored_model(open_store(s3), model.sha256) == model.data


def own_model(step: int) -> bytes:
    """A relative of the golden model that decodes, with a card."""
    return with_card(
        tuned(step), {"derived_from": DIGEST, "images": 1234, "minutes": 5.0, "bd_rate_percent": [-20.0, -22.5, -17.0], "name\x1b[2J": 1}
    )


def test_the_models_of_an_archive_are_listed(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = own_model(4)
    digest = hashlib.sha256(own).hexdigest()
    publish_models(open_store(str(archive)), [GENERAL, own])
    assert main(["models", "list", str(archive)]) == 0
    text = capsys.readouterr().out
    assert f"golden: {DIGEST[:12]}, profile int" in text
    assert "what the archive is made with" in text
    assert f"learned of 1,234 images for 5 minutes (-20.0 % bytes on others, -22.5 to -17.0) from model {DIGEST[:12]}" in text
    assert f"as a difference to {DIGEST[:12]}" in text
    assert main(["models", "list", str(archive), "--json"]) == 0
    facts = {line["sha256"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert (facts[DIGEST]["used"], facts[digest]["used"]) == (True, False)
    assert (facts[DIGEST]["difference_to"], facts[digest]["difference_to"]) == (None, DIGEST)
    assert facts[digest]["bytes"] == len(own)
    assert facts[digest]["stored_bytes"] == (archive / "model" / f"{digest}.compact").stat().st_size < facts[DIGEST]["stored_bytes"] < 0.5 * len(own)
    assert facts[digest]["card"]["images"] == 1234


def test_models_of_a_folder_are_listed_and_damaged_ones_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.safetensors").write_bytes(GENERAL)
    (tmp_path / "b.compact").write_bytes(compacted(GENERAL)[:-1])
    (tmp_path / "c.txt").write_bytes(b"no model")
    assert main(["models", "list", str(tmp_path)]) == 5
    out, err = capsys.readouterr()
    assert f"{len(compacted(GENERAL)):,} in the compact form" in out
    assert "is damaged: it is not as long as it says" in err
    assert main(["models", "list", str(tmp_path / "nothing")]) == 2
    assert "no archive and no folder of models" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert main(["models", "list", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out == "no models\n"


def test_two_models_are_compared(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = own_model(4)
    (tmp_path / "own.safetensors").write_bytes(own)
    assert main(["models", "compare", str(archive), str(tmp_path / "own.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["a"], found["b"], found["config"], found["alone"]) == (DIGEST, hashlib.sha256(own).hexdigest(), {}, [])
    changed = {part for part, (_, differ, _) in found["parts"].items() if differ}
    weighed = {name.split(".")[1] for name, tensor in load(GENERAL).items() if "weight" in name and tensor.dtype == np.int16}  # what `tuned` changes
    assert changed == weighed < found["parts"].keys()
    tensors, differ, much = found["parts"]["unit"]
    assert 0 < differ < tensors
    assert 0 < much < 0.1
    assert found["card"]["images"] == [None, 1234]
    assert found["bytes"] == {"file": len(own), "alone": len(compacted(own)), "difference": len(compacted(own, GENERAL))}
    assert main(["models", "compare", f"{archive}/model/{DIGEST}.compact", str(tmp_path / "own.safetensors")]) == 0
    text = capsys.readouterr().out
    assert "of the same network" in text
    assert "\x1b" not in text
    assert main(["models", "compare", "msinn-lite", str(archive)]) == 0
    assert "of different networks: " in capsys.readouterr().out
    assert main(["models", "compare", "msinn-lite", "msinn-lite"]) == 0
    assert "the same file" in capsys.readouterr().out


@pytest.mark.parametrize("store", ["folder", "remote"])
def test_a_models_file_is_exported(archive: Path, tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = own_model(4)
    digest = hashlib.sha256(own).hexdigest()
    publish_models(open_store(str(archive)), [GENERAL, own])
    place, out = str(archive), tmp_path / "out.safetensors"
    if store == "remote":
        place = f"memory://{uuid.uuid4().hex}"
        fsspec.filesystem("memory").put(str(archive), place.removeprefix("memory:/"), recursive=True)
    for arguments, expected in (([place], GENERAL), ([place, digest], own), ([place, digest[:8]], own), ([f"{place}/model/{digest}.compact"], own)):
        assert main(["models", "export", *arguments, "-o", str(out)]) == 0
        assert out.read_bytes() == expected
        assert hashlib.sha256(expected).hexdigest() in capsys.readouterr().out
    assert main(["models", "export", place, "0" * 12, "-o", str(out)]) == 2
    assert f"no model 000000000000...; there are {', '.join(sorted((DIGEST, digest)))}" in capsys.readouterr().err
    assert main(["models", "export", place, "", "-o", str(out)]) == 2
    assert main(["models", "export", place, "-o", str(tmp_path / "x.bin")]) == 2
    assert main(["models", "export", str(tmp_path / "nothing"), "-o", str(out)]) == 2
