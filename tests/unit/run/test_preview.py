"""What a restore will write, from a few images of each form."""

from __future__ import annotations

import pytest

from pipeline.encode.preview import AS_STORED, Written
from pipeline.plan.findings import Share
from pipeline.run.preview import Restored, restored


def written(pixels: int, source: int, **files: int | None) -> Written:
    return Written(pixels=pixels, source_bytes=source, file_bytes={name.replace("_", " "): size for name, size in files.items()})


def test_files_that_come_back_count_as_they_are_and_pictures_by_their_pixels() -> None:
    shares = {"jpeg-exact": Share(1000, 80_000, 100_000, 10**6), "msinn": Share(10, 5_000, 90_000, 2 * 10**6)}
    few = {
        "jpeg-exact": (written(1000, 90, as_stored=90, png=500), written(3000, 310, as_stored=310, png=1500)),
        "msinn": (written(10**5, 9_000, as_stored=200_000, png=200_000, original=None),),
    }
    found = restored(shares, few)
    assert found == {
        AS_STORED: Restored(100_000 + 4_000_000, 0),
        "png": Restored(500_000 + 4_000_000, 0),
    }  # of `original` nothing is known for one of the forms


def test_files_that_are_no_pictures_count_by_their_bytes_and_what_is_left_out_is_counted() -> None:
    shares = {"kept": Share(20, 4_000, 2_000, 0), "msinn": Share(10, 5_000, 90_000, 10**6)}
    few = {
        "kept": (written(0, 100, original=100, png=100), written(50, 100, original=100, png=300)),
        "msinn": (written(10**5, 9_000, original=None, png=10**5),),
    }
    assert restored(shares, few) == {"original": Restored(2_000, 10), "png": Restored(4_000 + 10**6, 0)}


@pytest.mark.parametrize("shares", [{}, {"kept": Share()}])
def test_of_nothing_nothing_is_written(shares: dict[str, Share]) -> None:
    assert restored(shares, {}) == {AS_STORED: Restored(0, 0)}
