"""Frozen entries never move, active ones move as the optimiser says, and the loop around them does what it promises."""

import copy
import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local_algorithms import with_proximal_term
from numpy.typing import NDArray
from torch import Tensor, nn
from toys import Two, bits

from fedpfn.evaluation import evaluate
from fedpfn.examples import Examples
from fedpfn.freezing import Freeze
from fedpfn.masks import Mask, MaskRecipe, build_mask
from fedpfn.params import State, read_state, trainable
from fedpfn.training import NonFiniteError, Trained, batch_order, count_steps, make_optimizer, train

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.1, "weight_decay": 0.01},
    "sgd-momentum": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "sgd-nesterov": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"name": "adam", "lr": 0.01, "weight_decay": 0.01},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
}
EXTRAS: dict[str, dict[str, float]] = {
    "plain": {},
    "clipped": {"clip_norm": 0.1},
    "proximal": {"proximal_mu": 0.1},
    "clipped-proximal": {"clip_norm": 0.1, "proximal_mu": 0.1},
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def mlp(*, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(device, dtype)


def toy(*, size: int = 10, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Examples:
    generator = np.random.default_rng(0)
    inputs = torch.from_numpy(generator.normal(size=(size, 4))).to(dtype)
    return Examples(inputs.to(device), torch.from_numpy(generator.integers(0, 3, size)).to(device))


def order(size: int = 10, batch_size: int = 4, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    return batch_order(size, batch_size, np.random.default_rng(seed))


def same_bits(first: Tensor, second: Tensor, where: Tensor) -> bool:
    return torch.equal(bits(first)[where], bits(second)[where])


def opposite(mask: Mask) -> Mask:
    return {name: ~trained for name, trained in mask.items()}


# the battery: every optimiser, whatever else acts on the gradient, every kind of mask


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("draw", ["exact", "bernoulli"])
@pytest.mark.parametrize("granularity", ["weight", "neuron"])
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_coordinates_never_move_and_all_others_do(
    optimizer: str, extra: str, granularity: str, draw: str, device: str
) -> None:
    model = mlp(device=device)
    before = read_state(model)
    mask = build_mask(MaskRecipe(1, 0.5, granularity=granularity, draw=draw), trainable(model))
    settings = {**OPTIMIZERS[optimizer]}
    extras = with_proximal_term(model, EXTRAS[extra])
    train(model, toy(device=device), order(), [(mask, 6)], optimizer=make_optimizer(**settings), **extras)
    after = read_state(model)
    assert 0 < sum(int((~trained).sum()) for trained in mask.values()) < 51
    for name, trained in mask.items():
        assert same_bits(after[name], before[name], ~trained)
        assert bool((after[name] != before[name])[trained].all())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zero_gradients_alone_would_not_freeze(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # the control: without the anchors, each optimiser of the battery moves entries whose gradient is zero
    monkeypatch.setattr(Freeze, "restore", lambda self: None)
    model = mlp()
    before = read_state(model)
    mask = build_mask(MaskRecipe(1, 0.5), trainable(model))
    train(model, toy(), order(), [(mask, 6)], optimizer=make_optimizer(**OPTIMIZERS[optimizer]))
    for name, trained in mask.items():
        assert bool((read_state(model)[name] != before[name])[~trained].all())


@settings(max_examples=15)
@given(
    st.sampled_from(sorted(OPTIMIZERS)),
    st.integers(0, 1000),
    st.floats(0, 1),
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
)
def test_what_no_phase_trains_never_moves(optimizer: str, seed: int, ratio: float, steps: list[int]) -> None:
    model = mlp()
    before = read_state(model)
    masks = [build_mask(MaskRecipe(seed + i, ratio), trainable(model)) for i in range(len(steps))]
    train(
        model, toy(), order(), list(zip(masks, steps, strict=True)), optimizer=make_optimizer(**OPTIMIZERS[optimizer])
    )
    for name, tensor in read_state(model).items():
        untouched = ~torch.stack([mask[name] for mask in masks]).any(dim=0)
        assert same_bits(tensor, before[name], untouched)


def test_a_mask_of_ones_is_no_mask_to_the_bit() -> None:
    ends = []
    for mask in (None, {name: torch.ones_like(p, dtype=torch.bool) for name, p in trainable(mlp()).items()}):
        model = mlp()
        train(model, toy(), order(), [(mask, 5)], optimizer=make_optimizer(**OPTIMIZERS["adamw"]), clip_norm=0.1)
        ends.append(read_state(model))
    assert all(torch.equal(bits(ends[0][name]), bits(ends[1][name])) for name in ends[0])


def test_training_twice_gives_the_same_bits() -> None:
    ends = []
    for _ in range(2):
        model = mlp()
        mask = build_mask(MaskRecipe(1, 0.4), trainable(model))
        trained = train(model, toy(), order(), [(mask, 7)], optimizer=make_optimizer(**OPTIMIZERS["adam"]))
        ends.append((trained, {name: bits(tensor).tolist() for name, tensor in read_state(model).items()}))
    assert ends[0] == ends[1]


def test_training_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    mask = build_mask(MaskRecipe(1, 0.4), trainable(mlp()))
    model = mlp()
    train(
        model, toy(), order(), [(mask, 3)], optimizer=make_optimizer(**OPTIMIZERS["adamw"]),
        **with_proximal_term(model, {"proximal_mu": 0.1, "clip_norm": 0.1}),
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tied_parameter_is_held_once_and_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    before = read_state(model)
    mask = build_mask(MaskRecipe(1, 0.5), trainable(model))
    assert list(mask) == ["0.weight"]
    train(model, toy(), order(), [(mask, 5)], optimizer=make_optimizer(**OPTIMIZERS["sgd-momentum"]))
    after = read_state(model)
    assert same_bits(after["0.weight"], before["0.weight"], ~mask["0.weight"])
    assert bool((after["0.weight"] != before["0.weight"])[mask["0.weight"]].all())


# Freeze on its own

ODD_BITS = [0x80000000, 0x7FC12345, 0xFFC00001, 0x7F800001, 0x00000001, 0x7F800000, 0xFF800000, 0x3F800000]


def odd_values() -> nn.Parameter:
    """Return -0.0, NaNs with payloads (a signalling one too), a subnormal, the infinities and 1."""
    return nn.Parameter(torch.from_numpy(np.array(ODD_BITS, dtype=np.uint32).view(np.float32).copy()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_anchors_come_back_to_the_bit_whatever_their_value(optimizer: str) -> None:
    parameter = odd_values()
    mask = torch.zeros(8, dtype=torch.bool)
    mask[-1] = True
    freeze = Freeze({"w": parameter}, {"w": mask})
    stepper = make_optimizer(**OPTIMIZERS[optimizer])([parameter])
    for _ in range(3):
        parameter.grad = torch.ones(8)
        freeze.mask_gradients()
        stepper.step()
        freeze.restore()
    assert (bits(parameter)[:7].numpy().view(np.uint32) == np.array(ODD_BITS[:7], dtype=np.uint32)).all()
    assert parameter[7].item() < 1


def test_negative_zero_and_subnormals_survive_a_whole_training() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight.view(-1)[:2] = torch.tensor([-0.0, 1e-45])
    mask = {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in trainable(model).items()}
    mask["0.weight"].view(-1)[:2] = False
    train(model, toy(), order(), [(mask, 3)], optimizer=make_optimizer(**OPTIMIZERS["sgd-momentum"]))
    assert bits(model[0].weight).view(-1)[:2].tolist() == [-(2**31), 1]


def test_a_frozen_entry_takes_no_part_in_the_gradient_even_if_its_own_is_not_finite() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.tensor([math.inf, math.nan, -math.inf, 2.0])
    Freeze({"w": parameter}, {"w": torch.tensor([False, False, False, True])}).mask_gradients()
    assert parameter.grad.tolist() == [0, 0, 0, 2]


def test_anchors_are_the_values_at_the_start_and_a_parameter_without_gradient_is_let_be() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    freeze = Freeze({"w": parameter}, {"w": torch.tensor([False, True])})
    freeze.mask_gradients()
    with torch.no_grad():
        parameter.add_(5)
    freeze.restore()
    assert parameter.tolist() == [1, 7]
    assert parameter.requires_grad and parameter.grad is None


def test_no_mask_holds_nothing() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    parameter.grad = torch.tensor([3.0])
    freeze = Freeze({"w": parameter}, None)
    with torch.no_grad():
        parameter.add_(1)
    freeze.mask_gradients()
    freeze.restore()
    assert (parameter.item(), parameter.grad.item()) == (2, 3)


# steps by hand: logits (w0, w1) for the input 1 and the label 0, so that the gradient is (p0 - 1, p1)


ONE = Examples(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64))
FIRST, SECOND = ({"w": torch.tensor(active)} for active in ([True, False], [False, True]))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def after(phases: list[tuple[Mask | None, int]], *, mu: float = 0.0, clip: float = 0.0, **sgd: float) -> list[float]:
    model = Two()
    optimizer = make_optimizer("sgd", lr=0.5, **sgd)  # type: ignore[arg-type]
    extras = with_proximal_term(model, {"proximal_mu": mu, "clip_norm": clip})
    train(model, ONE, order(1, 1), phases, optimizer=optimizer, **extras)
    return list(model.w.tolist())


def test_a_step_of_sgd_by_hand() -> None:
    assert after([(None, 1)]) == [1.25, 0.75]
    assert after([(FIRST, 1)]) == [1.25, 1]
    assert after([(SECOND, 1)]) == [1, 0.75]


def test_two_steps_of_sgd_with_momentum_and_weight_decay_by_hand_under_a_mask() -> None:
    first = -0.5 + 0.1 * 1
    w = 1 - 0.5 * first
    second = 0.9 * first + (sigmoid(w - 1) - 1) + 0.1 * w
    found = after([(FIRST, 2)], momentum=0.9, weight_decay=0.1)
    assert found == [pytest.approx(w - 0.5 * second, abs=1e-15), 1]


def test_the_proximal_gradient_by_hand() -> None:
    # the first step starts where the term is 0; in the second it is mu (w - 1)
    assert after([(FIRST, 1)], mu=0.3) == [1.25, 1]
    second = (sigmoid(0.25) - 1) + 0.3 * 0.25
    assert after([(FIRST, 2)], mu=0.3) == [pytest.approx(1.25 - 0.5 * second, abs=1e-15), 1]


def test_the_proximal_term_pulls_to_the_start_of_the_round_not_of_the_phase() -> None:
    second = (sigmoid(0.25) - 1) + 0.3 * 0.25
    assert after([(FIRST, 1), (FIRST, 1)], mu=0.3)[0] == pytest.approx(1.25 - 0.5 * second, abs=1e-15)


def test_clipping_counts_active_entries_only() -> None:
    # the whole gradient has norm 0.707, its active part 0.5
    assert after([(FIRST, 1)], clip=0.6) == [1.25, 1]
    assert after([(FIRST, 1)], clip=0.25) == [pytest.approx(1.125, abs=1e-5), 1]
    assert after([(None, 1)], clip=0.25)[0] == pytest.approx(1 + 0.5 * 0.25 / math.sqrt(2), abs=1e-5)


def test_clipping_takes_the_proximal_term_in() -> None:
    model = Two()
    seen: list[float] = []

    def optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
        stepper = torch.optim.SGD(parameters, lr=0.5)
        stepper.register_step_pre_hook(lambda *_: seen.append(float(parameters[0].grad.norm())))  # type: ignore[union-attr]
        return stepper

    extras = with_proximal_term(model, {"proximal_mu": 50.0, "clip_norm": 0.1})
    train(model, ONE, order(1, 1), [(None, 3)], optimizer=optimizer, **extras)
    assert seen == pytest.approx([0.1] * 3, abs=1e-4)


def test_a_second_phase_trains_the_rest_without_the_first_ones_momentum() -> None:
    # a thawed entry takes a plain step, a frozen one keeps the first phase's end
    found = after([(FIRST, 1), (SECOND, 1)], momentum=0.9)
    assert found == [1.25, pytest.approx(1 - 0.5 * (1 - sigmoid(0.25)), abs=1e-15)]
    # an entry that both phases train starts without momentum as well
    again = after([(FIRST, 1), (FIRST, 1)], momentum=0.9)
    assert again[0] == pytest.approx(1.25 + 0.5 * (1 - sigmoid(0.25)), abs=1e-15)
    assert after([(FIRST, 2)], momentum=0.9)[0] > again[0] + 0.2


# the same against a slow twin in float64


def twin(name: str, parameters: list[Tensor], masks: list[Tensor], **s: Any) -> Callable[[list[Tensor]], None]:
    """Return a step of eq. 5 written out: w <- w - m * (lr * direction), the direction from masked gradients."""
    lr, decay = s["lr"], s.get("weight_decay", 0.0)
    momentum, nesterov = s.get("momentum", 0.0), s.get("nesterov", False)
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    count = 0

    def step(gradients: list[Tensor]) -> None:
        nonlocal count
        count += 1
        for i, (w, m) in enumerate(zip(parameters, masks, strict=True)):
            g = gradients[i] * m
            if name == "sgd":
                g = g + decay * w
                first[i] = momentum * first[i] + g if count > 1 else g
                move = lr * (g + momentum * first[i] if nesterov else first[i])
            else:
                g = g + decay * w if name == "adam" else g
                first[i] = 0.9 * first[i] + 0.1 * g
                second[i] = 0.999 * second[i] + 0.001 * g * g
                mean, square = first[i] / (1 - 0.9**count), second[i] / (1 - 0.999**count)
                move = lr * mean / (square.sqrt() + 1e-8) + (lr * decay * w if name == "adamw" else 0)
            w -= m * move

    return step


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_agrees_with_the_equation_written_out(optimizer: str) -> None:
    fast, slow = mlp(dtype=torch.float64), mlp(dtype=torch.float64)
    examples = toy(dtype=torch.float64)
    mask = build_mask(MaskRecipe(3, 0.4), trainable(fast))
    train(fast, examples, order(), [(mask, 7)], optimizer=make_optimizer(**OPTIMIZERS[optimizer]))

    parameters = list(slow.parameters())
    step = twin(
        parameters=[p.data for p in parameters], masks=[mask[n].double() for n in mask], **OPTIMIZERS[optimizer]
    )
    for indices in islice(order(), 7):
        logits = slow(examples.inputs[indices])
        right = logits[range(len(indices)), examples.labels[indices]]
        loss = (logits.exp().sum(dim=1).log() - right).mean()
        step(list(torch.autograd.grad(loss, parameters)))
    for mine, expected in zip(fast.parameters(), parameters, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12)


# phases


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_phases_in_one_call_are_calls_one_after_the_other(optimizer: str) -> None:
    mask = build_mask(MaskRecipe(3, 0.4), trainable(mlp()))
    make = make_optimizer(**OPTIMIZERS[optimizer])
    together, apart = mlp(), mlp()
    train(together, toy(), order(), [(mask, 3), (opposite(mask), 4)], optimizer=make)
    batches = order()
    train(apart, toy(), batches, [(mask, 3)], optimizer=make)
    between = read_state(apart)
    train(apart, toy(), batches, [(opposite(mask), 4)], optimizer=make)
    end, expected = read_state(together), read_state(apart)
    for name, trained in mask.items():
        assert torch.equal(bits(end[name]), bits(expected[name]))
        assert same_bits(end[name], between[name], trained)
        assert bool((end[name] != between[name])[~trained].all())


def test_phases_take_consecutive_batches_and_no_more() -> None:
    taken: list[list[int]] = []

    def recorded() -> Iterator[NDArray[np.int64]]:
        for indices in order():
            taken.append(indices.tolist())
            yield indices

    found = train(mlp(), toy(), recorded(), [(None, 2), (None, 0), (None, 3)], optimizer=make_optimizer("sgd", lr=0.1))
    assert found.steps == 5
    assert taken == [indices.tolist() for indices in islice(order(), 5)]


def test_no_steps_change_nothing() -> None:
    model = mlp()
    before = read_state(model)
    found = train(model, toy(), order(), [(None, 0)], optimizer=make_optimizer("sgd", lr=0.1))
    assert found.steps == 0 and math.isnan(found.loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in read_state(model).items())


def test_what_does_not_require_gradients_stays_and_what_is_not_used_does_no_harm() -> None:
    model = mlp()
    model[0].bias.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    before: State = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    mask = build_mask(MaskRecipe(1, 0.5), trainable(model))
    train(
        model, toy(), order(), [(mask, 2)], optimizer=make_optimizer(**OPTIMIZERS["adamw"]),
        **with_proximal_term(model, {"proximal_mu": 0.1, "clip_norm": 1.0}),
    )  # fmt: skip
    assert "0.bias" not in mask
    for name in ("0.bias", "unused"):
        assert torch.equal(dict(model.named_parameters())[name], before[name])
    assert not torch.equal(model[0].weight, before["0.weight"])


def test_the_model_trains_in_training_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    train(model, toy(), order(), [(None, 2)], optimizer=make_optimizer("sgd", lr=0.1))
    assert int(model[1].num_batches_tracked) == 2
    assert not torch.equal(model[1].running_mean, torch.zeros(3))


# the loss that is reported, and losses that are not finite


def test_the_loss_is_a_mean_over_examples_not_over_batches() -> None:
    model = mlp()
    examples = toy()
    found = train(model, examples, order(), [(None, 3)], optimizer=make_optimizer("sgd", lr=0.0))
    assert found == Trained(pytest.approx(evaluate(model, examples).loss, rel=1e-6), 3, reach=(0.0,))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_with_its_step(bad: float) -> None:
    examples = toy()
    examples.inputs[5] = bad
    batches = iter([np.array([0, 1]), np.array([2, 3]), np.array([4, 5]), np.array([6, 7])])
    with pytest.raises(NonFiniteError, match=r"^the loss is nan at local step 3 of 4$"):
        train(mlp(), examples, batches, [(None, 3), (None, 1)], optimizer=make_optimizer("sgd", lr=0.1))


def test_a_weight_that_is_not_finite_at_the_end_is_named() -> None:
    with pytest.raises(NonFiniteError, match=r"^0\.weight is not finite after local step 1 of 1$"):
        train(mlp(), toy(), order(), [(None, 1)], optimizer=make_optimizer("sgd", lr=3e38, weight_decay=10.0))
    assert issubclass(NonFiniteError, ArithmeticError)


# batches


def test_batches_by_hand() -> None:
    permutation = np.random.default_rng(0).permutation(5).tolist()
    found = [batch.tolist() for batch in islice(order(5, 2), 3)]
    assert found == [permutation[:2], permutation[2:4], permutation[4:]]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_each_epoch_covers_every_example_once(size: int, batch_size: int, seed: int) -> None:
    per_epoch = -(-size // batch_size)
    assert count_steps(size, batch_size=batch_size, epochs=1) == per_epoch
    batches = list(islice(order(size, batch_size, seed), 3 * per_epoch))
    epochs = [np.concatenate(batches[i : i + per_epoch]) for i in range(0, 3 * per_epoch, per_epoch)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(size))
    assert all(len(batch) == batch_size for i, batch in enumerate(batches) if (i + 1) % per_epoch)


def test_epochs_are_shuffled_anew() -> None:
    batches = list(islice(order(40, 40), 3))
    assert len({tuple(batch.tolist()) for batch in batches}) == 3


@given(st.integers(1, 40), st.integers(1, 10), st.integers(1, 4))
def test_no_batch_is_smaller_than_least(size: int, batch_size: int, least: int) -> None:
    lengths = [min(batch_size, size - start) for start in range(0, size, batch_size)]
    kept = [length for length in lengths if length >= least]
    batches = batch_order(size, batch_size, np.random.default_rng(0), min_batch=least)
    if not kept:
        with pytest.raises(ValueError, match=f"{size} examples in batches of {batch_size} give no batch"):
            next(batches)
        with pytest.raises(ValueError, match="no batch"):
            count_steps(size, batch_size=batch_size, epochs=1, min_batch=least)
        return
    assert count_steps(size, batch_size=batch_size, epochs=3, min_batch=least) == 3 * len(kept)
    assert [len(batch) for batch in islice(batches, 2 * len(kept))] == 2 * kept


@pytest.mark.parametrize(
    ("size", "settings", "expected"),
    [
        (10, {"batch_size": 4, "epochs": 1}, 3),
        (10, {"batch_size": 4, "epochs": 2}, 6),
        (10, {"batch_size": 4, "epochs": 2, "steps": 5}, 5),
        (9, {"batch_size": 4, "epochs": 2}, 6),
        (9, {"batch_size": 4, "epochs": 2, "min_batch": 2}, 4),
        (3, {"batch_size": 100, "epochs": 1}, 1),
        (10, {"batch_size": 4, "epochs": 1.0}, 3),
        (10, {"batch_size": 4, "epochs": 0.5}, 2),
        (10, {"batch_size": 4, "epochs": 1.5}, 5),
        (10, {"batch_size": 4, "epochs": 1 / 3}, 1),
        (10, {"batch_size": 4, "epochs": 0.001}, 1),
        (10, {"batch_size": 4, "epochs": 1e-300}, 1),
        (30, {"batch_size": 1, "epochs": 0.1}, 3),
        (9, {"batch_size": 4, "epochs": 0.75, "min_batch": 2}, 2),
        (10, {"batch_size": 4, "epochs": 0.5, "steps": 5}, 5),
    ],
)
def test_steps_are_counted_as_by_hand(size: int, settings: dict[str, Any], expected: int) -> None:
    assert count_steps(size, **settings) == expected


def test_a_client_without_examples_is_an_error_and_one_too_few_for_batch_norm_says_so() -> None:
    with pytest.raises(ValueError, match="0 examples"):
        next(order(0, 4))
    with pytest.raises(ValueError, match="BatchNorm cannot train on one example"):
        count_steps(1, batch_size=4, epochs=1, min_batch=2)


def test_a_copy_of_a_model_trains_to_the_same_bits() -> None:
    model = mlp()
    other = copy.deepcopy(model)
    for each in (model, other):
        train(each, toy(), order(), [(None, 3)], optimizer=make_optimizer(**OPTIMIZERS["adam"]))
    assert all(torch.equal(tensor, read_state(other)[name]) for name, tensor in read_state(model).items())
