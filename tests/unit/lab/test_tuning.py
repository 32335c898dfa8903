"""Models that learn a dataset: what they learn from, what they are compared on, and when they are not taken."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from msinn_core.codec import Codec
from msinn_core.model_file import card_of, load_model, parse_model
from msinn_core.picture import Picture
from pipeline.errors import StorageError, UsageError
from pipeline.lab import sample as sampling
from pipeline.lab.comparison import Gain, Measured, gain, measure
from pipeline.lab.expected import expected
from pipeline.lab.kinds import clusters, cost_features
from pipeline.lab.sample import candidates, draw
from pipeline.lab.threads import Threads
from pipeline.lab.tuned import Candidate, FileState, Tuned
from pipeline.lab.tuning import TuneConfig, Tuning, start_of
from pipeline.plan.config import Budget
from pipeline.sources import scan
from tests.conftest import make_photos

CONFIG = TuneConfig(name="own", minutes=0.02, threads=1)


def drawn(folder: Path) -> sampling.Sample:
    return draw(candidates(scan(str(folder)).records, 1))


def test_a_sample_keeps_copies_on_one_side(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "in", 40, 96)
    # A series: each of these is a copy of one picture, scaled, cropped by a pixel or recompressed.
    with Image.open(sorted(photos.iterdir())[0]) as first:
        for i in range(20):
            first.resize((96 + i, 96 + i)).convert("RGB").save(photos / f"copy{i}.jpg", quality=60 + i)
    sample = drawn(photos)
    assert sample.num_train + len(sample.held_out) == 60
    assert 6 <= len(sample.held_out) <= 12
    bits = [sampling._thumbnail_bits(pixels) for pixels in sample.held_out]
    for pixels in sample.train:
        mine = sampling._thumbnail_bits(pixels)
        assert min(int((mine != other).sum()) for other in bits) > sampling._NEAR_BITS


def test_samples_that_say_nothing_are_refused(tmp_path: Path) -> None:
    few = make_photos(tmp_path / "few", 10, 96)
    (few / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    # One that would take 11 GB to decode, and says so only there.
    header = struct.pack(">2I5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10_000_000))), (b"IEND", b""))
    )
    (few / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(UsageError, match="10 images of the source can be learned from; 1 broken image; 1 pixel limit"):
        drawn(few)
    with pytest.raises(UsageError, match=r"10 images of the source can be measured; .* whether a model fits takes 12 or more to say"):
        draw(candidates(scan(str(few)).records, 1), checking=True)
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(40):
        Image.new("RGB", (96, 96), (i, 200, 30)).save(flat / f"{i}.png")
    with pytest.raises(UsageError, match="near-copies of each other"):
        drawn(flat)


def test_a_sample_is_bounded_whatever_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "TRAIN_IMAGES", 24)
    monkeypatch.setattr(sampling, "HELD_OUT_IMAGES", 6)
    monkeypatch.setattr(sampling, "_LARGEST_SIDE", 64)
    sample = drawn(make_photos(tmp_path / "in", 48, 160))
    assert sample.num_train + len(sample.held_out) == 30
    assert max(max(pixels.shape) for pixels in (*sample.train, *sample.held_out)) == 64
    assert max(len(tile) for tile in sample.tiles) == sample.tile == 128
    assert drawn(tmp_path / "in").digest == sample.digest


def test_a_sample_of_huge_images_takes_windows_of_them_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(30):
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).resize((2400, 2000), Image.Resampling.NEAREST).save(tmp_path / f"{i}.jpg")
    whole = 30 * 2400 * 2000 * 3
    tracemalloc.start()
    sample = drawn(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sample.num_train + len(sample.held_out) == 30
    # Windows of at most 1024 x 1024, and what four readers hold meanwhile.
    assert peak < 0.5 * whole


def test_half_of_the_images_may_be_broken(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "in", 60, 96)
    for i, path in enumerate(sorted(photos.iterdir())[::2]):
        path.write_bytes((path.read_bytes()[: 100 + i], b"", b"no picture at all")[i % 3])
    sample = drawn(photos)
    assert sample.num_train + len(sample.held_out) == 30
    assert len(sample.held_out) >= 5
    assert sum(sample.left_out.values()) == 30


def test_a_dataset_in_which_every_image_is_there_twice_holds_out_none_that_is_learned_from(tmp_path: Path) -> None:
    """Smooth images, whose thumbnails rise and fall with the noise of a file."""
    rng = np.random.default_rng(0)
    for i in range(30):
        image = Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
        image.save(tmp_path / f"{i}.png")
        image.resize((90, 90)).resize((96, 96)).save(tmp_path / f"{i}.jpg", quality=60)
    sample = drawn(tmp_path)
    assert sample.num_train + len(sample.held_out) == 60
    assert len(sample.held_out) >= 6
    for held in sample.held_out:
        nearest = min(float(np.abs(held.astype(int) - learned).mean()) for learned in sample.train)
        assert nearest > 10  # a copy is 1 to 3 code values away


def figures(bits: float, noise: NDArray[np.float64]) -> Measured:
    rates = np.arange(4.0)
    sizes = bits * 1000 * 2**rates * (1 + noise)[:, None]
    return Measured(rates, sizes, np.tile(30 + 4 * rates, (len(noise), 1)), np.full(len(noise), 10_000.0))


def test_a_gain_has_an_interval_and_is_certain_only_below_zero() -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, 16)
    clear = gain(figures(1.0, noise), figures(0.8, noise))
    assert clear is not None
    assert clear.percent == pytest.approx(-20, abs=0.1)
    assert clear.certain
    doubtful = gain(figures(1.0, noise), figures(0.99, noise[::-1]))
    assert doubtful is not None
    assert doubtful.low < 0 < doubtful.high
    assert not doubtful.certain
    apart = Measured(np.arange(4.0), np.ones((16, 4)), np.tile(90 + np.arange(4.0), (16, 1)), np.ones(16))
    assert gain(figures(1.0, noise), apart) is None
    assert str(Gain(-20.04, -22, -18)) == "-20.0 % (-22.0 to -18.0)"


def test_measured_figures_are_of_real_bytes(photo: NDArray[np.uint8]) -> None:
    codec, pixels = Codec(load_model()), photo[:96, :128].copy()
    found = measure(codec, [pixels], [2.0, 6.0])
    assert found.bytes.tolist() == [[len(codec.encode(Picture(pixels=pixels), q)) for q in (2.0, 6.0)]]
    assert found.psnr_db[0, 1] > found.psnr_db[0, 0] > 25


def test_a_tuning_that_was_stopped_goes_on_and_gives_a_model_with_a_card(tmp_path: Path) -> None:
    general = load_model()
    sample = drawn(make_photos(tmp_path / "in", 30, 96))
    said: list[str] = []
    state = FileState(tmp_path / "state")

    def tuning() -> Tuning:
        return Tuning(sample, general, start_of(general), TuneConfig(name="own", minutes=5, threads=1), state, said.append)

    stops = iter([False, True, False, False, True])
    assert tuning().train(lambda: next(stops)) == 1
    second = tuning()
    steps = second.train(lambda: next(stops))
    assert steps == 3
    assert any("going on at step 1" in text for text in said)
    tuned = second.compare()
    assert [candidate.kind for candidate in tuned.candidates] == ["network", "tables"]
    network = parse_model(tuned.candidates[0].data)
    assert card_of(network) | {"bd_rate_percent": 0, "minutes": 0} == {
        "derived_from": general.sha256, "learned": "network", "data_sha256": sample.digest, "images": sample.num_train,
        "held_out": len(sample.held_out), "steps": steps, "device": "cpu", "seed": 1, "q_range": None, "bd_rate_percent": 0, "minutes": 0,
    }  # fmt: skip
    pixels = sample.held_out[0]
    decoded, _ = Codec(network).decode(Codec(network).encode(Picture(pixels=pixels), 5.0))
    assert decoded.pixels.shape == pixels.shape
    assert tuned.report()["candidates"][1]["kind"] == "tables"
    second.clear()
    assert state.load() is None


def test_a_state_of_other_images_or_options_is_begun_anew(tmp_path: Path) -> None:
    general, said = load_model(), list[str]()
    sample = drawn(make_photos(tmp_path / "in", 30, 96))
    state = FileState(tmp_path / "state")
    stops = iter([False, True])
    Tuning(sample, general, start_of(general), CONFIG, state, said.append).train(lambda: next(stops))
    whole = state.load()
    assert whole is not None
    for data, says in ((b"0" * 64 + whole[64:], "of other images"), (whole[:-1000], "cannot be gone on with")):
        state.save(data)
        again = Tuning(sample, general, start_of(general), CONFIG, state, said.append)
        assert again.train(lambda: True) == 0
        assert says in said[-1]
    with pytest.raises(StorageError, match="cannot save the state of training"):
        FileState(tmp_path / "in" / sorted(p.name for p in (tmp_path / "in").iterdir())[0] / "state").save(b"x")


def test_few_steps_on_one_kind_of_pictures_gain_on_others_of_it(tmp_path: Path) -> None:
    """No comparison is put in place of the real one: cells under a grid are cheap for a model that has seen them."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(30):
        # Black and white cells of 8 pixels under a grid: sharp, flat, and unlike any photograph.
        cells = np.kron(rng.integers(0, 2, (12, 12)) * 255, np.ones((8, 8))).astype(np.uint8)
        cells[::8] = cells[:, ::8] = 128
        Image.fromarray(np.repeat(cells[:, :, None], 3, axis=2)).save(tmp_path / "in" / f"{i}.png")
    general, sample = load_model(), drawn(tmp_path / "in")
    config = TuneConfig(name="own", minutes=30, q_range=(4.0, 8.0), threads=1)
    steps = iter([False] * 12 + [True])
    tuning = Tuning(sample, general, start_of(general), config, FileState(tmp_path / "state"), lambda _: None)
    assert tuning.train(lambda: next(steps)) == 12
    tuned = tuning.compare()
    assert tuned.best is not None
    assert tuned.best.kind == "network"
    assert tuned.best.gain is not None
    assert tuned.best.gain.percent < -5


def test_kinds_are_divided_by_what_they_cost(photo: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(0)
    smooth = [photo[i : i + 64, j : j + 64] for i in range(0, 192, 64) for j in range(0, 256, 64)]
    noise = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(8)]
    features = cost_features(Codec(load_model()), [*smooth, *noise])
    assert features.shape == (20, 24)
    assert np.allclose(features.mean(axis=0), 0)
    numbers = clusters(features, 2, 5, seed=1)
    assert len(set(numbers[:12].tolist())) == len(set(numbers[12:].tolist())) == 1
    assert numbers[0] != numbers[-1]
    # A kind of too few images is none.
    assert set(clusters(features, 2, 10, seed=1).tolist()) == {0}
    assert set(clusters(np.zeros((8, 3)), 4, 1, seed=1).tolist()) == {0}


def test_what_a_budget_will_ask_is_foreseen(photo: NDArray[np.uint8]) -> None:
    codec, pictures = Codec(load_model()), [photo[:128, :128].copy(), photo[128:256, :128].copy()]
    curves = [codec.analyse(Picture(pixels=picture)) for picture in pictures]
    fixed = expected(Budget(kind="q", value=4.0), codec, pictures, pixels=2 * 128 * 128, source_bytes=0)
    assert fixed.q_range == (3.0, 5.0)
    assert fixed.coded_bytes == pytest.approx(sum(curve.bytes[4] for curve in curves))
    total = expected(Budget(kind="bytes", value=fixed.coded_bytes), codec, pictures, pixels=2 * 128 * 128, source_bytes=0)
    assert total.coded_bytes == pytest.approx(fixed.coded_bytes, abs=1)
    assert total.q_range == pytest.approx((2.0, 7.0), abs=0.01)
    quality = expected(Budget(kind="psnr", value=60.0), codec, pictures, pixels=1e6, source_bytes=0)
    assert quality.q_range == (codec.q_max - 2, codec.q_max)
    assert expected(Budget(kind="q", value=0.0), codec, pictures, pixels=1e6, source_bytes=0).q_range == (0.0, 2.0)


def test_the_choice_counts_the_models_own_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.lab.tuned.stored_bytes", lambda models, *_: sum(map(len, models)))
    measured = figures(1.0, np.zeros(4))
    one = Candidate("network", (bytes(6_000_000),), Gain(-20.0, -22.0, -18.0), measured)
    two = Candidate("kinds", (bytes(6_000_000), bytes(6_000_000)), Gain(-26.0, -28.0, -25.0), measured)
    doubtful = Candidate("tables", (bytes(6_000_000),), Gain(-50.0, -99.0, 1.0), measured)
    tuned = Tuned([one, two, doubtful], one, measured, 100)
    # 7 % of the bytes more for 6 MB more: worth it above 86 MB.
    assert [tuned.choice(bytes(6_000_000), coded) for coded in (1e6, 80e6, 90e6)] == [one, one, two]
    assert Tuned([doubtful], None, measured, 100).choice(bytes(6_000_000), 1e9) is None
    assert Tuned([two], None, measured, 100).choice(bytes(6_000_000), 20e6) is None


@pytest.mark.parametrize(("alone", "together", "wanted"), [(3.0, 2.0, 4), (3.0, 30.0, 1)])
def test_steps_take_the_threads_that_are_quicker(alone: float, together: float, wanted: int) -> None:
    now = [0.0]
    threads, before = Threads(4, clock=lambda: now[0]), torch.get_num_threads()
    chosen = []
    try:
        for _ in range(150):
            with threads.measured():
                chosen.append(torch.get_num_threads())
                now[0] += alone if chosen[-1] == 1 else together
    finally:
        torch.set_num_threads(before)
    trial = [1, 1, 4, 4] if wanted == 4 else [1, 1, 4]
    held = 50 if wanted == 4 else 100
    expected_choices = [1, 1, *trial, *[wanted] * held, *trial, *[wanted] * 150]
    assert chosen == expected_choices[:150], "what others do changes: tried again, the less often the less it changes"
    with Threads(1).measured():
        assert torch.get_num_threads() == before
