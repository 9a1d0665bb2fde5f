"""The plane through three models: distances in it are distances between weights, and its corners are the models."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import flat

from fedpfn.evaluation import Evaluation
from fedpfn.lmc.plane import landscape, plane_through
from fedpfn.params import State


def random_states(seed: int) -> list[State]:
    generator = torch.Generator().manual_seed(seed)
    return [{"a": torch.randn(4, 3, generator=generator), "b": torch.randn(5, generator=generator)} for _ in range(3)]


def test_a_right_triangle_by_hand() -> None:
    plane = plane_through(*({"w": torch.tensor(w)} for w in ([1.0, 1.0], [4.0, 1.0], [1.0, 3.0])))
    assert plane.corners.tolist() == [[0.0, 0.0], [3.0, 0.0], [0.0, 2.0]]
    assert plane.at(1.5, 1.0)["w"].tolist() == [2.5, 2.0]


@given(st.integers(0, 10**6))
def test_corners_are_the_models_to_the_bit(seed: int) -> None:
    states = random_states(seed)
    plane = plane_through(*states)
    for corner, state in zip(plane.corners, states, strict=True):
        found = plane.at(*corner)
        assert all(torch.equal(found[name], state[name]) for name in state)


@given(st.integers(0, 10**6), *[st.floats(-3, 3)] * 4)
def test_distances_in_the_plane_are_distances_of_weights(seed: int, x: float, y: float, p: float, q: float) -> None:
    plane = plane_through(*random_states(seed))
    apart = float((flat(plane.at(x, y)) - flat(plane.at(p, q))).norm())
    assert apart == pytest.approx(np.hypot(x - p, y - q), abs=1e-4)


def test_a_landscape_is_the_function_on_a_grid_around_the_models() -> None:
    plane = plane_through(*({"w": torch.tensor(w)} for w in ([0.0, 0.0], [4.0, 0.0], [0.0, 2.0])))

    def measure(state: State) -> Evaluation:
        x, y = state["w"].tolist()
        return Evaluation(loss=x + 10 * y, accuracy=x - y, examples=1)

    found = landscape(plane, measure, points=3, margin=0.5)
    assert found.xs.tolist() == [-2.0, 2.0, 6.0] and found.ys.tolist() == [-1.0, 1.0, 3.0]
    assert found.loss == pytest.approx(found.xs[None, :] + 10 * found.ys[:, None], abs=1e-6)
    assert found.accuracy == pytest.approx(found.xs[None, :] - found.ys[:, None], abs=1e-6)


@pytest.mark.parametrize("third", [[0.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])
def test_models_on_one_line_span_no_plane(third: list[float]) -> None:
    with pytest.raises(ValueError, match="span no plane"):
        plane_through(*({"w": torch.tensor(w)} for w in ([0.0, 0.0], [1.0, 0.0], third)))


def test_models_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="w: the model has"):
        plane_through(*({"w": torch.zeros(size)} for size in (2, 2, 3)))
