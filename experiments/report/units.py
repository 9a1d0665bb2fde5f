"""How numbers of a report are written: counts with a noun, bytes in the unit of their size, others to four decimals.

A negative number has a minus sign, not a hyphen; zero has no sign.
"""

from collections.abc import Collection

from experiments.report.measures import Unit

_SIZES = ("B", "kB", "MB", "GB", "TB")


def show_average(mean: float, deviation: float | None, unit: Unit) -> str:
    """Return a mean with its standard deviation, or the mean alone if there is none or all values are the same.

    >>> show_average(0.94871, 0.0123, "share"), show_average(12_340_000, 160_000, "bytes")
    ('0.9487 ± 0.0123', '12.3 ± 0.2 MB')
    """
    if deviation:
        return _written("{} ± {}", [mean, deviation], unit)
    # if all seeds agree on a round, their mean is an integer
    return f"{mean:.0f}" if unit == "rounds" else _written("{}", [mean], unit)


def show_change(mean: float, interval: tuple[float, float] | None, unit: Unit) -> str:
    """Return a mean difference with its sign, and its interval if it has one.

    >>> show_change(-0.0123, (-0.03, 0.0054), "share")
    '−0.0123 [−0.0300, +0.0054]'
    """
    form = "{}" if interval is None else "{} [{}, {}]"
    return _written(form, [mean, *(interval or ())], unit, sign="+")


def counted(numbers: Collection[int], noun: str) -> str:
    """Return a number with its noun, as a range where several numbers differ.

    >>> counted([1], "seed"), counted([3, 2, 3], "seed")
    ('1 seed', '2–3 seeds')
    """
    low, high = min(numbers), max(numbers)
    return f"{low if low == high else f'{low}–{high}'} {noun}{'s' * (high != 1)}"


def _written(form: str, values: list[float], unit: Unit, sign: str = "-") -> str:
    """Write values in one unit and with the same number of decimals; the largest value decides the unit."""
    decimals, suffix, scale = (1 if unit == "rounds" else 4), "", 1.0
    if unit == "bytes":
        largest = max(map(abs, values))
        # what would round up to 1000 is written in the next larger unit
        step = next((at for at in range(len(_SIZES)) if round(largest / 1000**at) < 1000), len(_SIZES) - 1)
        scale, suffix = 1000**step, f" {_SIZES[step]}"
        decimals = 0 if step == 0 else max(0, 3 - len(f"{largest / scale:.0f}"))
    texts = [f"{value / scale:{sign}.{decimals}f}" for value in values]
    # a number that rounds to zero has no sign
    texts = [text if any(digit in text for digit in "123456789") else text.lstrip("+-") for text in texts]
    return form.format(*texts).replace("-", "−") + suffix
