"""`msinn compress --tune`: a run begins by learning its dataset, and goes on with the models with which its archive is smallest.

```
candidates of the listing --> a sample --> one network learns it --> the general model, its tables refitted, the network: measured on held-out images
                                                |
                              (--models N) the sample divided by cost --> a network each, from that one --> measured, each image with its cheapest
--> the choice, with the models' own bytes counted --> tune/report.json, tune/model-SHA256.safetensors
```
Everything that takes long is kept in the archive's folder `tune`, from where any machine goes on.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from msinn_core.codec import Codec
from msinn_core.errors import CheckpointError
from msinn_core.model_file import LoadedModel, parse_model
from msinn_core.picture import Picture
from pipeline.archive.layout import json_bytes
from pipeline.archive.learned import FOLDER, REPORT
from pipeline.archive.models import stored_model
from pipeline.encode.coders import cost_rate
from pipeline.errors import NotFoundError, StorageError, UsageError
from pipeline.lab.comparison import Measured, gain, measure
from pipeline.lab.expected import Expected, expected
from pipeline.lab.kinds import clusters, cost_features
from pipeline.lab.sample import LEAST_IMAGES, Sample, draw
from pipeline.lab.tuned import Candidate, MemoryState, State, Tuned, stored_bytes
from pipeline.lab.tuning import TuneConfig, Tuning, start_of, usable_device
from pipeline.limits import MAX_MODEL_BYTES, MAX_RUN_BYTES
from pipeline.plan.config import Budget
from pipeline.sources import SourceRecord
from pipeline.store.base import Store, open_store

_MAX_STATE_BYTES = 2**31
_SHARED_SHARE = 0.4
"""Of the minutes: what all kinds learn together, before each goes on by itself."""

_LOOK_S = 60.0
"""How often a driver looks whether another one has learned the same meanwhile."""


class StoreState:
    """A state of training in the archive.

    Args:
        store: The archive.
        name: Which: of the network of all images, or of one of their kinds.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, f"{FOLDER}/state-{name}.safetensors"

    def load(self) -> bytes | None:
        try:
            return self._store.read(self._name, limit=_MAX_STATE_BYTES)
        except NotFoundError:
            return None

    def save(self, data: bytes) -> None:
        self._store.publish_bytes(data, self._name)

    def clear(self) -> None:
        with contextlib.suppress(StorageError):  # archives need no right to delete: `msinn gc` finds it
            if self._store.exists(self._name):
                self._store.remove(self._name)


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What is learned, and how. It can be pickled.

    Attributes:
        candidates: Records in a random order; see `sample.candidates`.
        images: Of the whole listing, with `source_bytes` in all.
        destination: The archive; None for a plan, which leaves nothing behind.
        general: Name, digest or path of the model that is used otherwise, as bytes.
        budget: Of the run.
        config: How to learn; the range of rates follows from the budget.
        num_models: At most.
    """

    candidates: Sequence[SourceRecord]
    images: int
    source_bytes: int
    destination: str | None
    general: bytes
    budget: Budget
    config: TuneConfig
    num_models: int = 1


def own_models(learning: Learning, said: Callable[[str], None]) -> list[LoadedModel]:
    """The models that a dataset is archived with, where it has some of its own.

    Args:
        learning: What and how.
        said: Told how it goes, a sentence each.

    Returns:
        The models; none where the general one is better or too few images can be learned from.

    Raises:
        StorageError: The store failed.
    """
    store = open_store(learning.destination) if learning.destination is not None else None
    general = parse_model(learning.general)
    try:
        sample = draw(learning.candidates, seed=learning.config.seed)
    except UsageError as error:
        said(f"{error}: {general.name} is used")
        return []
    wanted = json.loads(json.dumps(_wanted(learning, sample, general)))
    if store is not None and (models := _earlier(store, wanted)) is not None:
        return models
    learner = _Learner(learning, sample, general, store, said, _Looking(store, wanted))
    found = learner.learned()
    models = [] if found is None or found[1] is None else [parse_model(data) for data in found[1].models]
    if store is not None:
        theirs = None if found is not None and _published(store, wanted, *found, models) else _earlier(store, wanted)
        if theirs is not None:
            said("another run has learned the same images meanwhile: its models are used")
            models = theirs
        learner.clear()
    return models


def _published(store: Store, wanted: dict[str, object], tuned: Tuned, chosen: Candidate | None, models: Sequence[LoadedModel]) -> bool:
    """Write what was learned and the report that makes it count; False where another driver was first, whose models all go on with."""
    for model in models:
        store.publish_bytes(model.data, _model_name(model.sha256))
    digests = [model.sha256 for model in models]
    report = json_bytes({"asked": wanted, "chosen": None if chosen is None else chosen.kind, "models": digests, **tuned.report()})
    if store.put_if_absent(REPORT, report):
        return True
    if _earlier(store, wanted) is not None:
        return False
    store.publish_bytes(report, REPORT)  # what lies there answers another question, or is damaged
    return True


class _Looking:
    """Whether another driver has meanwhile come to an end with the same question, so that learning on is of no use. Looks once a minute."""

    def __init__(self, store: Store | None, wanted: dict[str, object]) -> None:
        self._store, self._wanted, self._next, self._seen = store, wanted, time.monotonic() + _LOOK_S, False

    def __call__(self) -> bool:
        if self._store is not None and not self._seen and time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOOK_S
            self._seen = _earlier(self._store, self._wanted) is not None
        return self._seen


def _wanted(learning: Learning, sample: Sample, general: LoadedModel) -> dict[str, object]:
    """What a stopped run must have asked for, that its models are taken."""
    return {
        "data_sha256": sample.digest,
        "minutes": learning.config.minutes,
        "models": learning.num_models,
        "general": general.sha256,
        "budget": str(learning.budget),
    }


def _model_name(digest: str) -> str:
    return f"{FOLDER}/model-{digest}.safetensors"


def _earlier(store: Store, wanted: dict[str, object]) -> list[LoadedModel] | None:
    """The models that came of the same, done before a run was stopped; None if it was not."""
    try:
        report = json.loads(store.read(REPORT, limit=MAX_RUN_BYTES))
        if report["asked"] != wanted:
            return None
        models = [_kept(store, str(digest)) for digest in report["models"]]
        return models if [model.sha256 for model in models] == report["models"] else None
    except (NotFoundError, ValueError, KeyError, TypeError, RecursionError, CheckpointError):
        return None


def _kept(store: Store, digest: str) -> LoadedModel:
    """A model that was learned: as it was written, or from the archive whose run has begun with it meanwhile."""
    try:
        return parse_model(store.read(_model_name(digest), limit=MAX_MODEL_BYTES))
    except NotFoundError:
        if (data := stored_model(store, digest)) is None:
            raise
        return parse_model(data)


class _Learner:
    """One learning, from the sample to the choice."""

    def __init__(
        self,
        learning: Learning,
        sample: Sample,
        general: LoadedModel,
        store: Store | None,
        said: Callable[[str], None],
        overtaken: Callable[[], bool],
    ) -> None:
        learning = replace(learning, config=replace(learning.config, device=usable_device(learning.config.device, said)))
        self._learning, self._sample, self._general, self._store, self._said = learning, sample, general, store, said
        self._overtaken = overtaken
        self._codec = Codec(general, threads=learning.config.threads)
        self._foreseen = self._expected()
        self._states: list[State] = []
        self._kind = self._divided()

    def _expected(self) -> Expected:
        """What the images that are coded will take: of the sample's share of all, for others are kept as their files."""
        learning, sample = self._learning, self._sample
        images = learning.images * sample.used_share
        kept_bytes = learning.source_bytes * (1 - sample.used_share)
        return expected(
            learning.budget,
            self._codec,
            sample.train,
            pixels=sample.mean_pixels * images,
            source_bytes=learning.source_bytes,
            kept_bytes=kept_bytes,
        )

    def _divided(self) -> NDArray[np.int64] | None:
        """The kind of each image of the sample; None if they are of one, or one model is wanted."""
        if self._learning.num_models < 2:
            return None
        seed = self._learning.config.seed
        numbers = clusters(cost_features(self._codec, self._sample.first_tiles), self._learning.num_models, LEAST_IMAGES, seed)
        found = np.unique(numbers)
        if len(found) < 2:
            self._said("the images are of one kind: one model is enough")
            return None
        self._said(f"{len(found)} kinds of images: {', '.join(str(int((numbers == kind).sum())) for kind in found)} of the sample")
        return numbers

    def learned(self) -> tuple[Tuned, Candidate | None] | None:
        """What was tried, and what the archive is made with; None where another driver came to its end meanwhile."""
        config, general = self._learning.config, self._general
        minutes = config.minutes * (_SHARED_SHARE if self._kind is not None else 1.0)
        low, high = self._foreseen.q_range
        self._said(
            f"{self._sample.num_train} images to learn from, {len(self._sample.held_out)} held out, {config.minutes:g} minutes, "
            f"for rates {low:.1f} to {high:.1f}"
        )
        config = replace(config, q_range=self._foreseen.q_range)
        tuning = self._tuning("all", self._sample, start_of(general), replace(config, minutes=minutes))
        tuning.train(self._overtaken)
        if self._overtaken():
            return None
        tuned = tuning.compare()
        if self._kind is not None:
            kinds = self._kinds(self._kind, tuning, tuned, replace(config, minutes=config.minutes - minutes))
            if kinds is None:
                return None
            tuned.candidates.append(kinds)
        for candidate in tuned.candidates:
            what = f"{len(candidate.models)} models" if candidate.kind == "kinds" else candidate.kind
            self._said(f"{what}: {candidate.gain or 'unknown gain'} bytes at equal quality, against {general.name}, on held-out images")
        chosen = tuned.choice(general.data, self._foreseen.coded_bytes)
        self._said(self._verdict(chosen))
        return tuned, chosen

    def clear(self) -> None:
        """The models are written: forget the states of training."""
        for state in self._states:
            state.clear()

    def _tuning(self, name: str, sample: Sample, start: tuple[object, object], config: TuneConfig) -> Tuning:
        state: State = MemoryState() if self._store is None else StoreState(self._store, name)
        self._states.append(state)
        return Tuning(sample, self._general, start, config, state, self._said)  # type: ignore[arg-type]

    def _kinds(self, numbers: NDArray[np.int64], shared: Tuning, tuned: Tuned, config: TuneConfig) -> Candidate | None:
        """A network for each kind of images; None where another driver came to its end meanwhile."""
        found, models = np.unique(numbers), []
        for kind in found.tolist():
            each = replace(config, name=f"{config.name}-{kind + 1}", minutes=config.minutes / len(found), seed=config.seed + kind + 1)
            tuning = self._tuning(f"kind{kind}", self._sample.part(numbers == kind), shared.parameters, each)
            tuning.train(self._overtaken)
            if self._overtaken():
                return None
            self._said(f"packing the model of kind {kind + 1}")
            models.append(tuning.network())
        codecs = [Codec(parse_model(data), threads=config.threads) for data in models]
        own = measure_cheapest(codecs, shared.pictures, shared.rates)
        return Candidate("kinds", tuple(models), gain(tuned.general, own), own)

    def _verdict(self, chosen: Candidate | None) -> str:
        general, foreseen = self._general.name, self._foreseen.coded_bytes
        if chosen is None:
            return f"{general} stays the better choice for these images, of some {foreseen / 1e6:,.1f} MB"
        assert chosen.gain is not None
        extra = stored_bytes(chosen.models, self._general.data) - stored_bytes((self._general.data,))
        own = "the dataset's own model" if len(chosen.models) == 1 else f"{len(chosen.models)} models of the dataset's own"
        return (
            f"archived with {own} ({chosen.kind}): to save some {-chosen.gain.percent / 100 * foreseen / 1e6:,.1f} MB of {foreseen / 1e6:,.1f} MB, "
            f"while model files take {extra / 1e6:+,.1f} MB"
        )


def measure_cheapest(codecs: Sequence[Codec], pictures: Sequence[NDArray[np.uint8]], rates: Sequence[float]) -> Measured:
    """Several models on some images, each image with the one that it costs least with, as an archive chooses."""
    q = cost_rate(codecs[0].model)
    chosen = [
        0 if len(codecs) == 1 else int(np.argmin([codec.cost(Picture(pixels=np.ascontiguousarray(pixels)), q) for codec in codecs]))
        for pixels in pictures
    ]
    parts = [measure(codecs[number], [pixels], rates) for number, pixels in zip(chosen, pictures, strict=True)]
    return Measured(
        parts[0].rates,
        np.concatenate([part.bytes for part in parts]),
        np.concatenate([part.psnr_db for part in parts]),
        np.concatenate([part.pixels for part in parts]),
    )
