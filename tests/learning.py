"""A network of few channels to learn with: a step, a packing and a comparison go the same ways as the shipped model's, in a third of the time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import msinn_core.training.config
import pipeline.lab.tuning
from msinn_core.assembly import float_model
from msinn_core.training.init import informed
from tests.conftest import PHOTOS
from tests.unit.core.test_network import TINY, randomised

SMALL_MODEL = str(Path(__file__).parent / "golden" / "integer" / "model.safetensors")
"""Its packed form; it is called `golden`."""


def learn_small(folder: Path, patch: Callable[[object, str, object], None]) -> None:
    """Have what is learned with `--model SMALL_MODEL` begin from its own float parameters, as the shipped model has some.

    Args:
        folder: Where they are written.
        patch: `setattr`, or a monkeypatch's.
    """
    x = torch.from_numpy(np.array(Image.open(sorted(PHOTOS.rglob("*.webp"))[0]).convert("RGB"))[64:192, 64:192]).permute(2, 0, 1)[None].float() / 255
    network = randomised(TINY)
    informed(network, x)
    (folder / "golden-float.safetensors").write_bytes(float_model(TINY, network.state_dict(), name="golden-float"))
    patch(pipeline.lab.tuning, "WEIGHTS", folder)
    patch(pipeline.lab.tuning, "preset", lambda *_, **__: TINY)
    train_small(patch)


def train_small(patch: Callable[[object, str, object], None]) -> None:
    """Have `msinn train` make a network of few channels, whatever preset it is told."""
    patch(msinn_core.training.config, "preset", lambda *_, **__: TINY)
