"""`msinn train`: a configuration to a model, resumable at any moment."""

from __future__ import annotations

import argparse
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from msinn_core.training.config import TrainConfig


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

    from pipeline.lab.distributed import Rank
    from pipeline.lab.training_run import run_training

    config, rank = _config(arguments), Rank.of_environment()
    device = _device(arguments.device, rank.local_rank)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    out = Path(arguments.out or f"runs/{config.name}")
    return run_training(config, out, device, rank, split_mib=arguments.split_mib, profile=arguments.profile)
