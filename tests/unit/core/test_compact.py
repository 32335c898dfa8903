"""The compact form of model files: exact for any bytes, short for models, one error for whatever is wrong with it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, save

from msinn_core import compact
from msinn_core.compact import COPY, DIFFERENCES, LITERAL, MAX_BYTES, NUMBERS, expand, head
from msinn_core.compacting import compacted
from msinn_core.entropy import logistic, rans
from msinn_core.errors import BitstreamError, CheckpointError
from msinn_core.model_file import DEFAULT_MODEL, WEIGHTS

SHIPPED = (WEIGHTS / f"{DEFAULT_MODEL}.safetensors").read_bytes()
Tensors = dict[str, NDArray[Any]]


def refuse(digest: str) -> bytes:
    raise AssertionError(f"{digest} is not needed")


def small(seed: int = 0) -> Tensors:
    """Tensors of every kind that models have, in few bytes."""
    rng = np.random.default_rng(seed)
    return {
        "int.a.weight": rng.normal(0, 300, (6, 9, 8)).astype(np.int16),
        "int.b.bias": rng.integers(-(2**30), 2**30, 6).astype(np.int32),
        "int.table": (np.arange(300) ** 2).astype(np.int32),
        "constant": np.zeros(0, np.int32),
        "one": np.array(7, np.int32),
        "float": rng.normal(size=(2, 3)),
    }


def relative(tensors: Tensors) -> Tensors:
    """As a tuned model is to its origin: scales moved by powers of two, small changes."""
    weight = tensors["int.a.weight"].astype(np.int64)
    weight[:, :, ::2] *= 2
    bias = tensors["int.b.bias"] + np.array([90_000, -90_000, 5, 70_000, 0, 1], np.int32)
    return {**tensors, "int.a.weight": (weight // 4 + np.arange(8) % 3 - 1).astype(np.int16), "int.b.bias": bias, "one": np.array(8, np.int32)}


def segments_of(data: bytes) -> list[compact.Segment]:
    return compact._parsed(data, compact._fixed(data))[0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        bytes(1000),
        random.Random(0).randbytes(5000),
        save({}),
        save(small()),
        save(small())[:-1],
        save(small()) + b"more",
        SHIPPED[:20_000],
    ],
    ids=["empty", "byte", "zeros", "noise", "no-tensors", "small", "cut", "longer", "header"],
)
@pytest.mark.parametrize("base", [None, b"", save(small(1)), save(relative(small()))], ids=["alone", "to-nothing", "to-other", "to-relative"])
def test_any_bytes_come_back(data: bytes, base: bytes | None) -> None:
    small_form = compacted(data, base)
    assert expand(small_form, lambda _: base or b"") == data
    said = None if base is None else hashlib.sha256(base).hexdigest()
    assert head(small_form) == (hashlib.sha256(data).hexdigest(), said, len(data))


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
@pytest.mark.parametrize("shape", [(1,), (129,), (5, 7), (4, 9, 3), (2, 2, 2, 2), (1, 1, 1)])
def test_numbers_of_any_size_and_shape_come_back(dtype: type, shape: tuple[int, ...]) -> None:
    rng, limits = np.random.default_rng(0), np.iinfo(dtype)
    base = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    base.reshape(-1)[0] = limits.min
    other = save({"t": base})
    for values in (
        base[::-1].copy(),
        np.full(shape, limits.max, dtype),
        np.full(shape, limits.min, dtype),
        base + dtype(1),
        (base // 8).astype(dtype),
    ):
        data = save({"t": values})
        assert expand(compacted(data), refuse) == data
        assert expand(compacted(data, other), lambda _: other) == data


def test_the_shipped_model_takes_half_and_needs_nothing_else() -> None:
    small_form = compacted(SHIPPED)
    assert len(small_form) < 0.5 * len(SHIPPED)
    assert expand(small_form, refuse) == SHIPPED


def test_a_model_with_other_tables_is_told_in_its_tables() -> None:
    tensors = load(SHIPPED)
    tensors["tables.cdf"] = tensors["tables.cdf"].copy()
    tensors["tables.cdf"][10:20] += 1
    assert len(compacted(save(tensors, {"name": "refitted"}), SHIPPED)) < 0.01 * len(SHIPPED)


def test_scales_that_moved_by_powers_of_two_are_found() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 500, (32, 9, 32)).astype(np.int16)
    moved = (np.round(base * 2.0 ** rng.integers(-1, 2, (32, 1, 1)) * 2.0 ** rng.integers(-1, 2, 32)) + rng.integers(-2, 3, base.shape)).astype(
        np.int16
    )
    data, other = save({"int.w.weight": moved}), save({"int.w.weight": base})
    assert len(compacted(data, other)) < 0.5 * len(compacted(data))
    assert [segment.kind for segment in segments_of(compacted(data, other))][-1] == DIFFERENCES


def test_a_stranger_as_base_costs_next_to_nothing() -> None:
    data, other = save(small()), save(small(5))
    assert len(compacted(data, other)) < len(compacted(data)) + 100


def test_the_portable_coder_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    data, other = save(relative(small())), save(small())
    forms = compacted(data), compacted(data, other)
    monkeypatch.setattr(rans, "kernel", None)
    assert (compacted(data), compacted(data, other)) == forms
    assert expand(forms[1], lambda _: other) == data


# Hostile forms.


def rebuilt(
    data: bytes, *, notes: Callable[[bytes], bytes] | None = None, planes: bytes | None = None, stream: bytes | None = None, **fields: Any
) -> bytes:
    """A compact model with some of its parts replaced and its lengths made right."""
    fixed = compact._fixed(data)
    at = compact.FIXED.size
    deflated, at = data[at : at + fixed.deflated], at + fixed.deflated
    theirs = data[at : at + fixed.planes], data[at + fixed.planes :]
    planes, stream = theirs[0] if planes is None else planes, theirs[1] if stream is None else stream
    plain = zlib.decompress(deflated)
    if notes is not None:
        plain = notes(plain)
        deflated = zlib.compress(plain)
    fixed = fixed._replace(deflated=len(deflated), notes=len(plain), planes=len(planes), stream=len(stream))
    return compact.FIXED.pack(*fixed._replace(**fields)) + deflated + planes + stream


def with_segments(data: bytes, change: Callable[[list[compact.Segment]], list[compact.Segment]]) -> bytes:
    """A compact model whose segments say something else."""
    segments = segments_of(data)
    changed = change(segments)

    def notes(plain: bytes) -> bytes:
        rest = plain[len(segments) * sum(np.dtype(kind).itemsize for _, kind in compact.RECORD) :]
        return b"".join(np.array([getattr(one, name) for one in changed], kind).tobytes() for name, kind in compact.RECORD) + rest

    return rebuilt(data, notes=notes, segments=len(changed))


def changing(of: int, **fields: int) -> Callable[[list[compact.Segment]], list[compact.Segment]]:
    """Change the first segment of a kind."""

    def change(segments: list[compact.Segment]) -> list[compact.Segment]:
        at = next(i for i, segment in enumerate(segments) if segment.kind == of)
        return [*segments[:at], dataclasses.replace(segments[at], **fields), *segments[at + 1 :]]

    return change


BASE = save(small())
FORM = compacted(save(relative(small())), BASE)


def test_the_form_that_is_damaged_below_has_every_kind_of_segment() -> None:
    kinds = {segment.kind for segment in segments_of(FORM)} | {segment.kind for segment in segments_of(compacted(BASE))}
    assert kinds == {LITERAL, COPY, NUMBERS, DIFFERENCES}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no compact model"),
        (FORM[:95], "no compact model"),
        (b"\x89MSN" + FORM[4:], "no compact model"),
        (FORM[:4] + b"\x02" + FORM[5:], "version 2; this msinn reads version 1: use a newer msinn"),
        (FORM[:-1], "not as long as it says"),
        (FORM + b"\0", "not as long as it says"),
        (rebuilt(FORM, size=MAX_BYTES + 1), "claims 33,554,433 bytes"),
        (rebuilt(FORM, notes=lambda _: b"x") + b"", "notes are too short"),
        (rebuilt(FORM, segments=5000), "5,000 segments"),
        (rebuilt(FORM, notes=lambda plain: plain + b"\0"), "notes are of another length"),
        (rebuilt(FORM, notes=lambda plain: plain[:-1]), "notes are of another length"),
        (rebuilt(FORM, size=100), "segments are not as long as the file"),
        (rebuilt(FORM, base=bytes(32)), "wants a base and names none"),
        (rebuilt(FORM, base=b"\1" * 32), "is a difference to 010101010101, and was given another"),
        (rebuilt(FORM, sha256=b"\1" * 32), "gives back has another SHA-256"),
        (rebuilt(FORM, stream=b""), "another SHA-256"),
        (rebuilt(FORM, stream=bytes(8)), "damaged symbol stream"),
        (rebuilt(FORM, planes=b""), "damaged"),
        (rebuilt(FORM, planes=bytes(9999)), "too many low bits"),
        (with_segments(FORM, changing(COPY, kind=4)), "a segment is of kind 4"),
        (with_segments(FORM, changing(COPY, base_at=2**32 - 1)), "lies outside its base"),
        (with_segments(FORM, changing(DIFFERENCES, base_at=len(BASE) - 1)), "lies outside its base"),
        (with_segments(FORM, changing(DIFFERENCES, width=3)), "numbers of 3 bytes"),
        (with_segments(FORM, changing(DIFFERENCES, width=0)), "numbers of 0 bytes"),
        (with_segments(FORM, changing(DIFFERENCES, order=3)), "of order 3"),
        (with_segments(FORM, changing(DIFFERENCES, row=0)), "in rows of 0"),
        (with_segments(FORM, changing(DIFFERENCES, row=2**32 - 1)), "in rows of 4294967295"),
        (with_segments(FORM, changing(DIFFERENCES, columns=0)), "0 columns"),
        (with_segments(FORM, changing(DIFFERENCES, columns=2**32 - 1)), "4294967295 columns"),
        (with_segments(FORM, changing(DIFFERENCES, length=2**32 - 2)), "4294967294 bytes of numbers"),
        (with_segments(FORM, changing(LITERAL, length=2**32 - 1)), "not as long as the file"),
    ],
)
def test_every_rule_of_the_page_is_an_error(data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        expand(data, lambda _: BASE)


def test_an_exponent_out_of_range_is_an_error() -> None:
    segment = segments_of(FORM)[[one.kind for one in segments_of(FORM)].index(DIFFERENCES)]
    powers = bytes([13] * (segment.rows + segment.columns))
    with pytest.raises(compact._DamagedError, match="a power of two is out of range"):
        compact._scales(segment, bytes(segment.rows + segment.columns) + powers)


def test_no_change_of_a_byte_and_no_cut_gives_other_bytes() -> None:
    expected = save(relative(small()))
    for at in range(len(FORM)):
        for flip in (1, 0x80):
            changed = FORM[:at] + bytes([FORM[at] ^ flip]) + FORM[at + 1 :]
            with contextlib.suppress(CheckpointError):
                assert expand(changed, lambda _: BASE) == expected
        with pytest.raises(CheckpointError):
            expand(FORM[:at], lambda _: BASE)


def test_what_a_base_of_raises_is_raised() -> None:
    def lost(digest: str) -> bytes:
        raise CheckpointError(f"{digest} is lost")

    with pytest.raises(CheckpointError, match=hashlib.sha256(BASE).hexdigest()):
        expand(FORM, lost)


def test_notes_that_inflate_without_end_take_no_memory() -> None:
    bomb = zlib.compress(bytes(300_000_000), 9)
    data = compact.FIXED.pack(compact.MAGIC, 1, bytes(32), bytes(32), 1000, 1, len(bomb), 1000, 0, 0) + bomb
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="notes do not end"):
            expand(data, refuse)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_the_largest_claim_is_bounded() -> None:
    """Thirty kilobytes that say 32 MiB of zeros."""
    count = MAX_BYTES // 2
    record = (NUMBERS, 2, 0, MAX_BYTES, 0, count, 1)
    notes = b"".join(np.array([value], kind).tobytes() for value, (_, kind) in zip(record, compact.RECORD, strict=True)) + bytes(2)
    deflated = zlib.compress(notes)
    data = compact.FIXED.pack(compact.MAGIC, 1, bytes(32), bytes(32), MAX_BYTES, 1, len(deflated), len(notes), 0, 0) + deflated
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="another SHA-256"):
            expand(data, refuse)
        assert tracemalloc.get_traced_memory()[1] < 8 * MAX_BYTES
    finally:
        tracemalloc.stop()


def test_what_is_larger_has_no_compact_form() -> None:
    with pytest.raises(CheckpointError, match="has no compact form"):
        compacted(bytes(MAX_BYTES + 1))


# The coder of numbers.


@pytest.mark.parametrize("scale", [0.05, 0.4, 3, 100, 1e4, 1e8])
def test_numbers_take_the_bits_of_their_scale(scale: float) -> None:
    """Within 2 % and 0.02 bits of the entropy: tables step by a quarter octave, their tails are cut."""
    values = np.rint(np.random.default_rng(0).logistic(0, scale / (2 * np.log(2)), 200_000)).astype(np.int64)
    levels = np.full(len(values), logistic.level_of(np.abs(values).mean()[None])[0], np.uint8)
    coded = logistic.encode(values, levels)
    assert np.array_equal(logistic.decode(coded, levels), values.astype(np.uint32))
    _, counts = np.unique(values // max(1, int(scale / 16)), return_counts=True)
    entropy = -(counts / counts.sum() * np.log2(counts / counts.sum())).sum() + np.log2(max(1, int(scale / 16)))
    assert 8 * (len(coded.stream) + len(coded.planes)) / len(values) < 1.02 * entropy + 0.02


@pytest.mark.parametrize("level", [0, 15, 31, 32, 77, 140])
def test_every_level_takes_every_number(level: int) -> None:
    values = np.array([0, 1, -1, 12345, -(2**31), 2**31 - 1 - (1 << 28), 0], np.int64)
    levels = np.full(len(values), level, np.uint8)
    assert np.array_equal(logistic.decode(logistic.encode(values, levels), levels), values.astype(np.uint32))


def test_low_bits_are_as_many_as_they_should_be_and_end_in_zeros() -> None:
    levels = np.full(9, 40, np.uint8)
    coded = logistic.encode(np.arange(9), levels)
    for planes in (coded.planes[:-1], coded.planes + b"\0", coded.planes[:-1] + b"\xff"):
        with pytest.raises(BitstreamError):
            logistic.decode(coded._replace(planes=planes), levels)


def test_levels_rise() -> None:
    assert (np.diff(logistic.level_means()) >= 0).all()
    assert (np.diff(logistic.level_bits()) > 0).all()
    assert logistic.level_of(np.array([0.0, 2.0**30])).tolist() == [0, 136]
