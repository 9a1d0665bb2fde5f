"""What LLFC at the output implies for the errors along a path (Zhou et al. 2023, lemma 1).

If c f(w(a)) = a f(w1) + (1 - a) f(w2) for the logits, an example that both ends get right is right on the entire path:
the right class leads in both terms. So the error of the path is at most the sum of the ends' errors, at most 2 eps if
each is at most eps.
"""


def path_error_bound(first: float, second: float) -> float:
    """Return 2 max(first, second), at most 1: the bound on any error on the path under LLFC at the output.

    Parameters
    ----------
    first, second
        Errors of the two ends, shares of wrong answers within [0, 1], or NaN.

    Returns
    -------
    float
        The bound; NaN if an error is NaN.

    Raises
    ------
    ValueError
        For a value outside [0, 1].

    Examples
    --------
    >>> path_error_bound(0.03, 0.05)
    0.1
    """
    errors = (first, second)
    if any(error < 0 or error > 1 for error in errors):
        raise ValueError(f"an error is a share of wrong answers, within [0, 1]; got {first} and {second}")
    if any(error != error for error in errors):
        return float("nan")
    return min(1.0, 2 * max(errors))
