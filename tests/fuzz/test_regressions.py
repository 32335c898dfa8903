"""Small files that once did harm, each through the way in by which it came."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from tests.fuzz.surfaces import Tables

REGRESSIONS = Path(__file__).parent / "regressions"


@pytest.mark.parametrize("name", ["name-not-utf8.parquet", "column-not-utf8.csv"])
def test_tables_that_raised_a_unicode_error(name: str) -> None:
    with pytest.raises(UsageError):
        Tables().read((REGRESSIONS / name).read_bytes())


def test_a_footer_that_ended_the_process() -> None:
    """pyarrow's view of its statistics ended the process in C++: a histogram of definition levels of another size."""
    script = f"""
from pathlib import Path
from pipeline.errors import UsageError
from tests.fuzz.surfaces import Tables
try:
    Tables().read(Path({str(REGRESSIONS / "arrow-abort.parquet")!r}).read_bytes())
except UsageError as error:
    print("refused", error)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("refused")
