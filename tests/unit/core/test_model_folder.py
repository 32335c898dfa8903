"""Folders of models: the shorter form of each, everything that it needs beside it, and one sentence where something is lost."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from msinn_core.compact import head
from msinn_core.compacting import compacted
from msinn_core.errors import CheckpointError
from msinn_core.model_file import load_model, read_metadata, shipped_models
from msinn_core.model_folder import COMPACT, PLAIN, find_model, folder_objects

GOLDEN = Path(__file__).parents[2] / "golden" / "integer"
GENERAL = (GOLDEN / "model.safetensors").read_bytes()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@functools.cache  # the order of a file's metadata is left to chance
def tuned(step: int, origin: bytes = GENERAL) -> bytes:
    """The general model with small changes of its own, and a card that says so."""
    tensors, random = load(origin), np.random.default_rng(step)
    for name in sorted(tensors):
        if "weight" in name and tensors[name].dtype == np.int16:
            tensors[name] = tensors[name] + random.integers(0, 2, tensors[name].shape, np.int16)
    card = json.dumps({"derived_from": sha(origin)})
    return save(tensors, {**read_metadata(origin), "name": f"tuned-{step}", "card": card})


def bases(objects: dict[str, bytes]) -> dict[str, str | None]:
    return {name.partition(".")[0]: head(data).base for name, data in objects.items()}


def test_one_model_lies_alone() -> None:
    objects = folder_objects([GENERAL])
    assert objects.keys() == {sha(GENERAL) + COMPACT}
    assert find_model(sha(GENERAL), objects.get) == GENERAL
    assert find_model("0" * 64, objects.get) is None


def test_what_does_not_become_shorter_lies_there_as_it_is() -> None:
    noise = np.random.default_rng(0).bytes(3000)
    assert folder_objects([noise]) == {sha(noise) + PLAIN: noise}


def test_tuned_models_are_differences_where_their_origin_is_there_anyway() -> None:
    models = [tuned(5), GENERAL, tuned(3)]
    objects = folder_objects(models)
    assert bases(objects) == {sha(GENERAL): None, sha(models[0]): sha(GENERAL), sha(models[2]): sha(GENERAL)}
    assert [find_model(sha(model), objects.get) for model in models] == models


def test_a_base_is_added_only_where_that_pays() -> None:
    assert folder_objects([tuned(5)], [GENERAL]) == folder_objects([tuned(5)])
    many = [tuned(step) for step in range(2, 7)]
    objects = folder_objects(many, [GENERAL])
    assert sum(map(len, objects.values())) < sum(len(compacted(model)) for model in many)
    assert list(bases(objects).values()).count(None) == 1
    assert [find_model(sha(model), objects.get) for model in many] == many


def test_relatives_are_differences_without_their_origin() -> None:
    models = [tuned(5), tuned(3)]
    objects = folder_objects(models)
    assert bases(objects) == {sha(models[0]): None, sha(models[1]): sha(models[0])}


def test_either_form_is_found_and_one_that_is_damaged_does_not_hide_the_other() -> None:
    digest, small = sha(GENERAL), compacted(GENERAL)
    for objects in ({digest + PLAIN: GENERAL}, {digest + COMPACT: small}, {digest + COMPACT: small[:-1], digest + PLAIN: GENERAL}):
        assert find_model(digest, objects.get) == GENERAL
    assert find_model(digest, {digest + COMPACT: small, digest + PLAIN: b""}.get) == GENERAL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda objects, general, own: objects.pop(general + COMPACT), "is stored as a difference to model {general}, which is lost"),
        (lambda objects, general, own: objects.update({general + COMPACT: b""}), "{general}.* is not the model whose SHA-256 is its name"),
        (lambda objects, general, own: objects.update({own + COMPACT: objects[general + COMPACT]}), "{own}.* is not the model whose SHA-256"),
        (lambda objects, general, own: objects.update({own + COMPACT: objects[own + COMPACT][:-4]}), "{own} is damaged: it is not as long"),
        (lambda objects, general, own: objects.update({general + COMPACT: objects[own + COMPACT]}), "is a base and a difference itself"),
    ],
    ids=["lost", "empty", "another", "cut", "circle"],
)
def test_what_is_lost_or_damaged_is_one_sentence(change: Any, message: str) -> None:
    own = tuned(4)
    objects = folder_objects([GENERAL, own])
    change(objects, sha(GENERAL), sha(own))
    expected = message.format(general=sha(GENERAL)[:12], own=sha(own)[:12])
    with pytest.raises(CheckpointError, match=expected):
        find_model(sha(own), objects.get)


def test_a_base_that_came_with_msinn_is_found_there() -> None:
    digest = shipped_models()["msinn-lite"]
    own = tuned(2, load_model("msinn-lite").data)
    objects = {sha(own) + COMPACT: compacted(own, load_model("msinn-lite").data)}
    assert head(objects[sha(own) + COMPACT]).base == digest
    assert find_model(sha(own), objects.get) == own


def test_a_compact_model_is_loaded_by_its_path_with_what_lies_beside_it(tmp_path: Path) -> None:
    own = tuned(4)
    for name, data in folder_objects([GENERAL, own]).items():
        (tmp_path / name).write_bytes(data)
    assert load_model(str(tmp_path / (sha(GENERAL) + COMPACT))).data == GENERAL
    path = tmp_path / (sha(own) + COMPACT)
    assert (load_model(str(path)).data, load_model(str(path)).sha256) == (own, sha(own))
    (tmp_path / (sha(GENERAL) + COMPACT)).rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=f"difference to model {sha(GENERAL)[:12]}, which is lost"):
        load_model(str(path))
