"""Final accuracy and mean barrier over two numeric keys as fields of colour: a panel an algorithm, one scale."""

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from experiments.report.averages import average
from experiments.report.figures.facets import Line, lines_of
from experiments.report.figures.fields import Panel, draw_fields
from experiments.report.figures.over_keys import LABELS, MEAN_BARRIER, SAID, is_measured, numeric_keys
from experiments.report.figures.pictures import Drawn, Skipped, numbered
from experiments.report.figures.style import HEAT, in_style
from experiments.report.figures.words import ALPHA, RATIO, axis_name, counted, settings, symbol, unused
from experiments.report.measures import Measure
from experiments.report.study import Group, Study, Value, show_value


def pair_of_keys(study: Study) -> tuple[str, str] | None:
    """Return the keys for columns and rows: mask ratio and alpha, or the first two numeric ones; None without two."""
    keys = sorted(numeric_keys(study), key=lambda key: (key != RATIO, key != ALPHA))
    return (keys[0], keys[1]) if len(keys) > 1 else None


@in_style()
def heat_maps(study: Study, measure: Measure, x: str = RATIO, y: str = ALPHA) -> Drawn:
    """Draw ``measure`` over ``x`` and ``y``, mean and deviation in each field; other keys make panels.

    A group that does not use ``x`` or ``y`` has a single column or row for it.
    """
    name = f"heat-{'barrier' if measure is MEAN_BARRIER else 'accuracy'}"
    if not {x, y} <= set(numeric_keys(study)):
        return Skipped(name, f"{x} and {y} are not both numbers that differ between the groups")
    if not is_measured(study, measure):
        return Skipped(name, f"{measure.head} is not on record")
    panels = [panel for line in lines_of(study, along=[x, y]) for panel in _panels(line, measure, x, y)]
    averages = [one for panel in panels for one in panel.fields.values()]
    means = [one.mean for one in averages if one.mean is not None]
    seeds, lost = {one.n for one in averages if one.n}, sum(one.not_finite for one in averages)
    said = SAID[measure.key]
    caption = f"{said[0].upper()}{said[1:]} over {symbol(x)} and {symbol(y)}: mean over n = {counted(seeds, 'seed')}"
    caption += ", ± 1 sample standard deviation" if max(seeds) > 1 else ""
    caption += ", n in each field" if len(seeds) > 1 else ""
    caption += "; one colour scale for all panels."
    if lost:
        caption += f" {counted([lost], 'value')} not finite and left out."
    scale = ScalarMappable(Normalize(min(means), max(means)), HEAT)
    drawn = draw_fields(
        panels,
        scale,
        label=LABELS[measure.key],
        x_label=axis_name(x),
        y_label=axis_name(y).partition(" (")[0],
        note=f"{'mean ± standard deviation, ' * (max(seeds) > 1)}n = {counted(seeds, 'seed')}",
        numbers=len(seeds) > 1,
    )
    return numbered(name, [(caption, figure) for figure in drawn])


def _panels(line: Line, measure: Measure, x: str, y: str) -> list[Panel]:
    """Return a panel of the groups that use both keys, and one for each way not to."""
    ways: dict[tuple[bool, bool], list[Group]] = {}
    for group in line.groups:
        ways.setdefault((group.keys[x] is None, group.keys[y] is None), []).append(group)
    return [
        Panel(
            title=settings(line.keys).split(", "),
            columns=_ticks(groups, x),
            rows=_ticks(groups, y),
            fields={(_tick(y, group.keys[y]), _tick(x, group.keys[x])): average(group, measure) for group in groups},
        )
        for groups in ways.values()
    ]


def _ticks(groups: list[Group], key: str) -> list[str]:
    values = {group.keys[key] for group in groups}
    return [_tick(key, value) for value in sorted(values, key=lambda value: 0.0 if value is None else float(value))]


def _tick(key: str, value: Value) -> str:
    return unused(key) if value is None else show_value(value)
