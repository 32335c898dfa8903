"""What a tuning gives: models of the dataset's own and what they gain; where its state is kept meanwhile."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from msinn_core.model_file import LoadedModel, parse_model
from pipeline.errors import StorageError
from pipeline.lab.comparison import Gain, Measured
from pipeline.lab.training_files import publish


@dataclass(frozen=True)
class Candidate:
    """A model of the dataset's own, and what it gains on images that it has not seen."""

    kind: str
    data: bytes
    gain: Gain | None
    measured: Measured


@dataclass(frozen=True)
class Tuned:
    """What came of it.

    Attributes:
        candidates: `tables` (the general network with tables of the dataset's symbols) and `network` (all parameters learned).
        best: The one that needs the fewest bytes, or None where none is certain to gain.
        general: The general model on the same images.
        steps: Training steps that were taken.
    """

    candidates: list[Candidate]
    best: Candidate | None
    general: Measured
    steps: int

    def break_even_bytes(self, candidate: Candidate) -> float | None:
        """Bytes of images above which the model's own are paid for, were the general model free; None if it gains nothing for certain."""
        if candidate.gain is None or not candidate.gain.certain:
            return None
        return len(candidate.data) / (-candidate.gain.high / 100)

    def report(self) -> dict[str, Any]:
        """For people, and for a run that is resumed: what was tried, and what was chosen."""
        return {
            "chosen": None if self.best is None else self.best.kind,
            "candidates": [card_of(parse_model(candidate.data)) | {"bytes": len(candidate.data)} for candidate in self.candidates],
        }


class State(Protocol):
    """Where the state of training is kept until the model is made."""

    def load(self) -> bytes | None:
        """What was saved last; None if nothing was."""

    def save(self, data: bytes) -> None:
        """Replace it, whole or not at all. Raises `StorageError`."""

    def clear(self) -> None:
        """Forget it."""


class FileState:
    """In a local file.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes | None:
        return self._path.read_bytes() if self._path.exists() else None

    def save(self, data: bytes) -> None:
        try:
            publish(self._path, data)
        except OSError as error:
            raise StorageError(f"cannot save the state of training to {self._path}: {error.strerror}") from error

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)


def card_of(model: LoadedModel) -> dict[str, Any]:
    """What a tuned model says of itself; empty for others."""
    try:
        card = json.loads(model.card) if model.card else {}
    except ValueError:
        return {}
    return card if isinstance(card, dict) else {}
