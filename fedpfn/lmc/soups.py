"""Model soups: the mean of models fine-tuned from one start with different settings (Wortsman et al. 2022).

Uniform soup: the mean of all members. Greedy soup (their recipe 1): members in the order of their held-out accuracy,
each kept only if the mean with it is not worse on held-out data. Members share their start, so their mean may work
well; with TNA-PFN (arXiv 2402.01342, section 3) they share a mask as well, and their frozen entries are the start's.
``fine_tuning`` does the fine-tuning; ``batch_norm`` handles BatchNorm's statistics of a mean.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor, nn

from fedpfn import evaluation
from fedpfn.evaluation import Evaluation
from fedpfn.examples import Examples
from fedpfn.lmc.barrier import Repair, repaired_end
from fedpfn.lmc.checks import StateLike, fitting_states
from fedpfn.lmc.fine_tuning import TrainingRecipe, fine_tune, positions_of_classes
from fedpfn.masks import MaskRecipe
from fedpfn.own_data import Data, as_examples
from fedpfn.params import State, mean_state, read_state, require_fit


@dataclass(frozen=True)
class Candidate:
    """A step of the greedy soup: a member's index, the soup's held-out accuracy with it, and whether it is kept."""

    member: int
    accuracy: float
    kept: bool


@dataclass(frozen=True)
class Soup:
    """A mean of several states.

    Attributes
    ----------
    state
        The mean.
    members
        Indices of the states in it, in the order kept.
    accuracy
        Its held-out accuracy.
    alone
        Held-out accuracies of all candidate states, in their order.
    history
        The steps of the search, one per state, in the order tried.
    """

    state: State
    members: tuple[int, ...]
    accuracy: float
    alone: tuple[float, ...]
    history: tuple[Candidate, ...]


@dataclass(frozen=True)
class SoupReport:
    """Accuracies on held-out data, for selection, and on test data, for reporting.

    Attributes
    ----------
    held_out, test
        Accuracies of the single models, in their order.
    best
        Index of the model with the highest held-out accuracy.
    uniform, greedy
        Pairs (held-out, test) of accuracies of the two soups.
    members
        Indices of the models in the greedy soup, in the order kept.
    """

    held_out: tuple[float, ...]
    test: tuple[float, ...]
    best: int
    uniform: tuple[float, float]
    greedy: tuple[float, float]
    members: tuple[int, ...]


def uniform_soup(states: Sequence[Mapping[str, Tensor]], *, repair: Repair | None = None) -> State:
    """Return the mean of ``states``; in float32, the mean of equal states is that state, to the bit.

    Parameters
    ----------
    states
        One or more states of one model.
    repair
        ``repair(mean, first state)`` sets BatchNorm's running statistics (``batch_norm.repair_for``), even for a single
        state; None leaves the mean unchanged.

    Returns
    -------
    State
        In the states' dtypes.

    Raises
    ------
    ValueError
        For no state, or states of different models.
    """
    _require_members(states)
    mean = dict(states[0]) if len(states) == 1 else mean_state(states)
    return mean if repair is None else repair(mean, states[0])


def greedy_soup(
    states: Sequence[Mapping[str, Tensor]],
    evaluate: Callable[[Mapping[str, Tensor]], Evaluation],
    *,
    repair: Repair | None = None,
) -> Soup:
    """Return the greedy soup of ``states``, which according to ``evaluate`` is never worse than its best member.

    Members of equal accuracy are tried in their order in ``states``, and a member that does not change the soup's
    accuracy is kept. n members cost 2 n - 1 evaluations.

    Parameters
    ----------
    states
        One or more states of one model.
    evaluate
        Function that evaluates a state on held-out data: neither the members' training data nor the soup's test data.
    repair
        Repair of BatchNorm's running statistics (``batch_norm.repair_for``), of single members as well as soups.

    Returns
    -------
    Soup
        The soup, and the steps that led to it.

    Raises
    ------
    ValueError
        For no state, states of different models, and an accuracy that is NaN, as in a regression.

    Examples
    --------
    >>> import torch
    >>> def near_one(state):
    ...     return Evaluation(loss=0.0, accuracy=1 - abs(float(state["w"]) - 1), examples=1)
    >>> soup = greedy_soup([{"w": torch.tensor(w)} for w in (0.25, 1.25, 0.75)], near_one)
    >>> soup.members, soup.accuracy, [(trial.member, trial.accuracy) for trial in soup.history]
    ((1, 2), 1.0, [(1, 0.75), (2, 1.0), (0, 0.75)])
    """
    _require_members(states)
    alone = [_accuracy(evaluate(repaired_end(state, repair))) for state in states]
    first, *others = sorted(range(len(states)), key=lambda position: -alone[position])
    kept, soup, best = [first], uniform_soup([states[first]], repair=repair), alone[first]
    history = [Candidate(first, best, True)]
    for position in others:
        mixed = uniform_soup([states[member] for member in [*kept, position]], repair=repair)
        accuracy = _accuracy(evaluate(mixed))
        if accuracy >= best:
            kept, soup, best = [*kept, position], mixed, accuracy
        history.append(Candidate(position, accuracy, position in kept))
    return Soup(soup, tuple(kept), best, tuple(alone), tuple(history))


def soup_report(
    model: nn.Module,
    states: Sequence[StateLike],
    held_out: Data,
    test: Data,
    *,
    repair: Repair | None = None,
) -> SoupReport:
    """Measure members, uniform and greedy soup of ``states`` of ``model`` on held-out and on test data.

    Parameters
    ----------
    model
        The model that the states belong to; it is not changed.
    states
        One or more states, complete ``state_dict()``s or modules.
    held_out
        Data for choosing members (``own_data``).
    test
        Data that the results are reported on.
    repair
        Repair of BatchNorm's running statistics (``batch_norm.repair_for``), of members and soups alike.

    Returns
    -------
    SoupReport
        Accuracies on both, and the members of the greedy soup.

    Raises
    ------
    TypeError
        For states or data of the wrong type.
    ValueError
        For states that are not the model's, and as ``greedy_soup`` raises it.
    """
    states = fitting_states(model, states)
    held_out, test = as_examples(held_out, model=model, name="held_out"), as_examples(test, model=model, name="test")

    def on_held_out(state: Mapping[str, Tensor]) -> Evaluation:
        return evaluation.evaluate(model, held_out, state=state)

    def on_test(state: Mapping[str, Tensor]) -> float:
        return evaluation.evaluate(model, test, state=state).accuracy

    uniform = uniform_soup(states, repair=repair)
    greedy = greedy_soup(states, on_held_out, repair=repair)
    return SoupReport(
        held_out=greedy.alone,
        test=tuple(on_test(repaired_end(state, repair)) for state in states),
        best=greedy.members[0],
        uniform=(on_held_out(uniform).accuracy, on_test(uniform)),
        greedy=(greedy.accuracy, on_test(greedy.state)),
        members=greedy.members,
    )


def soup_of_fine_tunes(
    model: nn.Module,
    train: Examples,
    held_out: Examples,
    test: Examples,
    *,
    classes: Sequence[int],
    pretraining: TrainingRecipe,
    recipes: Sequence[TrainingRecipe],
    mask: MaskRecipe | None = None,
    repair: Repair | None = None,
    seed: int,
) -> SoupReport:
    """Pre-train on ``classes``, fine-tune on all classes once per recipe, and report the soups of the results.

    Calls that differ only in the mask have the same start and the same batch orders, to the bit: {name:
    soup_of_fine_tunes(..., mask=mask) for name, mask in (("vanilla", None), ("tna-pfn", recipe))} compares the methods.
    The head has an output for every class from the beginning and is pre-trained with the rest; it is not replaced,
    since the members of a soup must share its start as they share the body's.

    Parameters
    ----------
    model
        Model with the initial weights; it is not changed.
    train
        Training examples of all classes.
    held_out, test
        Examples for choosing members, and examples for reporting.
    classes
        Labels of the examples to pre-train on.
    pretraining
        How the start is trained.
    recipes
        How the members are trained, one recipe for each.
    mask
        Mask that all members share (TNA-PFN); pre-training is never masked. None trains everything.
    repair
        As for ``soup_report``.
    seed
        Seed of batch orders and dropout.

    Returns
    -------
    SoupReport
        Members in the order of ``recipes``.

    Raises
    ------
    ValueError
        For no recipe or an absent class.
    """
    if not recipes:
        raise ValueError("a soup of fine-tunes needs one or more training recipes; got none")
    model = deepcopy(model).to(train.device)
    part = train.take(positions_of_classes(train.labels, classes))
    start = fine_tune(model, read_state(model), part, pretraining, seed=seed, stream=("soup", "pretraining"))
    states = [
        fine_tune(model, start, train, recipe, mask=mask, seed=seed, stream=("soup", number))
        for number, recipe in enumerate(recipes)
    ]
    return soup_report(model, states, held_out, test, repair=repair)


def _require_members(states: Sequence[Mapping[str, Tensor]]) -> None:
    if not states:
        raise ValueError("a soup needs one or more states; got none")
    for state in states[1:]:
        require_fit(states[0], state)


def _accuracy(measured: Evaluation) -> float:
    if math.isnan(measured.accuracy):
        raise ValueError("a greedy soup compares held-out accuracies; got NaN (a regression, or no examples)")
    return measured.accuracy
