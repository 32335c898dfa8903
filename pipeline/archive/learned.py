"""Folder `tune` of an archive: what its run learned from its images. Only the report stays; the rest is removed once the run has begun."""

from __future__ import annotations

import contextlib

from pipeline.archive.layout import RUN
from pipeline.errors import StorageError
from pipeline.store.base import Store

FOLDER = "tune"
REPORT = f"{FOLDER}/report.json"


def leftovers(store: Store) -> list[str]:
    """States of training and models that a run which was killed has left: they hold what was learned from the images. None before a run has begun."""
    return [name for name in store.list(FOLDER) if name != REPORT] if store.exists(RUN) else []


def tidy(store: Store) -> None:
    """Remove them. Where that is not allowed (archives need no right to delete) `msinn gc` says what is there."""
    with contextlib.suppress(StorageError):
        for name in leftovers(store):
            store.remove(name)
