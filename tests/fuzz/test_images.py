"""No image file ends a run, whatever is in it, and none is lost. `MSINN_FUZZ_IMAGES=10000` for a long one: the same seed, more of it."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from msinn_core.codec import Codec
from pipeline.archive.archive import Archive
from pipeline.formats import images
from pipeline.formats.outcome import Reason
from pipeline.plan.config import Budget, CompressConfig
from pipeline.read.restore import restore
from pipeline.run.compress import Run
from pipeline.run.report import JsonReporter
from tests.fuzz.mutate import mutated, seeds

COUNT = int(os.environ.get("MSINN_FUZZ_IMAGES", "420"))


def test_loading_never_raises_and_what_loads_can_be_coded(photo: NDArray[np.uint8], codec: Codec) -> None:
    random, sound = Random(1), seeds(photo[:40, :48])
    reasons: Counter[str | None] = Counter()
    for number in range(COUNT * 5):
        suffix = random.choice(list(sound))
        loaded = images.load(mutated(sound[suffix], random), max_pixels=1_000_000, name=f"x.{suffix}")
        assert (loaded.picture is None) == (loaded.reason is not None)
        reasons[loaded.reason] += 1
        for value, most in ((loaded.info.width, 2**31), (loaded.info.height, 2**31), (loaded.info.bit_depth, 128)):
            assert value is None or 0 <= value < most
        if loaded.picture is not None and number % 40 == 0 and loaded.picture.pixels.size < 10_000:
            decoded, _ = codec.decode(codec.encode(loaded.picture, 2.0))
            assert decoded.metadata() == loaded.picture.metadata()
    assert reasons[None] > COUNT // 4
    assert reasons[Reason.BROKEN] > COUNT


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("kind", "value"), [("bpp", 40.0), ("q", 2.0)])
def test_a_run_over_mutated_images_completes_and_loses_none(photo: NDArray[np.uint8], tmp_path: Path, kind: str, value: float) -> None:
    random, sound = Random(2), seeds(photo[:40, :48])
    source = tmp_path / "src"
    source.mkdir()
    for i in range(COUNT):
        suffix = random.choice(list(sound))
        (source / f"{i:05d}.{suffix}").write_bytes(mutated(sound[suffix], random))
    config = CompressConfig(budget=Budget(kind=kind, value=value), max_pixels=1_000_000)
    outcome = Run(str(source), str(tmp_path / "dst"), config, JsonReporter(io.StringIO())).execute()
    assert outcome.sealed is not None
    assert (outcome.sealed["images"], outcome.sealed["failed"]) == (COUNT, 0)
    rows = Archive(str(tmp_path / "dst")).manifest().to_pylist()
    print(kind, Counter(row["error_code"] or "coded" for row in rows))
    result = restore(str(tmp_path / "dst"), str(tmp_path / "out"))
    assert (result.images, result.problems) == (COUNT, [])
    for row in rows:
        if row["codec"] == "kept":
            assert (tmp_path / "out" / row["restore_name"]).read_bytes() == (source / row["name"]).read_bytes()
