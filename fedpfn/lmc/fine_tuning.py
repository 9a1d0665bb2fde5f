"""Fine-tuning from a given state, with a mask or without (TNA-PFN), and the examples of chosen classes.

States fine-tuned from one start with one mask recipe have bit-identical frozen entries, as does any mean of them
(arXiv 2402.01342, eq. 5: w <- w - eta (m * g)). The steps are those of ``fedpfn.training``; ``soups`` and
``cold_fusion`` use the fine-tuned states.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpfn.examples import Examples
from fedpfn.lmc.batch_norm import smallest_batch
from fedpfn.masks import MaskRecipe, build_mask
from fedpfn.params import State, read_state, trainable, write_state
from fedpfn.seeding import Path, numpy_generator, torch_seed
from fedpfn.training import OPTIMIZERS, MakeOptimizer, batch_order, count_steps, make_optimizer, train


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """How one model is trained.

    Parameters
    ----------
    lr
        Learning rate, above 0.
    epochs
        Number of epochs, if ``steps`` is 0.
    steps
        Number of batches; 0 trains for ``epochs``.
    batch_size
        Number of examples per batch, 1 or more.
    optimizer
        ``sgd``, ``adam`` or ``adamw``.
    momentum
        Momentum of SGD, within [0, 1); 0 for other optimisers.
    weight_decay
        The optimiser's weight decay, 0 or more.

    Raises
    ------
    ValueError
        For invalid values.
    """

    lr: float
    epochs: int = 1
    steps: int = 0
    batch_size: int = 64
    optimizer: str = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {self.optimizer!r}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be a positive number; got {self.lr!r}")
        if min(self.epochs, self.steps) < 0 or max(self.epochs, self.steps) < 1 or self.batch_size < 1:
            raise ValueError(
                "training needs 1 or more epochs or steps and a batch_size of 1 or more; "
                f"got epochs={self.epochs}, steps={self.steps}, batch_size={self.batch_size}"
            )
        if not 0 <= self.momentum < 1 or not 0 <= self.weight_decay < float("inf"):
            raise ValueError(
                "momentum must lie within [0, 1) and weight_decay must be 0 or more; "
                f"got momentum={self.momentum!r}, weight_decay={self.weight_decay!r}"
            )
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is SGD's and has no effect on {self.optimizer}; leave it at 0")

    def plan(
        self, model: nn.Module, examples: Examples, generator: np.random.Generator
    ) -> tuple[int, Iterator[NDArray[np.int64]]]:
        """Return the number of steps of ``model`` on ``examples``, and their batches, drawn from ``generator``."""
        size, min_batch = self.batch_size, smallest_batch(model)
        steps = count_steps(len(examples), batch_size=size, epochs=self.epochs, steps=self.steps, min_batch=min_batch)
        return steps, batch_order(len(examples), size, generator, min_batch=min_batch)

    def make_optimizer(self) -> MakeOptimizer:
        """Return the function from parameters to the optimiser."""
        return make_optimizer(self.optimizer, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


def fine_tune(
    model: nn.Module,
    start: Mapping[str, Tensor],
    examples: Examples,
    recipe: TrainingRecipe,
    *,
    mask: MaskRecipe | None = None,
    seed: int,
    stream: Sequence[Path] = (),
) -> State:
    """Return the state after training ``model`` from ``start``.

    BatchNorm's running statistics are not masked.

    Parameters
    ----------
    model
        The model to train; it is not changed.
    start
        The state to start from.
    examples
        Training data; the model is trained on their device.
    recipe
        How it is trained.
    mask
        Mask of the parameters, which has its own seed, so that it can be shared. None trains everything.
    seed, stream
        Batch order and dropout are streams of ``seed`` under ``stream``: calls with different streams see the examples
        in different orders.

    Returns
    -------
    State
        On the examples' device.

    Raises
    ------
    ValueError
        For a start that is not the model's, or too few examples for a batch.
    NonFiniteError
        If training diverges.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> start = read_state(model)
    >>> examples = Examples(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    >>> tuned = fine_tune(model, start, examples, TrainingRecipe(lr=0.1), mask=MaskRecipe(seed=1, ratio=0.5), seed=0)
    >>> [int((tuned[name] != start[name]).sum()) for name in tuned]
    [2, 1]
    """
    scratch = deepcopy(model).to(examples.device)
    write_state(scratch, start)
    steps, batches = recipe.plan(scratch, examples, numpy_generator(seed, *stream, "batches"))
    trained = None if mask is None else build_mask(mask, trainable(scratch))
    with torch_seed(seed, *stream, "dropout"):
        train(scratch, examples, batches, [(trained, steps)], optimizer=recipe.make_optimizer())
    return read_state(scratch)


def positions_of_classes(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the indices of the examples whose label is one of ``classes``, in their order: int64 (M,).

    Raises ``ValueError`` for no class, and for a class without an example.

    >>> positions_of_classes(torch.tensor([2, 0, 1, 2]), [1, 2])
    tensor([0, 2, 3])
    """
    absent = sorted(set(classes) - set(labels.tolist()))
    if not classes or absent:
        raise ValueError(f"expected one or more classes, each with an example; got {list(classes)}, absent {absent}")
    wanted = torch.as_tensor(list(classes), dtype=labels.dtype, device=labels.device)
    return torch.isin(labels, wanted).nonzero().flatten()
