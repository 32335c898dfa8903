"""Makes `model.compact`, the golden model by itself, and `tuned.compact`, a model derived from it as a difference. They are never made again: what
they give back is what every later msinn must give back.

    python -m tests.golden.integer.make_compact
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from msinn_core.compacting import compacted
from msinn_core.model_file import read_metadata

HERE = Path(__file__).parent


def tuned(data: bytes) -> bytes:
    """A model file that differs from the golden one as tuned ones do: other scales, small changes, another card."""
    tensors, metadata = load(data), read_metadata(data)
    weights = [name for name in sorted(tensors) if name.endswith(".weight")]
    for number, name in enumerate(weights[:12]):
        wide = tensors[name].astype(np.int64)
        scaled = (wide * (2 if number % 3 else 1)) >> (number % 2)
        scaled[..., ::2] >>= 1
        noise = np.arange(wide.size).reshape(wide.shape) * 2654435761 % 97 // 12 - 4
        tensors[name] = (scaled + noise).clip(-32767, 32767).astype(np.int16)
    bias = next(name for name in sorted(tensors) if name.endswith(".bias"))
    tensors[bias] = tensors[bias] + np.int32(70_000)
    tensors["tables.cdf"] = tensors["tables.cdf"].copy()
    tensors["tables.cdf"][5:9] += 1
    # One key, so that the order of metadata in the file is not left to chance.
    return save(tensors, metadata={"name": metadata["name"] + "-tuned"})


def main() -> None:
    """Write both, unless they are there."""
    model = (HERE / "model.safetensors").read_bytes()
    for name, data in (("model.compact", compacted(model)), ("tuned.compact", compacted(tuned(model), model))):
        if not (HERE / name).exists():
            (HERE / name).write_bytes(data)


if __name__ == "__main__":
    main()
