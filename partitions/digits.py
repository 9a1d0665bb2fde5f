"""The handwritten digits that scikit-learn carries in its package: 1,797 images of 8x8, no download.

Source: ``sklearn.datasets.load_digits`` (the test set of UCI's Optical Recognition of Handwritten Digits).
"""

import numpy as np

from partitions.arrays import Dataset, Request, Split


def load(request: Request) -> Dataset:
    """Return the digits as uint8 images (N, 1, 8, 8): 1,438 to train on, 359 to test on.

    Pixels 0..16 become round(255 x / 16). The split is a constant of the data set, no run's seed moves it: of each
    class, in the order of the file, every fifth example from the third on is for testing, which is round(n / 5) of n.
    """
    from sklearn.datasets import load_digits  # here, because it costs a second that most imports never need

    pixels, labels = load_digits(return_X_y=True)
    inputs = np.round(pixels * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = labels.astype(np.int64)
    for_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        for_test[np.flatnonzero(labels == label)[2::5]] = True
    train, test = (Split(inputs[chosen], labels[chosen]) for chosen in (~for_test, for_test))
    return Dataset("digits", train, test, 10)


def find_faults(request: Request) -> list[str]:
    """Return nothing: the digits come with scikit-learn."""
    return []
