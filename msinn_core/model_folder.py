"""A folder of models, each named after the SHA-256 of its file: as that file, or in the compact form. Whatever is needed to have a model back lies in
the same folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from msinn_core.compact import MAX_BYTES, expand, head, is_compact
from msinn_core.compacting import compacted
from msinn_core.errors import CheckpointError
from msinn_core.model_file import read_metadata, shipped_model_bytes

PLAIN, COMPACT = ".safetensors", ".compact"
"""How names end: of a model file, and of its compact form."""

MODEL_NAME = re.compile(r"([0-9a-f]{64})(\.safetensors|\.compact)")

Read = Callable[[str], bytes | None]
"""Gives the bytes of a name in a folder, or None if it is not there."""

_NEARLY = 1 / 128
"""Folders whose sizes differ by less are as good as each other."""

_alone = lru_cache(maxsize=1)(compacted)
"""Most archives are made with the same model."""


def find_model(digest: str, read: Read) -> bytes | None:
    """The model file of a SHA-256, whichever form is there; None if none is.

    Args:
        digest: 64 hex digits.
        read: Of the folder.

    Raises:
        CheckpointError: What is there does not give the file back: damaged, or a difference to a model that is lost.
    """
    return _find(digest, read, alone=False)


def _find(digest: str, read: Read, *, alone: bool) -> bytes | None:
    faults = []
    for name in (digest + COMPACT, digest + PLAIN):
        if (data := read(name)) is None:
            continue
        try:
            if is_compact(data):
                data = _expanded(data, read, alone=alone)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        if hashlib.sha256(data).hexdigest() == digest:
            return data
        faults.append(f"{name} is damaged: it is not the model whose SHA-256 is its name")
    if faults:
        raise CheckpointError(faults[0])
    return None


def _expanded(data: bytes, read: Read, *, alone: bool) -> bytes:
    """The file of a compact one. A base is no difference itself: there are no chains, and no circles."""
    said = head(data)
    if alone and said.base is not None:
        raise CheckpointError(f"model {said.sha256[:12]} is a base and a difference itself, which msinn never writes")

    def base_of(digest: str) -> bytes:
        found = _find(digest, read, alone=True) or shipped_model_bytes(digest)
        if found is None:
            raise CheckpointError(f"model {said.sha256[:12]} is stored as a difference to model {digest[:12]}, which is lost")
        return found

    return expand(data, base_of)


def model_file_bytes(path: Path) -> bytes:
    """The model file at a path, or that of the compact form there, whose base lies beside it.

    Raises:
        OSError: It cannot be read.
        CheckpointError: It is damaged, or its base is lost.
    """

    def beside(name: str) -> bytes | None:
        try:
            return (path.parent / name).read_bytes()
        except OSError:
            return None

    data = path.read_bytes()
    return _expanded(data, beside, alone=False) if is_compact(data) else data


def folder_objects(models: Sequence[bytes], bases: Sequence[bytes] = ()) -> dict[str, bytes]:
    """Names and bytes under which models lie in a folder, in as few bytes as are found: each in the shorter of its forms.

    Args:
        models: Their files, one or more.
        bases: Models that need not be there, and are where others become shorter by more than they take.
    """
    everything = {hashlib.sha256(data).hexdigest(): data for data in (*models, *bases)}
    derived = {said for data in models if (said := _derived_from(data)) in everything}
    first = {hashlib.sha256(models[0]).hexdigest()} if len(models) > 1 else set[str]()
    choices = [_objects(models, everything[digest] if digest else None) for digest in (*sorted(derived), None, *sorted(first - derived))]
    sizes = [sum(map(len, objects.values())) for objects in choices]
    # A base that is a sibling saves a few bytes by chance: the origin is what all of them share.
    return next(objects for objects, size in zip(choices, sizes, strict=True) if size <= min(sizes) * (1 + _NEARLY))


def _objects(models: Sequence[bytes], base: bytes | None) -> dict[str, bytes]:
    objects = dict([_object(base, None)] if base is not None else [])
    for data in models:
        if data != base:
            name, stored = min((_object(data, other) for other in {None, base}), key=lambda item: len(item[1]))
            objects[name] = stored
    return objects


def _object(data: bytes, base: bytes | None) -> tuple[str, bytes]:
    digest = hashlib.sha256(data).hexdigest()
    if len(data) <= MAX_BYTES:
        small = _alone(data) if base is None else compacted(data, base)
        if len(small) < len(data):
            return digest + COMPACT, small
    return digest + PLAIN, data


def _derived_from(data: bytes) -> str | None:
    """SHA-256 of the model that a card names as its origin."""
    try:
        card = json.loads(read_metadata(data).get("card", ""))
    except (CheckpointError, ValueError, RecursionError):
        return None
    said = card.get("derived_from") if isinstance(card, dict) else None
    return said if isinstance(said, str) else None
