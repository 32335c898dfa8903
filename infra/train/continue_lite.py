"""Continues training of msinn-lite on one CPU thread: how the shipped weights were made from the bootstrap ones.

    OMP_NUM_THREADS=1 nice -n 15 python infra/train/continue_lite.py MINUTES START.safetensors DATA OUT

DATA holds `train-*.tar` and `valid.tar` with 512 x 512 tiles. OUT/lite.safetensors, the moving average of the parameters, is replaced every
10 minutes. The figures of the run are in `msinn_core/weights/README.md`.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from msinn_core.checkpoint import load_parameters, read_state
from msinn_core.model import Msinn

LEARNING_RATE = 2.5e-4
SLOW_SHARE = 0.2
"""1x1 flow matrices and actnorm learn at a fifth of the rate: at the full rate training stalls."""

PHASES = ((0.6, 128, 6), (1.0, 192, 3))
"""Until this share of the time: crops of this side, this many a step."""

DOWNSCALED_SHARE = 0.35
VALIDATION_RATES = (1.0, 4.0, 7.0, 10.0)
SEED = 20261122


def tiles(path: Path) -> list[Tensor]:
    """Every 512 x 512 image of a tar, uint8 `[512, 512, 3]`."""
    found = []
    with tarfile.open(path) as tar:
        for member in tar:
            reader = tar.extractfile(member)
            if reader is not None:
                pixels = np.array(Image.open(io.BytesIO(reader.read())).convert("RGB"))
                if pixels.shape == (512, 512, 3):
                    found.append(torch.from_numpy(pixels))
    return found


def batch(data: Tensor, count: int, side: int, generator: torch.Generator) -> Tensor:
    """Random crops, some downscaled by up to 2, each in one of 8 orientations: `[count, 3, side, side]` in [0, 1]."""
    crops = []
    for i in torch.randint(len(data), (count,), generator=generator).tolist():
        size = side
        if torch.rand((), generator=generator) < DOWNSCALED_SHARE:
            size = int(side * (1 + torch.rand((), generator=generator).item()))
        row, column = torch.randint(512 - size + 1, (2,), generator=generator).tolist()
        x = data[i, row : row + size, column : column + size].permute(2, 0, 1)[None].float() / 255
        if size != side:
            x = F.interpolate(x, size=(side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        orientation = int(torch.randint(8, (), generator=generator))
        x = torch.rot90(x, orientation % 4, (2, 3))
        crops.append(x.flip(3) if orientation >= 4 else x)
    return torch.cat(crops).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def validate(net: Msinn, average: dict[str, Tensor], data: Tensor) -> dict[float, tuple[float, float]]:
    """Mean bpp and PSNR of the moving average on the centres of every second validation tile."""
    current = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(average)
    net.eval()
    result = {}
    for q in VALIDATION_RATES:
        figures = []
        for i in range(0, len(data), 2):
            x = data[i : i + 1, 128:384, 128:384].permute(0, 3, 1, 2).float() / 255
            x_hat, bits = net(x, q)
            figures.append((float(bits.sum()) / 256**2, float(((x_hat.clamp(0, 1) * 255).round() - x * 255).square().mean())))
        bpp, mse = np.mean(figures, axis=0)
        result[q] = (round(float(bpp), 4), round(10 * math.log10(255**2 / float(mse)), 3))
    net.load_state_dict(current)
    net.train()
    return result


def main(minutes: float, start: Path, folder: Path, out: Path) -> None:
    """Train for `minutes` and keep the moving average."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(1)
    out.mkdir(parents=True, exist_ok=True)
    train = torch.stack([tile for path in sorted(folder.glob("train-*.tar")) for tile in tiles(path)])
    valid = torch.stack(tiles(folder / "valid.tar"))
    state, config = read_state(start)
    assert config is not None
    net = Msinn(config)
    load_parameters(net, state)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.train()
    slow = [p for name, p in net.named_parameters() if "permute" in name or "actnorm" in name]
    fast = [p for name, p in net.named_parameters() if not ("permute" in name or "actnorm" in name)]
    optimizer = torch.optim.Adam([{"params": fast, "share": 1.0}, {"params": slow, "share": SLOW_SHARE}], lr=LEARNING_RATE)
    average = {name: value.clone() for name, value in net.state_dict().items()}
    lmbda = torch.tensor(config.lambdas) * 255**2
    # Every rate's loss is divided by its own running mean, so that no rate dominates.
    typical = torch.tensor([0.4 * 1.3**i for i in range(config.anchor_num)])
    step, recent = 0, []
    began = saved = time.monotonic()
    print("valid", step, validate(net, average, valid), flush=True)
    while (elapsed := (time.monotonic() - began) / 60) < minutes:
        progress = elapsed / minutes
        rate = LEARNING_RATE * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        side, count = next((side, count) for until, side, count in PHASES if progress <= until)
        x = batch(train, count, side, generator)
        anchors = torch.randint(config.anchor_num, (count,), generator=generator)
        x_hat, bits = net(x, anchors.float())
        losses = bits.sum(1) / side**2 + lmbda[anchors] * (x_hat - x).square().mean((1, 2, 3))
        loss = (losses / typical[anchors]).mean()
        optimizer.zero_grad()
        if not torch.isfinite(loss):
            continue
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        for anchor, value in zip(anchors.tolist(), losses.tolist(), strict=True):
            typical[anchor] = 0.98 * typical[anchor] + 0.02 * value
        with torch.no_grad():
            for name, value in net.state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value, 1 - min(0.999, (step + 1) / (step + 10)))
        recent.append(loss.item())
        if step % 100 == 0:
            print(json.dumps({"step": step, "minutes": round(elapsed, 1), "loss": round(float(np.mean(recent)), 4), "lr": rate}), flush=True)
            recent = []
        if time.monotonic() - saved > 600:
            saved = time.monotonic()
            save(average, config.to_json(), step, out)
            print("valid", step, validate(net, average, valid), flush=True)
    save(average, config.to_json(), step, out)
    print("valid", step, validate(net, average, valid), flush=True)


def save(average: dict[str, Tensor], config: str, step: int, out: Path) -> None:
    """Replace the checkpoint, whole or not at all."""
    save_file({name: value.contiguous() for name, value in average.items()}, out / "lite.tmp", metadata={"config": config, "steps": str(step)})
    os.replace(out / "lite.tmp", out / "lite.safetensors")


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
