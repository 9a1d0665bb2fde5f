"""The plane through three models, and loss and accuracy over it (arXiv 2402.01342, figure 3).

Coordinates are lengths in weight space: w(x, y) = w1 + x u + y v with u = (w2 - w1) / |w2 - w1| and v the unit vector
of the component of w3 - w1 orthogonal to u, so that distances in the picture are distances between models. Norms are
over trainable parameters and float buffers; integer buffers are the first model's. This module does not draw.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpfn.evaluation import Evaluation
from fedpfn.lmc.barrier import Floats
from fedpfn.params import State, require_fit

Point = tuple[float, float]


@dataclass(frozen=True)
class Plane:
    """Three states and the plane through them.

    Attributes
    ----------
    states
        The three states.
    corners
        Their coordinates, (3, 2): the first at (0, 0), the second at (|w2 - w1|, 0).
    """

    states: tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor]]
    corners: Floats

    def at(self, x: float, y: float) -> State:
        """Return the state w(x, y) = (1 - s - t) w1 + s w2 + t w3, exact to the bit at the corners."""
        along, up = float(self.corners[1, 0]), float(self.corners[2, 1])
        third = y / up
        second = (x - third * float(self.corners[2, 0])) / along
        weights = (1 - second - third, second, third)
        for corner, state in zip(np.eye(3), self.states, strict=True):
            if np.allclose(weights, corner, rtol=0, atol=1e-12):
                return dict(state)
        first, *others = self.states
        mixed = {name: tensor.double() * weights[0] for name, tensor in first.items() if tensor.is_floating_point()}
        for weight, state in zip(weights[1:], others, strict=True):
            for name, total in mixed.items():
                total.add_(state[name].double(), alpha=weight)
        return {name: mixed[name].to(tensor.dtype) if name in mixed else tensor for name, tensor in first.items()}


@dataclass(frozen=True)
class Landscape:
    """Loss and accuracy over a plane.

    Attributes
    ----------
    xs, ys
        Coordinates of the columns and of the rows, (points,) each.
    loss, accuracy
        Values at the points, (points, points): rows over ``ys``, columns over ``xs``.
    corners
        Coordinates of the three models, (3, 2).
    """

    xs: Floats
    ys: Floats
    loss: Floats
    accuracy: Floats
    corners: Floats


def plane_through(first: Mapping[str, Tensor], second: Mapping[str, Tensor], third: Mapping[str, Tensor]) -> Plane:
    """Return the plane through three models.

    Parameters
    ----------
    first, second, third
        States of one model.

    Returns
    -------
    Plane
        The plane; the third model lies above the line through the other two (y > 0).

    Raises
    ------
    ValueError
        For states that differ in names or shapes, and for three states on one line.

    Examples
    --------
    >>> states = [{"w": torch.tensor(w)} for w in ([0.0, 0.0], [3.0, 0.0], [1.0, 2.0])]
    >>> plane_through(*states).corners.tolist()
    [[0.0, 0.0], [3.0, 0.0], [1.0, 2.0]]
    """
    for other in (second, third):
        require_fit(first, other)
    names = [name for name, tensor in first.items() if tensor.is_floating_point()]
    one = {name: (second[name] - first[name]).double() for name in names}
    two = {name: (third[name] - first[name]).double() for name in names}
    along = _dot(one, one) ** 0.5
    right = _dot(one, two) / along if along else 0.0
    up = max(_dot(two, two) - right**2, 0.0) ** 0.5
    if not along or up <= 1e-6 * _dot(two, two) ** 0.5:
        raise ValueError("three models that are equal or lie on one line span no plane")
    return Plane((first, second, third), np.array([[0.0, 0.0], [along, 0.0], [right, up]]))


def landscape(
    plane: Plane,
    evaluate: Callable[[State], Evaluation],
    *,
    points: int = 25,
    margin: float = 0.25,
    run_all: Callable[[Callable[[Point], Evaluation], Sequence[Point]], Iterable[Evaluation]] = map,
) -> Landscape:
    """Evaluate the plane on a grid of ``points`` by ``points`` around the models.

    Parameters
    ----------
    plane
        The plane through the models.
    evaluate
        Measures a state.
    points
        Number of points along each axis.
    margin
        Space left around the models on each side, as a share of their extent.
    run_all
        ``map``, or a parallel one.

    Returns
    -------
    Landscape
        Loss and accuracy on the grid, and the models' coordinates.
    """
    low, high = plane.corners.min(axis=0), plane.corners.max(axis=0)
    space = margin * (high - low)
    xs, ys = (np.linspace(low[i] - space[i], high[i] + space[i], points) for i in (0, 1))
    grid = [(float(x), float(y)) for y in ys for x in xs]
    evaluations = list(run_all(lambda point: evaluate(plane.at(*point)), grid))
    loss, accuracy = ([getattr(e, kind) for e in evaluations] for kind in ("loss", "accuracy"))
    shape = (points, points)
    return Landscape(xs, ys, np.array(loss).reshape(shape), np.array(accuracy).reshape(shape), plane.corners)


def _dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return float(sum(float(torch.sum(tensor * other[name])) for name, tensor in one.items()))
