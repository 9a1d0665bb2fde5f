"""Models by name: parameter counts by hand, weights as a function of the seed, every alias on both kinds of image."""

import random
import re
import subprocess
import sys
import urllib.error
from itertools import pairwise
from math import isfinite
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fedpfn
from fedpfn.models import MODELS, build, find_faults
from fedpfn.models.cnn import cnn
from fedpfn.models.layers import NORMS, group_norm
from fedpfn.models.mlp import mlp
from fedpfn.models.resnet import BasicBlock, resnet
from fedpfn.models.vgg import vgg

GREY, COLOUR = (1, 28, 28), (3, 32, 32)
DEFAULTS = {"norm": "none", "hidden": 2, "width": 200, "width_multiplier": 1.0}
OF_IMAGES = [name for name in MODELS if name != "lstm"]  # which takes tokens: see test_tasks


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Counts and shapes


def test_mlp_counts_are_those_of_the_paper() -> None:
    assert count(build("mlp", COLOUR, 10, seed=0, hidden=2, width=200)) == 656_810
    assert count(build("mlp", GREY, 10, seed=0, hidden=5, width=200)) == 319_810


def test_mlp_without_hidden_layers_is_a_linear_classifier() -> None:
    model = build("mlp", (4,), 3, seed=0, hidden=0)
    inputs = torch.randn(5, 4)
    assert count(model) == 4 * 3 + 3
    assert torch.equal(model(inputs), inputs @ model.head.weight.T + model.head.bias)


@given(st.integers(1, 5), st.integers(0, 4), st.integers(1, 9), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_mlp_count_follows_its_formula(features: int, hidden: int, width: int, classes: int) -> None:
    sizes = [features, *[width] * hidden, classes]
    expected = sum((inside + 1) * outside for inside, outside in pairwise(sizes))
    assert count(mlp((features,), classes, hidden=hidden, width=width)) == expected


def test_cnn_counts_are_those_of_the_paper() -> None:
    assert count(build("cnn", COLOUR, 10, seed=0)) == 122_570
    convolutions = (1 * 9 + 1) * 32 + (32 * 9 + 1) * 64 + (64 * 9 + 1) * 64
    assert count(build("cnn", GREY, 10, seed=0)) == convolutions + (64 * 3 * 3 + 1) * 64 + 65 * 10


@given(st.integers(18, 40), st.integers(18, 40), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_cnn_takes_every_image_that_fits(height: int, width: int, channels: int) -> None:
    shape = (channels, height, width)
    assert cnn(shape, 5, width_multiplier=0.125)(torch.zeros(2, *shape)).shape == (2, 5)


def resnet_count(blocks: int, base: int, *, affine: int) -> int:
    """Weights by formula; ``affine`` numbers a channel for each norm layer (2 with one, else 0)."""
    total = 3 * base * 9 + affine * base
    before = base
    for stage in range(3):
        width = base * 2**stage
        total += before * width * 9 + (2 * blocks - 1) * width * width * 9 + affine * 2 * blocks * width
        if before != width:
            total += before * width + affine * width
        before = width
    return total + before * 10 + 10


@pytest.mark.parametrize(("norm", "affine"), [("none", 0), ("batch", 2), ("group", 2)])
def test_resnet_counts_follow_their_formula(norm: str, affine: int) -> None:
    assert count(build("resnet20", COLOUR, 10, seed=0, norm=norm)) == resnet_count(3, 16, affine=affine)


def test_deeper_and_wider_resnets_follow_the_formula() -> None:
    assert count(build("resnet32", COLOUR, 10, seed=0)) == resnet_count(5, 16, affine=0)
    assert count(build("resnet44", COLOUR, 10, seed=0)) == resnet_count(7, 16, affine=0)
    assert count(build("resnet56", COLOUR, 10, seed=0)) == resnet_count(9, 16, affine=0)
    assert count(build("wrn56", COLOUR, 10, seed=0)) == resnet_count(9, 32, affine=0)
    wide = build("resnet20", COLOUR, 10, seed=0, width_multiplier=2)
    assert count(wide) == resnet_count(3, 32, affine=0)


def test_vgg11_count_by_hand() -> None:
    channels = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    weights = sum(9 * inside * outside for inside, outside in pairwise(channels))
    head = 512 * 10 + 10
    assert count(vgg(11, COLOUR, 10)) == weights + sum(channels[1:]) + head
    assert count(vgg(11, COLOUR, 10, norm="batch")) == weights + 2 * sum(channels[1:]) + head


@pytest.mark.parametrize(
    ("make", "smallest"),
    [(cnn, 18), (lambda shape, classes: vgg(11, shape, classes, width_multiplier=0.05), 16)],
)
def test_images_too_small_are_refused_with_the_smallest_side(make, smallest: int) -> None:
    assert make((1, smallest, smallest), 10)(torch.zeros(2, 1, smallest, smallest)).shape == (2, 10)
    with pytest.raises(ValueError, match=f"smallest side is {smallest} or more; got 32x{smallest - 1}"):
        make((1, 32, smallest - 1), 10)


@pytest.mark.parametrize("name", [name for name in OF_IMAGES if name != "mlp"])
def test_networks_for_images_refuse_feature_vectors(name: str) -> None:
    with pytest.raises(ValueError, match="takes images"):
        build(name, (10,), 2, seed=0)


def test_depths_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match=r"6n \+ 2"):
        resnet(21, COLOUR, 10)
    with pytest.raises(ValueError, match="11 or 16"):
        vgg(13, COLOUR, 10)


# Every alias


@pytest.mark.parametrize("shape", [GREY, COLOUR])
@pytest.mark.parametrize("name", OF_IMAGES)
def test_every_alias_runs_forward_and_backward(name: str, shape: tuple[int, ...]) -> None:
    model = build(name, shape, 10, seed=0)
    logits = model(torch.randn(2, *shape))
    logits.logsumexp(dim=1).sum().backward()
    assert logits.shape == (2, 10)
    assert 1e-3 < float(logits.detach().abs().max()) < 30
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("norm", ["group", "layer", "batch"])
@pytest.mark.parametrize("name", ["resnet20", "vgg11"])
def test_norms_are_put_in_where_asked(name: str, norm: str) -> None:
    model = build(name, GREY, 10, seed=0, norm=norm, width_multiplier=0.25)
    assert any(isinstance(module, type(NORMS[norm](8))) for module in model.modules())
    assert model(torch.randn(2, *GREY)).shape == (2, 10)


def test_norm_free_means_without_any_norm_layer() -> None:
    kinds = (nn.BatchNorm2d, nn.GroupNorm)
    assert not any(isinstance(m, kinds) for name in OF_IMAGES for m in build(name, COLOUR, 10, seed=0).modules())


@given(st.integers(1, 600))
def test_groups_divide_the_channels_and_are_never_of_one_channel_alone(channels: int) -> None:
    groups = group_norm(channels).num_groups
    assert channels % groups == 0
    assert groups <= 32
    assert groups == 1 or channels // groups >= 4


def test_deep_norm_free_resnet_keeps_its_signal_and_its_gradient() -> None:
    model = build("resnet56", COLOUR, 10, seed=0)
    logits = model(torch.randn(8, *COLOUR))
    nn.functional.cross_entropy(logits, torch.arange(8)).backward()
    assert 0.05 < float(logits.detach().std()) < 5
    norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
    assert len(norms) == len(list(model.parameters()))
    assert all(isfinite(norm) and 1e-4 < norm < 1e2 for norm in norms)


def blocks(model: nn.Module) -> list[BasicBlock]:
    return [module for module in model.modules() if isinstance(module, BasicBlock)]


def test_damped_branches_cost_no_parameter_and_only_norm_free_nets_have_them() -> None:
    plain, normed = build("resnet20", COLOUR, 10, seed=0), build("resnet20", COLOUR, 10, seed=0, norm="batch")
    pairs = list(zip(blocks(plain), blocks(normed), strict=True))
    assert len(pairs) == 9
    for damped, he in pairs:
        torch.testing.assert_close(damped.conv1.weight, he.conv1.weight / 3)
        torch.testing.assert_close(damped.conv2.weight, he.conv2.weight / 3)


def test_deep_norm_free_resnet_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(32) % 4
    images = torch.randn(32, 1, 8, 8, generator=generator) + torch.randn(4, 1, 8, 8, generator=generator)[labels]
    model = build("resnet56", (1, 8, 8), 4, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(images), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


# Seeds


@pytest.mark.parametrize("name", OF_IMAGES)
def test_initial_weights_are_a_function_of_the_seed(name: str) -> None:
    options = {} if name == "mlp" else {"width_multiplier": 0.25}
    torch.manual_seed(1)
    one = build(name, COLOUR, 10, seed=3, **options)
    torch.manual_seed(2)
    assert same(one, build(name, COLOUR, 10, seed=3, **options))
    assert not same(one, build(name, COLOUR, 10, seed=4, **options))


@pytest.mark.parametrize("name", [*OF_IMAGES, "squeezenet1_1"])
def test_building_moves_no_global_generator_and_no_default(name: str) -> None:
    state = np.random.get_state
    before = torch.get_rng_state(), random.getstate(), state()[1].copy()
    build(name, COLOUR, 10, seed=3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == state()[1]).all()


def test_building_does_not_depend_on_the_default_dtype() -> None:
    expected = build("mlp", (4,), 2, seed=0)
    torch.set_default_dtype(torch.float64)
    try:
        assert same(expected, build("mlp", (4,), 2, seed=0))
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


# torchvision


def test_torchvision_is_not_imported_for_an_alias() -> None:
    code = "import sys; from fedpfn.models import build; build('cnn', (3, 32, 32), 10, seed=0); "
    code += "sys.exit('torchvision' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(fedpfn.__file__).parents[1], check=True)


def test_torchvision_names_are_models() -> None:
    model = build("resnet18", COLOUR, 10, seed=0, norm="batch")
    assert count(model) == count(torchvision.models.resnet18(num_classes=10))
    assert model(torch.randn(2, *COLOUR)).shape == (2, 10)


@pytest.mark.parametrize(("norm", "kind"), [("none", None), ("group", nn.GroupNorm), ("batch", nn.BatchNorm2d)])
def test_norm_says_what_becomes_of_the_batch_norm_of_torchvision(norm: str, kind: type | None) -> None:
    model = build("resnet18", COLOUR, 10, seed=0, norm=norm)
    found = {type(module) for module in model.modules()} & {nn.BatchNorm2d, nn.GroupNorm}
    assert found == (set() if kind is None else {kind})


def test_an_alias_wins_over_torchvision_which_stays_reachable() -> None:
    alias, theirs = build("vgg11", COLOUR, 10, seed=0), build("torchvision.models:vgg11", COLOUR, 10, seed=0)
    assert isinstance(alias, nn.Sequential)
    assert isinstance(theirs, torchvision.models.VGG)
    assert theirs.classifier[-1].out_features == 10


def test_auxiliary_heads_go_and_the_output_in_training_is_one_tensor() -> None:
    model = build("googlenet", (3, 64, 64), 10, seed=0)
    assert model.train()(torch.randn(2, 3, 64, 64)).shape == (2, 10)


def test_pretrained_weights_are_kept_below_a_fresh_norm_free_head(monkeypatch: pytest.MonkeyPatch) -> None:
    published = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda self, *_, **__: published)
    model = build("resnet18", COLOUR, 7, seed=0, pretrained=True)
    assert torch.equal(model.conv1.weight, published["conv1.weight"])
    assert model.fc.weight.shape == (7, 512)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert same(model, build("resnet18", COLOUR, 7, seed=0, pretrained=True))
    assert not same(model, build("resnet18", COLOUR, 7, seed=1, pretrained=True))


def test_pretrained_weights_that_cannot_be_fetched_are_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: object, *_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", offline)
    with pytest.raises(ValueError, match=r"pretrained weights of 'resnet18' cannot be loaded.*no route"):
        build("resnet18", COLOUR, 7, seed=0, pretrained=True)


# Factories of one's own


class Net(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def with_both(input_shape, num_classes):
    return nn.Linear(input_shape[0], num_classes)


def with_kwargs(**kwargs):
    assert sorted(kwargs) == ["input_shape", "num_classes"]
    return nn.Linear(kwargs["input_shape"][0], kwargs["num_classes"])


def with_nothing():
    return nn.Linear(4, 3)


def returns_text():
    return "a model"


def raises():
    raise RuntimeError("out\nof luck")


def asks_for_more(num_classes, depth):
    return nn.Linear(4, num_classes * depth)


def without_parameters():
    return nn.Flatten()


def frozen():
    return nn.Linear(4, 3).requires_grad_(False)


def lazy(num_classes):
    return nn.LazyLinear(num_classes)


ready_made = nn.Linear(4, 3)
not_callable = 3


@pytest.mark.parametrize("factory", ["Net", "with_both", "with_kwargs", "with_nothing"])
def test_factories_get_what_their_signature_takes(factory: str) -> None:
    name = f"{__name__}:{factory}"
    assert find_faults(name, **DEFAULTS) == []
    model = build(name, (4,), 3, seed=0)
    assert model(torch.randn(2, 4)).shape == (2, 3)
    assert same(model, build(name, (4,), 3, seed=0))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("returns_text", "is of type str; expected an nn.Module"),
        ("raises", r"fails when called with \(\): RuntimeError\('out\\nof luck'\)"),
        ("without_parameters", "no trainable parameter"),
        ("frozen", "no trainable parameter"),
        ("lazy", "lazy layers"),
    ],
)
def test_factories_that_make_no_usable_model_are_refused_in_one_line(factory: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build(f"{__name__}:{factory}", (4,), 3, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (f"{__name__}:asks_for_more", "needs depth, which has no default; set model.args.depth"),
        (f"{__name__}:ready_made", "ready-made"),
        (f"{__name__}:not_callable", "is of type int"),
        (f"{__name__}:absent", "has no 'absent'"),
        ("no_such_module:f", "no module named"),
        ("a:b:c", "not an import string"),
    ],
)
def test_references_that_cannot_work_are_found_before_anything_is_built(reference: str, message: str) -> None:
    (fault,) = find_faults(reference, **DEFAULTS)
    assert message in fault
    with pytest.raises(ValueError, match=re.escape(message)):
        build(reference, (4,), 3, seed=0)


# Faults


@pytest.mark.parametrize("name", [*MODELS, "resnet18"])
def test_every_known_name_is_without_fault(name: str) -> None:
    assert find_faults(name, **DEFAULTS) == []


@pytest.mark.parametrize(("typed", "meant"), [("resnet65", "resnet56"), ("resnet1", "resnet18"), ("clp", "mlp")])
def test_an_unknown_name_comes_with_near_ones(typed: str, meant: str) -> None:
    (fault,) = find_faults(typed, **DEFAULTS)
    assert f"unknown model '{typed}'" in fault
    assert meant in fault


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"norm": "instance"}, "none, group, layer, batch"),
        ({"hidden": -1}, "hidden"),
        ({"hidden": True}, "hidden"),
        ({"width": 0}, "width"),
        ({"width_multiplier": 0.0}, "width_multiplier"),
        ({"width_multiplier": float("nan")}, "width_multiplier"),
        ({"norm": "batch"}, "would have no effect"),
        ({"pretrained": True}, "no pretrained weights"),
    ],
)
def test_bad_settings_are_named(options: dict[str, object], word: str) -> None:
    (fault,) = find_faults("mlp", **(DEFAULTS | options))
    assert word in fault


def test_all_faults_come_at_once() -> None:
    assert len(find_faults("mpl", **(DEFAULTS | {"hidden": -1, "width": 0, "norm": "x"}))) == 4
    with pytest.raises(ValueError, match=r"hidden.*input_shape.*num_classes"):
        build("mlp", (0,), 0, seed=0, hidden=-1)


def test_a_width_multiplier_is_refused_where_nothing_can_be_widened() -> None:
    assert "width_multiplier" in find_faults("resnet18", **(DEFAULTS | {"width_multiplier": 2.0}))[0]
    assert build("mlp", (4,), 3, seed=0, hidden=1, width=8, width_multiplier=2).head.in_features == 16
