"""What people and log collectors see while a run goes on: a live display on a terminal, JSON lines otherwise."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from typing import Any, Protocol, TextIO

from pipeline.archive.commits import Commit
from pipeline.text import redacted, shown


class Reporter(Protocol):
    """Told about a run as it goes."""

    def begin(self, *, images: int, shards: int, source_bytes: int, resumed: int) -> None:
        """The source is listed."""

    def phase(self, name: str, images: int) -> None:
        """A step over this many images begins."""

    def advance(self, *, images: int) -> None:
        """Images of the present step are done."""

    def planned(self, predicted_bytes: float, budget_bytes: float | None) -> None:
        """A plan exists."""

    def committed(self, record: Commit) -> None:
        """A shard is part of the archive."""

    def warn(self, message: str) -> None:
        """Something the user should know."""

    def note(self, message: str) -> None:
        """Something that is as it was asked for, and worth saying once."""

    def trouble(self, kind: str, job: str, reason: str) -> None:
        """Work is done again; see `execute.base.Listener`."""

    def tick(self) -> None:
        """About a second has passed."""

    def close(self) -> None:
        """No more news."""


class JsonReporter:
    """One JSON object a line; `t` is seconds since the start, `run` names this call among others in one log.

    Args:
        stream: Where the lines go.
        interval_s: Least time between two progress lines.
    """

    def __init__(self, stream: TextIO = sys.stderr, interval_s: float = 5.0) -> None:
        self._stream = stream
        self._interval_s = interval_s
        self._started = time.monotonic()
        self._said = -interval_s
        self._state: dict[str, Any] = {}
        self._run = uuid.uuid4().hex[:12]

    def _say(self, event: str, **values: Any) -> None:
        line = {"event": event, "run": self._run, "t": round(time.monotonic() - self._started, 2), **values}
        try:
            print(json.dumps(line), file=self._stream, flush=True)
        except BrokenPipeError:
            # Whoever read the progress has left; the run goes on, its summary and exit code still count.
            self._stream = open(os.devnull, "w")  # noqa: SIM115  (kept until the process ends)

    def begin(self, *, images: int, shards: int, source_bytes: int, resumed: int) -> None:
        self._say("begin", images=images, shards=shards, source_bytes=source_bytes, shards_done_before=resumed)

    def phase(self, name: str, images: int) -> None:
        self._state = {"phase": name, "images": images, "done": 0, "counted_bytes": 0}
        self._say("phase", phase=name, images=images)

    def advance(self, *, images: int) -> None:
        self._state["done"] += images
        self._progress()

    def planned(self, predicted_bytes: float, budget_bytes: float | None) -> None:
        self._say("plan", predicted_bytes=round(predicted_bytes), budget_bytes=budget_bytes)

    def committed(self, record: Commit) -> None:
        self._state["done"] += record.images
        self._state["counted_bytes"] += record.counted_bytes
        self._say(
            "commit", shard=record.shard_id, images=record.images, kept=record.kept, failed=record.failed,
            counted_bytes=record.counted_bytes, predicted_bytes=round(record.predicted_bytes), attempt=record.attempt,
        )  # fmt: skip

    def _progress(self) -> None:
        now = time.monotonic()
        if self._state and now - self._said >= self._interval_s:
            self._said = now
            self._say("progress", **self._state)

    def warn(self, message: str) -> None:
        self._say("warning", message=redacted(message))

    def note(self, message: str) -> None:
        self._say("note", message=redacted(message))

    def trouble(self, kind: str, job: str, reason: str) -> None:
        self._say("trouble", kind=kind, job=job, reason=redacted(reason))

    def tick(self) -> None:
        self._progress()

    def close(self) -> None:
        pass


class RichReporter:
    """Live progress on a terminal: images, images/s, bytes against budget, time left."""

    def __init__(self, stream: TextIO, *, verbose: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._verbose = verbose
        self._console = Console(file=stream)
        self._progress = Progress(
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task: Any = None
        self._budget: float | None = None
        self._bytes = 0
        self._source = 0
        self._began = time.monotonic()

    def begin(self, *, images: int, shards: int, source_bytes: int, resumed: int) -> None:
        again = f", {resumed} shards are there already" if resumed else ""
        self._console.print(f"{images:,} images in {shards:,} shards, {source_bytes / 1e6:,.1f} MB{again}")
        self._progress.start()

    def phase(self, name: str, images: int) -> None:
        self._began, self._source = time.monotonic(), 0
        self._task = self._progress.add_task(name, total=images, note="")

    def advance(self, *, images: int) -> None:
        self._progress.advance(self._task, images)

    def planned(self, predicted_bytes: float, budget_bytes: float | None) -> None:
        self._budget = budget_bytes
        against = f" of {budget_bytes:,.0f}" if budget_bytes is not None else ""
        self._console.print(f"plan: {predicted_bytes:,.0f} bytes{against}")

    def committed(self, record: Commit) -> None:
        self._bytes += record.counted_bytes
        self._source += record.source_bytes
        rate = self._source / 1e6 / max(time.monotonic() - self._began, 1e-3)
        against = f" of {self._budget / 1e6:,.2f}" if self._budget is not None else ""
        if self._verbose:
            self._console.print(f"shard {record.shard_id}: {record.images} images, {record.counted_bytes:,} bytes", highlight=False, markup=False)
        self._progress.update(self._task, note=f"{self._bytes / 1e6:,.2f}{against} MB, {rate:.2f} MB/s read")
        self._progress.advance(self._task, record.images)

    def warn(self, message: str) -> None:
        self._console.print(f"warning: {_line(message)}", style="yellow", highlight=False, markup=False)

    def note(self, message: str) -> None:
        self._console.print(f"note: {_line(message)}", highlight=False, markup=False)

    def trouble(self, kind: str, job: str, reason: str) -> None:
        self.warn(f"{job} is tried again ({kind}): {reason}")

    def tick(self) -> None:
        pass

    def close(self) -> None:
        self._progress.stop()


class QuietReporter:
    """Warnings alone, a line each."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def begin(self, *, images: int, shards: int, source_bytes: int, resumed: int) -> None:
        pass

    def phase(self, name: str, images: int) -> None:
        pass

    def advance(self, *, images: int) -> None:
        pass

    def planned(self, predicted_bytes: float, budget_bytes: float | None) -> None:
        pass

    def committed(self, record: Commit) -> None:
        pass

    def warn(self, message: str) -> None:
        print(f"warning: {_line(message)}", file=self._stream, flush=True)

    def note(self, message: str) -> None:
        pass

    def trouble(self, kind: str, job: str, reason: str) -> None:
        pass

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass


def _line(message: str) -> str:
    """A message as one line for a terminal."""
    return redacted(shown(message))


def reporter_for(stream: TextIO, *, quiet: bool = False, verbose: bool = False) -> Reporter:
    """The live display if `stream` is a terminal, JSON lines otherwise; warnings alone if it shall be quiet."""
    if quiet:
        return QuietReporter(stream)
    return RichReporter(getattr(stream, "raw", stream), verbose=verbose) if stream.isatty() else JsonReporter(stream)
