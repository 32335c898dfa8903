"""Smaller pictures that may never change: of the golden model's heads, and which heads the shipped models have."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load

from msinn_core.codec import Codec
from msinn_core.heads import SCALES, read_heads
from msinn_core.integer.backend import Backend
from msinn_core.integer.ops import AMX, AVX2, AVX512, COMPILED, SCALAR, SSE41, Compiled
from msinn_core.integer.portable import Portable
from msinn_core.model_file import LoadedModel, heads_of, load_model, shipped_heads
from msinn_core.reduction import reduced_picture

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "heads" / "expected.json").read_text())


def backends() -> list[Backend]:
    return [Portable(), *([Compiled(isa=isa) for isa in (AMX, AVX512, AVX2, SSE41, SCALAR)] if COMPILED else [])]


@pytest.mark.parametrize("name", sorted(EXPECTED["pictures"]))
def test_smaller_pictures_have_these_pixels(tiny: LoadedModel, name: str) -> None:
    stream = (HERE / "integer" / name).read_bytes()
    model = replace(tiny, heads=read_heads(load((HERE / "heads" / "heads.safetensors").read_bytes())))
    for backend in backends():
        codec = Codec(model, backend=backend)
        found = {str(scale): hashlib.sha256(codec.decode_reduced(stream, scale).content()).hexdigest() for scale in SCALES}
        assert found == EXPECTED["pictures"][name]


def test_the_alpha_plane_is_reduced_by_area(tiny: LoadedModel) -> None:
    """The golden pixels are right in what a reader can work out without a head."""
    stream = (HERE / "integer" / "grey-5.53.msn").read_bytes()
    model = replace(tiny, heads=read_heads(load((HERE / "heads" / "heads.safetensors").read_bytes())))
    codec = Codec(model)
    found, full = codec.decode_reduced(stream, 4), reduced_picture(codec.decode(stream)[0], 4)
    assert found.alpha is not None
    assert full.alpha is not None
    assert found.alpha.tobytes() == full.alpha.tobytes()


def test_shipped_heads_stay() -> None:
    """Whoever made a smaller picture of an archive gets the same from every later msinn."""
    assert {digest: shipped_heads()[digest]["sha256"] for digest in EXPECTED["shipped"]} == EXPECTED["shipped"]
    assert sorted(heads_of(load_model())) == sorted(SCALES)
