"""The GPU's kernels compile for GPUs that are not here: no registers are spilled, nothing is rounded otherwise than it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.gpu.targets import tools_of

triton = pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(not (tools_of(triton) / "ptxas").exists(), reason="this wheel of Triton has no ptxas")
def test_every_kernel_compiles_for_ampere_and_hopper(tmp_path: Path) -> None:
    """In a process of its own: beside the interpreter, which other tests ask for, Triton does not compile. All forms: `infra/gpu/bench.sh pack`."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "infra.gpu.targets", "--few", "--architectures", "80", "90"]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "sm_80" in run.stdout
    assert "IGMMA" in run.stdout, "the H100's products of whole warp groups"
    assert run.stdout.splitlines()[-1] == "16 forms of 16 kernels, 0 with problems"
