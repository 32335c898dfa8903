from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from msinn_core.checkpoint import import_official, infer_config, load_parameters
from msinn_core.config import MsinnConfig, preset
from msinn_core.errors import CheckpointError, ConfigError
from msinn_core.float.layers import pack, squeeze, unpack, unsqueeze
from msinn_core.float.likelihood import gaussian_bits
from msinn_core.float.model import Msinn

TINY = dataclasses.replace(
    preset("msinn-lite"),
    name="tiny",
    depths=(1, 1, 2, 1),
    hidden=(4, 4, 8, 8),
    context_widths=(8, 8, 8, 8, 8),
    cc_layers=2,
    sc_layers=2,
    lrp_layers=2,
)


def randomised(config: MsinnConfig, seed: int = 0) -> Msinn:
    """No coupling at zero, or invertibility would be tested on the identity."""
    torch.manual_seed(seed)
    net = Msinn(config)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if ".block.1." in name or "actnorm" in name:
                p.normal_(0, 0.1)
    return net


def test_squeeze_order_and_inverse() -> None:
    x = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    y = squeeze(x)
    for i in range(2):
        for j in range(2):
            assert torch.equal(y[:, (2 * i + j) * 3 : (2 * i + j + 1) * 3], x[:, :, i::2, j::2])
    assert torch.equal(unsqueeze(y), x)


@pytest.mark.parametrize("height", [2, 4, 5])
@pytest.mark.parametrize("parity", [0, 1])
def test_pack_takes_one_checkerboard_half_in_order(height: int, parity: int) -> None:
    x = torch.arange(height * 6, dtype=torch.float32).reshape(1, 1, height, 6)
    half = pack(x, parity)
    rows, columns = np.indices((height, 6))
    for row in range(height):
        assert half[0, 0, row].tolist() == x[0, 0, row][((rows + columns) % 2 == parity)[row]].tolist()
    assert torch.equal(unpack(half, parity, pack(x, 1 - parity)), x)
    assert torch.equal(unpack(half, parity), x * torch.from_numpy((rows + columns) % 2 == parity))


@pytest.mark.parametrize("permutation", ["invconv", "shuffle", "reverse", "cross"])
@pytest.mark.parametrize("coupling", ["affine", "additive"])
@pytest.mark.parametrize("actnorm", [True, False])
@pytest.mark.parametrize("folded", [True, False])
def test_every_variant_is_invertible(permutation: str, coupling: str, actnorm: bool, folded: bool) -> None:
    net = randomised(dataclasses.replace(TINY, permutation=permutation, coupling=coupling, actnorm=actnorm))
    x = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        plain = net.analysis(x)
        if folded:
            net.fold()
            for a, b in zip(plain, net.analysis(x), strict=True):
                assert torch.allclose(a, b, atol=1e-5)
        assert torch.allclose(net.synthesis(net.analysis(x)), x, atol=1e-4)
    assert not torch.allclose(plain[-1], squeeze(x)[:, :6], atol=1e-3)


@pytest.mark.parametrize("post_filter", ["paper", "lite", "none"])
@pytest.mark.parametrize("lrp", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "leaky_relu_0.01"])
def test_every_option_runs_and_is_inferred_from_its_names(post_filter: str, lrp: bool, activation: str) -> None:
    config = dataclasses.replace(TINY, post_filter=post_filter, lrp=lrp, context_activation=activation, anchor_num=8, lambdas=TINY.lambdas[:8])
    net = randomised(config)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    inferred = infer_config(state)
    expected = dataclasses.replace(config, name="imported", context_activation="gelu", lrp_layers=2 if lrp else 5)
    assert inferred == expected
    x_hat, bits = net.fold()(torch.rand(2, 3, 32, 32), torch.tensor([0.0, 7.0]))
    assert x_hat.shape == (2, 3, 32, 32)
    assert bits.shape == (2, 5)
    assert bool((bits > 0).all())


def test_gains_reach_both_ends_and_interpolate_geometrically() -> None:
    net = randomised(TINY)
    with torch.no_grad():
        net.gain.uniform_(0.5, 50)
        for q in (0, 3, 11):
            assert torch.allclose(net.gains(float(q)).gain[0], net.gain[q], rtol=1e-5)
        middle = net.gains(4.25).gain[0]
        assert torch.allclose(middle, net.gain[4] ** 0.75 * net.gain[5] ** 0.25, rtol=1e-5)
    for bad in (-0.01, 11.01, float("nan")):
        with pytest.raises(ConfigError, match="takes 0 to 11"):
            net.gains(bad)


def test_training_mode_has_gradients_everywhere() -> None:
    net = randomised(TINY).train()
    x_hat, bits = net(torch.rand(2, 3, 64, 64), torch.tensor([1.0, 9.5]))
    (bits.sum() / 4096 + (x_hat**2).mean()).backward()
    # q = 1 and 9.5 touch anchors 1, 2, 9 and 10 only; everything else must move.
    still = [name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert still == []


def test_likelihood_has_a_gradient_twelve_sigma_out() -> None:
    symbols = torch.tensor([0.0, 3.0, 12.0], requires_grad=True)
    bits = gaussian_bits(symbols, torch.ones(3))
    assert bits[0].item() == pytest.approx(-np.log2(0.3829249), rel=1e-5)
    bits.sum().backward()
    assert symbols.grad is not None
    assert symbols.grad[1].item() > 0
    assert bits[2].item() == pytest.approx(-np.log2(1e-9), rel=1e-4)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 32"):
        randomised(TINY)(torch.rand(1, 3, 48, 32), 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"permutation": "magic"}, "permutation"),
        ({"depths": (1, 2)}, "depths"),
        ({"anchor_num": 8}, "lambdas"),
        ({"cc_layers": 1}, "cc_layers"),
        ({"hidden": (0, 1, 1, 1)}, "hidden"),
    ],
)
def test_bad_configurations_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **change)


def test_configuration_json_round_trip_and_unknown_keys() -> None:
    assert MsinnConfig.from_json(TINY.to_json()) == TINY
    with pytest.raises(ConfigError, match="unknown configuration keys: colour"):
        MsinnConfig.from_mapping({**dataclasses.asdict(TINY), "colour": 1})
    with pytest.raises(ConfigError, match="not JSON"):
        MsinnConfig.from_json("{")


def test_import_refuses_what_is_not_msinn_and_what_is_damaged() -> None:
    with pytest.raises(CheckpointError, match="missing"):
        import_official({"conv.weight": torch.zeros(3, 3)})
    state = randomised(TINY).state_dict()
    del state["cc_transforms.1.2.weight"]
    with pytest.raises(CheckpointError, match=r"cc_transforms\.1\.2\.weight"):
        load_parameters(Msinn(TINY), state)
    state = randomised(TINY).state_dict()
    state["initial_scale"] = torch.full_like(state["initial_scale"], float("inf"))
    with pytest.raises(CheckpointError, match="not finite"):
        load_parameters(Msinn(TINY), state)
    state = randomised(TINY).state_dict() | {"extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="unknown"):
        load_parameters(Msinn(TINY), state)


def test_presets_have_the_papers_and_the_lite_size() -> None:
    sizes = {name: sum(p.numel() for p in Msinn(preset(name)).parameters()) for name in ("msinn-base", "msinn-lite")}
    assert sizes["msinn-base"] == pytest.approx(12.34e6, rel=0.01)
    assert sizes["msinn-lite"] == pytest.approx(2.77e6, rel=0.01)
    with pytest.raises(ConfigError, match="no preset"):
        preset("msinn-huge")
