"""`msinn bench exact`: bitstreams of one configuration, decoded by all others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from msinn_core.codec import Codec
from msinn_core.errors import CodecError
from msinn_core.integer import ops, portable
from msinn_core.integer.backend import Backend
from msinn_core.model_file import LoadedModel, load_model
from msinn_core.picture import Picture
from pipeline.lab.bench_common import MAX_PIXELS
from pipeline.lab.evaluation import pictures


@dataclass(frozen=True)
class _Configuration:
    """What decodes: its name, and what makes it."""

    label: str
    threads: int
    backend: Backend | None = None


def _configurations(model: LoadedModel) -> list[_Configuration]:
    if model.profile != "int":
        return [_Configuration("torch float32, 1 thread", 1), _Configuration("torch float32, 2 threads", 2)]
    fastest = ops.kernel.isa() if ops.kernel else -1
    backends = [(ops.Compiled(threads, isa), threads) for isa in range(fastest, -1, -1) for threads in (1, 2)]
    compiled = [_Configuration(f"compiled, {backend.name}, {threads} thread(s)", threads, backend) for backend, threads in backends]
    return [*compiled, _Configuration("portable float64", 1, portable.Portable())]


def bench_exact(images: str, *, models: Sequence[str], q: float, limit: int | None) -> bool:
    """Print what differs between instruction sets, backends and thread counts; returns whether everything decodes to the same pixels.

    Args:
        images: Folder, tar or Parquet.
        models: Names or files.
        q: Rate index.
        limit: Only the first so many images.
    """
    differing = 0
    for which in models:
        model = load_model(which)
        print(f"{model.name}, profile {model.profile}, q {q:g}: the first row's files decoded by each row; each row's files against them")
        first: dict[str, tuple[bytes, bytes]] = {}
        differing += sum(_differing(model, configuration, images, q, limit, first) for configuration in _configurations(model))
    return not differing


def _differing(
    model: LoadedModel, configuration: _Configuration, images: str, q: float, limit: int | None, first: dict[str, tuple[bytes, bytes]]
) -> int:
    """Images that this configuration decodes to other pixels, or not at all; `first` holds each image's bitstream and digest of the first one."""
    import torch

    torch.set_num_threads(configuration.threads)
    try:
        codec = Codec(model, threads=configuration.threads, backend=configuration.backend, max_pixels=MAX_PIXELS)
    except CodecError as error:
        print(f"  {configuration.label:<34} FAILS: {error}")
        return 1
    other_pixels = other_streams = failed = 0
    for name, pixels in pictures(images, limit):
        data = codec.encode(Picture(pixels=pixels), q)
        if name not in first:
            first[name] = data, hashlib.sha256(codec.decode(data)[0].content()).digest()
        reference, digest = first[name]
        other_streams += data != reference
        try:
            other_pixels += hashlib.sha256(codec.decode(reference)[0].content()).digest() != digest
        except CodecError:
            failed += 1
    said = f"{other_pixels} decode to other pixels, {failed} do not decode; {other_streams} other bitstreams"
    print(f"  {configuration.label:<34} of {len(first)} images: {said}")
    return other_pixels + failed
