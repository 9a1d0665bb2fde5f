"""``fuse``: the fusion methods by name.

Each has its own module: ``task_vectors``, ``ties_merging``, ``fisher``, ``regmean``; the mean and the greedy soup are
in ``fedpfn.lmc.soups``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from torch import Tensor, nn

from fedpfn.evaluation import Evaluation
from fedpfn.examples import Examples
from fedpfn.lmc.barrier import Repair
from fedpfn.lmc.checks import StateLike, fitting_state, fitting_states
from fedpfn.lmc.fusion.fisher import fisher_information, fisher_mean
from fedpfn.lmc.fusion.regmean import input_grams, reg_mean
from fedpfn.lmc.fusion.task_vectors import task_arithmetic
from fedpfn.lmc.fusion.ties_merging import ties
from fedpfn.lmc.soups import greedy_soup, uniform_soup
from fedpfn.own_data import Data, as_examples
from fedpfn.parallel import ModelPool, temporary_pool
from fedpfn.params import State
from fedpfn.progress import Progress, Steps

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Fused:
    """Several models fused into one.

    Attributes
    ----------
    state
        The fused state.
    notes
        Details of the method, such as the members of a greedy soup; empty for most methods.
    """

    state: State
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Models:
    """The inputs of a method: states of the workers' model, their common base, data, and the BatchNorm repair."""

    pool: ModelPool
    states: Sequence[Tensors]
    base: Tensors | None
    examples: Examples | None
    repair: Repair | None
    done: Callable[[float], None]

    def started(self) -> Tensors:
        assert self.base is not None
        return self.base

    def by_data(self, measure: Callable[..., State]) -> list[State]:
        """Return ``measure(model, state, examples)`` for each state."""
        return self.pool.map(lambda s: measure(self.pool.model, s, self.examples, done=self.done), self.states)


def _mean(models: _Models) -> Fused:
    return Fused(uniform_soup(models.states))


def _greedy(models: _Models) -> Fused:
    examples = models.examples
    assert examples is not None

    def evaluate(state: Tensors) -> Evaluation:
        evaluation = models.pool.evaluate(state, examples)
        models.done(0.5)
        return evaluation

    soup = greedy_soup(models.states, evaluate, repair=models.repair)
    return Fused(soup.state, (f"members: {', '.join(str(member + 1) for member in soup.members)}",))


def _task_arithmetic(models: _Models, *, scale: float = 0.3) -> Fused:
    return Fused(task_arithmetic(models.states, models.started(), scale=scale))


def _ties(models: _Models, *, density: float = 0.2, scale: float = 1.0) -> Fused:
    return Fused(ties(models.states, models.started(), density=density, scale=scale))


def _fisher(models: _Models) -> Fused:
    return Fused(fisher_mean(models.states, models.by_data(fisher_information)))


def _reg_mean(models: _Models, *, off_diagonal: float = 0.9) -> Fused:
    return Fused(reg_mean(models.states, models.by_data(input_grams), off_diagonal=off_diagonal))


METHODS: dict[str, Callable[..., Fused]] = {
    "mean": _mean,
    "greedy": _greedy,
    "task-arithmetic": _task_arithmetic,
    "ties": _ties,
    "fisher": _fisher,
    "regmean": _reg_mean,
}
NEED_BASE = ("task-arithmetic", "ties")
NEED_DATA = ("greedy", "fisher", "regmean")


def fuse(
    method: str,
    model: nn.Module,
    states: Sequence[StateLike],
    *,
    base: StateLike | None = None,
    examples: Data | None = None,
    repair: Repair | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Fused:
    """Return ``states`` of ``model`` fused by ``method``, a name of ``METHODS``.

    Parameters
    ----------
    method
        ``mean``, ``greedy``, ``task-arithmetic``, ``ties``, ``fisher`` or ``regmean``.
    model
        The model that the states belong to; it is not changed.
    states
        States, complete ``state_dict()``s or modules.
    base
        The common start of the models, for the methods in ``NEED_BASE``.
    examples
        Data for the methods in ``NEED_DATA``: held-out examples for ``greedy``, examples like the models' training data
        for ``fisher`` and ``regmean``.
    repair
        Repair of the result's BatchNorm statistics (``batch_norm.repair_for``), and for ``greedy`` of each soup's.
    progress
        Called with the number of models done and the total.
    **options
        The method's own options: ``scale``, ``density``, ``off_diagonal``.

    Returns
    -------
    Fused
        The fused state, with the model's tensors.

    Raises
    ------
    ValueError
        For an unknown method or option, a missing base or missing data, and anything that the method itself refuses.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> state = fuse("ties", model, [model, model], base=model, density=0.5).state
    >>> bool((state["weight"] == model.weight).all())
    True
    """
    method_faults(method, options, has_base=base is not None, has_data=examples is not None)
    fitting = fitting_states(model, states)
    start = None if base is None else fitting_state(model, base, name="the base")
    data = None if examples is None else as_examples(examples, model=model).decoded()
    with temporary_pool(model) as pool:
        done = Steps(progress, len(fitting))
        fused = METHODS[method](_Models(pool, fitting, start, data, repair, done), **options)
        done.finish()
        if repair is None or method == "greedy":
            return fused
        return Fused(repair(fused.state, fitting[0]), fused.notes)


def method_faults(method: str, options: Mapping[str, Any], *, has_base: bool, has_data: bool) -> None:
    """Raise an error for a fusion method that cannot run with the given options, base and data.

    Parameters
    ----------
    method
        Name of the method.
    options
        The method's own options by name; only the names are checked.
    has_base, has_data
        Whether there is a common base, and whether there are data.

    Raises
    ------
    ValueError
        For an unknown method or option, and for a base or data that the method needs and lacks.
    """
    if method not in METHODS:
        raise ValueError(f"unknown fusion method {method!r}; expected one of {', '.join(METHODS)}")
    known = list(signature(METHODS[method]).parameters)[1:]
    if unknown := sorted(options.keys() - set(known)):
        own = f"its options are {', '.join(known)}" if known else "it has none"
        raise ValueError(f"fusion method {method!r} takes no {unknown[0]!r}; {own}")
    if method in NEED_BASE and not has_base:
        raise ValueError(
            f"fusion method {method!r} needs the common base that the models were fine-tuned from; got none"
        )
    if method in NEED_DATA and not has_data:
        raise ValueError(f"fusion method {method!r} needs data; got none")
