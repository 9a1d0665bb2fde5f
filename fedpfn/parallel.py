"""Many evaluations in parallel on a CPU: one thread and one copy of the model per worker.

Splitting one small operation over cores costs more than it saves, and makes sums depend on the number of cores.
Splitting the list of evaluations does neither. On a GPU the items run one after the other in the calling thread.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedpfn.devices import available_cpus
from fedpfn.evaluation import Evaluation, evaluate
from fedpfn.examples import Examples
from fedpfn.tasks import CLASSIFICATION

Item = TypeVar("Item")
Result = TypeVar("Result")
Thing = TypeVar("Thing")


class ModelPool:
    """Workers that each hold a copy of a model: calls swap its tensors, so it cannot be shared.

    Creating a pool sets PyTorch to one CPU thread, on a GPU too.

    Parameters
    ----------
    model
        The model, whose device decides where the workers compute.
    workers
        Number of threads on a CPU; on a GPU there is one worker, whatever is requested.
    """

    def __init__(self, model: nn.Module, *, workers: int) -> None:
        on_cpu = next(model.parameters()).device.type == "cpu"
        self.workers = workers if on_cpu else 1
        self._local, self._numbers = threading.local(), list(range(self.workers))
        torch.set_num_threads(1)
        self._executor = None
        if self.workers > 1:
            self._executor = ThreadPoolExecutor(self.workers, initializer=self._equip)
        self._own_model = self.replicate(model)

    @property
    def model(self) -> nn.Module:
        """The calling worker's own copy of the model."""
        return self._own_model()

    def replicate(self, thing: Thing) -> Callable[[], Thing]:
        """Return a function that gives each worker its own copy of ``thing``, and the calling thread ``thing`` itself.

        The copies are made here and not by the workers, which may start late: a model that is being called with other
        tensors at that moment would be copied without its own.
        """
        copies = [] if self._executor is None else [deepcopy(thing) for _ in range(self.workers)]
        return lambda: copies[self._local.number] if hasattr(self._local, "number") else thing

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return ``function`` of every item, in the order of the items; the first error is raised."""
        inside = hasattr(self._local, "number")
        if self._executor is None or inside:
            return [function(item) for item in items]
        return list(self._executor.map(function, items))

    def evaluate(
        self,
        state: Mapping[str, Tensor],
        examples: Examples,
        *,
        chunk: int = 1000,
        marks: list[Tensor] | None = None,
        done: Callable[[float], None] = lambda count: None,
    ) -> Evaluation:
        """Evaluate ``state`` in chunks of ``examples``, combined in order; ``marks`` as for ``evaluate``.

        ``done`` is called after each chunk with its share of the examples. On a GPU the sums of all chunks stay on the
        device until the end, since it would wait for each transfer.
        """
        if examples.device.type != "cpu":
            whole = evaluate(self.model, examples, state=state, batch_size=chunk, marks=marks)
            done(1)
            return whole
        chunks: Sequence[Examples] = [examples.span(i, i + chunk) for i in range(0, len(examples), chunk)]
        own: list[list[Tensor] | None] = [None if marks is None else [] for _ in chunks]

        def run(job: tuple[Examples, list[Tensor] | None]) -> Evaluation:
            evaluation = evaluate(self.model, job[0], state=state, batch_size=chunk, marks=job[1])
            done(1 / len(chunks))
            return evaluation

        parts = self.map(run, list(zip(chunks, own, strict=True)))
        if marks is not None:
            marks += [mark for one in own for mark in one or ()]
        total = len(examples)
        if total == 0:
            return evaluate(self.model, examples, state=state)
        has_accuracy = examples.task.has_accuracy
        right: Iterable[float] = (part.accuracy * part.examples for part in parts)
        if examples.task == CLASSIFICATION:
            # whole counts, so that chunks give the same result as one pass
            right = (round(count) for count in right)
        return Evaluation(
            loss=sum(part.loss * part.examples for part in parts) / total,
            accuracy=sum(right) / total,
            examples=total,
            error=None if has_accuracy else sum((part.error or 0.0) * part.examples for part in parts) / total,
        )

    def close(self) -> None:
        """End the workers."""
        if self._executor is not None:
            self._executor.shutdown()

    def _equip(self) -> None:
        torch.set_num_threads(1)
        self._local.number = self._numbers.pop()


@contextmanager
def temporary_pool(model: nn.Module, *, workers: int | None = None) -> Iterator[ModelPool]:
    """Create a pool for the block, then close it and restore PyTorch's number of CPU threads.

    Parameters
    ----------
    model
        The model that workers copy.
    workers
        As in ``ModelPool``; None for one per core that this process may use.

    Yields
    ------
    ModelPool
        The pool.

    Examples
    --------
    >>> with temporary_pool(nn.Linear(2, 2), workers=1) as pool:
    ...     pool.map(abs, [-1, 2])
    [1, 2]
    """
    threads = torch.get_num_threads()
    pool = ModelPool(model, workers=workers or available_cpus())
    try:
        yield pool
    finally:
        pool.close()
        torch.set_num_threads(threads)
