"""Siblings: models trained from one start with different batch orders, fully, in a common subspace, or pruned.

Training-time neuron alignment studies them (arXiv 2402.01342, section 3). ``vanilla`` trains everything. ``tna-pfn``
(eq. 5) draws one mask m for all siblings and all steps, w_i <- w_i - eta (m * g_i). ``pruning`` (figure 2) applies the
same mask to the weights too, w_0 <- m * w_0, so that pruned weights stay 0. The training loop is in ``training``, the
mask in ``masks``; ``pairwise`` measures the barriers between siblings.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedpfn.examples import Examples
from fedpfn.lmc.batch_norm import smallest_batch
from fedpfn.masks import Mask, MaskRecipe, build_mask
from fedpfn.params import State, read_state, trainable
from fedpfn.seeding import derive, numpy_generator, torch_seed
from fedpfn.training import MakeOptimizer, batch_order, train

METHODS = ("vanilla", "tna-pfn", "pruning")


@dataclass(frozen=True)
class Siblings:
    """Models trained from a common start.

    Attributes
    ----------
    start
        The state in which the siblings separated.
    states
        The siblings' states after training.
    losses
        Each sibling's mean training loss since they separated.
    mask
        The mask that they share, boolean tensors by name; None under ``vanilla``.
    """

    start: State
    states: tuple[State, ...]
    losses: tuple[float, ...]
    mask: Mask | None


def train_siblings(
    model: nn.Module,
    examples: Examples,
    *,
    models: int,
    steps: int,
    batch_size: int,
    optimizer: MakeOptimizer,
    method: str = "vanilla",
    mask: MaskRecipe | None = None,
    spawn_after: int = 0,
    lr_factor: Callable[[int], float] | None = None,
    seed: int = 0,
) -> Siblings:
    """Train several copies of ``model``.

    Parameters
    ----------
    model
        Model at the start w_0; it is not changed.
    examples
        Training data.
    models
        Number of siblings, 1 or more.
    steps
        Number of steps from w_0, 1 or more.
    batch_size
        Number of examples per batch.
    optimizer
        Function from parameters to an optimiser (``training.make_optimizer``).
    method
        ``vanilla``, ``tna-pfn`` or ``pruning``.
    mask
        Recipe of the mask for ``tna-pfn`` and ``pruning``; ``vanilla`` ignores it, so that one recipe serves a
        comparison of methods.
    spawn_after
        Number k of initial steps that are taken once for all siblings, below ``steps``. After that the siblings
        separate: they continue with their own batch orders and fresh optimisers, and with the same learning-rate
        schedule.
    lr_factor
        ``lr_factor(step)`` multiplies the learning rate, steps counted from w_0; None keeps it constant.
    seed
        Seed of batch orders and dropout. The batches of sibling i are a function of ``seed`` and i, the same under
        every method.

    Returns
    -------
    Siblings
        ``models`` states, with their mean losses, their start and their mask.

    Raises
    ------
    ValueError
        For an unknown method, a method without its mask, no model or step, a spawning point beyond the training, and
        too few examples for a batch.

    Examples
    --------
    >>> from fedpfn.models import build
    >>> from fedpfn.training import make_optimizer
    >>> examples = Examples(torch.randn(64, 4), torch.randint(0, 3, (64,)))
    >>> siblings = train_siblings(build("mlp", (4,), 3, seed=0, width=8), examples, models=2, steps=5, batch_size=16,
    ...                        optimizer=make_optimizer("sgd", lr=0.1), method="tna-pfn", mask=MaskRecipe(0, ratio=0.4))
    >>> frozen = ~siblings.mask["linear1.weight"]
    >>> bool((siblings.states[0]["linear1.weight"] == siblings.states[1]["linear1.weight"])[frozen].all())
    True
    """
    _check(method, mask, models, steps, spawn_after)
    trunk = deepcopy(model)
    held = build_mask(mask, trainable(trunk)) if method != "vanilla" else None
    if method == "pruning" and held is not None:
        prune(trunk, held)

    def run(copy: nn.Module, stream: int | str, first: int, last: int) -> float:
        min_batch = smallest_batch(copy)
        batches = batch_order(len(examples), batch_size, numpy_generator(seed, "order", stream), min_batch=min_batch)
        factor = None if lr_factor is None else lambda step: lr_factor(step + first)
        with torch_seed(seed, "sibling", stream):
            return train(copy, examples, batches, [(held, last - first)], optimizer=optimizer, lr_factor=factor).loss

    if spawn_after:
        run(trunk, "trunk", 0, spawn_after)
    states, losses = [], []
    for index in range(models):
        sibling = deepcopy(trunk)
        losses.append(run(sibling, index, spawn_after, steps))
        states.append(read_state(sibling))
    return Siblings(read_state(trunk), tuple(states), tuple(losses), held)


@torch.no_grad()
def prune(model: nn.Module, mask: Mapping[str, torch.Tensor]) -> None:
    """Set the entries that ``mask`` freezes to 0: w_0 <- m * w_0 (arXiv 2402.01342, figure 2).

    Parameters
    ----------
    model
        The model to prune, in place.
    mask
        A boolean tensor for each trainable parameter, of its shape; False freezes.
    """
    for name, parameter in trainable(model).items():
        parameter.masked_fill_(~mask[name], 0)


def semi_train(
    model: nn.Module,
    examples: Examples,
    *,
    share: float,
    epochs: float,
    batch_size: int,
    optimizer: MakeOptimizer,
    seed: int = 0,
) -> Examples:
    """Train ``model`` in place on a part of ``examples`` and return the other examples: a semi-trained start.

    The two parts are disjoint, so that no example is seen again (arXiv 2402.01342, table 2, where the start was trained
    for half an epoch).

    Parameters
    ----------
    model
        The model to train, in place.
    examples
        Training data.
    share
        Share of the examples, drawn at random, that the model is trained on.
    epochs
        Number of epochs over that part, possibly fractional; at least one step is taken.
    batch_size
        Number of examples per batch.
    optimizer
        Function from parameters to an optimiser (``training.make_optimizer``).
    seed
        Seed of the draw, the batch order and dropout.

    Returns
    -------
    Examples
        The examples that the model was not trained on, in their order.

    Raises
    ------
    ValueError
        If one of the parts would be empty, and for too few examples for a batch.
    """
    chosen, rest = disjoint(len(examples), share, seed=seed)
    part = examples.take(chosen)
    steps = max(1, round(epochs * -(-len(part) // batch_size)))
    min_batch = smallest_batch(model)
    batches = batch_order(len(part), batch_size, numpy_generator(seed, "order", "semi-trained"), min_batch=min_batch)
    with torch_seed(seed, "sibling", "semi-trained"):
        train(model, part, batches, [(None, steps)], optimizer=optimizer)
    return examples.take(rest)


def disjoint(total: int, share: float, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return round(share * total) indices drawn at random, and the others, both ascending."""
    size = round(share * total)
    if not 0 < size < total:
        raise ValueError(f"a share of {share:g} of {total} examples leaves one of the two parts empty")
    order = numpy_generator(seed, "disjoint").permutation(total)
    return np.sort(order[:size]), np.sort(order[size:])


def mask_recipe(seed: int, ratio: float, **choices: str) -> MaskRecipe:
    """Return the recipe of the mask that the siblings of ``seed`` share.

    Parameters
    ----------
    seed
        Seed of the siblings.
    ratio
        Share of frozen entries, within [0, 1].
    **choices
        Fields of ``MaskRecipe``: ``granularity``, ``draw``, ``include``, ``exclude``.

    Returns
    -------
    MaskRecipe
        The recipe, whose seed is derived from ``seed``.
    """
    return MaskRecipe(derive(seed, "mask", "siblings"), ratio, **choices)  # type: ignore[arg-type]


def _check(method: str, mask: MaskRecipe | None, models: int, steps: int, spawn_after: int) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method != "vanilla" and mask is None:
        raise ValueError(f"method {method} needs a mask")
    if models < 1 or steps < 1:
        raise ValueError(f"siblings need at least one model and one step, got {models} models and {steps} steps")
    if not 0 <= spawn_after < steps:
        raise ValueError(f"models must spawn before their {steps} steps end, got {spawn_after}")
