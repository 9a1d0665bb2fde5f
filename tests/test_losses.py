"""Losses told by their labels, and what they change elsewhere: regression trains, evaluates and has no accuracy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fedpfn.evaluation import evaluate
from fedpfn.examples import Examples
from fedpfn.lmc import pairwise_barriers
from fedpfn.losses import batch_loss, form_of
from fedpfn.parallel import ModelPool
from fedpfn.params import read_state
from fedpfn.training import batch_order, make_optimizer, train


def test_classes_go_with_cross_entropy_and_values_with_squared_errors() -> None:
    assert batch_loss(torch.zeros(2, 4), torch.tensor([0, 3])).item() == pytest.approx(math.log(4))
    assert batch_loss(torch.tensor([1.0, 4.0]), torch.tensor([0.0, 2.0])).item() == 2.5
    assert batch_loss(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2), reduction="sum").item() == 2.5
    assert (form_of(torch.zeros(1)), form_of(torch.zeros(1, dtype=torch.int64))) == ("values", "classes")


def test_a_column_of_outputs_meets_a_row_of_targets_one_by_one() -> None:
    targets = torch.tensor([1.0, 2.0, 3.0])
    assert batch_loss(targets[:, None].clone(), targets).item() == 0


@pytest.mark.parametrize("outputs", [torch.zeros(3, 2), torch.zeros(1, 3), torch.zeros(4)])
def test_outputs_of_another_size_are_refused_and_not_broadcast(outputs: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="do not match targets of shape \\(3,\\)"):
        batch_loss(outputs, torch.zeros(3))


def line() -> tuple[nn.Module, Examples]:
    inputs = torch.linspace(-1, 1, 32)[:, None]
    return nn.Linear(1, 1), Examples(inputs, 2 * inputs[:, 0] + 1)


def test_a_line_is_learnt_from_its_points() -> None:
    model, examples = line()
    batches = batch_order(len(examples), 8, np.random.default_rng(0))
    train(model, examples, batches, [(None, 300)], optimizer=make_optimizer("sgd", lr=0.1))
    assert torch.allclose(model.weight, torch.tensor([[2.0]]), atol=1e-3)
    found = evaluate(model, examples)
    assert found.loss < 1e-6 and math.isnan(found.accuracy)


def test_a_regression_has_loss_barriers_and_no_accuracy_barriers() -> None:
    model, examples = line()
    state = read_state(model)
    other = {name: -tensor for name, tensor in state.items()}
    found = pairwise_barriers(model, [state, other], examples, points=3, workers=1)
    # the loss is convex in the weights of a line
    assert found.loss_barriers.tolist() == [0.0] and np.isnan(found.accuracy_barriers).all()
    pool = ModelPool(model, workers=1)
    assert math.isnan(pool.evaluate(state, examples, chunk=5).accuracy)
    assert pool.evaluate(state, examples, chunk=5).loss == pytest.approx(evaluate(model, examples).loss)


def test_a_factor_moves_the_learning_rate_step_by_step_across_phases() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    examples = Examples(torch.ones(1, 1), torch.ones(1))
    seen: list[int] = []

    def factor(step: int) -> float:
        seen.append(step)
        return 0.0 if step else 1.0

    batches = batch_order(1, 1, np.random.default_rng(0))
    train(model, examples, batches, [(None, 2), (None, 1)], optimizer=make_optimizer("sgd", lr=0.25), lr_factor=factor)
    # one step of 0.25 * gradient -2, and none after it
    assert model.weight.item() == 0.5 and seen == [0, 1, 2]
