"""`msinn train`: a configuration to a model, resumable at any moment."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import resource
import signal
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from msinn_core.training.config import TrainConfig
    from msinn_core.training.data import Tiles
    from msinn_core.training.loop import Point, StepResult, Trainer
    from pipeline.lab.tiles import TileStream

STATE, MODEL, LOG, CURVE = "checkpoint.safetensors", "model.safetensors", "log.jsonl", "curve.png"


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("train", help="train, resume or fine-tune a model", description="The same command again resumes from the last checkpoint.")
    p.add_argument("config", metavar="CONFIG", help="smoke, lite, paper, ... or a TOML file")
    p.add_argument("--data", nargs="+", metavar="SRC", help="training images: folders, tars, Parquet, globs, any URL")
    p.add_argument("--valid", nargs="+", metavar="SRC", help="validation images, never trained on; NAME=SRC for sets reported apart")
    p.add_argument("--out", metavar="DIR", help="checkpoints, log, curves (default: runs/NAME)")
    p.add_argument("--start", metavar="FILE", help="begin from the parameters of a model or checkpoint (parts are found too)")
    p.add_argument("--steps", type=int, metavar="N")
    p.add_argument("--max-minutes", type=float, metavar="M", help="stop, with a checkpoint, after this long")
    p.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="any other key of the configuration, as TOML")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:N (default: cuda if there is one)")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    p.add_argument("--split-mib", type=int, metavar="N", help="also write the model in parts of at most N MiB")
    p.add_argument("--profile", type=int, metavar="N", help="time N steps after 5 others, print where the time goes, and stop")
    p.set_defaults(command=_train)


@dataclass(frozen=True, slots=True)
class _Rank:
    """This process among those of `torchrun`."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> _Rank:
        read = {key: int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))}
        return cls(read["RANK"], read["WORLD_SIZE"], read["LOCAL_RANK"])


def _config(arguments: argparse.Namespace) -> TrainConfig:
    from msinn_core.training.config import TrainConfig, load_config
    from pipeline.errors import UsageError

    values = asdict(load_config(arguments.config))
    for pair in arguments.set:
        key, equals, value = pair.partition("=")
        if not equals or key not in values:
            raise UsageError(f"--set {pair}: give KEY=VALUE with a key of the configuration, such as learning_rate=2e-4")
        try:
            values[key] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            values[key] = value
    for key in ("data", "valid", "start", "steps", "max_minutes"):
        if (given := getattr(arguments, key)) is not None:
            values[key] = given
    if arguments.split_mib is not None and arguments.split_mib < 1:
        raise UsageError(f"--split-mib is {arguments.split_mib}; it takes 1 or more")
    config = TrainConfig.from_mapping(values)
    if not config.data:
        raise UsageError(f"{arguments.config} names no training images: give --data SRC (folders, tars, Parquet or globs)")
    return config


def _device(wanted: str, local_rank: int) -> torch.device:
    import torch

    from pipeline.errors import UsageError

    if wanted == "auto":
        wanted = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {wanted} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def _train(arguments: argparse.Namespace) -> int:
    import torch

    from msinn_core.training.config import named_sources
    from msinn_core.training.loop import Trainer
    from pipeline.lab.tiles import TileStream, validation_pictures

    config, rank = _config(arguments), _Rank.of_environment()
    device = _device(arguments.device, rank.local_rank)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    out = Path(arguments.out or f"runs/{config.name}")
    chief = rank.rank == 0
    with _stop_on_signals() as stopping, _process_group(rank, device):
        if rank.world_size > 1:
            config = replace(config, capture=False)
        trainer = Trainer(config, device, rank=rank.rank, wrap=_wrapper(config, rank), reduce=_summed if rank.world_size > 1 else None)
        resumed = (out / STATE).exists()
        if resumed:
            trainer.resume((out / STATE).read_bytes())
        run = _Run(trainer, out, rank, split_mib=arguments.split_mib, stopping=stopping)
        started = time.monotonic()
        stream = TileStream(
            config.data, config.tile, seed=config.seed, rank=rank.rank, world_size=rank.world_size, num_threads=min(8, os.cpu_count() or 1)
        )
        tiles = stream.fill(config.resident_mib << 20, device, trainer.progress.data)
        validation = {name: validation_pictures(group, config.valid_images) for name, group in named_sources(config.valid).items()} if chief else {}
        if not resumed:
            _begin(trainer, tiles)
            if rank.world_size > 1:
                # Each process has tiles of its own, and the wrapper shared the parameters before there were any.
                trainer.share_beginning()
        run.say(
            f"{config.name}: {sum(p.numel() for p in trainer.network.parameters()):,} parameters on {device}, {len(tiles)} tiles of {config.tile} "
            f"pixels{' and more streaming' if stream.streaming else ''} ({time.monotonic() - started:.0f} s to load), "
            + (f"resumed at step {trainer.progress.step}" if resumed else f"{config.steps} steps")
        )
        if any(stream.unusable.values()):
            run.say(f"left out: {', '.join(f'{count} {reason}' for reason, count in stream.unusable.items() if count)}")
        if arguments.profile:
            _profile(trainer, tiles, arguments.profile, device)
            return 0
        return run.go(tiles, stream, validation)


def _begin(trainer: Trainer, tiles: Tiles) -> None:
    from msinn_core.checkpoint import infer_config, read_state

    if not trainer.config.start:
        trainer.initialise(tiles)
        return
    path = Path(trainer.config.start)
    with _joined(path) as whole:
        state, config = read_state(whole)
    trainer.begin_from(state, config or infer_config(state))


def _summed(value: torch.Tensor) -> None:
    import torch.distributed as dist

    dist.all_reduce(value)


def _wrapper(config: TrainConfig, rank: _Rank) -> Callable[[Any], Any]:
    import torch

    def wrap(network: Any) -> Any:
        called = torch.compile(network) if config.compile else network
        if rank.world_size > 1:
            from torch.nn.parallel import DistributedDataParallel

            # The network's buffers are constants.
            return DistributedDataParallel(called, broadcast_buffers=False)
        return called

    return wrap


@contextlib.contextmanager
def _process_group(rank: _Rank, device: torch.device) -> Iterator[None]:
    if rank.world_size == 1:
        yield
        return
    import torch.distributed as dist

    if device.type == "cuda":
        import torch

        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """SIGTERM and the first Ctrl-C ask for a stop after the step in hand; a second Ctrl-C interrupts at once."""
    received: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        if received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signum)

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


# Files -------------------------------------------------------------------------------------------------------------------------------------------


def _publish(path: Path, data: bytes) -> None:
    """Replace a file whole or not at all, also across a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


_PART = re.compile(r"(?P<stem>.+)-(?P<sha>[0-9a-f]{12})(?P<suffix>\.safetensors)\.(?P<number>\d{3})-of-(?P<count>\d{3})$")


def write_parts(path: Path, data: bytes, part_bytes: int) -> list[Path]:
    """`model.safetensors` as `model-<sha12>.safetensors.000-of-004` and so on; parts of an earlier model go when the new ones are complete."""
    digest = hashlib.sha256(data).hexdigest()[:12]
    count = -(-len(data) // part_bytes)
    parts = [path.with_name(f"{path.stem}-{digest}{path.suffix}.{i:03d}-of-{count:03d}") for i in range(count)]
    for i, part in enumerate(parts):
        _publish(part, data[i * part_bytes : (i + 1) * part_bytes])
    for other in path.parent.glob(f"{path.stem}-*{path.suffix}.*-of-*"):
        if _PART.match(other.name) and other not in parts:
            other.unlink()
    return parts


@contextlib.contextmanager
def _joined(path: Path) -> Iterator[Path]:
    """The file itself, or its parts joined in a temporary file and checked against the digest in their names."""
    import tempfile

    from msinn_core.errors import CheckpointError

    sets: dict[str, list[Path]] = defaultdict(list)
    for part in sorted(path.parent.glob(f"{path.stem}-*{path.suffix}.*-of-*")) if not path.exists() else []:
        if match := _PART.match(part.name):
            sets[match["sha"]].append(part)
    if not sets:
        yield path
        return
    for sha, parts in sets.items():
        data = b"".join(part.read_bytes() for part in parts)
        if hashlib.sha256(data).hexdigest().startswith(sha):
            break
    else:
        raise CheckpointError(f"the parts of {path} are not all there, or damaged: copy them again")
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / path.name
        whole.write_bytes(data)
        yield whole


# The run -----------------------------------------------------------------------------------------------------------------------------------------


@dataclass
class _Window:
    """Figures since the last log row."""

    losses: list[float] = field(default_factory=list)
    bands: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    steps: int = 0

    def add(self, result: StepResult, num_anchors: int) -> None:
        self.steps += 1
        if result.skipped:
            return
        self.losses.append(result.loss)
        for anchor, bpp, mse in zip(*(value.tolist() for value in (result.sample.anchor, result.sample.bpp, result.sample.mse)), strict=True):
            self.bands[("low", "middle", "high")[3 * anchor // num_anchors]].append((bpp, mse))

    def state(self) -> dict[str, Any]:
        """For a checkpoint between two rows, so that the next row of a continuation covers the same steps."""
        return {"losses": self.losses, "bands": dict(self.bands)}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> _Window:
        bands = defaultdict(list, {name: [(bpp, mse) for bpp, mse in rows] for name, rows in state.get("bands", {}).items()})
        return cls(list(state.get("losses", [])), bands)

    def row(self) -> dict[str, Any]:
        from msinn_core.metrics import psnr_db

        bands = {
            name: {
                "bpp": round(sum(bpp for bpp, _ in rows) / len(rows), 4),
                "psnr_db": round(sum(psnr_db(mse) for _, mse in rows) / len(rows), 2),
            }
            for name, rows in sorted(self.bands.items())
        }
        return {"loss": round(sum(self.losses) / len(self.losses), 5) if self.losses else None, **bands}


class _Run:
    """Steps with all that surrounds them: log, live line, validation, checkpoints, time limit, signals."""

    def __init__(self, trainer: Trainer, out: Path, rank: _Rank, *, split_mib: int | None, stopping: list[int]) -> None:
        self.trainer = trainer
        self.out = out
        self.rank = rank
        self.split_mib = split_mib
        self.stopping = stopping
        self.chief = rank.rank == 0
        self._on_terminal = sys.stderr.isatty()
        self._validated = -1
        if self.chief:
            out.mkdir(parents=True, exist_ok=True)
            self._forget_after(trainer.progress.step)

    def say(self, text: str) -> None:
        """A line on standard error, from one process."""
        if self.chief:
            print(("\r\x1b[K" if self._on_terminal else "") + text, file=sys.stderr, flush=True)

    def _forget_after(self, step: int) -> None:
        """Drop log rows of steps that the checkpoint does not hold: they are about to be done again."""
        path = self.out / LOG
        if path.exists():
            rows = []
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError, KeyError):  # a line cut short by a crash
                    if json.loads(line)["step"] <= step:
                        rows.append(line)
            _publish(path, "".join(f"{row}\n" for row in rows).encode())

    def _log(self, row: dict[str, Any]) -> None:
        with (self.out / LOG).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def go(self, tiles: Tiles, stream: TileStream, validation: dict[str, torch.Tensor]) -> int:
        """Train to the end of the schedule, the time limit or a signal; returns the exit code."""
        from msinn_core.training.loop import TrainingFailed
        from pipeline.lab.tiles import CROPS_PER_TILE

        trainer, config = self.trainer, self.trainer.config
        progress = trainer.progress
        before, started = progress.minutes, time.monotonic()
        window, window_started, saved = _Window.of_state(progress.window), started, started
        streamed = progress.data.get("crops", 0)
        try:
            while True:
                stop, progress.minutes = self._agree(bool(self.stopping), before + (time.monotonic() - started) / 60)
                limit = bool(config.max_minutes) and progress.minutes >= config.max_minutes
                if trainer.share >= 1 or stop or limit:
                    break
                streamed += config.stage(trainer.share).batch
                stream.advance(tiles, tiles.capacity + streamed // CROPS_PER_TILE)
                result = trainer.step(tiles)
                progress.data = {**stream.position(tiles), "crops": streamed}
                window.add(result, config.anchor_num)
                progress.window = window.state()
                if self.chief and progress.step % config.log_every == 0:
                    now = time.monotonic()
                    self._row(window, result, window.steps / (now - window_started))
                    window, window_started = _Window(), now
                    progress.window = {}
                if validation and config.validate_every and progress.step % config.validate_every == 0:
                    pause = time.monotonic()
                    self._validate(validation)
                    window_started += time.monotonic() - pause
                if self.chief and time.monotonic() - saved > 60 * config.checkpoint_minutes:
                    self._save()
                    saved = time.monotonic()
        except TrainingFailed:
            self.say(f"last checkpoint: {self.out / STATE}" if (self.out / STATE).exists() else "no checkpoint was written yet")
            raise
        self._check_together()
        if self.chief:
            if validation and trainer.share >= 1 and self._validated != progress.step:
                self._validate(validation)
            self._save()
            self._draw()
        done = trainer.share >= 1
        why = "done" if done else "stopped by a signal" if stop else f"stopped after {config.max_minutes:g} minutes"
        self.say(
            f"{why} at step {progress.step} ({progress.num_skipped} skipped), {progress.minutes:.1f} minutes in all: {self.out / MODEL}"
            + ("" if done else "; the same command again goes on")
        )
        return 130 if stop and not done else 0

    def _agree(self, stop: bool, minutes: float) -> tuple[bool, float]:
        """All processes stop at one step, and their schedules follow one clock."""
        if self.rank.world_size == 1:
            return stop, minutes
        import torch
        import torch.distributed as dist

        values = torch.tensor([float(stop), minutes], dtype=torch.float64, device=self.trainer.device)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return bool(values[0]), float(values[1])

    def _check_together(self) -> None:
        """All processes must hold the same parameters to the bit: gradients are shared, and so was the beginning."""
        if self.rank.world_size == 1:
            return
        import torch
        import torch.distributed as dist

        from msinn_core.training.loop import TrainingFailed

        mine = torch.stack([value.detach().double().sum() for value in self.trainer.network.parameters()])
        least, most = mine.clone(), mine.clone()
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        if not torch.equal(least, most):
            raise TrainingFailed("the processes of this run hold different parameters: nothing of it can be used")

    def _row(self, window: _Window, result: StepResult, per_second: float) -> None:
        trainer, config = self.trainer, self.trainer.config
        progress = trainer.progress
        figures = window.row()
        rate = config.rate_at(progress.step, trainer.share)
        self._log({
            "step": progress.step, **figures, "gradient_norm": round(result.gradient_norm, 3), "learning_rate": rate, "skipped": progress.num_skipped,
            "minutes": round(progress.minutes, 3), "steps_per_s": round(per_second, 3),
        })  # fmt: skip
        eta = (config.steps - progress.step) / per_second / 60 if config.schedule == "steps" else config.max_minutes - progress.minutes
        if config.max_minutes:
            eta = min(eta, config.max_minutes - progress.minutes)
        bands = "  ".join(f"{name} {row['bpp']:.3f} bpp {row['psnr_db']:.2f} dB" for name, row in figures.items() if isinstance(row, dict))
        loss = "-" if figures["loss"] is None else f"{figures['loss']:.4f}"
        line = f"step {progress.step}  {per_second:.2f}/s  loss {loss}  {bands}  skipped {progress.num_skipped}  {eta:.0f} min left"
        if self._on_terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            self.say(line)

    def _validate(self, validation: dict[str, torch.Tensor]) -> None:
        self._validated = step = self.trainer.progress.step
        for name, pictures in validation.items():
            points: list[Point] = self.trainer.validate(pictures)
            named = {"set": name} if name else {}
            self._log({"step": step, **named, "valid": [asdict(point) for point in points]})
            figures = "  ".join(f"q{p.q:g} {p.bpp:.4f} bpp {p.psnr_db:.3f} dB" for p in points)
            self.say(f"step {step}  valid{f' {name}' if name else ''}  {figures}")

    def _save(self) -> None:
        _publish(self.out / STATE, self.trainer.state())
        model = self.trainer.model()
        _publish(self.out / MODEL, model)
        if self.split_mib:
            write_parts(self.out / MODEL, model, self.split_mib << 20)

    def _draw(self) -> None:
        if not (self.out / LOG).exists():  # stopped before the first row
            return
        try:
            draw_curve(self.out / LOG, self.out / CURVE)
        except ImportError:
            self.say(f"{CURVE} is not drawn: matplotlib is missing (pip install 'msinn[train]')")


_HUES = ((0.0, 0.0, 1.0), (1.0, 0.3, 0.0), (0.0, 0.6, 0.2), (0.6, 0.0, 0.7))
"""Of the validation sets in a plot."""


def draw_curve(log: Path, output: Path) -> None:
    """Loss over steps, and validation RD curves, of a run's log as a PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    validations = [row for row in rows if "valid" in row]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5))
    if losses:
        left.plot(*zip(*losses, strict=True), linewidth=1)
    left.set(xlabel="step", ylabel="loss (in units of each rate's running mean)", title=output.parent.name)
    sets = list(dict.fromkeys(row.get("set", "") for row in validations))
    for number, name in enumerate(sets):
        of_set = [row for row in validations if row.get("set", "") == name]
        for i, row in enumerate(of_set):
            shade = 0.85 * (1 - (i + 1) / len(of_set))
            colour = tuple(value + (1 - value) * shade for value in _HUES[number % len(_HUES)])
            points = [(point["bpp"], point["psnr_db"]) for point in row["valid"]]
            label = f"{name} step {row['step']}".lstrip()
            right.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3, label=label)
    right.set(xlabel="bits per pixel (estimated)", ylabel="PSNR (dB)", title="validation")
    if validations:
        right.legend(fontsize=7)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(output, dpi=90)
    pyplot.close(figure)


def _profile(trainer: Trainer, tiles: Tiles, num_steps: int, device: torch.device) -> None:
    """Seconds per phase of a step, the device drained between phases, and memory."""
    import torch

    spent: dict[str, float] = defaultdict(float)
    last = time.perf_counter()

    def mark(phase: str) -> None:
        nonlocal last
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        spent[phase] += now - last
        last = now

    for number in range(5 + num_steps):
        if number == 5:
            spent.clear()
        last = time.perf_counter()
        trainer.step(tiles, mark)
    total = sum(spent.values())
    shares = ", ".join(f"{phase} {100 * seconds / total:.1f} %" for phase, seconds in spent.items())
    memory = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    stage = trainer.config.stage(trainer.share)
    print(
        f"{trainer.config.preset}, {stage.batch} crops of {stage.crop}: {num_steps / total:.2f} steps/s; {shares}; outside the network "
        f"{100 * (spent['data'] + spent['update']) / total:.1f} %; peak memory {memory:,.0f} MiB on {device}"
    )
