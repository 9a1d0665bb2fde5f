"""Activation matching: pair units by their features on examples.

For each permutation, maximise tr(P^T C) with C = E[h_A h_B^T], where h are the features of its units after the
activation (Git Re-Basin, section 3.1). The permutations are independent: one linear assignment each.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from fedpfn.examples import Examples
from fedpfn.forward import watching
from fedpfn.lmc.matching.permutations import (
    PermutationSpec,
    apply_permutations,
    identity_permutations,
    require_pair,
)
from fedpfn.lmc.matching.weights import Matching, solve_assignment
from fedpfn.params import State, write_state
from fedpfn.progress import Progress, Steps


def activation_matching(
    spec: PermutationSpec,
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    examples: Examples,
    *,
    batch_size: int = 500,
    movable: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> Matching:
    """Return the matching of ``second`` to ``first`` by their features on ``examples``, in one sweep.

    Parameters
    ----------
    spec
        The hidden units of the architecture.
    model
        Determines the architecture; it is not changed.
    first, second
        The state that stays and the state that is renumbered, of equal shapes and dtypes, on the same device.
    examples
        Examples to compare the features on; only their inputs are read.
    batch_size
        Number of examples per forward pass.
    movable
        Boolean tensors, one per permutation, of shape (units,), True for units that may move; None lets all move.
    progress
        Called with the number of batches done and the total.

    Returns
    -------
    Matching
        ``objective`` is the sum over the permutations of tr(P^T C), at the identity and at the result.

    Raises
    ------
    ValueError
        For states that are not the spec's, differ from each other in shape, dtype or device, or are not finite, for
        features that are not finite, a permutation whose features the spec does not locate, and no examples.

    Examples
    --------
    >>> from fedpfn.lmc.matching.specs import spec_for
    >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> first = {"0.weight": torch.tensor([[1.0], [-1.0]]), "2.weight": torch.tensor([[1.0, 2.0]])}
    >>> second = {"0.weight": torch.tensor([[-1.0], [1.0]]), "2.weight": torch.tensor([[2.0, 1.0]])}
    >>> examples = Examples(torch.tensor([[1.0], [-2.0]]), torch.tensor([0, 0]))
    >>> matching = activation_matching(spec_for(model), model, first, second, examples)
    >>> matching.permutations, matching.objective
    ({'0': tensor([1, 0])}, (0.0, 2.5))
    """
    require_pair(spec, first, second)
    gains = feature_products(spec, model, first, second, examples, batch_size=batch_size, progress=progress)
    identity = identity_permutations(spec)
    permutations = {
        name: solve_assignment(gains[name], identity[name], movable=None if movable is None else movable[name])
        for name in spec.sizes
    }
    objective = tuple(
        sum((float(gains[name].cpu()[identity[name], chosen[name]].sum()) for name in gains), 0.0)
        for chosen in (identity, permutations)
    )
    return Matching(permutations, apply_permutations(spec, permutations, second), 1, objective)


@torch.no_grad()
def feature_products(
    spec: PermutationSpec,
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    examples: Examples,
    *,
    batch_size: int = 500,
    progress: Progress | None = None,
) -> State:
    """Return C = E[h_A h_B^T] (n, n) of every permutation, h taken in evaluation mode, summed in float64.

    The mean is over examples, and over the positions of a convolution's map.
    """
    if len(examples) == 0:
        raise ValueError("activation matching compares features on examples; got none")
    if silent := sorted(spec.sizes.keys() - spec.features.keys()):
        raise ValueError(f"{silent[0]}: the specification names no module whose output contains its units' features")
    ours, theirs = deepcopy(model).eval(), deepcopy(model).eval()
    write_state(ours, first)
    write_state(theirs, second)
    sums: State = {}
    counts = dict.fromkeys(spec.sizes, 0)
    with _recorded(ours, spec) as ours_seen, _recorded(theirs, spec) as theirs_seen:
        done = Steps(progress, -(-len(examples) // batch_size))
        for inputs, _ in examples.batches(batch_size):
            ours(inputs)
            theirs(inputs)
            for name in spec.sizes:
                product = ours_seen[name] @ theirs_seen[name].T
                sums[name] = sums[name] + product if name in sums else product
                counts[name] += ours_seen[name].shape[1]
            done()
    for name, total in sums.items():
        if not bool(torch.isfinite(total).all()):
            raise ValueError(f"{name}: the features hold NaN or infinity, which cannot be matched")
    return {name: total / counts[name] for name, total in sums.items()}


@contextmanager
def _recorded(model: nn.Module, spec: PermutationSpec) -> Iterator[State]:
    """Yield a dict that holds the features of every permutation, (units, values), after each forward pass."""
    seen: State = {}
    calls: Counter[tuple[str, bool]] = Counter()

    def take(path: str, tensor: object, *, entering: bool) -> None:
        number = calls[path, entering]
        calls[path, entering] += 1
        for name, features in spec.features.items():
            here = (features.module, features.call, features.entering) == (path, number, entering)
            if here and isinstance(tensor, Tensor):
                # converted to float64 at once: a later module may work in place
                units = tensor.detach().double().movedim(features.axis, 0)
                if units.shape[0] % spec.sizes[name]:
                    raise ValueError(f"{name}: {spec.sizes[name]} units, but features of shape {tuple(tensor.shape)}")
                seen[name] = units.reshape(spec.sizes[name], -1)

    def start(path: str, module: nn.Module, tensor: object) -> None:
        if module is model:
            calls.clear()
        take(path, tensor, entering=True)

    def stop(path: str, module: nn.Module, output: object) -> None:
        take(path, output, entering=False)

    paths = dict.fromkeys(["", *(features.module for features in spec.features.values())])
    with watching([(path, model.get_submodule(path)) for path in paths], start, stop):
        yield seen
