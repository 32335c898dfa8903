"""Workers on GPUs and on CPUs write one archive: Ray believes in a GPU, and the worker that gets a part of it computes under Triton's interpreter."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msinn_core.model_file import LoadedModel
from pipeline.archive.archive import Archive
from pipeline.archive.commits import Commit
from pipeline.encode.tasks import ShardTask, WorkConfig
from pipeline.encode.worker import ShardWorker
from pipeline.execute.placement import Placement
from pipeline.plan.config import Budget, CompressConfig
from pipeline.run.compress import Run, make_worker
from pipeline.run.report import JsonReporter

ROOT = Path(__file__).parents[2]


class Meeting(ShardWorker):
    """A worker that begins its first shard when the other kind has begun one too, so that both take part."""

    kind = "cpu"

    def encode(self, task: ShardTask) -> Commit:
        folder = Path(os.environ["MSINN_TEST_MEETING"])
        (folder / self.kind).touch()
        deadline = time.monotonic() + 60
        while len(list(folder.glob("[cg]pu"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        return super().encode(task)


class MeetingOnGpu(Meeting):
    """The other kind."""

    kind = "gpu"


def simulated_worker(models: Sequence[bytes], url: str, config: WorkConfig, threads: int = 1) -> ShardWorker:
    """A real worker; the GPU that Ray gave it, if it did, is this machine's CPU."""
    import ray
    import torch

    on_gpu = bool(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if on_gpu:
        os.environ["TRITON_INTERPRET"] = "1"
        from msinn_core.integer.gpu import backend, layers
        from tests.unit.core.test_gpu import FewPrograms

        right: Any = backend.on_device
        backend.on_device = lambda where, convolution, **how: right(torch.device("cpu"), convolution, **how)
        layers.triton_layers = lambda where: FewPrograms()
        torch.cuda.is_available = lambda: True
        assigned = ray.get_runtime_context().get_assigned_resources()
        Path(os.environ["MSINN_TEST_MEETING"], "assigned.json").write_text(json.dumps(assigned))
    worker = make_worker(models, url, config, threads)
    worker.__class__ = MeetingOnGpu if on_gpu else Meeting
    return worker


SCRIPT = """
import sys
import ray
from jobs.cli import main
from pipeline.run import compress
from tests.integration.test_mixed import simulated_worker
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
compress.make_worker = simulated_worker
sys.exit(main(sys.argv[1:]))
"""


def test_workers_of_both_kinds_write_what_cpus_write(tiny: LoadedModel, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    photos, model = tmp_path / "in", tmp_path / "tiny.safetensors"
    photos.mkdir()
    (tmp_path / "meeting").mkdir()
    model.write_bytes(tiny.data)
    for i in range(8):
        Image.fromarray(photo[20 * i : 20 * i + 32, 30 * i : 30 * i + 32]).save(photos / f"{i:02d}.bmp")
    command = [sys.executable, "-c", SCRIPT, "compress", str(photos), str(tmp_path / "mixed"), "--q", "2", "--model", str(model)]
    command += ["--device", "auto", "--executor", "ray", "--workers", "2", "--gpus-per-worker", "0.75"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "MSINN_TEST_MEETING": str(tmp_path / "meeting"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PYTHONPATH": str(ROOT),
    }
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "meeting" / "assigned.json").read_text())["GPU"] == 0.75
    config = CompressConfig(budget=Budget(kind="q", value=2.0), model=str(model))
    Run(str(photos), str(tmp_path / "alone"), config, JsonReporter(io.StringIO()), placement=Placement(executor="local")).execute()
    names = ["key", "status", "q", "mse", "payload_sha256", "recon_sha256", "shard_key"]
    rows = {name: Archive(str(tmp_path / name)).manifest([*names, "encoder"]).to_pylist() for name in ("mixed", "alone")}
    encoders = {row["encoder"].partition(",")[2] for row in rows["mixed"]}
    assert any("FewPrograms" in encoder for encoder in encoders), "no image was coded by the GPU's worker"
    assert any("FewPrograms" not in encoder for encoder in encoders), "no image was coded by the CPU's worker"
    assert [{name: row[name] for name in names} for row in rows["mixed"]] == [{name: row[name] for name in names} for row in rows["alone"]]
    assert run.stdout.count("encoded on") == 1
    assert "FewPrograms" in run.stdout.rpartition("encoded on")[2]
