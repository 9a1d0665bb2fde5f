"""The first layer of a model: which models can be cut behind it, and that the cut model is the model."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from toys import draw, seeded

from fedpfn.examples import Examples
from fedpfn.lmc.first_layer import LINEAR, SplitModel, split_model, takes_stacks
from fedpfn.models import build
from fedpfn.params import State, lerp, read_state

Make = Callable[[], nn.Module]
ROWS, IMAGES = (4, 6), (4, 3, 8, 8)


def states_of(make: Make) -> tuple[State, State]:
    return read_state(seeded(1, make)), read_state(seeded(2, make))


def cut(make: Make, inputs: Tensor) -> SplitModel | None:
    return split_model(seeded(0, make), inputs, *states_of(make))


def built(name: str, *shape: int, **settings: object) -> Make:
    return lambda: build(name, shape, 3, seed=int(torch.randint(1000, ())), **settings)


def on_top_of(layer: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(features, 3))


class Custom(nn.Module):
    """A first layer and a head, put together by ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(x).relu())


class InPlace(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(x).relu_())


class ByKeyword(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(input=2 * x).relu()) + x[:, :3]


class ReadsWeight(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(x).relu()) + self.fc.weight.square().sum()


class CalledTwice(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(self.fc(x).relu()))


class SharesWeight(Custom):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(6, 6)
        self.again.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.fc(x).relu()))


class TwoNames(Custom):
    def __init__(self) -> None:
        super().__init__()
        self.alias = self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.alias(x).relu())


class ScalesFirst(Custom):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scale)


class Subclass(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).abs()


class Hooked(Custom):
    def __init__(self) -> None:
        super().__init__()
        self.fc.register_forward_hook(lambda module, args, output: output.abs())


class Views(nn.Module):
    """Counts on the usual layout of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        return self.head(features.view(len(features), -1))


CUTS: list[tuple[Make, tuple[int, ...], str]] = [
    (lambda: nn.Linear(6, 3), ROWS, ""),
    (built("mlp", 6, hidden=0), ROWS, "head"),
    (built("mlp", 6, hidden=2, width=8), ROWS, "linear1"),
    (built("cnn", 3, 18, 18), (4, 3, 18, 18), "conv1"),
    (built("resnet20", 3, 8, 8, width_multiplier=0.25), IMAGES, "conv"),
    (built("vit", 3, 8, 8), IMAGES, "patches"),
    (lambda: on_top_of(nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"), 32), (4, 3, 8), "0"),
    (lambda: on_top_of(nn.Conv3d(3, 6, 2, groups=3, bias=False), 162), (4, 3, 4, 4, 4), "0"),
    (Views, IMAGES, "conv"),
    (InPlace, ROWS, "fc"),
    (ByKeyword, ROWS, "fc"),
]
WHOLE: list[tuple[Make, Tensor]] = [
    (built("lstm", 5, width_multiplier=0.1), torch.arange(20).view(4, 5)),
    (lambda: nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(8, 3)), torch.arange(6).view(3, 2)),
    *((make, draw(*ROWS)) for make in (ReadsWeight, CalledTwice, SharesWeight, TwoNames, ScalesFirst, Hooked)),
    (lambda: nn.Sequential(Subclass(6, 4), nn.Linear(4, 3)), draw(*ROWS)),
    (lambda: nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, 3)), draw(*ROWS)),
    (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False)), draw(*ROWS)),
    (lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)), draw(*ROWS)),
    (lambda: nn.Sequential(nn.Flatten(), nn.PReLU()), draw(*ROWS)),
]


@pytest.mark.parametrize(("make", "shape", "name"), CUTS)
def test_a_cut_model_gives_the_models_logits_between_two_states(make: Make, shape: tuple[int, ...], name: str) -> None:
    model, inputs, (first, second) = seeded(0, make), draw(*shape), states_of(make)
    found = split_model(model, inputs, first, second)
    assert found is not None and found.name == name
    assert type(found.layer) in LINEAR and found.own == {key for key in first if key.rpartition(".")[0] == name}
    model.eval()
    with torch.no_grad():
        ends = [found.product(state, found.entering(inputs)) for state in (first, second)]
        for alpha in (0.1, 0.5, 0.8):
            mixed = lerp(first, second, alpha)
            logits = found.logits(found.remaining(mixed), torch.lerp(ends[1], ends[0], alpha), inputs)
            torch.testing.assert_close(logits, functional_call(model, mixed, (inputs,)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("make", "inputs"), WHOLE)
def test_a_model_whose_first_layer_is_not_its_own_stays_whole(make: Make, inputs: Tensor) -> None:
    assert cut(make, inputs) is None


def test_images_are_laid_out_pixel_by_pixel_where_the_model_allows_it() -> None:
    free, bound = cut(built("resnet20", 3, 8, 8, width_multiplier=0.25), draw(*IMAGES)), cut(Views, draw(*IMAGES))
    assert free is not None and free.channels_last
    assert bound is not None and not bound.channels_last


def test_sizes_are_those_of_one_example() -> None:
    found = cut(built("mlp", 6, hidden=2, width=8), draw(*ROWS))
    assert found is not None
    assert (found.fan_in, found.product_bytes, found.widest_bytes) == (6, 8 * 4, 8 * 4)
    found = cut(built("cnn", 3, 18, 18), draw(4, 3, 18, 18))
    assert found is not None and (found.fan_in, found.product_bytes) == (27, 32 * 16 * 16 * 4)


def test_looking_leaves_the_model_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)).train()
    model[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = read_state(model)
    assert split_model(model, draw(*ROWS), state, state) is not None
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_layer_that_is_later_called_otherwise_is_an_error() -> None:
    class Moody(Custom):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) < 5:
                return super().forward(x)
            return self.head(x) if len(x) == 5 else self.head(self.fc(self.fc(x)))

    found = cut(Moody, draw(*ROWS))
    assert found is not None
    with pytest.raises(RuntimeError, match="did not call its first layer 'fc'"):
        found.entering(draw(5, 6))
    remaining = found.remaining(read_state(Moody()))
    with pytest.raises(RuntimeError, match="did not call its first layer 'fc'"):
        found.logits(remaining, draw(5, 6), draw(5, 6))
    with pytest.raises(RuntimeError, match="called its first layer 'fc' twice"):
        found.logits(remaining, draw(6, 6), draw(6, 6))


class Branches(Custom):
    def forward(self, x: Tensor) -> Tensor:
        features = self.fc(x)
        return self.head(features.relu() if features.sum() > 0 else features.abs())


@pytest.mark.parametrize(("make", "expected"), [(Custom, True), (InPlace, True), (Branches, False)])
def test_a_model_that_branches_on_its_features_cannot_be_stacked(make: Make, expected: bool) -> None:
    found, labels = cut(make, draw(*ROWS)), torch.tensor([0, 1, 2, 0])
    assert found is not None
    assert takes_stacks(found, Examples(draw(*ROWS), labels), *states_of(make)) == expected
