"""Says which examples a run left out, for readers of its numbers, and limits the number of cells.

Results on a part of the data must not be taken for results on all of it.
"""

from collections.abc import Sequence
from itertools import chain

from fedpfn.runs import Run
from fedpfn.runs.config import RunConfig
from partitions.datasets import FACTS

# in a sweep or an experiment: all are made and checked before the first one runs, which takes a millisecond each
MOST_CELLS = 50_000


def limit_words(config: RunConfig) -> list[str]:
    """Return the effects of a run's limits on examples, one line each, except for limits that leave out nothing.

    >>> limit_words(RunConfig.parse({"data.name": "mnist", "evaluate.max-examples": 1000, "barrier.every": 0}))
    ['evaluated on 1,000 of 10,000 test examples; the last round on all']
    """
    data, facts = config.data, FACTS.get(config.data.name)
    train, test = (None, None) if facts is None else (facts.train_examples, facts.test_examples)
    lines = []
    if trained := _share(train, data.train_examples):
        lines.append(f"trained on {trained} training examples")
    last = _share(test, data.test_examples)
    examples = _share(test, data.test_examples, config.evaluate.max_examples)
    if examples and examples != last:
        lines.append(f"evaluated on {examples} test examples; the last round on {last or 'all'}")
    elif last:
        lines.append(f"evaluated on {last} test examples")
    if config.barrier.every:
        total, used = (train, data.train_examples) if config.barrier.split == "train" else (test, data.test_examples)
        if measured := _share(total, used, config.barrier.max_examples):
            kind = "training" if config.barrier.split == "train" else "test"
            lines.append(f"barriers measured on {measured} {kind} examples")
    return lines


def limit_notes(runs: Sequence[Run]) -> list[str]:
    """Return the limits of ``runs``, each with the number of runs that it holds for unless it holds for all."""
    lines = list(chain.from_iterable(limit_words(run.config) for run in runs))
    counts = {line: lines.count(line) for line in lines}
    return [line if count == len(runs) else f"{line} ({count} of {len(runs)} runs)" for line, count in counts.items()]


def _share(total: int | None, *limits: int) -> str | None:
    """Return how many of ``total`` examples the tightest of ``limits`` leaves; None if it leaves all. 0 is no limit.

    >>> _share(10_000, 0, 500), _share(None, 500), _share(300, 500), _share(300, 0)
    ('500 of 10,000', 'at most 500', None, None)
    """
    limit = min((limit for limit in limits if limit), default=None)
    if limit is None or (total is not None and limit >= total):
        return None
    return f"at most {limit:,}" if total is None else f"{limit:,} of {total:,}"


def rough(count: int) -> str:
    """Return a count as readable text, or only the magnitude of a very large one."""
    return f"{count:,}" if count < 10**15 else f"more than 10^{len(str(min(count, 10**4000))) - 1}"
