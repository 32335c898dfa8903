"""How results reach people: whatever comes from outside, no name and no message moves a cursor, sets a title or pretends to be a line of ours."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from pipeline.text import redacted, shown, shown_lines


class PrintableStream:
    """A text stream that writes control characters as escapes; line ends and tabs pass.

    Args:
        raw: Where it goes. What draws on a terminal by itself, and shows nothing from outside as it is, may use it directly.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        """Write; returns the number of characters of `text`."""
        self.raw.write(shown_lines(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write one after the other."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def raw(stream: Any) -> TextIO:
    """The stream under a `PrintableStream`, or the stream itself."""
    found: TextIO = stream.raw if isinstance(stream, PrintableStream) else stream
    return found


@contextlib.contextmanager
def printable_streams() -> Iterator[None]:
    """Standard output and error are `PrintableStream`s meanwhile."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (PrintableStream(raw(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def print_problems(problems: list[str]) -> int:
    """Name them on standard error; returns the exit code that they mean."""
    from jobs.exits import EXIT_VERIFY

    for problem in problems:
        print(redacted(shown(problem)), file=sys.stderr)
    return EXIT_VERIFY if problems else 0


def finish(problems: list[str], done: str, verdict: str) -> int:
    """Say what was done and, on standard error, what was wrong; returns the exit code."""
    code = print_problems(problems)
    print(f"{done}; {len(problems) or 'no'} problem{'' if len(problems) == 1 else 's'}")
    if problems:
        print(f"msinn: {verdict}: see above", file=sys.stderr)
    return code


def print_devices(what: str, devices: set[str]) -> None:
    """What `--device auto` found, in one line of the summary."""
    print(f"{what}  {'; '.join(map(shown, sorted(devices))) or 'nothing: there was nothing to do'}")


def print_full(images: int) -> None:
    """Say how many smaller pictures were made of full ones."""
    if images:
        print(f"{images} images were decoded in full and made smaller: their forms, or their models, have no shorter way", file=sys.stderr)
