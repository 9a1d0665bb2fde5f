"""Curves of low loss between two models: a quadratic Bezier curve whose bend is trained.

Garipov et al. 2018 (arXiv 1802.10026, section 3.3), in this package's direction (alpha = 1 is the first model):

    w(alpha) = alpha^2 w_1 + 2 alpha (1 - alpha) theta + (1 - alpha)^2 w_2 ,

and theta minimises E_{t ~ U(0, 1)} L(w(t)), with one t drawn per batch (their eq. 3). Its gradient is 2 t (1 - t) times
that at w(t). With theta = (w_1 + w_2) / 2, where training starts, the curve is the straight line. BatchNorm's running
statistics follow the line; points of a curve are best measured under the policy ``reset`` (``batch_norm``), as in the
paper.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedpfn.evaluation import Evaluation
from fedpfn.lmc.barrier import Curves, curve_of, grid, repaired_end, worst_of
from fedpfn.lmc.batch_norm import repair_for
from fedpfn.lmc.checks import StateLike, fitting_state
from fedpfn.lmc.fine_tuning import TrainingRecipe
from fedpfn.lmc.pairwise import statistics_batches
from fedpfn.own_data import Data, as_examples
from fedpfn.parallel import temporary_pool
from fedpfn.params import State, lerp, trainable
from fedpfn.progress import Progress, Steps
from fedpfn.seeding import numpy_generator, torch_seed
from fedpfn.training import NonFiniteError

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class BezierCurve:
    """A quadratic Bezier curve between two models.

    Parameters
    ----------
    first
        The end at alpha = 1.
    second
        The end at alpha = 0.
    bend
        The control point theta.
    """

    first: Tensors
    second: Tensors
    bend: Tensors

    def at(self, alpha: float) -> State:
        """Return w(alpha), exact to the bit at the ends.

        >>> curve = BezierCurve(*({"w": torch.tensor([w])} for w in (1.0, -1.0, 4.0)))
        >>> [curve.at(alpha)["w"].item() for alpha in (0.0, 0.5, 1.0)]
        [-1.0, 2.0, 1.0]
        """
        if alpha in (0, 1):
            return dict(self.first if alpha else self.second)
        return {
            name: _mixed(tensor.double(), self.second[name].double(), self.bend[name].double(), alpha).to(tensor.dtype)
            for name, tensor in self.first.items()
        }


def straight_line(first: Tensors, second: Tensors) -> BezierCurve:
    """Return the curve whose bend is the midpoint.

    Parameters
    ----------
    first
        The end at alpha = 1.
    second
        The end at alpha = 0.

    Returns
    -------
    BezierCurve
        A curve that is the straight line, up to rounding.
    """
    return BezierCurve(first, second, lerp(first, second, 0.5))


def train_curve(
    model: nn.Module,
    first: StateLike,
    second: StateLike,
    examples: Data,
    recipe: TrainingRecipe,
    *,
    seed: int,
    lr_factor: Callable[[float], float] | None = None,
    progress: Progress | None = None,
) -> BezierCurve:
    """Train the bend of a curve between two states of ``model``, which stay fixed.

    Parameters
    ----------
    model
        The model that the states belong to; it is not changed.
    first, second
        The ends: states, complete ``state_dict()``s or modules.
    examples
        The training data (``own_data``), on whose loss the bend is trained.
    recipe
        Optimiser, batch size and length of the training.
    seed
        Seed of the batch order, of t and of dropout.
    lr_factor
        Function from the share of steps done to a factor on the learning rate.
    progress
        Called with the number of steps done and the total.

    Returns
    -------
    BezierCurve
        The trained curve; its bend has the midpoint's running statistics.

    Raises
    ------
    TypeError
        For states or data of the wrong type.
    ValueError
        For states that are not the model's, and too few examples for a batch.
    NonFiniteError
        If training diverges.
    """
    data = as_examples(examples, model=model)
    line = straight_line(*(fitting_state(model, s, name=n) for s, n in ((first, "first"), (second, "second"))))
    scratch = deepcopy(model).to(data.device).train()
    bend = {name: line.bend[name].to(data.device).clone().requires_grad_() for name in trainable(scratch)}
    ends = [{name: tensor.to(data.device) for name, tensor in end.items()} for end in (line.first, line.second)]
    steps, batches = recipe.plan(scratch, data, numpy_generator(seed, "curve", "batches"))
    optimizer = recipe.make_optimizer()(list(bend.values()))
    places = numpy_generator(seed, "curve", "t").random(steps)
    done = Steps(progress, steps)
    with torch_seed(seed, "curve", "dropout"):
        for step, (t, batch) in enumerate(zip(places.tolist(), batches, strict=False)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * (1.0 if lr_factor is None else lr_factor(step / steps))
            point = {name: _mixed(ends[0][name], ends[1][name], theta, t) for name, theta in bend.items()}
            # running statistics are written to in training mode
            rest = {name: tensor.clone() for name, tensor in line.bend.items() if name not in bend}
            inputs, labels = data.batch(torch.from_numpy(batch).to(data.device))
            loss = data.task.loss(functional_call(scratch, point | rest, (inputs,)), labels)
            if not math.isfinite(loss.item()):
                raise NonFiniteError(f"the loss on the curve is {loss.item()} in step {step + 1} of {steps}")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done()
    trained = {name: theta.detach().to(line.bend[name].device) for name, theta in bend.items()}
    return BezierCurve(line.first, line.second, dict(line.bend) | trained)


def measure_curves(
    model: nn.Module,
    curves: Sequence[BezierCurve],
    examples: Data,
    *,
    points: int = 25,
    batch_norm: str = "average",
    training: Data | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Curves]:
    """Return loss and score along ``curves`` of ``model``.

    ``barrier.loss_barrier(curve.alphas, curve.loss)`` is a curve's barrier.

    Parameters
    ----------
    model
        The model that the curves belong to; it is not changed.
    curves
        Curves between states of the model.
    examples
        Data over which losses and scores are averaged (``own_data``).
    points
        Number of points of a curve, both ends included; odd.
    batch_norm, training, workers
        As for ``pairwise_barriers``.
    progress
        Called with the number of points done and the total.

    Returns
    -------
    list of Curves
        In the order of ``curves``.

    Raises
    ------
    TypeError
        For data of the wrong type.
    ValueError
        For curves that are not the model's, an even number of points, and a reset without ``training``.
    """
    data = as_examples(examples, model=model).decoded()
    batches = statistics_batches(model, batch_norm, training)
    alphas = grid(points)
    done = Steps(progress, points * len(curves))
    with temporary_pool(model, workers=workers) as pool:
        repair = repair_for(batch_norm, lambda: pool.model, batches)

        def measure(place: tuple[BezierCurve, float]) -> Evaluation:
            curve, alpha = place
            state = curve.at(alpha)
            if alpha in (0, 1) or repair is None:
                points_there = [repaired_end(state, repair)]
            else:
                ends = (curve.first, curve.second) if batch_norm == "none" else (curve.first,)
                points_there = [repair(state, end) for end in ends]
            evaluation = worst_of([pool.evaluate(point, data) for point in points_there])
            done()
            return evaluation

        evaluations = pool.map(measure, [(curve, float(alpha)) for curve in curves for alpha in alphas])
    return [curve_of(alphas, evaluations[at * points : (at + 1) * points]) for at in range(len(curves))]


def length(curve: BezierCurve, *, points: int = 101) -> float:
    """Return the length of a curve in weight space, approximated by the polygon through ``points`` of its points."""
    states = [curve.at(float(alpha)) for alpha in np.linspace(0, 1, points)]
    return sum(_distance(one, other) for one, other in pairwise(states))


def _distance(one: Tensors, other: Tensors) -> float:
    squares = [(one[n].double() - other[n].double()).square().sum().item() for n in one if one[n].is_floating_point()]
    return math.sqrt(math.fsum(squares))


def _mixed(first: Tensor, second: Tensor, bend: Tensor, alpha: float) -> Tensor:
    return alpha**2 * first + 2 * alpha * (1 - alpha) * bend + (1 - alpha) ** 2 * second
