"""The cross-check of a shard's images: which are drawn, and what becomes of a machine that computes wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from msinn_core.codec import Codec
from msinn_core.integer.ops import COMPILED, Compiled
from msinn_core.model_file import LoadedModel
from msinn_core.picture import Picture
from pipeline.encode.coder import ImageCoder
from pipeline.encode.crosscheck import CrossCheck, drawn
from pipeline.encode.item import Item
from pipeline.encode.tasks import ImageTask, WorkConfig
from pipeline.errors import MachineError
from pipeline.formats import images
from pipeline.formats.outcome import Kept, Reason
from pipeline.sources.record import Part, SourceRecord

pytestmark = pytest.mark.skipif(not COMPILED, reason="the integer kernel is not compiled: install with a C compiler")

CONFIG = WorkConfig(target_psnr_db=None, max_pixels=10**6, count_sidecars=False, ms_ssim=False)


def record(number: int) -> SourceRecord:
    return SourceRecord(number, f"{number}.png", Part("file", f"{number}.png", 0))


def encoded(coder: ImageCoder, picture: Picture, number: int = 0) -> Item:
    item = Item(ImageTask(record(number), 4.0), bytes(10**6), images.LoadedImage(info=images.ImageInfo(), picture=picture))
    coder.compress(item, 4.0)
    coder.pack(item)
    assert coder.measure(item)
    return item


class InThePixels(Compiled):
    """A machine that gets one value wrong, behind all symbols: in the transform's finest level."""

    def unit(self, z: NDArray[np.int32], *rest: object) -> NDArray[np.int32]:  # type: ignore[override]
        out = super().unit(z, *rest)  # type: ignore[arg-type]
        if out.shape[2] == 12:
            out[1, 1, 5] += 20_000
        return out


class InTheContext(Compiled):
    """A machine that gets one table index wrong."""

    def levels(self, parameters: NDArray[np.int16], *rest: object) -> NDArray[np.uint8]:  # type: ignore[override]
        out = super().levels(parameters, *rest)  # type: ignore[arg-type]
        out[0, 0, 0] ^= 8
        return out


def gone_bad(model: LoadedModel, kind: type[Compiled]) -> Codec:
    """A codec whose machine passed the self-test, and computes wrongly now."""
    backend = Compiled()
    codec = Codec(model, backend=backend)
    backend.__class__ = kind
    return codec


def coder_of(model: LoadedModel, codec: Codec) -> ImageCoder:
    coder = ImageCoder(model, CONFIG)
    coder.codec = coder.checker = codec
    return coder


@pytest.mark.parametrize(("kind", "what"), [(InThePixels, "decodes to other pixels"), (InTheContext, "does not decode")])
def test_an_encoder_that_computes_wrongly_is_found_and_named(kind: type[Compiled], what: str, model: LoadedModel, tile: Picture) -> None:
    """Its own check finds nothing: its walk is as wrong as its bytes."""
    coder = coder_of(model, gone_bad(model, kind))
    item = encoded(coder, tile, 7)
    assert item.coded
    check = CrossCheck([coder.codec], 1.0, "node3:4711")
    with pytest.raises(MachineError, match=what) as raised:
        list(check.checked([item]))
    sentence = str(raised.value)
    assert all(part in sentence for part in ("worker node3:4711", "7.png", coder.codec.engine.name, check.counterpart(0).engine.name)), sentence
    assert "\n" not in sentence


def test_a_decoder_that_computes_wrongly_is_found_too(codec: Codec, model: LoadedModel, tile: Picture) -> None:
    check = CrossCheck([codec], 1.0, "node3:4711")
    bad = gone_bad(model, InThePixels)
    check.counterpart = lambda model: bad  # type: ignore[assignment, misc]
    with pytest.raises(MachineError, match="decodes to other pixels"):
        list(check.checked([encoded(coder_of(model, codec), tile)]))


@pytest.fixture
def counting(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Which of some items a check decodes; all of them must come through."""

    def names(items: list[Item], share: float, *, at_least_one: bool = True) -> list[str]:
        check = CrossCheck([codec], share, "node3:4711")
        seen: list[bytes] = []
        right = check.counterpart(0).decode
        with monkeypatch.context() as patch:
            patch.setattr(check.counterpart(0), "decode", lambda data: (seen.append(data), right(data))[1])
            assert list(check.checked(items, at_least_one=at_least_one)) == items
        return [item.task.record.name for data in seen for item in items if item.data is data]

    return names


def test_a_share_is_drawn_and_one_at_least(counting: Callable[..., list[str]], model: LoadedModel, codec: Codec, photo: NDArray[np.uint8]) -> None:
    coder = coder_of(model, codec)
    items = [encoded(coder, Picture(pixels=photo[i : i + 32, :32].copy()), i) for i in range(8)]
    draws = {item.task.record.name: drawn(item.task.record) for item in items}
    order = sorted(draws, key=lambda name: draws[name])
    middle = draws[order[4]]
    assert sorted(counting(items, 1.0)) == sorted(order)
    assert sorted(counting(items, middle)) == sorted(order[:4])
    assert counting(items, draws[order[0]]) == order[:1], "none is below the share: the nearest"
    assert counting(items, 0.0) == order[:1]
    assert counting(items, 0.0, at_least_one=False) == []
    # What is kept, and what was decoded when it was measured, is no part of it.
    nearest = next(item for item in items if item.task.record.name == order[0])
    nearest.outcome = Kept(Reason.NOT_SMALLER)
    assert counting(items, 0.0) == order[1:2]
    second = next(item for item in items if item.task.record.name == order[1])
    assert second.measured is not None
    second.measured = second.measured._replace(walked=False)
    assert counting(items, 0.0) == order[2:3]
    assert counting(items[:0], 1.0) == []


def test_a_draw_is_of_the_image_and_uniform() -> None:
    draws = np.array([drawn(record(i)) for i in range(4000)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(float((draws < 1 / 32).mean()) - 1 / 32) < 0.01
    assert drawn(record(5)) == drawn(replace(record(5), part=Part("file", "elsewhere/5.png", 99)))
    assert drawn(SourceRecord(0, "b\udcff.png", Part("file", "b", 0))) < 1, "a name that is no text"


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("torch has no room")])
def test_too_little_memory_is_no_verdict_on_a_machine(error: Exception, codec: Codec, model: LoadedModel, tile: Picture) -> None:
    check, item = CrossCheck([codec], 1.0, "node3:4711"), encoded(coder_of(model, codec), tile)

    def starved(data: bytes) -> None:
        raise error

    check.counterpart(0).decode = starved  # type: ignore[assignment, method-assign]
    list(check.checked([item]))
    assert (item.reason, item.payload) == (Reason.CODEC_FAILED, item.source)
    # At the end of a shard its only image is written, and stays.
    late = encoded(coder_of(model, codec), tile)
    check = CrossCheck([codec], 0.0, "node3:4711")
    check.counterpart(0).decode = starved  # type: ignore[assignment, method-assign]
    list(check.checked([late]))
    assert late.coded
