"""A model that learns its dataset: trained on a sample, packed, and compared with the general model on images that were held out, in real bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msinn_core.checkpoint import read_state
from msinn_core.codec import Codec
from msinn_core.config import MsinnConfig, preset
from msinn_core.errors import CheckpointError
from msinn_core.model_file import WEIGHTS, LoadedModel, parse_model, with_card
from msinn_core.picture import Picture
from msinn_core.training.config import Stage, TrainConfig
from pipeline.errors import UsageError
from pipeline.lab.comparison import Gain, Measured, gain, measure
from pipeline.lab.sample import Sample
from pipeline.lab.tuned import Candidate, State, Tuned

_BATCH_PIXELS = 4 * 192**2
_CROP = 192
_MEASURED_PIXELS = 4_000_000
"""Of held-out images: enough that the interval is narrow, few enough that comparing takes a minute or two."""

_RATES = 5
_TABLE_IMAGES, _TABLE_SIDE = 16, 384
_CALIBRATION_IMAGES, _CALIBRATION_SIDE = 12, 256
"""What a model file is measured on takes a minute, beside a few of training; more of it changes the third digit."""

_CHECKPOINT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How a model learns a dataset.

    Attributes:
        name: Of the model.
        minutes: Of training; packing and comparing come on top.
        q_range: Least and largest rate index that the archive will use, or None for the whole range.
        seed: Of everything random.
        device: `cpu` or `cuda`.
        threads: Of the CPU.
    """

    name: str
    minutes: float = 30.0
    q_range: tuple[float, float] | None = None
    seed: int = 1
    device: str = "cpu"
    threads: int = 1


class Tuning:
    """Trains, packs and compares. What was trained is kept until the model is written, so that a stopped tuning goes on.

    Args:
        sample: Of the dataset.
        general: The integer model in use.
        start: File of float parameters to begin from.
        config: How.
        state: Keeps the state of training.
        said: Told how it goes, a sentence each.

    Raises:
        UsageError: The model is not one that can be trained further.
    """

    def __init__(self, sample: Sample, general: LoadedModel, start: Path, config: TuneConfig, state: State, said: Callable[[str], None]) -> None:
        import torch

        from msinn_core.training.loop import Trainer

        self._sample, self._general, self._config, self._state, self._said = sample, general, config, state, said
        if general.profile != "int":
            raise UsageError(f"model {general.name} is of the float profile: archives are made with packed ones")
        torch.set_num_threads(config.threads)
        parameters, shape = read_state(start)
        if shape is None:
            raise CheckpointError(f"{start} does not say what network it is of")
        self._train_config = _train_config(config, shape, sample.tile)
        self._trainer = Trainer(self._train_config, torch.device(config.device))
        self._trainer.begin_from(parameters, shape)

    def train(self, stopping: Callable[[], bool]) -> int:
        """Train until the time is up or `stopping` says so; returns the number of steps in all."""
        import torch

        from msinn_core.training.data import Tiles
        from msinn_core.training.loop import TrainingFailed

        trainer, sample = self._trainer, self._sample
        tiles = Tiles(len(sample.tiles), sample.tile, torch.device(self._config.device))
        tiles.extend(sample.tiles)
        self._resume()
        before, started = trainer.progress.minutes, time.monotonic()
        saved = told = started
        while trainer.share < 1 and not stopping():
            try:
                trainer.step(tiles)
            except TrainingFailed as error:
                self._said(f"training stops: {error}")
                break
            now = time.monotonic()
            trainer.progress.minutes = before + (now - started) / 60
            if now - told > 15:
                told = now
                pace = trainer.progress.step / max(trainer.progress.minutes, 1e-9) / 60
                self._said(f"step {trainer.progress.step}, {pace:.2f}/s, {self._config.minutes - trainer.progress.minutes:.1f} minutes left")
            if now - saved > _CHECKPOINT_S:
                saved = now
                self._save()
        self._save()
        return trainer.progress.step

    def compare(self) -> Tuned:
        """Pack what was learned, and measure it against the general model on held-out images."""
        pictures = _within(self._sample.held_out, _MEASURED_PIXELS)
        low, high = self._config.q_range or (0.0, self._general.config.q_max)
        # Both ends of the whole range are rarely used, and would decide much of the comparison.
        margin = 0.0 if self._config.q_range else 0.08 * (high - low)
        rates = np.linspace(low + margin, high - margin if high > low else high + 1, _RATES).clip(0, self._general.config.q_max).tolist()

        def measured(data: bytes) -> Measured:
            return measure(Codec(parse_model(data), threads=self._config.threads), pictures, rates)

        self._said(f"measuring the general model on {len(pictures)} held-out images at {_RATES} rates")
        general = measured(self._general.data)
        candidates = []
        for kind, make in (("tables", self._tables_only), ("network", self._network)):
            if kind == "network" and not self._trainer.progress.step:
                continue
            self._said(f"packing and measuring: {kind}")
            data = make()
            own = measured(data)
            found = gain(general, own)
            candidates.append(Candidate(kind, with_card(data, self._card(kind, found, len(pictures))), found, own))
        certain = [candidate for candidate in candidates if candidate.gain is not None and candidate.gain.certain]
        best = min(certain, key=lambda candidate: candidate.gain.percent if candidate.gain else 0.0, default=None)
        return Tuned(candidates, best, general, self._trainer.progress.step)

    def clear(self) -> None:
        """The model is written: forget the state of training."""
        self._state.clear()

    # Models ----------------------------------------------------------------------------------------------------------------------------------------

    def _pictures(self, count: int, side: int) -> list[Picture]:
        return [Picture(pixels=np.ascontiguousarray(pixels[:side, :side])) for pixels in self._sample.train[:count]]

    def _measured_on(self) -> dict[str, Any]:
        """What model files are made with, beside their network."""
        return {
            "name": self._config.name,
            "pictures": self._pictures(_CALIBRATION_IMAGES, _CALIBRATION_SIDE),
            "table_pictures": self._pictures(_TABLE_IMAGES, _TABLE_SIDE),
            "threads": self._config.threads,
        }

    def _tables_only(self) -> bytes:
        from msinn_core.assembly import refitted_model

        return refitted_model(self._general, **self._measured_on())

    def _network(self) -> bytes:
        from msinn_core.assembly import integer_model

        config = replace(self._trainer.network.config, name=self._config.name)
        return integer_model(config, self._trainer.average, **self._measured_on())

    def _card(self, kind: str, found: Gain | None, held_out: int) -> dict[str, Any]:
        """What people should know of a model."""
        steps = self._trainer.progress.step if kind == "network" else 0
        return {
            "derived_from": self._general.sha256,
            "learned": kind,
            "data_sha256": self._sample.digest,
            "images": self._sample.num_train,
            "held_out": held_out,
            "steps": steps,
            "minutes": round(self._trainer.progress.minutes, 2) if steps else 0,
            "device": self._config.device,
            "seed": self._config.seed,
            "bd_rate_percent": None if found is None else [round(value, 2) for value in (found.percent, found.low, found.high)],
        }

    # State -----------------------------------------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self._state.save(self._sample.digest.encode() + self._trainer.state())

    def _resume(self) -> None:
        """Go on with a training that was stopped, if it was of the same sample and options."""
        if (data := self._state.load()) is None:
            return
        if data[:64] != self._sample.digest.encode():
            self._said("an earlier tuning was of other images: begun anew")
            return
        try:
            self._trainer.resume(data[64:])
        except CheckpointError as error:
            self._said(f"an earlier tuning cannot be gone on with: {error}; begun anew")
            return
        self._said(f"going on at step {self._trainer.progress.step}, {self._trainer.progress.minutes:.1f} minutes")


def _train_config(config: TuneConfig, shape: MsinnConfig, tile: int) -> TrainConfig:
    """Few steps from a good start: a high rate that falls soon, an average over the last hundred steps."""
    for name in ("msinn-lite", "msinn-base"):
        like = replace(preset(name), name=shape.name, anchor_num=shape.anchor_num, lambdas=shape.lambdas)
        if like == shape:
            break
    else:
        raise UsageError(f"model {shape.name} is of a shape of its own: only those of msinn-lite and msinn-base are tuned")
    crop = min(_CROP, tile)
    return TrainConfig(
        name=config.name,
        preset=name,
        anchor_num=shape.anchor_num,
        lambdas=shape.lambdas,
        steps=10**9,
        max_minutes=config.minutes,
        schedule="time",
        stages=(Stage(until=1.0, crop=crop, batch=max(2, round(_BATCH_PIXELS / crop**2)), rate="rounded"),),
        q_range=config.q_range or (),
        optimiser="soap",
        soap_rate=1e-3,
        learning_rate=2.5e-4,
        warmup_steps=20,
        ema_decay=0.99,
        precision="bf16",
        tile=tile,
        downscale_share=0.0,
        seed=config.seed,
    )


def _within(pictures: Sequence[NDArray[np.uint8]], pixels: int) -> list[NDArray[np.uint8]]:
    """The first of them that have so many pixels together; at least one."""
    total = 0
    chosen: list[NDArray[np.uint8]] = []
    for picture in pictures:
        total += picture.shape[0] * picture.shape[1]
        if chosen and total > pixels:
            break
        chosen.append(picture)
    return chosen


def start_of(general: LoadedModel, asked: str | None = None) -> Path:
    """The float parameters that a tuning begins from: those asked for, or those that come with a shipped model.

    Raises:
        UsageError: The model comes without.
    """
    start = Path(asked) if asked else WEIGHTS / f"{general.name}-float.safetensors"
    if not start.exists():
        raise UsageError(f"model {general.name} comes without float parameters to begin from: name a checkpoint with --start")
    return start
