"""Toy federations through the real ServerApp and ClientApp in one process: what must hold whatever the setting."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import CLIENTS, bits, lines, run, toy_data

from fedpfn.examples import Examples
from fedpfn.lmc.layerwise import layer_report
from fedpfn.masks import build_mask
from fedpfn.measures import Instruments
from fedpfn.npy import to_npy
from fedpfn.params import read_state
from fedpfn.rounds import Round
from fedpfn.runs import Run, read_run
from fedpfn.runs.arguments import round_plans
from fedpfn.runs.config import ConfigError
from strategies import RoundFailedError
from strategies.assembly import build_model, load_data
from strategies.records import decode

STRATEGIES = ("fedavg", "fedpfn", "fedpnu")


def unseen_activation(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    class Unseen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(input_shape[0], 4), nn.Linear(4, num_classes)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.second(self.first(inputs).relu())

    return Unseen()


def test_a_run_folder_holds_all_that_is_promised(tmp_path: Path) -> None:
    found = run(tmp_path, output__checkpoint_every=1, output__save_client_models=True)
    assert [record["round"] for record in found.rounds] == [0, 1, 2]
    promised = [
        "round",
        "accuracy",
        "loss",
        "clients",
        "train_loss",
        "mask",
        "barrier",
        "fusion",
        "bytes_down",
        "bytes_up",
    ]
    assert all(set(promised) <= record.keys() for record in found.rounds)
    assert set(found.rounds[1]["seconds"]) >= {"train", "transfer", "aggregate", "evaluate", "barrier"}
    assert found.rounds[0]["barrier"] is None and found.rounds[1]["barrier"]["pairs"] == 6
    assert found.partition is not None and sum(found.partition["sizes"]) == 60
    assert found.summary is not None and found.summary["rounds"] == 2 and found.failure is None
    assert torch.__version__.startswith(found.environment["versions"]["torch"])
    curves = found.barriers(2)
    assert curves["loss"].shape == (6, 3) and curves["accuracy_matrix"].shape == (4, 4)
    assert str(curves["convention"]).startswith("w(alpha) = alpha * first")
    saved = {path.stem for path in (found.path / "checkpoints").iterdir()}
    assert {"final", "final-server", "round-0002-client-0003"} <= saved and "round-0002" not in saved


def test_the_recorded_barriers_are_those_of_the_saved_client_models(tmp_path: Path) -> None:
    found = run(tmp_path, rounds=1, output__save_client_models=True, barrier__points=5)
    (_, _), (inputs, labels) = toy_data()
    models = [found.state(f"round-0001-client-{client:04d}") for client in range(CLIENTS)]

    def loss(state: dict[str, Tensor]) -> float:
        hidden = torch.relu(torch.tensor(inputs) @ state["linear1.weight"].T + state["linear1.bias"])
        logits = (hidden @ state["head.weight"].T + state["head.bias"]).double()
        picked = torch.log_softmax(logits, 1)[torch.arange(len(labels)), torch.tensor(labels)]
        return -float(picked.mean())

    curves = found.barriers(1)
    for position, (first, second) in enumerate(curves["pairs"]):
        for point, alpha in enumerate(curves["alphas"]):
            mixed = {k: alpha * models[first][k] + (1 - alpha) * models[second][k] for k in models[first]}
            assert loss(mixed) == pytest.approx(curves["loss"][position, point], rel=1e-5)


def test_the_recorded_layers_are_those_of_the_saved_client_models(tmp_path: Path) -> None:
    found = run(tmp_path, rounds=1, barrier__layers=True, output__save_client_models=True, barrier__max_pairs=3)
    arrays, barrier = found.barriers(1), found.rounds[1]["barrier"]
    dataset = load_data(found.config).dataset
    model = build_model(found.config, dataset)
    (chosen,) = {tuple(map(tuple, arrays["pairs"].tolist()))}
    ids = arrays["clients"].tolist()
    states = [found.state(f"round-0001-client-{client:04d}") for client in ids]
    states = [{name: state[name] for name in read_state(model)} for state in states]
    test = Examples.from_arrays(dataset.test.inputs, dataset.test.labels, mean=dataset.mean, std=dataset.std)
    pairs = [(ids.index(first), ids.index(second)) for first, second in chosen]
    slow = [
        layer_report(model, states[i], states[j], test, alphas=(0.5,), stitching=False, ranks=False) for i, j in pairs
    ]
    for at, layer in enumerate(barrier["layers"]):
        rows = [report.layers[at] for report in slow]
        assert layer["layer"] == rows[0].layer
        assert arrays["layer_llfc"][:, at] == pytest.approx([row.llfc[0] for row in rows], abs=1e-6)
        assert layer["llfc"] == pytest.approx(np.mean([row.llfc[0] for row in rows]), abs=1e-6)
        assert layer["baseline"] == pytest.approx(np.mean([row.baseline for row in rows]), abs=1e-6)


def test_layers_that_cannot_be_measured_are_refused_before_anything_starts(tmp_path: Path) -> None:
    unseen = {"model__name": f"{__name__}:unseen_activation", "model__hidden": 2, "model__width": 200}
    with pytest.raises(ConfigError, match=r"barrier\.layers: "):
        run(tmp_path, barrier__layers=True, **unseen)
    run(tmp_path, "without", rounds=1, **unseen)


def test_two_runs_are_identical_whatever_the_number_of_nodes(tmp_path: Path) -> None:
    runs = [run(tmp_path, f"nodes{nodes}", nodes=nodes, strategy__name="fedpnu") for nodes in (1, 2, 3, 7)]
    assert all(lines(other) == lines(runs[0]) for other in runs[1:])
    digests = {other.summary["weights_sha256"] for other in runs if other.summary}
    assert len(digests) == 1


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    one, other = (run(tmp_path, f"seed{seed}", seed=seed) for seed in (0, 1))
    assert lines(one) != lines(other)


def test_ratio_zero_makes_fedpfn_bit_identical_to_fedavg(tmp_path: Path) -> None:
    averaged = run(tmp_path, "avg", strategy__name="fedavg", rounds=3)
    masked = run(tmp_path, "pfn", strategy__name="fedpfn", mask__ratio=0.0, rounds=3)
    assert averaged.summary and masked.summary
    assert averaged.summary["weights_sha256"] == masked.summary["weights_sha256"]
    assert [r["accuracy"] for r in averaged.rounds] == [r["accuracy"] for r in masked.rounds]


def test_every_algorithm_meets_the_same_clients_in_the_same_rounds(tmp_path: Path) -> None:
    chosen = [
        [r["clients"] for r in run(tmp_path, name, strategy__name=name, federation__fraction=0.5, rounds=4).rounds]
        for name in STRATEGIES
    ]
    assert chosen[0] == chosen[1] == chosen[2]
    assert all(len(clients) == 2 for clients in chosen[0][1:])


OPTIMIZERS = ("sgd", "adam", "adamw")
SERVER_OPTIMIZERS = ("none", "avgm", "adam", "adagrad", "yogi")
# FedAvg masks nothing, so that the granularity says nothing either
MASKS = [
    (name, grain) for name in STRATEGIES for grain in ("weight", "neuron") if (name, grain) != ("fedavg", "neuron")
]


# every pair of an optimiser, a server's and a mask; no code knows of all three
PAIRS = [
    (OPTIMIZERS[(first + second) % len(OPTIMIZERS)], server, *masked)
    for (first, server), (second, masked) in product(enumerate(SERVER_OPTIMIZERS), enumerate(MASKS))
]


@pytest.mark.parametrize(("optimizer", "server", "strategy", "granularity"), PAIRS)
def test_frozen_coordinates_never_move(
    tmp_path: Path, optimizer: str, server: str, strategy: str, granularity: str
) -> None:
    """Rounds after the first, too: momentum on the server must not move what was trained before and is frozen now."""
    variant = "across-rounds" if strategy == "fedpnu" else "within-round"
    found = run(
        tmp_path,
        rounds=3,
        strategy__name=strategy,
        strategy__variant=variant,
        strategy__server_optimizer=server,
        strategy__server_lr=0.1,
        mask__granularity=granularity,
        mask__ratio=0.5,
        train__optimizer=optimizer,
        train__lr=0.01,
        train__weight_decay=0.1,
        output__checkpoint_every=1,
        output__keep_checkpoints=0,
        barrier__every=0,
    )
    plan = round_plans(found.config)
    for server_round in (2, 3):
        before, after = found.state(f"round-{server_round - 1:04d}"), found.state(f"round-{server_round:04d}")
        (phase,) = plan(server_round)
        mask = build_mask(phase.mask, before)
        frozen = sum(int((~trained).sum()) for trained in mask.values())
        assert (frozen > 0) == (strategy != "fedavg")
        for name, trained in mask.items():
            assert torch.equal(bits(after[name])[~trained], bits(before[name])[~trained])
            assert (after[name][trained] != before[name][trained]).float().mean() > 0.5


def test_only_active_entries_travel_from_client_to_server(tmp_path: Path) -> None:
    header = 128  # of NumPy's format, once an array
    everything = run(tmp_path, "avg", strategy__name="fedavg").rounds[1]["bytes_up"] / CLIENTS - header
    sent = {
        ratio: run(tmp_path, f"pfn{ratio}", mask__ratio=ratio).rounds[1]["bytes_up"] / CLIENTS - header
        for ratio in (0.25, 0.5, 0.9)
    }
    parameters = 5 * 8 + 8 + 8 * 3 + 3
    assert everything == 4 * parameters
    for ratio, size in sent.items():
        kept = sum(n - int(ratio * n + 0.5) for n in (40, 8, 24, 3))
        assert size == 4 * kept


def test_bytes_count_what_the_messages_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.runtime import in_process

    counted = {"down": 0, "up": 0}
    original = in_process.InProcessGrid._answer

    def spy(self: Any, message: Any) -> Any:
        reply = original(self, message)
        clients = len(message.content.config_records["cohort"]["clients"])
        counted["down"] += clients * sum(len(a.data) for a in message.content.array_records["arrays"].values())
        stacks = reply.content.array_records["arrays"].values()
        counted["up"] += sum(len(to_npy(of_a_client)) for stack in stacks for of_a_client in decode(stack))
        return reply

    monkeypatch.setattr(in_process.InProcessGrid, "_answer", spy)
    found = run(tmp_path)
    assert counted["up"] == sum(record["bytes_up"] for record in found.rounds)
    assert counted["down"] == sum(record["bytes_down"] for record in found.rounds)


def test_clients_without_examples_are_never_drawn(tmp_path: Path) -> None:
    found = run(tmp_path, federation__clients=30, partition__alpha=0.05, rounds=3, barrier__every=0)
    assert found.partition is not None
    empty = {client for client, size in enumerate(found.partition["sizes"]) if size == 0}
    assert empty, "the setting must make some clients empty"
    assert not empty & {client for record in found.rounds for client in record["clients"]}


def test_max_pairs_draws_pairs_from_the_seed(tmp_path: Path) -> None:
    some = [run(tmp_path, f"run{i}", barrier__max_pairs=2).barriers(1)["pairs"].tolist() for i in (0, 1)]
    assert some[0] == some[1] and len(some[0]) == 2


def test_barriers_are_measured_when_due_and_never_at_zero(tmp_path: Path) -> None:
    due = [bool(r["barrier"]) for r in run(tmp_path, "two", barrier__every=2, rounds=4).rounds]
    never = [bool(r["barrier"]) for r in run(tmp_path, "zero", barrier__every=0, rounds=2).rounds]
    assert due == [False, False, True, False, True] and not any(never)


def looked_at(round: Round, instruments: Instruments) -> float:
    return float(sum(contribution.arrays != {} for contribution in round.contributions))


def not_looked_at(round: Round, instruments: Instruments) -> float:
    return looked_at(round, instruments)


not_looked_at.needs_models = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("strategy", ["fedavg", "fedpfn", "fedpnu"])
def test_rounds_that_are_summed_and_rounds_that_are_collected_are_the_same_bits(tmp_path: Path, strategy: str) -> None:
    def recorded(name: str, nodes: int, every: int, measure: str = "not_looked_at") -> Run:
        settings = {"rounds": 4, "barrier__every": every, "measures": f"test_federation:{measure}"}
        return run(tmp_path, name, nodes=nodes, strategy__name=strategy, **settings)

    collected = recorded("collected", 1, 1)
    for nodes, every in ((1, 0), (3, 0), (2, 2)):
        summed = recorded(f"{nodes}-{every}", nodes, every)
        models = [record["not_looked_at"] > 0 for record in summed.rounds]
        assert models == [number > 0 and every > 0 and number % every == 0 for number in range(5)]
        for one, other in zip(collected.rounds, summed.rounds, strict=True):
            apart = {"seconds", "barrier", "fusion", "client_to_global", "round_to_round", "not_looked_at", "drift"}
            assert {k: v for k, v in one.items() if k not in apart} == {
                k: v for k, v in other.items() if k not in apart
            }
            assert one["drift"] == (None if one["drift"] is None else pytest.approx(other["drift"], rel=1e-9))
    # a measure that says nothing is given the models
    assert recorded("asked", 2, 0, "looked_at").rounds[1]["looked_at"] > 0


def test_a_failing_client_stops_the_run_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        RoundFailedError, match=r"client 0 failed in round 1, local training: RuntimeError: the cat sat"
    ):
        run(tmp_path, model__name="toys:failing_model", model__hidden=2, model__width=200)
    found = read_run(tmp_path / "run")
    assert found.summary is None and found.failure is not None
    assert "the cat sat" in found.failure["reason"] and len(found.rounds) == 1
    assert found.failure["reason"].endswith("(tolerate=0); the limit is set by federation.tolerate-failures")


def test_a_tolerated_failure_is_recorded_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clients import client_app

    original = client_app.train_client

    def sometimes(task: Any, workspace: Any, client: int, kept: Any) -> Any:
        if client == 2 and task.server_round == 1:
            raise MemoryError("client 2 is out of luck")
        return original(task, workspace, client, kept)

    monkeypatch.setattr(client_app, "train_client", sometimes)
    found = run(tmp_path, federation__tolerate_failures=1)
    assert found.rounds[1]["clients"] == [0, 1, 3] and found.rounds[2]["clients"] == [0, 1, 2, 3]
    assert found.rounds[1]["failures"] == [
        {"client": 2, "stage": "local training", "error": "MemoryError: client 2 is out of luck"}
    ]


def test_a_round_below_its_quorum_stops_though_failures_are_tolerated(tmp_path: Path) -> None:
    settings = {"model__name": "toys:failing_model", "model__hidden": 2, "model__width": 200}
    with pytest.raises(RoundFailedError, match=r"0 of 4 clients answered.*the limit is set by federation\.quorum"):
        run(tmp_path, federation__tolerate_failures=4, **settings)


def test_a_diverging_client_is_named_with_its_step(tmp_path: Path) -> None:
    with pytest.raises(RoundFailedError, match=r"client \d+ failed in round 1.*NonFiniteError.*step"):
        run(tmp_path, train__lr=1e30)


@pytest.mark.parametrize("policy", ["average", "reset", "none"])
def test_batch_norm_statistics_are_averaged_and_counters_kept(tmp_path: Path, policy: str) -> None:
    """Under each policy of the barriers, which must leave the global model as it is."""
    settings = {"data__name": "digits", "model__name": "resnet20", "model__norm": "batch", "train__steps": 1}
    settings |= {"model__width_multiplier": 0.25, "model__hidden": 2, "model__width": 200, "barrier__max_examples": 50}
    found = run(tmp_path, rounds=1, barrier__batch_norm=policy, barrier__max_pairs=1, **settings)
    state = found.state("final")
    counters = [tensor for name, tensor in state.items() if name.endswith("num_batches_tracked")]
    moved = [tensor for name, tensor in state.items() if name.endswith("running_mean")]
    assert counters and all(int(counter) == 0 for counter in counters)
    assert all(float(mean.abs().sum()) > 0 for mean in moved)
    without = run(tmp_path, "without", rounds=1, barrier__every=0, **settings).state("final")
    assert all(torch.equal(state[name], without[name]) for name in state)


def by_hand(labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Deal the examples out in turn."""
    return [np.arange(client, len(labels), clients) for client in range(clients)]


def test_a_partition_scheme_of_the_users_own_is_used(tmp_path: Path) -> None:
    found = run(tmp_path, rounds=1, partition__scheme=f"{__name__}:by_hand")
    assert found.partition is not None and found.partition["sizes"] == [15, 15, 15, 15]


def test_the_mean_is_weighted_by_examples(tmp_path: Path) -> None:
    found = run(tmp_path, rounds=1, strategy__name="fedavg", output__save_client_models=True)
    assert found.partition is not None
    sizes = np.array(found.partition["sizes"], dtype=float)
    models = [found.state(f"round-0001-client-{client:04d}") for client in range(CLIENTS)]
    for name, tensor in found.state("final").items():
        expected = sum(w * m[name].double() for w, m in zip(sizes / sizes.sum(), models, strict=True))
        assert torch.equal(tensor, expected.float())


def test_rounds_jsonl_is_strict_json(tmp_path: Path) -> None:
    def refuse(token: str) -> float:
        raise AssertionError(f"{token} is not JSON")

    found = run(tmp_path, barrier__every=0)
    for line in (found.path / "rounds.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_nothing_is_written_for_a_config_that_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        run(tmp_path, federation__clients=1000)
    assert not (tmp_path / "run").exists()


def test_a_client_sends_what_any_of_its_phases_trained(tmp_path: Path) -> None:
    """Within a round a mask and its complement train everything; across rounds each has its own share."""
    everything = run(tmp_path, "avg", strategy__name="fedavg").rounds[1]["bytes_up"]
    pnu = {"strategy__name": "fedpnu", "mask__ratio": 0.75}
    within = run(tmp_path, "within", **pnu).rounds
    across = run(tmp_path, "across", strategy__variant="across-rounds", **pnu).rounds
    assert within[1]["bytes_up"] == within[2]["bytes_up"] == everything
    assert across[1]["bytes_up"] < across[2]["bytes_up"] < everything
    assert within[1]["mask"]["untouched"] == 0 and across[1]["mask"]["schedule"] == "complement"
