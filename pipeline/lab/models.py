"""Which models there are, at a place or with msinn, and how two of them differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msinn_core.compact import MAX_BYTES, head, is_compact
from msinn_core.compacting import compacted, unexplained
from msinn_core.errors import CheckpointError
from msinn_core.model_file import WEIGHTS, LoadedModel, card_of, load_model, parse_model, shipped_models
from msinn_core.model_folder import COMPACT, MODEL_NAME, PLAIN, model_file_bytes
from pipeline.archive.archive import Archive, MissingArchiveError
from pipeline.archive.models import FOLDER, IN_ARCHIVE, model_reader
from pipeline.errors import ManifestError, UsageError
from pipeline.store.base import Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed:
    """A model that is there.

    Attributes:
        place: Where: a path, or the name in an archive.
        stored_bytes: What it takes there.
        compact_bytes: What it would take in the compact form, of a model of the integer profile that lies there as its file.
        base: SHA-256 of the model that it is stored as a difference to.
        used: Whether the archive was made with it.
        model: Itself; None if it is damaged.
        problem: Why there is none.
    """

    place: str
    stored_bytes: int
    compact_bytes: int | None = None
    base: str | None = None
    used: bool = False
    model: LoadedModel | None = None
    problem: str = ""

    def facts(self) -> dict[str, Any]:
        """All that is known of it, as JSON can say it."""
        facts: dict[str, Any] = {"file": self.place, "stored_bytes": self.stored_bytes, "compact_bytes": self.compact_bytes}
        facts |= {"difference_to": self.base, "used": self.used}
        if self.model is None:
            return {**facts, "problem": self.problem}
        model = self.model
        own = {"name": model.name, "sha256": model.sha256, "profile": model.profile, "q_max": model.config.q_max}
        return {**own, "parameters": model.num_parameters, "bytes": len(model.data), **facts, "card": card_of(model)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How model b differs from model a.

    Attributes:
        config: Fields in which their networks differ, each with both values; empty if they are the same network.
        parts: By part of the network: how many tensors, how many differ, and how much of the numbers of those a does not say (see `unexplained`).
        alone: Names of tensors that only one has, or of other shapes.
        card: Entries of their cards in which they differ, each with both values.
        bytes: Of b's file, `alone` in the compact form, and as a `difference` to a.
    """

    config: dict[str, tuple[Any, Any]]
    parts: dict[str, tuple[int, int, float]]
    alone: list[str]
    card: dict[str, tuple[Any, Any]]
    bytes: dict[str, int | None]


def shipped() -> Iterator[Listed]:
    """The models that come with msinn."""
    for name in shipped_models():
        yield _plain(str(WEIGHTS / f"{name}.safetensors"), load_model(name))


def models_at(where: str) -> Iterator[Listed]:
    """The models of an archive, or the model files of a folder.

    Raises:
        UsageError: It is neither.
    """
    try:
        archive = Archive(where)
    except MissingArchiveError:
        if "://" in where or not Path(where).is_dir():
            raise UsageError(f"{where} is no archive and no folder of models") from None
        yield from _in_folder(Path(where))
        return
    yield from _in_archive(archive)


def model_at(which: str) -> LoadedModel:
    """A model by name, SHA-256 or path, that of an archive, or a certain one of an archive by the address that it has there.

    Raises:
        CheckpointError: There is none, or it is damaged.
        ManifestError: The archive does not have it.
    """
    if found := IN_ARCHIVE.fullmatch(which):
        try:
            return parse_model(Archive(found["archive"]).model_bytes(found["digest"]))
        except MissingArchiveError:
            return load_model(which)
    if "://" in which or Path(which).is_dir():
        return parse_model(Archive(which).model_bytes())
    return load_model(which)


def exported(where: str, digest: str | None) -> bytes:
    """The file of a model of an archive, or of one that `model_at` finds.

    Args:
        where: The archive, or as `model_at` takes it.
        digest: The beginning of its SHA-256; the model with which the archive was made if None.

    Raises:
        UsageError: No model of the archive, or more than one, has a SHA-256 that begins so.
    """
    if digest is None:
        return model_at(where).data
    archive = Archive(where)
    there = {name.rpartition("/")[2][:64] for name in _names(archive.store)}
    found = [name for name in sorted(there) if name.startswith(digest)] if digest else []
    if len(found) != 1:
        raise UsageError(
            f"{where} holds {'no model' if not found else 'several models'} {digest[:64]}...; there are {', '.join(sorted(there)) or 'none'}"
        )
    return archive.model_bytes(found[0])


def compared(a: LoadedModel, b: LoadedModel) -> Comparison:
    """How b differs from a; for models of the integer profile tensor by tensor."""
    configs = [json.loads(model.config.to_json()) for model in (a, b)]
    for config in configs:
        config.pop("name", None)
    mine, theirs = _tensors(b), _tensors(a)
    common = [name for name in mine if name in theirs and mine[name].shape == theirs[name].shape]
    parts: dict[str, tuple[int, int, float]] = {}
    for part, names in groupby(sorted(common, key=_part), key=_part):
        parts[part] = _part_difference([(mine[name], theirs[name]) for name in names])
    small = [len(compacted(b.data, base)) if len(b.data) <= MAX_BYTES else None for base in (None, a.data)]
    return Comparison(
        config=_differing(*configs),
        parts=parts,
        alone=sorted((mine.keys() | theirs.keys()) - set(common)),
        card=_differing(card_of(a), card_of(b)),
        bytes={"file": len(b.data), "alone": small[0], "difference": small[1]},
    )


def _part_difference(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> tuple[int, int, float]:
    """How many tensors, how many differ, and what of those is not said by the others; larger ones count for more."""
    changed = [(mine, theirs) for mine, theirs in pairs if not np.array_equal(mine, theirs)]
    numbers = sum(mine.size for mine, _ in changed)
    return len(pairs), len(changed), sum(mine.size * unexplained(mine, theirs) for mine, theirs in changed) / max(1, numbers)


def _differing(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)}


def _tensors(model: LoadedModel) -> dict[str, NDArray[Any]]:
    calibration = {f"calibration.{field.name}": getattr(model.calibration, field.name) for field in dataclasses.fields(model.calibration)}
    network = {} if model.network is None else {name: value.numpy() for name, value in model.network.state_dict().items()}
    return {**model.integer, **network, "cdf": model.tables.cdf, "cdf.starts": model.tables.starts, **calibration}


def _part(name: str) -> str:
    """What of the network a tensor belongs to, in the order of the walk's names."""
    return name.partition(".")[0]


def _in_folder(folder: Path) -> Iterator[Listed]:
    for path in sorted(folder.iterdir()):
        if path.suffix in (PLAIN, COMPACT) and path.is_file():
            yield _listed(str(path), path.read_bytes(), partial(model_file_bytes, path))


def _names(store: Store) -> list[str]:
    return [name for name in store.list(FOLDER) if MODEL_NAME.fullmatch(name.partition("/")[2])]


def _in_archive(archive: Archive) -> Iterator[Listed]:
    read = model_reader(archive.store)
    for name in _names(archive.store):
        base = name.partition("/")[2]
        data = read(base)
        if data is not None:
            found = _listed(name, data, partial(archive.model_bytes, base[:64]))
            yield dataclasses.replace(found, used=base[:64] in archive.run.models)


def _plain(place: str, model: LoadedModel) -> Listed:
    small = len(compacted(model.data)) if model.profile == "int" and len(model.data) <= MAX_BYTES else None
    return Listed(place=place, stored_bytes=len(model.data), compact_bytes=small, model=model)


def _listed(place: str, data: bytes, whole: Callable[[], bytes]) -> Listed:
    base = None
    try:
        base = head(data).base if is_compact(data) else None
        model = parse_model(whole())
        return Listed(place=place, stored_bytes=len(data), base=base, model=model) if is_compact(data) else _plain(place, model)
    except (CheckpointError, ManifestError) as error:
        return Listed(place=place, stored_bytes=len(data), base=base, problem=str(error))
