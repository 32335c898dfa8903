"""Where a run's learning takes place: in this process, or on a machine of the cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from msinn_core.model_file import LoadedModel, parse_model
from pipeline.execute.base import Job
from pipeline.execute.placement import Placement
from pipeline.lab.tuned_run import Learning, own_models
from pipeline.run.report import Reporter

_OVERHEAD_S = 3600.0
"""Beside training: reading the sample, packing, comparing."""


class Learner:
    """What a worker that learns holds: the use of its whole machine, for nothing else is done meanwhile."""

    def __init__(self, threads: int) -> None:
        self.threads = max(threads, os.cpu_count() or 1)


@dataclass(frozen=True)
class _Learn:
    """The work of a job; a worker that takes it over from a lost one goes on from the archive."""

    learning: Learning

    def __call__(self, worker: Learner) -> tuple[list[bytes], list[str]]:
        said: list[str] = []
        config = replace(self.learning.config, threads=worker.threads)
        return [model.data for model in own_models(replace(self.learning, config=config), said.append)], said


def _with_device(placement: Placement, device: str) -> Placement:
    """One worker: with a GPU where one was asked for; on `auto` it takes what its machine has."""
    return placement.on_device("cuda") if device == "cuda" else placement


def learned(learning: Learning, placement: Placement, reporter: Reporter) -> list[LoadedModel]:
    """See `own_models`: on one machine of the cluster, if there is one, else here.

    Raises:
        PipelineError: The store or the workers failed.
    """
    reporter.phase("tune", len(learning.candidates))
    if placement.cluster is None:
        return own_models(learning, reporter.note)
    found: list[tuple[list[bytes], list[str]]] = []
    workers, _ = replace(_with_device(placement, learning.config.device), executor="ray", workers=1).open(
        Learner, jobs=1, small=False, listener=reporter
    )
    try:
        jobs = iter([Job("learning", _Learn(learning), patience_s=60 * learning.config.minutes + _OVERHEAD_S)])
        workers.run(lambda: next(jobs, None), found.append, reporter.tick)
    finally:
        workers.close()
    models, said = found[0]
    for sentence in said:
        reporter.note(sentence)
    return [parse_model(data) for data in models]
