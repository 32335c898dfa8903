"""The GPU benchmark's runs end to end, with this machine's CPU in the GPU's place: what it measures works, and it sees what differs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.gpu.bench import table_of
from infra.gpu.end_to_end import end_to_end
from msinn_core.integer.gpu.engine import DeviceEngine


@pytest.mark.usefixtures("gpu")
def test_runs_end_to_end_are_compared(photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    right = DeviceEngine.transform_many
    monkeypatch.setattr(DeviceEngine, "transform_many", lambda self, pixels: (sizes.append(len(pixels)), right(self, pixels))[1])
    found = end_to_end([photo[:64, :64], photo[200:264, 200:264]], "cuda", "msinn-lite", 4)
    assert (found["shards_different"], found["files_different"]) == (0, 0)
    rows = {row["what"]: row for row in found["rows"]}
    assert rows["compress, gpu"]["coded"] == 4
    assert "Float64Layers" in rows["compress, gpu"]["encoders"][0]
    assert "Float64Layers" in rows["restore, gpu"]["computed_on"][0]
    assert all("Float64Layers" not in name for name in rows["restore, cpu"]["computed_on"])
    assert all(not row.get("warnings") and not row.get("problems") for row in found["rows"])
    assert max(sizes) == 4
    assert 1 in sizes
    assert found["devices_different"] == 7, "it is the CPU that stands in for the GPU here, and that must show"
    assert "restore, gpu one by one" in table_of({"end_to_end": found})
