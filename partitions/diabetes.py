"""Disease progression of 442 people with diabetes, from ten measurements: a regression, without a download.

Source: ``sklearn.datasets.load_diabetes`` (Efron et al. 2004, Least Angle Regression), whose files are part of the
scikit-learn package.
"""

import numpy as np
from numpy.typing import NDArray

from partitions.arrays import Dataset, Request, Split
from partitions.digits import packaged_file

TRAIN, TEST = 354, 88


def load(request: Request) -> Dataset:
    """Return ten features (N, 10) and one target (N,), float32: 354 examples to train on, 88 to test on.

    Features and target are standardised by mean and population standard deviation of the training split, so that the
    target's unit is its standard deviation, 77 points of the original scale. The split is a constant of the data set:
    in the order of the file, every fifth example, starting with the third, is for testing.
    """
    features = np.loadtxt(packaged_file("diabetes_data_raw.csv.gz"))
    target = np.loadtxt(packaged_file("diabetes_target.csv.gz"))
    for_test = np.zeros(len(target), dtype=bool)
    for_test[2::5] = True
    inputs, labels = (_standardised(values, ~for_test) for values in (features, target))
    train, test = (Split(inputs[chosen], labels[chosen]) for chosen in (~for_test, for_test))
    return Dataset("diabetes", train, test, 1)


def find_faults(request: Request) -> list[str]:
    """Return nothing: the data come with scikit-learn."""
    return []


def _standardised(values: NDArray[np.float64], of: NDArray[np.bool_]) -> NDArray[np.float32]:
    standardised: NDArray[np.float64] = (values - values[of].mean(axis=0)) / values[of].std(axis=0)
    return standardised.astype(np.float32)
