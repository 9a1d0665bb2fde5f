"""The algorithms: the laws that their formulas obey, alone and in federations, with and without a mask."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_resume as cuts
import torch
import toys
from local_algorithms import begun
from safetensors.torch import load_file
from torch import Tensor, nn
from toys import bits, digest, flat

from fedpfn.algorithms import ALGORITHMS, FedLC, FedNova, FedSAM, Moon, Scaffold
from fedpfn.examples import Examples
from fedpfn.freezing import BitMask
from fedpfn.losses import batch_loss
from fedpfn.mask_text import bits_of, mask_text
from fedpfn.masks import MaskRecipe, build_mask
from fedpfn.params import read_state, trainable
from fedpfn.rounds import Round
from fedpfn.runs import Run
from fedpfn.runs.config import ConfigError
from fedpfn.runs.recorder import Recorder
from fedpfn.saliency import keep_largest, snip
from fedpfn.training import LocalAlgorithm, batch_order, make_optimizer, train
from strategies.fed_nova import _normalised

# settings of each algorithm with its coefficient at 0, under which it is FedAvg to the bit
AT_ZERO: dict[str, dict[str, Any]] = {
    "fedprox": {"strategy.args.mu": 0.0},
    "fedsam": {"strategy.args.rho": 0.0},
    "fedlc": {"strategy.args.tau": 0.0},
    "fedgucci": {"strategy.args.beta": 0.0},
    "moon": {"strategy.args.mu": 0.0},
}
STATEFUL = ("scaffold", "feddyn", "moon")


def run(tmp_path: Path, name: str = "run", *, nodes: int = 2, **settings: Any) -> Run:
    return toys.run(tmp_path, name, nodes=nodes, **({"train__momentum": 0.0, "rounds": 3} | settings))


# coefficients


@pytest.mark.parametrize("name", AT_ZERO)
def test_with_its_coefficient_at_zero_an_algorithm_is_fedavg_to_the_bit(tmp_path: Path, name: str) -> None:
    plain = run(tmp_path, "plain", strategy__name="fedavg", rounds=3)
    found = run(tmp_path, "found", strategy__name=name, **AT_ZERO[name])
    assert digest(found) == digest(plain)
    assert digest(run(tmp_path, "other", strategy__name=name)) != digest(plain)


def test_fedprox_is_the_proximal_term_of_any_algorithm(tmp_path: Path) -> None:
    named = run(tmp_path, "named", strategy__name="fedprox", **{"strategy.args.mu": 0.5})
    key = run(tmp_path, "key", strategy__name="fedavg", train__proximal_mu=0.5)
    assert digest(named) == digest(key)


def test_fednova_with_equal_steps_is_fedavg_and_with_others_is_not(tmp_path: Path) -> None:
    equal = {"train__steps": 4, "train__momentum": 0.9}
    plain = run(tmp_path, "plain", strategy__name="fedavg", **equal)
    assert digest(run(tmp_path, "nova", strategy__name="fednova", **equal)) == digest(plain)
    assert digest(run(tmp_path, "epochs", strategy__name="fednova")) != digest(
        run(tmp_path, "plain-epochs", strategy__name="fedavg")
    )


# masks, nodes, resumption


@pytest.mark.parametrize("name", ALGORITHMS)
def test_under_a_mask_frozen_entries_never_move(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor]]] = []

    def note(self: Any, round: Any) -> dict[str, float]:
        if round.server_round:
            seen.append((round.before, round.after, round.active))
        return original(self, round)  # type: ignore[no-any-return]

    original = Recorder.__call__
    monkeypatch.setattr(Recorder, "__call__", note)
    found = run(tmp_path, strategy__name=name, mask__ratio=0.5, barrier__every=0)
    assert len(seen) == 3
    for before, after, active in seen:
        for parameter, mask in active.items():
            assert torch.equal(bits(before[parameter])[~mask], bits(after[parameter])[~mask])
            assert 0.3 < float(mask.float().mean()) < 0.7
        assert any(not torch.equal(before[parameter], after[parameter]) for parameter in active)
    assert found.rounds[-1]["mask"]["schedule"] == "per-round"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_number_of_nodes_does_not_matter(tmp_path: Path, name: str) -> None:
    settings = {"strategy__name": name, "mask__ratio": 0.3, "federation__fraction": 0.75}
    found = [run(tmp_path, f"nodes-{nodes}", nodes=nodes, **settings) for nodes in (1, 2, 4)]
    assert len({digest(one) for one in found}) == 1


@pytest.mark.parametrize("name", STATEFUL)
def test_what_clients_keep_survives_a_resumption(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {
        "strategy__name": name, "rounds": 6, "federation__fraction": 0.5, "train__momentum": 0.0,
        "output__checkpoint_every": 2,
    }  # fmt: skip
    whole = toys.run(tmp_path, "whole", **settings)
    config = toys.config(tmp_path, "cut", **settings)
    cuts.cut_run(config, monkeypatch, after=5)
    found = cuts.resumed(config)
    cuts.assert_same(found, whole)
    # one state per client that ever trained is left, for an extension
    clients = {client for record in whole.rounds[1:] for client in record["clients"]}
    for one in (found, whole):
        kept = sorted(path.name for path in (one.path / "clients").iterdir())
        assert len(kept) == len(clients) and all(name.startswith("client-") for name in kept)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_client_that_kept_nothing_would_end_elsewhere(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path, "whole", strategy__name=name)
    monkeypatch.setattr("clients.client_app.keep", lambda update, context: None)
    assert digest(run(tmp_path, "forgetful", strategy__name=name)) != digest(whole)
    assert not (tmp_path / "forgetful" / "clients").exists()


@pytest.mark.parametrize("name", ["scaffold", "feddyn", "fednova"])
def test_elementwise_algorithms_train_in_stacks(tmp_path: Path, name: str) -> None:
    settings = {"strategy__name": name, "mask__ratio": 0.3}
    alone, stacked = (run(tmp_path, f"stack-{stack}", train__stack=stack, **settings) for stack in (0, 4))
    assert alone.rounds[-1]["loss"] == pytest.approx(stacked.rounds[-1]["loss"], rel=1e-4)


def test_other_algorithms_fall_back_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alone, stacked = (run(tmp_path, f"stack-{n}", train__stack=n, strategy__name="fedsam") for n in (0, 4))
    assert digest(alone) == digest(stacked)


# SSFL: a mask that looks at data


def test_ssfl_freezes_what_matters_least_to_the_clients_data(tmp_path: Path) -> None:
    model, examples = classifier()
    saliency = snip(model, examples, batch_loss, batch_size=3)
    model.zero_grad()
    nn.functional.cross_entropy(model(examples.inputs), examples.labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(saliency[name], (parameter * parameter.grad).abs(), atol=1e-6)
    mask = keep_largest(saliency, 0.3)
    kept = np.concatenate([saliency[name].numpy()[own].reshape(-1) for name, own in mask.items()])
    frozen = np.concatenate([saliency[name].numpy()[~own].reshape(-1) for name, own in mask.items()])
    assert frozen.size == round(0.3 * (frozen.size + kept.size)) and frozen.max() <= kept.min()
    sizes = sum(own.size for own in mask.values())
    assert np.array_equal(bits_of(mask_text(mask), sizes), np.concatenate([own.reshape(-1) for own in mask.values()]))


@pytest.mark.parametrize("text", ["", "!", "AAAA", mask_text({"w": np.ones(9, dtype=bool)})])
def test_a_text_that_is_no_mask_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a mask"):
        bits_of(text, 17)


@pytest.mark.parametrize("prune", [False, True])
def test_ssfl_keeps_one_mask_and_prunes_if_asked_for(tmp_path: Path, prune: bool) -> None:
    settings = {"strategy__name": "ssfl", "mask__ratio": 0.5, "mask__warmup_rounds": 1, "rounds": 4}
    settings |= {"output__checkpoint_every": 1, "output__keep_checkpoints": 0, "barrier__every": 2}
    found = run(tmp_path, "ssfl", **settings, **{"strategy.args.prune": prune})
    assert digest(run(tmp_path, "one", nodes=1, **settings, **{"strategy.args.prune": prune})) == digest(found)
    states = [load_file(found.path / "checkpoints" / f"round-{number:04d}.safetensors") for number in range(1, 5)]
    parameters = [name for name in states[0] if "::" not in name and not name.startswith("server")]
    still = {name: states[1][name] == states[3][name] for name in parameters}
    share = sum(int(one.sum()) for one in still.values()) / sum(one.numel() for one in still.values())
    assert share == pytest.approx(0.5, abs=0.02)
    for name in parameters:
        frozen = states[3][name][still[name]]
        assert bool((frozen == 0).all()) is prune or frozen.numel() == 0
        if not prune:
            assert torch.equal(frozen, states[0][name][still[name]])
    assert found.rounds[1]["mask"]["frozen"] == 0 and found.rounds[2]["mask"]["frozen"] == pytest.approx(0.5, abs=0.01)


def test_ssfl_goes_on_with_the_mask_that_it_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"strategy__name": "ssfl", "rounds": 6, "output__checkpoint_every": 2, "strategy.args.prune": True}
    whole = toys.run(tmp_path, "whole", **settings)
    config = toys.config(tmp_path, "cut", **settings)
    cuts.cut_run(config, monkeypatch, after=5)
    cuts.assert_same(cuts.resumed(config), whole)


# settings


def test_an_algorithm_and_its_base_share_the_arguments(tmp_path: Path) -> None:
    base = {"strategy.base": "fedadam", "strategy.args.eta": 0.01}
    found = run(tmp_path, "both", strategy__name="fedsam", **base, **{"strategy.args.rho": 0.1})
    assert digest(found) != digest(run(tmp_path, "base", strategy__name="fedavg", **base))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"strategy.name": "scaffold", "strategy.base": "fedadam"}, "has its own aggregation"),
        ({"strategy.name": "scaffold", "train.optimizer": "adam"}, "needs train.optimizer=sgd"),
        ({"strategy.name": "fedsam", "strategy.args.rho": -1.0}, "rho must be 0 or more"),
        ({"strategy.name": "fedsam", "strategy.args.roh": 0.1}, "takes no argument 'roh'"),
        ({"strategy.name": "fedsam", "strategy.args.rho": "much"}, "must be a number"),
        ({"strategy.name": "feddyn", "strategy.args.alpha": 0.0}, "alpha must be above 0"),
        ({"strategy.name": "json:loads"}, "not a subclass of fedpfn.training.LocalAlgorithm"),
        ({"strategy.name": "scafold"}, "scaffold"),
        ({"strategy.name": "ssfl", "mask.granularity": "neuron"}, "freezes single entries"),
        ({"strategy.name": "ssfl", "mask.schedule": "cyclic"}, "keeps the mask that it chose"),
        ({"data.name": "diabetes", "partition.scheme": "iid", "stop.target": 0.9}, "stop.target is an accuracy"),
        ({"strategy.name": "scaffold", "mask.ratio": -0.5}, "mask.ratio must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(tmp_path: Path, settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, **{key.replace(".", "__").replace("-", "_"): value for key, value in settings.items()})
    assert any(word in fault for fault in caught.value.faults), caught.value.faults
    assert not (tmp_path / "run").exists()


def test_the_mask_ratio_is_the_algorithms_own_unless_it_is_given(tmp_path: Path) -> None:
    ratios = {
        name: toys.config(tmp_path, strategy__name=name, **own).mask.ratio
        for name, own in (("fedpfn", {}), ("fedavg", {}), ("scaffold", {}), ("moon", {"mask__ratio": 0.2}))
    }
    assert ratios == {"fedpfn": 0.4, "fedavg": 0.4, "scaffold": 0.0, "moon": 0.2}


# the formulas, on models small enough to follow


class Quadratic(nn.Module):
    """f(w) = (a w - b)^2 / 2 in every entry, by a regression that has nothing else in it."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.w


def quadratic(curvature: float, target: float) -> Examples:
    # the mean squared error of a w against b is twice f: the step is halved where it counts
    a = curvature**0.5
    return Examples(torch.tensor([[a]], dtype=torch.float64), torch.tensor([[target * a]], dtype=torch.float64))


def local(model: nn.Module, examples: Examples, algorithm: Any, *, steps: int, lr: float) -> Any:
    trained = train(
        model, examples, batch_order(1, 1, np.random.default_rng(0)), [(None, steps)],
        optimizer=make_optimizer("sgd", lr=lr), algorithm=algorithm,
    )  # fmt: skip
    return None if algorithm is None else algorithm.finish(trainable(model), [(None, trained.reach[0])])


CURVES = ((1.0, 1.0), (4.0, -1.0))
# the minimum of the mean of 1/2 (w - 1)^2 and 4/2 (w + 1)^2
OPTIMUM = (1.0 * 1.0 + 4.0 * -1.0) / (1.0 + 4.0)


def federate(name: str, rounds: int, *, steps: int = 5, lr: float = 0.05, **args: float) -> float:
    """Two clients, by hand: where the global model ends."""
    w = torch.zeros(1, dtype=torch.float64)
    c, h = torch.zeros_like(w), torch.zeros_like(w)
    kept: list[dict[str, Tensor]] = [{}, {}]
    for _ in range(rounds):
        ends, changes = [], []
        for client, (curvature, target) in enumerate(CURVES):
            model = Quadratic()
            with torch.no_grad():
                model.w.copy_(w)
            kind = ALGORITHMS.get(name, LocalAlgorithm)
            algorithm = begun(model, kind(**args), shared={"w": c}, own=kept[client])
            left = local(model, quadratic(curvature, target), algorithm, steps=steps, lr=lr)
            kept[client] = left.own
            ends.append(model.w.detach().clone())
            changes.append(left.shared.get("w"))
        mean = torch.stack(ends).mean(dim=0)
        if name == "scaffold":
            c = c + torch.stack(changes).mean(dim=0)
        if name == "feddyn":
            h = h - args["alpha"] * (mean - w)
            mean = mean - h / args["alpha"]
        w = mean
    return float(w)


def test_on_two_quadratics_fedavg_is_biased_and_scaffold_and_feddyn_find_the_optimum() -> None:
    # with K steps a client contracts towards its own optimum by r_i = (1 - 2 lr a_i)^K; the fixed point weighs by 1 - r
    pulls = [1 - (1 - 2 * 0.05 * curvature) ** 5 for curvature, _ in CURVES]
    biased = sum(pull * target for pull, (_, target) in zip(pulls, CURVES, strict=True)) / sum(pulls)
    assert federate("fedavg", 60) == pytest.approx(biased, abs=1e-9)
    assert abs(biased - OPTIMUM) > 0.1
    assert federate("scaffold", 60) == pytest.approx(OPTIMUM, abs=1e-9)
    assert federate("feddyn", 200, alpha=1.0) == pytest.approx(OPTIMUM, abs=1e-9)


def test_scaffold_with_one_step_and_everybody_is_large_batch_sgd() -> None:
    w = 0.0
    for _ in range(7):
        w -= 0.05 * sum(2 * curvature * (w - target) for curvature, target in CURVES) / 2
    assert federate("scaffold", 7, steps=1) == pytest.approx(w, abs=1e-12)


def test_scaffold_accounts_for_momentum() -> None:
    """On a slope the mean gradient is the slope, however far momentum carried the model."""

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs * self.w

    slope = torch.tensor([3.0, -2.0], dtype=torch.float64)
    for settings in ({"momentum": 0.9}, {"momentum": 0.5, "nesterov": True}, {}):
        model = Slope()
        algorithm = begun(model, Scaffold())
        trained = train(
            model, Examples(torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)),
            batch_order(1, 1, np.random.default_rng(0)), [(None, 6)],
            optimizer=make_optimizer("sgd", lr=0.1, **settings), algorithm=algorithm,
            loss=lambda outputs, labels: (outputs * slope).sum(),
        )  # fmt: skip
        left = algorithm.finish(trainable(model), [(None, trained.reach[0])])
        assert torch.allclose(left.own["w"], slope, atol=1e-12)
        assert torch.equal(left.shared["w"], left.own["w"])


def test_scaffold_leaves_the_variates_of_frozen_entries() -> None:
    model = Quadratic(4)
    mask = {"w": torch.tensor([True, False, True, False])}
    own = {"w": torch.full((4,), 0.25, dtype=torch.float64)}
    algorithm = begun(model, Scaffold(), shared={"w": torch.full((4,), 0.125, dtype=torch.float64)}, own=own)
    trained = train(
        model, Examples(torch.ones(1, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64)),
        batch_order(1, 1, np.random.default_rng(0)), [(mask, 3)], optimizer=make_optimizer("sgd", lr=0.1),
        algorithm=algorithm,
    )  # fmt: skip
    left = algorithm.finish(trainable(model), [(BitMask.of(mask, trainable(model)), trained.reach[0])])
    assert left.own["w"][1] == left.own["w"][3] == 0.25 and left.shared["w"][1] == left.shared["w"][3] == 0
    # c_i - c + (w_t - w) / (K eta)
    expected = 0.25 - 0.125 + (0 - float(model.w[0].detach())) / (3 * 0.1)
    assert float(left.own["w"][0]) == pytest.approx(expected, abs=1e-12)


# the servers' halves, by the definition, from what the clients of a round sent


def rounds_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[Round]:
    seen: list[Round] = []
    original = Recorder.__call__
    monkeypatch.setattr(Recorder, "__call__", lambda self, round: (seen.append(round), original(self, round))[1])
    run(tmp_path, barrier__every=1, barrier__points=3, **settings)
    return [round for round in seen if round.server_round]


def test_fedexp_steps_as_far_as_disagreement_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = 0
    for round in rounds_of(tmp_path, monkeypatch, strategy__name="fedexp", partition__alpha=0.3):
        weights = torch.tensor([one.examples for one in round.contributions], dtype=torch.float64)
        updates = torch.stack([flat(state) - flat(round.before) for state in round.states()])
        p = weights / weights.sum()
        mean = p @ updates
        step = max(1.0, float(p @ updates.square().sum(dim=1)) / (2 * (float(mean.square().sum()) + 1e-3)))
        assert torch.allclose(flat(round.after), flat(round.before) + step * mean, atol=1e-6)
        longer += step > 1
    assert longer


@pytest.mark.parametrize("name", ["fedavg", "fednova"])
def test_fednova_divides_updates_by_their_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for round in rounds_of(tmp_path, monkeypatch, strategy__name=name, partition__alpha=0.3, train__momentum=0.5):
        steps = [sum(one.metrics["phase-steps"]) for one in round.contributions]  # type: ignore[arg-type]
        assert len(set(steps)) > 1
        a = torch.tensor([(k - 0.5 * (1 - 0.5**k) / 0.5) / 0.5 for k in steps], dtype=torch.float64)
        weights = torch.tensor([one.examples for one in round.contributions], dtype=torch.float64)
        p = weights / weights.sum()
        updates = torch.stack([flat(state) - flat(round.before) for state in round.states()])
        normalised = flat(round.before) + (p @ a) * ((p / a) @ updates)
        assert torch.allclose(flat(round.after), normalised, atol=1e-6) is (name == "fednova")


def test_fednova_under_fedpnus_phases_takes_each_entrys_own_reach() -> None:
    updates = [torch.tensor([1.0, 6.0, 5.0]).double(), torch.tensor([4.0, 2.0, 0.0]).double()]
    # the third entry was trained by the first client alone
    reaches = [torch.tensor([1.0, 3.0, 2.0]).double(), torch.tensor([4.0, 1.0, 0.0]).double()]
    moved = _normalised(updates, reaches, torch.tensor([1.0, 3.0]).double())
    first = (1 / 4 * 1 + 3 / 4 * 4) * (1 / 4 * 1 + 3 / 4 * 1)
    second = (1 / 4 * 3 + 3 / 4 * 1) * (1 / 4 * 2 + 3 / 4 * 2)
    assert moved.tolist() == pytest.approx([first, second, 5.0])


def test_scaffold_and_feddyn_count_clients_equally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"partition__alpha": 0.3, "rounds": 1}
    (round,) = rounds_of(tmp_path, monkeypatch, strategy__name="scaffold", **settings)
    assert len({one.examples for one in round.contributions}) > 1
    states = torch.stack([flat(state) for state in round.states()])
    assert torch.allclose(flat(round.after), states.mean(dim=0), atol=1e-6)
    (round,) = rounds_of(tmp_path / "dyn", monkeypatch, strategy__name="feddyn", **settings)
    # after one round h is -alpha times the mean update
    mean = torch.stack([flat(state) for state in round.states()]).mean(dim=0)
    assert torch.allclose(flat(round.after), 2 * mean - flat(round.before), atol=1e-5)


def classifier() -> tuple[nn.Module, Examples]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(8, 4, generator=generator)
    return model, Examples(inputs, torch.tensor([0, 1, 2, 0, 0, 1, 0, 0]))


def one_step(model: nn.Module, examples: Examples, algorithm: LocalAlgorithm, mask: Any = None, **start: Any) -> None:
    train(
        model, examples, iter([np.arange(8)]), [(mask, 1)], optimizer=make_optimizer("sgd", lr=1.0),
        algorithm=begun(model, algorithm, labels=examples.labels, **start),
    )  # fmt: skip


def test_fedsam_steps_by_the_gradient_at_the_perturbed_weights_within_the_mask() -> None:
    model, examples = classifier()
    before = read_state(model)
    mask = build_mask(MaskRecipe(1, 0.5), trainable(model))

    def gradient() -> dict[str, Tensor]:
        model.zero_grad()
        nn.functional.cross_entropy(model(examples.inputs), examples.labels).backward()
        return {name: parameter.grad * mask[name] for name, parameter in model.named_parameters()}  # type: ignore[operator]

    first = gradient()
    norm = torch.sqrt(sum((g**2).sum() for g in first.values()))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(first[name] * 0.3 / norm)
    second = gradient()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name])
    one_step(model, examples, FedSAM(rho=0.3), mask)
    for name, tensor in read_state(model).items():
        assert torch.allclose(tensor, before[name] - second[name], atol=1e-6)
        assert torch.equal(tensor[~mask[name]], before[name][~mask[name]])


def test_fedlc_calibrates_by_the_clients_own_classes() -> None:
    model, examples = classifier()
    algorithm = FedLC(tau=2.0)
    started = begun(model, algorithm, labels=examples.labels)
    # 5, 2 and 1 examples
    margins = 2.0 * torch.tensor([5.0, 2.0, 1.0]) ** -0.25
    expected = nn.functional.cross_entropy(model(examples.inputs) - margins, examples.labels)
    assert started.loss(examples.inputs, examples.labels).item() == pytest.approx(expected.item(), abs=1e-6)


def test_moon_adds_the_contrast_of_features() -> None:
    model, examples = classifier()
    past = {name: tensor + 0.5 for name, tensor in read_state(model).items()}
    algorithm = Moon(mu=2.0, tau=0.5)
    started = begun(model, algorithm, labels=examples.labels, own=past)
    with torch.no_grad():
        model[0].weight.add_(0.1)

    def features(state: Mapping[str, Tensor]) -> Tensor:
        return torch.relu(examples.inputs @ state["0.weight"].T + state["0.bias"])

    now = features(read_state(model))
    then = started._start.before
    near = torch.exp(torch.cosine_similarity(now, features(then)) / 0.5)
    far = torch.exp(torch.cosine_similarity(now, features(past)) / 0.5)
    expected = (
        nn.functional.cross_entropy(model(examples.inputs), examples.labels)
        - 2.0 * torch.log(near / (near + far)).mean()
    )
    assert started.loss(examples.inputs, examples.labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_fednova_reports_how_far_each_phase_reaches() -> None:
    model, examples = classifier()
    algorithm = begun(model, FedNova())
    trained = train(
        model, examples, batch_order(8, 4, np.random.default_rng(0)), [(None, 2), (None, 3)],
        optimizer=make_optimizer("sgd", lr=0.5, momentum=0.5), algorithm=algorithm,
    )  # fmt: skip
    left = algorithm.finish(trainable(model), [(None, reach) for reach in trained.reach])
    # 1 + 1.5 and 1 + 1.5 + 1.75 steps
    assert left.metrics == {"reach": [0.5 * 2.5, 0.5 * 4.25]}


# an algorithm of one's own, in one file


MINE = '''
from flwr.app import Array, ArrayRecord

from fedpfn.training import Correction, End, Finished, LocalAlgorithm, Start
from strategies import FedAvg


class MyServer(FedAvg):
    """Steps half the way."""

    elementwise = False

    def __init__(self, *, share=0.5, **arguments):
        super().__init__(**arguments)
        self.share = share

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None:
            return arrays, metrics
        before, _ = self.sent
        after = {name: array.numpy() for name, array in arrays.items()}
        mixed = {name: before[name].numpy() + self.share * (after[name] - before[name].numpy()) for name in after}
        return ArrayRecord({name: Array(array) for name, array in mixed.items()}), metrics


class Mine(LocalAlgorithm):
    """Pulls back along the client's last move."""

    strategy = MyServer

    def __init__(self, *, beta=0.1):
        self.beta = beta

    def start(self, start: Start) -> Correction:
        return Correction(offset={name: self.beta * move for name, move in start.own.items()})

    def finish(self, start: Start, end: End) -> Finished:
        moves = {name: (p - start.before[name]).detach() for name, p in end.parameters.items()}
        return Finished(own=moves, metrics={"moved": float(sum(m.norm() ** 2 for m in moves.values()) ** 0.5)})
'''


def test_an_algorithm_of_ones_own_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_algorithms.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    mine = {"strategy__name": "my_algorithms:Mine", "strategy.args.beta": 0.2}
    found = run(tmp_path, "mine", **mine, **{"strategy.args.share": 0.25}, mask__ratio=0.4)
    assert (tmp_path / "mine" / "clients").is_dir()
    assert digest(found) != digest(run(tmp_path, "other", **mine, mask__ratio=0.4))
    assert digest(run(tmp_path, "nodes", nodes=4, **mine)) == digest(run(tmp_path, "node", nodes=1, **mine))
    assert found.config.flat()["strategy.args"] == "beta=0.2 share=0.25"
