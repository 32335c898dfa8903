"""What a tuning gives: models of the dataset's own and what they gain; where its state is kept meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from msinn_core.model_file import card_of, parse_model
from msinn_core.model_folder import folder_objects
from pipeline.errors import StorageError
from pipeline.lab.comparison import Gain, Measured
from pipeline.lab.training_files import publish


@dataclass(frozen=True)
class Candidate:
    """A model of the dataset's own, and what it gains on images that it has not seen.

    Attributes:
        kind: `tables`, `network`, or `kinds` for several models of which each image has the one that it costs least with.
        models: Model files.
        gain: Against the general model; None where the curves do not overlap.
        measured: Its figures.
    """

    kind: str
    models: tuple[bytes, ...]
    gain: Gain | None
    measured: Measured

    @property
    def data(self) -> bytes:
        """The model, where it is one."""
        (data,) = self.models
        return data


@dataclass(frozen=True)
class Tuned:
    """What came of it.

    Attributes:
        candidates: `network` (all parameters learned), and where that is not certain to gain `tables` (the general network with tables of the
            dataset's symbols).
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
        return None if candidate.gain is None else candidate.gain.pays_above(stored_bytes(candidate.models))

    def choice(self, general: bytes, coded_bytes: float) -> Candidate | None:
        """The candidate with which the archive is smallest, its models' own bytes counted; None where that is the general model.

        A candidate counts with the least gain that is certain.

        Args:
            general: The general model's file.
            coded_bytes: Of all images, with the general model.
        """
        best, least = None, coded_bytes + stored_bytes((general,), general)
        for candidate in self.candidates:
            if candidate.gain is None or not candidate.gain.certain:
                continue
            total = coded_bytes * (1 + candidate.gain.high / 100) + stored_bytes(candidate.models, general)
            if total < least:
                best, least = candidate, total
        return best

    def report(self) -> dict[str, Any]:
        """For people: what was tried."""
        return {
            "candidates": [
                {
                    "kind": candidate.kind,
                    "bd_rate_percent": None if candidate.gain is None else candidate.gain.rounded,
                    "bytes": stored_bytes(candidate.models),
                    "models": [card_of(parse_model(data)) for data in candidate.models],
                }
                for candidate in self.candidates
            ],
        }


@cache
def stored_bytes(models: tuple[bytes, ...], general: bytes = b"") -> int:
    """What models take in an archive.

    Args:
        models: Their files.
        general: A model that they may be stored as differences to; it is then in the archive too.
    """
    return sum(map(len, folder_objects(models, (general,) if general else ()).values()))


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


class MemoryState:
    """Nowhere: what is not finished is begun anew."""

    def load(self) -> bytes | None:
        return None

    def save(self, data: bytes) -> None:
        pass

    def clear(self) -> None:
        pass
