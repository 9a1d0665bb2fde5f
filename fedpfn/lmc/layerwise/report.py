"""``layer_report``: every layerwise measure of one pair of models, layer by layer, in one pass over the examples.

The measures are defined in ``connectivity`` (LLFC, LEWC), ``additivity``, ``commutativity``, ``orthogonality``,
``stitching``, ``ranks``, ``cka`` and ``error_bound``; here each batch runs through both models and the points between
them, and updates every measure. For many pairs at a lower cost use ``connectivity.layer_cosines``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import nan

import torch
from torch import Tensor, nn

from fedpfn.examples import Examples
from fedpfn.forward import evaluating
from fedpfn.lmc.barrier import Repair, path_point, repaired_end
from fedpfn.lmc.layerwise.additivity import weak_additivity
from fedpfn.lmc.layerwise.cka import CKASums
from fedpfn.lmc.layerwise.commutativity import Commutativity, CommutativitySums, cross_products
from fedpfn.lmc.layerwise.comparison import ExampleMean, cosine_gap
from fedpfn.lmc.layerwise.connectivity import linear_agreement
from fedpfn.lmc.layerwise.discovery import Layer
from fedpfn.lmc.layerwise.error_bound import path_error_bound
from fedpfn.lmc.layerwise.features import Captured, batches, capture, require_states
from fedpfn.lmc.layerwise.functional import measurable_layers
from fedpfn.lmc.layerwise.orthogonality import OrthogonalitySums
from fedpfn.lmc.layerwise.ranks import ActivationGram, weight_stable_rank
from fedpfn.lmc.layerwise.stitching import stitching_errors
from fedpfn.progress import Progress, Steps
from fedpfn.tasks import Task

Numbers = tuple[float, ...]
ALPHAS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class LayerRow:
    """The measures of one layer; NaN for a measure that is not defined.

    Attributes
    ----------
    layer
        Name of the layer.
    index
        Its number in the order in which layers run, from 1.
    depth
        Largest number of layers on a path from the input to its features.
    features
        Name of the module whose output is its features, or ``output`` for the model's output.
    llfc
        E[1 - cos] under LLFC, one value per alpha.
    baseline
        E[1 - cos] of the ends' features.
    cka
        Debiased linear CKA of the ends' features.
    llfc_coefficient
        Mean coefficient under LLFC, one value per alpha.
    lewc, lewc_coefficient
        The same as ``llfc`` and ``llfc_coefficient``, under LEWC.
    left_out
        Number of dead examples left out of ``llfc``, one per alpha.
    additivity, additivity_gap
        E of the largest dist and of the largest 1 - cos over the report's alphas; NaN without an activation.
    commutativity, weight_distance, feature_distance
        Dist_com, Dist_W and Dist_H; the first and the last are NaN at a layer that reads the input.
    orthogonality
        E|W2 z1| / E|W1 z1| and its mirror; NaN at a layer that reads the input.
    stitched_error, stitched_loss
        Error and loss of the stitch with the first model below, then with the second.
    weight_stable_rank, activation_stable_rank
        Stable ranks of the first and of the second model; NaN for activations of more than 2048 units or channels.
    """

    layer: str
    index: int
    depth: int
    features: str
    llfc: Numbers
    baseline: float
    cka: float
    llfc_coefficient: Numbers
    lewc: Numbers
    lewc_coefficient: Numbers
    left_out: tuple[int, ...]
    additivity: float
    additivity_gap: float
    commutativity: float
    weight_distance: float
    feature_distance: float
    orthogonality: Numbers
    stitched_error: Numbers
    stitched_loss: Numbers
    weight_stable_rank: Numbers
    activation_stable_rank: Numbers


@dataclass(frozen=True)
class LayerReport:
    """The layers of a pair of models, with errors (shares of wrong answers, NaN in a regression).

    Attributes
    ----------
    alphas
        Measured points of the path; alpha = 1 is the first model.
    layers
        One row per layer, in the order they run.
    end_errors
        Errors of the first and of the second model.
    path_errors
        Errors at ``alphas``; under LLFC at the output none exceeds ``error_bound`` (lemma 1 of Zhou et al. 2023, see
        ``error_bound``).
    """

    alphas: Numbers
    layers: tuple[LayerRow, ...]
    end_errors: tuple[float, float]
    path_errors: Numbers

    @property
    def error_bound(self) -> float:
        """Twice the larger error of the ends."""
        return path_error_bound(*self.end_errors)

    @property
    def within_bound(self) -> bool:
        """Whether every error on the path is at most ``error_bound``; False for NaN."""
        return all(error <= self.error_bound for error in self.path_errors)

    def rows(self) -> list[dict[str, str | int | float]]:
        """Return one flat dict per layer, with keys such as ``llfc_0.5``, ``orthogonality_first``."""
        return [self._flat(row) for row in self.layers]

    def _flat(self, row: LayerRow) -> dict[str, str | int | float]:
        flat: dict[str, str | int | float] = {}
        for field in fields(row):
            value = getattr(row, field.name)
            if not isinstance(value, tuple):
                flat[field.name] = value
                continue
            by_alpha = field.name.startswith(("llfc", "lewc", "left_out"))
            labels = [f"{alpha:g}" for alpha in self.alphas] if by_alpha else ["first", "second"]
            flat |= {f"{field.name}_{label}": entry for label, entry in zip(labels, value, strict=True)}
        return flat


def layer_report(
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    examples: Examples,
    *,
    alphas: Sequence[float] = ALPHAS,
    batch_size: int = 100,
    repair: Repair | None = None,
    stitching: bool = True,
    ranks: bool = True,
    progress: Progress | None = None,
) -> LayerReport:
    """Measure two models at every layer, and w(alpha) = alpha ``first`` + (1 - alpha) ``second`` between them.

    A batch's features are held for both models and each alpha.

    Parameters
    ----------
    model
        The network that the states belong to; it runs in evaluation mode and is not changed.
    first, second
        States of the two models.
    examples
        Examples for all measures.
    alphas
        Points of the path, one or more within [0, 1].
    batch_size
        Number of examples per forward pass, except in the evaluations of ``stitching``.
    repair
        ``repair(state, end)``, as in ``barrier``, returns the state to measure in place of ``state``; an interpolated
        state is repaired with the first model as ``end``, an end with itself. Under the BatchNorm policy ``none``,
        inner points thus have the first model's statistics. None measures the states unchanged.
    stitching
        Evaluate stitches, which costs two evaluations per layer; without it their columns are NaN.
    ranks
        Compute stable ranks, which costs two eigenvalue decompositions per layer and model; without it their columns
        are NaN.
    progress
        ``progress(done, total)`` is called after every batch, after every layer is stitched in each direction, and
        after every layer is summed up.

    Returns
    -------
    LayerReport
        One row per layer, and the errors at the ends and at ``alphas``.

    Raises
    ------
    ValueError
        For a state that is not the model's or not finite, no alphas or one outside [0, 1], no examples, and anything
        that ``measurable_layers`` refuses.

    Examples
    --------
    >>> from fedpfn.params import read_state
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    >>> data = Examples(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))
    >>> report = layer_report(net, read_state(net), read_state(net), data)
    >>> [(row["layer"], row["llfc_0.5"], row["stitched_error_first"]) for row in report.rows()]
    [('0', 0.0, 0.5), ('2', 0.0, 0.5)]
    """
    require_states(model, [first, second])
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"alphas must be one or more values within [0, 1]; got {list(alphas)}")
    first, second = repaired_end(first, repair), repaired_end(second, repair)
    model, layers = measurable_layers(model, examples.batch(slice(0, 1))[0], state=first)
    mixed = [path_point(first, second, alpha, repair) for alpha in alphas]
    sums = [_LayerSums(model, layer, alphas, ranks=ranks) for layer in layers]
    done = Steps(progress, -(-len(examples) // max(1, batch_size)) + len(layers) * (3 if stitching else 1))
    errors = [ExampleMean() for _ in (first, second, *mixed)]
    with evaluating(model):
        for inputs, labels in batches(examples, batch_size):
            passes = [capture(model, layers, inputs, state) for state in (first, second, *mixed)]
            for number, layer_sums in enumerate(sums):
                layer_sums.add(*(run.layers[number] for run in passes))
            for error, run in zip(errors, passes, strict=True):
                error.add(_wrong(run.output, labels, examples.task))
            done()
    ways = ((first, second), (second, first)) if stitching else ()
    stitched = [stitching_errors(model, *way, examples, layers=layers, progress=lambda *_: done()) for way in ways]
    rows = []
    for number, layer_sums in enumerate(sums):
        errors_and_losses = [(one.error[number], one.loss[number]) for one in stitched] or [(nan, nan)] * 2
        rows.append(layer_sums.row(*zip(*errors_and_losses, strict=True)))
        done()
    first_error, second_error, *path = (error.value for error in errors)
    return LayerReport(
        alphas=tuple(alphas),
        layers=tuple(rows),
        end_errors=(first_error, second_error),
        path_errors=tuple(path),
    )


class _LayerSums:
    """The accumulated measures of one layer."""

    def __init__(self, model: nn.Module, layer: Layer, alphas: Sequence[float], *, ranks: bool) -> None:
        self.layer = layer
        self.module = model.get_submodule(layer.name)
        self.activation = model.get_submodule(layer.site) if layer.activated else None
        self.alphas, self.ranks, self.cka = alphas, ranks, CKASums()
        self.baseline, self.additivity, self.additivity_gap = ExampleMean(), ExampleMean(), ExampleMean()
        # per alpha: 1 - cos and coefficient of LLFC, then of LEWC
        self.linear = [[ExampleMean() for _ in range(4)] for _ in alphas]
        self.commutativity, self.orthogonality = CommutativitySums(), OrthogonalitySums()
        self.grams = (ActivationGram(), ActivationGram())
        self.weights: tuple[Tensor, Tensor] | None = None

    def add(self, first: Captured, second: Captured, *mixed: Captured) -> None:
        """Accumulate the tensors captured at the layer in the passes of one batch."""
        self.weights = weights = (first.weight, second.weight)
        self.baseline.add(cosine_gap(first.after, second.after))
        self.cka.add(first.after, second.after)
        for alpha, point, means in zip(self.alphas, mixed, self.linear, strict=True):
            plain = linear_agreement(point.after, first.after, second.after, alpha)
            weighted = linear_agreement(point.after, first.after, second.after, alpha, depth=self.layer.depth)
            for mean, values in zip(means, (*plain, *weighted), strict=True):
                mean.add(values)
        if self.activation is not None:
            distance, gap = weak_additivity(self.activation, first.before, second.before, alphas=self.alphas)
            self.additivity.add(distance)
            self.additivity_gap.add(gap)
        if not self.layer.reads_input:
            entering = (first.entering, second.entering)
            products = cross_products(self.module, weights, entering)
            self.commutativity.add(products, entering)
            self.orthogonality.add(products)
        if self.ranks:
            self.grams[0].add(first.after)
            self.grams[1].add(second.after)

    def row(self, stitched_error: Numbers, stitched_loss: Numbers) -> LayerRow:
        """Return the layer's measures."""
        weights = self.weights
        assert weights is not None  # there is at least one batch
        distances: Commutativity = self.commutativity.result(weights)
        llfc, llfc_coefficient, lewc, lewc_coefficient = (
            tuple(means[kind].value for means in self.linear) for kind in range(4)
        )
        return LayerRow(
            layer=self.layer.name,
            index=self.layer.index,
            depth=self.layer.depth,
            features=self.layer.site or "output",
            llfc=llfc,
            baseline=self.baseline.value,
            cka=self.cka.value,
            llfc_coefficient=llfc_coefficient,
            lewc=lewc,
            lewc_coefficient=lewc_coefficient,
            left_out=tuple(means[0].left_out for means in self.linear),
            additivity=self.additivity.value,
            additivity_gap=self.additivity_gap.value,
            commutativity=distances.commutativity,
            weight_distance=distances.weight_distance,
            feature_distance=distances.feature_distance,
            orthogonality=self.orthogonality.result(),
            stitched_error=stitched_error,
            stitched_loss=stitched_loss,
            weight_stable_rank=tuple(weight_stable_rank(weight) if self.ranks else nan for weight in weights),
            activation_stable_rank=tuple(gram.stable_rank() for gram in self.grams),
        )


def _wrong(logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Return 1 for a wrong answer and 0 for a right one; NaN if answers are neither, as in a regression."""
    if not task.has_accuracy:
        return torch.full((len(labels),), nan, dtype=torch.float64, device=labels.device)
    return 1 - task.score(logits, labels).double().reshape(len(labels), -1).mean(dim=1)
