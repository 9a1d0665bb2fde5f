"""Updates in fewer bits: laws of the rounding, error feedback, bytes, and federations that keep to them."""

from functools import partial
from pathlib import Path
from typing import Any

import flower_apps as apps
import numpy as np
import pytest
import test_resume as cuts
import torch
import toys
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toys import digest

from clients import cohort_mod, packing_mod, private_mod, quantising_mod
from clients.quantisation import quantised
from clients.records import decode, encode
from experiments.runtime.in_process import InProcessGrid
from fedpfn.coding import Coding, is_coded
from fedpfn.masking import Masking
from fedpfn.packing import is_packed, pack
from fedpfn.params import State
from fedpfn.protocol import (
    CLIENT_NOISE,
    CLIP_NORM,
    CONFIG,
    ERROR_FEEDBACK,
    PARAMETERS,
    PLAN,
    PRECISION,
    RESIDUAL,
    ROUNDING_SEED,
    SERVER_ROUND,
)
from fedpfn.quantisation import BLOCK, dequantise, quantise
from fedpfn.runs import Run
from fedpfn.runs.config import ConfigError
from fedpfn.runs.recorder import Recorder
from fedpfn.schedules import encode_plan, fed_pfn, plan_rounds
from strategies import CohortGrid, FedAvg, Quantised, RoundFailedError, SharedMask
from strategies.fed_avg import FedAdam

BITS = ("float16", "int8")


def run(tmp_path: Path, name: str = "run", **settings: Any) -> Run:
    return toys.run(tmp_path, name, **({"rounds": 3, "barrier__every": 0} | settings))


# rounding


def drawn(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator) * torch.logspace(-3, 1, max(size, 1))[:size]


@given(st.integers(0, 3 * BLOCK), st.integers(0, 2**32))
def test_an_entry_is_off_by_less_than_a_step_of_its_block(size: int, seed: int) -> None:
    update = drawn(size, seed)
    code = quantise(update, "int8", np.random.default_rng(seed))
    assert code.scales is not None and code.values.shape == (size,) and code.values.dtype == torch.int8
    steps = code.scales.repeat_interleave(BLOCK)[:size]
    assert bool(((dequantise(code) - update).abs() <= steps * (1 + 1e-5)).all())
    for number, block in enumerate(update.split(BLOCK) if size else ()):
        assert float(code.scales[number]) == pytest.approx(float(block.abs().max()) / 127)


def test_the_mean_of_many_roundings_is_the_value() -> None:
    update, draws = drawn(BLOCK + 44), 4000
    generator = np.random.default_rng(1)
    total = torch.zeros(len(update), dtype=torch.float64)
    for _ in range(draws):
        total += dequantise(quantise(update, "int8", generator))
    code = quantise(update, "int8", generator)
    assert code.scales is not None
    # a rounding has a standard deviation of at most half a step
    deviation = code.scales.repeat_interleave(BLOCK)[: len(update)] / 2 / draws**0.5
    assert bool(((total / draws - update).abs() < 5 * deviation).all())
    # to the nearest, entries below half a step would all be lost
    assert float((update.abs() < deviation * draws**0.5).float().mean()) > 0.2


def test_zeros_stay_zeros_and_float16_rounds_to_the_nearest() -> None:
    zeros = quantise(torch.zeros(BLOCK + 1), "int8", np.random.default_rng(0))
    assert not dequantise(zeros).any() and torch.isfinite(dequantise(zeros)).all()
    update = drawn(100)
    assert torch.equal(dequantise(quantise(update, "float16", np.random.default_rng(0))), update.half().float())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("bits", BITS)
def test_what_is_not_finite_is_not_hidden(bad: float, bits: str) -> None:
    update = torch.ones(BLOCK)
    update[3] = bad
    assert not torch.isfinite(dequantise(quantise(update, bits, np.random.default_rng(0)))).all()


# what a client sends and keeps

BEFORE = {"w": torch.zeros(40, 50), "b": torch.ones(50)}


def asked(bits: str, server_round: int = 1, *, masked: bool = True, **more: Any) -> dict[str, Any]:
    config: dict[str, Any] = {PRECISION: bits, ERROR_FEEDBACK: True, ROUNDING_SEED: 0, SERVER_ROUND: server_round}
    if masked:
        plan = plan_rounds(Masking(ratio=0.4, seed=1), fed_pfn)(server_round)
        config |= {PLAN: encode_plan(plan), PARAMETERS: list(BEFORE)}
    return config | more


def shifted(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in BEFORE.items()}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("masked", [False, True])
def test_what_was_received_and_what_is_kept_add_up_to_what_was_trained(bits: str, masked: bool) -> None:
    trained, received = (torch.zeros(2050, dtype=torch.float64) for _ in range(2))
    kept: State = {}
    for number in range(1, 6):
        coding = Coding(BEFORE, asked(bits, number, masked=masked))
        own = pack(shifted(number), coding.positions)
        coded, kept = quantised(own, coding, kept, client=3)
        assert is_coded(coded) and kept.keys() == BEFORE.keys()
        for total, arrays in ((trained, own), (received, coding.decode(coded))):
            moved = {name: torch.zeros_like(tensor) for name, tensor in BEFORE.items()}
            start = coding.start(arrays)["packed:float32"]
            spread(moved, arrays["packed:float32"] - start, coding)
            total += torch.cat([tensor.flatten() for tensor in moved.values()]).double()
    left = torch.cat([kept[name].flatten() for name in BEFORE]).double()
    assert torch.allclose(received + left, trained, atol=1e-6)
    assert float(left.abs().max()) > 0


def spread(into: State, packed: Tensor, coding: Coding) -> None:
    """Put packed entries at their places."""
    at = 0
    for name, tensor in into.items():
        positions = coding.positions.of.get(name)
        places = torch.arange(tensor.numel()) if positions is None else positions
        tensor.view(-1)[places] = packed[at : at + len(places)]
        at += len(places)


def test_what_is_kept_of_entries_that_a_round_freezes_stays() -> None:
    first, second = (Coding(BEFORE, asked("int8", number)) for number in (1, 2))
    _, kept = quantised(pack(shifted(1), first.positions), first, {}, client=0)
    _, later = quantised(pack(shifted(2), second.positions), second, kept, client=0)
    for name in BEFORE:
        active = torch.zeros(BEFORE[name].numel(), dtype=torch.bool)
        active[second.positions.of[name]] = True
        before, after = kept[name].flatten(), later[name].flatten()
        assert before[~active].any() and torch.equal(before[~active], after[~active])
        assert (before[active] != after[active]).float().mean() > 0.9


@pytest.mark.parametrize("bits", BITS)
def test_whole_and_packed_arrays_say_the_same_under_a_mask_and_leave_what_is_frozen(bits: str) -> None:
    coding = Coding(BEFORE, asked(bits) | {ERROR_FEEDBACK: False})
    own = {name: tensor.clone() for name, tensor in BEFORE.items()}
    for name, positions in coding.positions.of.items():
        own[name].view(-1)[positions] = shifted(1)[name].flatten()[positions]
    coded, kept = quantised(own, coding, {}, client=0)
    received = coding.decode(coded)
    assert not kept and received.keys() == BEFORE.keys()
    for name, positions in coding.positions.of.items():
        frozen = torch.ones(BEFORE[name].numel(), dtype=torch.bool)
        frozen[positions] = False
        assert torch.equal(received[name].flatten()[frozen], BEFORE[name].flatten()[frozen])
        assert torch.allclose(received[name], own[name], atol=1e-3)


def test_a_client_draws_by_seed_round_and_id() -> None:
    coding = Coding(BEFORE, asked("int8", masked=False))
    own = shifted(1)
    values = [quantised(own, coding, {}, client)[0]["coded:w"] for client in (0, 0, 1)]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    unseeded = Coding(BEFORE, {PRECISION: "int8"})
    assert not torch.equal(*(quantised(own, unseeded, {}, 0)[0]["coded:w"] for _ in range(2)))


def test_running_statistics_come_in_full_or_not_at_all() -> None:
    before = BEFORE | {"norm.running_var": torch.ones(3)}
    coding = Coding(before, {PRECISION: "int8"})
    coded, _ = quantised(shifted(1) | {"norm.running_var": torch.full((3,), 2.0)}, coding, {}, 0)
    assert torch.equal(coded["norm.running_var"], torch.full((3,), 2.0)) and "coded:w" in coded
    with pytest.raises(ValueError, match="send whole arrays"):
        quantised(pack(before, coding.positions), coding, {}, 0)


def test_decoding_clips_where_the_server_adds_the_noise_and_not_where_clients_do() -> None:
    central = Coding(BEFORE, asked("int8", masked=False, **{CLIP_NORM: 0.2, CLIENT_NOISE: 0.0}))
    local = Coding(BEFORE, asked("int8", masked=False, **{CLIP_NORM: 0.2, CLIENT_NOISE: 1.0}))
    lengths = []
    for coding in (central, local):
        received = coding.decode(quantised(shifted(1), coding, {}, 0)[0])
        lengths.append(float(sum((received[n].double() - BEFORE[n].double()).square().sum() for n in BEFORE)) ** 0.5)
    assert lengths[0] == pytest.approx(0.2, rel=1e-5) and lengths[1] > 0.4


@pytest.mark.parametrize(
    "change",
    [
        lambda coded: coded.pop("scales:w"),
        lambda coded: coded.update({"scales:w": coded["scales:w"][:-1]}),
        lambda coded: coded.update({"coded:w": coded["coded:w"][:-1]}),
        lambda coded: coded.update({"coded:w": coded["coded:w"].int()}),
        lambda coded: coded.update({"other": torch.zeros(1)}),
    ],
)
def test_arrays_that_do_not_stand_for_those_sent_are_refused(change: Any) -> None:
    coding = Coding(BEFORE, asked("int8", masked=False))
    coded = quantised(shifted(1), coding, {}, 0)[0]
    change(coded)
    with pytest.raises(ValueError, match=r"requested|of shape"):
        coding.decode(coded)


# federations


@pytest.mark.parametrize(
    ("bits", "more"),
    [
        ("float16", {}),
        ("int8", {}),
        ("float16", {"strategy__base": "fedadam"}),
        ("int8", {"strategy__name": "scaffold"}),
    ],
    ids=str,
)
def test_nodes_sums_and_a_resumption_change_nothing(
    tmp_path: Path, bits: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "strategy__name": "fedpfn", "mask__ratio": 0.4, "transport__precision": bits, "federation__fraction": 0.75,
        "rounds": 4, **more,
    }  # fmt: skip
    whole = run(tmp_path, "whole", **settings)
    assert all(digest(run(tmp_path, f"{nodes}", nodes=nodes, **settings)) == digest(whole) for nodes in (1, 4))
    # rounds in which barriers are due collect every client's model, others sum where they train
    collected = run(tmp_path, "collected", **(settings | {"barrier__every": 1}))
    assert digest(collected) == digest(whole)
    counted = [[record["bytes_up"] for record in found.rounds] for found in (whole, collected)]
    assert counted[0] == counted[1]
    config = toys.config(tmp_path, "cut", **settings, barrier__every=0, output__checkpoint_every=2)
    cuts.cut_run(config, monkeypatch, after=3)
    assert digest(cuts.resumed(config)) == digest(whole)
    assert digest(run(tmp_path, "without", **settings, transport__error_feedback=False)) != digest(whole)


def test_stacks_send_what_clients_do_that_train_alone(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"transport__precision": "int8", "strategy__name": "fedpfn"}
    first, second = (run(tmp_path, f"{nodes}", nodes=nodes, train__stack=2, **settings) for nodes in (1, 2))
    assert digest(first) == digest(second)
    alone = run(tmp_path, "alone", **settings)
    assert [record["bytes_up"] for record in first.rounds] == [record["bytes_up"] for record in alone.rounds]
    assert first.rounds[-1]["loss"] == pytest.approx(alone.rounds[-1]["loss"], rel=0.05)


def test_bytes_are_counted_as_they_are_sent(tmp_path: Path) -> None:
    wide = {"model__width": 2000, "rounds": 1, "strategy__name": "fedavg"}
    entries, head = 2000 * 6 + 2001 * 3, 128
    sent = {}
    for bits in ("float32", "float16", "int8"):
        found = run(tmp_path, bits, transport__precision=bits, **wide)
        sent[bits] = found.rounds[1]["bytes_up"] / len(found.rounds[1]["clients"])
        # the model comes in full
        assert found.rounds[1]["bytes_down"] >= 4 * entries * len(found.rounds[1]["clients"])
    assert sent == {
        "float32": 4 * entries + head, "float16": 2 * entries + head,
        "int8": entries + head + 4 * -(-entries // BLOCK) + head,
    }  # fmt: skip


def test_few_bits_change_little_and_full_precision_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, State] = {}

    def note(self: Any, round: Any) -> dict[str, float]:
        if round.server_round:
            seen[str(self.folder.path.name)] = {n: round.after[n] - round.before[n] for n in round.after}
            for state in round.states():
                assert all(not (state[n] - round.before[n])[~mask].any() for n, mask in round.active.items())
        return original(self, round)  # type: ignore[no-any-return]

    original = Recorder.__call__
    monkeypatch.setattr(Recorder, "__call__", note)
    settings = {"strategy__name": "fedpfn", "rounds": 1, "barrier__every": 1}
    full = digest(run(tmp_path, "plain", **settings))
    for bits in ("float32", *BITS):
        found = run(tmp_path, bits, transport__precision=bits, **settings)
        assert (digest(found) == full) is (bits == "float32")
    length = sum(float(t.square().sum()) for t in seen["plain"].values()) ** 0.5
    for bits, most in (("float16", 1e-3), ("int8", 3e-2)):
        off = sum(float((seen[bits][n] - seen["plain"][n]).square().sum()) for n in seen["plain"]) ** 0.5
        assert 0 < off < most * length


@pytest.mark.parametrize("where", ["central", "local"])
def test_private_updates_in_few_bits_cost_the_same_and_resume(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "privacy__clip_norm": 0.3, "privacy__noise_multiplier": 0.5, "privacy__where": where,
        "strategy__name": "fedpfn", "transport__precision": "int8", "rounds": 4,
    }  # fmt: skip
    whole = run(tmp_path, "whole", **settings)
    spent = [record["privacy"]["epsilon"] for record in whole.rounds[1:]]
    full = run(tmp_path, "full", **(settings | {"transport__precision": "float32"}))
    assert spent == [record["privacy"]["epsilon"] for record in full.rounds[1:]]
    assert digest(run(tmp_path, "collected", nodes=3, **(settings | {"barrier__every": 1}))) == digest(whole)
    config = toys.config(tmp_path, "cut", **settings, barrier__every=0, output__checkpoint_every=2)
    cuts.cut_run(config, monkeypatch, after=3)
    assert digest(cuts.resumed(config)) == digest(whole)


def normed(input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(input_shape[0], 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, num_classes)
    )


def test_models_with_running_statistics_are_refused_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"transport\.precision=int8: 1\.running_mean"):
        run(tmp_path, model__name=f"{__name__}:normed", model__hidden=2, model__width=200, transport__precision="int8")


# in an app of one's own


def replied(config: dict[str, Any], *mods: Any, context: Context | None = None) -> Message:
    """Return the reply of a client that moved what the mask lets move."""
    sent = RecordDict({"arrays": ArrayRecord({n: encode(t) for n, t in BEFORE.items()}), CONFIG: ConfigRecord(config)})
    message = Message(sent, dst_node_id=1, message_type="train")
    coding = Coding(BEFORE, config)

    def client(message: Message, context: Context) -> Message:
        after = {name: tensor.clone() for name, tensor in BEFORE.items()}
        for name, tensor in after.items():
            positions = coding.positions.of.get(name)
            places = torch.arange(tensor.numel()) if positions is None else positions
            tensor.view(-1)[places] = shifted(1)[name].flatten()[places]
        arrays = ArrayRecord({name: encode(tensor) for name, tensor in after.items()})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 7})}), reply_to=message)

    call: Any = client
    for mod in reversed(mods):
        call = partial(mod, call_next=call)
    reply: Message = call(message, context or Context(1, 1, {}, RecordDict(), {}))
    return reply


def arrays_of(reply: Message) -> State:
    (record,) = reply.content.array_records.values()
    return {name: decode(array) for name, array in record.items()}


@pytest.mark.parametrize("masked", [False, True])
def test_the_mod_codes_whole_packed_and_private_replies(masked: bool) -> None:
    config = asked("int8", masked=masked, **{CLIP_NORM: 0.2})
    coding = Coding(BEFORE, config)
    context = Context(1, 1, {}, RecordDict(), {})
    mods = (quantising_mod, private_mod, packing_mod) if masked else (quantising_mod, private_mod)
    reply = replied(config, *mods, context=context)
    coded = arrays_of(reply)
    assert is_coded(coded) and {"w", "b"} == set(context.state.array_records[RESIDUAL])
    received = coding.decode(coded)
    assert is_packed(received) is masked
    length = sum(float((received[n] - t).square().sum()) for n, t in coding.start(received).items()) ** 0.5
    assert length == pytest.approx(0.2, rel=0.02)
    # what is not asked for passes as it is
    assert torch.equal(arrays_of(replied({}, quantising_mod))["w"], shifted(1)["w"])


@pytest.mark.parametrize("bits", BITS)
def test_an_app_of_ones_own_sends_few_bits_to_any_strategy(bits: str) -> None:
    full = apps.start(SharedMask(FedAdam(eta=0.01), mask_ratio=0.4), apps.client_app(mods=[packing_mod]), rounds=2)
    strategy = Quantised(SharedMask(FedAdam(eta=0.01), mask_ratio=0.4), precision=bits, seed=0)
    app = apps.client_app(mods=[quantising_mod, packing_mod])
    few = apps.start(strategy, app, rounds=2)
    assert few.keys() == full.keys()
    assert all(torch.allclose(few[name], full[name], atol=0.03) for name in full)
    assert any(not torch.equal(few[name], full[name]) for name in full)
    with pytest.raises(ValueError, match="precision must be one of"):
        Quantised(FedAvg(), precision="int4")


def test_cohorts_of_an_app_of_ones_own_sum_few_bits_up() -> None:
    results = []
    for nodes, sums in ((1, True), (3, True), (2, False)):
        app = apps.client_app(mods=[cohort_mod, quantising_mod, packing_mod])
        grid = CohortGrid(InProcessGrid(app, {}, nodes=nodes), 5, sums=lambda number, sums=sums: sums)
        strategy = Quantised(SharedMask(FedAvg(fraction_evaluate=0.0), mask_ratio=0.4), precision="int8", seed=0)
        results.append(apps.start(strategy, app, rounds=3, grid=grid))
        assert bool(grid.update_norms) is sums
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in other)


def test_a_client_app_without_the_mod_is_told_so() -> None:
    app = apps.client_app(mods=[cohort_mod, packing_mod])
    grid = CohortGrid(InProcessGrid(app, {}, nodes=2), 4)
    strategy = Quantised(SharedMask(FedAvg(), mask_ratio=0.4), precision="int8")
    with pytest.raises(Exception, match="does the ClientApp have quantising_mod"):
        apps.start(strategy, app, grid=grid)


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda coded: coded["scales:packed:float32"].fill_(torch.nan), "holds NaN or infinity"),
        (lambda coded: coded["scales:packed:float32"].fill_(1e19), "too large to compute with"),
        (lambda coded: coded.pop("scales:packed:float32"), "missing"),
        (lambda coded: coded.update({"coded:packed:float32": coded["coded:packed:float32"][1:]}), "has shape"),
    ],
)
def test_a_reply_in_few_bits_that_cannot_be_used_fails_its_client(change: Any, words: str, sums: bool) -> None:
    def spoil(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        if context.node_config["partition-id"] == 2:
            coded = {name: tensor.clone() for name, tensor in arrays_of(reply).items()}
            change(coded)
            arrays = ArrayRecord({name: encode(tensor) for name, tensor in coded.items()})
            reply.content = RecordDict({**reply.content, "arrays": arrays})
        return reply

    app = apps.client_app(mods=[cohort_mod, spoil, quantising_mod, packing_mod])
    grid = CohortGrid(InProcessGrid(app, {}, nodes=2), 4, sums=lambda number: sums)
    strategy = Quantised(SharedMask(FedAvg(fraction_evaluate=0.0), mask_ratio=0.4), precision="int8", seed=0)
    with pytest.raises(RoundFailedError, match=f"client 2 failed in round 1, checking its reply.*{words}"):
        apps.start(strategy, app, grid=grid)


@pytest.mark.parametrize(
    "part",
    [
        {"strategy__name": "ssfl"}, {"strategy__name": "fednova"}, {"strategy__name": "feddyn"},
        {"strategy__name": "moon"}, {"strategy__base": "krum"}, {"strategy__base": "fedmedian"},
        {"strategy__base": "fedavgm"}, {"mask__granularity": "neuron"}, {"strategy__name": "fedpnu"},
    ],
    ids=str,
)  # fmt: skip
def test_other_algorithms_bases_and_masks_take_few_bits(tmp_path: Path, part: dict[str, Any]) -> None:
    settings = {"rounds": 2, "strategy__name": "fedpfn", **part}
    full, few = run(tmp_path, "full", **settings), run(tmp_path, "few", transport__precision="int8", **settings)
    assert digest(full) != digest(few)
    assert few.rounds[-1]["loss"] == pytest.approx(full.rounds[-1]["loss"], rel=0.2)
