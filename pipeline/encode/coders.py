"""A coder for each model of a run, and one for AVIF: every image is coded by that of its task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from msinn_core.codec import Codec
from msinn_core.model_file import LoadedModel, card_of
from msinn_core.picture import Picture
from msinn_core.prediction import PROBE_Q_SHARE, Curves
from pipeline.encode.coder import IMAGE_ERRORS, Coder, ImageCoder
from pipeline.encode.drawn import DrawnCoder
from pipeline.encode.item import Item
from pipeline.encode.tasks import WorkConfig
from pipeline.plan.curves import DRAWN


class Coders:
    """As `ImageCoder`, for the models of a run.

    Args:
        models: At least one; all of the same rate indexes.
        config: The run's.
        device: Of the networks.
        threads: Of the integer networks.

    Attributes:
        coders: In the order of the models; `drawn` is AVIF's.
    """

    def __init__(self, models: Sequence[LoadedModel], config: WorkConfig, *, device: str = "cpu", threads: int = 1) -> None:
        self._cost_q = cost_rate(models[0])
        self.coders = tuple(ImageCoder(model, config, device=device, threads=threads) for model in models)
        self.drawn = DrawnCoder(models[0].config.q_max, config.max_pixels, ms_ssim=config.ms_ssim)
        self._offers_avif = config.avif

    def of(self, item: Item) -> Coder:
        """That of the image's task."""
        return self.drawn if item.drawn else self.coders[item.task.model]

    def decoded(self, item: Item) -> Picture:
        """What the data of an item that is coded decodes to, which has its symbols yet. Raises what decoding raises."""
        if item.drawn:
            return self.drawn.picture(item)
        assert item.data is not None
        assert item.symbols is not None
        return self.coders[item.task.model].checker.decode_known(item.data, item.symbols)[0]

    @property
    def codec(self) -> Codec:
        """Of the first model: its engine is like the others'."""
        return self.coders[0].codec

    @property
    def lost(self) -> str | None:
        """A sentence once the device has failed."""
        return next((coder.lost for coder in self.coders if coder.lost is not None), None)

    def gives_way(self, error: Exception) -> None:
        """See `ImageCoder.gives_way`: a device that failed is that of all models."""
        for coder in self.coders:
            coder.gives_way(error)

    def divided(self, items: Sequence[Item]) -> Iterator[tuple[ImageCoder, list[Item]]]:
        """The items of each model that any is of, with its coder."""
        for number, coder in enumerate(self.coders):
            if its := [item for item in items if item.task.model == number]:
                yield coder, its

    @property
    def checkers(self) -> list[Codec]:
        """What decodes each model's images to check them, on the CPU."""
        return [coder.checker for coder in self.coders]

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each model."""
        return tuple(coder.model.sha256 for coder in self.coders)

    @property
    def q_max(self) -> float:
        """Largest rate index."""
        return self.coders[0].q_max

    def compress(self, item: Item, q: float, *, tentative: bool = False) -> None:
        """See `ImageCoder.compress`."""
        self.of(item).compress(item, q, tentative=tentative)

    def pack(self, item: Item) -> None:
        """See `ImageCoder.pack`."""
        self.of(item).pack(item)

    def measure(self, item: Item) -> bool:
        """See `ImageCoder.measure`."""
        return self.of(item).measure(item)

    def curves(self, picture: Picture, *, sampled: bool) -> tuple[Curves | None, int]:
        """Predicted rate and distortion of a picture by the model that it costs least with, and that model's number.

        Args:
            picture: The picture.
            sampled: Look at bands of it only.
        """
        number = self.cheapest(picture)
        return self.coders[number].curves(picture, sampled=sampled), number

    def best(self, picture: Picture, curves: Curves | None, number: int, *, sampled: bool) -> tuple[Curves | None, int]:
        """Those curves, of the model of this number; or AVIF's and `DRAWN`, where the run offers that and it takes less."""
        if self._offers_avif and curves is not None and (drawn := self.drawn.cheaper(picture, curves, sampled=sampled)) is not None:
            return drawn, DRAWN
        return curves, number

    def cheapest(self, picture: Picture) -> int:
        """Number of the model that a picture costs least with; the first of them if none can code it."""
        if len(self.coders) == 1:
            return 0
        costs = []
        for coder in self.coders:
            try:
                costs.append(coder.checker.cost(picture, self._cost_q))
            except IMAGE_ERRORS:
                costs.append(math.inf)
        return costs.index(min(costs))


def cost_rate(model: LoadedModel) -> int:
    """The anchor at which models are compared for an image: the middle of the rates that they were learned for, as the card of the first says; so it
    is the same on every machine, in every run. Without such a card the middle of all."""
    q_max: int = round(model.config.q_max)
    said = card_of(model).get("q_range")
    if isinstance(said, list) and len(said) == 2 and all(isinstance(value, int | float) and 0 <= value <= q_max for value in said):
        return int((said[0] + said[1]) / 2 + 0.5)
    return round(PROBE_Q_SHARE * q_max)
