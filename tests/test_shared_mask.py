"""A shared mask around any strategy and any ClientApp: what it freezes stays, and everything else is the strategy's."""

import dataclasses
import gc
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import flower_apps as apps
import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from toys import bits

from clients import packing_mod
from experiments.runtime.in_process import InProcessGrid
from fedpfn.masking import MaskArguments, Masking
from fedpfn.masks import build_mask, union
from fedpfn.params import State
from strategies import FedAvg, FedPFN, FedPNU, SharedMask
from strategies.fed_avg import FedAvgM, FedYogi
from strategies.replies import ReplyError


@pytest.fixture(autouse=True, scope="module")
def little_garbage() -> Iterator[None]:
    # some of Flower's strategies collect garbage in every aggregation, through all that the suite has imported so far
    gc.freeze()
    yield
    gc.unfreeze()


# every strategy of Flower's that averages arrays; those that come later fail the test below until they are here
AVERAGING: dict[type[Strategy], dict[str, Any]] = {
    flower.FedAvg: {},
    flower.FedProx: {"proximal_mu": 0.1},
    flower.FedAvgM: {"server_momentum": 0.9, "server_learning_rate": 0.7},
    flower.FedAdam: {"eta": 0.01},
    flower.FedAdagrad: {"eta": 0.01},
    flower.FedYogi: {"eta": 0.01},
    flower.FedMedian: {},
    flower.FedTrimmedAvg: {"beta": 0.2},
    flower.Krum: {"num_malicious_nodes": 1},
    flower.MultiKrum: {"num_malicious_nodes": 1, "num_nodes_to_select": 2},
    flower.Bulyan: {},
    flower.QFedAvg: {"client_learning_rate": 0.01, "train_loss_key": "train_loss"},
}
REFUSED = (
    flower.FedXgbBagging,
    flower.FedXgbCyclic,
    flower.DifferentialPrivacyClientSideAdaptiveClipping,
    flower.DifferentialPrivacyClientSideFixedClipping,
    flower.DifferentialPrivacyServerSideAdaptiveClipping,
    flower.DifferentialPrivacyServerSideFixedClipping,
)


def assert_frozen(
    strategy: SharedMask, before: State, after: State, *, server_round: int = 1, moved: float = 0.5
) -> None:
    """Frozen entries are those of ``before`` to the bit; of the others more than the share ``moved`` are not."""
    parameters = {
        name: tensor for name, tensor in before.items() if name in dict(apps.net(norm=True).named_parameters())
    }
    active = union([build_mask(phase.mask, parameters) for phase in strategy.plan(server_round)])
    assert sum(int((~mask).sum()) for mask in active.values()) > 0
    for name, mask in active.items():
        assert torch.equal(bits(after[name])[~mask], bits(before[name])[~mask]), name
    changed = torch.cat([(after[name] != before[name])[mask] for name, mask in active.items()])
    assert changed.float().mean() > moved


def test_the_battery_knows_every_strategy_of_flowers() -> None:
    every = {kind for kind in vars(flower).values() if isinstance(kind, type) and issubclass(kind, Strategy)}
    assert every - {Strategy} == AVERAGING.keys() | set(REFUSED)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("kind", AVERAGING, ids=lambda kind: kind.__name__)
def test_frozen_entries_stay_under_every_strategy(kind: type[Strategy], packed: bool) -> None:
    # Flower's QFedAvg cannot take integer arrays, and BatchNorm has one
    norm = kind is not flower.QFedAvg
    app = apps.client_app(mods=[packing_mod] if packed else [], norm=norm)
    before = {name: tensor.clone() for name, tensor in apps.net(norm=norm).state_dict().items()}
    strategy = SharedMask(kind(**AVERAGING[kind]), mask_ratio=0.5, seed=3)
    states = [before]
    for server_round in (1, 2):
        grid = InProcessGrid(app, {}, nodes=5)
        messages = strategy.configure_train(server_round, ArrayRecord(states[-1]), ConfigRecord(), grid)
        arrays, _ = strategy.aggregate_train(server_round, grid.send_and_receive(messages))
        assert arrays is not None
        states.append(arrays.to_torch_state_dict())
        assert_frozen(strategy, states[-2], states[-1], server_round=server_round)
        # a state that the model takes: names, dtypes, counters, variances that are variances
        apps.net(norm=norm).load_state_dict(states[-1])
        assert all(states[-1][name].dtype == tensor.dtype for name, tensor in before.items())
        if norm:
            assert int(states[-1]["norm.num_batches_tracked"]) == 0
            assert bool((states[-1]["norm.running_var"] > 0).all())


@pytest.mark.parametrize("kind", AVERAGING, ids=lambda kind: kind.__name__)
def test_packed_and_whole_replies_give_the_same_bits(kind: type[Strategy]) -> None:
    states = [
        apps.start(SharedMask(kind(**AVERAGING[kind]), mask_ratio=0.5), apps.client_app(mods=mods), nodes=5, rounds=1)
        for mods in ([], [packing_mod])
    ]
    # Python's global generator samples the nodes, so that the order of a sum may differ
    for name, tensor in states[0].items():
        assert torch.allclose(tensor, states[1][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_a_strategy_that_a_mask_makes_no_sense_for_is_refused_with_a_reason(kind: type[Strategy]) -> None:
    made = object.__new__(kind)
    with pytest.raises(ValueError, match=f"cannot go around {kind.__name__}: its"):
        SharedMask(made)


def test_a_mask_around_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="wrap the inner strategy once"):
        SharedMask(FedPFN())


def test_a_mask_of_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="train nothing"):
        FedPFN(mask_ratio=1)


def test_fedpfn_takes_flowers_arguments() -> None:
    strategy = FedPFN(fraction_train=0.5, min_train_nodes=3, mask_ratio=0.4, seed=0)
    assert isinstance(strategy.strategy, FedAvg)
    assert (strategy.strategy.fraction_train, strategy.strategy.min_train_nodes) == (0.5, 3)
    with pytest.raises(TypeError, match="fraction_trian"):
        FedPFN(fraction_trian=0.5)


@pytest.mark.parametrize(
    "make", [FedPFN, FedPNU, partial(SharedMask, FedAvg())], ids=["FedPFN", "FedPNU", "SharedMask"]
)
def test_every_masked_strategy_takes_the_arguments_of_a_mask(make: Any) -> None:
    strategy = make(
        mask_ratio=0.2, mask_schedule="cyclic", mask_blocks=5, mask_granularity="neuron", mask_draw="bernoulli",
        mask_include="a*", mask_exclude="b*", warmup_rounds=1, seed=3,
    )  # fmt: skip
    mask = strategy.plan(3)[0].mask
    assert (mask.ratio, mask.start, mask.granularity, mask.draw) == (0.2, 0.4, "neuron", "bernoulli")
    assert (mask.include, mask.exclude, strategy.plan(1)[0].mask) == ("a*", "b*", None)
    assert mask.seed != make(mask_schedule="cyclic", seed=4).plan(3)[0].mask.seed
    moving = make(mask_ratio=0.2, mask_ratio_shape="linear", mask_final_ratio=0.6, rounds=3)
    assert [moving.plan(number)[0].mask.ratio for number in (1, 2, 3)] == pytest.approx([0.2, 0.4, 0.6])
    with pytest.raises(TypeError, match="unknown argument 'mask_raito' of a mask; expected one of mask_ratio, "):
        make(mask_raito=0.2)


def test_every_attribute_of_masking_is_an_argument() -> None:
    names = {name.removeprefix("mask_") for name in MaskArguments.__annotations__}
    assert names == {field.name for field in dataclasses.fields(Masking)}


def test_fedpnu_across_rounds_trains_the_complement_in_the_next_round() -> None:
    strategy = FedPNU(variant="across-rounds", mask_granularity="neuron", fraction_train=0.5)
    (first,), (second,) = strategy.plan(1), strategy.plan(2)
    assert first.mask is not None and first.mask.complement() == second.mask and first.mask.granularity == "neuron"
    with pytest.raises(TypeError, match="fraction_trian"):
        FedPNU(fraction_trian=0.5)


def test_a_plan_next_to_arguments_of_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="with your own plan, mask_ratio would have no effect"):
        SharedMask(FedAvg(), lambda server_round: (), mask_ratio=0.5)


def test_fedpfn_is_a_shared_mask_around_fedavg() -> None:
    app = apps.client_app(mods=[packing_mod])
    one = apps.start(FedPFN(mask_ratio=0.4, seed=5), app, nodes=1 + 1)
    other = apps.start(SharedMask(FedAvg(), mask_ratio=0.4, seed=5), app, nodes=2)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_ratio_zero_is_the_strategy_itself() -> None:
    masked = apps.start(FedPFN(mask_ratio=0.0), apps.client_app(mods=[packing_mod]), nodes=2)
    plain = apps.start(FedAvg(), apps.client_app(), nodes=2)
    assert all(torch.equal(masked[name], plain[name]) for name in plain)


def test_fedpnu_trains_everything_in_two_phases() -> None:
    before, strategy = apps.net().state_dict(), FedPNU(mask_ratio=0.5)
    after = apps.start(strategy, apps.client_app(mods=[packing_mod]), nodes=2)
    changed = torch.cat([(after[name] != before[name]).flatten() for name in before])
    assert changed.float().mean() > 0.95


@pytest.mark.parametrize("kind", [FedAvgM, flower.FedAvgM])
def test_server_momentum_of_a_frozen_entry_decays_and_acts_when_it_thaws(kind: Any) -> None:
    """By hand, one entry: round 1 moves it by -1, round 2 freezes it, round 3 thaws it without an update."""
    from fedpfn.masks import MaskRecipe
    from fedpfn.schedules import Phase

    everything, nothing = (Phase(None),), (Phase(MaskRecipe(seed=0, ratio=1.0)),)
    strategy = SharedMask(
        kind(server_momentum=0.5, server_learning_rate=1.0, min_train_nodes=1, min_available_nodes=1),
        lambda server_round: nothing if server_round == 2 else everything,
    )
    value, grid = np.array([10.0], dtype=np.float32), InProcessGrid(apps.client_app(), {}, nodes=1)
    for server_round, (sent_back, expected) in enumerate([(9.0, 9.0), (9.0, 9.0), (9.0, 8.75)], start=1):
        arrays = ArrayRecord({"w": apps.array(value.tolist())})
        (message,) = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
        content = RecordDict({"arrays": ArrayRecord({"w": apps.array([sent_back])}), "metrics": metrics(1)})
        result, _ = strategy.aggregate_train(server_round, [Message(content, reply_to=message)])
        assert result is not None
        value = result["w"].numpy()
        # momentum 1, then 0.5 (undone while frozen), then 0.25
        assert value.tolist() == [expected], server_round


def metrics(examples: float) -> Any:
    from flwr.app import MetricRecord

    return MetricRecord({"num-examples": examples})


def test_a_client_that_does_not_freeze_is_put_right_and_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    before, strategy = apps.net().state_dict(), FedPFN(mask_ratio=0.5)
    after = apps.start(strategy, apps.client_app(frozen=False), nodes=2)
    assert_frozen(strategy, before, after)
    assert "moved frozen entries" in caplog.text and "freeze" in caplog.text


def test_packing_refuses_what_a_client_moved_against_the_mask() -> None:
    strategy = FedPFN(mask_ratio=0.5)
    grid = InProcessGrid(apps.client_app(frozen=False, mods=[packing_mod]), {}, nodes=2)
    messages = strategy.configure_train(1, ArrayRecord(apps.net().state_dict()), ConfigRecord(), grid)
    replies = grid.send_and_receive(messages)
    assert all(reply.has_error() and "call clients.freeze" in reply.error.reason for reply in replies)


def broken(arrays: dict[str, Any]) -> dict[str, dict[str, Any]]:
    state = {name: tensor.numpy().copy() for name, tensor in arrays.items()}
    return {
        "lacks the array last.bias": {name: v for name, v in state.items() if name != "last.bias"},
        "last.bias has shape": state | {"last.bias": np.zeros(4, dtype=np.float32)},
        "last.bias is torch.float64": state | {"last.bias": np.zeros(3)},
        "packed entries end before": {"packed:float32": np.zeros(3, dtype=np.float32)},
        "left over": {"packed:float32": np.zeros(1000, dtype=np.float32)},
    }


@pytest.mark.parametrize("words", list(broken(apps.net().state_dict())))
@pytest.mark.parametrize("kind", [FedAvg, flower.FedMedian, FedYogi], ids=lambda kind: kind.__name__)
def test_a_bad_reply_is_refused_with_client_round_and_reason(kind: Any, words: str) -> None:
    strategy = SharedMask(kind(min_train_nodes=1, min_available_nodes=1), mask_ratio=0.5)
    grid = InProcessGrid(apps.client_app(), {}, nodes=1)
    (message,) = strategy.configure_train(4, ArrayRecord(apps.net().state_dict()), ConfigRecord(), grid)
    arrays = ArrayRecord({name: apps.Array(v) for name, v in broken(apps.net().state_dict())[words].items()})
    reply = Message(RecordDict({"arrays": arrays, "metrics": metrics(3)}), reply_to=message)
    with pytest.raises((ReplyError, ValueError), match=f"round 4.*{words}"):
        strategy.aggregate_train(4, [reply])


def test_parameters_can_be_named() -> None:
    strategy = FedPFN(mask_ratio=0.5, parameters=["first.weight"])
    before = apps.net().state_dict()
    after = apps.start(strategy, apps.client_app(), nodes=2)
    frozen = {name: float((after[name] == before[name]).float().mean()) for name in before}
    assert frozen["first.weight"] == pytest.approx(0.5, abs=0.05) and frozen["last.weight"] < 0.1
    with pytest.raises(ValueError, match="not among the arrays: nose"):
        apps.start(FedPFN(parameters=["nose"]), apps.client_app(), nodes=2)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("kind", [FedAvg, flower.FedMedian, FedYogi], ids=lambda kind: kind.__name__)
def test_a_client_that_sends_nan_is_named_on_a_plain_grid_too(kind: Any, packed: bool) -> None:
    strategy = SharedMask(kind(), mask_ratio=0.5)
    app = apps.client_app(mods=[packing_mod] if packed else [])
    grid = InProcessGrid(app, {}, nodes=3)
    messages = strategy.configure_train(2, ArrayRecord(apps.net().state_dict()), ConfigRecord(), grid)
    replies = sorted(grid.send_and_receive(messages), key=lambda reply: reply.metadata.src_node_id)
    arrays = replies[1].content.array_records["arrays"]
    name = next(iter(arrays))
    spoilt = arrays[name].numpy().copy()
    spoilt[...] = np.nan
    arrays[name] = apps.Array(spoilt)
    with pytest.raises(ReplyError, match=f"client {replies[1].metadata.src_node_id} in round 2.*NaN"):
        strategy.aggregate_train(2, replies)


@pytest.mark.parametrize("mods", [[], [packing_mod]], ids=["whole", "packed"])
def test_fedpfn_keeps_counters_and_averages_running_statistics(mods: list[Any]) -> None:
    before = {name: tensor.clone() for name, tensor in apps.net(norm=True).state_dict().items()}
    after = apps.start(FedPFN(mask_ratio=0.5), apps.client_app(mods=mods, norm=True), nodes=2, norm=True)
    assert int(after["norm.num_batches_tracked"]) == int(before["norm.num_batches_tracked"]) == 0
    assert not torch.equal(after["norm.running_mean"], before["norm.running_mean"])
