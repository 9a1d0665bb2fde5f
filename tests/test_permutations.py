"""Permutations of hidden units: by hand, specifications against hand-written ones, and what must not be specified."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from toys import same_state

from fedpfn.lmc.matching import (
    Axis,
    Features,
    Joined,
    PermutationSpec,
    apply_permutations,
    compose,
    identity_permutations,
    inverse,
    random_permutations,
    spec_for,
)
from fedpfn.lmc.matching.activations import _recorded
from fedpfn.lmc.matching.permutations import axes_in
from fedpfn.models import build
from fedpfn.models.vit import vit
from fedpfn.params import State, float_buffers, read_state, trainable, write_state

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


class Functional(nn.Module):
    """Activations, pooling and flattening as functions, a module that serves twice, a branch on the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv3 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3)
        self.inner, self.conv2 = nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.linear, self.head = nn.Linear(12, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.conv1(x)))
        x = x + functional.relu(self.conv2(functional.elu(self.inner(x))))
        x = functional.max_pool2d(functional.gelu(self.conv3(x)), 2)
        if x.shape[0] > 100:
            return x
        return self.head(functional.relu(self.linear(torch.flatten(x, 1))))  # type: ignore[no-any-return]


class Concatenated(nn.Module):
    """Two branches side by side, then in one sum with a third, as in DenseNets; a gated layer in one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(3, 9)
        self.gated, self.norm, self.head = nn.Linear(9, 12), nn.LayerNorm(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.cat([self.left(x).relu(), self.right(x).tanh()], dim=1)
        gate, value = self.gated(branches + self.both(x)).chunk(2, dim=1)
        return self.head(self.norm(gate.sigmoid() * value))  # type: ignore[no-any-return]


class Padded(nn.Module):
    """A shortcut padded with zero channels, as in the first ResNets, and depthwise convolutions with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.wide = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 8, 1)
        self.depthwise, self.squeeze, self.gate = (
            nn.Conv2d(8, 16, 3, groups=8),
            nn.Conv2d(16, 5, 1),
            nn.Conv2d(5, 16, 1),
        )
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu_()
        x = (self.wide(self.inner(x).relu()) + functional.pad(x, (0, 0, 0, 0, 2, 2))).relu()
        x = self.depthwise(x)
        x = x * self.gate(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Rows into maps and back: a linear layer whose rows are whole maps, transposed convolutions, tokens in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.up = nn.Linear(3, 4 * 2 * 2), nn.ConvTranspose2d(4, 5, 2, stride=2)
        self.tokens, self.head = nn.Linear(5, 6), nn.Linear(16 * 6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.linear(x).relu().view(-1, 4, 2, 2)).relu()
        return self.head(self.tokens(x.flatten(2).transpose(1, 2)).relu().flatten(1))  # type: ignore[no-any-return]


class Moved(nn.Module):
    """A dimension moves past two others of one size, which are then flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.Linear(4, 9), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rows(x).relu().unflatten(2, (3, 3)).movedim(1, 3)
        return self.head(x.flatten(1, 2).transpose(1, 2)).mean(1)  # type: ignore[no-any-return]


class PackedHeads(nn.Module):
    """``nn.TransformerEncoderLayer`` over pixels, its activations functions and its projections in one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(dim=1))  # type: ignore[no-any-return]


MODULES: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module], int]] = {
    "functional": ((2, 6, 6), Functional, 4),
    "concatenated": ((3,), Concatenated, 3),
    "padded shortcut": ((2, 6, 6), Padded, 3),
    "decoder": ((3,), Decoder, 3),
    "moved dimension": ((5, 4), Moved, 1),
    "packed heads": ((4, 2), PackedHeads, 2),
    "vit": ((1, 8, 8), lambda: vit((1, 8, 8), 4, depth=2), 5),
    "resnet18": ((3, 32, 32), lambda: torchvision.models.resnet18(num_classes=3), 12),
    "resnet50": ((3, 32, 32), lambda: torchvision.models.resnet50(num_classes=3, width_per_group=8), 4 + 2 * 16 + 1),
    "vgg11_bn": ((3, 32, 32), lambda: narrow_vgg(), 10),
    "mobilenet_v2": ((3, 32, 32), lambda: torchvision.models.mobilenet_v2(num_classes=3, width_mult=0.25), 23),
}


def narrow_vgg() -> nn.Module:
    """torchvision's VGG-11 with BatchNorm, an eighth as wide."""
    widths: list[str | int] = [8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"]
    model = torchvision.models.vgg.VGG(torchvision.models.vgg.make_layers(widths, batch_norm=True), num_classes=1)
    hidden = [nn.Linear(64 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 32), nn.ReLU(True), nn.Dropout()]
    model.classifier = nn.Sequential(*hidden, nn.Linear(32, 3))
    return model


ALL = [*BUILT_IN, *OWN, *MODULES]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a generator of one's own: how wide a start is drawn stays in the weights, and dead units with it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def member(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    if name in BUILT_IN:
        return built_in(name, seed)
    if name in MODULES:
        shape, build_it, _ = MODULES[name]
        with seeded(seed):
            return randomised(build_it(), seed), shape
    shape, make = OWN[name]
    with seeded(seed):
        return net(seed, *make()), shape


@pytest.mark.parametrize("name", MODULES)
def test_as_many_permutations_are_found_as_one_counts(name: str) -> None:
    shape, make, count = MODULES[name]
    spec = spec_for(make(), torch.zeros(1, *shape))
    assert len(spec.sizes) == count, spec.sizes


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


def test_the_parts_of_a_joined_axis_move_by_themselves() -> None:
    spec = PermutationSpec({"v": (Joined((1, Axis("p"), Axis("q", 2))),)}, {"p": 2, "q": 2})
    permutations = {"p": torch.tensor([1, 0]), "q": torch.tensor([1, 0])}
    assert apply_permutations(spec, permutations, {"v": torch.arange(7.0)})["v"].tolist() == [0, 2, 1, 5, 6, 3, 4]
    with pytest.raises(ValueError, match="axis 0 holds 1 fixed entries and 2 units in blocks of 1 and 2 units"):
        apply_permutations(spec, permutations, {"v": torch.arange(8.0)})


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
    model, shape = member("nested")
    spec, state = spec_for(model, inputs_of(shape)), read_state(model)
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
    inputs = inputs_of(shape)
    spec, state = spec_for(model, inputs), read_state(model)
    moved = apply_permutations(spec, random_permutations(spec, seed=3), state)
    with torch.no_grad():
        expected, got = model(inputs), functional_call(model, moved, (inputs,))
    assert expected.std(dim=0).min() > 1e-6  # the output hangs on the input: there is something to compare
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    for permutation in spec.sizes:
        assert any(
            not torch.equal(moved[tensor], state[tensor])
            for tensor, axes in spec.axes.items()
            if any(part.permutation == permutation for axis in axes for part in axes_in(axis))
        )


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "cnn",
        "vgg11 batch",
        "resnet20 layer",
        "norms of flattened maps",
        "functional",
        "concatenated",
        "padded shortcut",
        "decoder",
    ],
)
def test_every_axis_of_a_specification_is_needed(name: str) -> None:
    # the law above can fail: with any one axis held fixed another function comes out
    model, shape = member(name)
    inputs = inputs_of(shape)
    spec, state = spec_for(model, inputs), read_state(model)
    moved = apply_permutations(spec, random_permutations(spec, seed=3), state)
    with torch.no_grad():
        expected = model(inputs)
        for tensor in state:
            if not torch.equal(moved[tensor], state[tensor]):
                got = functional_call(model, moved | {tensor: state[tensor]}, (inputs,))
                assert not torch.allclose(got, expected, rtol=0, atol=1e-9), tensor


@pytest.mark.parametrize("name", ALL)
def test_the_features_named_carry_the_units(name: str) -> None:
    model, shape = member(name)
    inputs = inputs_of(shape)
    spec, state = spec_for(model, inputs), read_state(model)
    permutations = random_permutations(spec, seed=3)
    assert spec.features.keys() == spec.sizes.keys()

    def features() -> State:
        with torch.no_grad(), _recorded(model, spec) as seen:
            model(inputs)
        return {name: tensor.clone() for name, tensor in seen.items()}

    before = features()
    write_state(model, apply_permutations(spec, permutations, state))
    after = features()
    for permutation, index in permutations.items():
        torch.testing.assert_close(after[permutation], before[permutation][index], rtol=1e-10, atol=1e-10)


# specifications written by hand


def mlp_by_hand(hidden: int, width: int) -> PermutationSpec:
    axes: dict[str, tuple[Axis | None, ...]] = {}
    before = None
    for index in range(1, hidden + 1):
        own = Axis(f"linear{index}")
        axes |= {f"linear{index}.weight": (own, before), f"linear{index}.bias": (own,)}
        before = own
    axes |= {"head.weight": (None, before), "head.bias": (None,)}
    names = {f"linear{index}": Features(f"relu{index}") for index in range(1, hidden + 1)}
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
        {
            name: Features(relu)
            for name, relu in {"conv1": "relu1", "conv2": "relu2", "conv3": "relu3", "linear": "relu4"}.items()
        },
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
    features = {f"conv{index}": Features(f"relu{index}") for index in range(1, 9)}
    return PermutationSpec(axes, sizes, features, frozenset(statistics))


def resnet20_by_hand(norm: str, widths: Sequence[int]) -> PermutationSpec:
    """One permutation a stream, named after the stage that ends it, and one inside each block."""
    axes: dict[str, tuple[Axis | None, ...]] = {}
    statistics: list[str] = []
    sizes: dict[str, int] = {}
    features: dict[str, Features] = {}

    def add(convolution: str, normed: str, inputs: Axis | None, outputs: Axis) -> None:
        axes[f"{convolution}.weight"] = (outputs, inputs, None, None)
        if norm != "none":
            axes.update({f"{normed}.weight": (outputs,), f"{normed}.bias": (outputs,)})
        if norm == "batch":
            statistics.extend([f"{normed}.running_mean", f"{normed}.running_var"])
            axes.update(dict.fromkeys(statistics[-2:], (outputs,)))

    stream = Axis("stages.0")
    add("conv", "norm", None, stream)
    for stage, width in enumerate(widths):
        sizes[f"stages.{stage}"], features[f"stages.{stage}"] = width, Features(f"stages.{stage}")
        for block in (f"stages.{stage}.{number}" for number in range(3)):
            inner, after = Axis(f"{block}.conv1"), Axis(f"stages.{stage}")
            sizes[inner.permutation], features[inner.permutation] = width, Features(f"{block}.relu1")
            add(f"{block}.conv1", f"{block}.norm1", stream, inner)
            add(f"{block}.conv2", f"{block}.norm2", inner, after)
            if after != stream:
                add(f"{block}.shortcut.0", f"{block}.shortcut.1", stream, after)
            stream = after
    axes |= {"head.weight": (None, stream), "head.bias": (None,)}
    return PermutationSpec(axes, sizes, features, frozenset(statistics))


def test_the_derived_specifications_are_those_written_by_hand() -> None:
    assert spec_for(built_in("mlp")[0]) == mlp_by_hand(3, 16)
    assert spec_for(built_in("linear classifier")[0]) == mlp_by_hand(0, 0)
    # 22x18: the last map is 2x1
    assert spec_for(built_in("cnn")[0], inputs_of((1, 22, 18))) == cnn_by_hand(8, 16, 2)
    for norm in NORMS:
        assert spec_for(built_in(f"vgg11 {norm}")[0]) == vgg11_by_hand(norm, [8, 16, 32, 32, 64, 64, 64, 64])
        derived, by_hand = spec_for(built_in(f"resnet20 {norm}")[0]), resnet20_by_hand(norm, [8, 16, 32])
        assert derived == by_hand
        # a sweep of weight matching draws its order from theirs
        assert list(derived.sizes) == list(by_hand.sizes)


def test_torchvisions_networks_have_as_many_permutations_as_one_counts() -> None:
    with torch.device("meta"):
        resnet, vgg = torchvision.models.resnet18(num_classes=3), torchvision.models.vgg11_bn(num_classes=3)
    residual = spec_for(resnet, torch.zeros(1, 3, 32, 32))
    streams = {f"layer{stage}": 32 * 2**stage for stage in range(1, 5)}
    inner = {f"layer{stage}.{block}.conv1": 32 * 2**stage for stage in range(1, 5) for block in (0, 1)}
    assert residual.sizes == streams | inner
    # bn1's ReLU and that of the sum are one module, called twice
    assert residual.features["layer1.0.conv1"] == Features("layer1.0.relu") and not residual.kept
    plain = spec_for(vgg, torch.zeros(1, 3, 32, 32))
    # eight convolutions and two hidden linear layers
    assert len(plain.sizes) == 10 and sum(name.startswith("features") for name in plain.sizes) == 8
    assert plain.axes["classifier.0.weight"] == (Axis("classifier.0"), Axis("features.25", 49))


def test_a_transformer_has_its_stream_its_mlps_and_whole_heads() -> None:
    spec = spec_for(vit((1, 8, 8), 4, depth=2), torch.zeros(1, 1, 8, 8))
    mlps = {f"block{index}.linear1": 128 for index in (1, 2)}
    heads = {f"block{index}.attention.value": 4 for index in (1, 2)}
    assert spec.sizes == mlps | heads | {"norm": 64}
    assert spec.axes["block1.attention.query.weight"] == (Axis("block1.attention.value", 16), Axis("norm"))
    assert spec.features["block1.linear1"] == Features("block1.gelu", axis=2)


# what cannot be specified


class Twisted(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(-1)


class Doubled(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.cumsum(1)


def frozen() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def sequence(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(OrderedDict({f"layer{index}": layer for index, layer in enumerate(layers)}))


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(dim=1).values


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.renorm(2, 1, 1.0)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (sequence(nn.Linear(3, 4), Doubled(), nn.Linear(4, 2)), r"layer0.weight .* layer1 \(cumsum\)"),
        (sequence(nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(2), nn.Conv2d(4, 2, 3)), "layer0.weight .* layer1"),
        (sequence(nn.Linear(3, 4), nn.Sequential(Twisted(nn.ReLU())), nn.Linear(4, 2)), r"layer1.0 \(flip\)"),
        (sequence(nn.Conv2d(3, 4, 3, groups=1), nn.Conv2d(4, 4, 3, groups=2)), "layer1 .* 2 groups of channels"),
        (sequence(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 3)), "layer1 .* 2 groups of channels"),
        (tied, "being tied to what the model reads or returns"),
        (frozen, "being tied to what the model reads or returns"),
        (lambda: nn.Sequential(nn.Linear(4, 6), Sorted(), nn.Linear(6, 2)), r"1 \(sort\)"),
        (lambda: nn.Sequential(nn.Linear(4, 6), Unknown(), nn.Linear(6, 2)), r"1 \(renorm\)"),
    ],
)
def test_a_model_without_a_specification_is_refused_in_a_line_that_names_the_module(
    make: Callable[[], nn.Module], line: str
) -> None:
    with pytest.raises(ValueError, match=f"^no units of the model can be permuted: .*{line}") as error:
        spec_for(make())
    assert "\n" not in str(error.value)


def test_what_an_operator_keeps_in_place_costs_no_more_than_its_own_units() -> None:
    # the second layer's units are sorted; the first's and the third's are not
    layers = [nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), Sorted(), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 2)]
    spec = spec_for(nn.Sequential(*layers))
    assert spec.sizes == {"0": 5, "4": 7} and "3 (sort)" in spec.kept["2.weight"] and "0.bias" not in spec.kept


def test_what_does_not_train_is_in_no_state_and_stays_in_place() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    model[0].requires_grad_(False)
    assert spec_for(model).sizes == {"2": 5}


def test_a_layer_used_twice_has_one_permutation_before_and_after_it() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="same units on two axes"):
        spec_for(nn.Sequential(nn.Linear(3, 4), layer, nn.ReLU(), layer, nn.Linear(4, 2)))


def test_the_models_own_failure_is_told() -> None:
    with pytest.raises(ValueError, match=r"on inputs of shape \(1, 5\) the model raises RuntimeError"):
        spec_for(nn.Linear(4, 2), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="no inputs can be made up for the first layer of GRU; pass `inputs`"):
        spec_for(nn.GRU(3, 4))


def test_the_trace_leaves_the_model_as_it_was() -> None:
    model, shape = member("resnet18")
    model.train()
    before = read_state(model)
    spec_for(model, inputs_of(shape))
    assert same_state(read_state(model), before) and model.training and not model.layer1._forward_hooks


def test_an_activation_in_two_places_is_told_apart_by_its_calls() -> None:
    shared = nn.ReLU()
    spec = spec_for(nn.Sequential(nn.Linear(3, 4), shared, nn.Linear(4, 5), shared, nn.Linear(5, 4)))
    assert spec.features == {"0": Features("1"), "2": Features("1", call=1)}


def test_features_of_a_functional_activation_are_read_where_they_enter() -> None:
    spec = spec_for(Functional(), torch.zeros(1, 2, 6, 6))
    assert spec.features["linear"] == Features("head", entering=True)
    # pooled on the way: the flattened maps that the linear layer reads
    assert spec.features["conv3"] == Features("linear", entering=True)


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
    with pytest.raises(ValueError, match="w: a permutation may act on one axis of a tensor only, but 'p' acts on two"):
        PermutationSpec({"w": (Axis("p"), Axis("p"))}, {"p": 2})
    with pytest.raises(ValueError, match="only, but 'q' acts on two"):
        PermutationSpec({"w": (Axis("p"), Axis("q"), Axis("q"))}, {"p": 2, "q": 2})
    spec = PermutationSpec({"w": (Axis("p"),)}, {"p": 2})
    with pytest.raises(ValueError, match="'m' is not a tensor or permutation"):
        replace(spec, statistics=frozenset({"m"}))
    with pytest.raises(ValueError, match="'q' is not a tensor or permutation"):
        replace(spec, features={"q": Features("relu")})
