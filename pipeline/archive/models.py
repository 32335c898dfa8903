"""Models in an archive: folder `model`, each as its file or in the compact form, with every model that another is told as a difference to."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from msinn_core.model_file import LoadedModel, shipped_model_bytes, shipped_models
from msinn_core.model_folder import find_model, folder_objects
from pipeline.errors import NotFoundError
from pipeline.limits import MAX_MODEL_BYTES
from pipeline.store.base import Store

FOLDER = "model"

IN_ARCHIVE = re.compile(r"(?P<archive>.+)/model/(?P<digest>[0-9a-f]{64})(?:\.safetensors|\.compact)")
"""The address of a model of an archive."""


def archive_of(address: str) -> str:
    """The archive that a model lies in, of the model's address; any other address as it is."""
    found = IN_ARCHIVE.fullmatch(address)
    return found["archive"] if found else address


def publish_models(store: Store, models: Sequence[bytes], bases: Sequence[bytes] = ()) -> None:
    """Write models as short as they become (see `folder_objects`). Doing it twice is harmless, and so is doing it with other bases."""
    for name, data in folder_objects(models, bases).items():
        store.publish_bytes(data, f"{FOLDER}/{name}")


def shipped_bases(models: Sequence[LoadedModel]) -> list[bytes]:
    """Shipped models that some of these may have been learned from, and be short as differences to."""
    digests = set(shipped_models().values())
    if all(model.sha256 in digests for model in models):
        return []
    return [data for digest in sorted(digests) if (data := shipped_model_bytes(digest)) is not None]


def stored_model(store: Store, digest: str) -> bytes | None:
    """The file of a stored model, checked against its SHA-256; None if it is not there.

    Raises:
        CheckpointError: What is there does not give it back.
        StorageError: It cannot be read.
    """
    return find_model(digest, model_reader(store))


def model_reader(store: Store) -> Callable[[str], bytes | None]:
    """Gives the bytes of a name in the archive's folder of models, or None if it is not there."""

    def read(name: str) -> bytes | None:
        try:
            return store.read(f"{FOLDER}/{name}", limit=MAX_MODEL_BYTES)
        except NotFoundError:
            return None

    return read
