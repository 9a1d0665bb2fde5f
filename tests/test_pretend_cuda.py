"""The pretended GPU catches what a GPU would not take, and a training step asks it for no more than it has to.

What is counted in a step is the difference between a long training and a short one: set-up and end drop out.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pretend_cuda import MixedDevicesError, Tally, counted, pretend_cuda, why_not
from torch import Tensor, nn
from torch.nn import functional

from fedpfn.examples import Examples
from fedpfn.freezing import BitMask
from fedpfn.masks import MaskRecipe, build_mask
from fedpfn.models import build
from fedpfn.params import trainable
from fedpfn.training import batch_order, make_optimizer, train

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can pretend")

MODELS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "mlp": ((1, 28, 28), {"hidden": 2, "width": 200}),
    "cnn": ((1, 20, 20), {"width_multiplier": 0.25}),
}
# of a step of FedPFN under SGD with momentum
MOST_OPERATORS = {"mlp": 29, "cnn": 44}
FEW, MANY = 3, 8


@pytest.fixture(autouse=True)
def pretended() -> Iterator[None]:
    with pretend_cuda():
        yield


def examples_of(shape: tuple[int, ...], *, images: bool = False, device: str = "cuda") -> Examples:
    generator = np.random.default_rng(0)
    labels = torch.from_numpy(generator.integers(0, 10, 100))
    if images:
        pixels = torch.from_numpy(generator.integers(0, 256, (100, *shape), dtype=np.uint8))
        return Examples(pixels.to(device), labels.to(device), mean=(0.5,) * shape[0], std=(0.2,) * shape[0])
    inputs = torch.from_numpy(generator.standard_normal((100, *shape), dtype=np.float32))
    return Examples(inputs.to(device), labels.to(device))


def trained(name: str, *, steps: int, device: str = "cuda", mask_on: str = "cuda", images: bool = False,
            model: nn.Module | None = None, **settings: Any) -> nn.Module:  # fmt: skip
    shape, keys = MODELS[name]
    model = model or build(name, shape, 10, seed=0, **keys)
    model = model.to(device)
    mask = build_mask(MaskRecipe(seed=0, ratio=0.4), trainable(model))
    mask = {key: tensor.to(mask_on if device == "cuda" else "cpu") for key, tensor in mask.items()}
    words = BitMask.of(mask, trainable(model)) if mask_on == device else _words(mask, trainable(model))
    train(
        model,
        examples_of(shape, images=images, device=device),
        batch_order(100, 10, np.random.default_rng(0)),
        [(words, steps)],
        optimizer=make_optimizer("sgd", lr=0.1, momentum=0.9),
        **settings,
    )
    return model


def _words(mask: dict[str, Tensor], parameters: dict[str, Tensor]) -> BitMask:
    return BitMask({name: torch.zeros(tensor.shape, dtype=torch.int32) - 1 for name, tensor in parameters.items()})


def of_a_step(name: str, **settings: Any) -> Tally:
    """What each step adds to a training."""
    trained(name, steps=1, **settings)  # what is made once a process
    tallies = []
    for steps in (FEW, MANY):
        with counted() as tally:
            trained(name, steps=steps, **settings)
        tallies.append(tally)
    few, many = tallies
    many.operators.subtract(few.operators)
    many.waits.subtract(few.waits)
    more = MANY - FEW
    return Tally(
        Counter({key: count // more for key, count in many.operators.items() if count}),
        Counter({key: count // more for key, count in many.waits.items() if count}),
    )


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_does_not_wait(name: str, images: bool) -> None:
    assert of_a_step(name, images=images).waits == {}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_has_no_more_operators_than_it_had(name: str) -> None:
    step = of_a_step(name)
    assert 20 < step.operators.total() <= MOST_OPERATORS[name], step.operators


def test_training_there_gives_the_bits_of_training_here() -> None:
    there, here = (trained("mlp", steps=5, device=device, mask_on=device) for device in ("cuda", "cpu"))
    for one, other in zip(there.parameters(), here.parameters(), strict=True):
        assert one.is_cuda and not other.is_cuda and torch.equal(one.detach().cpu(), other.detach())


# ---- planted faults -------------------------------------------------------------------------------------------------


def test_a_mask_that_was_left_on_the_cpu_is_caught() -> None:
    with pytest.raises(MixedDevicesError, match=r"bitwise_and_.* with CPU tensors"):
        trained("mlp", steps=1, mask_on="cpu")


def test_a_value_read_in_the_loop_is_seen_and_where() -> None:
    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        value = functional.cross_entropy(outputs, labels)
        assert value.item() > 0
        return value

    assert {kind: count for (kind, _), count in of_a_step("mlp", loss=loss).waits.items()} == {"value": 1}


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda value: bool(value > 0), "value"),
        (lambda value: value.cpu(), "device to host"),
        (lambda value: value.tolist(), "device to host"),
        (lambda value: torch.tensor(1.0, device=value.device), "host to device"),
        (lambda value: value[None][torch.tensor([0])], "host to device"),
        (lambda value: value[value > 0], "value"),
    ],
)
def test_every_kind_of_wait_is_seen(spoil: Any, kind: str) -> None:
    value = torch.ones(3, device="cuda").sum()
    with counted() as tally:
        spoil(value)
    assert tally.kinds()[kind] >= 1


def test_an_index_on_the_wrong_device_is_caught() -> None:
    examples, index = examples_of((4,)), torch.tensor([0, 1])
    with pytest.raises(MixedDevicesError, match="index_select"):
        examples.batch(index)
    with pytest.raises(MixedDevicesError):
        torch.arange(3)[index.cuda()]
    assert examples.batch(index.cuda())[0].is_cuda


def test_what_is_made_lies_where_it_was_asked_to() -> None:
    there = torch.zeros(2, device="cuda")
    alike = [there + 1, there.clone(), there.view(2, 1), torch.zeros_like(there), there.new_ones(()), there.double()]
    alike += [torch.as_tensor(np.ones(2), device="cuda"), torch.as_tensor([1], device=there.device), there + 1.5]
    assert all(tensor.is_cuda and tensor.device == torch.device("cuda", 0) for tensor in alike)
    back = [there.cpu(), there.to("cpu", torch.float64), torch.zeros(2), torch.zeros_like(there, device="cpu")]
    assert not any(tensor.is_cuda for tensor in back)
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        there.numpy()
    with pytest.raises(MixedDevicesError, match="two devices"):
        there + torch.ones(2)
    assert (there + torch.tensor(1.0)).is_cuda


def test_gradients_come_back_to_where_they_belong() -> None:
    here = torch.ones(2, requires_grad=True)
    (here.cuda() * 2).sum().backward()
    assert here.grad is not None and not here.grad.is_cuda and here.grad.tolist() == [2.0, 2.0]


def test_without_the_block_nothing_is_changed() -> None:
    assert torch.zeros(1).device.type == "cpu" and torch.cuda.is_available()
