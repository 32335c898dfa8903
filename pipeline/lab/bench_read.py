"""`msinn bench read`: images a second for training, out of an archive in every way and out of files, in one run and in turns."""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pipeline.archive.archive import Archive
from pipeline.errors import PipelineError, UsageError
from pipeline.read.dataset import ArchiveDataset
from pipeline.read.filesystem import MsinnFileSystem
from pipeline.read.reader import pictures
from pipeline.read.stream import ArchiveStream

_JPEG_QUALITY = 90


@dataclass
class _Way:
    """One way to read the images, and seconds of every turn by number of workers.

    Attributes:
        loaders: By number of workers; they live as long as this does, so that a turn starts no process and loads no model.
    """

    name: str
    loaders: dict[int, DataLoader[Any]]
    images: int = 0
    seconds: dict[int, list[float]] = field(default_factory=dict)


class _Opened(Dataset[torch.Tensor]):
    """Images that Pillow opens by name. Travels to workers."""

    def __init__(self, names: Sequence[str], opener: Callable[[str], Any], scale: int = 1) -> None:
        self._names, self._opener, self._scale = names, opener, scale

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> torch.Tensor:
        with self._opener(self._names[index]) as file:
            image = Image.open(file)
            if self._scale > 1:
                small = -(-image.width // self._scale), -(-image.height // self._scale)
                image.draft("RGB", small)
                return _pixels(image.resize(small, Image.Resampling.BOX))
            return _pixels(image)


def _pixels(image: Image.Image) -> torch.Tensor:
    """`[H, W, 3]` uint8, as a training loop would begin with."""
    return torch.from_numpy(np.array(image.convert("RGB")))


def _as_they_are(batch: list[Any]) -> list[Any]:
    """Images of different sizes are no tensor: what is measured is reading, and every way pays the same for the way to the loop."""
    return [each["image"] if isinstance(each, dict) else each for each in batch]


def bench_read(archive: str, *, jpeg: str | None, images: int, workers: Sequence[int], batch: int, rounds: int, scale: int = 1) -> None:
    """Print a table: each way to read the same images, in one process and with workers of a `DataLoader`, and its ratio to JPEG files.

    Ways take turns, so that what else the machine does falls on all of them; the best turn counts. Before the first every way has read all images
    once: models are loaded, and files lie in the system's memory. Nothing that was decoded is kept between turns.

    Args:
        archive: Its address.
        jpeg: Folder of JPEG files to compare with; None for the archive's images as JPEG of quality 90.
        images: How many at most, from the archive's beginning.
        workers: Numbers of workers; 0 is the process itself.
        batch: Images in a batch.
        rounds: Turns of each.
        scale: Above 1, smaller images too: 1/2, 1/4, 1/8 or 1/16 of the size, beside JPEG files that are decoded so.

    Raises:
        UsageError: A number is out of range, or there are no images.
    """
    if images < 1 or batch < 1 or rounds < 1 or not workers or min(workers) < 0 or max(workers) > 256:
        raise UsageError("--images, --batch and --rounds take 1 or more, --workers 0 (this process) to 256")
    keys = pictures(Archive(archive), None).column("key").to_pylist()[:images]
    if not keys:
        raise UsageError(f"{archive} holds no images that can be decoded")
    with tempfile.TemporaryDirectory(prefix="msinn-bench-") as folder:
        _measure(archive, keys, Path(folder), jpeg, workers, batch, rounds, scale)


def _measure(archive: str, keys: list[str], folder: Path, jpeg: str | None, workers: Sequence[int], batch: int, rounds: int, scale: int) -> None:
    where = f"key <= '{keys[-1]}'"
    # What was decoded would be read from memory in the second turn.
    fs = MsinnFileSystem(archive, cache_bytes=0, skip_instance_cache=True)
    wanted = set(keys)
    names = [name for name in fs.files if fs.files.sidecar(name) is None and fs.files.row(name).key in wanted]
    began = time.perf_counter()
    restored = [_written(folder / f"{i}{Path(name).suffix}", fs.files.read(name)) for i, name in enumerate(names)]
    restore_s = time.perf_counter() - began
    megapixels = sum(map(_size, restored)) / 1e6
    photos = _jpegs(jpeg) if jpeg is not None else _as_jpeg(restored, folder)
    random = ArchiveDataset(archive, where=where, transform=_pixels)

    def loaded(name: str, dataset: Any, count: int) -> _Way:
        made: dict[int, DataLoader[Any]] = {
            number: DataLoader(
                dataset,
                batch_size=batch,
                shuffle=None if isinstance(dataset, ArchiveStream) else True,
                num_workers=number,
                collate_fn=_as_they_are,
                persistent_workers=number > 0,
            )
            for number in workers
        }
        return _Way(name, made, count)

    ways = [
        loaded(f"JPEG files ({'of ' + jpeg if jpeg is not None else f'quality {_JPEG_QUALITY}'})", _Opened(photos, _file), len(photos)),
        loaded("restored files", _Opened(restored, _file), len(restored)),
        loaded("ArchiveDataset, random order", random, len(random)),
        loaded("ArchiveStream", ArchiveStream(archive, where=where, transform=_pixels), len(random)),
        loaded("msinn:// and Pillow, random order", _Opened(names, fs.open), len(names)),
    ]
    full = len(ways)
    if scale > 1:
        smaller = ArchiveDataset(archive, where=where, transform=_pixels, scale=scale)
        ways += [
            loaded(f"JPEG files at 1/{scale}, Pillow's draft", _Opened(photos, _file, scale), len(photos)),
            loaded(f"ArchiveDataset at 1/{scale}, random order", smaller, len(smaller)),
            loaded(f"ArchiveStream at 1/{scale}", ArchiveStream(archive, where=where, transform=_pixels, scale=scale), len(smaller)),
        ]
    for turn in range(rounds + 1):
        for way in ways:
            for number, loader in way.loaders.items():
                seconds = _pass(loader, way.images)
                if turn:
                    way.seconds.setdefault(number, []).append(seconds)
    _print(ways, workers, len(random), megapixels, batch, rounds)
    _print_advice(ways[:full], restore_s, len(restored))


def _written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def _size(path: str) -> int:
    with Image.open(path) as image:
        return image.width * image.height


def _file(path: str) -> Any:
    return open(path, "rb")


def _jpegs(folder: str) -> list[str]:
    found = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        raise UsageError(f"--jpeg {folder} holds no files that end in .jpg or .jpeg")
    return found


def _as_jpeg(restored: Sequence[str], folder: Path) -> list[str]:
    (folder / "jpeg").mkdir()
    found = []
    for i, path in enumerate(restored):
        out = io.BytesIO()
        with Image.open(path) as image:
            image.convert("RGB").save(out, "JPEG", quality=_JPEG_QUALITY)
        found.append(_written(folder / "jpeg" / f"{i}.jpg", out.getvalue()))
    return found


def _pass(loader: DataLoader[Any], images: int) -> float:
    """Seconds of one pass. Raises `PipelineError` if it gives another number of images."""
    began = time.perf_counter()
    found = sum(map(len, loader))
    if found != images:
        raise PipelineError(f"a pass over {images} images gave {found}")
    return time.perf_counter() - began


def _rates(way: _Way) -> Iterator[tuple[int, float]]:
    for number, seconds in way.seconds.items():
        yield number, way.images / min(seconds)


def _print(ways: Sequence[_Way], workers: Sequence[int], images: int, megapixels: float, batch: int, rounds: int) -> None:
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"{images} images, {megapixels:.1f} megapixels, batches of {batch}, {len(os.sched_getaffinity(0))} cores to use{load}; "
        f"the best of {rounds} turns, ratios to JPEG\n"
    )
    heads = ["one process" if number == 0 else f"{number} workers" for number in workers]
    print(f"| images/s | {' | | '.join(heads)} | |\n| --- {'| --- | --- ' * len(workers)}|")
    first = dict(_rates(ways[0]))
    for way in ways:
        cells = "".join(f" {rate:.1f} | {rate / first[number]:.3f} |" for number, rate in _rates(way))
        print(f"| {way.name} |{cells}")


def _print_advice(ways: Sequence[_Way], restore_s: float, images: int) -> None:
    """After how many passes a restore has paid for itself, by the rates of the first number of workers."""
    rates = [next(_rates(way))[1] for way in ways]
    saved = images / max(rates[2:]) - images / rates[1]
    after = f"pays for itself after {restore_s / saved:.1f} passes" if saved > 0 else "does not pay for itself"
    print(f"\nrestoring these {images} images took {restore_s:.1f} s in one process: it {after}")
