"""The fast path of local training against the plain one: same clients, same order, the same weights."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from local_algorithms import with_proximal_term
from torch import Tensor, nn
from toys import bits

from fedpfn.examples import Examples
from fedpfn.freezing import BitMask, Freeze
from fedpfn.masks import MaskRecipe, build_mask
from fedpfn.models import build
from fedpfn.params import State, read_state, trainable
from fedpfn.training import batch_order, make_optimizer, train
from fedpfn.training.optimizers import fuse, keeps_entries_without_gradient

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.01},
    "sgd-momentum": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
    "sgd-nesterov-decay": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"name": "adam", "lr": 0.0001},
    "adam-decay": {"name": "adam", "lr": 0.0001, "weight_decay": 0.01},
    "adamw": {"name": "adamw", "lr": 0.0001, "weight_decay": 0.1},
}
EXTRAS: dict[str, dict[str, float]] = {"bare": {}, "clipped-proximal": {"clip_norm": 0.5, "proximal_mu": 0.1}}
MODELS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "mlp": ("mlp", (1, 4, 4), {"width": 20}),
    "cnn": ("cnn", (1, 18, 18), {"width_multiplier": 0.25}),
    "resnet20-group": ("resnet20", (1, 8, 8), {"norm": "group", "width_multiplier": 0.25}),
}


def trained(
    model: nn.Module, shape: tuple[int, ...], *, plain: bool, ratio: float | None, steps: int, settings: dict[str, Any],
    extra: dict[str, float], dtype: torch.dtype = torch.float32,
) -> tuple[State, float]:  # fmt: skip
    """Train a few clients' worth of examples: 30 of them in batches of 8, so that the last one of an epoch is short."""
    model = model.to(dtype)
    generator = np.random.default_rng(0)
    examples = Examples(
        torch.from_numpy(generator.normal(size=(30, *shape))).to(dtype),
        torch.from_numpy(generator.integers(0, 3, 30)),
    )
    mask = None if ratio is None else build_mask(MaskRecipe(1, ratio), trainable(model))
    phases: list[tuple[Any, int]] = [(mask, steps // 2), (mask, steps - steps // 2)]
    found = train(
        model, examples, batch_order(30, 8, np.random.default_rng(1)), phases,
        optimizer=make_optimizer(**settings), plain=plain, **with_proximal_term(model, extra),
    )  # fmt: skip
    return read_state(model), found.loss


# all settings with the MLP. What a model changes is its layers: no choice of the fast path depends on a model and on
# an extra or a mask, so a CNN meets each optimiser with neither and with both, and a ResNet one of each family
CASES = [
    *product(["mlp"], OPTIMIZERS, EXTRAS, (None, 0.4)),
    *(("cnn", optimizer, *pair) for optimizer in OPTIMIZERS for pair in (("bare", None), ("clipped-proximal", 0.4))),
    *(("resnet20-group", optimizer, "bare", 0.4) for optimizer in ("sgd-nesterov-decay", "adamw")),
]


@pytest.mark.parametrize(("name", "optimizer", "extra", "ratio"), CASES)
def test_fifty_steps_end_where_the_plain_path_ends(name: str, optimizer: str, extra: str, ratio: float | None) -> None:
    alias, shape, keys = MODELS[name]
    # a ResNet in float32 soon amplifies any rounding: at this rate 50 steps do not
    settings = OPTIMIZERS[optimizer] | {"lr": OPTIMIZERS[optimizer]["lr"] * (0.1 if name.startswith("resnet") else 1)}
    ends, losses = zip(
        *(
            trained(
                build(alias, shape, 3, seed=3, **keys), shape, plain=plain, ratio=ratio, steps=50,
                settings=settings, extra=EXTRAS[extra], dtype=dtype,
            )
            for dtype in (torch.float64, torch.float32)
            for plain in (True, False)
        ),
        strict=True,
    )  # fmt: skip
    for entry, exact in ends[0].items():
        # in float64 the two are one formula
        torch.testing.assert_close(ends[1][entry], exact, rtol=1e-9, atol=1e-10)
    assert losses[3] == pytest.approx(losses[2], rel=1e-5)
    for entry, plainly in ends[2].items():
        assert float((ends[3][entry] - plainly).norm()) <= 1e-5 * float(plainly.norm())


def choose(parameter: Tensor, mask: Tensor, anchor: Tensor) -> Tensor:
    """The slow twin of ``Freeze``: choose by booleans."""
    return torch.where(mask, parameter, anchor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_bits_choose_as_booleans_do(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(50, 7, generator=generator).to(dtype))
    mask = torch.rand(50, 7, generator=generator) > 0.4
    anchor = parameter.detach().clone()
    freeze = Freeze({"w": parameter}, {"w": mask})
    parameter.grad = torch.randn(50, 7, generator=generator).to(dtype)
    parameter.grad[0] = torch.inf
    expected = parameter.grad.masked_fill(~mask, 0)
    freeze.mask_gradients()
    assert torch.equal(parameter.grad, expected)
    with torch.no_grad():
        parameter.mul_(3).add_(1)
    moved = choose(parameter.detach(), mask, anchor)
    freeze.restore()
    assert torch.equal(parameter, moved) and not torch.equal(parameter, anchor)


def test_a_gradient_that_is_not_one_run_of_memory_is_masked_alike() -> None:
    parameter, mask = nn.Parameter(torch.zeros(3, 4)), torch.arange(12).reshape(3, 4) % 2 == 0
    parameter.grad = torch.arange(1.0, 13).reshape(4, 3).t()
    expected = parameter.grad.masked_fill(~mask, 0)
    Freeze({"w": parameter}, {"w": mask}).mask_gradients()
    assert torch.equal(parameter.grad, expected)


def test_a_mask_made_ready_serves_client_after_client() -> None:
    first, second = (nn.Parameter(torch.full((4,), value)) for value in (1.0, 2.0))
    ready = BitMask.of({"w": torch.tensor([True, False, True, True])}, {"w": first})
    for parameter, value in ((first, 1.0), (second, 2.0)):
        freeze = Freeze({"w": parameter}, ready)
        with torch.no_grad():
            parameter.add_(1)
        freeze.restore()
        assert parameter.tolist() == [value + 1, value, value + 1, value + 1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("plain", [True, False])
def test_an_optimizer_that_is_said_to_leave_still_entries_does(optimizer: str, plain: bool) -> None:
    settings = OPTIMIZERS[optimizer]
    start = torch.tensor([-0.0, 0.0, 1e-45, -3.5, 1.0])
    parameter = nn.Parameter(start.clone())
    stepper = make_optimizer(**settings)([parameter])
    if not plain:
        fuse(stepper)
    for _ in range(3):
        parameter.grad = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
        stepper.step()
    still = torch.equal(bits(parameter)[:4], bits(start)[:4])
    assert still == keeps_entries_without_gradient(stepper) == ("weight_decay" not in settings)
    assert parameter[4] < 1


def test_an_optimizer_of_another_class_is_trusted_with_nothing() -> None:
    stepper = torch.optim.RMSprop([nn.Parameter(torch.ones(2))], lr=0.1)
    fuse(stepper)
    assert "fused" not in stepper.param_groups[0] and not keeps_entries_without_gradient(stepper)


def test_an_optimizer_that_was_told_how_is_left_alone() -> None:
    stepper = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, foreach=True)
    fuse(stepper)
    assert not stepper.param_groups[0]["fused"]


def test_sparse_gradients_train_by_the_plain_path() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    tokens = Examples(torch.randint(0, 5, (12, 2)), torch.randint(0, 3, (12,)))
    before = read_state(model)
    train(
        model,
        tokens,
        batch_order(12, 4, np.random.default_rng(0)),
        [(None, 6)],
        optimizer=make_optimizer("sgd", lr=0.1),
    )
    assert not torch.equal(before["0.weight"], read_state(model)["0.weight"])
