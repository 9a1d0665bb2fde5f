"""Whether published contrasts have the same direction here, one line each."""

from math import isfinite, isnan
from statistics import mean, stdev
from typing import Any

from experiments.published.results import Results
from experiments.published.values import (
    figure_of,
    groups,
    label_of,
    measures_of,
    methods_of,
    published_of,
    short,
    with_methods,
)
from experiments.report.differences import Average

NO_BARRIER = 0.02  # an accuracy barrier below this leaves a method nothing to reduce


def verdicts(run: Results) -> list[str]:
    """Say for each case and published contrast whether it has the same direction here, and in how many seeds."""
    methods = methods_of(run)
    lines = []
    for address in groups(run):
        name = label_of(address, between=", ") or run.title
        first, *others = with_methods(run, address)
        for method, other in zip(methods[1:], others, strict=True):
            for measure in measures_of(run):
                published = [published_of(run, measure, **place) for place in (first, other)]
                here = [figure_of(run, measure, **place) for place in (first, other)]
                if None not in published and None not in here:
                    lines.append(f"{name}: {_verdict(measure, methods[0], method, published, here)}")  # type: ignore[arg-type]
        if methods[:1] == ["vanilla"] and (none := _no_barrier(run, first)):
            lines.append(f"{name}: {none}")
    return lines


def _verdict(measure: str, first: str, second: str, published: list[float], here: list[Average]) -> str:
    line = (
        f"{measure}, {first} → {second}: published {short(published[0])} → {short(published[1])}, "
        f"here {short(here[0].mean)} → {short(here[1].mean)}"
    )
    # seed by seed, since with one seed both methods have the same start and batches
    shared = sorted(here[0].by_seed.keys() & here[1].by_seed.keys())
    gains = [_gain(here[0].by_seed[seed], here[1].by_seed[seed]) for seed in shared]
    sign = _sign(published[1] - published[0])
    if not gains:
        return f"{line}: no seed has both"
    if not sign or not any(gains):
        return f"{line}: no difference {'published' if not sign else 'here'}"
    agreeing = sum(_sign(gain) == sign for gain in gains)
    finite = [gain for gain in gains if isfinite(gain)]
    whole = mean(finite) if len(finite) == len(gains) else sum(map(_sign, gains))
    if len(gains) == 1:
        return f"{line}: {'same' if agreeing else 'another'} direction on the one seed"
    faint = len(finite) == len(gains) and abs(whole) < stdev(gains)
    return (
        f"{line}: {'same direction' if _sign(whole) == sign else 'THE DIRECTION DIFFERS'}"
        f"{', by less than the spread of the differences' if faint else ''} (in {agreeing} of {len(gains)} seeds)"
    )


def _gain(before: float, after: float) -> float:
    """Return after - before; 0 if both are the same infinity or one is not a number."""
    gain = after - before
    return 0.0 if isnan(gain) else gain


def _no_barrier(run: Results, vanilla: dict[str, Any]) -> str | None:
    barrier = figure_of(run, "accuracy_barrier", **vanilla)
    if barrier is None or barrier.mean is None or barrier.mean >= NO_BARRIER:
        return None
    return f"no accuracy barrier between vanilla models here ({short(barrier.mean)}): there is nothing to reduce"


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)
