"""Training: configuration, data on the device, initialisation, steps, exact continuation."""

from __future__ import annotations

import dataclasses
import io
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save

from msinn_core.checkpoint import read_tensors
from msinn_core.config import PAPER_LAMBDAS, preset
from msinn_core.errors import CheckpointError, ConfigError
from msinn_core.float.model import Msinn
from msinn_core.float.transform import InvertibleUnit
from msinn_core.training.augment import jpeg, recolour
from msinn_core.training.capture import keep_inverses
from msinn_core.training.config import CONFIGS, Stage, TrainConfig, load_config, named_sources
from msinn_core.training.data import Tiles, cut
from msinn_core.training.init import extend_anchors, informed
from msinn_core.training.loop import Trainer, TrainingFailed
from msinn_core.training.loss import RateDistortion, Sample
from msinn_core.training.soap import Soap
from tests.learning import train_small
from tests.unit.core.test_network import TINY

CPU = torch.device("cpu")


def config(**changes: object) -> TrainConfig:
    values = {"name": "t", "preset": "msinn-lite", "steps": 8, "stages": (Stage(until=1.0, crop=32, batch=2),), "warmup_steps": 2, "tile": 64}
    return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiles(photo: NDArray[np.uint8]) -> Tiles:
    ring = Tiles(100, 64, CPU)
    ring.extend(list(cut(photo, 64)))
    return ring


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.toml")))
def test_shipped_configurations_are_valid_and_round_trip(name: str) -> None:
    import json

    shipped = load_config(name)
    assert TrainConfig.from_mapping(json.loads(shipped.to_json())) == shipped
    assert shipped.network().anchor_num == shipped.anchor_num


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1.5}, "whole number"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"jpeg_share": 1.5}, "jpeg_share is 1.5"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"init": "random"}, "choose informed or paper"),
        ({"optimiser": "sgd"}, "choose adam or soap"),
        ({"anchor_num": 13}, "anchor_num is 13"),
        ({"preset": "msinn-huge"}, "no preset"),
        ({"stages": ()}, "must rise to 1"),
        ({"stages": (Stage(until=0.5, crop=32, batch=1),)}, "must rise to 1"),
        ({"stages": (Stage(until=1.0, crop=128, batch=1),)}, "smaller than the crops"),
        ({"schedule": "time"}, "max_minutes"),
        ({"lambdas": (1.0, 2.0)}, "lambdas"),
    ],
)
def test_a_bad_configuration_is_one_clear_error(change: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config(**change)


@pytest.mark.parametrize(
    "text",
    ["steps = ", "colour = 3", 'name = "x"', 'name="x"\npreset="msinn-lite"\nsteps=3\nstages=[{until=1.0, crop=33, batch=1}]'],
)
def test_a_bad_configuration_file_is_one_clear_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_config(str(path))
    with pytest.raises(ConfigError, match=r"give one of .*smoke"):
        load_config("no-such-run")


def test_the_learning_rate_warms_up_and_decays() -> None:
    run = config(learning_rate=1e-3, warmup_steps=10, final_share=0.1)
    assert run.rate_at(0, 0.0) == pytest.approx(1e-4)
    assert run.rate_at(100, 0.0) == pytest.approx(1e-3)
    assert run.rate_at(100, 0.5) == pytest.approx(0.55e-3)
    assert run.rate_at(100, 1.0) == pytest.approx(1e-4)


def test_tiles_cover_a_picture_and_small_ones_give_none() -> None:
    pixels = np.arange(100 * 150 * 3, dtype=np.uint32).reshape(100, 150, 3).astype(np.uint8)
    found = list(cut(pixels, 48))
    assert [tile.shape for tile in found] == [(48, 48, 3)] * 6
    assert np.array_equal(found[-1], pixels[-48:, -48:])
    assert list(cut(pixels[:47], 48)) == []


def test_crops_depend_on_the_generator_alone_and_keep_pixels(tiles: Tiles) -> None:
    def crops(seed: int, share: float) -> torch.Tensor:
        return tiles.crops(16, 32, share, torch.Generator().manual_seed(seed))

    assert torch.equal(crops(1, 0.5), crops(1, 0.5))
    assert not torch.equal(crops(1, 0.5), crops(2, 0.5))
    scaled = crops(1, 1.0)
    assert scaled.shape == (16, 3, 32, 32)
    assert 0 <= float(scaled.min()) <= float(scaled.max()) <= 1
    for share in (0.0, 1.0):
        found = crops(3, share)
        assert torch.equal(found, (found * 255).round() / 255)  # archives hold 8-bit pictures


def test_augmentations_touch_their_share_of_the_crops_and_draw_nothing_without_one(tiles: Tiles) -> None:
    def crops(**shares: float) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(5)
        return tiles.crops(64, 32, 0.3, generator, **shares), torch.rand(1, generator=generator)

    plain, then = crops()
    same, then_too = crops(colour_share=0.0, jpeg_share=0.0)
    assert torch.equal(plain, same)
    assert torch.equal(then, then_too)  # so that runs from before the augmentations repeat their curves
    for name in ("colour_share", "jpeg_share"):
        for share, low, high in ((0.3, 10, 30), (1.0, 62, 64)):
            found = crops(**{name: share})[0]
            assert torch.equal(found, crops(**{name: share})[0])
            assert low <= int((found != plain).flatten(1).any(1).sum()) <= high, name
            assert torch.equal(found, (found * 255).round() / 255)
            assert 0 <= float(found.min()) <= float(found.max()) <= 1
    both = crops(colour_share=1.0, jpeg_share=1.0)[0]
    assert float((both - plain).abs().mean()) > float((crops(jpeg_share=1.0)[0] - plain).abs().mean())


def test_recolouring_is_a_gamma_and_a_gain_on_code_values() -> None:
    x = torch.tensor([0.0, 64.0, 128.0, 250.0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    found = recolour(x, torch.tensor([2.0]), torch.tensor([[1.0, 1.2, 0.8]]))
    expected = [[round(min(255.0, value**2 / 255 * gain)) for value in (0, 64, 128, 250)] for gain in (1.0, 1.2, 0.8)]
    assert found.reshape(3, 4).tolist() == expected
    assert torch.equal(recolour(x, torch.ones(1), torch.ones(1, 3)), x)


@pytest.mark.parametrize("subsampled", [False, True])
@pytest.mark.parametrize("quality", [30, 60, 85, 98])
def test_jpeg_gives_what_libjpeg_gives(photo: NDArray[np.uint8], quality: int, subsampled: bool) -> None:
    pixels = np.ascontiguousarray(photo[:192, :128])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0" if subsampled else "4:4:4")
    theirs = torch.from_numpy(np.array(Image.open(buffer)).astype(np.float32)).permute(2, 0, 1)[None]
    x = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
    # Among others of other quality, which must not matter.
    ours = jpeg(torch.cat((x, x)), torch.tensor([50.0, float(quality)]), subsampled=subsampled)[1:]
    assert torch.equal(ours, ours.round())
    # What is left is libjpeg's rounding between its whole-number steps, most of it where tables are all but one.
    lost = float((x - theirs).square().mean())
    assert float((ours - theirs).square().mean()) < 0.1 * lost + 0.5
    other = jpeg(x, torch.tensor([float(quality)]), subsampled=not subsampled)
    assert float((other - theirs).square().mean()) > 0.1 * lost + 0.5


def test_sources_by_the_set_they_are_named_for() -> None:
    found = named_sources(["a.tar", "photo=b.tar", "drawn=s3://x/k=v/c.tar", "photo=d", "/data/day=1/e.tar", "./day=1/f.tar"])
    assert found == {
        "": ("a.tar", "/data/day=1/e.tar", "./day=1/f.tar"),
        "photo": ("b.tar", "d"),
        "drawn": ("s3://x/k=v/c.tar",),
    }


def test_the_ring_after_n_tiles_is_a_function_of_n() -> None:
    numbered = [np.full((64, 64, 3), i, np.uint8) for i in range(10)]
    straight = Tiles(4, 64, CPU)
    for tile in numbered:
        straight.extend([tile])
    resumed = Tiles(4, 64, CPU)
    resumed.restart(10 - 4)
    resumed.extend(numbered[6:])
    at_once = Tiles(4, 64, CPU)
    at_once.extend(numbered)
    for ring in (resumed, at_once):
        assert torch.equal(ring._tiles, straight._tiles)
        assert ring.num_seen == 10


def test_the_informed_transform_is_orthonormal_and_compacts_energy(tiles: Tiles) -> None:
    torch.manual_seed(0)
    model = Msinn(preset("msinn-lite"))
    x = tiles.crops(8, 64, 0.0, torch.Generator().manual_seed(1))
    informed(model, x)
    with torch.no_grad():
        latents = model.analysis(x)
        assert torch.allclose(model.synthesis(latents), x, atol=1e-4)
        energy = [float(y.square().sum()) for y in latents]
    assert sum(energy) == pytest.approx(float(x.square().sum()), rel=1e-4)
    # Two of 256 samples per colour hold all but all of the energy; the finest latent holds details only.
    assert sum(energy[:2]) > 0.9 * sum(energy)
    assert energy[4] < 0.02 * sum(energy)
    assert float(model.gain.detach()[3, 0, 0, 0]) == pytest.approx(math.sqrt(PAPER_LAMBDAS[3]) / 0.02)
    assert torch.allclose(model.gain * model.inv_gain, torch.ones_like(model.gain))


def test_eight_anchors_grow_to_twelve(tiles: Tiles) -> None:
    torch.manual_seed(0)
    old, new = preset("msinn-lite", anchor_num=8), preset("msinn-lite")
    model = Msinn(old)
    informed(model, tiles.crops(4, 32, 0.0, torch.Generator()))
    grown = extend_anchors(model.state_dict(), old, new)
    assert grown["gain"].shape[0] == 12
    assert torch.equal(grown["gain"][:8], model.gain)
    assert float(grown["gain"][11, 0, 0, 0]) == pytest.approx(math.sqrt(1.8) / 0.02, rel=1e-5)
    with pytest.raises(CheckpointError, match="only 8"):
        extend_anchors(grown, new, old)
    with pytest.raises(CheckpointError, match="another depths"):
        extend_anchors(model.state_dict(), dataclasses.replace(old, depths=(1, 1, 1, 1)), new)


def test_every_rate_weighs_alike_once_means_are_known() -> None:
    objective = RateDistortion((0.01, 1.0), CPU)
    anchor = torch.tensor([0, 1, 1])
    sample = Sample(anchor, torch.zeros(3), torch.zeros(3), torch.tensor([0.4, 8.0, 8.0]))
    for _ in range(500):
        objective.remember(sample)
    assert objective.means.tolist() == pytest.approx([0.4, 8.0], rel=1e-3)
    x = torch.zeros(2, 3, 4, 4)
    bits = torch.tensor([[1.0], [2.0]]) * 16
    loss, figures = objective(x, x + 2 / 255, bits, torch.tensor([0, 1]))
    assert figures.bpp.tolist() == [1.0, 2.0]
    assert figures.mse.tolist() == pytest.approx([4.0, 4.0])
    assert float(loss) == pytest.approx(((1 + 0.01 * 4) / 0.4 + (2 + 1.0 * 4) / 8) / 2, rel=1e-3)


def _trained(trainer: Trainer, tiles: Tiles, steps: int) -> list[float]:
    return [trainer.step(tiles).loss for _ in range(steps)]


def _assert_same(a: bytes, b: bytes) -> None:
    (metadata_a, tensors_a), (metadata_b, tensors_b) = read_tensors(a), read_tensors(b)
    assert metadata_a == metadata_b
    assert tensors_a.keys() == tensors_b.keys()
    assert [name for name in tensors_a if not torch.equal(tensors_a[name], tensors_b[name])] == []


@pytest.mark.parametrize("optimiser", ["adam", "soap"])
def test_a_resumed_run_repeats_the_curve_exactly(tiles: Tiles, optimiser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train_small(monkeypatch.setattr)  # what a state holds does not depend on its width
    run = config(optimiser=optimiser, steps=24, stages=(Stage(until=0.5, crop=32, batch=2), Stage(until=1.0, crop=64, batch=1, rate="rounded")))
    straight = Trainer(run, CPU)
    straight.initialise(tiles)
    losses = _trained(straight, tiles, 24)
    first = Trainer(run, CPU)
    first.initialise(tiles)
    begun = _trained(first, tiles, 13)
    second = Trainer(run, CPU)
    second.resume(first.state())
    assert begun + _trained(second, tiles, 11) == losses
    _assert_same(second.state(), straight.state())
    assert losses[-1] < losses[0]


def test_a_batch_in_parts_is_the_step_of_the_whole(tiles: Tiles) -> None:
    whole, parts = (Trainer(config(stages=(Stage(until=1.0, crop=32, batch=4, parts=n, rate="rounded"),)), CPU) for n in (1, 4))
    for trainer in (whole, parts):
        trainer.initialise(tiles)
    a, b = whole.step(tiles), parts.step(tiles)
    assert (a.loss, a.gradient_norm) == (pytest.approx(b.loss, rel=1e-4), pytest.approx(b.gradient_norm, rel=1e-3))
    torch.testing.assert_close(a.sample.bpp, b.sample.bpp, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="4 in 3 parts"):
        Stage(until=1.0, crop=32, batch=4, parts=3)


def test_a_state_of_another_run_is_refused_by_name(tiles: Tiles) -> None:
    trainer = Trainer(config(), CPU)
    trainer.initialise(tiles)
    state = trainer.state()
    with pytest.raises(CheckpointError, match="another learning_rate"):
        Trainer(config(learning_rate=1e-5), CPU).resume(state)
    with pytest.raises(CheckpointError, match="another jpeg_share"):
        Trainer(config(jpeg_share=0.1), CPU).resume(state)
    Trainer(config(max_minutes=5.0, log_every=3, valid=("drawn=x.tar",)), CPU).resume(state)
    with pytest.raises(CheckpointError, match="no training state"):
        Trainer(config(), CPU).resume(trainer.model())
    with pytest.raises(CheckpointError):
        Trainer(config(), CPU).resume(state[:-100])


def test_a_state_from_before_a_key_was_there_goes_on(tiles: Tiles) -> None:
    import json

    trainer = Trainer(config(), CPU)
    trainer.initialise(tiles)
    metadata, tensors = read_tensors(trainer.state())
    train = json.loads(metadata["train"])
    assert {train.pop(key) for key in ("colour_share", "jpeg_share")} == {0.0}
    other = Trainer(config(), CPU)
    other.resume(save(tensors, metadata={**metadata, "train": json.dumps(train)}))
    _assert_same(other.state(), trainer.state())


def test_a_step_that_is_not_finite_changes_nothing_and_twenty_end_the_run(tiles: Tiles) -> None:
    run = config(max_skips=3)
    trainer = Trainer(run, CPU)
    trainer.initialise(tiles)
    trainer.step(tiles)
    with torch.no_grad():
        trainer.network.g_a0[0].actnorm.logs[0, 0] = float("nan")  # type: ignore[union-attr,index]
    average = {name: value.clone() for name, value in trainer.average.items()}
    before = trainer.network.gain.detach().clone()
    assert trainer.step(tiles).skipped
    assert trainer.step(tiles).skipped
    assert torch.equal(trainer.network.gain, before)
    assert all(torch.equal(trainer.average[name], value) for name, value in average.items())
    with pytest.raises(TrainingFailed, match="3 steps in a row"):
        trainer.step(tiles)
    assert trainer.progress.num_skipped == 3


def test_reduced_precision_touches_couplings_and_context_only(tiles: Tiles) -> None:
    trainer = Trainer(config(precision="bf16"), CPU)
    trainer.initialise(tiles)
    exact = Trainer(config(), CPU)
    exact.initialise(tiles)
    x = tiles.crops(1, 64, 0.0, torch.Generator())
    kinds: set[tuple[str, torch.dtype]] = set()
    for name, module in trainer.network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, out, name=name: kinds.add((name.split(".")[0], out.dtype)))
    trainer.network.eval(), exact.network.eval()
    reduced, plain = trainer.network(x, 5.0), exact.network(x, 5.0)
    assert float(reduced[1].detach().sum()) == pytest.approx(float(plain[1].detach().sum()), rel=0.02)
    flow = {"g_a0", "g_a1", "g_a2", "g_a3"}
    assert {part for part, kind in kinds if kind == torch.bfloat16} == flow | {"cc_transforms", "sc_transforms", "lrp_transforms"}
    assert {part for part, kind in kinds if kind == torch.float32} == {"entropy_parameters", "post_net"}


def test_validation_leaves_the_run_as_it_was(tiles: Tiles) -> None:
    trainer = Trainer(config(), CPU)
    trainer.initialise(tiles)
    _trained(trainer, tiles, 2)
    before = trainer.state()
    points = trainer.validate((tiles.crops(2, 64, 0.0, torch.Generator()) * 255).round().to(torch.uint8))
    _assert_same(trainer.state(), before)
    assert [point.q for point in points] == [1, 4, 7, 10]
    assert all(a.bpp < b.bpp and a.psnr_db < b.psnr_db for a, b in pairwise(points))


def test_soap_is_that_of_the_reference_library() -> None:
    reference_soap = pytest.importorskip("pytorch_optimizer").SOAP
    generator = torch.Generator().manual_seed(3)
    shapes = [(8, 6, 3, 3), (12, 5, 3, 3), (8, 6, 3, 3), (6, 8, 3, 3)]
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    targets = [torch.randn(shape, generator=generator) for shape in shapes]
    mine = Soap(ours, 1e-2, frequency=10)
    reference = reference_soap(theirs, lr=1e-2, betas=(0.95, 0.95), weight_decay=0.0, precondition_frequency=10, max_precondition_dim=1000)
    for step in range(35):
        noise = [0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(100 * step + i)) for i, shape in enumerate(shapes)]
        for parameters in (ours, theirs):
            for parameter, target, some in zip(parameters, targets, noise, strict=True):
                parameter.grad = ((parameter - target) * torch.linspace(0.1, 3, parameter.numel()).reshape(parameter.shape) + some).detach()
        mine.step()
        reference.step()
        if step == 20:  # a continuation in between changes nothing
            names = {parameter: str(i) for i, parameter in enumerate(ours)}
            again = Soap(ours, 1e-2, frequency=10)
            again.restore(mine.state(names), names)
            mine = again
    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(ours, theirs, strict=True))


def test_an_inverse_that_follows_its_matrix() -> None:
    network = Msinn(TINY)
    keep_inverses(network)
    unit = next(module for module in network.modules() if isinstance(module, InvertibleUnit))
    assert unit.inverter is not None
    matrix = unit._matrix().detach().clone().requires_grad_()
    for _ in range(5):
        with torch.no_grad():
            matrix += 1e-3 * torch.randn(matrix.shape, generator=torch.Generator().manual_seed(1))
        followed = unit.inverter(matrix)
        assert torch.allclose(followed @ matrix, torch.eye(len(matrix)), atol=1e-5)
    weights = torch.arange(matrix.numel(), dtype=torch.float32).reshape(matrix.shape)
    (ours,) = torch.autograd.grad((followed * weights).sum(), matrix)
    (theirs,) = torch.autograd.grad((torch.linalg.inv(matrix) * weights).sum(), matrix)
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-2)
