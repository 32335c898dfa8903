"""Whether the models of an archive fit other images: what they gain there, beside what they gained when they were learned."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from msinn_core.codec import Codec
from msinn_core.model_file import LoadedModel, card_of, load_model, parse_model, shipped_models
from pipeline.archive.archive import Archive
from pipeline.archive.learned import REPORT
from pipeline.errors import ManifestError, NotFoundError, UsageError
from pipeline.lab.comparison import Gain, gain, measure
from pipeline.lab.sample import Sample, within
from pipeline.lab.tuned_run import measure_cheapest
from pipeline.lab.tuning import RATES
from pipeline.limits import MAX_RUN_BYTES

_SHARE_KEPT = 0.5
"""Of the gain on the images that were learned: with less, another learning is worth its minutes."""


@dataclass(frozen=True)
class Fit:
    """What was found.

    Attributes:
        now: Gain on the new images; None where the curves do not overlap.
        before: Gain in percent on held-out images when the models were learned; None if the archive does not say.
        images: How many were measured.
    """

    now: Gain | None
    before: float | None
    images: int

    @property
    def fits(self) -> bool:
        """Whether the models are still worth having: a certain gain, of at least half of what it was."""
        return self.now is not None and self.now.certain and (self.before is None or self.now.percent <= _SHARE_KEPT * self.before)


def check(url: str, sample: Sample, *, threads: int, said: Callable[[str], None]) -> Fit:
    """Measure an archive's models and the general one that they were learned from on a sample of other images, in real bytes.

    Args:
        url: The archive.
        sample: Of the images; all of it is measured, for nothing is learned.
        threads: Of the codecs.
        said: Told how it goes.

    Raises:
        UsageError: The archive has no model of its own, or the general one is not at hand.
        ManifestError: There is no archive, or it is damaged.
    """
    archive = Archive(url)
    if not archive.run.needs_model:
        raise UsageError(f"{url} holds no model: every image in it lies exactly")
    models = [parse_model(archive.model_bytes(digest)) for digest in archive.run.models]
    general = _general(archive, models[0])
    pictures = within([*sample.held_out, *sample.train])
    rates = _rates(archive, general)
    said(f"measuring on {len(pictures)} images at {len(rates)} rates")
    before = measure(Codec(general, threads=threads), pictures, rates)
    own = measure_cheapest([Codec(model, threads=threads) for model in models], pictures, rates)
    return Fit(gain(before, own), _learned(archive, models), len(pictures))


def _general(archive: Archive, model: LoadedModel) -> LoadedModel:
    """The model that the archive's was learned from."""
    digest = card_of(model).get("derived_from")
    if not isinstance(digest, str):
        raise UsageError(f"{archive.store.url} is made with {archive.run.model}, which was not learned from its images")
    if digest in shipped_models().values():
        return load_model(digest)
    try:
        return parse_model(archive.model_bytes(digest))
    except ManifestError as error:
        raise UsageError(f"the model {digest[:12]} that {archive.run.model} was learned from is not at hand: {error}") from error


def _rates(archive: Archive, general: LoadedModel) -> list[float]:
    """Rates that the archive's images have, at least two apart."""
    q = np.asarray(archive.manifest(["q"]).column("q").drop_null(), np.float64)
    low, high = np.percentile(q, (5, 95)) if len(q) else (0.0, general.config.q_max)
    low, high = max(0.0, min(low, high - 1, general.config.q_max - 2)), min(general.config.q_max, max(high, low + 1, 2.0))
    return [float(rate) for rate in np.linspace(low, high, RATES)]


def _learned(archive: Archive, models: Sequence[LoadedModel]) -> float | None:
    """What the archive's models gained when they were learned, in percent."""
    try:
        report = json.loads(archive.store.read(REPORT, limit=MAX_RUN_BYTES))
        chosen = next(candidate for candidate in report["candidates"] if candidate["kind"] == report["chosen"])
        return float(chosen["bd_rate_percent"][0])
    except (NotFoundError, ValueError, KeyError, TypeError, StopIteration, IndexError, RecursionError):
        figures = card_of(models[0]).get("bd_rate_percent")
        return float(figures[0]) if isinstance(figures, list) and figures and isinstance(figures[0], int | float) else None
