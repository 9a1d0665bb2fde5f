"""Two regressions of arXiv 2402.01342 (table 4): y = 2 x^2 - 1 and y = (x - 3)^3, small enough for a one-layer MLP.

Train one with ``fedpfn.training`` on ``build("mlp", (1,), 1, hidden=1)``; its loss is the mean squared error.

[inferred] The paper does not give the domains. [-1, 1] and [2, 4] are those of arXiv 1906.00695 for its three
polynomials, which include these two; with them both targets cover [-1, 1]. Inputs are not standardised and labels have
no noise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpfn.examples import Examples
from fedpfn.seeding import numpy_generator


@dataclass(frozen=True)
class Polynomial:
    """y = ``value(x)`` for x in [``low``, ``high``]."""

    value: Callable[[Tensor], Tensor]
    low: float
    high: float


POLYNOMIALS: dict[str, Polynomial] = {
    "quadratic": Polynomial(lambda x: 2 * x**2 - 1, -1.0, 1.0),
    "cubic": Polynomial(lambda x: (x - 3) ** 3, 2.0, 4.0),
}


def polynomial_examples(
    name: str, *, seed: int, train: int = 1000, test: int = 1000, device: torch.device | str = "cpu"
) -> tuple[Examples, Examples]:
    """Return training and test examples of the polynomial ``name``.

    x is drawn uniformly from the domain, independently for each split.

    Parameters
    ----------
    name
        ``quadratic`` or ``cubic``.
    seed
        Seed of the inputs.
    train, test
        Number of examples in each split, 1 or more.
    device
        Device of the examples.

    Returns
    -------
    tuple of Examples
        Training and test examples: inputs (N, 1), labels (N,), float32.

    Raises
    ------
    ValueError
        For an unknown name and for an empty split.

    Examples
    --------
    >>> train, test = polynomial_examples("cubic", seed=0, train=5, test=3)
    >>> train.inputs.shape, test.labels.shape
    (torch.Size([5, 1]), torch.Size([3]))
    """
    if name not in POLYNOMIALS:
        raise ValueError(f"unknown polynomial {name!r}; expected one of {', '.join(POLYNOMIALS)}")
    if train < 1 or test < 1:
        raise ValueError(f"train and test need at least one example each; got {train} and {test}")
    task = POLYNOMIALS[name]
    splits = []
    for split, count in (("train", train), ("test", test)):
        drawn = numpy_generator(seed, "polynomial", name, split).uniform(task.low, task.high, (count, 1))
        inputs = torch.from_numpy(drawn).float()
        # computed from the rounded inputs in float64, so that a label is exact to the last bit of float32
        labels = task.value(inputs.double()).float()
        splits.append(Examples(inputs.to(device), labels[:, 0].to(device)))
    return splits[0], splits[1]
