"""Learning rates over the steps of a round and over the rounds of a run: by hand, by their sums, and in training."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toys import federate

from fedpfn.examples import Examples
from fedpfn.losses import batch_loss
from fedpfn.models import build
from fedpfn.params import read_state
from fedpfn.runs.arguments import lr_factor_of, round_lr
from fedpfn.runs.config import KEYS, ConfigError, RunConfig
from fedpfn.runs.identity import config_warnings, used_keys
from fedpfn.training import ClientTraining, Trained, batch_order, make_lr_schedule, make_optimizer, train, train_stacked
from fedpfn.training.lr_schedules import cosine, linear, step_by, warm_up
from fedpfn.training.stacked import Outcome
from strategies.preflight import find_faults


def halving(done: int, total: int) -> float:
    return 0.5**done


def rising(done: int, total: int) -> float:
    return 1 + done / total


def still(done: int, total: int) -> int:
    return 0


def negative(done: int, total: int) -> float:
    return 0.5 - done


def of_one(done: int) -> float:
    return 1.0


def config(**keys: Any) -> RunConfig:
    return RunConfig.parse(toys.keys(keys))


# by themselves


@given(st.integers(1, 300))
def test_a_round_of_linear_or_cosine_is_worth_half_its_steps_and_a_half(total: int) -> None:
    for schedule in (linear, cosine):
        factors = [schedule(done, total) for done in range(total)]
        assert sum(factors) == pytest.approx((total + 1) / 2)
        assert factors[0] == 1 and min(factors) > 0 and factors == sorted(factors, reverse=True)


@given(st.integers(1, 20), st.floats(0.1, 1), st.integers(1, 8))
def test_drops_come_at_multiples_and_their_blocks_are_a_geometric_sum(every: int, gamma: float, blocks: int) -> None:
    factors = [step_by(every, gamma)(done, 0) for done in range(every * blocks)]
    assert sum(factors) == pytest.approx(every * sum(gamma**block for block in range(blocks)))
    assert [factors[i] == factors[i - 1] for i in range(1, len(factors))] == [
        i % every != 0 or gamma == 1 for i in range(1, len(factors))
    ]


@given(st.integers(0, 50))
def test_a_warm_up_rises_by_equal_steps_and_ends_at_the_full_rate(rounds: int) -> None:
    factors = [warm_up(done, rounds) for done in range(rounds + 3)]
    assert factors[0] == 1 / (rounds + 1) and factors[rounds:] == [1.0] * 3
    assert np.allclose(np.diff(factors[: rounds + 1]), 1 / (rounds + 1))


@pytest.mark.parametrize("key", ["train.schedule", "train.round-schedule"])
def test_every_choice_of_a_key_is_a_schedule_that_starts_at_one(key: str) -> None:
    for name in KEYS[key].choices:
        schedule = make_lr_schedule(name, every=2, gamma=0.5)
        assert schedule(0, 5) == 1
        assert (schedule(4, 5) == 1) == (name == "constant")


# from a config


def test_the_rates_of_rounds_multiply() -> None:
    given = config(rounds=4, train__lr=0.8, train__lr_decay=0.5, train__round_schedule="linear", train__warmup_rounds=1)
    assert [round_lr(given, r) for r in (1, 2, 3, 4)] == pytest.approx(
        [0.8 * 0.5, 0.4 * 0.75, 0.2 * 0.5, 0.1 * 0.25], rel=1e-12
    )
    dropping = config(
        rounds=5, train__lr=1.0, train__round_schedule="step", train__round_schedule_every=2,
        train__round_schedule_gamma=0.5,
    )  # fmt: skip
    assert [round_lr(dropping, r) for r in range(1, 6)] == [1, 1, 0.5, 0.5, 0.25]


@given(st.floats(1e-6, 10), st.floats(0.5, 1), st.integers(1, 500))
def test_without_schedules_a_rate_is_to_the_bit_what_it_was_before_there_were_any(
    lr: float, decay: float, server_round: int
) -> None:
    given = config(train__lr=lr, train__lr_decay=decay)
    assert round_lr(given, server_round) == lr * decay ** (server_round - 1)
    assert lr_factor_of(given, 7) is None


def test_keys_of_drops_count_where_there_are_drops() -> None:
    names = {"train.schedule-every", "train.schedule-gamma"}
    assert not names & used_keys(RunConfig()).keys()
    assert names <= used_keys(config(train__schedule="step")).keys()
    assert config_warnings(config(train__round_schedule_every=3), {"train.round-schedule-every"}) == [
        "train.round-schedule-every has no effect with train.round-schedule=constant"
    ]


@pytest.mark.parametrize("key", ["train.schedule", "train.round-schedule"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cosin", "did you mean 'cosine'"),
        ("no_such_module:x", "no module named 'no_such_module'"),
        ("math:pi", "TypeError"),
        (f"{__name__}:of_one", "TypeError"),
        (f"{__name__}:negative", "must return a finite factor of 0 or more, got -4.5 at (5, 10)"),
    ],
)
def test_what_is_no_schedule_is_a_fault_before_anything_starts(key: str, name: str, reason: str) -> None:
    reading = RunConfig.read({key: name, "rounds": 10})
    faults = [*reading.faults, *find_faults(reading.config, unknown=reading.unknown)]
    assert len(faults) == 1 and faults[0].startswith(key) and reason in faults[0]


def test_a_schedule_of_the_users_own_is_none() -> None:
    for name in ("halving", "rising", "still"):
        keys = dict.fromkeys(("train.schedule", "train.round-schedule"), f"{__name__}:{name}")
        assert find_faults(RunConfig.parse(keys)) == []
    factor = lr_factor_of(config(train__schedule=f"{__name__}:halving"), 3)
    assert factor is not None and [factor(step) for step in range(3)] == [1, 0.5, 0.25]


# in training


def client(
    size: int, steps: tuple[int, ...], schedule: Callable[[int, int], float] | None, *, seed: int = 0
) -> ClientTraining:
    drawn = np.random.default_rng(seed)
    examples = Examples(
        torch.from_numpy(drawn.normal(size=(size, 1, 4, 4))), torch.from_numpy(drawn.integers(0, 3, size))
    )
    total = sum(steps)
    factor = None if schedule is None else lambda step: schedule(step, total)
    return ClientTraining(examples, batch_order(size, 8, np.random.default_rng(seed)), steps, factor)


def alone(model: nn.Module, client: ClientTraining, optimizer: dict[str, Any], **settings: Any) -> Trained:
    return train(
        model, client.examples, client.batches, [(None, steps) for steps in client.steps],
        optimizer=make_optimizer(**optimizer), lr_factor=client.lr_factor, **settings,
    )  # fmt: skip


def mlp() -> nn.Module:
    return build("mlp", (1, 4, 4), 3, seed=3, width=20).double()


def test_two_steps_by_hand_follow_the_schedule_over_both_phases() -> None:
    """The rates of a linear schedule over two steps are 1 and 1/2 of 0.4."""
    model, twin = mlp(), mlp()
    one = client(16, (1, 1), linear)
    trained = alone(model, one, {"name": "sgd", "lr": 0.4})
    for batch, lr in zip(batch_order(16, 8, np.random.default_rng(0)), (0.4, 0.2), strict=False):
        twin.zero_grad()
        inputs, labels = one.examples.batch(torch.from_numpy(batch))
        batch_loss(twin(inputs), labels).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in twin.parameters():
                assert parameter.grad is not None
                parameter -= lr * parameter.grad
    for name, value in read_state(model).items():
        torch.testing.assert_close(value, read_state(twin)[name], rtol=1e-12, atol=0)
    assert trained.reach == pytest.approx((0.4, 0.2))


OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"name": "adam", "lr": 0.01},
    {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer["name"])
def test_each_client_of_a_stack_follows_its_own_schedule(optimizer: dict[str, Any]) -> None:
    """Clients with other numbers of steps in two phases; one keeps its rate and one trains faster."""

    def clients() -> list[ClientTraining]:
        return [
            client(30, (9, 4), cosine, seed=0),
            client(7, (3, 12), linear, seed=1),
            client(9, (0, 5), None, seed=2),
            client(8, (6, 1), rising, seed=3),
        ]

    outcomes = train_stacked(
        mlp(), clients(), [None, None], optimizer=make_optimizer(**optimizer), batch_size=8, rows=5, clip_norm=0.5
    )
    for outcome, one in zip(outcomes, clients(), strict=True):
        model = mlp()
        trained = alone(model, one, optimizer, clip_norm=0.5)
        assert isinstance(outcome, Outcome)
        assert outcome.trained.reach == pytest.approx(trained.reach, rel=1e-12)
        assert outcome.trained.loss == pytest.approx(trained.loss, rel=1e-9)
        for name, value in read_state(model).items():
            torch.testing.assert_close(outcome.state[name], value, rtol=1e-9, atol=1e-11)


# in a run

BASE: dict[str, Any] = {
    "rounds": 3, "federation.clients": 4, "model.width": 8, "model.hidden": 1, "train.batch-size": 64,
    "barrier.every": 0, "device": "cpu", "output.checkpoint-every": 1, "strategy.name": "fedpnu", "train.epochs": 1.5,
    "train.schedule": "cosine", "train.round-schedule": "cosine", "train.warmup-rounds": 1,
}  # fmt: skip


run: Callable[..., Any] = partial(federate, BASE)


def test_a_run_with_schedules_has_the_same_bits_on_any_number_of_nodes_and_about_so_in_stacks(tmp_path: Path) -> None:
    runs = [run(tmp_path / str(nodes), nodes=nodes) for nodes in (1, 2, 4)]
    stacked = [run(tmp_path / f"stacked{nodes}", nodes=nodes, train__stack=2) for nodes in (1, 2)]
    constant = run(tmp_path / "constant", train__schedule="constant")
    even = run(tmp_path / "even", train__round_schedule="constant")
    assert len({one.summary["weights_sha256"] for one in runs}) == 1
    assert len({one.summary["weights_sha256"] for one in stacked}) == 1
    assert len({one.summary["weights_sha256"] for one in (runs[0], constant, even)}) == 3
    for one, other in zip(runs[0].rounds, stacked[0].rounds, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_a_run_is_extended_where_the_rates_do_not_depend_on_its_rounds(tmp_path: Path) -> None:
    settings = {"train__round_schedule": "step", "train__round_schedule_every": 1}
    whole = run(tmp_path / "whole", **settings)
    run(tmp_path / "parted", rounds=2, **settings)
    parted = run(tmp_path / "parted", **settings, output__resume=True)
    assert parted.summary["weights_sha256"] == whole.summary["weights_sha256"]
    for name in ("cosine", "linear", f"{__name__}:halving"):
        run(tmp_path / name, rounds=1, train__round_schedule=name)
        with pytest.raises(ConfigError, match=f"cannot be extended to 3 rounds: train.round-schedule={name}"):
            run(tmp_path / name, train__round_schedule=name, output__resume=True)


def test_a_rate_of_zero_trains_nothing(tmp_path: Path) -> None:
    held = run(tmp_path / "run", train__schedule=f"{__name__}:still", train__momentum=0.0)
    assert len({record["weights_sha256"] for record in held.rounds}) == 1 and math.isfinite(held.rounds[-1]["loss"])
