"""Matching in the federation: planted permutations are found, frozen entries stay, and counting changes nothing."""

from pathlib import Path
from typing import Any

import flower_apps as apps
import pytest
import test_resume as cuts
import torch
import toys
from flwr.app import Message
from torch import Tensor, nn
from toys import digest, same_state

from clients import cohort_mod, packing_mod
from experiments.runtime.in_process import InProcessGrid
from fedpfn.examples import Examples
from fedpfn.lmc.matching import (
    activation_matching,
    apply_permutations,
    movable_units,
    random_permutations,
    spec_for,
    units_moved,
    weight_matching,
)
from fedpfn.params import State, read_state
from fedpfn.runs import Run
from fedpfn.runs.config import ConfigError
from fedpfn.runs.recorder import Recorder
from strategies import CohortGrid, FedAvg, Matched, SharedMask
from strategies.grids import GridView
from strategies.records import from_record, to_record

EXAMPLES = Examples(
    torch.randn(200, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(200, dtype=torch.int64)
)


def run(tmp_path: Path, name: str = "run", **settings: Any) -> Run:
    return toys.run(tmp_path, name, **({"rounds": 3, "barrier__every": 0, "train__lr": 0.5} | settings))


# which units may move


def test_a_unit_moves_only_if_none_of_its_entries_is_frozen() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    spec = spec_for(model)
    active = {name: torch.ones(tensor.shape, dtype=torch.bool) for name, tensor in read_state(model).items()}
    assert all(units.all() for units in movable_units(spec, active).values())
    active["0.weight"][1, 2] = active["2.bias"][3] = active["4.weight"][0, 4] = False
    assert movable_units(spec, active)["0"].tolist() == [True, False, True, True]
    assert movable_units(spec, active)["2"].tolist() == [True, True, True, False, False]
    # one frozen entry between two layers holds a unit of each
    active["2.weight"][0, 0] = False
    assert not movable_units(spec, active)["0"][0] and not movable_units(spec, active)["2"][0]


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_matching_moves_the_units_that_may_and_leaves_frozen_entries(method: str) -> None:
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    spec, state = spec_for(model), read_state(model)
    active = {name: torch.ones(tensor.shape, dtype=torch.bool) for name, tensor in state.items()}
    active["0.weight"][[0, 4, 7], 0] = False
    movable = movable_units(spec, active)
    planted = torch.tensor([0, 2, 1, 8, 4, 3, 6, 7, 5])
    permuted = apply_permutations(spec, {"0": planted}, state)
    if method == "weights":
        found = weight_matching(spec, state, permuted, movable=movable)
    else:
        found = activation_matching(spec, model, state, permuted, EXAMPLES, movable=movable)
    assert same_state(found.state, state) and units_moved(found.permutations) == {"0": 5}
    # where the permutation that is looked for would move what is frozen, it is not
    other = apply_permutations(spec, random_permutations(spec, seed=1), state)
    kept = weight_matching(spec, state, other, movable=movable).state
    for name, mask in active.items():
        assert torch.equal(kept[name][~mask], other[name][~mask])


# as a strategy


class Renumbering(GridView):
    """A grid in which one client numbers its hidden units otherwise."""

    def __init__(self, grid: Any, client: int) -> None:
        super().__init__(grid)
        self.client, self.spec = client, spec_for(apps.net())

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        replies = list(self.grid.send_and_receive(messages, timeout=timeout))
        for reply in replies:
            arrays = reply.content.array_records.get("arrays")
            if reply.metadata.src_node_id == self.client and arrays is not None:
                permutations = random_permutations(self.spec, seed=5)
                reply.content["arrays"] = to_record(apply_permutations(self.spec, permutations, from_record(arrays)))
        return replies


def started(strategy: Any, *, renumbered: bool, sums: bool = False, mods: Any = ()) -> State:
    app = apps.client_app(mods=[cohort_mod, *mods])
    grid: Any = CohortGrid(InProcessGrid(app, {}, nodes=2), 4, sums=lambda number: sums)
    return apps.start(strategy, app, grid=Renumbering(grid, 2) if renumbered else grid)


@pytest.mark.parametrize("to", ["global", "mean"])
@pytest.mark.parametrize("method", ["weights", "activations"])
def test_a_planted_permutation_is_found_and_the_mean_is_that_without_it(method: str, to: str) -> None:
    plain = started(FedAvg(fraction_evaluate=0.0), renumbered=False)
    spoilt = started(FedAvg(fraction_evaluate=0.0), renumbered=True)
    strategy = Matched(FedAvg(fraction_evaluate=0.0), apps.net(), method=method, to=to, examples=EXAMPLES)
    assert same_state(started(strategy, renumbered=True), plain) and not same_state(spoilt, plain)


def test_under_a_mask_of_weights_matching_leaves_replies_as_they_are() -> None:
    masked = SharedMask(FedAvg(fraction_evaluate=0.0), mask_ratio=0.4)
    matched = Matched(SharedMask(FedAvg(fraction_evaluate=0.0), mask_ratio=0.4), apps.net())
    plain = started(masked, renumbered=False, mods=[packing_mod])
    assert same_state(started(matched, renumbered=False, mods=[packing_mod]), plain)


def test_sums_unknown_methods_and_models_without_units_are_refused() -> None:
    with pytest.raises(ValueError, match="let CohortGrid sum nothing"):
        started(Matched(FedAvg(), apps.net()), renumbered=False, sums=True)
    for settings, words in (({"method": "ste"}, "method must be one of"), ({"method": "activations"}, "got none")):
        with pytest.raises(ValueError, match=words):
            Matched(FedAvg(), apps.net(), **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no units of the model can be permuted"):
        Matched(FedAvg(), nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2)))


# runs


@pytest.mark.parametrize(("match", "to"), [("weights", "mean"), ("activations", "global")])
def test_nodes_and_a_resumption_change_nothing(
    tmp_path: Path, match: str, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "strategy__name": "fedavg", "strategy__match": match, "strategy__match_to": to, "train__epochs": 4, "rounds": 4,
        "partition__alpha": 0.3,
    }  # fmt: skip
    whole = run(tmp_path, "whole", **settings)
    assert all(digest(run(tmp_path, f"{nodes}", nodes=nodes, **settings)) == digest(whole) for nodes in (1, 4))
    config = toys.config(tmp_path, "cut", barrier__every=0, train__lr=0.5, output__checkpoint_every=2, **settings)
    cuts.cut_run(config, monkeypatch, after=3)
    resumed = cuts.resumed(config)
    assert digest(resumed) == digest(whole) and resumed.rounds[-1]["units_moved"] == whole.rounds[-1]["units_moved"]
    (layer,) = whole.rounds[1]["units_moved"]["layers"]
    assert layer["units"] == 8 and len(layer["moved"]) == len(whole.rounds[1]["clients"])
    assert sum(record["units_moved"]["share"] for record in whole.rounds[1:]) > 0


def test_counting_changes_no_bit_and_counts_what_matching_to_the_global_model_moves(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "strategy__name": "fedavg", "train__epochs": 4, "partition__alpha": 0.3, "rounds": 1,
    }  # fmt: skip
    plain, counted = (
        run(tmp_path, "plain", **settings),
        run(tmp_path, "counted", evaluate__units_moved=True, **settings),
    )
    assert digest(plain) == digest(counted) and "units_moved" not in plain.rounds[-1]
    matched = run(tmp_path, "matched", strategy__match="weights", **settings)
    assert counted.rounds[1]["units_moved"] == matched.rounds[1]["units_moved"]
    assert digest(matched) != digest(plain)


def test_fed_pfn_keeps_its_frozen_entries_when_models_are_matched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def note(self: Any, round: Any) -> dict[str, float]:
        if round.server_round:
            frozen: list[Tensor] = [(round.after[n] - round.before[n])[~mask] for n, mask in round.active.items()]
            assert not any(bool(moved.any()) for moved in frozen) and any(len(moved) for moved in frozen)
            seen.append(round.server_round)
        return original(self, round)  # type: ignore[no-any-return]

    original = Recorder.__call__
    monkeypatch.setattr(Recorder, "__call__", note)
    settings: dict[str, Any] = {"strategy__name": "fedpfn", "train__epochs": 4, "partition__alpha": 0.3, "rounds": 2}
    # with a mask on the output layer's bias alone, every unit is free
    free = run(tmp_path, "free", strategy__match="weights", mask__include="head.bias", **settings)
    held = run(tmp_path, "held", strategy__match="weights", **settings)
    assert seen == [1, 2, 1, 2]
    assert free.rounds[1]["units_moved"]["share"] > 0 == held.rounds[1]["units_moved"]["share"]
    assert digest(held) == digest(run(tmp_path, "plain", **settings))


def test_what_does_not_follow_a_renumbering_is_refused_before_the_start(tmp_path: Path) -> None:
    for faulty, words in (
        ({"strategy__name": "scaffold"}, "keep or send"),
        ({"privacy__clip_norm": 1.0}, "may be longer than"),
        ({"transport__precision": "int8"}, r"set transport\.error-feedback=false"),
        ({"model__name": "mlp", "model__hidden": 1, "model__width": 1}, "no units of the model can be permuted"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(tmp_path, "refused", strategy__match="weights", **faulty)
