"""A model that learns its dataset: trained on a sample, packed, and compared with the general model on images that were held out, in real bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msinn_core.codec import Codec
from msinn_core.config import MsinnConfig, preset
from msinn_core.errors import CheckpointError
from msinn_core.model_file import WEIGHTS, LoadedModel, parse_model, with_card
from msinn_core.picture import Picture
from msinn_core.training.config import Stage, TrainConfig
from pipeline.errors import UsageError
from pipeline.lab.comparison import Gain, Measured, gain, measure
from pipeline.lab.sample import Sample, within
from pipeline.lab.threads import Threads
from pipeline.lab.tuned import Candidate, State, Tuned

if TYPE_CHECKING:
    from torch import Tensor

_BATCH_PIXELS = 4 * 192**2
_CROP = 192
RATES = 5
"""At so many rates models are compared."""

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
        start: Float parameters to begin from, and their network; see `start_of`.
        config: How.
        state: Keeps the state of training.
        said: Told how it goes, a sentence each.

    Raises:
        UsageError: The model is not one that can be trained further.
    """

    def __init__(
        self,
        sample: Sample,
        general: LoadedModel,
        start: tuple[Mapping[str, Tensor], MsinnConfig],
        config: TuneConfig,
        state: State,
        said: Callable[[str], None],
    ) -> None:
        import torch

        from msinn_core.training.loop import Trainer

        self._sample, self._general, self._config, self._state, self._said = sample, general, config, state, said
        if general.profile != "int":
            raise UsageError(f"model {general.name} is of the float profile: archives are made with packed ones")
        torch.set_num_threads(config.threads)
        parameters, shape = start
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
        threads = Threads(self._config.threads)
        before, started = trainer.progress.minutes, time.monotonic()
        saved = told = started
        while trainer.share < 1 and not stopping():
            try:
                with threads.measured():
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
        pictures, rates = self.pictures, self.rates

        def measured(data: bytes) -> Measured:
            return measure(Codec(parse_model(data), threads=self._config.threads), pictures, rates)

        self._said(f"measuring the general model on {len(pictures)} held-out images at {RATES} rates")
        general = measured(self._general.data)
        candidates: list[Candidate] = []
        for kind, make in (("network", self._network), ("tables", self._tables_only)):
            if kind == "network" and not self._trainer.progress.step:
                continue
            if any(candidate.gain is not None and candidate.gain.certain for candidate in candidates):
                continue  # tables alone never gained as much, and measuring them takes a minute
            self._said(f"packing and measuring: {kind}")
            data = make()
            own = measured(data)
            found = gain(general, own)
            candidates.append(Candidate(kind, (with_card(data, self._card(kind, found)),), found, own))
        certain = [candidate for candidate in candidates if candidate.gain is not None and candidate.gain.certain]
        best = min(certain, key=lambda candidate: candidate.gain.percent if candidate.gain else 0.0, default=None)
        return Tuned(candidates, best, general, self._trainer.progress.step)

    def network(self) -> bytes:
        """The network packed as it is, uncompared."""
        return with_card(self._network(), self._card("network", None))

    @property
    def parameters(self) -> tuple[Mapping[str, Tensor], MsinnConfig]:
        """Of the network as it is, for another that begins from it."""
        return self._trainer.average, self._trainer.network.config

    @property
    def pictures(self) -> list[NDArray[np.uint8]]:
        """Held-out images that models are compared on."""
        return within(self._sample.held_out)

    @property
    def rates(self) -> list[float]:
        """Rate indexes that they are compared at."""
        low, high = self._config.q_range or (0.0, self._general.config.q_max)
        # Both ends of the whole range are rarely used, and would decide much of the comparison.
        margin = 0.0 if self._config.q_range else 0.08 * (high - low)
        return [float(q) for q in np.linspace(low + margin, high - margin if high > low else high + 1, RATES).clip(0, self._general.config.q_max)]

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

    def _card(self, kind: str, found: Gain | None) -> dict[str, Any]:
        """What people should know of a model."""
        steps = self._trainer.progress.step if kind == "network" else 0
        return {
            "derived_from": self._general.sha256,
            "learned": kind,
            "data_sha256": self._sample.digest,
            "images": self._sample.num_train,
            "held_out": len(self.pictures),
            "steps": steps,
            "minutes": round(self._trainer.progress.minutes, 2) if steps else 0,
            "device": self._config.device,
            "seed": self._config.seed,
            "q_range": None if self._config.q_range is None else list(self._config.q_range),
            "bd_rate_percent": None if found is None else found.rounded,
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
    crop, on_gpu = min(_CROP, tile), config.device != "cpu"
    return TrainConfig(
        name=config.name,
        preset=name,
        anchor_num=shape.anchor_num,
        lambdas=shape.lambdas,
        steps=10**9,
        max_minutes=config.minutes,
        schedule="time",
        stages=(Stage(until=1.0, crop=crop, batch=max(2, round((4 if on_gpu else 1) * _BATCH_PIXELS / crop**2)), rate="rounded"),),
        q_range=config.q_range or (),
        optimiser="soap",
        soap_rate=1e-3,
        # A GPU's steps see more, and its eigenvalues cost more beside them; tf32 costs it little and holds the top rates back less.
        soap_frequency=20 if on_gpu else 10,
        learning_rate=2.5e-4,
        warmup_steps=20,
        ema_decay=0.99,
        precision="tf32" if on_gpu else "bf16",
        tile=tile,
        downscale_share=0.0,
        seed=config.seed,
    )


def start_of(general: LoadedModel, asked: str | None = None) -> tuple[Mapping[str, Tensor], MsinnConfig]:
    """The float parameters that a tuning begins from, and their network: those asked for, or those that come with a shipped model.

    Raises:
        UsageError: The model comes without.
        CheckpointError: They cannot be read.
    """
    from msinn_core.checkpoint import read_state

    start = Path(asked) if asked else WEIGHTS / f"{general.name}-float.safetensors"
    if not start.exists():
        raise UsageError(f"model {general.name} comes without float parameters to begin from: name a checkpoint with --start")
    parameters, shape = read_state(start)
    if shape is None:
        raise CheckpointError(f"{start} does not say what network it is of")
    return parameters, shape


def usable_device(device: str, said: Callable[[str], None]) -> str:
    """`cpu` or `cuda`: what was asked for, if this machine has it; `auto` takes what there is.

    Args:
        device: `cpu`, `cuda` or `auto`.
        said: Told of a GPU that is not there.
    """
    import torch

    if device == "cpu" or torch.cuda.is_available():
        return "cpu" if device == "cpu" else "cuda"
    if device == "cuda":
        said("there is no GPU that torch can use: learning on the CPU")
    return "cpu"
