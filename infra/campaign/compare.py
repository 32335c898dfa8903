"""Ways to train, each for the same CPU time on one thread: a table, and `compare.png`.

    python -m infra.campaign.compare --data TRAIN.tar... --valid valid.tar --minutes 3 --out runs/compare
    python -m infra.campaign.compare ... --start msinn_core/weights/msinn-lite-float.safetensors --out runs/compare-on

Time is the process's own, so that what else the machine does costs no way more than another. The same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import msinn_core.training.optimisers
from msinn_core.training.config import TrainConfig, load_config
from pipeline.lab.distributed import Rank
from pipeline.lab.training_files import LOG, MODEL
from pipeline.lab.training_run import run_training

RATES = (1.0, 4.0, 7.0, 10.0)
_FLOAT, _BF16, _ROUNDED = {"precision": "float32"}, {"precision": "bf16"}, {"rate": "rounded"}
WAYS: dict[str, dict[str, Any]] = {
    "Adam": {"optimiser": "adam", **_FLOAT},
    "Muon on convolutions": {"muon": True, **_FLOAT},
    "SOAP on convolutions": _FLOAT,
    "SOAP, bf16": _BF16,
    "SOAP, bf16, rates of rounded symbols": {**_BF16, **_ROUNDED},
    "the same, 16 crops in 4 parts": {**_BF16, **_ROUNDED, "batch": 16, "parts": 4},
    "the same, torch.compile": {**_BF16, **_ROUNDED, "compile": True},
}
"""What differs from the first; SOAP and Muon leave gains, actnorm, biases and 1x1 matrices to Adam."""


class _Muon:
    """torch's Muon, which takes matrices alone, over convolutions: each a matrix with a row an output channel."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, **_: Any) -> None:
        self._real = list(parameters)
        self._flat = [nn.Parameter(p.detach().reshape(p.shape[0], -1).clone()) for p in self._real]
        self._muon = torch.optim.Muon(self._flat, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        self.param_groups = self._muon.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        for real in self._real:
            real.grad = None

    def step(self) -> None:
        for real, flat in zip(self._real, self._flat, strict=True):
            flat.data.copy_(real.detach().reshape(flat.shape))
            flat.grad = None if real.grad is None else real.grad.reshape(flat.shape)
        self._muon.step()
        for real, flat in zip(self._real, self._flat, strict=True):
            real.data.copy_(flat.data.reshape(real.shape))

    def state(self, names: object) -> dict[str, Tensor]:
        """None: a way that was interrupted begins anew."""
        return {}


def train(way: str, folder: Path, data: list[str], valid: str, minutes: float, start: str) -> None:
    """One way, in this process."""
    time.monotonic = time.process_time
    torch.set_num_threads(1)
    chosen = dict(WAYS[way])
    if chosen.pop("muon", False):
        msinn_core.training.optimisers.Soap = _Muon  # type: ignore[assignment,misc]
    stage = {"until": 1.0, "crop": 192, "batch": 4, "parts": 1, "rate": "noise", "precision": ""}
    stage |= {key: chosen.pop(key) for key in list(chosen) if key in stage and key != "precision"}
    # From trained weights, which rounded symbols made, with a fraction of the rates.
    rates = {"soap_rate": 3e-4, "learning_rate": 1e-4} if start else {"soap_rate": 2e-3, "learning_rate": 1e-3}
    if start:
        stage["rate"] = "rounded"
    values = asdict(load_config("lite-continue")) | rates | chosen
    values |= {
        "data": data,
        "valid": [valid],
        "start": start,
        "schedule": "time",
        "max_minutes": minutes,
        "stages": [stage],
        "warmup_steps": 30,
        "ema_decay": 0.98,
    }
    values |= {"validate_every": 0, "checkpoint_minutes": 1000.0, "log_every": 25, "valid_images": 8, "colour_share": 0.0, "jpeg_share": 0.0}
    run_training(TrainConfig.from_mapping(values), folder, torch.device("cpu"), Rank.of_environment())


def _lagrangians(folder: Path) -> tuple[int, list[float]]:
    row = [row for row in map(json.loads, (folder / LOG).read_text().splitlines()) if "valid" in row][-1]
    return row["step"], [point["lagrangian"] for point in row["valid"]]


def _report(out: Path) -> None:
    from matplotlib.figure import Figure

    found = {way: _lagrangians(out / _folder(way)) for way in WAYS if (out / _folder(way) / MODEL).exists()}
    first = found["Adam"][1]
    print("| | steps | " + " | ".join(f"q {q:g}" for q in RATES) + " |\n| --- | --- | " + "--- | " * len(RATES))
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for way, (steps, values) in found.items():
        change = [100 * (value / base - 1) for value, base in zip(values, first, strict=True)]
        print(f"| {way} | {steps} | " + " | ".join(f"{v:.4f} ({c:+.1f} %)" for v, c in zip(values, change, strict=True)) + " |")
        axes.plot(range(len(RATES)), change, marker="o", label=way)
    axes.set_xticks(range(len(RATES)), [f"q = {q:g}" for q in RATES])
    axes.set(ylabel="bpp + lambda MSE, % against Adam", ylim=(-15, 40))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(out / "compare.png", dpi=110)


def _folder(way: str) -> str:
    return way.replace(" ", "-").replace(",", "")


def main() -> None:
    """All ways, each in a process of its own."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--data", nargs="+", required=True)
    p.add_argument("--valid", required=True)
    p.add_argument("--minutes", type=float, default=3.0, help="of CPU time, each")
    p.add_argument("--start", default="", help="weights to begin from; without: from nothing")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.way:
        train(a.way, a.out / _folder(a.way), a.data, a.valid, a.minutes, a.start)
        return
    for way in WAYS:
        if a.start and way == "SOAP, bf16":
            continue  # the next is the same there
        if not (a.out / _folder(way) / MODEL).exists():
            command = [sys.executable, "-m", "infra.campaign.compare", *sys.argv[1:], "--way", way]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _report(a.out)


if __name__ == "__main__":
    main()
