"""Sums of losses and scores at the inner points of many paths, from one product of the first layer per model.

This is the inner loop of ``path_evaluation``, which decides what is measured this way and the size of chunks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedpfn.evaluation import score
from fedpfn.examples import Examples
from fedpfn.lmc.barrier import Floats, Repair
from fedpfn.lmc.first_layer import SplitModel
from fedpfn.parallel import ModelPool
from fedpfn.params import State, lerp
from fedpfn.tasks import Task


@dataclass(frozen=True)
class Sizes:
    """Examples per chunk, examples held at once (complete chunks), points run at once; 0 is one after the other."""

    chunk: int
    block: int
    stack: int


@dataclass(frozen=True)
class _Batch:
    """A chunk of examples, and the first layer's inputs for it."""

    inputs: Tensor
    labels: Tensor
    entering: Tensor


@dataclass(frozen=True)
class _Path:
    """The inner points between two models, repaired with ``end``: their states without the first layer's tensors."""

    first: State
    second: State
    end: State
    inner: Floats
    repair: Repair | None

    def at(self, alpha: float) -> State:
        return self._repaired(lerp(self.first, self.second, alpha))

    def stack(self, alphas: Tensor) -> State:
        """Return the states at several points, along a new leading axis."""
        mixed = {name: _lerp_stack(self.second[name], tensor, alphas) for name, tensor in self.first.items()}
        # a repair uses the same tensors at all points
        return {
            name: tensor if tensor is mixed[name] else tensor.expand(len(alphas), *tensor.shape)
            for name, tensor in self._repaired(mixed).items()
        }

    def _repaired(self, mixed: State) -> State:
        return mixed if self.repair is None else self.repair(mixed, self.end)


@torch.no_grad()
def path_sums(
    pool: ModelPool,
    split: SplitModel,
    states: Mapping[int, Mapping[str, Tensor]],
    sources: Sequence[tuple[int, int, int]],
    examples: Examples,
    inner: Floats,
    repair: Repair | None,
    sizes: Sizes,
    done: Callable[[float], None],
) -> tuple[Tensor, Tensor, set[int]]:
    """Return the sums of ``score`` over the examples, (paths, inner points) each, and models whose products overflow.

    ``sources`` lists for each path its two models and the one that it is repaired with. ``done`` is called after each
    block of examples with its share of a point's evaluation.

    Products that overflow at an end may not overflow between the ends: for the paths of such a model the sums are
    incomplete.
    """
    splits = pool.replicate(split)
    remaining = {model: split.remaining(state) for model, state in states.items()}
    paths = [_Path(remaining[i], remaining[j], remaining[end], inner, repair) for i, j, end in sources]
    loss = torch.zeros((len(paths), len(inner)), dtype=torch.float64, device=examples.device)
    scores = torch.zeros_like(loss)
    alphas = torch.as_tensor(inner, device=examples.device)
    overflown: set[int] = set()

    blocks = -(-len(examples) // sizes.block)

    def count(points: int) -> None:
        done(points / blocks)

    def add(block: Examples) -> None:
        batches = list(_batches(split, block, sizes.chunk))
        results = pool.map(partial(_products, splits, batches), states.values())
        products = dict(zip(states, results, strict=True))
        overflown.update(_overflown(products))
        work = [
            (path, products[i], products[j], loss[row], scores[row])
            for row, (path, (i, j, _)) in enumerate(zip(paths, sources, strict=True))
            if not overflown & {i, j}
        ]
        pool.map(partial(_add_path, splits, batches, examples.task, sizes.stack, alphas, count), work)

    # one call per block, so that its products are freed before the next ones are computed
    for start in range(0, len(examples), sizes.block):
        add(examples.span(start, start + sizes.block))
    return loss, scores, overflown


def _batches(split: SplitModel, examples: Examples, chunk: int) -> Iterator[_Batch]:
    for inputs, labels in examples.batches(chunk):
        yield _Batch(inputs, labels, split.entering(inputs))


@torch.no_grad()
def _products(splits: Callable[[], SplitModel], batches: Sequence[_Batch], state: Mapping[str, Tensor]) -> list[Tensor]:
    split = splits()
    return [split.product(state, batch.entering) for batch in batches]


@torch.no_grad()
def _add_path(
    splits: Callable[[], SplitModel],
    batches: Sequence[_Batch],
    task: Task,
    stack: int,
    alphas: Tensor,
    count: Callable[[int], None],
    work: tuple[_Path, Sequence[Tensor], Sequence[Tensor], Tensor, Tensor],
) -> None:
    """Add up ``batches`` at a path's inner points, to its ``loss`` and ``scores``, (inner points,) each."""
    split = splits()
    path, first, second, loss, scores = work
    if not stack:
        for at, alpha in enumerate(path.inner.tolist()):
            split.load(path.at(alpha))
            for batch, one, other in zip(batches, first, second, strict=True):
                # a new tensor, since the rest of the model may write into it
                logits = split.logits(None, torch.lerp(other, one, alpha), batch.inputs)
                sums = score(logits, batch.labels, task)
                loss[at] += sums[0]
                scores[at] += sums[1]
            count(1)
        return
    for at in range(0, len(path.inner), stack):
        some = slice(at, at + stack)
        stacked = path.stack(alphas[some])
        for batch, one, other in zip(batches, first, second, strict=True):
            products = _lerp_stack(other, one, alphas[some])
            sums = split.stacked_scores(stacked, products, batch.inputs, batch.labels, task)
            loss[some] += sums[0]
            scores[some] += sums[1]
        count(len(alphas[some]))


def _lerp_stack(second: Tensor, first: Tensor, alphas: Tensor) -> Tensor:
    """Return alpha x1 + (1 - alpha) x2 for every alpha, along a new leading axis."""
    weights = alphas.to(first.dtype).view(-1, *[1] * first.dim())
    return torch.lerp(second[None], first[None], weights)


def _overflown(products: Mapping[int, Sequence[Tensor]]) -> set[int]:
    """Return the models that have a non-finite product, with one transfer for all."""
    models = [model for model, own in products.items() for _ in own]
    flags = [torch.isfinite(product).all() for own in products.values() for product in own]
    finite = torch.stack(flags).tolist() if flags else []
    return {model for model, is_finite in zip(models, finite, strict=True) if not is_finite}
