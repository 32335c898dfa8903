"""How a plan is shown: `msinn plan`, `msinn compress --dry-run`."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from pipeline.text import shown

if TYPE_CHECKING:
    from pipeline.plan.outlook import Outlook
    from pipeline.run.compress import Plan


def print_plan(plan: Plan, *, price_per_hour: float | None, curve: str | None, as_json: bool) -> None:
    """Print a plan, and draw what other budgets would buy.

    Args:
        plan: Of a dry run.
        price_per_hour: Of one worker, for the cost.
        curve: File for the picture, or None.
        as_json: One object in place of a table.
    """
    from pipeline.plan.outlook import outlook

    forms = _forms(plan)
    facts = {**_sizes(plan, forms), "forms": forms, "restored": _restored(plan), **_pace(plan, price_per_hour), **_qualities(plan)}
    points = outlook(plan.planner.findings)
    if curve:
        _draw(points, plan.planner.predicted_total(), plan.planner.findings.total_pixels, curve)
    if as_json:
        print(json.dumps({**facts, "outlook": [dataclasses.asdict(point) for point in points]}))
        return
    print("plan (predicted; nothing is encoded yet)")
    for name, value in facts.items():
        if name == "forms":
            for form, (images, taken) in value.items():
                print(f"  {'form ' + form:<20}{images:,} images, {taken:,} bytes")
        elif name == "restored":
            for wanted, (taken, left_out) in value.items():
                without = f"; {left_out:,} images are left out" if left_out else ""
                print(f"  {wanted:<24}{taken:,} bytes on disk, sidecars aside{without}")
        elif name == "worst":
            print("  worst images        " + ", ".join(f"{shown(image)} {value} dB" for image, value in value))
        else:
            print(f"  {name:<20}{value:,}" if isinstance(value, int | float) else f"  {name:<20}{value}")
    if points:
        print("what other budgets would buy (same analysis; run again with one of them and it is planned in seconds)")
        print("           bytes       bpp   pooled PSNR   mean PSNR   1 % below")
        for point in points:
            quality = f"{point.pooled_psnr_db:>11.2f} {point.mean_psnr_db:>11.2f} {point.p1_psnr_db:>11.2f}"
            print(f"{point.counted_bytes:>16,.0f} {point.bpp:>9.4f} {quality}")


def _sizes(plan: Plan, forms: dict[str, tuple[int, int]]) -> dict[str, Any]:
    allocation, planner, findings = plan.forecast.allocation, plan.planner, plan.planner.findings
    return {
        "images": findings.num_images,
        "kept_as_they_are": forms.get("kept", (0, 0))[0],
        "pixels": findings.total_pixels,
        "source_bytes": findings.total_source_bytes,
        "predicted_bytes": round(planner.predicted_total()),
        "budget_bytes": planner.budget_bytes,
        "on_floor": int((allocation.clamped == "floor").sum()),
        "on_cap": int((allocation.clamped == "cap").sum()),
    }


def _forms(plan: Plan) -> dict[str, tuple[int, int]]:
    """Images and predicted stored bytes of each form."""
    forecast = plan.forecast
    forms = {name: (share.images, share.stored_bytes) for name, share in plan.planner.findings.fixed_forms.items()}
    for name in sorted(set(forecast.form.tolist())):
        chosen = forecast.form == name
        images, taken = forms.get(name, (0, 0))
        forms[name] = images + int(chosen.sum()), taken + round(float(forecast.allocation.stored[chosen].sum()))
    return forms


def _restored(plan: Plan) -> dict[str, tuple[int, int]]:
    """Bytes that a restore of everything takes, and images that it leaves out, by how it is asked for."""
    from pipeline.encode.preview import AS_STORED

    return {f"restore{'' if name == AS_STORED else f' --as {name}'}": (one.file_bytes, one.left_out) for name, one in plan.restored.items()}


def _pace(plan: Plan, price_per_hour: float | None) -> dict[str, Any]:
    if not plan.pixels_per_second or not plan.worker_s:
        return {}
    hours = plan.worker_s / 3600
    facts = {
        "worker_mpx_per_s": round(plan.pixels_per_second / 1e6, 3),
        "workers": plan.workers,
        "encode_worker_hours": round(hours, 6),
        "encode_minutes": round(60 * hours / plan.workers, 2),
    }
    return facts if price_per_hour is None else {**facts, "encode_cost": round(hours * price_per_hour, 4)}


def _qualities(plan: Plan) -> dict[str, Any]:
    import numpy as np

    allocation = plan.forecast.allocation
    psnr = 10 * np.log10(255.0**2 / np.maximum(allocation.mse, 255.0**2 * 1e-10))
    if not len(psnr):
        return {}
    finite = allocation.q[np.isfinite(allocation.q)]
    bpp = 8 * allocation.stored / np.maximum(plan.forecast.pixels, 1)
    worst = np.argsort(psnr)[:5]
    return {
        **{f"psnr_db_p{p}": round(float(np.percentile(psnr, p)), 2) for p in (1, 5, 50, 99)},
        **{f"bytes_p{p}": round(float(np.percentile(allocation.stored, p))) for p in (1, 50, 99)},
        **{f"bpp_p{p}": round(float(np.percentile(bpp, p)), 4) for p in (1, 5, 50, 95, 99)},
        **{f"q_p{p}": round(float(np.percentile(finite, p)), 2) for p in (1, 50, 99) if len(finite)},
        "worst": [[plan.planner.name(int(plan.forecast.index[i])), round(float(psnr[i]), 2)] for i in worst],
    }


def _draw(points: list[Outlook], planned_bytes: float, pixels: int, path: str) -> None:
    from pipeline.errors import UsageError

    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("--curve needs matplotlib: pip install 'msinn[train]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for label, values in (
        ("pooled", [point.pooled_psnr_db for point in points]),
        ("mean of images", [point.mean_psnr_db for point in points]),
        ("1 % of images below", [point.p1_psnr_db for point in points]),
    ):
        axes.plot([point.bpp for point in points], values, "o-", markersize=3, label=label)
    axes.axvline(8 * planned_bytes / max(pixels, 1), color="grey", linestyle=":", label="this plan")
    axes.set(xlabel="bits per pixel, as stored", ylabel="PSNR (dB), predicted")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=100)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {path}: {error}") from error
    pyplot.close(figure)
