"""Draws `curve.png` from `validation.jsonl`: `bpp + lambda MSE` of photographs over gigapixels learned from, against the model before the campaign.

python -m infra.campaign.curve
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
RATES = (1, 4, 7, 10)
BEFORE = (0.3513, 0.8853, 2.0994, 4.2470)
"""Of the model shipped before stretch 1, on the 16 photographs of all rows but stretch 4's."""
STEP_PIXELS = {"CPU": 4 * 192**2, "GPU": 32 * 256**2}
STRETCH_4 = (0.3755 / 0.3737, 0.9709 / 0.9688, 2.2923 / 2.2957, 4.4963 / 4.5425)
"""What stretch 4 made of stretch 3, in float32 on 32 photographs: its rows are of other pictures, so that only their course can be shown."""


def main() -> None:
    """Draw it."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (HERE / "validation.jsonl").read_text().splitlines()]
    cpu = [row for row in rows if "step" in row]
    third = [row for row in rows if "gpu_step" in row and "stretch" not in row]
    fourth = [row for row in rows if row.get("stretch") == 4 and row["set"] == "photo"]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    ends = [cpu[-1]["step"] * STEP_PIXELS["CPU"] / 1e9]
    ends.append(ends[0] + third[-1]["gpu_step"] * STEP_PIXELS["GPU"] / 1e9)
    for i, q in enumerate(RATES):
        x, y = [0.0], [0.0]
        for row in [*cpu, *third]:
            steps, start, pixels = (row["step"], 0, STEP_PIXELS["CPU"]) if "step" in row else (row["gpu_step"], ends[0], STEP_PIXELS["GPU"])
            x.append(start + steps * pixels / 1e9)
            y.append(100 * (row["lagrangian"][i] / BEFORE[i] - 1))
        reached = third[-1]["lagrangian"][i] / BEFORE[i] * STRETCH_4[i]
        for row in fourth:
            x.append(ends[1] + row["gpu_step"] * STEP_PIXELS["GPU"] / 1e9)
            y.append(100 * (reached * row["lagrangian"][i] / fourth[-1]["lagrangian"][i] - 1))
        axes.plot(x, y, marker=".", label=f"q = {q}")
    for end, text in zip([0.0, *ends], ("1: CPU, 2.7 hours", "3: H200, 6.5 min", "4: H100, 7 min, drawn tiles too"), strict=True):
        axes.axvline(end, color="0.7", linewidth=0.8)
        axes.text(end + 0.15, 1.7 if end else 2.4, text, fontsize=8, color="0.3")
    axes.set(xlabel="gigapixels learned from", ylabel="bpp + lambda MSE, % against the model before", ylim=(-14, 3.2))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(HERE / "curve.png", dpi=110)


if __name__ == "__main__":
    main()
