"""Evaluate the midpoint of two models, (w1 + w2) / 2, for the matching methods that optimise it."""

from collections.abc import Callable, Mapping
from copy import deepcopy

from torch import Tensor, nn

from fedpfn.evaluation import Evaluation, evaluate
from fedpfn.examples import Examples
from fedpfn.lmc.batch_norm import repair_for
from fedpfn.lmc.pairwise import InputBatches
from fedpfn.params import lerp


def midpoint_evaluator(
    model: nn.Module, first: Mapping[str, Tensor], examples: Examples
) -> Callable[[Mapping[str, Tensor]], Evaluation]:
    """Return the function that evaluates the midpoint of ``first`` and a second state on ``examples``.

    BatchNorm's statistics are re-estimated from the same examples: averaged ones fit neither network, and would
    drown out the effect of a permutation (REPAIR, Jordan et al. 2023). ``model`` is not changed.
    """
    scratch = deepcopy(model)
    repair = repair_for("reset", lambda: scratch, InputBatches(examples))

    def at(second: Mapping[str, Tensor]) -> Evaluation:
        middle = lerp(first, second, 0.5)
        return evaluate(scratch, examples, state=middle if repair is None else repair(middle, first))

    return at
