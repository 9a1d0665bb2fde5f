"""Permutations of hidden units: by hand, specifications against hand-written ones, and what must not be specified."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from fedpfn.lmc.matching import (
    Axis,
    PermutationSpec,
    apply_permutations,
    compose,
    identity_permutations,
    inverse,
    random_permutations,
    spec_for,
)
from fedpfn.models import build
from fedpfn.models.resnet import ResNet
from fedpfn.params import State, float_buffers, read_state, trainable

NORMS = ("none", "batch", "layer")
Module = TypeVar("Module", bound=nn.Module)


def net(seed: int, *layers: nn.Module) -> nn.Sequential:
    """A network in float64 with every number random: norms are not ones and zeros, statistics not those of a start."""
    return randomised(nn.Sequential(*layers), seed)


def randomised(model: Module, seed: int) -> Module:
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    with torch.no_grad():
        for name, tensor in (trainable(model) | float_buffers(model)).items():
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            if tensor.unique().numel() > 1 and tensor.dim() > 1:
                tensor.copy_(noise * tensor.std())
            else:
                # biases, norms and statistics: a start of zeros and ones is moved
                tensor.copy_(0.3 * noise if name.endswith(("bias", "mean")) else 0.5 + noise.abs())
    return model


def same_state(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


BUILT_IN: dict[str, tuple[str, tuple[int, ...], dict[str, object]]] = {
    "mlp": ("mlp", (2, 3), {"hidden": 3, "width": 16}),
    "linear classifier": ("mlp", (6,), {"hidden": 0}),
    "cnn": ("cnn", (1, 22, 18), {"width_multiplier": 0.25}),
    **{f"vgg11 {norm}": ("vgg11", (3, 16, 16), {"norm": norm, "width_multiplier": 1 / 8}) for norm in NORMS},
    **{f"resnet20 {norm}": ("resnet20", (3, 8, 8), {"norm": norm, "width_multiplier": 0.5}) for norm in NORMS},
}


def built_in(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    alias, shape, options = BUILT_IN[name]
    return randomised(build(alias, shape, 4, seed=seed, **options), seed), shape  # type: ignore[arg-type]


# fmt: off
OWN: dict[str, tuple[tuple[int, ...], Callable[[], Sequence[nn.Module]]]] = {
    "norms of features": ((4,), lambda: [
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.GELU(), nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(),
        nn.Linear(6, 5), nn.GroupNorm(1, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2),
    ]),
    "norm after the activation": ((4,), lambda: [
        nn.Linear(4, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 2), nn.LogSoftmax(1),
    ]),
    "norms of maps": ((2, 6, 5), lambda: [
        nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3), nn.LayerNorm((4, 4, 3)), nn.SiLU(), nn.Conv2d(4, 3, 3),
        nn.LayerNorm((2, 1)), nn.Sigmoid(), nn.Flatten(), nn.Linear(6, 3),
    ]),
    "norms of flattened maps": ((1, 4, 6), lambda: [
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(24), nn.LayerNorm(24), nn.ELU(),
        nn.GroupNorm(1, 24), nn.Linear(24, 4), nn.LeakyReLU(), nn.Linear(4, 2),
    ]),
    "adaptive pool to 2x3": ((2, 9, 9), lambda: [
        nn.AvgPool2d(2), nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((2, 3)),
        nn.Flatten(), nn.Linear(24, 3),
    ]),
    "convolutions only": ((2, 8, 8), lambda: [
        nn.Conv2d(2, 4, 3, stride=2), nn.PReLU(4), nn.ZeroPad2d(1), nn.Conv2d(4, 5, 3), nn.PReLU(),
        nn.Conv2d(5, 3, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
    ]),
    "nested": ((2, 5, 5), lambda: [
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sequential(nn.Mish(), nn.MaxPool2d(2))), nn.Flatten(),
        nn.Sequential(nn.Linear(3, 5), nn.Softplus()), nn.Identity(), nn.Linear(5, 2),
    ]),
    "groups at the fixed ends": ((4, 3, 3), lambda: [
        nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 6), nn.GroupNorm(2, 6),
    ]),
}
# fmt: on
ALL = [*BUILT_IN, *OWN]


def member(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    if name in BUILT_IN:
        return built_in(name, seed)
    shape, make = OWN[name]
    return net(seed, *make()), shape


def inputs_of(shape: tuple[int, ...], count: int = 5) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


# by hand


def test_a_permutation_moves_rows_bias_and_the_next_layers_columns() -> None:
    spec = PermutationSpec({"w": (Axis("p"), None), "b": (Axis("p"),), "v": (None, Axis("p")), "c": (None,)}, {"p": 3})
    state = {
        "w": torch.tensor([[1.0], [2.0], [3.0]]),
        "b": torch.tensor([10.0, 20.0, 30.0]),
        "v": torch.tensor([[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]),
        "c": torch.tensor([0.0, 1.0]),
    }
    moved = apply_permutations(spec, {"p": torch.tensor([2, 0, 1])}, state)
    assert moved["w"].tolist() == [[3.0], [1.0], [2.0]]
    assert moved["b"].tolist() == [30.0, 10.0, 20.0]
    assert moved["v"].tolist() == [[6.0, 4.0, 5.0], [9.0, 7.0, 8.0]]
    assert moved["c"].tolist() == [0.0, 1.0] and moved["c"].data_ptr() != state["c"].data_ptr()


def test_blocks_move_as_wholes() -> None:
    spec = PermutationSpec({"v": (None, Axis("p", 2))}, {"p": 3})
    moved = apply_permutations(spec, {"p": torch.tensor([2, 0, 1])}, {"v": torch.arange(6.0).view(1, 6)})
    assert moved["v"].tolist() == [[4.0, 5.0, 0.0, 1.0, 2.0, 3.0]]


def test_composition_by_hand() -> None:
    outer, inner = {"p": torch.tensor([1, 2, 0])}, {"p": torch.tensor([1, 0, 2])}
    # letters abc: the inner makes bac, the outer takes its places 1, 2, 0
    assert ["abc"[place] for place in compose(outer, inner)["p"].tolist()] == ["a", "c", "b"]


# laws


@given(st.integers(0, 10**6))
def test_permutations_form_a_group_that_acts_on_states(seed: int) -> None:
    model, _ = member("nested")
    spec, state = spec_for(model), read_state(model)
    one, other = random_permutations(spec, seed=seed), random_permutations(spec, seed=seed + 1)
    twice = apply_permutations(spec, one, apply_permutations(spec, other, state))
    assert same_state(apply_permutations(spec, compose(one, other), state), twice)
    assert same_state(compose(one, inverse(one)), identity_permutations(spec))
    assert same_state(compose(inverse(one), one), identity_permutations(spec))
    assert same_state(apply_permutations(spec, identity_permutations(spec), state), state)


def test_random_permutations_are_a_function_of_the_seed_and_differ_between_layers() -> None:
    spec = PermutationSpec({}, {"p": 30, "q": 30})
    drawn = random_permutations(spec, seed=1)
    assert same_state(drawn, random_permutations(spec, seed=1))
    assert not same_state(drawn, random_permutations(spec, seed=2))
    assert not torch.equal(drawn["p"], drawn["q"])


@pytest.mark.parametrize("name", ALL)
def test_a_permuted_network_computes_the_same_function(name: str) -> None:
    model, shape = member(name)
    spec, state, inputs = spec_for(model), read_state(model), inputs_of(shape)
    moved = apply_permutations(spec, random_permutations(spec, seed=3), state)
    with torch.no_grad():
        expected, got = model(inputs), functional_call(model, moved, (inputs,))
    assert expected.std(dim=0).min() > 1e-4  # the output hangs on the input: there is something to compare
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    for permutation in spec.sizes:
        assert any(
            not torch.equal(moved[tensor], state[tensor])
            for tensor, axes in spec.axes.items()
            if any(axis is not None and axis.permutation == permutation for axis in axes)
        )


@pytest.mark.parametrize("name", ["mlp", "cnn", "vgg11 batch", "resnet20 layer", "norms of flattened maps"])
def test_every_axis_of_a_specification_is_needed(name: str) -> None:
    # the law above can fail: with any one axis held fixed another function comes out
    model, shape = member(name)
    spec, state, inputs = spec_for(model), read_state(model), inputs_of(shape)
    moved = apply_permutations(spec, random_permutations(spec, seed=3), state)
    with torch.no_grad():
        expected = model(inputs)
        for tensor in state:
            if not torch.equal(moved[tensor], state[tensor]):
                got = functional_call(model, moved | {tensor: state[tensor]}, (inputs,))
                assert not torch.allclose(got, expected, rtol=0, atol=1e-9), tensor


@pytest.mark.parametrize("name", ALL)
def test_the_features_named_carry_the_units_on_axis_1(name: str) -> None:
    model, shape = member(name)
    spec, state, inputs = spec_for(model), read_state(model), inputs_of(shape)
    permutations = random_permutations(spec, seed=3)
    assert spec.features.keys() == spec.sizes.keys()

    def features() -> State:
        seen: State = {}
        hooks = [
            model.get_submodule(module).register_forward_hook(
                lambda _, __, output, own=permutation: seen.update({own: output.clone()})
            )
            for permutation, module in spec.features.items()
        ]
        model(inputs)
        for hook in hooks:
            hook.remove()
        return seen

    with torch.no_grad():
        before = features()
        for tensor, value in (trainable(model) | float_buffers(model)).items():
            value.copy_(apply_permutations(spec, permutations, state)[tensor])
        after = features()
    for permutation, index in permutations.items():
        torch.testing.assert_close(after[permutation], before[permutation][:, index], rtol=0, atol=1e-10)


# specifications written by hand


def mlp_by_hand(hidden: int, width: int) -> PermutationSpec:
    axes: dict[str, tuple[Axis | None, ...]] = {}
    before = None
    for index in range(1, hidden + 1):
        own = Axis(f"linear{index}")
        axes |= {f"linear{index}.weight": (own, before), f"linear{index}.bias": (own,)}
        before = own
    axes |= {"head.weight": (None, before), "head.bias": (None,)}
    names = {f"linear{index}": f"relu{index}" for index in range(1, hidden + 1)}
    return PermutationSpec(axes, dict.fromkeys(names, width), names)


def cnn_by_hand(narrow: int, wide: int, block: int) -> PermutationSpec:
    c1, c2, c3, li = Axis("conv1"), Axis("conv2"), Axis("conv3"), Axis("linear")
    return PermutationSpec(
        {
            "conv1.weight": (c1, None, None, None),
            "conv1.bias": (c1,),
            "conv2.weight": (c2, c1, None, None),
            "conv2.bias": (c2,),
            "conv3.weight": (c3, c2, None, None),
            "conv3.bias": (c3,),
            "linear.weight": (li, Axis("conv3", block)),
            "linear.bias": (li,),
            "head.weight": (None, li),
            "head.bias": (None,),
        },
        {"conv1": narrow, "conv2": wide, "conv3": wide, "linear": wide},
        {"conv1": "relu1", "conv2": "relu2", "conv3": "relu3", "linear": "relu4"},
    )


def vgg11_by_hand(norm: str, widths: Sequence[int]) -> PermutationSpec:
    axes: dict[str, tuple[Axis | None, ...]] = {}
    statistics: list[str] = []
    before = None
    for index in range(1, 9):
        own = Axis(f"conv{index}")
        axes[f"conv{index}.weight"] = (own, before, None, None)
        if norm == "none":
            axes[f"conv{index}.bias"] = (own,)
        else:
            axes |= {f"norm{index}.weight": (own,), f"norm{index}.bias": (own,)}
        if norm == "batch":
            statistics += [f"norm{index}.running_mean", f"norm{index}.running_var"]
            axes |= dict.fromkeys(statistics[-2:], (own,))
        before = own
    axes |= {"head.weight": (None, before), "head.bias": (None,)}
    sizes = {f"conv{index}": width for index, width in enumerate(widths, start=1)}
    features = {f"conv{index}": f"relu{index}" for index in range(1, 9)}
    return PermutationSpec(axes, sizes, features, frozenset(statistics))


def test_the_derived_specifications_are_those_written_by_hand() -> None:
    assert spec_for(built_in("mlp")[0]) == mlp_by_hand(3, 16)
    assert spec_for(built_in("linear classifier")[0]) == mlp_by_hand(0, 0)
    # 22x18: the last map is 2x1
    assert spec_for(built_in("cnn")[0]) == cnn_by_hand(8, 16, 2)
    for norm in NORMS:
        assert spec_for(built_in(f"vgg11 {norm}")[0]) == vgg11_by_hand(norm, [8, 16, 32, 32, 64, 64, 64, 64])


def test_a_residual_network_has_a_permutation_a_stream_and_one_a_block() -> None:
    spec = spec_for(built_in("resnet20 batch")[0])
    inner = {f"stages.{stage}.{block}.conv1": 8 * 2**stage for stage in range(3) for block in range(3)}
    assert spec.sizes == {"stages.0": 8, "stages.1": 16, "stages.2": 32} | inner
    assert spec.features["stages.1"] == "stages.1" and spec.features["stages.1.0.conv1"] == "stages.1.0.relu1"
    assert spec.axes["stages.1.0.shortcut.0.weight"] == (Axis("stages.1"), Axis("stages.0"), None, None)
    assert spec.axes["stages.1.0.conv2.weight"] == (Axis("stages.1"), Axis("stages.1.0.conv1"), None, None)
    assert spec.axes["stages.1.2.norm2.running_var"] == (Axis("stages.1"),)
    assert "stages.1.2.norm2.running_var" in spec.statistics and "stages.1.2.norm2.bias" not in spec.statistics


# what cannot be specified


class Twisted(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(-1)


class Doubled(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.cumsum(1)


class Wired(ResNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(1))


def frozen() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def used_twice() -> nn.Sequential:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


def sequence(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(OrderedDict({f"layer{index}": layer for index, layer in enumerate(layers)}))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: nn.LSTM(3, 4), "the model .* LSTM is neither"),
        (lambda: Twisted(nn.Linear(3, 2)), "the model .* Twisted is neither"),
        (lambda: Wired(3, 2, blocks=1, widths=(4, 8, 16), norm="none"), "the model .* Wired is neither"),
        (lambda: build("vgg11", (3, 16, 16), 2, seed=0, norm="group", width_multiplier=1 / 8), "norm1 .* 2 groups"),
        (lambda: build("resnet20", (3, 8, 8), 2, seed=0, norm="group", width_multiplier=0.5), "norm .* 2 groups"),
        (sequence(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2)), "layer2 .* 2 groups"),
        (sequence(nn.Linear(3, 4), Doubled(), nn.Linear(4, 2)), "layer1 .* Doubled"),
        (sequence(nn.Linear(3, 4), nn.GLU(), nn.Linear(2, 2)), "layer1 .* GLU"),
        (sequence(nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(2), nn.Conv2d(4, 2, 3)), "layer1 .* LocalResponseNorm"),
        (sequence(nn.Linear(3, 4), nn.Sequential(Twisted(nn.ReLU())), nn.Linear(4, 2)), "layer1.0 .* Twisted"),
        (sequence(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)), "layer1 .* act on maps"),
        (sequence(nn.Linear(3, 4), nn.Conv2d(4, 2, 3)), "layer1 .* act on features"),
        (sequence(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Linear(4, 2)), r"layer1 .* Flatten\(1, -1\)"),
        (sequence(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(6, 2)), "layer2 .* 6 flattened"),
        (sequence(nn.Linear(3, 4), nn.Flatten(), nn.Linear(8, 2)), "layer2 .* 8 features"),
        (sequence(nn.Linear(3, 4), nn.LayerNorm((2, 4)), nn.Linear(4, 2)), "layer1 .* LayerNorm"),
        (tied, "2.weight .* 0.weight"),
        (used_twice, "2.weight .* 0.weight"),
        (frozen, "0.bias .* in no state"),
    ],
)
def test_a_model_without_a_specification_is_refused_in_a_line_that_names_the_module(
    make: Callable[[], nn.Module], line: str
) -> None:
    with pytest.raises(ValueError, match=f"^{line}") as error:
        spec_for(make())
    assert "\n" not in str(error.value)


def test_an_activation_in_two_places_costs_only_its_features() -> None:
    shared = nn.ReLU()
    spec = spec_for(nn.Sequential(nn.Linear(3, 4), shared, nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), shared))
    assert spec.sizes == {"0": 4, "2": 5} and spec.features == {"2": "3"}


# wrong states, permutations and specifications


def test_what_does_not_fit_is_named() -> None:
    model, _ = member("mlp")
    spec, state = spec_for(model), read_state(model)
    drawn = random_permutations(spec, seed=0)
    without = {name: tensor for name, tensor in state.items() if name != "head.bias"}
    with pytest.raises(ValueError, match=r"missing \['head.bias'\], not in it \[\]"):
        apply_permutations(spec, drawn, without)
    with pytest.raises(ValueError, match=r"missing \[\], not in it \['x'\]"):
        apply_permutations(spec, drawn, state | {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"linear2.weight: axis 1 holds 16 units in blocks of 1, got shape \(16, 15\)"):
        apply_permutations(spec, drawn, state | {"linear2.weight": torch.zeros(16, 15)})
    with pytest.raises(ValueError, match=r"linear1.bias: expected 1 axes, got shape \(16, 1\)"):
        apply_permutations(spec, drawn, state | {"linear1.bias": torch.zeros(16, 1)})
    with pytest.raises(ValueError, match=r"expected the permutations \['linear1', 'linear2', 'linear3'\], got \[\]"):
        apply_permutations(spec, {}, state)
    for wrong in (torch.zeros(16, dtype=torch.int64), torch.arange(15), torch.arange(16.0)):
        with pytest.raises(ValueError, match="linear1: expected each of 0 to 15 once"):
            apply_permutations(spec, drawn | {"linear1": wrong}, state)
    with pytest.raises(ValueError, match="same names"):
        compose(drawn, {})


def test_a_specification_checks_itself() -> None:
    with pytest.raises(ValueError, match="w: no size is given for permutation 'p'"):
        PermutationSpec({"w": (Axis("p"),)}, {})
    with pytest.raises(ValueError, match="w: a permutation acts on one axis of a tensor, here 'p' on two"):
        PermutationSpec({"w": (Axis("p"), Axis("p"))}, {"p": 2})
    spec = PermutationSpec({"w": (Axis("p"),)}, {"p": 2})
    with pytest.raises(ValueError, match="'m' is no tensor or permutation"):
        replace(spec, statistics=frozenset({"m"}))
    with pytest.raises(ValueError, match="'q' is no tensor or permutation"):
        replace(spec, features={"q": "relu"})
