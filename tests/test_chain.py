"""The gradients written out against autograd's, and SGD's fused step against PyTorch's optimiser: the same bits."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local_algorithms import with_proximal_term
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fedpfn.examples import Examples
from fedpfn.masks import MaskRecipe, build_mask
from fedpfn.models import build
from fedpfn.models.bias_free import strip_biases
from fedpfn.params import read_state, trainable
from fedpfn.training import MakeOptimizer, NonFiniteError, batch_order, kernel, make_optimizer, train
from fedpfn.training.chain import chain_of
from fedpfn.training.fused_sgd import FusedSGD
from fedpfn.training.optimizers import fuse, fused

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.1},
    "sgd-decay": {"name": "sgd", "lr": 0.1, "weight_decay": 0.01},
    "sgd-momentum": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "sgd-nesterov-decay": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "sgd-dampening": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "args": {"dampening": 0.1}},
    "adam": {"name": "adam", "lr": 0.01, "weight_decay": 0.01},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
    "rmsprop": {"name": "torch.optim:RMSprop", "lr": 0.01},
}
EXTRAS: dict[str, dict[str, Any]] = {
    "bare": {},
    "clipped": {"clip_norm": 0.1},
    "proximal": {"proximal_mu": 0.1},
    "all": {"clip_norm": 0.1, "proximal_mu": 0.1, "lr_factor": lambda step: 0.9**step},
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def network(
    *, hidden: int = 2, width: int = 9, bias: bool = True, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> nn.Module:
    model = build("mlp", (1, 4, 4), 3, seed=1, hidden=hidden, width=width)
    return (model if bias else strip_biases(model)).to(device, dtype)


def data(size: int = 30, *, dtype: torch.dtype = torch.float32, device: str = "cpu", **other: Tensor) -> Examples:
    generator = np.random.default_rng(0)
    inputs = torch.from_numpy(generator.normal(size=(size, 1, 4, 4))).to(device, dtype)
    labels = torch.from_numpy(generator.integers(0, 3, size)).to(device)
    return Examples(**({"inputs": inputs, "labels": labels} | other))


def by_torch(optimizer: MakeOptimizer, parameters: list[Tensor], *, adopt: bool = False) -> torch.optim.Optimizer:
    """The slow twin of ``fused``."""
    stepper = optimizer(parameters)
    fuse(stepper)
    return stepper


@contextmanager
def autograd() -> Iterator[None]:
    """Train by autograd and PyTorch's optimiser objects: the slow twin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "chain_of", lambda model, examples: None)
        patch.setattr(kernel, "fused", by_torch)
        yield


def end(model: nn.Module, examples: Examples, *, batch_size: int = 8, ratio: float | None = None,
        granularity: str = "weight", optimizer: str = "sgd-momentum", extra: str = "bare",
        steps: tuple[int, ...] = (3, 2)) -> Any:  # fmt: skip
    """Return all that training ends in, as bits, or its error."""
    masks = [
        None if ratio is None else build_mask(MaskRecipe(seed, ratio, granularity=granularity), trainable(model))
        for seed in range(len(steps))
    ]
    batches = batch_order(len(examples), batch_size, np.random.default_rng(2))
    make = make_optimizer(**OPTIMIZERS[optimizer])
    try:
        extras = with_proximal_term(model, EXTRAS[extra])
        found = train(model, examples, batches, list(zip(masks, steps, strict=True)), optimizer=make, **extras)
    except NonFiniteError as error:
        return str(error)
    return found, {name: tensor.cpu().numpy().tobytes() for name, tensor in read_state(model).items()}


def require_twins(make: Callable[[], nn.Module], examples: Examples, **how: Any) -> Any:
    """Hold the chain to the twin to the bit, and return what both ended in."""
    assert chain_of(make(), examples) is not None
    found = end(make(), examples, **how)
    with autograd():
        expected = end(make(), examples, **how)
    assert found == expected
    return found


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# the battery: every optimiser, whatever else acts on the gradient, every kind of mask


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mask", [(None, "weight"), (0.4, "weight"), (0.4, "neuron")])
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_chain_ends_where_autograd_ends(
    optimizer: str, extra: str, mask: tuple[float | None, str], device: str
) -> None:
    require_twins(
        lambda: network(device=device), data(device=device),
        optimizer=optimizer, extra=extra, ratio=mask[0], granularity=mask[1],
    )  # fmt: skip


@settings(max_examples=40)
@given(
    st.integers(0, 3), st.integers(1, 40), st.booleans(), st.sampled_from([torch.float32, torch.float64]),
    st.integers(1, 50), st.integers(1, 50), st.sampled_from(sorted(OPTIMIZERS)), st.sampled_from(sorted(EXTRAS)),
    st.none() | st.floats(0, 1), st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple),
)  # fmt: skip
def test_whatever_the_shapes_the_bits_are_the_same(
    hidden: int, width: int, bias: bool, dtype: torch.dtype, size: int, batch_size: int,
    optimizer: str, extra: str, ratio: float | None, steps: tuple[int, ...],
) -> None:  # fmt: skip
    require_twins(
        lambda: network(hidden=hidden, width=width, bias=bias, dtype=dtype), data(size, dtype=dtype),
        batch_size=batch_size, optimizer=optimizer, extra=extra, ratio=ratio, steps=steps,
    )  # fmt: skip


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 10, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_are_the_same_at_sizes_that_threads_share(number: int, batch_size: int, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(3)
    inputs = torch.from_numpy(generator.normal(size=(60, 1, 28, 28))).to(dtype)
    examples = Examples(inputs, torch.from_numpy(generator.integers(0, 10, 60)))
    with threads(number):
        require_twins(
            lambda: build("mlp", (1, 28, 28), 10, seed=0).to(dtype), examples, batch_size=batch_size, ratio=0.4
        )


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Flatten(), nn.Linear(16, 3), nn.ReLU()],
        lambda: [nn.Flatten(), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 3)],
        lambda: [nn.Flatten(), nn.Linear(16, 5), nn.ReLU(inplace=True), nn.ReLU(), nn.Linear(5, 3, bias=False)],
        lambda: [nn.Flatten(), nn.Linear(16, 1), nn.ReLU(), nn.Linear(1, 3)],
    ],
)
def test_other_chains_end_where_autograd_ends(layers: Callable[[], list[nn.Module]]) -> None:
    def make() -> nn.Module:
        torch.manual_seed(4)
        return nn.Sequential(*layers())

    for batch_size in (1, 8):
        require_twins(make, data(), batch_size=batch_size)


def test_inputs_without_a_flatten_and_images_are_trained_alike() -> None:
    flat = data()
    require_twins(lambda: nn.Sequential(*list(network())[1:]), Examples(flat.inputs.flatten(1), flat.labels))
    pixels = torch.arange(30 * 16, dtype=torch.uint8).view(30, 1, 4, 4)
    require_twins(network, Examples(pixels, flat.labels, mean=(0.3,), std=(0.2,)))


# what is not finite


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e38])
@pytest.mark.parametrize("name", ["linear1.weight", "linear2.bias", "head.weight", "head.bias"])
def test_weights_that_are_not_finite_are_told_alike(name: str, value: float) -> None:
    def make() -> nn.Module:
        model = network()
        with torch.no_grad():
            trainable(model)[name].view(-1)[0] = value
        return model

    for steps in ((3, 2), (0,)):
        found = require_twins(make, data(), steps=steps)
        assert isinstance(found, str) or value == 1e38


def test_inputs_that_are_not_finite_are_told_alike() -> None:
    for value in (torch.nan, torch.inf):
        examples = data()
        examples.inputs[5] = value
        assert str(require_twins(network, examples)).startswith("the loss is nan at local step ")


def test_a_label_out_of_range_is_refused_and_the_ignored_one_passed_over_alike() -> None:
    examples = data()
    examples.labels[:4] = -100
    require_twins(network, examples)
    examples.labels[0] = 3
    for context in (autograd(), threads(1)):
        with context, pytest.raises(IndexError, match="out of bounds"):
            end(network(), examples)


# what is left to autograd


def hooked(register: Callable[[nn.Module], Any]) -> nn.Module:
    model = network()
    register(model)
    return model


def frozen(parameter: Tensor) -> None:
    parameter.requires_grad_(False)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    model[3].weight = model[1].weight
    return model


def transposed() -> nn.Module:
    model = network()
    model[1].weight = nn.Parameter(model[1].weight.detach().t().contiguous().t())
    return model


class OwnLinear(nn.Linear):
    pass


class OwnSequential(nn.Sequential):
    pass


def call(*_: Any) -> None:
    return None


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "another model": lambda: build("cnn", (1, 18, 18), 3, seed=0, width_multiplier=0.1),
    "another layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3)),
    "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 3)),
    "a chain in a chain": lambda: nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(16, 3))),
    "a subclass of a layer": lambda: nn.Sequential(nn.Flatten(), OwnLinear(16, 3)),
    "a subclass of the container": lambda: OwnSequential(nn.Flatten(), nn.Linear(16, 3)),
    "no linear layer": lambda: nn.Sequential(nn.Flatten()),
    "another flatten": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(16, 3)),
    "a flatten too late": lambda: nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.Linear(16, 3)),
    "no flatten for images": lambda: nn.Sequential(nn.Linear(4, 3)),
    "a module used twice": lambda: nn.Sequential(nn.Flatten(), *[nn.Linear(16, 16)] * 2),
    "a shared weight": tied,
    "a forward hook": lambda: hooked(lambda model: model[1].register_forward_hook(call)),
    "a forward pre-hook": lambda: hooked(lambda model: model.register_forward_pre_hook(call)),
    "a backward hook": lambda: hooked(lambda model: model[2].register_full_backward_hook(call)),
    "a backward pre-hook": lambda: hooked(lambda model: model.register_full_backward_pre_hook(call)),
    "a hook on a gradient": lambda: hooked(lambda model: model[1].weight.register_hook(call)),
    "a hook after a gradient": lambda: hooked(lambda model: model[1].bias.register_post_accumulate_grad_hook(call)),
    "a forward of its own": lambda: hooked(lambda model: setattr(model[1], "forward", model[1].forward)),
    "a parametrisation": lambda: hooked(lambda model: parametrizations.weight_norm(model[1])),
    "a parameter that stays": lambda: hooked(lambda model: frozen(model[1].bias)),
    "a parameter of no layer": lambda: hooked(
        lambda model: model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    ),
    "a parameter more in a layer": lambda: hooked(
        lambda model: model[1].register_parameter("unused", nn.Parameter(torch.ones(2)))
    ),
    "a weight laid out otherwise": transposed,
    "mixed precision": lambda: hooked(lambda model: model[1].double()),
    "half precision": lambda: network().to(torch.bfloat16),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_plain_chain_is_left_to_autograd(name: str) -> None:
    shape = (30, 1, 18, 18) if name == "another model" else (30, 1, 4, 4)
    dtype = torch.bfloat16 if name == "half precision" else torch.float32
    assert chain_of(OTHERS[name](), data(inputs=torch.zeros(shape, dtype=dtype))) is None


def test_other_losses_and_inputs_are_left_to_autograd() -> None:
    assert chain_of(network(), data()) is not None
    assert chain_of(network(), data(labels=torch.zeros(30))) is None
    assert chain_of(network(), data(labels=torch.zeros(30, 1, dtype=torch.int64))) is None
    assert chain_of(network(), data(labels=torch.zeros(30, dtype=torch.int32))) is None
    assert chain_of(network(), data(inputs=torch.zeros(30, 4, 4, dtype=torch.float64))) is None
    assert chain_of(network(), data(inputs=torch.zeros(30, dtype=torch.int64))) is None
    with torch.autocast("cpu"):
        assert chain_of(network(), data()) is None
    handle = nn.modules.module.register_module_forward_hook(call)
    try:
        assert chain_of(network(), data()) is None
    finally:
        handle.remove()


def test_a_hook_is_called_at_every_step_and_a_regression_trains() -> None:
    calls: list[int] = []
    model = hooked(lambda model: model[1].register_forward_hook(lambda *_: calls.append(1)))
    end(model, data(), steps=(3, 2))
    assert len(calls) == 5
    regression = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    before = read_state(regression)
    end(regression, data(labels=torch.ones(30)))
    assert not torch.equal(before["1.weight"], read_state(regression)["1.weight"])


def test_the_plain_path_is_autograd_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(kernel, "chain_of", refuse)
    make = make_optimizer("sgd", lr=0.1)
    train(network(), data(), batch_order(30, 8, np.random.default_rng(0)), [(None, 2)], optimizer=make, plain=True)


# SGD's step by itself

SGD = ("sgd", "sgd-decay", "sgd-momentum", "sgd-nesterov-decay")


@pytest.mark.parametrize("adopt", [False, True])
@pytest.mark.parametrize("optimizer", SGD)
def test_the_fused_step_is_that_of_pytorch_s_optimiser(optimizer: str, adopt: bool) -> None:
    make = make_optimizer(**OPTIMIZERS[optimizer])
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in ((7, 5), (7,), (33,))]
    mine, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    steppers = fused(make, mine, adopt=adopt), by_torch(make, theirs)
    assert isinstance(steppers[0], FusedSGD)
    for step in range(4):
        for first, second in zip(mine[:2], theirs[:2], strict=True):
            first.grad = torch.randn(first.shape, generator=generator)
            second.grad = first.grad.clone()
        for stepper in steppers:
            stepper.param_groups[0]["lr"] = 0.1 / (step + 1)
            stepper.step()
        # the last one has no gradient
        assert all(torch.equal(first, second) for first, second in zip(mine, theirs, strict=True))
    assert torch.equal(mine[2], starts[2]) and not torch.equal(mine[1], starts[1])


def test_a_gradient_that_comes_later_starts_its_own_momentum() -> None:
    early, late = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    stepper = FusedSGD([early, late], lr=1.0, momentum=0.5)
    early.grad = torch.ones(1)
    stepper.step()
    early.grad, late.grad = torch.ones(1), torch.ones(1)
    stepper.step()
    assert (early.item(), late.item()) == (-2.5, -1)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"lr": -1.0}, "Invalid learning rate"),
        ({"lr": 0.1, "momentum": -1.0}, "Invalid momentum"),
        ({"lr": 0.1, "weight_decay": -1.0}, "Invalid weight_decay"),
        ({"lr": 0.1, "nesterov": True}, "Nesterov momentum requires"),
    ],
)
def test_pytorch_still_refuses_what_it_refuses(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        fused(make_optimizer("sgd", **settings), [nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="empty parameter list"):
        fused(make_optimizer("sgd", lr=0.1), [])


def test_what_the_step_alone_does_not_cover_is_left_to_pytorch_s_optimiser() -> None:
    one = nn.Parameter(torch.ones(2))
    other = nn.Parameter(torch.ones(2, dtype=torch.float64))
    assert isinstance(fused(make_optimizer("sgd", lr=0.1), [one]), FusedSGD)
    for make, parameters in (
        (make_optimizer("sgd", lr=0.1, args={"dampening": 0.1}), [one]),
        (make_optimizer("sgd", lr=0.1), [one, other]),
        (make_optimizer("torch.optim:SGD", lr=0.1), [one]),
    ):
        assert type(fused(make, parameters)) is torch.optim.SGD


def test_a_process_that_trains_by_sgd_does_not_import_pytorch_s_compiler() -> None:
    program = """
import sys
import numpy as np, torch
from fedpfn.examples import Examples
from fedpfn.models import build
from fedpfn.training import batch_order, make_optimizer, train
from local_algorithms import begun
from fedpfn.algorithms import FedProx
examples = Examples(torch.zeros(6, 1, 18, 18), torch.zeros(6, dtype=torch.int64))
for name in ("mlp", "cnn"):
    model = build(name, (1, 18, 18), 3, seed=0)
    train(
        model, examples, batch_order(6, 2, np.random.default_rng(0)), [(None, 2)],
        optimizer=make_optimizer("sgd", lr=0.1, momentum=0.9), clip_norm=1.0,
        algorithm=begun(model, FedProx(mu=0.1)),
    )
print("torch._dynamo" in sys.modules)
"""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert found.stdout.strip() == "False"
