"""A look ahead, for a plan: a few images of each form encoded in full, for how long the rest will take and what a restore will write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.encode.preview import AS_STORED, Written
from pipeline.encode.tasks import ImageTask, ShardTask
from pipeline.encode.worker import ShardWorker, TriedOut
from pipeline.execute.base import Job, patience
from pipeline.plan.curves import KEPT_Q
from pipeline.plan.findings import EXAMPLES, Share
from pipeline.plan.planner import Forecast, Planner
from pipeline.run.context import Context, Workers

_FEW, _PIXELS = 8, 8_000_000
"""So many images of each form are encoded, and up to `EXAMPLES` of them while they have no more pixels than this."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore of everything writes, as predicted: bytes, sidecars aside, and how many images are left out because they do not come back to the
    byte."""

    file_bytes: int
    left_out: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What was seen.

    Attributes:
        worker_s: Seconds of one worker for all images that are pictures, each form at the pace of the few; None if there are none.
        pixels_per_second: Of one worker, over all forms.
        restored: By `--as`, and `AS_STORED` for none; what this machine cannot write is not named.
    """

    worker_s: float | None
    pixels_per_second: float | None
    restored: dict[str, Restored]


@dataclass(frozen=True)
class _TryOut:
    """The work of a job: images of one form."""

    form: str
    task: ShardTask

    def __call__(self, worker: ShardWorker) -> tuple[str, TriedOut]:
        return self.form, worker.try_out(self.task)


def preview(context: Context, planner: Planner, forecast: Forecast, workers: Workers) -> Preview:
    """Encode a few images of each form that a plan names.

    Raises:
        PipelineError: Workers failed for good.
    """
    shares = _shares(planner, forecast)
    jobs = _jobs(context, forecast, shares)
    found: list[tuple[str, TriedOut]] = []
    workers.run(lambda: next(jobs, None), found.append, context.reporter.tick)
    tried = dict(found)
    paced = [(shares[form].pixels, one.seconds / one.pixels) for form, one in tried.items() if one.pixels and one.seconds > 0]
    seconds = sum(pixels * each for pixels, each in paced)
    pace = sum(pixels for pixels, _ in paced) / seconds if seconds else None
    return Preview(seconds or None, pace, restored(shares, {form: one.written for form, one in tried.items()}))


def _shares(planner: Planner, forecast: Forecast) -> dict[str, Share]:
    """All pending images, by form: those that a rate changes, and the others. The examples are of the latter."""
    shares = {
        name: Share(share.images, share.stored_bytes, share.source_bytes, share.pixels, share.examples)
        for name, share in planner.findings.fixed_forms.items()
    }
    for name in sorted(set(forecast.form.tolist())):
        its, share = forecast.form == name, shares.setdefault(name, Share())
        share.images += int(its.sum())
        share.stored_bytes += round(float(forecast.allocation.stored[its].sum()))
        share.source_bytes += int(forecast.source_bytes[its].sum())
        share.pixels += int(forecast.pixels[its].sum())
    return shares


def _jobs(context: Context, forecast: Forecast, shares: dict[str, Share]) -> Iterator[Job[ShardWorker, tuple[str, TriedOut]]]:
    """One for each form, over a few of its images."""
    rng = np.random.default_rng(0)
    for name, share in shares.items():
        place = np.flatnonzero(forecast.form == name)
        number = min(EXAMPLES, max(_FEW, _PIXELS * share.images // max(1, share.pixels)))
        # Of those that a rate changes, and of the others, as many as there are of each.
        fixed = share.images - len(place)
        few = min(len(share.examples), round(number * fixed / max(1, share.images)) or min(1, fixed))
        drawn = np.sort(rng.choice(place, min(number - few, len(place)), replace=False))
        planned = zip(forecast.index[drawn].tolist(), forecast.allocation.q[drawn].tolist(), strict=True)
        chosen = [*((i, KEPT_Q) for _, i in share.examples[:few]), *planned]
        if chosen:
            tasks = tuple(_task(context, number, q, planned=i >= few) for i, (number, q) in enumerate(chosen))
            work = _TryOut(name, ShardTask(shard_id=0, attempt="preview", images=tasks))
            yield Job("a sample of the images", work, patience_s=patience(len(tasks)))


def _task(context: Context, number: int, q: float, *, planned: bool) -> ImageTask:
    """As the run would give it to its workers, but for floors: no other rate is searched."""
    lossless = bool(context.preferences.lossless(np.array([number]))[0])
    return ImageTask(
        context.records[number],
        # Within a largest error each image's rate is searched for, whatever the plan's table says.
        q if context.config.budget.max_error is None else 0.0,
        skip_reason=context.poison.reasons.get(number),
        min_psnr_db=np.inf if lossless else None,
        model=int(context.chosen[number]),
        # Finite: it is the plan that stores it exactly.
        exact_bytes=0.0 if planned and q == KEPT_Q and context.config.forms == "all" else np.inf,
    )


def restored(shares: dict[str, Share], written: dict[str, tuple[Written, ...]]) -> dict[str, Restored]:
    """What a restore of all images writes, from a few of each form.

    Files that come back as they were have the bytes of their sources; pictures that are made are taken to need as many bytes per pixel as the few,
    and where some are made and some not, as many per byte of their sources.

    Args:
        shares: All images, by form.
        written: A few, by form.

    Returns:
        By format; nothing for one that some form's few could not be written in, or of which there is none.
    """
    names = [AS_STORED, *(name for some in written.values() for one in some for name in one.file_bytes)]
    found: dict[str, Restored] = {}
    for name in dict.fromkeys(names):
        total, left_out = 0.0, 0
        for form, share in shares.items():
            few = written.get(form, ())
            if not share.images:
                continue
            if not few or any(name not in one.file_bytes for one in few):
                break
            sizes = [one.file_bytes[name] for one in few]
            if all(size is None for size in sizes):
                left_out += share.images
                continue
            total += _scaled(share, few, [size or 0 for size in sizes])
        else:
            found[name] = Restored(round(total), left_out)
    return found


def _scaled(share: Share, few: tuple[Written, ...], sizes: list[int]) -> float:
    same = [size == one.source_bytes for size, one in zip(sizes, few, strict=True)]
    if all(same):
        return share.source_bytes
    if any(same) or not all(one.pixels for one in few):
        return share.source_bytes * sum(sizes) / max(1, sum(one.source_bytes for one in few))
    return share.pixels * sum(sizes) / sum(one.pixels for one in few)
