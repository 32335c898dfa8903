"""Listings compared without reading: what is as it was, what is in doubt, what is new or gone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.sources.compare import compare, joined, known, known_of_table
from pipeline.sources.record import CELL, FILE, RANGE, ROW_JSON, Part, SourceRecord, names_given, to_table, with_restore_names

PARTS = [
    Part(FILE, "/in/a.png", 10, mtime_us=5),
    Part(RANGE, "/in/x.tar", 10, 512, mtime_us=7, container_us=9),
    Part(CELL, "/in/y.parquet", 33, 4, 1, "image", container_us=9),
]


def record(part: Part, index: int = 0, name: str = "a", sidecars: tuple[tuple[str, Part], ...] = ()) -> SourceRecord:
    return SourceRecord(index, name, part, sidecars)


@pytest.mark.parametrize("part", PARTS)
def test_what_says_that_a_file_is_as_it_was(part: Part) -> None:
    def verdict(now: Part) -> str:
        found = compare(known([record(part)]), known([record(now)]))
        return "same" if len(found.same) else "doubtful"

    assert verdict(part) == "same"
    # The place of the whole says nothing: a source may move.
    assert verdict(replace(part, uri="/elsewhere")) == "same"
    changed = {
        FILE: [{"length": 11}, {"mtime_us": 6}, {"mtime_us": None}, {"mtime_us": 0}],
        RANGE: [{"length": 11}, {"mtime_us": 8}, {"offset": 1024}, {"container_us": 10}, {"container_us": None}],
        CELL: [{"offset": 5}, {"group": 2}, {"container_us": 10}, {"container_us": 0}],
    }
    for change in changed[part.kind]:
        assert verdict(replace(part, **change)) == "doubtful", change  # type: ignore[arg-type]
    if part.kind == CELL:
        assert verdict(replace(part, length=34)) == "same"  # no more than a mean
    # Times that nobody knows are alike, and prove nothing.
    unknown = replace(part, mtime_us=None, container_us=None)
    assert len(compare(known([record(unknown)]), known([record(unknown)])).doubtful) == 1


def test_a_sidecar_belongs_to_its_image() -> None:
    side = ("a.json", Part(FILE, "/in/a.json", 3, mtime_us=5))
    one, two = known([record(PARTS[0], sidecars=(side,))]), known([record(PARTS[0])])
    assert len(compare(one, one).same) == 1
    assert len(compare(one, two).doubtful) == 1
    json = Part(ROW_JSON, "/in/y.parquet", -1, 4, 1, "image", container_us=9)
    three = known([record(PARTS[2], sidecars=(("a.json", json),))])
    assert len(compare(three, three).same) == 1


def test_names_that_are_there_twice_are_told_apart_by_their_order() -> None:
    before = known([record(replace(PARTS[0], length=i), i, name) for i, name in enumerate("abba")])
    now = known([record(replace(PARTS[0], length=length), i, name) for i, (length, name) in enumerate([(1, "b"), (2, "b"), (9, "b"), (0, "a")])])
    found = compare(before, now)
    assert found.same.tolist() == [[0, 3], [1, 0], [2, 1]]
    assert (found.gone.tolist(), found.new.tolist(), found.doubtful.tolist()) == ([3], [2], [])


def test_a_stored_listing_is_known_as_its_records_are() -> None:
    side = (("s.json", Part(FILE, "/in/s.json", 3, mtime_us=5)), ("\udcff.txt", Part(FILE, "/in/t", 3, mtime_us=6)))
    records = [record(part, i, name) for i, (part, name) in enumerate(zip(PARTS, ("a", "\udcffb", "c"), strict=True))]
    records.append(record(PARTS[0], 3, "d", side[:1]))
    listing = with_restore_names(records)
    table = pa.concat_tables(to_table(listing, [0] * len(records)))
    expected, found = known(replace(each, first_key=7) for each in listing), known_of_table(table, 7)
    for field in ("key", "name", "stamp"):
        assert getattr(expected, field).tolist() == getattr(found, field).tolist(), field
    # What was written in the last two seconds before it was listed may have been written again.
    assert (known_of_table(table, 0, 2_000_006).stamp == b"").tolist() == [False, True, True, False]
    assert (known_of_table(table, 0, 2_000_010).stamp == b"").tolist() == [False, False, False, False]
    # Listings of earlier versions know no times of containers: what lies in one is in doubt.
    part = table.column("part").combine_chunks()
    fields = [field.name for field in part.type if field.name != "container_us"]
    older = pa.StructArray.from_arrays([part.field(name) for name in fields], fields)
    found = known_of_table(table.set_column(table.column_names.index("part"), "part", older))
    assert (found.stamp == b"").tolist() == [False, True, True, False]
    assert joined([found, found], {1, 3}).key.tolist() == [0, 2, 0, 2]
    assert len(joined([found], range(10))) == 0
    assert np.array_equal(joined([found]).name, found.name)


def test_new_records_get_names_that_no_kept_one_has() -> None:
    kept = with_restore_names([record(PARTS[0], 0, "a/x.jpg"), record(PARTS[0], 1, "b/y.png", (("b/y.json", PARTS[0]),))])
    taken = list(names_given(pa.concat_tables(to_table(kept, [0, 0]))))
    assert set(taken) == {"a/x.jpg", "a/x.png", "b/y.png", "b/y.json"}
    new = [replace(record(PARTS[0], i, name), first_key=2) for i, name in enumerate(["a/x.png", "b", "b/y.json", "c.png", "A/X.JPG"])]
    names = [(each.keep_name, each.restore_name) for each in with_restore_names(new, taken)]
    assert names == [("a/x~2.png", "a/x~2.png"), ("b~3", "b~3.png"), ("b/y~4.json", "b/y~4.png"), ("c.png", "c.png"), ("A/X~6.JPG", "A/X~6.png")]
