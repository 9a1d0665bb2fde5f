"""Barriers between any models of one architecture, on given examples: the call for interactive use.

``barrier`` defines what is measured, ``batch_norm`` how BatchNorm is treated on a path, and ``path_evaluation``
measures it fast; this module combines a model, states and examples and distributes the pairs over CPU cores.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from torch import Tensor, nn

from fedpfn.evaluation import Evaluation
from fedpfn.examples import Examples
from fedpfn.lmc.barrier import Pair, PairwiseBarriers
from fedpfn.lmc.checks import StateLike
from fedpfn.lmc.path_evaluation import measure_paths
from fedpfn.own_data import Data, as_examples
from fedpfn.parallel import temporary_pool
from fedpfn.progress import Progress


def pairwise_barriers(
    model: nn.Module,
    states: Sequence[StateLike],
    examples: Data,
    *,
    points: int = 25,
    pairs: Sequence[Pair] | None = None,
    ends: Sequence[Evaluation] | None = None,
    batch_norm: str = "average",
    training: Data | None = None,
    workers: int | None = None,
    plain: bool = False,
    progress: Progress | None = None,
) -> PairwiseBarriers:
    """Measure loss and accuracy barriers between all ``states`` of ``model``, or for the ``pairs`` of their indices.

    A path w(alpha) = alpha w1 + (1 - alpha) w2 is measured at ``points`` equally spaced values, each end once (arXiv
    2402.01342, eq. 1 and 2).

    Parameters
    ----------
    model
        The model that the states belong to; it is not changed.
    states
        States of the model, complete ``state_dict()``s of it, whose integer buffers are ignored, or modules.
    examples
        Data over which losses (nats, or squared error) and accuracies (shares) are averaged: ``Examples``, a pair of
        tensors or arrays, a ``Dataset`` or a ``DataLoader`` (``own_data``).
    points
        Number of points of a path, both ends included; odd.
    pairs
        Indices into ``states``, all pairs by default; alpha = 1 is the first of a pair.
    ends
        Known evaluations of ``states`` under the BatchNorm policy.
    batch_norm
        ``average`` interpolates running statistics, ``reset`` estimates them anew for every point and both ends, and
        ``none`` uses those of the ends (``batch_norm``).
    training
        Data whose inputs ``reset`` reads.
    workers
        Number of CPU threads, one per core by default; it does not change the result.
    plain
        Evaluate the complete model at every point, the slow reference with which the faster method
        (``path_evaluation``) agrees up to rounding.
    progress
        Called with the number of evaluations done and the total, for example a ``fedpfn.progress.progress_bar``.

    Returns
    -------
    PairwiseBarriers
        In the order of ``pairs``.

    Raises
    ------
    TypeError
        For data or states of the wrong type.
    ValueError
        For states that are not the model's, and for a reset without ``training``.

    Examples
    --------
    >>> from fedpfn.models import build
    >>> from fedpfn.params import read_state
    >>> import torch
    >>> examples = Examples(torch.randn(64, 4), torch.randint(0, 3, (64,)))
    >>> model = build("mlp", (4,), 3, seed=0, width=8)
    >>> states = [read_state(build("mlp", (4,), 3, seed=seed, width=8)) for seed in range(3)]
    >>> report = pairwise_barriers(model, states, examples, points=5)
    >>> report.pairs.tolist(), report.matrix("loss", 3).shape
    ([[0, 1], [0, 2], [1, 2]], (3, 3))
    """
    examples = as_examples(examples, model=model)
    batches = statistics_batches(model, batch_norm, training)
    with temporary_pool(model, workers=workers) as pool:
        return measure_paths(
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


def statistics_batches(model: nn.Module, batch_norm: str, training: Data | None) -> Iterable[Tensor]:
    """Return the input batches for the BatchNorm policy. Raises ``ValueError`` for a reset without ``training``."""
    if batch_norm == "reset" and training is None:
        raise ValueError("batch_norm='reset' re-estimates running statistics on training data: pass training=")
    return () if training is None else InputBatches(as_examples(training, model=model, name="training"))


class InputBatches:
    """Decoded input batches of some examples, iterated anew each time.

    Parameters
    ----------
    examples
        Examples whose inputs are read, in their order.
    size
        Maximum number of examples in a batch; batches differ in size by at most one example.
    """

    def __init__(self, examples: Examples, *, size: int = 200) -> None:
        self.examples, self.size = examples, size

    def __iter__(self) -> Iterator[Tensor]:
        # even sizes, since BatchNorm cannot take a last batch of one example
        total, count = len(self.examples), -(-len(self.examples) // self.size)
        ends = [total * number // count for number in range(count + 1)]
        return (self.examples.batch(slice(start, stop))[0] for start, stop in pairwise(ends))
