"""What a run was asked to do: frozen, checked, stored in `run.json`, compared on resume."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from msinn_core.config import DEFAULT_MAX_PIXELS
from pipeline.errors import UsageError
from pipeline.plan.allocation import OBJECTIVES

BUDGET_KINDS = ("bpp", "bytes", "ratio", "psnr", "q", "lossless", "max_error")
"""What users ask for."""

SLOPE = "slope"
"""A budget that nobody asks for by name: that of a growth at the price that a plan before it ended with."""

LARGEST_MAX_ERROR = 8
"""Beyond it what the residual takes is better spent by a budget: the network alone is hardly further off."""

DEVICES = ("cpu", "cuda", "auto")

EXACT = ("pixels", "bytes")

FORMS = ("msinn", "all")

LIMIT_RANGES = {
    "min_psnr_db": (1e-9, 90.0),
    "max_psnr_db": (1e-9, 90.0),
    "min_bpp": (0.0, 1e3),
    "max_bpp": (1e-9, 1e3),
    "min_q": (0.0, 1e3),
    "max_q": (0.0, 1e3),
}
"""Floors and caps of images and what they may be; those of `allocation.Limits`. The least PSNR may be infinite, too: such an image loses nothing."""


VERIFY_SAMPLE = 1 / 32
"""Share of the images that another backend decodes from their bytes, for some 4 % of the time. A machine that errs in every image is found with its
first shard; one that errs in one image of ten after 320 on average."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """One of: `bpp` (bits per pixel of the dataset), `bytes`, `ratio` (source bytes over archive bytes), `psnr` (dB, each image), `q` (fixed),
    `lossless` (every image exactly, in its smallest form; the value says nothing and is 0), `max_error` (no sample further off than this, 1 to
    `LARGEST_MAX_ERROR`; what is no picture of 8 bits exactly), `slope` (the price: bytes are spent on an image while
    each takes more than so much off its error, in the objective's unit; from 0, where all are).

    Raises:
        UsageError: Unknown kind or a value out of range.
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        if self.kind not in (*BUDGET_KINDS, SLOPE):
            raise UsageError(f"no budget {self.kind!r}; there are {', '.join(BUDGET_KINDS)}")
        if self.kind == "lossless":
            if self.value != 0:
                raise UsageError("--lossless takes no value")
            return
        if self.kind == "max_error":
            if self.value not in range(1, LARGEST_MAX_ERROR + 1):
                raise UsageError(f"--max-error is {self.value:g}; it takes a whole number from 1 to {LARGEST_MAX_ERROR}, in values of 0 to 255")
            return
        least = 0.0 if self.kind in ("q", SLOPE) else 1e-9
        if not math.isfinite(self.value) or self.value < least:
            raise UsageError(f"--{self.kind} is {self.value:g}; it takes a number {'above 0' if least else 'from 0'}")
        if self.kind == "psnr" and self.value > 90:
            raise UsageError(f"--psnr is {self.value:g} dB; above 90 dB nothing short of the original file will do")

    @property
    def is_total(self) -> bool:
        """Whether it bounds the dataset's bytes, and so needs analysis and a plan."""
        return self.kind in ("bpp", "bytes", "ratio")

    @property
    def has_threshold(self) -> bool:
        """Whether all images share one price of a byte: that of a total, or the one given."""
        return self.is_total or self.kind == SLOPE

    @property
    def max_error(self) -> int | None:
        """Largest error of a sample, where that is what was asked for."""
        return int(self.value) if self.kind == "max_error" else None

    def total_bytes(self, *, pixels: int, source_bytes: int) -> float:
        """Bytes for the whole dataset, as counted (see README, "What counts")."""
        exact = {"bpp": self.value * pixels / 8, "bytes": self.value, "ratio": source_bytes / self.value}[self.kind]
        # Whole bytes; the small addend keeps 0.8 * 10 from becoming 7.
        return float(math.floor(exact + 1e-6))

    def __str__(self) -> str:
        if self.kind == SLOPE:
            return f"the price of the generation before ({self.value:.4g} of error a byte)"
        return "--lossless" if self.kind == "lossless" else f"--{self.kind.replace('_', '-')} {self.value:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressConfig:
    """Everything that decides what an archive will hold.

    Attributes:
        budget: See `Budget`.
        objective: `mse`, `psnr` or `minimum`.
        min_psnr_db: Floor for every image, or None: kept by what is decoded. Infinite: every image lies in its smallest exact form, within the
            budget. The other limits are kept by the plan, as predicted.
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
        device: `cpu` (the compiled integer kernel), `cuda` (a GPU) or `auto` (a GPU where there is one that passes the self-test, else the CPU).
            Archives are the same.
        lossless_jpeg: JPEG files are not coded by the network: they are stored in their smallest form that gives back the bytes.
        forms: `msinn`: images lie in exact forms only where the network does not code them; `all`: also where the plan finds that the better use of
            bytes.
        avif: With `forms` of `all`: AVIF codes what was drawn where that takes less than the network. An archive that was begun without it goes on
            and grows without.
        exact: What a lossless form of a file that is no JPEG gives back: `pixels` (every sample), or `bytes` (the file itself).

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
    max_pixels: int = DEFAULT_MAX_PIXELS
    count_sidecars: bool = False
    ms_ssim: bool = False
    image_column: str | None = None
    device: str = "cpu"
    verify_sample: float = VERIFY_SAMPLE
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    all_files: bool = False
    follow_links: bool = False
    lossless_jpeg: bool = False
    exact: str = "pixels"
    forms: str = "msinn"
    avif: bool = False

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UsageError(f"no objective {self.objective!r}; there are {', '.join(OBJECTIVES)}")
        if self.exact not in EXACT:
            raise UsageError(f"no exactness {self.exact!r}; there are {', '.join(EXACT)}")
        if self.exact != "pixels" and self.budget.kind != "lossless":
            raise UsageError("--exact belongs to --lossless")
        if self.forms not in FORMS:
            raise UsageError(f"no forms {self.forms!r}; there are {', '.join(FORMS)}")
        if self.forms != "msinn" and self.budget.kind in ("q", "lossless", "max_error"):
            raise UsageError(f"--forms {self.forms} is for the plan of a budget or of --psnr, and {self.budget} has none")
        if self.avif and self.forms != "all":
            raise UsageError(f"AVIF is one of all forms, and forms are {self.forms}")
        for name, (low, high) in LIMIT_RANGES.items():
            value, flag = getattr(self, name), "--" + name.removesuffix("_db").replace("_", "-")
            if value is None:
                continue
            lossless = name == "min_psnr_db" and value == math.inf
            if not (low <= value <= high or lossless):
                raise UsageError(f"{flag} is {value:g}; it takes {low:.0f} to {high:g}{', or inf' if name == 'min_psnr_db' else ''}")
            if self.budget.kind == "lossless":
                raise UsageError(f"{flag} contradicts --lossless, which loses nothing")
            if self.budget.kind == "max_error":
                raise UsageError(f"{flag} contradicts {self.budget}, which every sample of every image keeps")
            if lossless and not self.budget.has_threshold:
                raise UsageError(
                    f"--min-psnr inf asks for no loss and contradicts {self.budget}: say --lossless, or a budget in bytes to stay within"
                )
            if self.budget.kind == "q" and name != "min_psnr_db":
                raise UsageError(f"{flag} contradicts --q, which is the rate of every image")
            if self.budget.kind == "psnr" and name != "min_psnr_db":
                raise UsageError(f"{flag} contradicts --psnr, which is the quality of every image")
        for least, most in (("min_psnr_db", "max_psnr_db"), ("min_bpp", "max_bpp"), ("min_q", "max_q")):
            low_value, high_value = getattr(self, least), getattr(self, most)
            if low_value is not None and high_value is not None and low_value > high_value:
                raise UsageError(f"the least {least[4:].removesuffix('_db')} of {low_value:g} is above the largest of {high_value:g}")
        if self.preferences_sha256 is not None and not self.budget.has_threshold:
            raise UsageError(f"--per-image divides a budget, and {self.budget} is none to divide")
        if self.min_psnr_db is not None and self.budget.kind == "psnr" and self.min_psnr_db > self.budget.value:
            raise UsageError(f"--min-psnr {self.min_psnr_db:g} is above --psnr {self.budget.value:g}")
        if self.device not in DEVICES:
            raise UsageError(f"no device {self.device!r}; there are {', '.join(DEVICES)}")
        if self.device != "cpu" and self.budget.kind == "max_error":
            raise UsageError(f"--device {self.device} contradicts {self.budget}, whose search is the CPU's; any device restores")
        if not 0 <= self.verify_sample <= 1:
            raise UsageError(f"--verify-sample is {self.verify_sample:g}; it takes a share from 0 to 1")
        if self.max_pixels < 1:
            raise UsageError(f"--max-pixels is {self.max_pixels}; it takes 1 or more")

    def to_json(self) -> dict[str, Any]:
        """For `run.json`; `from_json` gives an equal value."""
        values = dataclasses.asdict(self)
        # JSON has no infinity, and what Python writes in its place other readers refuse.
        return values if self.min_psnr_db != math.inf else {**values, "min_psnr_db": "inf"}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CompressConfig:
        """Parse what `to_json` gave. Raises `UsageError` for foreign keys or values."""
        try:
            globs = {name: tuple(data.get(name, ())) for name in ("include", "exclude")}
            floor = {"min_psnr_db": math.inf} if data.get("min_psnr_db") == "inf" else {}
            return cls(**{**data, **globs, **floor, "budget": Budget(**data["budget"])})
        except (TypeError, KeyError) as error:
            raise UsageError(f"run.json was written by another version of msinn: {error}") from error
