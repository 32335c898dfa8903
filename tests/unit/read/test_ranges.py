"""Ranges of shards are joined where a request costs more than the bytes between them, and blocks give the bytes that were asked for."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DamagedError, NotFoundError
from pipeline.read.files import PathError, checked_name, glob_expression
from pipeline.read.ranges import Blocks, coalesced
from pipeline.store.base import open_store

RANGES = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5000), st.integers(0, 900)), max_size=20)


@given(ranges=RANGES, gap=st.integers(0, 500), most=st.integers(1, 3000))
def test_spans_hold_every_range_once(ranges: list[tuple[str, int, int]], gap: int, most: int) -> None:
    spans = coalesced(ranges, gap=gap, most=most)
    assert sorted(part for span in spans for part in span.parts) == list(range(len(ranges)))
    for span in spans:
        parts = [ranges[part] for part in span.parts]
        assert {name for name, *_ in parts} == {span.name}
        assert (span.start, span.start + span.length) == (min(start for _, start, _ in parts), max(start + length for _, start, length in parts))
        assert span.length <= most or any((start, length) == (span.start, span.length) for _, start, length in parts)
    # Two spans of one object are apart by more than the gap, or would be too long together.
    for one, next_one in itertools.pairwise(spans):
        first = ranges[next_one.parts[0]]
        together = first[1] + first[2] - one.start
        assert one.name != next_one.name or next_one.start > one.start + one.length + gap or together > most


def test_blocks_give_what_the_store_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).bytes(10_000)
    (tmp_path / "x").write_bytes(data)
    store = open_store(str(tmp_path))
    blocks = Blocks(store, block_bytes=1000, max_blocks=3)
    rng = np.random.default_rng(1)
    for _ in range(200):
        start = int(rng.integers(0, 10_000))
        length = int(rng.integers(0, min(2500, 10_000 - start) + 1))
        assert blocks.read_range("x", start, length) == data[start : start + length]
    with pytest.raises(DamagedError, match="ends at byte 10000, 1 bytes too early"):
        blocks.read_range("x", 9_999, 2)
    with pytest.raises(NotFoundError):
        blocks.read_range("y", 0, 1)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("*.png", "a.png", True),
        ("*.png", "b/a.png", False),
        ("**/*.png", "a.png", True),
        ("**/*.png", "b/c/a.png", True),
        ("b/**", "b/c/a.png", True),
        ("photo00[1-3].?ng", "photo002.png", True),
        ("photo00[!1-3].?ng", "photo002.png", False),
        ("a+(1).png", "a+(1).png", True),
        ("a.png", "axpng", False),
    ],
)
def test_globs_are_as_a_shell_has_them(pattern: str, name: str, fits: bool) -> None:
    import re

    assert (re.fullmatch(glob_expression(pattern), name) is not None) == fits


@pytest.mark.parametrize("name", ["..", "a/../b", "./a", "a::b", "a\\b", "a\0b"])
def test_names_that_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(PathError):
        checked_name(name)
