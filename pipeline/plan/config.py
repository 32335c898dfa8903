"""What a run was asked to do: frozen, checked, stored in `run.json`, compared on resume."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UsageError
from pipeline.plan.allocation import OBJECTIVES

BUDGET_KINDS = ("bpp", "bytes", "ratio", "psnr", "q")

LIMIT_RANGES = {
    "min_psnr_db": (1e-9, 90.0),
    "max_psnr_db": (1e-9, 90.0),
    "min_bpp": (0.0, 1e3),
    "max_bpp": (1e-9, 1e3),
    "min_q": (0.0, 1e3),
    "max_q": (0.0, 1e3),
}
"""Floors and caps of images and what they may be; those of `allocation.Limits`."""


VERIFY_SAMPLE = 1 / 32
"""Share of the images that another backend decodes from their bytes, for some 4 % of the time. A machine that errs in every image is found with its
first shard; one that errs in one image of ten after 320 on average."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """One of: `bpp` (bits per pixel of the dataset), `bytes`, `ratio` (source bytes over archive bytes), `psnr` (dB, each image), `q` (fixed).

    Raises:
        UsageError: Unknown kind or a value out of range.
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        if self.kind not in BUDGET_KINDS:
            raise UsageError(f"no budget {self.kind!r}; there are {', '.join(BUDGET_KINDS)}")
        least = 0.0 if self.kind == "q" else 1e-9
        if not math.isfinite(self.value) or self.value < least:
            raise UsageError(f"--{self.kind} is {self.value:g}; it takes a number {'from 0' if self.kind == 'q' else 'above 0'}")
        if self.kind == "psnr" and self.value > 90:
            raise UsageError(f"--psnr is {self.value:g} dB; above 90 dB nothing short of the original file will do")

    @property
    def is_total(self) -> bool:
        """Whether it bounds the dataset's bytes, and so needs analysis and a plan."""
        return self.kind in ("bpp", "bytes", "ratio")

    def total_bytes(self, *, pixels: int, source_bytes: int) -> float:
        """Bytes for the whole dataset, as counted (see README, "What counts")."""
        exact = {"bpp": self.value * pixels / 8, "bytes": self.value, "ratio": source_bytes / self.value}[self.kind]
        # Whole bytes; the small addend keeps 0.8 * 10 from becoming 7.
        return float(math.floor(exact + 1e-6))

    def __str__(self) -> str:
        return f"--{self.kind} {self.value:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressConfig:
    """Everything that decides what an archive will hold.

    Attributes:
        budget: See `Budget`.
        objective: `mse`, `psnr` or `minimum`.
        min_psnr_db: Floor for every image, or None: kept by what is decoded. The other limits are kept by the plan, as predicted.
        max_psnr_db: No bytes are spent to go beyond.
        min_bpp: Stored bits per pixel of every coded image, at least; `max_bpp`: at most.
        min_q: Least q of every coded image; `max_q`: largest.
        preferences_sha256: Digest of the table of weights and limits of single images, or None.
        model: Name, SHA-256 or path of the model.
        max_pixels: Images above are kept as they are and counted as failed.
        count_sidecars: Whether sidecars count towards the budget.
        ms_ssim: Whether MS-SSIM is measured too.
        image_column: Parquet column of the images.
        include: Globs of names that are archived; all if empty. `exclude`, `all_files`, `follow_links`: see `sources.Selection`.
        verify_sample: Share of the images that another backend decodes from their bytes before their shard is committed; one of each shard at
            least. What was promised of an archive is that of its whole: a resumed run keeps it.
        device: `cpu` (the compiled integer kernel) or `cuda` (its layers in float64 on the GPU). Archives are the same in what they promise.

    Raises:
        UsageError: Values that contradict each other.
    """

    budget: Budget
    objective: str = "mse"
    min_psnr_db: float | None = None
    max_psnr_db: float | None = None
    min_bpp: float | None = None
    max_bpp: float | None = None
    min_q: float | None = None
    max_q: float | None = None
    preferences_sha256: str | None = None
    model: str = "msinn-lite"
    max_pixels: int = 32_000_000
    count_sidecars: bool = False
    ms_ssim: bool = False
    image_column: str | None = None
    device: str = "cpu"
    verify_sample: float = VERIFY_SAMPLE
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    all_files: bool = False
    follow_links: bool = False

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UsageError(f"no objective {self.objective!r}; there are {', '.join(OBJECTIVES)}")
        for name, (low, high) in LIMIT_RANGES.items():
            value, flag = getattr(self, name), "--" + name.removesuffix("_db").replace("_", "-")
            if value is None:
                continue
            if not low <= value <= high:
                raise UsageError(f"{flag} is {value:g}; it takes {low:.0f} to {high:g}")
            if self.budget.kind == "q" and name != "min_psnr_db":
                raise UsageError(f"{flag} contradicts --q, which is the rate of every image")
            if self.budget.kind == "psnr" and name != "min_psnr_db":
                raise UsageError(f"{flag} contradicts --psnr, which is the quality of every image")
        for least, most in (("min_psnr_db", "max_psnr_db"), ("min_bpp", "max_bpp"), ("min_q", "max_q")):
            low_value, high_value = getattr(self, least), getattr(self, most)
            if low_value is not None and high_value is not None and low_value > high_value:
                raise UsageError(f"the least {least[4:].removesuffix('_db')} of {low_value:g} is above the largest of {high_value:g}")
        if self.preferences_sha256 is not None and not self.budget.is_total:
            raise UsageError(f"--per-image divides a budget, and {self.budget} is none to divide")
        if self.min_psnr_db is not None and self.budget.kind == "psnr" and self.min_psnr_db > self.budget.value:
            raise UsageError(f"--min-psnr {self.min_psnr_db:g} is above --psnr {self.budget.value:g}")
        if self.device not in ("cpu", "cuda"):
            raise UsageError(f"no device {self.device!r}; there are cpu and cuda")
        if not 0 <= self.verify_sample <= 1:
            raise UsageError(f"--verify-sample is {self.verify_sample:g}; it takes a share from 0 to 1")
        if self.max_pixels < 1:
            raise UsageError(f"--max-pixels is {self.max_pixels}; it takes 1 or more")

    def to_json(self) -> dict[str, Any]:
        """For `run.json`; `from_json` gives an equal value."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CompressConfig:
        """Parse what `to_json` gave. Raises `UsageError` for foreign keys or values."""
        try:
            globs = {name: tuple(data.get(name, ())) for name in ("include", "exclude")}
            return cls(**{**data, **globs, "budget": Budget(**data["budget"])})
        except (TypeError, KeyError) as error:
            raise UsageError(f"run.json was written by another version of msinn: {error}") from error
