"""Decoding in a process of its own: the same pictures, bounds on time and memory, and a verdict about what breaks them."""

from __future__ import annotations

import io
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.formats import images, process
from pipeline.formats.decoding import Loader
from pipeline.formats.outcome import Reason
from pipeline.formats.process import Allowance


@pytest.fixture
def loader() -> Iterator[Loader]:
    loader = Loader(4_000_000, Allowance(seconds=1.0, seconds_per_mpx=0.1))
    yield loader
    loader.close()


def encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan, of a flat picture and so of a few bytes, is repeated: 378 kB took more than 90 s."""
    data = encoded(Image.new("L", (2000, 2000), 99), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def test_the_same_pictures_as_in_this_process(loader: Loader) -> None:
    random = np.random.default_rng(1)
    for mode, fmt in (("RGB", "PNG"), ("RGBA", "PNG"), ("L", "PNG"), ("RGB", "JPEG"), ("RGB", "WEBP"), ("RGB", "AVIF"), ("RGB", "JPEG2000")):
        shape = (90, 70, len(mode)) if len(mode) > 1 else (90, 70)
        data = encoded(Image.fromarray(random.integers(0, 255, shape, np.uint8)), fmt)
        here, there = images.load(data, max_pixels=10**6, name="x"), loader.load(data, name="x")
        assert here.picture is not None
        assert there.picture is not None
        assert here.picture.content() == there.picture.content()
        assert (here.info, here.reason, here.carried) == (there.info, there.reason, there.carried)
    for data, name in ((b"", "a.png"), (b"none", "a.txt"), (b"\xff\xd8\xff", "a.jpg")):
        here, there = images.load(data, max_pixels=10**6, name=name), loader.load(data, name=name)
        assert (here.reason, here.message) == (there.reason, there.message)
        assert here.reason is not None


@pytest.mark.timeout(120)
def test_a_file_that_takes_too_long_is_kept_and_the_next_is_decoded(loader: Loader) -> None:
    data = scans(5000)
    started = time.monotonic()
    found = loader.load(data, name="slow.jpg")
    assert found.reason == Reason.DECODE_LIMIT
    assert time.monotonic() - started < 60
    assert loader.load(scans(1), name="quick.jpg").reason is None


@pytest.mark.timeout(60)
def test_directories_and_segments_without_end(loader: Loader) -> None:
    """200,000 directories of a TIFF and 4,000 segments of a JPEG took minutes and a gigabyte."""
    tiff = encoded(Image.new("L", (8, 8)), "TIFF")
    at = struct.unpack("<I", tiff[4:8])[0]
    entries = struct.unpack("<H", tiff[at : at + 2])[0]
    directory = tiff[at : at + 2 + 12 * entries]
    size = len(directory) + 4
    many = b"".join(directory + struct.pack("<I", len(tiff) + size * (i + 1)) for i in range(200_000))
    data = tiff[:4] + struct.pack("<I", len(tiff)) + tiff[8:] + many[:-4] + bytes(4)
    assert loader.load(data, name="x.tif").reason == Reason.ANIMATED
    jpeg = encoded(Image.new("L", (8, 8)), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", 65535) + b"Exif\0\0" + bytes(65527)
    assert loader.load(jpeg[:2] + segment * 4000 + jpeg[2:], name="x.jpg").reason == Reason.METADATA_LIMIT


def test_a_decoder_that_dies_is_started_again_and_the_file_is_tried_twice(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = encoded(Image.new("L", (8, 8)), "PNG")
    assert loader.load(sound).reason is None
    process = loader._process
    assert process is not None
    process.kill()
    process.wait()
    assert loader.load(sound).reason is None
    # One that a file ends, every time: the verdict is about the file.
    ended = encoded(Image.new("L", (9, 9)), "PNG")
    loader.close()
    starter = loader._start

    def fragile() -> socket.socket:
        connection = starter()
        assert loader._process is not None
        loader._process.kill()
        return connection

    monkeypatch.setattr(loader, "_start", fragile)
    found = loader.load(ended)
    assert (found.reason, found.message) == (Reason.CRASHED, "decoding it ends the decoder (signal 9)")


def test_a_machine_that_starts_no_process_decodes_here_and_says_so(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = encoded(Image.new("L", (8, 8)), "PNG")
    with monkeypatch.context() as patch:
        patch.setattr(process.sys, "executable", "/bin/false")
        assert loader.load(sound).reason is None
        assert loader._process is None
    # It may pass.
    assert loader.load(sound).reason is None
    assert loader._process is not None
    loader.close()
    monkeypatch.setattr(process.subprocess, "Popen", lambda *arguments, **options: (_ for _ in ()).throw(BlockingIOError(11, "no processes")))
    for _ in range(2):
        assert loader.load(sound).reason is None
    with pytest.warns(UserWarning, match="without bounds"):
        assert loader.load(sound).reason is None


def test_half_an_answer_is_not_taken_for_the_next(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels of one picture were read as the beginning of another's answer, and unpickled."""
    first = encoded(Image.fromarray(np.random.default_rng(2).integers(0, 255, (300, 300), np.uint8)), "PNG")
    second = encoded(Image.new("L", (9, 7)), "PNG")
    receive = process._receive

    def half(connection: socket.socket, expect: None = None) -> list[bytearray]:
        connection.recv(1000)
        raise MemoryError

    assert loader.load(second).reason is None
    monkeypatch.setattr(process, "_receive", half)
    with pytest.raises(MemoryError):
        loader.load(first)
    monkeypatch.setattr(process, "_receive", receive)
    found = loader.load(second)
    assert found.picture is not None
    assert found.picture.pixels.shape == (7, 9)


def test_a_large_file_that_is_no_image_is_no_crash() -> None:
    loader = Loader(1000)
    try:
        assert loader.load(bytes(400_000_000), name="film.mp4").reason == Reason.NOT_AN_IMAGE
        assert loader.load(b"", name="a.png").reason == Reason.BROKEN
    finally:
        loader.close()


def test_the_memory_of_a_decoder_is_bounded() -> None:
    loader = Loader(1000)
    try:
        assert loader.load(encoded(Image.new("L", (8, 8)), "PNG")).reason is None
        assert loader._process is not None
        limits = Path(f"/proc/{loader._process.pid}/limits").read_text()
    finally:
        loader.close()
    line = next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert int(line.split()[3]) < 6 * 2**30 + 16 * 2**20 * (os.cpu_count() or 1)
