"""Which generations an archive has: their seals, each of which names the one before, and where each lies; and what is left when some are lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pipeline.archive.layer import Layer
from pipeline.archive.layout import (
    COMMIT_NAME,
    DROPPED_NAME,
    GENERATION_FOLDER,
    GENERATIONS,
    MAX_GENERATION,
    RUN,
    SEAL,
    SEAL_NAME,
    SEALS,
    check,
    fault_of,
    json_object,
    seal_name,
    sha256,
)
from pipeline.archive.run_record import RunRecord
from pipeline.errors import ManifestError, NotFoundError, OutageError, StorageError
from pipeline.limits import MAX_RUN_BYTES
from pipeline.store.base import Store


@dataclass(frozen=True)
class Chain:
    """The generations up to one.

    Attributes:
        layers: Those whose books are found, oldest first.
        seals: By generation, parsed; of unsealed and lost ones none.
        newest: Number of the newest generation, looked at or not.
        dropped: Numbers of generations that `gc --keep` gave up.
        problems: What is lost or damaged, a sentence each.
    """

    layers: list[Layer]
    seals: dict[int, dict[str, Any]]
    newest: int
    dropped: frozenset[int]
    problems: list[str]


def read_chain(store: Store, first: RunRecord, asked: int | None, manifest: Callable[[], bytes], *, by_pointer: bool = False) -> Chain:
    """The generations of an archive as its store has them now.

    Args:
        store: The archive's.
        first: The first generation's run.
        asked: The last generation that is wanted; the newest for None.
        manifest: Reads `MANIFEST.json`.
        by_pointer: Look into `MANIFEST.json`, too, if there is no seal. It may be large, and says nothing of an archive that never grew.

    Raises:
        OutageError: The store cannot be read; never an error for damage.
    """
    listed = store.list(SEALS)
    sealed, dropped = ({int(found[1]) for name in listed if (found := kind.fullmatch(name))} for kind in (SEAL_NAME, DROPPED_NAME))
    pointer = read_pointer(manifest, store.path(SEAL)) if sealed or by_pointer else {}
    newest = max([1, *sealed, pointer.get("generation", 1)])
    problems: list[str] = []
    if newest == 1:
        return Chain([Layer(store, first)], {}, 1, frozenset(dropped & {1}), problems)
    last = newest if asked is None else min(newest, max(1, asked))
    seals: dict[int, dict[str, Any]] = {}
    parents: dict[int, str] = {}
    folders: dict[str, Any] = dict(pointer.get("folders", {}))
    # The newest first: each says where the older ones lie.
    for number in sorted((number for number in sealed if number <= last), reverse=True):
        place = store.path(seal_name(number))
        try:
            data = store.read(seal_name(number), limit=MAX_RUN_BYTES)
            seals[number] = checked_seal(json_object(data, place), place, number)
            if parents.get(number + 1, sha256(data)) != sha256(data):
                problems.append(f"{place} is changed since generation {number + 1} was sealed")
            parents[number] = str(seals[number].get("parent_sha256"))
            folders = {**seals[number].get("folders", {}), **folders}
        except (ManifestError, NotFoundError) as error:
            problems.append(str(error))
    missing = next((number for number in range(1, last + 1) if number not in sealed), None)
    if missing is not None:
        # Whoever wrote that there are so many may have made it up: one sentence for all.
        more = f" ({last - len(sealed)} of {last} seals are)" if last - len(sealed) > 1 else ""
        mends = ": compress --grow makes it again from MANIFEST.json" if missing == 1 else ""
        problems.append(f"{store.path(seal_name(missing))} is missing{more}{mends}")
    layers = [Layer(store, first)]
    for number in sorted({number for number in sealed if 1 < number <= last} | _numbers(folders, last)):
        layer = _layer(store, number, seals.get(number), folders.get(str(number)), problems)
        layers += [layer] if layer is not None else []
    return Chain(layers, seals, newest, frozenset(dropped), problems)


def _numbers(folders: dict[str, Any], last: int) -> set[int]:
    """Generations whose folder is known."""
    return {int(name) for name in folders if len(name) <= 5 and name.isascii() and name.isdigit() and 1 < int(name) <= last}


def read_pointer(read: Callable[[], bytes], place: str) -> dict[str, Any]:
    """What `MANIFEST.json` says of the newest generation; nothing in an archive that never grew, or where it is lost or damaged.

    Args:
        read: Gives its bytes.
        place: Names it in messages.

    Raises:
        OutageError: It cannot be read at the moment.
    """
    try:
        found = json_object(read(), place).get("newest", {})
        if not isinstance(found, dict) or not isinstance(found.get("folders", {}), dict):
            return {}
        return {} if found and fault_of(found, "generation", int, 1, MAX_GENERATION) else found
    except OutageError:
        raise
    except (ManifestError, StorageError):
        return {}  # `seal` says what is wrong with it


def _layer(store: Store, number: int, sealed: dict[str, Any] | None, folder: Any, problems: list[str]) -> Layer | None:
    """A later generation: what its seal says of it, or where that is lost its folder."""
    place = store.path(seal_name(number))
    if sealed is not None:
        return Layer(store, RunRecord.from_json(sealed["run"], place), sealed["folder"])
    if not isinstance(folder, str) or not GENERATION_FOLDER.fullmatch(folder):
        runs = [name for name in store.list(GENERATIONS) if name.startswith(f"{GENERATIONS}/{number:05d}-") and name.endswith(f"/{RUN}")]
        folder = runs[0].removesuffix(f"/{RUN}") if len(runs) == 1 else None
    try:
        if folder is None:
            raise ManifestError(f"where generation {number} lies was said by {place} alone: what it added is not read")
        found = Layer.read(store, folder)
        check(None if found.generation == number else f"it is of generation {found.generation}", store.path(f"{folder}/{RUN}"))
        # A second list of what is removed is the seal's: of files that could not be read older images stay.
        seals = [name for name in store.list(f"{found.prefix}removed") if name != found.prefix + found.run.removed]
        return found if len(seals) != 1 else Layer(store, replace(found.run, removed=seals[0].removeprefix(found.prefix)), folder)
    except NotFoundError:
        problems.append(f"{store.path(f'{folder}/{RUN}')} is missing, and {place} too: what generation {number} added is not read")
    except ManifestError as error:
        problems.append(str(error))
    return None


def checked_seal(sealed: dict[str, Any], place: str, generation: int) -> dict[str, Any]:
    """A seal in the words of today. Raises `ManifestError` if it is damaged."""
    if not isinstance(sealed.get("commits"), dict) or not all(map(COMMIT_NAME.fullmatch, sealed["commits"])):
        raise ManifestError(f"{place} is damaged: it names no commits")
    if "passthrough" in sealed:
        sealed["kept"] = sealed.pop("passthrough")
    check(next(filter(None, (fault_of(sealed, name, int) for name in ("counted_bytes", "failed"))), None), place)
    if sealed.get("budget_bytes") is not None:
        check(fault_of(sealed, "budget_bytes", float), place)
    if generation > 1:
        if not isinstance(sealed.get("folder"), str) or not GENERATION_FOLDER.fullmatch(sealed["folder"]):
            raise ManifestError(f"{place} is damaged: it names no folder of a generation")
        if not isinstance(sealed.get("run"), dict) or not isinstance(sealed.get("folders", {}), dict):
            raise ManifestError(f"{place} is damaged: it does not say what its generation was made with")
        run = RunRecord.from_json(sealed["run"], place)
        check(None if run.generation == generation else f"it is of generation {run.generation}", place)
        check(next(filter(None, (fault_of(sealed, name, int) for name in ("images", "added", "changed", "vanished"))), None), place)
    return sealed
