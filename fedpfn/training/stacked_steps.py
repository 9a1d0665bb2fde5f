"""Lay out the steps of a stack of clients in advance: which examples each row uses at each step, and their weights.

A row belongs to a client. The phases of all rows start together, so a row with fewer steps in a phase idles until the
next one. All batches have the same length: a shorter one is padded with weight 0, an idle row has weight 0 throughout.
``stacked`` takes the steps.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpfn.examples import Examples
from fedpfn.training.augment import Augmenter, augment_rows


@dataclass(frozen=True)
class ClientTraining:
    """One client's local training.

    Parameters
    ----------
    examples
        The client's examples.
    batches
        Indices of each step's examples, as for ``train``.
    steps
        Number of steps in each phase.
    lr_factor
        Function from the step to a factor on the learning rate, as for ``train``.
    augment
        The client's augmentation in this round; None leaves its images unchanged.
    """

    examples: Examples
    batches: Iterator[NDArray[np.int64]]
    steps: tuple[int, ...]
    lr_factor: Callable[[int], float] | None = None
    augment: Augmenter | None = None


@dataclass(frozen=True)
class Schedule:
    """The examples of each row at each step of a stack: ``index`` into ``examples``, ``weights``, (steps, rows, batch).

    ``examples`` are those of all clients, decoded unless images are augmented. Weights are 1 / n for the n examples of
    a batch. ``own`` are the stack's steps that a client takes part in and ``sizes`` its batches' lengths, both one
    array per client.
    """

    examples: Examples
    index: Tensor
    weights: Tensor
    own: list[NDArray[np.int64]]
    sizes: list[NDArray[np.int64]]

    def by_step(self, values: Sequence[Iterable[float]], idle: float) -> NDArray[np.float64]:
        """Place the ``values`` of each client's steps at the stack's steps, (steps, rows), with ``idle`` elsewhere."""
        table = np.full(self.index.shape[:2], float(idle))
        for row, (own, of_client) in enumerate(zip(self.own, values, strict=True)):
            table[own, row] = list(of_client)
        return table


def lay_out(clients: Sequence[ClientTraining], rows: int, batch_size: int, dtype: torch.dtype) -> Schedule:
    """Return the schedule of ``clients``, one per row, with remaining rows idle; weights in ``dtype``.

    Reads the batches that each client needs. Raises ``ValueError`` for a batch that is empty, longer than
    ``batch_size`` or not of the client's own examples, and for a client that runs out of batches.
    """
    starts = np.cumsum([0, *(max(steps) for steps in zip(*(client.steps for client in clients), strict=True))])
    index = np.zeros((int(starts[-1]), rows, batch_size), dtype=np.int64)
    weights = np.zeros(index.shape)
    all_own, all_sizes = [], []
    offset = 0
    for row, client in enumerate(clients):
        phases = [start + np.arange(steps) for start, steps in zip(starts[:-1], client.steps, strict=True)]
        own = np.concatenate([np.zeros(0, dtype=np.int64), *phases])
        batches = list(islice(client.batches, len(own)))
        _require_fit(batches, len(own), batch_size, len(client.examples))
        for number, batch in zip(own, batches, strict=True):
            index[number, row, : len(batch)] = offset + batch
            # padded with the batch's first example, not with zeros: finite wherever the batch is
            index[number, row, len(batch) :] = offset + batch[0]
            weights[number, row, : len(batch)] = 1 / len(batch)
        all_own.append(own)
        all_sizes.append(np.array([len(batch) for batch in batches], dtype=np.int64))
        offset += len(client.examples)
    augmented = any(client.augment is not None for client in clients)
    parts = [client.examples if augmented else client.examples.decoded() for client in clients]
    if len({(part.mean, part.std) for part in parts}) > 1:
        raise ValueError("the images of a stack's clients must be normalised alike")
    examples = replace(
        parts[0], inputs=torch.cat([part.inputs for part in parts]), labels=torch.cat([part.labels for part in parts])
    )
    return Schedule(
        examples,
        # one transfer for all steps: a GPU would wait for a transfer at every step
        torch.from_numpy(index).to(examples.device),
        torch.from_numpy(weights).to(examples.device, dtype),
        all_own,
        all_sizes,
    )


def batches_of(clients: Sequence[ClientTraining], schedule: Schedule) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return the function from a step of the stack to its inputs (rows, batch, ...) and labels (rows, batch)."""
    examples, index = schedule.examples, schedule.index
    augmenters = [client.augment for client in clients]
    if all(one is None for one in augmenters):
        return lambda number: examples.batch(index[number])
    numbers = schedule.by_step([range(len(own)) for own in schedule.own], idle=0).astype(int).tolist()
    sizes = schedule.by_step([own.tolist() for own in schedule.sizes], idle=0).astype(int).tolist()
    shape = index.shape[1:]

    def take(number: int) -> tuple[Tensor, Tensor]:
        def augment(images: Tensor) -> Tensor:
            rows = images.view(*shape, *images.shape[1:])
            return augment_rows(augmenters, rows, numbers[number], sizes[number]).flatten(0, 1)

        inputs, labels = examples.batch(index[number].flatten(), augment=augment)
        return inputs.view(*shape, *inputs.shape[1:]), labels.view(*shape, *labels.shape[1:])

    return take


def lr_factors(clients: Sequence[ClientTraining], schedule: Schedule) -> Tensor | None:
    """Return the factor on each row's learning rate at each step, (steps, rows); None if no client has one."""
    if all(client.lr_factor is None for client in clients):
        return None
    factors = [
        [1.0 if client.lr_factor is None else client.lr_factor(step) for step in range(len(own))]
        for client, own in zip(clients, schedule.own, strict=True)
    ]
    return torch.from_numpy(schedule.by_step(factors, idle=1.0)).to(schedule.weights)


def _require_fit(batches: Sequence[NDArray[np.int64]], steps: int, batch_size: int, num_examples: int) -> None:
    if len(batches) < steps:
        raise ValueError(f"a client of {steps} steps has batches for {len(batches)}")
    for batch in batches:
        if not 0 < len(batch) <= batch_size:
            raise ValueError(f"a stack's batches have 1 to {batch_size} examples; a client has one of {len(batch)}")
        # indices beyond the client's own examples would be those of the next client
        if batch.min() < 0 or batch.max() >= num_examples:
            raise ValueError(
                f"a client of {num_examples} examples has a batch with indices out of range: {batch.tolist()}"
            )
