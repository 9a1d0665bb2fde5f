"""Ends, pairs and the mean of several models in one call: the same numbers as each by itself."""

import math
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedpfn.evaluation import Evaluation, evaluate
from fedpfn.examples import Examples
from fedpfn.lmc import Connectivity, InputBatches, barriers_to, fusion_barrier, measure_connectivity, measure_paths
from fedpfn.parallel import ModelPool
from fedpfn.params import State, mean_state, read_state


def network(seed: int, *, norm: bool = False) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.ReLU(), nn.Linear(8, 3)]
        model = nn.Sequential(*layers)
        model.train()(torch.randn(32, 6) * (1 + seed) + seed)
    return model.eval()


def states_of(count: int, **settings: Any) -> list[State]:
    return [read_state(network(seed, **settings)) for seed in range(count)]


@pytest.fixture
def examples() -> Examples:
    generator = torch.Generator().manual_seed(9)
    return Examples(torch.randn(50, 6, generator=generator), torch.randint(0, 3, (50,), generator=generator))


def measured(states: Sequence[State], examples: Examples, *, norm: bool = False, **settings: Any) -> Connectivity:
    with closing(ModelPool(network(7, norm=norm), workers=2)) as pool:
        return measure_connectivity(pool, states, examples, **{"points": 5} | settings)


def measured_to(
    states: Sequence[State], target: State, examples: Examples, *, norm: bool = False, **settings: Any
) -> Any:
    with closing(ModelPool(network(7, norm=norm), workers=2)) as pool:
        return barriers_to(pool, states, target, examples, **{"points": 5} | settings)


@pytest.mark.parametrize("norm", [False, True])
def test_one_call_measures_what_each_part_measures(examples: Examples, norm: bool) -> None:
    states, model = states_of(4, norm=norm), network(7, norm=norm)
    result = measured(states, examples, norm=norm)
    assert result.ends == [evaluate(model, examples, state=state) for state in states]
    assert result.fused == evaluate(model, examples, state=mean_state(states))
    assert result.fusion_barrier == fusion_barrier(result.fused.accuracy, [end.accuracy for end in result.ends])
    with closing(ModelPool(model, workers=1)) as pool:
        alone = measure_paths(pool, states, examples, points=5)
    for name in vars(alone):
        np.testing.assert_array_equal(vars(alone)[name], vars(result.barriers)[name])


@pytest.mark.parametrize("policy", ["reset", "none"])
def test_the_policy_holds_for_ends_and_mean_as_for_paths(examples: Examples, policy: str) -> None:
    states, model, batches = states_of(2, norm=True), network(7, norm=True), InputBatches(examples)
    result = measured(states, examples, norm=True, batch_norm=policy, batches=batches)
    assert result.barriers.loss[0, [0, -1]].tolist() == [result.ends[1].loss, result.ends[0].loss]
    # the mean of two models is the middle of their path
    assert result.fused.loss == pytest.approx(result.barriers.loss[0, 2], rel=1e-6)
    assert result.fused.accuracy == result.barriers.accuracy[0, 2]
    plain = measured(states, examples, norm=True, batch_norm=policy, batches=batches, plain=True)
    np.testing.assert_allclose(plain.barriers.loss, result.barriers.loss, rtol=1e-6)
    own = [evaluate(model, examples, state=state) for state in states]
    assert (result.ends == own) == (policy == "none")
    # in either order
    mirrored = measured(states[::-1], examples, norm=True, batch_norm=policy, batches=batches)
    assert mirrored.fused.loss == pytest.approx(result.fused.loss) and mirrored.fused.accuracy == result.fused.accuracy
    assert mirrored.fusion_barrier == pytest.approx(result.fusion_barrier)


@pytest.mark.parametrize("policy", ["average", "reset", "none"])
def test_a_model_is_connected_with_itself(examples: Examples, policy: str) -> None:
    state = read_state(network(1, norm=True))
    settings: dict[str, Any] = {"norm": True, "batch_norm": policy, "batches": InputBatches(examples)}
    result = measured([state] * 3, examples, **settings)
    assert result.barriers.accuracy_barriers.tolist() == [0, 0, 0] and result.fusion_barrier == 0
    assert result.barriers.loss_barriers == pytest.approx([0] * 3, abs=1e-6)
    to_itself = measured_to([state], state, examples, ends=result.ends[:1], **settings)
    assert to_itself.loss_barriers == pytest.approx([0], abs=1e-6)
    assert to_itself.loss[0, 0] == to_itself.loss[0, -1] == result.ends[0].loss


def test_a_model_of_nan_has_no_fusion_barrier_either(examples: Examples) -> None:
    states = states_of(2)
    states[1]["2.bias"].fill_(math.nan)
    result = measured(states, examples)
    assert result.ends[1].accuracy == result.fused.accuracy == 0 and math.isnan(result.fused.loss)
    assert math.isnan(result.fusion_barrier) and np.isnan(result.barriers.accuracy_barriers).all()
    assert np.isnan(measured_to(states[:1], states[1], examples, ends=result.ends[:1]).accuracy_barriers).all()


def test_whole_state_dicts_are_states_and_other_data_are_refused(examples: Examples) -> None:
    whole = [network(seed, norm=True).state_dict() for seed in range(2)]
    result, expected = (measured(some, examples, norm=True) for some in (whole, states_of(2, norm=True)))
    assert result.ends == expected.ends and result.fused == expected.fused
    assert measured_to(whole[:1], whole[1], examples, norm=True, ends=result.ends[:1]).loss[0, 0] == result.ends[1].loss
    wrong: Any = [examples]
    for measure in (lambda: measured(whole, wrong, norm=True), lambda: measured_to(whole[:1], whole[1], wrong)):
        with pytest.raises(TypeError, match=r"must be fedpfn\.examples\.Examples, .*got a list"):
            measure()


def test_all_ends_and_the_mean_are_measured_whatever_the_pairs(examples: Examples) -> None:
    states = states_of(4)
    everything, few = measured(states, examples), measured(states, examples, pairs=[(3, 1)])
    assert few.barriers.pairs.tolist() == [[3, 1]]
    assert few.ends == everything.ends and few.fused == everything.fused


def test_the_mean_can_be_weighted(examples: Examples) -> None:
    states = states_of(2)
    result = measured(states, examples, weights=[1, 3])
    assert result.fused.loss == pytest.approx(result.barriers.loss[0, 1], rel=1e-6)
    assert measured(states, examples, weights=[1, 0]).fused == result.ends[0]


def test_one_model_is_its_own_mean_and_no_model_is_refused(examples: Examples) -> None:
    result = measured(states_of(1), examples)
    assert result.fused == result.ends[0] and result.fusion_barrier == 0 and len(result.barriers.pairs) == 0
    with pytest.raises(ValueError, match="at least one state"):
        measured([], examples)


def test_paths_to_a_target_are_the_pairs_with_it(examples: Examples) -> None:
    *states, target = states_of(4)
    result = measured_to(states, target, examples)
    assert result.pairs.tolist() == [[0, 3], [1, 3], [2, 3]]
    among_all = measured([*states, target], examples).barriers
    rows = [among_all.pairs.tolist().index(pair) for pair in result.pairs.tolist()]
    np.testing.assert_allclose(result.loss, among_all.loss[rows], rtol=1e-6)
    assert np.array_equal(result.accuracy, among_all.accuracy[rows])


def test_known_ends_are_taken_and_the_target_is_measured(examples: Examples) -> None:
    *states, target = states_of(3)
    known = [Evaluation(100.0, 0.5, 50), Evaluation(200.0, 0.5, 50)]
    result = measured_to(states, target, examples, ends=known)
    assert result.loss[:, -1].tolist() == [100, 200]
    assert result.loss[:, 0].tolist() == [evaluate(network(7), examples, state=target).loss] * 2
    with pytest.raises(ValueError, match="2 states, got 1"):
        measured_to(states, target, examples, ends=known[:1])


def test_the_path_of_one_round_to_the_next(examples: Examples) -> None:
    before, after = states_of(2)
    result = measured_to([before], after, examples, plain=True)
    assert result.pairs.tolist() == [[0, 1]] and result.loss.shape == (1, 5)
    assert measured_to([], after, examples).pairs.shape == (0, 2)
