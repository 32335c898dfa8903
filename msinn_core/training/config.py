"""What a training run is: one frozen, self-checking value, read from a TOML file."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msinn_core.config import PAPER_LAMBDAS, SIZE_MULTIPLE, MsinnConfig, preset
from msinn_core.errors import ConfigError

CONFIGS = Path(__file__).parent / "configs"

PRECISIONS = ("float32", "tf32", "bf16")

_UNTRACKED = ("max_minutes", "checkpoint_minutes", "log_every", "compile", "capture", "valid", "validate_every", "valid_images")
"""Keys that may differ between a run and its continuation. They change nothing that is learned, float rounding (`compile`, `capture`) and the end of
a schedule by time (`max_minutes`) aside."""


_NAMED = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9_-]*)=")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Part of a run.

    Attributes:
        until: Share of the run at which the stage ends, in (0, 1].
        crop: Side of the square crops in pixels, a multiple of 32.
        batch: Crops a step (on each GPU).
        parts: Pieces of the batch that are worked through one after the other, their gradients gathered: the memory of one, the step of all.
        rate: `noise` (rate at values plus uniform noise) or `rounded` (of the symbols themselves: see `model.Estimator`).
        precision: Of this stage in place of the run's; empty for the run's. bf16 holds the top rates back, so that a run should end in float32.
    """

    until: float
    crop: int
    batch: int
    parts: int = 1
    rate: str = "noise"
    precision: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise ConfigError(f"a stage ends at {self.until}; give a share of the run, above 0 and up to 1")
        if self.crop % SIZE_MULTIPLE or self.crop < SIZE_MULTIPLE:
            raise ConfigError(f"a stage has crops of {self.crop} pixels; give a multiple of {SIZE_MULTIPLE}")
        if self.batch < 1:
            raise ConfigError(f"a stage has a batch of {self.batch}; give 1 or more")
        if self.parts < 1 or self.batch % self.parts:
            raise ConfigError(f"a stage has a batch of {self.batch} in {self.parts} parts; they must be equal")
        if self.rate not in ("noise", "rounded"):
            raise ConfigError(f"a stage has rate {self.rate!r}; choose noise or rounded")
        if self.precision not in ("", *PRECISIONS):
            raise ConfigError(f"a stage has precision {self.precision!r}; choose one of {', '.join(PRECISIONS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A training run.

    Attributes:
        name: Of the run and of the model it makes.
        preset: `msinn-base` or `msinn-lite`.
        anchor_num: Anchor rates, 8 or 12.
        data: Folders, tars, Parquet files or globs of training images (fsspec URLs).
        valid: The same for validation; never trained on. `NAME=SOURCE` puts a source into a set that is reported apart (`named_sources`).
        start: Checkpoint or model to begin from; a network with fewer anchors is extended.
        steps: Length of the run.
        max_minutes: Stop (with a checkpoint) after this long; 0 for no limit.
        schedule: What learning rate and stages follow: `steps`, or `time` (the share of `max_minutes` spent, continuations included).
        stages: Crop and batch schedule.
        q_range: Least and largest rate index that steps train, where not the whole range is wanted; empty for all anchors.
        lambdas: Weight of the MSE (8-bit values squared, over 255**2 pixels) per anchor; the paper's if empty.
        learning_rate: Peak, after `warmup_steps`, before cosine decay to `final_share` of it.
        optimiser: `adam`, or `soap` for the convolutions (Adam keeps gains, actnorm, biases and 1x1 matrices).
        soap_rate: Peak of SOAP's learning rate; it follows the same warm-up and decay.
        soap_frequency: Steps between renewals of SOAP's bases.
        slow_share: Learning rate of 1x1 flow matrices and actnorm, as a share (all at full rate stalls: ENVIRONMENT).
        ema_decay: Of the averaged parameters, which are the model.
        gradient_clip: Largest gradient norm.
        downscale_share: Share of crops antialiased down from up to twice the side.
        colour_share: Share of crops with other exposure, contrast and white balance.
        jpeg_share: Share of crops that were a JPEG file, as most pictures in archives were.
        init: `informed` (gains, Haar, swaps, scale head) or `paper`, for runs without `start`.
        precision: `float32`; `bf16` for couplings and context stacks; on a GPU also `tf32` (float32 whose convolutions multiply 10 bits of mantissa).
        capture: On a GPU, record each stage's forward and backward as one CUDA graph (see `capture`); not with DistributedDataParallel.
        compile: Run the network through `torch.compile`.
        channels_last: Memory format.
        tile: Training images are cut into tiles of this side.
        resident_mib: Tiles kept in memory on the device; larger sets stream through it.
        log_every: Steps per log row.
        validate_every: Steps per validation; 0 for none.
        valid_images: Validation pictures used.
        checkpoint_minutes: Minutes between checkpoints.
        max_skips: Steps in a row that may be skipped before the run gives up.
        seed: Of everything random.

    Raises:
        ConfigError: A value is outside its range.
    """

    name: str
    preset: str
    steps: int
    stages: tuple[Stage, ...]
    data: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    start: str = ""
    anchor_num: int = 12
    q_range: tuple[float, ...] = ()
    lambdas: tuple[float, ...] = ()
    max_minutes: float = 0.0
    schedule: str = "steps"
    learning_rate: float = 4e-4
    optimiser: str = "adam"
    soap_rate: float = 1e-3
    soap_frequency: int = 10
    slow_share: float = 0.2
    warmup_steps: int = 200
    final_share: float = 0.02
    ema_decay: float = 0.999
    gradient_clip: float = 1.0
    downscale_share: float = 0.35
    colour_share: float = 0.0
    jpeg_share: float = 0.0
    init: str = "informed"
    precision: str = "float32"
    capture: bool = True
    compile: bool = False
    channels_last: bool = True
    tile: int = 512
    resident_mib: int = 4096
    log_every: int = 50
    validate_every: int = 1000
    valid_images: int = 16
    checkpoint_minutes: float = 5.0
    max_skips: int = 20
    seed: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), str(field.type)
            if kind in ("int", "float") and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ConfigError(f"{field.name} is {value!r}; it takes a number")
            if kind == "int" and not isinstance(value, int):
                raise ConfigError(f"{field.name} is {value!r}; it takes a whole number")
        shares = ("slow_share", "final_share", "downscale_share", "colour_share", "jpeg_share")
        for key, low, high in (
            ("steps", 1, 1e9), ("learning_rate", 1e-9, 1), ("warmup_steps", 0, 1e9), ("gradient_clip", 1e-6, 1e6), ("ema_decay", 0, 0.999999),
            ("tile", 64, 4096), ("resident_mib", 1, 1e6), ("log_every", 1, 1e6), ("validate_every", 0, 1e9), ("valid_images", 1, 1e4),
            ("checkpoint_minutes", 0, 1e4), ("max_skips", 1, 1e6), ("max_minutes", 0, 1e6), ("soap_rate", 1e-9, 1), ("soap_frequency", 1, 1e4),
            *((share, 0, 1) for share in shares),
        ):  # fmt: skip
            if not low <= getattr(self, key) <= high:
                raise ConfigError(f"{key} is {getattr(self, key)!r}; it takes {low:g} to {high:g}")
        for key, choices in (
            ("init", ("informed", "paper")), ("schedule", ("steps", "time")), ("precision", PRECISIONS), ("optimiser", ("adam", "soap")),
        ):  # fmt: skip
            if getattr(self, key) not in choices:
                raise ConfigError(f"{key} is {getattr(self, key)!r}; choose {' or '.join(choices)}")
        if self.schedule == "time" and not self.max_minutes:
            raise ConfigError("a schedule by time needs max_minutes")
        ends = [stage.until for stage in self.stages]
        if not ends or ends != sorted(set(ends)) or ends[-1] != 1:
            raise ConfigError(f"the stages end at {ends}; they must rise to 1")
        if self.tile < max(stage.crop for stage in self.stages):
            raise ConfigError(f"tiles of {self.tile} pixels are smaller than the crops")
        if self.q_range and (len(self.q_range) != 2 or not 0 <= self.q_range[0] <= self.q_range[1] <= self.anchor_num - 1):
            raise ConfigError(f"q_range is {list(self.q_range)}; it takes two rising rate indexes from 0 to {self.anchor_num - 1}")
        self.network()

    def anchors(self) -> tuple[int, int]:
        """First and last anchor that steps train: those around `q_range`."""
        low, high = self.q_range or (0, self.anchor_num - 1)
        return math.floor(low), math.ceil(high)

    def network(self) -> MsinnConfig:
        """Configuration of the network.

        Raises:
            ConfigError: No such preset, or lambdas that do not fit.
        """
        if not 2 <= self.anchor_num <= (64 if self.lambdas else len(PAPER_LAMBDAS)):
            raise ConfigError(f"anchor_num is {self.anchor_num}; without lambdas of your own it takes 2 to {len(PAPER_LAMBDAS)}")
        base = preset(self.preset, anchor_num=self.anchor_num) if not self.lambdas else preset(self.preset)
        return dataclasses.replace(base, name=self.name, anchor_num=self.anchor_num, lambdas=self.lambdas or base.lambdas)

    def stage(self, progress: float) -> Stage:
        """The stage in force at a share of the run in [0, 1]."""
        return next((stage for stage in self.stages if progress < stage.until), self.stages[-1])

    def rate_at(self, step: int, progress: float) -> float:
        """Learning rate: linear warm-up, then cosine decay to `final_share`."""
        cosine = self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps)) * cosine

    def to_json(self) -> str:
        """One JSON object; `from_mapping` of it gives an equal value."""
        return json.dumps(dataclasses.asdict(self))

    def difference(self, other: TrainConfig) -> list[str]:
        """Keys whose values differ and that decide what is learned."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return [key for key in mine if key not in _UNTRACKED and mine[key] != theirs[key]]

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> TrainConfig:
        """Build from parsed TOML or JSON.

        Raises:
            ConfigError: A key is missing, unknown, or has a bad value.
        """
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list | tuple) else value for key, value in mapping.items()}
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(values) - known:
            raise ConfigError(f"unknown keys in the training configuration: {', '.join(sorted(unknown))}")
        try:
            values["stages"] = tuple(Stage(**stage) for stage in values.get("stages", ()))
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"the training configuration is incomplete or has a value of the wrong kind: {error}") from error


def named_sources(sources: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Sources by the set they belong to: `photo=a.tar` to `photo`, `b.tar` to the set without a name; several of one name are one set.

    A name is letters, digits, `-` and `_`, from a letter on; a relative path that reads so (`date=2026/x.tar`) is written `./date=2026/x.tar`.
    """
    found: dict[str, tuple[str, ...]] = {}
    for source in sources:
        match = _NAMED.match(source)
        name = match["name"] if match else ""
        found[name] = (*found.get(name, ()), source[match.end() :] if match else source)
    return found


def load_config(which: str) -> TrainConfig:
    """A configuration by shipped name (`smoke`, `lite`, `paper`, ...) or path.

    Raises:
        ConfigError: No such file, not TOML, or not a training configuration.
    """
    path = CONFIGS / f"{which}.toml"
    if not path.is_file():
        path = Path(which)
    try:
        return TrainConfig.from_mapping(tomllib.loads(path.read_text()))
    except OSError as error:
        names = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.toml")))
        raise ConfigError(f"no training configuration {which!r}: give one of {names}, or the path of a TOML file ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
