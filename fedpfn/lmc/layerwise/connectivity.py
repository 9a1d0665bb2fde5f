"""LLFC and LEWC: whether features are linear along the path between two models, per example and over a data set.

With w(a) = a w1 + (1 - a) w2, first model w1, and f_l the features of layer l:
LLFC (layerwise linear feature connectivity; Zhou et al. 2023, "Going Beyond Linear Mode Connectivity", definition 2):
c f_l(w(a)) = a f_l(w1) + (1 - a) f_l(w2) for some c > 0.
LEWC (layerwise exponentially weighted connectivity; "Do We Really Need Permutations? Impact of Width Expansion on
Linear Mode Connectivity", definition 4.1), bias-free: f_l(w(a)) = a^l f_l(w1) + (1 - a)^l f_l(w2), l from 1.

Both are measured by 1 - cos of the two sides and by a coefficient, ``<f_l(w(a)), t> / |t|²`` with t the right-hand
side. At a = 1/2 the right-hand sides are parallel, t_LEWC = 2^-(l-1) t_LLFC: the cosine cannot tell the two apart, and
the coefficients differ by exactly 2^(l-1). A net with LLFC at c = 1 has coefficients 1 (LLFC) and 2^(l-1) (LEWC); one
with LEWC has 2^-(l-1) (LLFC) and 1 (LEWC). Behind shortcuts, l is the ``depth`` of ``discovery.Layer``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpfn.examples import Examples
from fedpfn.forward import evaluating
from fedpfn.lmc.barrier import Floats, Pair, Repair, path_point, repaired_end
from fedpfn.lmc.layerwise.comparison import ExampleMean, cosine_gap, flat
from fedpfn.lmc.layerwise.discovery import Layer
from fedpfn.lmc.layerwise.features import batches, read_features, require_states
from fedpfn.lmc.layerwise.functional import measurable_layers
from fedpfn.params import lerp

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class LayerCosines:
    """E[1 - cos] of P pairs at L layers.

    Attributes
    ----------
    layers
        Names of the L weighted layers, in the order they run.
    pairs
        Indices of each pair into the list of states, (P, 2).
    alpha
        The point of the paths; alpha = 1 is the first of a pair.
    llfc
        f_l(w(alpha)) compared with the interpolated features, (P, L).
    baseline
        The two ends' features compared with each other, (P, L).
    left_out
        Number of dead examples left out of ``llfc``, (P, L).
    """

    layers: tuple[str, ...]
    pairs: Counts
    alpha: float
    llfc: Floats
    baseline: Floats
    left_out: Counts


def linear_agreement(
    mixed: Tensor, first: Tensor, second: Tensor, alpha: float, *, depth: int = 1
) -> tuple[Tensor, Tensor]:
    """Return 1 - cos(f, t) and ``<f, t> / |t|²`` of each example, for t = alpha^depth f1 + (1 - alpha)^depth f2.

    Parameters
    ----------
    mixed
        Features f at w(alpha), of shape (N, ...).
    first, second
        Features f1 and f2 of the two models, of the same shape.
    alpha
        The point of the path, within [0, 1]; alpha = 1 is the first model.
    depth
        1 for LLFC, the layer's own depth for LEWC.

    Returns
    -------
    tuple of Tensor
        The gap 1 - cos and the coefficient, both (N,) in float64; NaN if f or t is zero.

    Examples
    --------
    >>> ends = torch.tensor([[8.0, 0.0]]), torch.tensor([[0.0, 8.0]])
    >>> gap, coefficient = linear_agreement(torch.ones(1, 2), *ends, 0.5)
    >>> round(float(gap), 12), float(coefficient)
    (0.0, 0.25)
    """
    features = flat(mixed)
    target = alpha**depth * flat(first) + (1 - alpha) ** depth * flat(second)
    gap = cosine_gap(features, target)
    coefficient = (features * target).sum(dim=1) / target.square().sum(dim=1)
    return gap, coefficient.where(~gap.isnan(), gap)


def layer_cosines(
    model: nn.Module,
    states: Sequence[Mapping[str, Tensor]],
    pairs: Sequence[Pair],
    examples: Examples,
    *,
    alpha: float = 0.5,
    batch_size: int = 100,
    repair: Repair | None = None,
) -> LayerCosines:
    """Measure LLFC and its baseline at every layer, for pairs of models.

    A batch runs once through each state in a pair and once through each interpolation; the features of one batch are
    held for all states, so small batches are faster on a CPU.

    Parameters
    ----------
    model
        The network that the states belong to; it runs in evaluation mode and is not changed.
    states
        States of the models.
    pairs
        Pairs of indices into ``states``; alpha = 1 is the first of a pair.
    examples
        Examples whose features are compared.
    alpha
        The point of each path, within [0, 1].
    batch_size
        Number of examples per forward pass.
    repair
        ``repair(state, end)``, as in ``barrier``, returns the state to measure in place of ``state``; an interpolated
        state is repaired with the first model as ``end``, an end with itself. Under the BatchNorm policy ``none``,
        inner points thus have the first model's statistics. None measures the states unchanged.

    Returns
    -------
    LayerCosines
        One row per pair and one column per layer.

    Raises
    ------
    ValueError
        For a state that is not the model's or not finite, a pair of indices out of range, an alpha outside [0, 1], no
        examples, and anything that ``measurable_layers`` refuses.

    Examples
    --------
    >>> from fedpfn.params import read_state
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> data = Examples(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))
    >>> layer_cosines(net, [read_state(net), read_state(net)], [(0, 1)], data).llfc.shape
    (1, 2)
    """
    require_states(model, states)
    if wrong := [pair for pair in pairs if not all(0 <= end < len(states) for end in pair)]:
        raise ValueError(f"a pair names two of the {len(states)} states by position; got {wrong[0]}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie within [0, 1]; got {alpha}")
    used = sorted({end for pair in pairs for end in pair})
    states = [repaired_end(state, repair) if at in used else state for at, state in enumerate(states)]
    # without a repair, mixing anew for each batch is cheap and holds only one mixed state
    ready = [path_point(states[i], states[j], alpha, repair) for i, j in pairs] if repair else []
    layers: tuple[Layer, ...] = ()
    if states:
        model, layers = measurable_layers(model, examples.batch(slice(0, 1))[0], state=states[0])
    llfc = [[ExampleMean() for _ in layers] for _ in pairs]
    baseline = [[ExampleMean() for _ in layers] for _ in pairs]
    with evaluating(model):
        for inputs, _ in batches(examples, batch_size):
            ends = {end: read_features(model, layers, inputs, states[end]) for end in used}
            for row, (i, j) in enumerate(pairs):
                mixed = ready[row] if repair else lerp(states[i], states[j], alpha)
                for column, features in enumerate(read_features(model, layers, inputs, mixed)):
                    first, second = ends[i][column], ends[j][column]
                    llfc[row][column].add(cosine_gap(features, torch.lerp(second, first, alpha)))
                    baseline[row][column].add(cosine_gap(first, second))
    shape = (len(pairs), len(layers))
    return LayerCosines(
        layers=tuple(layer.name for layer in layers),
        pairs=np.array(pairs, dtype=np.int64).reshape(-1, 2),
        alpha=alpha,
        llfc=np.array([[mean.value for mean in row] for row in llfc]).reshape(shape),
        baseline=np.array([[mean.value for mean in row] for row in baseline]).reshape(shape),
        left_out=np.array([[mean.left_out for mean in row] for row in llfc], dtype=np.int64).reshape(shape),
    )
