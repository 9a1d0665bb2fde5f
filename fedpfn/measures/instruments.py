"""What the measures of a round use: models to run, examples, and settings of evaluation and barriers.

Measures of a round share costly results (client models, evaluation, connectivity), which are computed once per round,
when the first measure needs them. ``table`` lists the measures; ``fedpfn.lmc`` defines barriers.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpfn.devices import available_cpus
from fedpfn.drift import Drift, measure_drift
from fedpfn.evaluation import Evaluation, shares_by_class
from fedpfn.examples import Examples
from fedpfn.lmc import (
    Connectivity,
    InputBatches,
    PairwiseBarriers,
    barriers_to,
    measure_connectivity,
    repair_for,
)
from fedpfn.lmc.layerwise import LayerCosines, layer_cosines
from fedpfn.measures.clients import HeldOut
from fedpfn.packing import is_packed
from fedpfn.parallel import ModelPool
from fedpfn.params import State
from fedpfn.rounds import Round
from fedpfn.seeding import numpy_generator
from fedpfn.tasks import Task

Result = TypeVar("Result")

_CHUNK = 1000


@dataclass(frozen=True, eq=False)
class Instruments:
    """The resources and settings of measures; the same for all rounds of a run.

    Attributes
    ----------
    pool
        Workers with copies of the model; ``model`` is the calling thread's.
    test
        Examples that the global model is evaluated on.
    measured_on
        Examples that barriers are measured on.
    batches
        Input batches of training data, from which BatchNorm's statistics are re-estimated (``batch_norm="reset"``).
    num_classes
        Number of classes; 0 counts those among the test labels. Not used if labels are not classes.
    seed
        Seed of the draws of examples and pairs.
    rounds
        Number of the last round, which is always evaluated on all of ``test``; 0 if unknown.
    evaluate_every
        Rounds between two evaluations of the global model, starting with round 0; 0 = only the last round.
    evaluate_max_examples
        Number of test examples of an evaluation in all rounds but the last, drawn once; 0 = all.
    barrier_every
        Rounds between two measurements of barriers; 0 = never.
    points
        Number of points of a path, both ends included; odd.
    max_pairs
        Number of pairs of clients measured in a round, drawn anew each time; 0 = all.
    batch_norm
        BatchNorm policy on a path: ``average``, ``reset`` or ``none``.
    layers
        Whether layerwise connectivity is measured too.
    held_out
        The examples that clients hold out for testing; None if they hold out none.
    """

    pool: ModelPool
    test: Examples
    measured_on: Examples
    batches: Iterable[Tensor] = ()
    num_classes: int = 0
    seed: int = 0
    rounds: int = 0
    evaluate_every: int = 1
    evaluate_max_examples: int = 0
    barrier_every: int = 1
    points: int = 25
    max_pairs: int = 0
    batch_norm: str = "average"
    layers: bool = False
    held_out: HeldOut | None = None
    _results: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        *,
        train: Examples,
        test: Examples,
        barrier_split: str = "test",
        barrier_max_examples: int = 2000,
        seed: int = 0,
        workers: int | None = None,
        **settings: Any,
    ) -> "Instruments":
        """Return instruments for ``model``, with examples drawn from the seed.

        Parameters
        ----------
        model
            The model that the states of rounds belong to.
        train, test
            All examples of the two splits.
        barrier_split
            Split that barriers are measured on, ``"test"`` or ``"train"``.
        barrier_max_examples
            Number of examples of an evaluation on a path, and of a BatchNorm reset; 0 = all.
        seed
            Seed of the run.
        workers
            Number of CPU threads, all cores by default.
        **settings
            The other attributes, by name.
        """
        split = {"test": test, "train": train}[barrier_split]
        measured_on = split.take(sample(len(split), barrier_max_examples, seed, "barrier"))
        reset_on = train.take(sample(len(train), barrier_max_examples, seed, "batch-norm"))
        return cls(
            pool=ModelPool(model, workers=workers or available_cpus()),
            test=test,
            measured_on=measured_on.decoded(),
            batches=InputBatches(reset_on),
            seed=seed,
            **settings,
        )

    @property
    def task(self) -> Task:
        """The task, whose loss and score measure the model."""
        return self.test.task

    @property
    def model(self) -> nn.Module:
        """The calling thread's model. Measures run it with other tensors and do not change it."""
        return self.pool.model

    def evaluates(self, number: int) -> bool:
        """Return whether the global model is evaluated in round ``number``."""
        every = self.evaluate_every
        return bool(every and number % every == 0) or (number > 0 and number == self.rounds)

    def ending_with(self, number: int) -> "Instruments":
        """Return the same instruments for a run whose last round is ``number``, with the results measured so far."""
        ended = replace(self, rounds=number, _results={})
        ended._results.update(self._results)
        return ended

    def measures_barriers(self, number: int) -> bool:
        """Return whether barriers are measured in round ``number``."""
        every = self.barrier_every
        return number > 0 and every > 0 and number % every == 0

    def test_examples(self, round: Round) -> Examples:
        """Return the examples that a round's global model is evaluated on: all in the last round, else the sample."""
        return self.test if round.server_round == self.rounds else self._test_sample

    def evaluation(self, round: Round) -> Evaluation | None:
        """Return loss and score of the global model after the round; None in a round without an evaluation."""
        if not self.evaluates(round.server_round):
            return None
        return self._evaluated(round, self.test_examples(round))[0]

    def regular_evaluation(self, round: Round) -> Evaluation | None:
        """Return loss and score on the sample, as in rounds before the last; None in a round without them."""
        every = self.evaluate_every
        if not every or round.server_round % every:
            return None
        return self._evaluated(round, self._test_sample)[0]

    def class_accuracy(self, round: Round) -> list[float] | None:
        """Return the share of right answers in each class, NaN without examples; None if there are no classes.

        For examples with several labels: the share of examples in which each label is predicted right.
        """
        examples = self.test_examples(round)
        if not _has_classes(examples) or not len(examples):
            return None
        labels = examples.labels
        count = labels.shape[1] if labels.dim() > 1 else self.num_classes or int(labels.max()) + 1
        return shares_by_class(self._evaluated(round, examples)[1], examples, count)

    def client_accuracies(self, round: Round) -> list[float] | None:
        """Return the global model's accuracy on each client's held-out examples, by ascending client id.

        Clients without held-out examples are left out; None if no client has any, or if the task has no accuracy.
        """
        held_out = self.held_out
        if held_out is None or not _has_classes(held_out.examples):
            return None
        _, scores = self._evaluated(round, held_out.examples)
        return held_out.by_client(scores.double().reshape(len(scores), -1).mean(dim=1).cpu().numpy())

    def _evaluated(self, round: Round, examples: Examples) -> tuple[Evaluation, Tensor]:
        """Return the evaluation and the scores of its examples or their labels, from one pass."""

        def compute() -> tuple[Evaluation, Tensor]:
            marks: list[Tensor] | None = [] if _has_classes(examples) else None
            evaluation = self.pool.evaluate(round.after, examples, chunk=_CHUNK, marks=marks)
            scores = torch.cat(marks) if marks else torch.zeros(0, dtype=torch.bool)
            return evaluation, scores

        held_out = self.held_out is not None and examples is self.held_out.examples
        on = "what is held out" if held_out else "all" if examples is self.test else "a sample"
        return self.once(round, f"evaluation on {on}", compute)

    def client_states(self, round: Round) -> list[State]:
        """Return the client models of the round, in the order of its contributions."""
        return self.once(round, "client_states", round.states)

    def drift(self, round: Round) -> Drift | None:
        """Return norms and mean cosine of the client updates over the parameters; None without clients."""
        if round.drift is not None or not all(contribution.arrays for contribution in round.contributions):
            return round.drift
        if not round.contributions:
            return None
        return self.once(round, "drift", lambda: self._drift(round))

    def _drift(self, round: Round) -> Drift:
        packed = all(is_packed(contribution.arrays) for contribution in round.contributions)
        # frozen entries do not move: packed entries hold the complete update
        states = (c.arrays for c in round.contributions) if packed else self._each_client_state(round)
        weights = [contribution.examples for contribution in round.contributions]
        return measure_drift(round.updates(), states, weights, names=round.parameters or None)

    def connectivity(self, round: Round) -> Connectivity | None:
        """Return the connectivity of the round's client models; None for fewer than two of them."""
        if len(round.contributions) < 2:
            return None
        return self.once(round, "connectivity", lambda: self._connectivity(round))

    def client_to_global(self, round: Round) -> PairwiseBarriers | None:
        """Return the barriers between each client model and the global model after the round; None without clients."""
        if not round.contributions:
            return None
        connectivity = self.connectivity(round)
        ends = None if connectivity is None else connectivity.ends
        return self.once(
            round,
            "client_to_global",
            lambda: self._barriers_to(self.client_states(round), round.after, ends=ends),
        )

    def round_to_round(self, round: Round) -> PairwiseBarriers | None:
        """Return the barrier between the global model after the round and the one before; None for round 0."""
        if round.server_round == 0:
            return None
        return self.once(round, "round_to_round", lambda: self._barriers_to([round.after], round.before))

    def layer_cosines(self, round: Round) -> LayerCosines | None:
        """Return the layerwise connectivity of the measured pairs, if ``layers`` is set."""
        connectivity = self.connectivity(round) if self.layers else None
        if connectivity is None:
            return None
        pairs = [(int(first), int(second)) for first, second in connectivity.barriers.pairs]
        repair = repair_for(self.batch_norm, lambda: self.model, self.batches)
        return self.once(
            round,
            "layer_cosines",
            lambda: layer_cosines(self.model, self.client_states(round), pairs, self.measured_on, repair=repair),
        )

    def pairs(self, round: Round) -> list[tuple[int, int]]:
        """Return the pairs of clients whose barriers are measured, as indices into the round's contributions."""
        pairs = list(combinations(range(len(round.contributions)), 2))
        chosen = sample(len(pairs), self.max_pairs, self.seed, "pairs", round.server_round)
        return [pairs[position] for position in chosen]

    def forget(self) -> None:
        """Release the client models and results of the last round."""
        self._results.clear()

    def close(self) -> None:
        """End the workers."""
        self.pool.close()

    @cached_property
    def _test_sample(self) -> Examples:
        total, maximum = len(self.test), self.evaluate_max_examples
        return self.test.take(sample(total, maximum, self.seed, "evaluate")) if 0 < maximum < total else self.test

    def once(self, round: Round, name: str, compute: Callable[[], Result]) -> Result:
        """Return the result of ``compute``, which is called once per round and name."""
        if self._results.get("round") is not round:
            self._results.clear()
            self._results["round"] = round
        if name not in self._results:
            self._results[name] = compute()
        result: Result = self._results[name]
        return result

    def _each_client_state(self, round: Round) -> Iterator[State]:
        """Yield the client models, building one at a time unless all are needed anyway."""
        if self.measures_barriers(round.server_round):
            yield from self.client_states(round)
        else:
            yield from map(round.state, round.contributions)

    def _connectivity(self, round: Round) -> Connectivity:
        return measure_connectivity(
            self.pool,
            self.client_states(round),
            self.measured_on,
            points=self.points,
            pairs=self.pairs(round),
            batch_norm=self.batch_norm,
            batches=self.batches,
        )

    def _barriers_to(
        self, states: list[State], target: State, *, ends: list[Evaluation] | None = None
    ) -> PairwiseBarriers:
        return barriers_to(
            self.pool,
            states,
            target,
            self.measured_on,
            points=self.points,
            batch_norm=self.batch_norm,
            batches=self.batches,
            ends=ends,
        )


def _has_classes(examples: Examples) -> bool:
    """Return whether each class, or each of several labels, has an accuracy."""
    return examples.task.has_accuracy and examples.task.labels != "values"


def sample(total: int, maximum: int, seed: int, *purpose: int | str) -> NDArray[np.int64]:
    """Return ``maximum`` of ``total`` indices, ascending; all of them if ``maximum`` is 0 or not below ``total``.

    >>> sample(3, 0, 1, "barrier").tolist(), len(sample(100, 5, 1, "barrier"))
    ([0, 1, 2], 5)
    """
    if not maximum or maximum >= total:
        return np.arange(total)
    return np.sort(numpy_generator(seed, *purpose).choice(total, size=maximum, replace=False))
