"""A minute of the campaign in every test run: the same inputs each time, so that a failure is repeated by its number."""

from __future__ import annotations

import shutil
import sys

import pytest

from tests.fuzz import campaign

INPUTS = {
    "bitstreams": 2500, "streams": 20_000, "models": 250, "compacts": 4000, "tars": 6000, "parquet": 400, "books": 60, "tables": 3000, "images": 800,
    "names": 4000, "near": 300,
}  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize("surface", list(INPUTS))
def test_nothing_hostile_is_more_than_refused(surface: str) -> None:
    tally = campaign.run(surface, seed=0, first=0, inputs=INPUTS[surface], seconds=240)
    print(campaign.table([tally]))
    assert tally.inputs == INPUTS[surface]
    assert tally.findings == 0, (tally.wrong[:5], tally.hangs[:5], tally.crashes[:5])
    assert tally.refused + (surface == "images") > 0  # of images, what is odd is kept and no exception
    assert tally.slowest_s < campaign.HANG_S
    assert tally.peak_mib < 600


@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("gcc") is None or sys.platform != "linux", reason="needs gcc and its sanitizers")
def test_the_kernels_stand_under_sanitizers() -> None:
    with campaign.sanitizer_builds() as folder:
        for surface, inputs in (("bitstreams", 150), ("streams", 3000), ("models", 12), ("compacts", 400)):
            tally = campaign.run(surface, seed=1, first=0, inputs=inputs, seconds=240, sanitized=folder)
            assert (tally.inputs, tally.findings) == (inputs, 0), (tally.wrong[:5], tally.hangs[:5], tally.crashes[:5])


def test_the_campaign_sees_what_it_is_for() -> None:
    """Of eight inputs three end the process, one raises what it may not, and three are refused: all are counted."""
    found = campaign.run("_broken", seed=0, first=0, inputs=8, seconds=120)
    assert (found.inputs, found.refused, [number for number, _ in found.wrong], [number for number, _ in found.crashes]) == (8, 3, [6], [0, 1, 5])
