"""What a worker is asked to do, and what an analysis gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.formats.outcome import Reason
from pipeline.formats.records import Column, schema_of
from pipeline.plan.config import VERIFY_SAMPLE
from pipeline.plan.curves import KEPT_Q
from pipeline.sources import SourceRecord


@dataclass(frozen=True, kw_only=True)
class WorkConfig:
    """What a worker needs to know of the run; see `CompressConfig`."""

    target_psnr_db: float | None
    max_pixels: int
    count_sidecars: bool
    ms_ssim: bool
    device: str = "cpu"
    verify_sample: float = VERIFY_SAMPLE
    sampled_analysis: bool = False
    lossless: bool = False
    lossless_jpeg: bool = False
    all_forms: bool = False
    avif: bool = False
    exact_bytes: bool = False
    max_error: int | None = None


@dataclass(frozen=True)
class ImageTask:
    """One image of a shard and its planned rate.

    Attributes:
        record: Where it is.
        q: Rate index; `KEPT_Q` to keep the file.
        predicted_bytes: Stored bytes that the plan expects, 0 without a plan.
        clamp: `none`, `floor` or `cap`.
        skip_reason: Keep the file for this reason, whatever q says; if it is that the file cannot be read, leave it out.
        pixels: Its size, 0 if unknown.
        min_psnr_db: Floor of this image, or None; infinite: it loses nothing.
        min_q: Least q that the trim or a search may choose; `max_q`: largest.
        model: Number among the run's models, or `DRAWN`.
        exact_bytes: Stored bytes of its smallest exact form as the analysis has them, where the plan may choose that; else infinite.
        codec: What its payload was made with, where it is to be made again as it was and not by the network; else the smallest exact form is looked
            for if it is kept.
    """

    record: SourceRecord
    q: float
    predicted_bytes: float = 0.0
    clamp: str = "none"
    skip_reason: Reason | None = None
    pixels: int = 0
    min_psnr_db: float | None = None
    min_q: float = 0.0
    max_q: float = np.inf
    model: int = 0
    codec: str | None = None
    exact_bytes: float = np.inf

    @property
    def lossless(self) -> bool:
        """Whether this image is to lose nothing, whatever the run does with others."""
        return self.min_psnr_db == np.inf

    @property
    def to_code(self) -> bool:
        """Whether the network shall have it, if its file decodes."""
        return self.skip_reason is None and self.q != KEPT_Q


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to encode.

    Attributes:
        shard_id: Its number.
        attempt: Unique id of this attempt.
        images: In archive order.
        plan_rev: Revision of the plan.
        multiplier: The plan's, for the manifest.
        limit_bytes: Counted bytes that this shard must not exceed and should use up (the trim), or None.
    """

    shard_id: int
    attempt: str
    images: tuple[ImageTask, ...]
    plan_rev: int = 0
    multiplier: float = 0.0
    limit_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysed:
    """What an analysis says of one image.

    Attributes:
        index: Position in the scan.
        source_bytes: Of its file; None if it cannot be read.
        width: Pixels; `height` likewise; None where the file does not say.
        reason: Why it cannot be coded, or None.
        sidecar_bytes: What its sidecars take in a shard; 0 where they do not count.
        bytes: `[A]` predicted bytes of the bitstream at each of the model's rates; None if it cannot be coded.
        mse: `[A]` predicted, in 8-bit code values.
        model: Number among the run's models of the one that the image costs least with, or `DRAWN`; the curves are its.
        exact_bytes: Of its smallest exact form, about; None where it has none that is smaller than its file. `form` is which.
    """

    index: Annotated[int, Column(pa.int64())]
    source_bytes: Annotated[int | None, Column(pa.int64())]
    width: Annotated[int | None, Column(pa.int32())]
    height: Annotated[int | None, Column(pa.int32())]
    reason: Annotated[Reason | None, Column(pa.string())]
    sidecar_bytes: Annotated[int, Column(pa.int64())]
    bytes: Annotated[NDArray[np.float64] | None, Column(pa.list_(pa.float64()))]
    mse: Annotated[NDArray[np.float64] | None, Column(pa.list_(pa.float64()))]
    model: Annotated[int, Column(pa.int8())]
    exact_bytes: Annotated[int | None, Column(pa.int64())] = None
    form: Annotated[str | None, Column(pa.string())] = None


ANALYSIS_SCHEMA = schema_of(Analysed)
