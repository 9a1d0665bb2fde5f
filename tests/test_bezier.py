"""Bezier curves between models: exact ends, the straight line, and a valley that only a curve can follow."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedpfn.examples import Examples
from fedpfn.lmc import pairwise_barriers
from fedpfn.lmc.barrier import loss_barrier
from fedpfn.lmc.bezier import BezierCurve, length, measure_curves, straight_line, train_curve
from fedpfn.lmc.fine_tuning import TrainingRecipe
from fedpfn.params import State, lerp, read_state


class Ring(nn.Module):
    """A loss of (|w| - 1)^2: a valley in the form of a circle."""

    def __init__(self, degrees: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * torch.linalg.vector_norm(self.w)


def ones(count: int) -> Examples:
    return Examples(torch.ones(count, 1), torch.ones(count))


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))
    model(torch.randn(16, 4))
    return model


@pytest.fixture
def examples() -> Examples:
    torch.manual_seed(9)
    inputs = torch.randn(64, 4)
    return Examples(inputs, inputs[:, :3].argmax(dim=1))


def states() -> list[State]:
    return [read_state(network(seed)) for seed in range(3)]


def test_the_ends_are_exact_and_the_middle_is_the_formula() -> None:
    first, second, bend = states()
    curve = BezierCurve(first, second, bend)
    for name in first:
        assert torch.equal(curve.at(1)[name], first[name]) and torch.equal(curve.at(0)[name], second[name])
        expected = first[name] / 16 + bend[name] * 6 / 16 + second[name] * 9 / 16
        torch.testing.assert_close(curve.at(0.25)[name], expected)


def test_with_the_bend_at_the_midpoint_it_is_the_straight_line(examples: Examples) -> None:
    first, second, _ = states()
    line = straight_line(first, second)
    for alpha in (0.1, 0.5, 0.8):
        for name, tensor in lerp(first, second, alpha).items():
            torch.testing.assert_close(line.at(alpha)[name], tensor)
    for policy in ("average", "none", "reset"):
        (found,) = measure_curves(network(5), [line], examples, points=5, batch_norm=policy, training=examples)
        expected = pairwise_barriers(
            network(5), [first, second], examples, points=5, batch_norm=policy, training=examples
        )
        np.testing.assert_allclose(found.loss, expected.loss[0], rtol=1e-5)
        np.testing.assert_allclose(found.accuracy, expected.accuracy[0])


def test_a_curve_follows_a_round_valley_where_the_line_leaves_it() -> None:
    ends, data = [Ring(0), Ring(120)], ones(32)
    recipe = TrainingRecipe(lr=0.05, steps=400, batch_size=4, optimizer="sgd", momentum=0.9)
    curve = train_curve(Ring(), *ends, data, recipe, seed=0, lr_factor=lambda share: 1 - share)
    line = straight_line(curve.first, curve.second)
    along_line, along_curve = (
        loss_barrier(found.alphas, found.loss) for found in measure_curves(Ring(), [line, curve], data)
    )
    assert along_line == pytest.approx(0.25, abs=1e-3) and along_curve < along_line / 10
    # a chord of 120 degrees, and an arc
    assert length(line) == pytest.approx(math.sqrt(3)) and length(curve) == pytest.approx(2 * math.pi / 3, rel=0.1)


def test_training_lowers_the_mean_loss_moves_the_bend_alone_and_is_a_function_of_the_seed(examples: Examples) -> None:
    model, models = network(7), [network(0), network(1)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = TrainingRecipe(lr=0.02, epochs=40, batch_size=16)
    seen: list[tuple[int, int]] = []
    curve = train_curve(model, *models, examples, recipe, seed=3, progress=lambda *at: seen.append(at))
    assert seen[-1] == (160, 160)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for end, own in ((curve.first, models[0]), (curve.second, models[1])):
        assert all(torch.equal(end[name], tensor) for name, tensor in read_state(own).items())
    line = straight_line(curve.first, curve.second)
    assert all(torch.equal(curve.bend[name], line.bend[name]) for name in curve.bend if "running" in name)
    found = measure_curves(model, [line, curve], examples, points=9, batch_norm="reset", training=examples)
    assert found[1].loss.mean() < found[0].loss.mean()
    again, other = (train_curve(model, *models, examples, recipe, seed=seed) for seed in (3, 4))
    assert all(torch.equal(curve.bend[name], again.bend[name]) for name in curve.bend)
    assert not torch.equal(curve.bend["0.weight"], other.bend["0.weight"])


def test_what_cannot_be_joined_is_refused(examples: Examples) -> None:
    recipe = TrainingRecipe(lr=0.1)
    with pytest.raises(ValueError, match="second: the state is not this model's"):
        train_curve(network(0), network(1), nn.Linear(4, 3), examples, recipe, seed=0)
    with pytest.raises(FloatingPointError, match=r"the loss on the curve is (inf|nan) in step \d+ of 4"):
        train_curve(
            Ring(), Ring(0), Ring(90), ones(4), TrainingRecipe(lr=1e30, epochs=4, batch_size=4, optimizer="sgd"), seed=0
        )
    with pytest.raises(ValueError, match="pass training="):
        measure_curves(network(0), [], examples, batch_norm="reset")
