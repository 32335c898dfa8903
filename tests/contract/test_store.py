"""One suite for every store: what `Store` promises."""

from __future__ import annotations

import errno
import io
import os
import pickle
import tarfile
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest
import s3fs
from aiohttp import web
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from infra.local.proxy import Fault, FaultProxy
from pipeline.errors import LocationError, NotFoundError, OccupiedError, OutageError, SourceError, StorageError
from pipeline.sources import scan
from pipeline.store import errors
from pipeline.store.base import Store, open_store
from pipeline.store.local import LocalStore
from pipeline.store.objects import ObjectStore


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        found = open_store(str(tmp_path / "root"))
        assert type(found) is LocalStore
    else:
        found = open_store(request.getfixturevalue("s3") if request.param == "s3" else f"memory://{uuid.uuid4().hex}")
        assert type(found) is ObjectStore
    return found


def test_remove(store: Store) -> None:
    store.publish_bytes(b"x", "shards/a")
    store.publish_bytes(b"y", "shards/b")
    store.remove("shards/a")
    store.remove("shards/a")
    assert store.list("shards") == ["shards/b"]


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
    for ask in (store.read, store.size, lambda name: store.read_range(name, 3, 4), lambda name: store.open(name).__enter__()):
        with pytest.raises(NotFoundError) as caught:
            ask("nothing")
        assert not caught.value.transient
        assert isinstance(caught.value, FileNotFoundError)  # as whoever knows Python's own files expects
    store.publish_bytes(b"123", "short")
    with pytest.raises(StorageError, match="too early"):
        store.read_range("short", 1, 10)


def test_what_is_larger_than_allowed_is_not_read(store: Store) -> None:
    store.publish_bytes(b"12345", "five")
    store.publish_bytes(b"", "empty")
    assert (store.read("five", limit=5), store.read("empty", limit=5)) == (b"12345", b"")
    with pytest.raises(LocationError, match="more than 4 bytes"):
        store.read("five", limit=4)
    assert store.read("five", limit=1 << 50) == b"12345"  # a limit is not a request for memory


def test_a_file_that_says_no_size_is_read_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc/self/maps")
    store = open_store(str(tmp_path))
    assert len(store.read("link", limit=1 << 30)) > 5000
    with pytest.raises(LocationError, match="more than 5,000 bytes"):
        store.read("link", limit=5000)


def test_what_the_root_holds(store: Store) -> None:
    assert store.top() == []
    assert store.ages("shards") == {}
    store.publish_bytes(b"x", "shards/a")
    store.publish_bytes(b"y", "run.json")
    assert store.top() == ["run.json", "shards"]
    ages = store.ages("shards")
    if "://" not in store.url or "s3" in store.url:  # fsspec's memory keeps a time under a name of its own
        assert abs(ages["shards/a"] - time.time()) < 3600


def test_names_that_others_chose(store: Store) -> None:
    assert store.read_confined("a/b") is None
    store.write_confined("a/b", b"x", datetime(2020, 1, 2, tzinfo=UTC))
    store.write_confined("a/b", b"xy", datetime(2020, 1, 2, tzinfo=UTC))
    assert store.read_confined("a/b") == b"xy"
    assert store.list("") == ["a/b"]


def test_which_root_lies_in_which(store: Store, tmp_path: Path) -> None:
    inner, neighbour = open_store(f"{store.url}/inner"), open_store(f"{store.url}2")
    assert inner.lies_in(store)
    assert store.lies_in(store)
    assert not store.lies_in(inner)
    assert not neighbour.lies_in(store)
    elsewhere = open_store("memory://other" if isinstance(store, LocalStore) else str(tmp_path))
    assert not elsewhere.lies_in(store)
    assert not store.lies_in(elsewhere)


def test_a_link_is_no_way_round(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert open_store(str(tmp_path / "link" / "archive")).lies_in(open_store(str(tmp_path / "real")))
    (tmp_path / "root").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path / "real")
    store = open_store(str(tmp_path / "root"))
    with pytest.raises(OccupiedError, match="link"):
        store.write_confined("out/x", b"x")
    with pytest.raises(OccupiedError, match="link"):
        store.read_confined("out")
    assert os.listdir(tmp_path / "real") == []


def test_what_a_store_that_fails_says_of_its_objects(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage is no verdict about an object; a local disk that fails to read is one."""
    monkeypatch.setattr(errors, "back_off", lambda attempt: None)
    broken = OSError(errno.EIO, "Input/output error")
    store.publish_bytes(b"x", "a")

    def fails(*args: object, **keywords: object) -> None:
        raise broken

    with monkeypatch.context() as patch:
        if isinstance(store, ObjectStore):
            patch.setattr(store.fs, "cat_file", fails)
        else:
            patch.setattr(LocalStore, "_regular", fails)
        with pytest.raises(StorageError, match=r"cannot read .*a: Input/output error") as caught:
            store.read("a")
    assert isinstance(caught.value, OutageError) == isinstance(store, ObjectStore)
    assert isinstance(store.unreadable("read a", broken), OutageError) == isinstance(store, ObjectStore)
    with monkeypatch.context() as patch:
        if isinstance(store, ObjectStore):
            patch.setattr(store.fs, "pipe_file", fails)
        else:
            patch.setattr(os, "fsync", fails)
        with pytest.raises(OutageError, match=r"cannot write .*b: Input/output error"):
            store.publish_bytes(b"x", "b")
    assert store.list("") == ["a"]
    assert store.unfinished() == {}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file"), NotFoundError),
        (PermissionError(errno.EACCES, "Permission denied"), StorageError),
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (ConnectionResetError("connection reset by peer"), OutageError),
        (TimeoutError(), OutageError),
        (NoCredentialsError(), StorageError),
        (EndpointConnectionError(endpoint_url="http://x"), OutageError),
    ],
)
def test_each_error_of_a_library_is_of_one_kind(error: Exception, kind: type[StorageError]) -> None:
    assert errors.from_outside(error)
    assert errors.kind(error) is kind
    assert type(errors.failed("read x", error)) is kind
    assert not isinstance(errors.refused("write x", error), NotFoundError)  # of a write, it is the folder or bucket that is missing


def test_put_if_absent_has_one_winner_and_never_replaces(store: Store) -> None:
    assert store.put_if_absent("commits/1", b"first")
    assert store.put_if_absent("commits/1", b"first")  # a lost answer, sent again
    assert not store.put_if_absent("commits/1", b"second")
    assert store.read("commits/1") == b"first"
    assert store.check_put_if_absent()
    assert store.check_put_if_absent()


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_race_has_one_winner(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store = open_store(request.getfixturevalue("s3") if kind == "s3" else str(tmp_path))
    for turn in range(20 if kind == "local" else 6):
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
    store = open_store(str(tmp_path))
    store.publish_bytes(b"x", "shards/a")
    (tmp_path / "shards" / ".tmp-dead").write_bytes(b"half")
    (tmp_path / ".tmp-too").write_bytes(b"")
    assert store.list("shards") == ["shards/a"]
    assert store.top() == ["shards"]
    assert store.unfinished() == {"shards/.tmp-dead": 4, ".tmp-too": 0}


def test_stores_travel_to_workers(store: Store) -> None:
    store.publish_bytes(b"x", "a/b")
    other = pickle.loads(pickle.dumps(store))
    assert type(other) is type(store)
    assert other.read("a/b") == b"x"


def test_impossible_roots(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is a file"):
        open_store(str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot open"):
        open_store("nosuchprotocol://x")
    below = open_store(str(tmp_path / "file" / "below"))
    with pytest.raises(StorageError, match="cannot write"):
        below.publish_bytes(b"", "x")
    with pytest.raises(StorageError, match="cannot create"):
        below.prepare()


def test_a_bucket_that_is_not_there_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("memory://bucket/archive")
    assert isinstance(store, ObjectStore)

    def fails(*args: object, **keywords: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "The specified bucket does not exist")

    monkeypatch.setattr(store.fs, "pipe_file", fails)
    for write in (lambda: store.publish_bytes(b"", "x"), lambda: store.put_if_absent("x", b"")):
        with pytest.raises(StorageError, match=r"cannot (write|create) /bucket/archive/x: The specified bucket") as caught:
            write()
        assert not isinstance(caught.value, NotFoundError)


def test_lists_have_pages_and_large_objects_parts(s3: str, tmp_path: Path) -> None:
    store = open_store(s3)
    names = [f"many/{i:05d}" for i in range(1100)]
    assert isinstance(store, ObjectStore)
    store.fs.pipe({store.path(name): b"x" for name in names})
    assert store.list("many") == names
    large = tmp_path / "large"
    with open(large, "wb") as file:
        for i in range(120):
            file.write(bytes([i]) * 2**20)
    store.publish(large, "shards/large.tar")  # above two parts of 50 MiB
    assert store.size("shards/large.tar") == 120 * 2**20
    assert store.read_range("shards/large.tar", 77 * 2**20 - 1, 2) == bytes([76, 77])


def test_throttling_delays_and_lost_connections_are_survived(s3: str, s3_proxy: FaultProxy, tmp_path: Path) -> None:
    store = open_store(s3)
    source = tmp_path / "file"
    source.write_bytes(bytes(range(256)) * 1000)
    s3_proxy.faults = [
        Fault("503", share=0.3),
        Fault("reset", share=0.1),
        Fault("delay", share=0.2, seconds=0.2),
        Fault("cut", method="GET", share=0.1),
    ]
    for i in range(8):
        store.publish(source, f"shards/{i}")
        assert store.put_if_absent(f"commits/{i}", str(i).encode())
        assert not store.put_if_absent(f"commits/{i}", b"other")
        assert store.read_range(f"shards/{i}", 1000, 500) == source.read_bytes()[1000:1500]
    assert len(store.list("commits")) == 8
    assert sum(fault.happened for fault in s3_proxy.faults) > 5


def test_a_commit_whose_answer_is_lost_is_ours(s3: str, s3_proxy: FaultProxy) -> None:
    store = open_store(s3)
    s3_proxy.faults = [Fault("lost", method="PUT", path="commits", times=1)]
    assert store.put_if_absent("commits/1", b"mine")
    assert s3_proxy.faults[0].happened == 1
    s3_proxy.faults = [Fault("lost", method="PUT", path="commits", times=1)]
    assert not store.put_if_absent("commits/1", b"late")
    assert store.read("commits/1") == b"mine"


def test_a_store_that_stays_away_is_a_sentence(s3: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "ATTEMPTS", 2)
    s3_proxy.faults = [Fault("503")]
    with pytest.raises(StorageError, match="cannot read") as caught:
        open_store(s3).read("anything")
    assert caught.value.transient


def test_wrong_keys_are_a_sentence_at_once(s3: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match="cannot") as caught:
        open_store(s3).publish_bytes(b"", "x")
    assert not caught.value.transient
    assert s3_proxy.requests <= 2
    assert "wrong" not in str(caught.value)


def test_missing_keys_are_a_sentence_too(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore says it by an exception of its own, which is no OSError."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match="credentials") as caught:
        open_store(s3).publish_bytes(b"", "x")
    assert not caught.value.transient
    with pytest.raises(SourceError, match="cannot list"):
        scan(s3)


def test_every_object_is_written_with_the_stores_options(s3: str, s3_proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encryption at rest is asked for whichever way an object is made: in one request, in parts, or only if absent."""
    monkeypatch.setitem(fsspec.config.conf, "s3", {"s3_additional_kwargs": {"ServerSideEncryption": "AES256"}})
    s3fs.S3FileSystem.clear_instance_cache()
    created: dict[str, str | None] = {}

    def watch(request: web.Request) -> None:
        if request.method in ("PUT", "POST") and "uploadId" not in request.query:
            created[request.path.rpartition("/")[2]] = request.headers.get("x-amz-server-side-encryption")

    s3_proxy.watch = watch
    store = open_store(s3)
    large = tmp_path / "large"
    with open(large, "wb") as file:
        file.truncate(110 * 2**20)
    store.publish(large, "large")
    store.publish_bytes(b"small", "small")
    assert store.put_if_absent("once", b"once")
    assert created == {"large": "AES256", "small": "AES256", "once": "AES256"}
    assert (store.size("large"), store.read("small"), store.read("once")) == (110 * 2**20, b"small", b"once")


def test_tars_are_listed_in_full_or_not_at_all(s3: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that the store owes is not a damaged tar."""
    monkeypatch.setattr(errors, "ATTEMPTS", 3)
    # s3fs and botocore try again themselves, each time for longer: ours is what is tried here.
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    store = open_store(s3)
    for name in ("a", "b", "c"):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for i in range(5):
                info = tarfile.TarInfo(f"{i}.png")
                info.size = 600
                tar.addfile(info, io.BytesIO(bytes(600)))
        store.publish_bytes(data.getvalue(), f"in/{name}.tar")
    s3_proxy.faults = [Fault("cut", method="GET", path="b.tar", times=2)]
    whole = scan(f"{s3}/in/*.tar")
    assert [record.name for record in whole.records] == [f"{tar}/{i}.png" for tar in "abc" for i in range(5)]
    assert whole.warnings == []
    assert s3_proxy.faults[0].happened == 2
    s3_proxy.faults = [Fault("503", method="GET", path="b.tar")]
    with pytest.raises(StorageError, match=r"cannot list .*b.tar") as caught:
        scan(f"{s3}/in/*.tar")
    assert caught.value.transient
