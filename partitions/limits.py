"""Limit a data set to a random subset before it is partitioned, for small trials."""

from dataclasses import replace

import numpy as np

from partitions.arrays import Dataset, Split


def limit(dataset: Dataset, *, rng: np.random.Generator, train: int = 0, test: int = 0) -> Dataset:
    """Return a data set with a limited number of examples.

    The splits are sampled separately and never mixed. With generators of the same seed, a smaller subset is contained
    in a larger one, and the choice of test examples does not depend on the number of training examples.

    Parameters
    ----------
    dataset
        The data set to draw from.
    rng
        Generator that draws the examples to keep.
    train, test
        Largest numbers of training and test examples; 0 keeps all.

    Returns
    -------
    Dataset
        The drawn examples, in their original order. The number of classes does not change, whichever classes are drawn.
    """
    train_rng, test_rng = rng.spawn(2)
    return replace(dataset, train=_draw(dataset.train, train, train_rng), test=_draw(dataset.test, test, test_rng))


def _draw(split: Split, count: int, rng: np.random.Generator) -> Split:
    if not 0 < count < len(split.labels):
        return split
    chosen = np.sort(rng.permutation(len(split.labels))[:count])
    return Split(split.inputs[chosen], split.labels[chosen])
