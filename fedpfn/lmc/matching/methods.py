"""``match``: the matching methods by name."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from torch import Tensor, nn

from fedpfn.examples import Examples
from fedpfn.lmc.matching.activations import activation_matching
from fedpfn.lmc.matching.annealing import simulated_annealing
from fedpfn.lmc.matching.specs import spec_for
from fedpfn.lmc.matching.straight_through_estimator import straight_through
from fedpfn.lmc.matching.weights import Matching, weight_matching

METHODS: dict[str, Callable[..., Matching]] = {
    "weight": weight_matching,
    "activation": activation_matching,
    "ste": straight_through,
    "annealing": simulated_annealing,
}


def match(
    method: str,
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    examples: Examples | None = None,
    *,
    seed: int = 0,
    **options: Any,
) -> Matching:
    """Return the matching of ``second`` to ``first`` by one of ``METHODS``.

    Parameters
    ----------
    method
        ``weight``, ``activation``, ``ste`` or ``annealing``.
    model
        The model that the states belong to; it is not changed.
    first, second
        The state that stays and the state that is renumbered, of equal shapes and dtypes, on the same device.
    examples
        Data on which the methods compare models; ``weight`` needs none. The first example also runs through the model
        to find its permutations (``spec_for``); with None an artificial one is used.
    seed
        Seed of the method's random draws; ``activation`` draws nothing.
    **options
        The method's own options (``max_sweeps``, ``steps``, ``lr``, ...), and ``progress`` for all methods.

    Returns
    -------
    Matching
        The matching, with sweeps and objective as the method defines them.

    Raises
    ------
    ValueError
        For an unknown method or option, missing examples, a model without a specification, and anything that the method
        itself refuses.

    Examples
    --------
    >>> from fedpfn.models import build
    >>> from fedpfn.params import read_state
    >>> model = build("mlp", (4,), 2, seed=0, hidden=1, width=3)
    >>> match("weight", model, read_state(model), read_state(model)).permutations
    {'linear1': tensor([0, 1, 2])}
    """
    if method not in METHODS:
        raise ValueError(f"unknown matching method {method!r}; expected one of {', '.join(METHODS)}")
    known = signature(METHODS[method]).parameters
    own = [name for name, parameter in known.items() if parameter.kind is parameter.KEYWORD_ONLY]
    if unknown := sorted(options.keys() - set(own)):
        raise ValueError(f"matching method {method!r} takes no {unknown[0]!r}; its options are {', '.join(own)}")
    given: dict[str, Any] = {"model": model, "examples": examples, "seed": seed}
    given = {name: value for name, value in given.items() if name in known}
    if "examples" in given and examples is None:
        raise ValueError(f"matching method {method!r} compares models on examples; got none")
    spec = spec_for(model, None if examples is None else examples.batch(slice(0, 1))[0])
    return METHODS[method](spec=spec, first=first, second=second, **given, **options)
