"""Linear connectivity of several models in one call: each model, every pair, and the mean of all.

Barriers of pairs are measured by ``path_evaluation`` and defined in ``barrier`` (arXiv 2402.01342, eq. 1 and 2); the
fusion barrier is that of table 3. One BatchNorm policy (``batch_norm``) holds for the ends, the paths and the mean
alike. The federation's record, the laboratory and the comparison of checkpoints all measure through this module; they
choose models and examples and write the results. ``barriers_to`` measures paths to one common end, such as from clients
to the global model, or from one round's model to the next round's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from torch import Tensor

from fedpfn.evaluation import Evaluation, evaluate
from fedpfn.lmc.barrier import Pair, PairwiseBarriers, fusion_barrier_of, repaired_end, worst_of
from fedpfn.lmc.batch_norm import repair_for
from fedpfn.lmc.checks import StateLike, fitting_state, fitting_states
from fedpfn.lmc.path_evaluation import measure_paths
from fedpfn.lmc.shown import Shown, barriers_table
from fedpfn.own_data import Data, as_examples
from fedpfn.parallel import ModelPool
from fedpfn.params import mean_state
from fedpfn.progress import Progress


@dataclass(frozen=True, repr=False)
class Connectivity(Shown):
    """How linearly connected K models are.

    Attributes
    ----------
    ends
        Loss and accuracy of every model, in the order given, under the BatchNorm policy.
    barriers
        Loss and accuracy barriers of the measured pairs.
    fused
        Loss and accuracy of the (weighted) mean of all models; under the BatchNorm policy ``none`` the largest loss and
        the lowest accuracy over the statistics of each model.
    fusion_barrier
        1 - A(mean_i w_i) / mean_i A(w_i), a share; negative if the mean is better than the models. NaN if a model's
        loss is NaN, and in a regression.
    """

    ends: list[Evaluation]
    barriers: PairwiseBarriers
    fused: Evaluation
    fusion_barrier: float

    def __rich__(self) -> Table:
        table = barriers_table(self.barriers)
        score = self.fused.accuracy if self.fused.error is None else self.fused.error
        table.caption = (
            f"mean of all {len(self.ends)}: score {score:.4g}, loss {self.fused.loss:.4g}, "
            f"fusion barrier {self.fusion_barrier:.4g}"
        )
        return table


def measure_connectivity(
    pool: ModelPool,
    states: Sequence[StateLike],
    examples: Data,
    *,
    points: int = 25,
    pairs: Sequence[Pair] | None = None,
    weights: Sequence[float] | None = None,
    batch_norm: str = "average",
    batches: Iterable[Tensor] = (),
    plain: bool = False,
    progress: Progress | None = None,
) -> Connectivity:
    """Measure every model, the paths between them, and their mean.

    Parameters
    ----------
    pool
        Workers with copies of the model that the states belong to.
    states
        One or more states of the model, complete ``state_dict()``s of it, or modules.
    examples
        Data over which losses (nats, or squared error) and accuracies (shares) are averaged (``own_data``).
    points
        Number of points of a path, both ends included; odd.
    pairs
        Indices into ``states`` of the models of each path, all pairs by default; alpha = 1 is the first of a pair.
    weights
        Weights of the models in the mean, such as numbers of examples; equal by default.
    batch_norm, batches
        The BatchNorm policy, and the input batches that ``reset`` estimates running statistics from.
    plain
        Evaluate the whole model at every point: the slow reference.
    progress
        Called with the number of evaluations on paths done and the total.

    Returns
    -------
    Connectivity
        ``ends`` and ``fused`` are measured whatever ``pairs`` are.

    Raises
    ------
    TypeError
        For data or states of the wrong type.
    ValueError
        For no states, states that are not the model's, or an even number of points.

    Examples
    --------
    >>> import torch
    >>> from fedpfn.examples import Examples
    >>> from fedpfn.models import build
    >>> from fedpfn.params import read_state
    >>> states = [read_state(build("mlp", (4,), 3, seed=seed, width=8)) for seed in range(3)]
    >>> examples = Examples(torch.randn(64, 4), torch.randint(0, 3, (64,)))
    >>> result = measure_connectivity(ModelPool(build("mlp", (4,), 3, seed=0, width=8), workers=1), states, examples)
    >>> len(result.ends), result.barriers.pairs.tolist(), result.fused.examples
    (3, [[0, 1], [0, 2], [1, 2]], 64)
    """
    examples = as_examples(examples, model=pool.model).decoded()
    states = fitting_states(pool.model, states)
    repair = repair_for(batch_norm, lambda: pool.model, batches)

    def measure(state: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> Evaluation:
        return evaluate(pool.model, examples, state=state if repair is None else repair(state, end))

    ends = pool.map(lambda state: measure(state, state), states)
    barriers = measure_paths(
        pool,
        states,
        examples,
        points=points,
        pairs=pairs,
        ends=ends,
        batch_norm=batch_norm,
        batches=batches,
        plain=plain,
        progress=progress,
    )
    merged = mean_state(states, weights)
    # as on a path, no model's statistics are preferable
    sources = states if repair is not None and batch_norm == "none" else states[:1]
    fused = worst_of(pool.map(lambda end: measure(merged, end), sources))
    return Connectivity(ends, barriers, fused, fusion_barrier_of(fused, ends))


def barriers_to(
    pool: ModelPool,
    states: Sequence[StateLike],
    target: StateLike,
    examples: Data,
    *,
    points: int = 25,
    batch_norm: str = "average",
    batches: Iterable[Tensor] = (),
    ends: Sequence[Evaluation] | None = None,
    plain: bool = False,
) -> PairwiseBarriers:
    """Measure the path from each of K ``states`` to one ``target``.

    Client-to-global barriers take the clients' states and the global state; a round-to-round barrier takes a single
    state. Each end is evaluated once, including the target.

    Parameters
    ----------
    pool
        As for ``measure_connectivity``.
    states
        K states of the model, the first ends of the paths (alpha = 1).
    target
        The state at the other end of every path (alpha = 0).
    examples, points, batch_norm, batches
        As for ``measure_connectivity``.
    ends
        Known evaluations of ``states``, as in ``Connectivity.ends``, without that of the target.
    plain
        As for ``measure_connectivity``.

    Returns
    -------
    PairwiseBarriers
        K paths; ``pairs`` are (i, K), where K is the index of the target.

    Raises
    ------
    ValueError
        For states that are not the model's, another number of ``ends`` than of states, or an even number of points.
    """
    examples = as_examples(examples, model=pool.model).decoded()
    if ends is not None:
        if len(ends) != len(states):
            raise ValueError(f"ends are evaluations of the {len(states)} states, got {len(ends)}")
        own = repaired_end(
            fitting_state(pool.model, target, name="the target"), repair_for(batch_norm, lambda: pool.model, batches)
        )
        ends = [*ends, evaluate(pool.model, examples, state=own)]
    return measure_paths(
        pool,
        [*states, target],
        examples,
        points=points,
        pairs=[(position, len(states)) for position in range(len(states))],
        ends=ends,
        batch_norm=batch_norm,
        batches=batches,
        plain=plain,
    )
