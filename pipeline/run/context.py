"""What the steps of a run share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from msinn_core.model_file import LoadedModel
from pipeline.encode.tasks import WorkConfig
from pipeline.encode.worker import ShardWorker
from pipeline.execute.base import Executor, WorkersError
from pipeline.formats.outcome import Reason
from pipeline.plan.config import CompressConfig
from pipeline.plan.findings import Older
from pipeline.plan.preferences import Preferences
from pipeline.run.report import Reporter
from pipeline.run.shards import Shards
from pipeline.sources import SourceRecord
from pipeline.store.base import Store

SAMPLED_ABOVE = 256
"""Sets of more images than this are analysed on a part of the rows of each: errors of single predictions average out."""

_UNEXPLAINED_DEATHS = 5

Workers = Executor[ShardWorker]


class Poison:
    """Images that no worker survived, or that the codec failed on: they are kept as their files and not tried again.

    Args:
        reporter: Told of each that kills.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reasons: dict[int, Reason] = {}
        self._reporter = reporter
        self._unexplained = 0

    def found(self, record: SourceRecord | None) -> None:
        """What `isolate` found: the image, or that it was none.

        Raises:
            WorkersError: Workers die again and again, and of no image.
        """
        if record is None:
            self._unexplained += 1
            if self._unexplained > _UNEXPLAINED_DEATHS:
                raise WorkersError("workers keep dying and no single image explains it: look at the memory and the logs of the machines")
            return
        self.reasons[record.index] = Reason.CRASHED
        self._reporter.warn(f"{record.name} kills the worker that touches it: it is kept as it is")


@dataclass(frozen=True, kw_only=True)
class Context:
    """A run as its steps see it.

    Attributes:
        config: What to do.
        store: The archive, or the folder of the generation that it grows by.
        analyses: Where analyses are kept, whatever budget they are for.
        models: What encodes; images name theirs by its number.
        chosen: `[N]`, number of each image's model.
        records: The listing, in archive order.
        digest: Of the listing that the archive was begun with.
        shards: The listing, divided.
        preferences: Of single images.
        reporter: Told about progress.
        older: What the budget counts beside these images, where an archive grows.
        poison: Images to be left alone.
    """

    config: CompressConfig
    store: Store
    analyses: Store
    models: Sequence[LoadedModel]
    chosen: NDArray[np.int8]
    records: Sequence[SourceRecord]
    digest: str
    shards: Shards
    preferences: Preferences
    reporter: Reporter
    older: Older | None = None
    poison: Poison = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "poison", Poison(self.reporter))

    @property
    def model(self) -> LoadedModel:
        """The first; the others are of its shape."""
        return self.models[0]

    @property
    def sampled_analysis(self) -> bool:
        """Whether the analysis looks at a part of each image. A quality target is searched from the prediction: there a better one saves more
        encodes than it costs."""
        return len(self.records) > SAMPLED_ABOVE and self.config.budget.has_threshold

    def work_config(self) -> WorkConfig:
        """What workers need to know."""
        budget = self.config.budget
        return WorkConfig(
            target_psnr_db=budget.value if budget.kind == "psnr" else None,
            max_pixels=self.config.max_pixels,
            count_sidecars=self.config.count_sidecars,
            ms_ssim=self.config.ms_ssim,
            device=self.config.device,
            verify_sample=self.config.verify_sample,
            sampled_analysis=self.sampled_analysis,
            lossless=budget.kind == "lossless",
            all_forms=self.config.forms == "all",
            avif=self.config.avif,
            lossless_jpeg=self.config.lossless_jpeg,
            exact_bytes=self.config.exact == "bytes",
            max_error=budget.max_error,
        )
