"""Errors of the pipeline: one sentence each (what, where, what to do), and the exit code the command line ends with."""

from __future__ import annotations

from pipeline.text import redacted


class PipelineError(Exception):
    """Base of everything that `pipeline` raises on purpose."""

    exit_code = 6

    def __str__(self) -> str:
        return redacted(super().__str__())


class UsageError(PipelineError):
    """The request contradicts itself or the archive it is for."""

    exit_code = 2


class SourceError(PipelineError):
    """A source, or one image of it, cannot be listed or read."""

    exit_code = 2


class StorageError(PipelineError):
    """The archive's store failed. Itself: it refuses for good (rights, keys, room); else one of the classes below.

    Attributes:
        transient: Whether trying again later can help.
    """

    transient: bool = False


class NotFoundError(StorageError, FileNotFoundError):
    """There is no such object."""


class OutageError(StorageError):
    """The store cannot be used at the moment. It may pass, and says nothing of the objects that are there."""

    transient = True


class DamagedError(StorageError):
    """An object of the store is there and is not what it was: no outage, and trying again does not help."""

    exit_code = 5


class OccupiedError(StorageError):
    """A link, or something that is no regular file, is where an object was to be."""


class LocationError(StorageError):
    """The place that was named cannot be what it was named for."""

    exit_code = 2


class MachineError(PipelineError):
    """A machine computes wrongly: two ways to compute the same differ there. Nothing that its worker made is to be trusted."""


class CommitConflictError(PipelineError):
    """Another run wrote other commits into this archive."""


class CommitUnknownError(OutageError):
    """A commit was sent and neither its success nor its failure can be established; trying the shard again settles it."""


class BudgetInfeasibleError(PipelineError):
    """No choice of rates meets the budget and the floors.

    Attributes:
        least_bytes: What the images need at least.
        blame: Numbers of those that need the most per pixel.
    """

    exit_code = 4
    least_bytes: float = 0.0
    blame: list[int] | tuple[int, ...] = ()


class ManifestError(PipelineError):
    """A manifest or commit contradicts the archive."""

    exit_code = 5
