"""Measure barriers of many pairs, running each model's first layer once per example instead of once per point and pair.

At every inner point of a path the first layer's output is an interpolation of the two ends' (``first_layer``): K models
need K products, while plain evaluation computes one at each inner point of each pair. ``barrier`` defines what is
measured; its ``measure_pairs`` is the reference, and is used for a model that cannot be cut, a cut that does not save
time, a model whose products overflow, and BatchNorm's ``reset``.

Examples are processed in chunks that fit a cache, as many chunks at a time as the budget for the products of all models
allows. Chunks do not depend on the number of workers, and sums run over them in order, in float64. A GPU runs several
points of a path in one call, as many as fit its free memory.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from fedpfn.devices import float32_products, gpu_share
from fedpfn.evaluation import Evaluation, evaluate, mean_of
from fedpfn.examples import Examples
from fedpfn.lmc.barrier import (
    Curves,
    Pair,
    PairwiseBarriers,
    barriers_of,
    curve_of,
    grid,
    measure_pairs,
    repaired_end,
    worst_of,
)
from fedpfn.lmc.batch_norm import repair_for
from fedpfn.lmc.checks import StateLike, fitting_state, require_several
from fedpfn.lmc.first_layer import PROBE_EXAMPLES, SplitModel, split_model, takes_stacks
from fedpfn.lmc.path_sums import Sizes, path_sums
from fedpfn.own_data import Data, as_examples
from fedpfn.parallel import ModelPool
from fedpfn.progress import Progress, Steps

BUDGET = 256 * 1024**2  # bytes of products held at once on a CPU
FREE_PART = 0.4  # share of a GPU's free memory for products; a stack of models gets as much again
FEWEST_POINTS = 4  # in a stack: with fewer points, launching kernels costs more than the computation
CHUNK = 2 * 1024**2  # bytes of the largest feature map of a chunk of examples on a CPU: small enough for its caches
FEWEST, MOST = 16, 1000  # examples of a chunk
# cost of interpolating an entry, in products, estimated cautiously: on a CPU, a Linear of fan-in 4 and 200 units
# took 1.3 to 1.6 times as long as the interpolation of its output
INTERPOLATION = 4
LIVE = 4  # number of largest feature maps alive at once in a forward pass without gradients


def measure_paths(
    pool: ModelPool,
    states: Sequence[StateLike],
    examples: Data,
    *,
    points: int = 25,
    pairs: Sequence[Pair] | None = None,
    ends: Sequence[Evaluation] | None = None,
    batch_norm: str = "average",
    batches: Iterable[Tensor] = (),
    plain: bool = False,
    stacked: bool | None = None,
    budget: int | None = None,
    progress: Progress | None = None,
) -> PairwiseBarriers:
    """Return the same as ``measure_pairs`` for the pool's model, up to rounding, in less time.

    Parameters
    ----------
    pool
        Workers with copies of the model.
    states
        States of the model, complete ``state_dict()``s of it, or modules; only those in ``pairs`` are read.
    examples
        Data over which losses and scores are averaged (``own_data``).
    points, pairs
        As for ``measure_pairs``.
    ends
        Known evaluations of ``states`` under the BatchNorm policy; only those in ``pairs`` are read.
    batch_norm, batches
        The BatchNorm policy and its training data, as for ``repair_for``.
    plain
        Evaluate the complete model at every point: the slow reference.
    stacked
        Run several points of a path in one call by ``vmap``, if the model allows it; by default on a GPU.
    budget
        Bytes of products held at once, and of a stack of models; by default 256 MiB, or on a GPU a share of its free
        memory.
    progress
        Called with the number of evaluations done and the total; evaluations run together are reported in one call.

    Returns
    -------
    PairwiseBarriers
        In the order of ``pairs``.

    Raises
    ------
    TypeError
        For data or states of the wrong type.
    ValueError
        For a state that is not the model's, an even number of points, or ``reset`` without batches.
    """
    require_several(states)
    examples, alphas = as_examples(examples, model=pool.model).decoded(), grid(points)
    pairs = list(combinations(range(len(states)), 2)) if pairs is None else [(int(i), int(j)) for i, j in pairs]
    used = sorted({model for pair in pairs for model in pair})
    fitted: list[Mapping[str, Tensor]] = [
        fitting_state(pool.model, state, name=f"state {model}") if model in used else {}
        for model, state in enumerate(states)
    ]
    repair = repair_for(batch_norm, lambda: pool.model, batches)
    both_ways = repair is not None and batch_norm == "none"

    def measure(state: Mapping[str, Tensor]) -> Evaluation:
        return evaluate(pool.model, examples, state=state)

    inner, resets = alphas[1:-1], repair is not None and not both_ways
    # a path is run once for each model whose statistics it uses
    sources = [(i, j, end) for i, j in pairs for end in ((i, j) if both_ways else (i,))]
    done = Steps(progress, len(sources) * len(inner) + (len(used) if ends is None else 0))

    def measure_end(model: int) -> Evaluation:
        measured = measure(repaired_end(fitted[model], repair))
        done()
        return measured

    if ends is None:
        known = dict(zip(used, pool.map(measure_end, used), strict=True))
        ends = [known.get(model, Evaluation(float("nan"), float("nan"), 0)) for model in range(len(fitted))]

    def measure_inner(state: Mapping[str, Tensor]) -> Evaluation:
        measured = measure(state)
        done()
        return measured

    def measure_plainly(some: Sequence[Pair]) -> PairwiseBarriers:
        settings: dict[str, Any] = {"points": points, "repair": repair, "both_ways": both_ways}
        return measure_pairs(fitted, measure_inner, pairs=some, ends=ends, run_all=pool.map, **settings)

    split = None
    if pairs and len(examples) and not plain and not resets:
        (i, j), few = pairs[0], examples.span(0, PROBE_EXAMPLES)
        # with TF32, two ways to compute the same logits would look like two models
        with float32_products():
            split = split_model(pool.model, few.inputs, fitted[i], fitted[j])
    if split is None or not pays(split, models=len(used), paths=len(sources), inner=len(inner)):
        return measure_plainly(pairs)
    budget = free_budget(examples.device) if budget is None else budget
    sizes = _sizes(split, examples, fitted[i], stacked, models=len(used), points=len(inner), budget=budget)
    if sizes.stack:
        with float32_products():
            takes = takes_stacks(split, few, fitted[i], fitted[j])
        sizes = sizes if takes else replace(sizes, stack=0)
    chosen = {model: fitted[model] for model in used}
    loss, scores, overflown = path_sums(pool, split, chosen, sources, examples, inner, repair, sizes, done)

    left = [pair for pair in pairs if overflown & set(pair)]
    again = measure_plainly(left)
    done.finish()
    curves = dict(zip(left, map(partial(Curves, alphas), again.loss, again.accuracy, again.error), strict=True))
    ways = len(sources) // len(pairs)
    for at, (i, j) in enumerate(pairs):
        if (i, j) not in curves:
            rows = slice(at * ways, (at + 1) * ways)
            points_of = zip(loss[rows].T.tolist(), scores[rows].T.tolist(), strict=True)
            inside = [worst_of([mean_of(*sums, examples) for sums in zip(*point, strict=True)]) for point in points_of]
            curves[i, j] = curve_of(alphas, [ends[j], *inside, ends[i]])
    return barriers_of(pairs, alphas, [curves[pair] for pair in pairs])


def pays(split: SplitModel, *, models: int, paths: int, inner: int) -> bool:
    """Return whether one product per model and one interpolation per point cost less than one first layer per point.

    In products per entry of the layer's output: K f + 4 P n < P n f, for K models, fan-in f, and P paths of n inner
    points.
    """
    layers = paths * inner
    return models * split.fan_in + INTERPOLATION * layers < layers * split.fan_in


def _sizes(
    split: SplitModel,
    examples: Examples,
    state: Mapping[str, Tensor],
    stacked: bool | None,
    *,
    models: int,
    points: int,
    budget: int,
) -> Sizes:
    on_gpu = examples.device.type == "cuda"
    held = max(1, budget // (models * split.product_bytes))
    chunk = min(held, MOST if on_gpu else max(FEWEST, min(MOST, CHUNK // split.widest_bytes)))
    stacks = on_gpu if stacked is None else stacked
    if not stacks:
        return Sizes(chunk, held // chunk * chunk, 0)
    weights, an_example = sum(tensor.nbytes for tensor in state.values()), LIVE * split.widest_bytes
    # prefer fewer examples to fewer points
    capacity = (budget // FEWEST_POINTS - weights) // an_example
    chunk = min(chunk, max(FEWEST, capacity))
    fitting = max(FEWEST_POINTS, budget // (weights + an_example * chunk))
    return Sizes(chunk, held // chunk * chunk, even_stack(points, fitting))


def even_stack(points: int, maximum: int) -> int:
    """Return the size of stacks that divide ``points`` evenly into as few stacks of at most ``maximum`` as possible.

    >>> even_stack(23, 20), even_stack(23, 23), even_stack(23, 4)
    (12, 23, 4)
    """
    return -(-points // -(-points // maximum))


def free_budget(device: torch.device) -> int:
    """Return the bytes that products, or a stack of models, may take on ``device``.

    On a GPU they depend on the free memory, rounded down to a power of two: the sizes of chunks and stacks, and with
    them the last digits, must not change with a few megabytes more or less.
    """
    if device.type != "cuda":
        return BUDGET
    free, total = torch.cuda.mem_get_info(device)
    # memory that PyTorch has cached counts as free; a process that shares the GPU counts only its share
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    allowed = min(free, total * gpu_share() - torch.cuda.memory_allocated(device))
    return 1 << max(int(FREE_PART * allowed), 1).bit_length() - 1
