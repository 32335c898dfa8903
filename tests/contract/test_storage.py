"""One suite for every store: what `Store` promises."""

from __future__ import annotations

import pickle
import threading
import uuid
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage import Store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root") if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def test_publish_read_list(store: Store, tmp_path: Path) -> None:
    assert store.list("shards") == []
    source = tmp_path / "file"
    source.write_bytes(b"0123456789")
    store.publish(source, "shards/a.tar")
    store.publish(source, "shards/a.tar")
    store.publish_bytes(b"xyz", "shards/b.tar")
    assert store.list("shards") == ["shards/a.tar", "shards/b.tar"]
    assert store.read("shards/a.tar") == b"0123456789"
    assert store.read_range("shards/a.tar", 3, 4) == b"3456"
    assert store.size("shards/a.tar") == 10
    with store.open("shards/a.tar") as file:
        assert file.read(3) == b"012"


def test_what_is_missing_or_short(store: Store) -> None:
    assert not store.exists("nothing")
    with pytest.raises(FileNotFoundError):
        store.read("nothing")
    store.publish_bytes(b"123", "short")
    with pytest.raises(StorageError, match="too early"):
        store.read_range("short", 1, 10)


def test_put_if_absent_has_one_winner_and_never_replaces(store: Store) -> None:
    assert store.put_if_absent("commits/1", b"first")
    assert store.put_if_absent("commits/1", b"first")  # a lost answer, sent again
    assert not store.put_if_absent("commits/1", b"second")
    assert store.read("commits/1") == b"first"
    assert store.check_put_if_absent()
    assert store.check_put_if_absent()


def test_a_race_has_one_winner(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for turn in range(20):
        won: list[int] = []
        barrier = threading.Barrier(8)

        def enter(me: int, turn: int = turn, won: list[int] = won, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            if store.put_if_absent(f"c/{turn}", str(me).encode()):
                won.append(me)

        threads = [threading.Thread(target=enter, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.read(f"c/{turn}") == str(won[0]).encode()


def test_unfinished_files_are_never_listed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.publish_bytes(b"x", "shards/a")
    (tmp_path / "shards" / ".tmp-dead").write_bytes(b"half")
    assert store.list("shards") == ["shards/a"]


def test_stores_travel_to_workers(store: Store) -> None:
    store.publish_bytes(b"x", "a/b")
    assert pickle.loads(pickle.dumps(store)).read("a/b") == b"x"


def test_impossible_roots(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is a file"):
        Store(str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot open"):
        Store("nosuchprotocol://x")
    with pytest.raises(StorageError, match="cannot write"):
        Store(str(tmp_path / "file" / "below")).publish_bytes(b"", "x")
