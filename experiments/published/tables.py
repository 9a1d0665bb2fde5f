"""An experiment's records as tables: published next to measured, with n and spread, and where the direction differs.

A group is a case with values of the axes; its figures are means over seeds with sample standard deviations. Columns
are the methods where the experiment compares them: ways of training, or the algorithms of a federation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, isnan, nan
from statistics import mean, stdev
from typing import Any

from experiments.sweep.results import Record, Results

METHODS = ("train.method", "strategy.name")  # the axis with the columns of a table, the first that there is
NEUTRAL = ("data.root", "data.download", "device", "seed", "output.save-models")  # they do not change what is measured
NO_BARRIER = 0.02  # an accuracy barrier below it leaves a method nothing to reduce

Address = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class SeedValues:
    """A measure seed by seed; ``mean`` and sample ``deviation`` (None for one seed) are over the finite values."""

    by_seed: dict[int, float]

    @property
    def values(self) -> list[float]:
        """The finite values."""
        return [value for value in self.by_seed.values() if isfinite(value)]

    @property
    def mean(self) -> float:
        """Their mean; NaN where there is none."""
        return mean(self.values) if self.values else nan

    @property
    def deviation(self) -> float | None:
        """Their sample standard deviation."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.by_seed)

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {short(self.deviation, like=self.mean)}"
        lost = self.n - len(self.values)
        if lost == self.n:
            return f"not finite ({self.n})"
        return f"{short(self.mean)}{spread} ({f'{self.n - lost} of {self.n}; {lost} not finite' if lost else self.n})"


@dataclass(frozen=True)
class Table:
    """A table of text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return "\n".join(f"| {' | '.join(map(_cell_text, cells))} |" for cells in lines)


def short(number: float, *, like: float | None = None) -> str:
    """Return a number with three decimals, or three digits where that shows nothing; ``like`` decides in its place."""
    size = abs(number if like is None else like)
    return f"{number:.3f}" if 1e-3 <= size < 1000 or size == 0 else f"{number:.3g}"


def figure_of(run: Results, measure: str, **address: Any) -> SeedValues | None:
    """Return a measure over the seeds of the records at ``address`` (case and axes), or None where it has none.

    Raises ``ValueError`` for an address that leaves room for two records of a seed.
    """
    by_seed: dict[int, float] = {}
    places = [(address_of(record), record) for record in run.records]
    # one that says all that there is to say is not meant for those with keys of their own
    exact = [record for place, record in places if place == address]
    for record in exact or [record for place, record in places if address.items() <= place.items()]:
        value = _value(record, measure)
        if value is not None and record["seed"] in by_seed:
            raise ValueError(f"{address} names more than one group of cells")
        if value is not None:
            by_seed[record["seed"]] = value
    # a measure that is never a number, as the accuracy of a regression, is not one of these cells'
    return None if all(isnan(value) for value in by_seed.values()) else SeedValues(by_seed)


def _value(record: Record, measure: str) -> float | None:
    if measure in record["measures"]:
        return float(record["measures"][measure])
    return float(record["not_finite"][measure]) if measure in record["not_finite"] else None


def published_of(run: Results, measure: str, **address: Any) -> float | None:
    """Return the published figure of a measure at ``address``, or None."""
    axes = {"case", *run.axes}
    for entry in run.comparison.published:
        place = {name: value for name, value in entry.items() if name in axes}
        if measure in entry and all(address.get(name) == value for name, value in place.items()):
            return float(entry[measure])
    return None


def measures_of(run: Results) -> list[str]:
    """Return the measures to report: those the experiment names, else all that were found."""
    names = dict.fromkeys(name for record in run.records for name in (*record["measures"], *record["not_finite"]))
    return [name for name in run.comparison.measures if name in names] or list(names)


def results_table(run: Results) -> Table:
    """Return the results: one row per group and measure, one column per method, published next to measured ones.

    Where there is one method and nothing published, a group is one row, with a column a measure.
    """
    if run.comparison.published or methods_of(run):
        return _by_method(run)
    measures = measures_of(run)
    rows = [
        (*_address_cells(run, address), *(_cell(figure_of(run, measure, **dict(address))) for measure in measures))
        for address in groups(run)
    ]
    return Table((*_address_header(run), *map(_spoken, measures)), tuple(rows))


def _by_method(run: Results) -> Table:
    methods, compared = methods_of(run) or [""], bool(run.comparison.published)
    header = [*_address_header(run), "measure"]
    for method in methods:
        header += [f"{method} published".strip(), f"{method} here (n seeds)".strip()] if compared else [method]
    rows = []
    for address in groups(run):
        for measure in measures_of(run):
            places = [dict(address) | ({method_key(run): method} if method else {}) for method in methods]
            values = [figure_of(run, measure, **place) for place in places]
            known = [published_of(run, measure, **place) for place in places]
            if any(values):
                pairs = zip(known, values, strict=True)
                cells = [
                    _cell(value) for published, here in pairs for value in ((published, here) if compared else (here,))
                ]
                rows.append((*_address_cells(run, address), _spoken(measure), *cells))
    return Table(tuple(header), tuple(rows))


def _address_header(run: Results) -> list[str]:
    return [
        *(["case"] if any(run.cases) else []),
        *(axis.rpartition(".")[2] for axis in run.axes if axis != method_key(run)),
    ]


def _address_cells(run: Results, address: Address) -> list[str]:
    return [str(value) for name, value in address if name != "case" or any(run.cases)]


def _cell(value: "SeedValues | float | None") -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, SeedValues) else short(value)


def _spoken(measure: str) -> str:
    return measure.replace("_", " ")


def verdicts(run: Results) -> list[str]:
    """Say for each case and published contrast whether the direction is the same here, and in how many seeds."""
    methods = methods_of(run)
    lines = []
    for address in groups(run):
        place = dict(address)
        name = ", ".join(word for word in map(spoken_part, address) if word) or run.title
        for method in methods[1:]:
            for measure in measures_of(run):
                before, after = ({method_key(run): m} | place for m in (methods[0], method))
                published = [published_of(run, measure, **at) for at in (before, after)]
                here = [figure_of(run, measure, **at) for at in (before, after)]
                if None not in published and None not in here:
                    lines.append(f"{name}: {_verdict(measure, methods[0], method, published, here)}")  # type: ignore[arg-type]
        if methods and (none := _no_barrier(run, place, methods[0])):
            lines.append(f"{name}: {none}")
    return lines


def methods_of(run: Results) -> list[str]:
    """Return the methods that the experiment compares; none where it has one."""
    return [str(value) for value in run.axes.get(method_key(run), [])]


def method_key(run: Results) -> str:
    """Return the axis whose values are the methods."""
    return next((name for name in METHODS if name in run.axes), METHODS[0])


def groups(run: Results) -> Iterator[Address]:
    """Yield the addresses of the experiment's groups in the order of its records, methods left out."""
    seen: dict[Address, None] = {}
    for record in run.records:
        place = {name: value for name, value in address_of(record).items() if name != method_key(run)}
        seen[tuple(place.items())] = None
    yield from seen


def spoken_part(part: tuple[str, Any]) -> str:
    """Return a part of an address as it is read: a number with the name of its axis, a word alone."""
    name, value = part
    return str(value) if isinstance(value, str) else f"{name.rpartition('.')[2]} = {value:g}"


def markdown_report(run: Results, figures: Sequence[str] = ()) -> str:
    """Return the whole report as Markdown."""
    seeds = sorted({record["seed"] for record in run.records})
    parts = [f"# {_no_tags(run.title)}"]
    parts += [f"*Source: {_no_tags(run.source)}*"] if run.source else []
    parts += [_no_tags(run.question)] if run.question else []
    parts.append(results_table(run).markdown())
    if lines := [*settings_lines(run), *verdicts(run)]:
        parts.append("\n".join(f"- {_no_tags(line)}" for line in lines))
    parts += [f"![{name}](figures/{name}.png)" for name in figures]
    about = run.environment
    state = "" if run.complete else " Not complete."
    versions = about.get("versions")
    torch = versions.get("torch", "?") if isinstance(versions, dict) else "?"
    parts.append(
        f"Seeds {', '.join(map(str, seeds))}; mean ± sample standard deviation (number of seeds). {run.done} cells, "
        f"{run.seconds:.0f} s of computation on {about.get('cpus', '?')} CPU cores ({about.get('device', '?')}), "
        f"PyTorch {torch}.{state}"
    )
    return "\n\n".join(parts) + "\n"


def _cell_text(text: str) -> str:
    return _no_tags(text).replace("|", "\\|")


def _no_tags(text: str) -> str:
    """Return text without what a reader of Markdown takes for a tag of HTML."""
    return text.replace("<", "&lt;")


def _verdict(measure: str, first: str, second: str, published: list[float], here: list[SeedValues]) -> str:
    line = (
        f"{measure}, {first} → {second}: published {short(published[0])} → {short(published[1])}, "
        f"here {short(here[0].mean)} → {short(here[1].mean)}"
    )
    # seed by seed, since both methods of a seed share start and batches
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
    """Return after - before; 0 where both are infinite alike, or one is not a number."""
    gain = after - before
    return 0.0 if isnan(gain) else gain


def _no_barrier(run: Results, place: dict[str, Any], method: str) -> str | None:
    barrier = figure_of(run, "accuracy_barrier", **place, **{method_key(run): method}) if method == "vanilla" else None
    if barrier is None or not barrier.mean < NO_BARRIER:
        return None
    return f"no accuracy barrier between {method} models here ({short(barrier.mean)}): there is nothing to reduce"


def settings_lines(run: Results) -> list[str]:
    """Return a note on settings that differ from the file's, so that published figures are not compared silently."""
    words = [f"{name}={value}" for name, value in run.words.items() if name not in NEUTRAL]
    parts = (["the quick form"] if run.form == "quick" else []) + words
    if not parts:
        return []
    caution = "; published figures are those of other settings" if run.comparison.published else ""
    return [f"settings: {', '.join(parts)}{caution}"]


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def address_of(record: Record) -> dict[str, Any]:
    address: dict[str, Any] = {"case": record["case"], **record["axes"]}
    return address
