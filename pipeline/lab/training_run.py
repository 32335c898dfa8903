"""A training run: data, steps, and all that surrounds them. The same call again resumes from the last checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from msinn_core.checkpoint import infer_config, read_state
from msinn_core.training.config import TrainConfig, named_sources
from msinn_core.training.data import Tiles
from msinn_core.training.loop import Point, StepResult, Trainer, TrainingFailed
from pipeline.lab.distributed import Rank, process_group, summed, wrapper
from pipeline.lab.stopping import stop_on_signals
from pipeline.lab.tiles import CROPS_PER_TILE, TileStream, validation_pictures
from pipeline.lab.training_files import CURVE, LOG, MODEL, STATE, joined, publish, write_parts
from pipeline.lab.training_log import Window, draw_curve


def run_training(
    config: TrainConfig, out: Path, device: torch.device, rank: Rank, *, split_mib: int | None = None, profile: int | None = None
) -> int:
    """Train, and write checkpoints, log and curves.

    Args:
        config: The run.
        out: Where they go.
        device: Where it runs.
        rank: This process.
        split_mib: Also write the model in parts of at most this size.
        profile: Time so many steps, print where the time goes, and stop.

    Returns:
        The exit code.

    Raises:
        SourceError: Nothing to train on.
        CheckpointError: The checkpoint is of another run, or damaged.
        TrainingFailed: Too many steps in a row were no good.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    chief = rank.rank == 0
    with stop_on_signals() as stopping, process_group(rank, device):
        if rank.world_size > 1:
            config = replace(config, capture=False)
        trainer = Trainer(config, device, rank=rank.rank, wrap=wrapper(config, rank), reduce=summed if rank.world_size > 1 else None)
        resumed = (out / STATE).exists()
        if resumed:
            trainer.resume((out / STATE).read_bytes())
        run = TrainingRun(trainer, out, rank, split_mib=split_mib, stopping=stopping)
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
        if profile:
            _profile(trainer, tiles, profile, device)
            return 0
        return run.go(tiles, stream, validation)


def _begin(trainer: Trainer, tiles: Tiles) -> None:
    if not trainer.config.start:
        trainer.initialise(tiles)
        return
    path = Path(trainer.config.start)
    with joined(path) as whole:
        state, config = read_state(whole)
    trainer.begin_from(state, config or infer_config(state))


class TrainingRun:
    """Steps with all that surrounds them: log, live line, validation, checkpoints, time limit, signals."""

    def __init__(self, trainer: Trainer, out: Path, rank: Rank, *, split_mib: int | None, stopping: list[int]) -> None:
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
            publish(path, "".join(f"{row}\n" for row in rows).encode())

    def _log(self, row: dict[str, Any]) -> None:
        with (self.out / LOG).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def go(self, tiles: Tiles, stream: TileStream, validation: dict[str, torch.Tensor]) -> int:
        """Train to the end of the schedule, the time limit or a signal; returns the exit code."""
        trainer, config = self.trainer, self.trainer.config
        progress = trainer.progress
        before, started = progress.minutes, time.monotonic()
        window, window_started, saved = Window.of_state(progress.window), started, started
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
                    window, window_started = Window(), now
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
        values = torch.tensor([float(stop), minutes], dtype=torch.float64, device=self.trainer.device)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return bool(values[0]), float(values[1])

    def _check_together(self) -> None:
        """All processes must hold the same parameters to the bit: gradients are shared, and so was the beginning."""
        if self.rank.world_size == 1:
            return
        mine = torch.stack([value.detach().double().sum() for value in self.trainer.network.parameters()])
        least, most = mine.clone(), mine.clone()
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        if not torch.equal(least, most):
            raise TrainingFailed("the processes of this run hold different parameters: nothing of it can be used")

    def _row(self, window: Window, result: StepResult, per_second: float) -> None:
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
        publish(self.out / STATE, self.trainer.state())
        model = self.trainer.model()
        publish(self.out / MODEL, model)
        if self.split_mib:
            write_parts(self.out / MODEL, model, self.split_mib << 20)

    def _draw(self) -> None:
        if not (self.out / LOG).exists():  # stopped before the first row
            return
        try:
            draw_curve(self.out / LOG, self.out / CURVE)
        except ImportError:
            self.say(f"{CURVE} is not drawn: matplotlib is missing (pip install 'msinn[train]')")


def _profile(trainer: Trainer, tiles: Tiles, num_steps: int, device: torch.device) -> None:
    """Seconds per phase of a step, the device drained between phases, and memory."""
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
