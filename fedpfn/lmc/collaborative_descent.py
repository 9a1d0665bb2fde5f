"""ColD fusion: many tasks improve a shared base, fine-tuning it separately and averaging it (Don-Yehiya et al. 2023).

In round t contributor i fine-tunes the base w_t on its own data with its own head, giving w_i; the next base is the
plain average w_{t+1} = 1/n sum_i w_i. Data and heads are never shared. With a mask (TNA-PFN, arXiv 2402.01342) all
contributors of a round train the same subspace of the base: one fresh mask per round, heads in full.
Our readings: a contributor keeps its head from round to round, and every contributor takes part in every round.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
from torch import Tensor, nn

from fedpfn.evaluation import evaluate
from fedpfn.examples import Examples
from fedpfn.lmc.barrier import Floats
from fedpfn.lmc.fine_tuning import TrainingRecipe, fine_tune
from fedpfn.masks import MaskRecipe, split_patterns
from fedpfn.params import State, mean_state, read_state, require_fit
from fedpfn.seeding import derive, torch_seed

MakeModel = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Task:
    """A contributor's data set: training and test examples.

    Parameters
    ----------
    train, test
        Examples with integer labels 0..num_classes-1, one or more of each.
    num_classes
        Number of classes, and of outputs of the task's head.

    Raises
    ------
    ValueError
        For no examples, and labels that are not integers or lie outside the range.
    """

    train: Examples
    test: Examples
    num_classes: int

    def __post_init__(self) -> None:
        for part, labels in (("train", self.train.labels), ("test", self.test.labels)):
            if not len(labels) or labels.is_floating_point():
                raise ValueError(f"the {part} examples of a task need integer labels; got {len(labels)} {labels.dtype}")
            lowest, highest = int(labels.min()), int(labels.max())
            if not 0 <= lowest <= highest < self.num_classes:
                raise ValueError(
                    f"{part} labels of a task with {self.num_classes} classes must lie within "
                    f"[0, {self.num_classes - 1}]; got {lowest} to {highest}"
                )


@dataclass(frozen=True)
class ColdFusion:
    """The result of ColD fusion, with accuracies on the tasks' test data.

    Attributes
    ----------
    base
        The fused base of the last round.
    heads
        Each task's last head.
    before
        Accuracy before fusion, (rounds, tasks): each contributor's own model on its own task.
    after
        Accuracy after fusion, (rounds, tasks): the average with that task's own head.
    """

    base: State
    heads: tuple[State, ...]
    before: Floats
    after: Floats


def cold_fusion(
    make: MakeModel,
    tasks: Sequence[Task],
    recipe: TrainingRecipe,
    *,
    rounds: int,
    head: str = "head.*",
    base: Mapping[str, Tensor] | None = None,
    mask: MaskRecipe | None = None,
    seed: int,
) -> ColdFusion:
    """Fuse the fine-tuned bases of ``tasks`` for ``rounds`` rounds.

    Parameters
    ----------
    make
        ``make(num_classes)`` makes a model.
    tasks
        One or more tasks, one per contributor.
    recipe
        How each contributor trains in a round.
    rounds
        Number of rounds, 1 or more.
    head
        Parameters and buffers whose names match these comma-separated shell patterns stay with the contributor; all
        others are the base.
    base
        The initial base; None takes the base of the first task's model.
    mask
        Mask of the base; the head is never masked. Its seed gives a stream with one mask per round. None trains
        everything.
    seed
        Seed of initial weights, batch orders and dropout.

    Returns
    -------
    ColdFusion
        After the last round, with accuracies of all rounds.

    Raises
    ------
    ValueError
        For no task or round, models whose bases differ, and patterns that leave no head or no base.

    Examples
    --------
    >>> import torch
    >>> def make(num_classes):
    ...     return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, num_classes))
    >>> examples = Examples(torch.eye(2), torch.tensor([0, 1]))
    >>> tasks = [Task(examples, examples, 2), Task(examples, examples, 4)]
    >>> fused = cold_fusion(make, tasks, TrainingRecipe(lr=0.1), rounds=5, head="2.*", seed=0)
    >>> list(fused.base), [tuple(last["2.weight"].shape) for last in fused.heads], fused.after.shape
    (['0.weight', '0.bias'], [(2, 3), (4, 3)], (5, 2))
    """
    if not tasks or rounds < 1:
        raise ValueError(f"ColD fusion needs one or more tasks and rounds; got {len(tasks)} tasks, {rounds} rounds")
    models = [_make(make, task, seed) for task in tasks]
    parts = [split_state(read_state(model), head) for model in models]
    heads = [part for _, part in parts]
    start = parts[0][0] if base is None else base
    for number, (own, _) in enumerate(parts):
        _require_base(own, start, f"task {number}")
    fused = {name: start[name].to(tensor.device) for name, tensor in parts[0][0].items()}
    before, after = np.zeros((rounds, len(tasks))), np.zeros((rounds, len(tasks)))
    for turn in range(rounds):
        shared = None if mask is None else _round_mask(mask, turn, head)
        bases: list[State] = []
        for number, (model, task) in enumerate(zip(models, tasks, strict=True)):
            stream = ("cold fusion", turn, number)
            tuned = fine_tune(model, fused | heads[number], task.train, recipe, mask=shared, seed=seed, stream=stream)
            before[turn, number] = evaluate(model, task.test, state=tuned).accuracy
            body, heads[number] = split_state(tuned, head)
            bases.append(body)
        fused = mean_state(bases)
        for number, (model, task) in enumerate(zip(models, tasks, strict=True)):
            after[turn, number] = evaluate(model, task.test, state=fused | heads[number]).accuracy
    return ColdFusion(fused, tuple(heads), before, after)


def probe(
    make: MakeModel,
    base: Mapping[str, Tensor],
    task: Task,
    recipe: TrainingRecipe,
    *,
    head: str = "head.*",
    frozen: bool = True,
    seed: int,
) -> float:
    """Return the test accuracy of ``base`` on a task, seen or not, with a fresh head trained on top of it.

    Parameters
    ----------
    make
        As for ``cold_fusion``.
    base
        Parameters and buffers of the base by name.
    task
        Task that the head is trained and measured on.
    recipe
        How it is trained.
    head
        As for ``cold_fusion``.
    frozen
        Whether the base and its running statistics stay fixed (linear probing); otherwise the base is fine-tuned with
        the head.
    seed
        Seed of the fresh head, the batch order and dropout. Bases probed with the same seed start with the same head.

    Returns
    -------
    float
        The accuracy, a share within [0, 1].

    Raises
    ------
    ValueError
        For a base that does not fit the model, and patterns that leave no head or no base.
    """
    model = _make(make, task, seed)
    body, fresh = split_state(read_state(model), head)
    _require_base(body, base, "the task probed")
    held = MaskRecipe(seed=0, ratio=1.0, exclude=head) if frozen else None
    tuned = fine_tune(model, dict(base) | fresh, task.train, recipe, mask=held, seed=seed, stream=("probe",))
    if frozen:
        tuned = dict(base) | split_state(tuned, head)[1]
    return evaluate(model, task.test, state=tuned).accuracy


def split_state(state: Mapping[str, Tensor], head: str) -> tuple[State, State]:
    """Return (base, head): the tensors whose names match no pattern of ``head``, and those that match one.

    Raises ``ValueError`` if either is empty.

    >>> [list(part) for part in split_state({"body.weight": Tensor(), "head.weight": Tensor()}, "head.*")]
    [['body.weight'], ['head.weight']]
    """
    patterns = split_patterns(head)
    chosen = {name for name in state if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not 0 < len(chosen) < len(state):
        matched = "all" if chosen else "none"
        raise ValueError(
            f"head={head!r} must match some, but not all, of the model's tensors; it matches {matched}: {list(state)}"
        )
    return (
        {name: tensor for name, tensor in state.items() if name not in chosen},
        {name: tensor for name, tensor in state.items() if name in chosen},
    )


def _make(make: MakeModel, task: Task, seed: int) -> nn.Module:
    # one stream for all models, so that parameters that never train (requires_grad=False) are equal in every base
    with torch_seed(seed, "cold fusion", "model"):
        return make(task.num_classes).to(task.train.device)


def _require_base(own: Mapping[str, Tensor], base: Mapping[str, Tensor], task: str) -> None:
    try:
        require_fit(own, base)
    except ValueError as error:
        raise ValueError(f"the base does not fit the model of {task}: {error}") from error


def _round_mask(mask: MaskRecipe, turn: int, head: str) -> MaskRecipe:
    return replace(mask, seed=derive(mask.seed, "cold fusion", turn), exclude=f"{mask.exclude},{head}")
