"""How numbers of a report are written: bytes in the unit of their size, others with four decimals.

A minus is a minus sign, not a hyphen, and zero has none.
"""

from experiments.report.measures import Unit

_DECIMALS = {"rounds": 1}
_SIZES = ("B", "kB", "MB", "GB", "TB")


def show_average(mean: float, deviation: float | None, unit: Unit) -> str:
    """Return a mean with its standard deviation; alone where there is none, or where all values are the same.

    >>> show_average(0.94871, 0.0123, "share"), show_average(12_340_000, 160_000, "bytes")
    ('0.9487 ± 0.0123', '12.3 ± 0.2 MB')
    """
    if not deviation:
        # seeds that all agree on a round do so on a whole one
        return _written([mean], unit, digits=0 if unit == "rounds" else None)
    return _written([mean, deviation], unit, "{} ± {}")


def show_change(mean: float, interval: tuple[float, float] | None, unit: Unit) -> str:
    """Return a mean difference with its sign, and its interval where it has one.

    >>> show_change(-0.0123, (-0.03, 0.0054), "share")
    '−0.0123 [−0.0300, +0.0054]'
    """
    if interval is None:
        return _written([mean], unit, signed=True)
    return _written([mean, *interval], unit, "{} [{}, {}]", signed=True)


def _written(
    values: list[float], unit: Unit, form: str = "{}", *, signed: bool = False, digits: int | None = None
) -> str:
    """Write values in one size and with as many decimals each; the largest decides the size."""
    suffix = ""
    if unit == "bytes":
        largest, step = max(map(abs, values)), 0
        # what would be rounded up to 1000 is written in the next size
        while round(largest / 1000**step) >= 1000 and step < len(_SIZES) - 1:
            step += 1
        values = [value / 1000**step for value in values]
        whole = len(f"{largest / 1000**step:.0f}")
        digits, suffix = (0 if step == 0 else max(0, 3 - whole)), f" {_SIZES[step]}"
    decimals = _DECIMALS.get(unit, 4) if digits is None else digits
    return form.format(*(_digits(value, decimals, signed=signed) for value in values)) + suffix


def _digits(value: float, decimals: int, *, signed: bool) -> str:
    text = f"{value:+.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        return text[1:]
    return text.replace("-", "−") if signed or value < 0 else text[1:]
