"""`msinn compress --tune`: a run begins by learning its dataset, and goes on with the model that is certain to need fewer bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from msinn_core.errors import CheckpointError
from msinn_core.model_file import LoadedModel, parse_model
from pipeline.archive.layout import RUN, json_bytes
from pipeline.errors import NotFoundError, UsageError
from pipeline.lab.sample import draw
from pipeline.lab.tuning import TuneConfig, Tuning
from pipeline.limits import MAX_MODEL_BYTES, MAX_RUN_BYTES
from pipeline.sources import SourceRecord
from pipeline.store.base import Store, open_store

REPORT, MODEL, STATE = "tune/report.json", "tune/model.safetensors", "tune/state.safetensors"

_MAX_STATE_BYTES = 2**31


class StoreState:
    """The state of training in the archive, from where any machine goes on.

    Args:
        store: The archive.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def load(self) -> bytes | None:
        try:
            return self._store.read(STATE, limit=_MAX_STATE_BYTES)
        except NotFoundError:
            return None

    def save(self, data: bytes) -> None:
        self._store.publish_bytes(data, STATE)

    def clear(self) -> None:
        if self._store.exists(STATE):
            self._store.remove(STATE)


def own_model(
    records: Sequence[SourceRecord], destination: str, general: LoadedModel, start: Path, config: TuneConfig, said: Callable[[str], None]
) -> LoadedModel | None:
    """The model that a dataset is archived with, where it has one of its own.

    Args:
        records: The whole listing.
        destination: The archive; what is learned is kept in its folder `tune` until the run has begun.
        general: The model that is used otherwise.
        start: Float parameters to begin from.
        config: How to learn.
        said: Told how it goes, a sentence each.

    Returns:
        The model; None where the general one is better or too few images can be learned from, and for an archive that was begun: it keeps its model.

    Raises:
        StorageError: The store failed.
    """
    store = open_store(destination)
    if store.exists(RUN):
        return None
    try:
        sample = draw(records, seed=config.seed)
    except UsageError as error:
        said(f"{error}: {general.name} is used")
        return None
    wanted = {"data_sha256": sample.digest, "minutes": config.minutes, "general": general.sha256, "q_range": config.q_range}
    done, model = _earlier(store, json.loads(json.dumps(wanted)))
    if done:
        return model
    said(f"{sample.num_train} images to learn from, {len(sample.held_out)} held out, {config.minutes:g} minutes")
    tuning = Tuning(sample, general, start, config, StoreState(store), said)
    tuning.train(lambda: False)
    tuned = tuning.compare()
    for candidate in tuned.candidates:
        said(f"{candidate.kind}: {candidate.gain or 'unknown gain'} bytes at equal quality, against {general.name}, on held-out images")
    if tuned.best is not None:
        store.publish_bytes(tuned.best.data, MODEL)
    store.publish_bytes(json_bytes({"asked": wanted, **tuned.report()}), REPORT)
    tuning.clear()
    if tuned.best is None:
        said(f"{general.name} stays the better choice for these images")
        return None
    said(f"archived with the dataset's own model ({tuned.best.kind})")
    return parse_model(tuned.best.data)


def _earlier(store: Store, wanted: dict[str, object]) -> tuple[bool, LoadedModel | None]:
    """Whether the same was done before a run was stopped, and the model that came of it."""
    try:
        report = json.loads(store.read(REPORT, limit=MAX_RUN_BYTES))
        if report["asked"] != wanted:
            return False, None
        return True, None if report["chosen"] is None else parse_model(store.read(MODEL, limit=MAX_MODEL_BYTES))
    except (NotFoundError, ValueError, KeyError, TypeError, CheckpointError):
        return False, None


def tidy(destination: str) -> None:
    """A run has begun, and its model is where models are: the copy in `tune` is not needed any more."""
    store = open_store(destination)
    if store.exists(RUN) and store.exists(MODEL):
        store.remove(MODEL)
