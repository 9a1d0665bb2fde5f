"""Where channels last is taken, that it changes no result but its last digit, and that frozen entries stay frozen."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedpfn.examples import Examples
from fedpfn.freezing import BitMask
from fedpfn.masks import MaskRecipe, build_mask
from fedpfn.models import build, to_preferred_memory_format
from fedpfn.packing import Positions, pack
from fedpfn.params import read_state, trainable
from fedpfn.training import batch_order, make_optimizer, train


def last(model: nn.Module) -> list[bool]:
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    # of one pixel or one channel a tensor is both
    return [
        c.weight.is_contiguous(memory_format=torch.channels_last) and not c.weight.is_contiguous()
        for c in convolutions
        if c.in_channels > 1 and c.kernel_size != (1, 1)
    ]


@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        ("cnn", {}, True),
        ("resnet20", {"norm": "group"}, True),
        ("resnet20", {"norm": "group", "width_multiplier": 0.5}, False),
        ("vgg11", {}, False),
        ("resnet18", {"norm": "group"}, False),
    ],
)
def test_only_models_of_narrow_convolutions_get_channels_last(name: str, keys: dict[str, Any], expected: bool) -> None:
    found = last(to_preferred_memory_format(build(name, (3, 32, 32), 10, seed=0, **keys)))
    assert found and set(found) == {expected}


def test_a_first_layer_of_one_channel_hands_channels_last_on() -> None:
    model = to_preferred_memory_format(build("cnn", (1, 28, 28), 10, seed=0))
    output = model[0](torch.randn(2, 1, 28, 28))  # type: ignore[index]
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_a_model_without_convolutions_is_left_alone() -> None:
    model = to_preferred_memory_format(build("mlp", (4,), 3, seed=0))
    assert all(parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.parametrize("channels", [2, 3, 4, 5, 7, 8, 12, 15, 16])
def test_the_gradient_of_a_shortcut_is_right(channels: int) -> None:
    """With channels last oneDNN writes some of these beyond its workspace."""
    torch.manual_seed(0)
    model = to_preferred_memory_format(nn.Sequential(nn.Conv2d(channels, 8, 1, stride=2, bias=False)))
    exact = nn.Conv2d(channels, 8, 1, stride=2, bias=False).double()
    exact.load_state_dict(model[0].state_dict())  # type: ignore[index]
    inputs, weight = torch.randn(16, channels, 32, 32), torch.randn(16, 8, 16, 16)
    for module, factor in ((model, weight), (exact, weight.double())):
        (module(inputs.to(factor.dtype)) * factor).sum().backward()
    found, expected = next(model.parameters()).grad, exact.weight.grad
    assert found is not None and expected is not None
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("ratio", [None, 0.4])
def test_training_ends_where_it_ends_with_channels_first(ratio: float | None) -> None:
    generator = np.random.default_rng(0)
    examples = Examples(
        torch.from_numpy(generator.normal(size=(30, 3, 18, 18))).float(), torch.from_numpy(generator.integers(0, 3, 30))
    )
    ends = []
    for laid_out in (False, True):
        model = build("cnn", (3, 18, 18), 3, seed=3, width_multiplier=0.5)
        model = to_preferred_memory_format(model) if laid_out else model
        assert any(last(model)) == laid_out
        before, mask = read_state(model), None
        if ratio is not None:
            booleans = build_mask(MaskRecipe(1, ratio), trainable(model))
            mask = BitMask.of(booleans, trainable(model))
        order = batch_order(30, 8, np.random.default_rng(1))
        train(model, examples, order, [(mask, 50)], optimizer=make_optimizer("sgd", lr=0.01, momentum=0.9))
        ends.append(pack(trainable(model), Positions({}))["packed:float32"])
        if ratio is not None:
            for name, tensor in read_state(model).items():
                assert torch.equal(tensor[~booleans[name]], before[name][~booleans[name]])
                assert bool((tensor != before[name])[booleans[name]].any())
    assert float((ends[1] - ends[0]).norm()) <= 1e-5 * float(ends[0].norm())
