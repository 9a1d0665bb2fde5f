"""Client-level differential privacy: clipping, noise in the subspace, accounting, and federations that keep to them."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_resume as cuts
import torch
import toys
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedMedian
from flwr.supercore.privacy_accounting import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    SamplingMethod,
)
from flwr.supercore.privacy_accounting.rdp_accountant import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toys import digest

from clients import packing_mod, private_mod
from clients.records import decode, encode
from fedpfn.masking import Masking
from fedpfn.packing import is_packed, pack, plan_positions, unpack
from fedpfn.privacy import add_noise, clip_update, epsilon, noise_for
from fedpfn.protocol import CLIENT_NOISE, CLIP_NORM, CONFIG, PARAMETERS, PLAN, WEIGHT
from fedpfn.runs import Run
from fedpfn.runs.config import ConfigError
from fedpfn.runs.recorder import Recorder
from fedpfn.schedules import decode_plan, encode_plan, fed_pfn, plan_rounds
from strategies import FedAvg, FedExP, Private, Scaffold
from strategies.fed_avg import FedAdam
from strategies.replies import ReplyError

PRIVATE: dict[str, Any] = {"privacy__clip_norm": 0.3, "privacy__noise_multiplier": 0.5}


def run(tmp_path: Path, name: str = "run", **settings: Any) -> Run:
    return toys.run(tmp_path, name, **({"rounds": 3, "barrier__every": 0} | settings))


def norm(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((first[name].double() - second[name].double()).square().sum()) for name in first))


# clipping and noise


@given(st.floats(0.01, 100), st.integers(0, 2**32), st.sampled_from([torch.float32, torch.float64]))
def test_a_clipped_update_points_the_same_way_and_is_no_longer_than_the_bound(
    bound: float, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    before = {name: torch.randn(size, generator=generator, dtype=dtype) for name, size in (("a", (3, 2)), ("b", (5,)))}
    after = {
        name: tensor + torch.randn(tensor.shape, generator=generator, dtype=dtype) for name, tensor in before.items()
    }
    clipped, length = clip_update(after, before, bound), norm(after, before)
    if length <= bound:
        assert all(torch.equal(clipped[name], after[name]) for name in after)
        return
    assert norm(clipped, before) == pytest.approx(bound, rel=1e-4)
    for name in after:
        expected = before[name].double() + (after[name].double() - before[name].double()) * bound / length
        assert torch.allclose(clipped[name].double(), expected, atol=1e-5)


def test_noise_has_the_deviation_that_was_asked_for_and_other_draws_for_other_seeds() -> None:
    arrays = {"w": torch.zeros(40_000)}
    noisy = add_noise(arrays, 2.0, np.random.default_rng(0))["w"]
    assert float(noisy.std()) == pytest.approx(2.0, rel=0.02) and abs(float(noisy.mean())) < 0.05
    assert torch.equal(noisy, add_noise(arrays, 2.0, np.random.default_rng(0))["w"])
    assert not torch.equal(noisy, add_noise(arrays, 2.0, np.random.default_rng(1))["w"])


# accounting


@pytest.mark.parametrize(("size", "population", "z", "rounds"), [(100, 1000, 2.0, 100), (10, 10, 4.0, 30)])
def test_epsilon_is_that_of_flowers_accountant_at_half_the_multiplier(
    size: int, population: int, z: float, rounds: int
) -> None:
    about = PrivacyConfig(1e-5, population, NeighboringRelation.REPLACE_ONE, SamplingMethod.WITHOUT_REPLACEMENT)
    accountant = RdpAccountant(about)
    accountant.compose(GaussianPrivacyEvent(z / 2, size, population), rounds)
    own = epsilon([size] * rounds, population=population, noise_multiplier=z, delta=1e-5)
    assert own == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)


def test_a_gaussian_release_costs_what_the_closed_form_says() -> None:
    # Renyi divergence a / (2 s^2) at order a, s = z / 2, and the best order's conversion is below the classical one
    z, rounds, delta = 6.0, 20, 1e-5
    rho = rounds / (2 * (z / 2) ** 2)
    classical = rho + 2 * math.sqrt(rho * math.log(1 / delta))
    own = epsilon([5] * rounds, population=5, noise_multiplier=z, delta=delta)
    assert 0.8 * classical < own < classical


def test_sampling_never_makes_a_bound_worse_and_no_noise_protects_nothing() -> None:
    about: dict[str, Any] = {"noise_multiplier": 1.0, "delta": 1e-5}
    plain = epsilon([5] * 10, population=10, amplified=False, **about)
    assert epsilon([5] * 10, population=10, **about) <= plain
    assert epsilon([1] * 10, population=1000, **about) < plain / 10
    assert epsilon([5], population=10, noise_multiplier=0.0, delta=1e-5) == math.inf
    assert epsilon([], population=10, noise_multiplier=1.0, delta=1e-5) == 0


@pytest.mark.parametrize("population", [5, 200])
def test_the_noise_for_an_epsilon_is_the_least_that_keeps_to_it(population: int) -> None:
    z = noise_for(8.0, rounds=20, size=5, population=population, delta=1e-5)
    about: dict[str, Any] = {"population": population, "delta": 1e-5}
    assert epsilon([5] * 20, noise_multiplier=z, **about) <= 8.0
    assert epsilon([5] * 20, noise_multiplier=z / 1.01, **about) > 8.0


# federations


def test_noise_falls_on_the_subspace_alone_and_its_norm_by_the_root_of_the_trained_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # clients that do not move: what the global model moves by is noise
    seen: list[tuple[float, int]] = []

    def note(self: Any, round: Any) -> dict[str, float]:
        if round.server_round:
            moved = {name: round.after[name] - round.before[name] for name in round.active}
            assert not any(moved[name][~mask].any() for name, mask in round.active.items())
            entries = sum(int(mask.sum()) for mask in round.active.values())
            seen.append((norm(round.after, round.before), entries))
        return original(self, round)  # type: ignore[no-any-return]

    original = Recorder.__call__
    monkeypatch.setattr(Recorder, "__call__", note)
    still = {"train__lr": 1e-12, "model__width": 600, "privacy__clip_norm": 1.0, "privacy__noise_multiplier": 3.0}
    norms = {}
    for ratio in (0.0, 0.75):
        found = run(tmp_path, f"ratio-{ratio}", strategy__name="fedpfn", mask__ratio=ratio, **still)
        clients = len(found.rounds[1]["clients"])
        for length, entries in seen:
            assert length == pytest.approx(3.0 / clients * math.sqrt(entries), rel=0.03)
        norms[ratio] = np.mean([length for length, _ in seen])
        seen.clear()
    assert norms[0.75] / norms[0.0] == pytest.approx(math.sqrt(0.25), rel=0.03)


def test_all_clients_count_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []

    def note(self: Any, round: Any) -> dict[str, float]:
        if round.server_round:
            states = round.states()
            for name, after in round.after.items():
                mean = torch.stack([state[name].double() for state in states]).mean(0)
                assert torch.allclose(after.double(), mean, atol=1e-7)
            checked.append(len({one.examples for one in round.contributions}))
        return original(self, round)  # type: ignore[no-any-return]

    original = Recorder.__call__
    monkeypatch.setattr(Recorder, "__call__", note)
    run(tmp_path, strategy__name="fedavg", privacy__clip_norm=1e6, barrier__every=1, rounds=2)
    assert len(checked) == 2 and min(checked) > 1


@pytest.mark.parametrize(("where", "base"), [("central", "fedadam"), ("local", "fedavg")])
def test_nodes_sums_and_a_resumption_change_nothing(
    tmp_path: Path, where: str, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        **PRIVATE, "privacy__where": where, "strategy__name": "fedpfn", "strategy__base": base, "mask__ratio": 0.4,
        "federation__fraction": 0.75, "rounds": 4,
    }  # fmt: skip
    whole = run(tmp_path, "whole", **settings)
    assert all(digest(run(tmp_path, f"{nodes}", nodes=nodes, **settings)) == digest(whole) for nodes in (1, 4))
    # rounds in which barriers are due collect every client's model, others sum where they train
    assert digest(run(tmp_path, "collected", **(settings | {"barrier__every": 1}))) == digest(whole)
    config = toys.config(tmp_path, "cut", **settings, barrier__every=0, output__checkpoint_every=2)
    cuts.cut_run(config, monkeypatch, after=3)
    resumed = cuts.resumed(config)
    assert digest(resumed) == digest(whole)
    spent = [record["privacy"]["epsilon"] for record in resumed.rounds[1:]]
    assert spent == [record["privacy"]["epsilon"] for record in whole.rounds[1:]]
    assert spent == sorted(spent) and spent[0] > 0


def test_epsilon_as_the_setting_is_kept_to_by_the_last_round(tmp_path: Path) -> None:
    found = run(tmp_path, strategy__name="fedavg", privacy__clip_norm=0.3, privacy__epsilon=20.0)
    spent = [record["privacy"]["epsilon"] for record in found.rounds[1:]]
    assert spent[-2] < 19 < spent[-1] <= 20
    assert "privacy" not in run(tmp_path, "public", strategy__name="fedavg").rounds[-1]


def test_what_cannot_be_private_is_refused_before_the_start(tmp_path: Path) -> None:
    for faulty, words in (
        ({"strategy__name": "scaffold"}, "Scaffold cannot be private"),
        ({"strategy__name": "fedavg", "strategy__base": "krum"}, "Krum cannot be private"),
        ({"strategy__name": "ssfl"}, "the saliency that"),
        ({"strategy.args.weighted_by_key": "num-examples"}, "weighted_by_key"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(tmp_path, "refused", **PRIVATE, **faulty)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"set privacy\.clip-norm"):
        run(tmp_path, "refused", privacy__noise_multiplier=1.0)
    with pytest.raises(ConfigError, match=r"privacy\.noise-multiplier"):
        run(tmp_path, "refused", **PRIVATE, privacy__epsilon=1.0)
    for strategy in (FedMedian(), Scaffold(), FedExP()):
        with pytest.raises(ValueError, match="cannot be private"):
            Private(strategy, clip_norm=1.0, noise_multiplier=1.0)


# in an app of one's own

BEFORE = {"w": torch.zeros(40, 50), "b": torch.ones(50)}


def asked(*, noise: float = 0.0, masked: bool = False) -> dict[str, Any]:
    config: dict[str, Any] = {CLIP_NORM: 0.5, CLIENT_NOISE: noise}
    if masked:
        plan = plan_rounds(Masking(ratio=0.4, seed=1), fed_pfn)(1)
        config |= {PLAN: encode_plan(plan), PARAMETERS: list(BEFORE)}
    return config


def replied(config: dict[str, Any], *mods: Any, shift: float = 1.0) -> Message:
    """Return the reply of a client that moved every entry that the mask lets move by ``shift``."""
    sent = RecordDict({"arrays": ArrayRecord({n: encode(t) for n, t in BEFORE.items()}), CONFIG: ConfigRecord(config)})
    message = Message(sent, dst_node_id=1, message_type="train")

    def client(message: Message, context: Context) -> Message:
        after = {name: tensor + shift for name, tensor in BEFORE.items()}
        if PLAN in config:
            after = unpack(pack(after, active(config)), active(config), BEFORE)
        arrays = ArrayRecord({name: encode(tensor) for name, tensor in after.items()})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 7})}), reply_to=message)

    call: Any = client
    for mod in reversed(mods):
        call = partial(mod, call_next=call)
    reply: Message = call(message, Context(1, 1, {}, RecordDict(), {}))
    return reply


def active(config: dict[str, Any]) -> Any:
    return plan_positions(decode_plan(config[PLAN]), tuple((n, tuple(t.shape)) for n, t in BEFORE.items()))


def arrays_of(reply: Message) -> dict[str, Tensor]:
    (record,) = reply.content.array_records.values()
    return {name: decode(array) for name, array in record.items()}


@pytest.mark.parametrize("masked", [False, True])
def test_the_mod_clips_whole_and_packed_replies(masked: bool) -> None:
    config = asked(masked=masked)
    whole = replied(config, private_mod)
    assert norm(arrays_of(whole), BEFORE) == pytest.approx(0.5, rel=1e-5)
    (metrics,) = whole.content.metric_records.values()
    assert metrics[WEIGHT] == 1.0 and metrics["num-examples"] == 7
    if masked:
        packed = arrays_of(replied(config, private_mod, packing_mod))
        assert is_packed(packed)
        assert norm(packed, pack(BEFORE, active(config))) == pytest.approx(0.5, rel=1e-5)


def test_the_mods_noise_leaves_frozen_entries_alone_and_is_never_the_same() -> None:
    config = asked(noise=2.0, masked=True)
    first, second = (arrays_of(replied(config, private_mod, shift=0.0)) for _ in range(2))
    frozen = {name: torch.ones(tensor.numel(), dtype=torch.bool) for name, tensor in BEFORE.items()}
    for name, positions in active(config).of.items():
        frozen[name][positions] = False
        moved = (first[name] - BEFORE[name]).flatten()
        assert not moved[frozen[name]].any() and moved[~frozen[name]].std() == pytest.approx(1.0, rel=0.4)
    assert not torch.equal(first["w"], second["w"])
    # what is not asked for passes as it is
    assert torch.equal(arrays_of(replied({}, private_mod))["w"], BEFORE["w"] + 1)


def test_a_client_that_gives_itself_more_weight_is_named() -> None:
    strategy = Private(FedAdam(), clip_norm=0.5, noise_multiplier=0.0)
    reply = replied(asked(), private_mod)
    next(iter(reply.content.metric_records.values()))[WEIGHT] = 100.0
    with pytest.raises(ReplyError, match="private updates have equal weights"):
        strategy.aggregate_train(1, [reply])
    assert FedAvg().after_mean({"w": torch.ones(1)})["w"] == 1
