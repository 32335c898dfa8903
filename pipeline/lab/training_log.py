"""What a training run writes down as it goes, and the picture of it."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msinn_core.metrics import psnr_db
from msinn_core.training.loop import StepResult


@dataclass
class Window:
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
    def of_state(cls, state: dict[str, Any]) -> Window:
        bands = defaultdict(list, {name: [(bpp, mse) for bpp, mse in rows] for name, rows in state.get("bands", {}).items()})
        return cls(list(state.get("losses", [])), bands)

    def row(self) -> dict[str, Any]:
        bands = {
            name: {
                "bpp": round(sum(bpp for bpp, _ in rows) / len(rows), 4),
                "psnr_db": round(sum(psnr_db(mse) for _, mse in rows) / len(rows), 2),
            }
            for name, rows in sorted(self.bands.items())
        }
        return {"loss": round(sum(self.losses) / len(self.losses), 5) if self.losses else None, **bands}


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
