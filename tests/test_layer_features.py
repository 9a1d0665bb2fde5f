"""Which layers a model has, where their features lie, and what is read there."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils import parametrizations
from toys import draw, seeded

from fedpfn.examples import Examples
from fedpfn.forward import evaluating
from fedpfn.lmc.layerwise import (
    Layer,
    batches,
    capture,
    find_layers,
    layer_cosines,
    layer_report,
    measurable_layers,
    read_features,
    stitch,
    stitching_errors,
)
from fedpfn.models import build
from fedpfn.models.bias_free import strip_biases
from fedpfn.models.resnet import resnet
from fedpfn.params import State, read_state


def places(layers: tuple[Layer, ...]) -> list[tuple[str, int, str, int]]:
    return [(layer.name, layer.depth, layer.site, layer.call) for layer in layers]


class Block(nn.Module):
    """A residual block with one activation module called twice, in place, and a shortcut that runs first."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module] = lambda _: nn.Identity()) -> None:
        super().__init__()
        self.short = nn.Conv2d(channels, channels, 1, bias=False)
        self.short_norm = norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        short = self.short_norm(self.short(x))
        out = self.conv2(self.relu(self.norm(self.conv1(x))))
        out += short
        return self.relu(out)


def residual(norm: Callable[[int], nn.Module] = lambda _: nn.Identity()) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(inplace=True),
        Block(4, norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


class Functional(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.function = nn.Linear(4, 5), nn.Linear(5, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))


# discovery


def test_a_stack_has_its_layers_in_order_each_with_the_activation_behind_it() -> None:
    layers = find_layers(build("mlp", (4,), 3, seed=0, hidden=2, width=5), torch.ones(1, 4))
    assert places(layers) == [("linear1", 1, "relu1", 0), ("linear2", 2, "relu2", 0), ("head", 3, "", 0)]
    assert [layer.index for layer in layers] == [1, 2, 3]
    assert [layer.activated for layer in layers] == [True, True, False]
    assert [layer.reads_input for layer in layers] == [True, False, False]
    assert layers[1].below == {"linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"}


@pytest.mark.parametrize(
    ("name", "shape", "options", "weighted", "depth"),
    [
        ("mlp", (1, 28, 28), {}, 3, 3),
        ("cnn", (1, 28, 28), {"width_multiplier": 0.1}, 5, 5),
        ("vgg11", (3, 32, 32), {"width_multiplier": 0.1}, 9, 9),
        ("vgg11", (3, 32, 32), {"width_multiplier": 0.1, "norm": "batch"}, 9, 9),
        ("resnet20", (3, 8, 8), {}, 22, 20),
        ("resnet20", (3, 8, 8), {"norm": "batch"}, 22, 20),
    ],
)
def test_every_built_in_model_is_understood(
    name: str, shape: tuple[int, ...], options: dict[str, Any], weighted: int, depth: int
) -> None:
    model = build(name, shape, 10, seed=0, **options)
    layers = find_layers(model, draw(2, *shape))
    assert (len(layers), layers[-1].depth, layers[-1].site) == (weighted, depth, "")
    assert all(layer.activated for layer in layers[:-1])
    assert layers[-1].below >= set(read_state(model))
    assert sum(layer.reads_input for layer in layers) == 1


def test_all_layers_of_a_residual_sum_have_the_blocks_output_as_features() -> None:
    assert places(find_layers(resnet(8, (1, 8, 8), 3, base=2), torch.ones(1, 1, 8, 8)))[3:6] == [
        ("stages.1.0.conv1", 4, "stages.1.0.relu1", 0),
        ("stages.1.0.conv2", 5, "stages.1.0.relu2", 0),
        ("stages.1.0.shortcut.0", 5, "stages.1.0.relu2", 0),
    ]


def test_an_activation_called_twice_is_two_places() -> None:
    layers = find_layers(residual(), torch.ones(1, 1, 6, 6))
    assert places(layers) == [
        ("0", 1, "1", 0),
        ("2.short", 3, "2.relu", 1),
        ("2.conv1", 2, "2.relu", 0),
        ("2.conv2", 3, "2.relu", 1),
        ("5", 4, "", 0),
    ]


def test_a_layer_whose_output_meets_a_layer_first_has_its_own_output_as_features() -> None:
    net = nn.Sequential(nn.Linear(4, 2), nn.Identity(), nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3), nn.Softmax(1))
    layers = find_layers(net, torch.ones(1, 4))
    assert places(layers) == [("0", 1, "0", 0), ("2", 2, "3", 0), ("4", 3, "", 0)]
    x, state = draw(3, 4), read_state(net)
    features = read_features(net, layers, x, state)
    torch.testing.assert_close(features[0], net[0](x))
    torch.testing.assert_close(features[2], net(x))


def test_a_model_that_is_one_layer_is_a_layer() -> None:
    net = nn.Linear(3, 2)
    layers = find_layers(net, torch.ones(1, 3))
    assert places(layers) == [("", 1, "", 0)]
    x = draw(2, 3)
    torch.testing.assert_close(capture(net, layers, x, read_state(net)).layers[0].entering, x)


def test_frozen_layers_and_embeddings_are_walked_through() -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 2))
    net[2].requires_grad_(False)
    layers = find_layers(net, torch.tensor([[1, 2]]))
    assert places(layers) == [("2", 1, "3", 0), ("4", 2, "", 0)]
    # the embeddings of two models differ, so that commutativity means something at the first layer
    assert not layers[0].reads_input
    state = read_state(net)
    found = capture(net, layers, torch.tensor([[1, 2]]), state)
    torch.testing.assert_close(found.layers[0].weight, net[2].weight)


def test_an_lstm_lies_between_layers() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cells(x)[0][:, -1])

    layers = find_layers(Reader(), torch.ones(1, 5, 3))
    assert places(layers) == [("head", 1, "", 0)] and not layers[0].reads_input


def test_buffers_go_with_the_weights_beside_them() -> None:
    layers = {layer.name: layer for layer in find_layers(residual(nn.BatchNorm2d), draw(2, 1, 6, 6))}
    statistics = {"2.norm.running_mean", "2.norm.running_var"}
    assert statistics <= layers["2.conv1"].below and statistics <= layers["5"].below
    assert not statistics & layers["0"].below
    # the shortcut runs first, and the features inside the block do not depend on it
    assert "2.short_norm.running_mean" in layers["2.conv2"].below - layers["2.conv1"].below
    bare = {
        layer.name: layer
        for layer in find_layers(residual(lambda n: nn.BatchNorm2d(n, affine=False)), draw(2, 1, 6, 6))
    }
    assert statistics <= bare["2.conv1"].below and not statistics & bare["0"].below


def test_of_several_activations_behind_a_layer_the_first_counts() -> None:
    class PreActivated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)
            self.inner, self.outer = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            stream = self.stem(x)
            return self.head(self.outer(stream + self.branch(self.inner(stream))))

    layers = find_layers(PreActivated(), torch.ones(1, 4))
    assert places(layers) == [("stem", 1, "inner", 0), ("branch", 2, "outer", 0), ("head", 3, "", 0)]


# activations called as functions


class Plain(nn.Module):
    """A CNN with modules, in the order in which a forward with functions registers its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3)
        self.fc1, self.fc2 = nn.Linear(16, 6), nn.Linear(6, 3)
        self.act1, self.act2, self.act3, self.pool = nn.ReLU(), nn.LeakyReLU(0.2), nn.GELU(approximate="tanh"), 2

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.act1(self.conv1(x)), self.pool)
        x = self.act2(self.conv2(x)).flatten(1)
        return self.fc2(self.act3(self.fc1(x)))  # type: ignore[no-any-return]


class WithFunctions(Plain):
    """The same network, written as most are."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), self.pool)
        x = functional.leaky_relu(self.conv2(x), 0.2, inplace=True).view(x.size(0), -1)
        x = functional.dropout(self.fc1(x), 0.5, training=self.training)
        return self.fc2(functional.gelu(x, approximate="tanh"))  # type: ignore[no-any-return]


def test_activations_called_as_functions_are_measured_as_modules_are() -> None:
    plain, other = seeded(0, Plain), seeded(0, WithFunctions)
    states = [read_state(seeded(seed, Plain)) for seed in (0, 1)]
    examples = Examples(draw(8, 1, 10, 10), torch.arange(8) % 3)
    other.train()
    found, layers = measurable_layers(other, examples.inputs[:1])
    assert found is not other and other.training and read_state(other).keys() == read_state(found).keys()
    assert [(one.name, one.depth, one.activated, one.below) for one in layers] == [
        (one.name, one.depth, one.activated, one.below) for one in find_layers(plain, examples.inputs[:1])
    ]
    assert [one.activated for one in layers] == [True, True, True, False]
    assert measurable_layers(plain, examples.inputs[:1])[0] is plain
    reports = [layer_report(model, *states, examples).rows() for model in (plain, other)]
    assert [row.pop("features") for row in reports[0]] == ["act1", "act2", "act3", "output"]
    assert [row.pop("features") for row in reports[1]] == [
        "relu_in_forward_0", "leaky_relu_in_forward_1", "gelu_in_forward_2", "output",
    ]  # fmt: skip
    # as text, in which what the last layer lacks is equal, too
    assert repr(reports[0]) == repr(reports[1])
    cosines = [layer_cosines(model, states, [(0, 1)], examples) for model in (plain, other)]
    assert repr(cosines[0]) == repr(cosines[1])


def test_what_cannot_be_rewritten_stays_refused() -> None:
    class Branching(WithFunctions):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    for model, message in (
        (Branching(), "calls gelu, leaky_relu, relu as a function"),
        (Functional(nn.PReLU()), "calls prelu as a function or in a module"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "no layer to measure"),
    ):
        with pytest.raises(ValueError, match=message):
            measurable_layers(model, torch.ones(1, 1, 10, 10) if isinstance(model, Plain) else torch.ones(1, 4))


# what is refused


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Functional(functional.relu), "calls relu as a function"),
        (Functional(torch.tanh), "calls tanh as a function"),
        (Functional(lambda x: x.sigmoid()), "calls sigmoid as a function"),
        (Functional(nn.PReLU()), "calls prelu as a function or in a module"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "no layer to measure"),
        (Functional(lambda x: x), None),
    ],
    ids=["relu", "tanh", "method", "prelu", "no layers", "a linear net is fine"],
)
def test_what_hooks_cannot_see_is_refused_in_one_line(model: nn.Module, message: str | None) -> None:
    if message is None:
        assert len(find_layers(model, torch.ones(1, 4))) == 2
        return
    with pytest.raises(ValueError, match=message) as caught:
        find_layers(model, torch.ones(1, 4))
    assert "\n" not in str(caught.value)


def test_a_layer_that_runs_twice_is_refused() -> None:
    shared = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="layer '0' runs twice"):
        find_layers(nn.Sequential(shared, nn.ReLU(), shared), torch.ones(1, 4))


def test_an_output_that_is_no_tensor_is_refused() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x), x

    with pytest.raises(ValueError, match="one tensor of logits; it returns a tuple"):
        find_layers(Pair(), torch.ones(1, 4))


def test_no_examples_or_no_batch_are_refused() -> None:
    data = Examples(draw(4, 2), torch.zeros(4, dtype=torch.int64))
    for examples, size in ((data.span(0, 0), 2), (data, 0)):
        with pytest.raises(ValueError, match="features need examples"):
            list(batches(examples, size))
    assert [len(labels) for _, labels in batches(data, 3)] == [3, 1]


# reading


def test_what_is_captured_is_what_the_modules_compute() -> None:
    net = seeded(
        0, lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Dropout(0.5), nn.Linear(4, 2))
    )
    other = seeded(1, lambda: copy.deepcopy(net))
    state = {name: tensor + 1 for name, tensor in read_state(other).items()}
    x = draw(5, 3)
    with evaluating(net):
        found = capture(net, find_layers(net, x), x, state)
    normed = functional.layer_norm(
        functional.linear(x, state["0.weight"], state["0.bias"]), (4,), *[state["1.weight"], state["1.bias"]]
    )
    first, second = found.layers
    torch.testing.assert_close(first.entering, x)
    torch.testing.assert_close(first.before, normed)  # what enters the activation: after the norm
    torch.testing.assert_close(first.after, functional.gelu(normed))
    torch.testing.assert_close(second.entering, functional.gelu(normed))
    logits = functional.linear(functional.gelu(normed), state["4.weight"], state["4.bias"])
    for tensor in (second.before, second.after, found.output):
        torch.testing.assert_close(tensor, logits)
    assert torch.equal(first.weight, state["0.weight"])


def test_in_place_work_changes_nothing_that_was_read() -> None:
    net = seeded(0, residual)
    plain = copy.deepcopy(net)
    plain[1].inplace = plain[2].relu.inplace = False
    x, state = draw(4, 1, 6, 6), read_state(net)
    layers = find_layers(net, x)
    for one, other in zip(capture(net, layers, x, state).layers, capture(plain, layers, x, state).layers, strict=True):
        assert torch.equal(one.entering, other.entering)
        assert torch.equal(one.before, other.before)
        assert torch.equal(one.after, other.after)
        assert not torch.equal(one.before, one.after) or one.after.shape[1] == 3
    out = capture(net, layers, x, state).layers
    torch.testing.assert_close(out[3].before, plain[2].conv2(out[3].entering) + plain[2].short(out[1].entering))
    assert torch.equal(out[3].after, out[1].after)


def test_a_parametrised_weight_is_read_as_it_acts() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), parametrizations.weight_norm(nn.Linear(4, 2)))
    state = read_state(net) | {"2.parametrizations.weight.original0": torch.full((2, 1), 7.0)}
    x = draw(2, 3)
    weight = capture(net, find_layers(net, x), x, state).layers[1].weight
    torch.testing.assert_close(weight.norm(dim=1), torch.full((2,), 7.0))


def test_looking_at_a_model_leaves_it_as_it_was() -> None:
    net = residual(nn.BatchNorm2d)
    net.train()
    net[2].eval()
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    random = torch.random.get_rng_state()
    x, state = draw(4, 1, 6, 6), {name: tensor + 1 for name, tensor in read_state(net).items()}
    layers = find_layers(net, x, state=state)
    with evaluating(net):
        capture(net, layers, x, state)
        read_features(net, layers, x, state)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_hooks_go_even_if_the_forward_fails() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    layers = find_layers(net, torch.ones(1, 3))
    for call in (
        lambda: find_layers(net, torch.ones(1, 9)),
        lambda: capture(net, layers, torch.ones(1, 9), read_state(net)),
    ):
        with pytest.raises(RuntimeError):
            call()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


# stitching


def pair_of(make: Callable[[], nn.Module]) -> tuple[nn.Module, State, State]:
    first, second = (read_state(seeded(seed, make)) for seed in (1, 2))
    return make(), first, second


def test_a_stitch_of_a_stack_is_the_stack_split_in_two() -> None:
    make = lambda: build("cnn", (1, 18, 18), 3, seed=int(torch.randint(99, ())), width_multiplier=0.1)  # noqa: E731
    model, first, second = pair_of(make)
    x = draw(6, 1, 18, 18)
    for layer in find_layers(model, x[:1]):
        lower, upper = copy.deepcopy(model), copy.deepcopy(model)
        lower.load_state_dict(first)
        upper.load_state_dict(second)
        cut = len(model) if not layer.site else [name for name, _ in model.named_children()].index(layer.site) + 1
        expected = upper[cut:](lower[:cut](x))
        torch.testing.assert_close(functional_call(model, stitch(layer, first, second), (x,)), expected)


@pytest.mark.parametrize("norm", [lambda _: nn.Identity(), nn.BatchNorm2d, lambda n: nn.BatchNorm2d(n, affine=False)])
def test_a_stitch_at_a_blocks_output_is_what_replacing_that_output_gives(norm: Callable[[int], nn.Module]) -> None:
    model, first, second = pair_of(lambda: residual(norm))
    model.eval()
    x = draw(6, 1, 6, 6)
    layers = {layer.name: layer for layer in find_layers(model, x)}
    for name, site in (("0", "1"), ("2.conv2", "2"), ("2.short", "2")):
        with torch.no_grad():
            kept: list[Tensor] = []
            handle = model.get_submodule(site).register_forward_hook(
                lambda *call, kept=kept: kept.append(call[2].clone())
            )
            functional_call(model, first, (x,))
            handle.remove()
            handle = model.get_submodule(site).register_forward_hook(lambda *call, kept=kept: kept[0])
            expected = functional_call(model, second, (x,))
            handle.remove()
        torch.testing.assert_close(functional_call(model, stitch(layers[name], first, second), (x,)), expected)


def test_a_stitch_inside_a_block_keeps_the_lower_stream_and_the_upper_projection() -> None:
    model, first, second = pair_of(residual)
    layer = {layer.name: layer for layer in find_layers(model, torch.ones(1, 1, 6, 6))}["2.conv1"]
    mixed = stitch(layer, first, second)
    owner = {name: "first" if tensor is first[name] else "second" for name, tensor in mixed.items()}
    assert {name.rpartition(".")[0] for name, whose in owner.items() if whose == "first"} == {"0", "2.conv1"}


def test_a_model_stitched_onto_itself_has_its_own_error_at_every_layer() -> None:
    model, first, _ = pair_of(residual)
    x = draw(20, 1, 6, 6)
    labels = functional_call(model, first, (x,)).argmax(dim=1)
    labels[:5] = (labels[:5] + 1) % 3
    found = stitching_errors(model, first, first, Examples(x, labels))
    assert found.error == pytest.approx((0.25,) * 5)
    assert len(set(found.loss)) == 1 and found.layers == ("0", "2.short", "2.conv1", "2.conv2", "5")


def test_a_stitch_at_the_last_layer_is_the_lower_model() -> None:
    model, first, second = pair_of(residual)
    x = draw(9, 1, 6, 6)
    data = Examples(x, functional_call(model, first, (x,)).argmax(dim=1))
    found = stitching_errors(model, first, second, data)
    assert found.error[-1] == 0 and found.error[0] > 0
    assert stitching_errors(model, second, first, data).error[-1] > 0


# models without biases


@pytest.mark.parametrize(
    ("name", "shape"), [("mlp", (4,)), ("cnn", (1, 18, 18)), ("vgg11", (1, 16, 16)), ("resnet20", (1, 8, 8))]
)
def test_a_model_without_biases_scales_with_the_depth_th_power_of_its_weights(
    name: str, shape: tuple[int, ...]
) -> None:
    model = build(name, shape, 3, seed=0, **({"width_multiplier": 0.1} if name != "mlp" else {"hidden": 3}))
    kept = copy.deepcopy(model.state_dict())
    bare = strip_biases(model)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert not any(name.endswith("bias") for name in read_state(bare))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in bare.state_dict().items())
    x, state = draw(4, *shape), read_state(bare)
    if name != "resnet20":  # a sum of paths of unlike depths scales with no one power
        depth = find_layers(bare, x)[-1].depth
        double = functional_call(bare, {name: 2 * tensor for name, tensor in state.items()}, (x,))
        torch.testing.assert_close(double, 2**depth * functional_call(bare, state, (x,)))
    assert not functional_call(bare, state, (0 * x,)).any()


def test_a_model_without_layers_has_no_biases_to_strip() -> None:
    with pytest.raises(ValueError, match="no linear or convolutional layer"):
        strip_biases(nn.Sequential(nn.Flatten(), nn.LayerNorm(3)))
