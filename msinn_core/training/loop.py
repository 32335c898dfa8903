"""One training run: steps, averaged parameters, validation, and the whole state as one safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from msinn_core.checkpoint import load_parameters, read_tensors
from msinn_core.config import MsinnConfig
from msinn_core.errors import CheckpointError, CodecError
from msinn_core.float.model import Msinn
from msinn_core.training.capture import CapturedStep, keep_inverses
from msinn_core.training.config import Stage, TrainConfig
from msinn_core.training.data import Tiles
from msinn_core.training.init import extend_anchors, informed
from msinn_core.training.loss import PEAK, RateDistortion, Sample
from msinn_core.training.optimisers import Optimisers

FORMAT = "msinn-train-1"

_EXPLODED = 100.0
"""A gradient this many times its running mean is no gradient: the step is skipped."""


class TrainingFailed(CodecError):  # noqa: N818  (a state, as users read it)
    """Too many steps in a row had to be skipped."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did.

    Attributes:
        loss: Mean Lagrangian in units of each anchor's running mean; NaN if it was.
        gradient_norm: Before clipping.
        skipped: Not finite or exploded, so that nothing was changed.
        sample: Figures per crop.
    """

    loss: float
    gradient_norm: float
    skipped: bool
    sample: Sample


@dataclass(frozen=True, slots=True)
class Point:
    """Validation at one rate: estimated bits per pixel, mean PSNR of 8-bit pictures in dB, mean of `bpp + lambda * MSE`."""

    q: float
    bpp: float
    psnr_db: float
    lagrangian: float


@dataclass
class Progress:
    """What a run remembers beside tensors."""

    step: int = 0
    num_skipped: int = 0
    skipped_in_row: int = 0
    norm_mean: float = 0.0
    minutes: float = 0.0
    data: dict[str, int] = field(default_factory=dict)
    window: dict[str, Any] = field(default_factory=dict)


def _nothing(phase: str) -> None:
    pass


class Trainer:
    """Network, averaged parameters and optimiser of a run.

    A step is a function of the state, the tiles and the step's number alone (on one device and thread count): a resumed run repeats the curve of one
    that was never stopped; with `capture`, whose inverses follow from step to step, up to float rounding.

    Args:
        config: The run.
        device: Where it runs.
        rank: Number of this process; it decides the crops.
        reduce: Sums a tensor over all processes, in place.
        wrap: Called with the network, returns what is called in its place (DistributedDataParallel, torch.compile).
    """

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        *,
        rank: int = 0,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        reduce: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.config = config
        self._reduce = reduce
        self.device = device
        self.rank = rank
        torch.manual_seed(config.seed)
        self.network = Msinn(config.network()).to(device)
        self.network.rate_aware = True
        if config.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.reduce_precision(torch.bfloat16 if config.precision == "bf16" else None)
        self.objective = RateDistortion(self.network.config.lambdas, device)
        self.progress = Progress()
        self.optimiser = Optimisers(self.network, config, device)
        self.average = self._parameters()
        self._call: nn.Module = self.network if wrap is None else wrap(self.network)
        self._ahead: dict[tuple[Stage, int, int], tuple[Tensor, Tensor]] = {}
        self._captures = config.capture and device.type == "cuda"
        self._captured: tuple[Stage, CapturedStep] | None = None

    def _parameters(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def share_beginning(self) -> None:
        """Give every process of a distributed run the parameters of the first."""
        import torch.distributed as dist

        for value in self.network.state_dict().values():
            dist.broadcast(value, 0)
        self.average = self._parameters()

    # Beginning -------------------------------------------------------------------------------------------------------------------------------------

    def initialise(self, tiles: Tiles) -> None:
        """Begin from nothing, as the configuration says."""
        if self.config.init == "informed":
            generator = torch.Generator().manual_seed(self.config.seed)
            informed(self.network, tiles.crops(32, 64, 0.5, generator))
        self.average = self._parameters()

    def begin_from(self, state: Mapping[str, Tensor], config: MsinnConfig) -> None:
        """Begin from the parameters of another run.

        Raises:
            CheckpointError: They do not fit the network.
        """
        load_parameters(self.network, extend_anchors(state, config, self.network.config))
        self.average = self._parameters()

    # Steps -----------------------------------------------------------------------------------------------------------------------------------------

    @property
    def share(self) -> float:
        """How much of the run is done, in [0, 1]."""
        if self.config.schedule == "time":
            return min(1.0, self.progress.minutes / self.config.max_minutes)
        return min(1.0, self.progress.step / self.config.steps)

    def step(self, tiles: Tiles, mark: Callable[[str], None] = _nothing) -> StepResult:
        """One step.

        Args:
            tiles: Where crops come from.
            mark: Called with `data`, `forward`, `backward`, `update` as each is done, for those who measure.

        Raises:
            TrainingFailed: `max_skips` steps in a row were skipped.
        """
        config, progress = self.config, self.progress
        stage = config.stage(self.share)
        drawn = self._ahead.pop(self._key(stage, progress.step, tiles), None) or self._draw(stage, progress.step, tiles)
        self._ahead.clear()
        torch.manual_seed(self._seed(progress.step) + 1)  # the noise in place of rounding
        self.optimiser.set_rate(config.rate_at(progress.step, self.share))
        mark("data")
        loss, sample = self._forward_backward(stage, *drawn, mark)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.gradient_clip)
        if self.device.type == "cuda":
            # While the GPU computes: the next crops, so that it need not wait for them.
            self._ahead[self._key(stage, progress.step + 1, tiles)] = self._draw(stage, progress.step + 1, tiles)
        # One look at the device for all figures: each is a wait.
        figures = torch.cat((loss.detach()[None], norm[None], sample.bpp, sample.mse, sample.lagrangian)).cpu()
        norm_value = float(figures[1])
        skipped = not math.isfinite(norm_value) or (progress.step > 100 and norm_value > _EXPLODED * progress.norm_mean)
        if not skipped:
            self.optimiser.step()
            self.objective.remember(sample, self._reduce)
            self._remember_average()
            progress.norm_mean = norm_value if progress.norm_mean == 0 else 0.99 * progress.norm_mean + 0.01 * norm_value
        progress.step += 1
        progress.num_skipped += skipped
        progress.skipped_in_row = progress.skipped_in_row + 1 if skipped else 0
        mark("update")
        if progress.skipped_in_row >= config.max_skips:
            raise TrainingFailed(
                f"{progress.skipped_in_row} steps in a row had a loss or gradient that is not finite or exploded (step {progress.step}): "
                "lower learning_rate, or look at the data; the last checkpoint is from before"
            )
        return StepResult(float(figures[0]), norm_value, skipped, Sample(drawn[1].cpu(), *figures[2:].chunk(3)))

    def _seed(self, step: int) -> int:
        return (self.config.seed * 1_000_003 + step) * 64 + self.rank

    @staticmethod
    def _key(stage: Stage, step: int, tiles: Tiles) -> tuple[Stage, int, int]:
        return stage, step, tiles.num_seen

    def _draw(self, stage: Stage, step: int, tiles: Tiles) -> tuple[Tensor, Tensor]:
        """Crops and anchors of a step."""
        config, generator = self.config, torch.Generator().manual_seed(self._seed(step))
        shares = {"colour_share": config.colour_share, "jpeg_share": config.jpeg_share}
        x = tiles.crops(stage.batch, stage.crop, config.downscale_share, generator, **shares)
        if config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        low, high = config.anchors()
        return x, torch.randint(low, high + 1, (stage.batch,), generator=generator).to(self.device)

    def _forward_backward(self, stage: Stage, x: Tensor, anchor: Tensor, mark: Callable[[str], None]) -> tuple[Tensor, Sample]:
        self.network.train()
        self.network.noise = stage.rate == "noise"
        precision = stage.precision or self.config.precision
        self.network.reduce_precision(torch.bfloat16 if precision == "bf16" else None)
        # Convolutions alone: plain products are the optimiser's bases and the flow's inverses.
        torch.backends.cudnn.allow_tf32 = precision != "float32"
        if self._captures and stage.parts == 1:
            if self._captured is None or self._captured[0] != stage:
                self._captured = None  # its memory first
                keep_inverses(self.network)
                self._captured = stage, CapturedStep(self.network, self._compute, (x, anchor))
                torch.manual_seed(self._seed(self.progress.step) + 1)  # recording drew noise too
            loss, (bpp, mse, lagrangian) = self._captured[1]((x, anchor))
            mark("forward and backward")
            return loss, Sample(anchor, bpp, mse, lagrangian)
        self.optimiser.zero_grad()
        losses, figures = [], []
        for crops, anchors in zip(x.chunk(stage.parts), anchor.chunk(stage.parts), strict=True):
            loss, part = self._compute(crops, anchors)
            mark("forward")
            (loss / stage.parts).backward()  # type: ignore[no-untyped-call]
            mark("backward")
            losses.append(loss.detach())
            figures.append(part)
        return torch.stack(losses).mean(), Sample(anchor, *(torch.cat(kind) for kind in zip(*figures, strict=True)))

    def _compute(self, x: Tensor, anchor: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        x_hat, bits = self._call(x, anchor.float())
        loss, sample = self.objective(x, x_hat, bits, anchor)
        return loss, (sample.bpp, sample.mse, sample.lagrangian)

    def _remember_average(self) -> None:
        decay = min(self.config.ema_decay, (self.progress.step + 1) / (self.progress.step + 10))
        with torch.no_grad():
            now = self.network.state_dict()
            names = [name for name, value in now.items() if value.is_floating_point()]
            torch._foreach_lerp_([self.average[name] for name in names], [now[name] for name in names], 1 - decay)

    # Measuring -------------------------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, pictures: Tensor) -> list[Point]:
        """The averaged parameters at four rates spread over the range, in float32.

        Args:
            pictures: uint8 `[N, 3, H, W]`, sides multiples of 32, on the CPU or the device.
        """
        now = self._parameters()
        load_parameters(self.network, self.average)
        self.network.eval()
        self.network.reduce_precision(None)
        torch.backends.cudnn.allow_tf32 = False
        top = self.config.anchor_num - 1
        points = []
        for q in sorted({round(top * share) for share in (1 / 11, 4 / 11, 7 / 11, 10 / 11)}):
            rows = []
            for i in range(0, len(pictures), 4):
                x = pictures[i : i + 4].to(self.device).float() / 255
                x_hat, bits = self.network(x, float(q))
                mse = ((x_hat.clamp(0, 1) * PEAK).round() - x * PEAK).square().mean(dim=(1, 2, 3))
                rows.append(torch.stack((bits.sum(dim=1) / (x.shape[2] * x.shape[3]), mse)).cpu())
            bpp, mse = torch.cat(rows, dim=1).double()
            psnr = float((10 * torch.log10(PEAK**2 / mse.clamp_min(1e-9))).mean())
            points.append(Point(float(q), float(bpp.mean()), psnr, float((bpp + self.network.config.lambdas[q] * mse).mean())))
        load_parameters(self.network, now)
        return points

    # State -----------------------------------------------------------------------------------------------------------------------------------------

    def model(self) -> bytes:
        """The averaged parameters alone, as `msinn models import` takes them."""
        return save({f"net.{name}": value.cpu().contiguous() for name, value in self.average.items()}, metadata=self._metadata())

    def state(self) -> bytes:
        """Everything a continuation needs; it can be imported as a model too."""
        tensors = {f"net.{name}": value for name, value in self.average.items()}
        tensors |= {f"raw.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= self.optimiser.state()
        tensors["loss.means"] = self.objective.means
        return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata=self._metadata())

    def _metadata(self) -> dict[str, str]:
        progress: dict[str, Any] = {name: getattr(self.progress, name) for name in self.progress.__dataclass_fields__}
        return {
            "format": FORMAT,
            "config": self.network.config.to_json(),
            "train": self.config.to_json(),
            "progress": json.dumps(progress),
            "steps": str(self.progress.step),
        }

    def resume(self, data: bytes) -> None:
        """Continue where `state` was taken.

        Raises:
            CheckpointError: Not a training state, or of a run with another configuration.
        """
        metadata, tensors = read_tensors(data)
        if metadata.get("format") != FORMAT or "loss.means" not in tensors:
            raise CheckpointError("this file is no training state; to begin from its parameters, name it as `start`")
        try:
            theirs = TrainConfig.from_mapping(json.loads(metadata["train"]))
            progress = Progress(**json.loads(metadata["progress"]))
        except (KeyError, TypeError, ValueError, CodecError) as error:
            raise CheckpointError(f"the training state cannot be read: {error}") from error
        if differing := self.config.difference(theirs):
            raise CheckpointError(
                f"the checkpoint is of a run with another {', '.join(differing)}: go on with its own configuration, "
                "or begin a new run in another folder and name it as `start`"
            )
        load_parameters(self.network, {name[4:]: value for name, value in tensors.items() if name.startswith("raw.")})
        self.average = {name[4:]: value.to(self.device) for name, value in tensors.items() if name.startswith("net.")}
        self.objective.means = tensors["loss.means"].to(self.device)
        self.optimiser.restore(tensors)
        self.progress = progress
