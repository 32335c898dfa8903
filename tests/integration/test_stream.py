"""A stream over an archive: divided, shuffled, and resumed within an epoch, with PyTorch's real loader and its workers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from jobs.cli import main
from pipeline.errors import ManifestError, UsageError
from pipeline.read.dataset import ArchiveDataset
from pipeline.read.stream import ArchiveStream
from tests.golden.test_archives import copied

MODEL = str(Path(__file__).parents[1] / "golden" / "integer" / "model.safetensors")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An archive of 23 images so small that they are kept, which read quickly."""
    folder = tmp_path_factory.mktemp("stream")
    (folder / "in").mkdir()
    for i in range(23):
        Image.effect_noise((5, 4), 9 * i).save(folder / "in" / f"noise{i:02d}.png")
    assert main(["-q", "compress", str(folder / "in"), str(folder / "archive"), "--q", "4", "--executor", "local", "--model", MODEL]) == 0
    return str(folder / "archive")


def mean(image: Image.Image) -> float:
    return float(np.asarray(image).mean())


def keys(samples: Any) -> list[str]:
    return [sample["key"] for sample in samples]


def test_samples_are_those_of_the_dataset(tmp_path: Path) -> None:
    place = str(copied("version-4", tmp_path))
    dataset = ArchiveDataset(place, transform=mean, sidecars=True)
    expected = {sample["key"]: sample for sample in (dataset[i] for i in range(len(dataset)))}
    stream = ArchiveStream(place, transform=mean, sidecars=True, buffer=3)
    found = list(stream)
    assert {sample["key"]: sample for sample in found} == expected
    assert len(stream) == len(found) == len(expected)


def test_an_epoch_is_the_same_until_another_is_begun(url: str) -> None:
    stream = ArchiveStream(url)
    found = list(stream)
    assert keys(found) == keys(stream)  # an epoch is the same until another is begun
    stream.set_epoch(1)
    assert keys(found) != keys(stream)
    assert keys(ArchiveStream(url, shuffle=False)) == sorted(keys(found))


def test_ranks_and_workers_divide_it(url: str) -> None:
    whole = set(keys(ArchiveStream(url)))
    ranks = [ArchiveStream(url, transform=mean, rank=rank, num_ranks=2) for rank in range(2)]
    loaders = [DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork") for stream in ranks]
    found = [keys(loader) for loader in loaders]
    assert sorted(found[0] + found[1]) == sorted(whole)
    assert [len(part) for part in found] == [len(stream) for stream in ranks]
    even = [ArchiveStream(url, rank=rank, num_ranks=4, even=True) for rank in range(4)]
    assert {len(stream) for stream in even} == {len(whole) // 4}


def test_it_goes_on_between_any_two_samples(url: str) -> None:
    stream = ArchiveStream(url, transform=mean, buffer=4, seed=5)
    stream.set_epoch(2)
    whole = keys(stream)
    for stop in (0, 1, 7, len(whole) - 1, len(whole)):
        stream.set_epoch(2)
        passing = iter(stream)
        before = [next(passing)["key"] for _ in range(stop)]
        state = json.loads(json.dumps(stream.state_dict()))
        passing.close()  # type: ignore[attr-defined]
        other = ArchiveStream(url, transform=mean, buffer=4, seed=5)
        other.load_state_dict(state)
        assert other.state_dict() == state
        assert before + keys(pickle.loads(pickle.dumps(other))) == whole
        assert before + keys(other) == whole
        assert keys(other) == whole  # the pass after it begins at the start


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_after_any_batch(workers: int, url: str) -> None:
    def loader(stream: ArchiveStream) -> Any:
        context = "fork" if workers else None
        return DataLoader(stream, batch_size=2, num_workers=workers, multiprocessing_context=context)

    stream = ArchiveStream(url, transform=mean, buffer=4)
    whole = [batch["key"] for batch in loader(stream)]
    for batches in (1, 4, 11):
        other = ArchiveStream(url, transform=mean, buffer=4)
        other.load_state_dict(stream.state_after(batches=batches, batch_size=2, num_workers=workers))
        assert [batch["key"] for batch in loader(other)] == whole[batches:]


def test_states_that_do_not_fit_are_refused(url: str) -> None:
    stream = ArchiveStream(url, transform=mean)
    with pytest.raises(UsageError, match=r"of another stream \(images, seed differ\)"):
        ArchiveStream(url, where="key < '000000003'", seed=9).load_state_dict(stream.state_dict())
    stream.load_state_dict(stream.state_after(batches=1, batch_size=2, num_workers=2))
    with pytest.raises(UsageError, match="is of 2 workers, and here are 1"):
        next(iter(stream))
    for wrong in ({"buffer": 0}, {"seed": -1}, {"rank": 2, "num_ranks": 2}):
        with pytest.raises(UsageError, match="a stream takes"):
            ArchiveStream(url, **wrong)


def test_a_damaged_image_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    place = copied("version-4", tmp_path)
    dataset = ArchiveDataset(str(place), where="name LIKE 'photo%'")
    row = dataset._rows.slice(2, 1).to_pylist()[0]
    shard = place / row["shard_key"]
    data = bytearray(shard.read_bytes())
    data[row["offset"] + 80] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ManifestError, match=f"{row['name']}: its bytes in .* are damaged"):
        list(ArchiveStream(str(place), where="name LIKE 'photo%'"))
    assert len(list(ArchiveStream(str(place), where=f"name LIKE 'photo%' AND key <> '{row['key']}'"))) == len(dataset) - 1
