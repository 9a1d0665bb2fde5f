"""An experiment's records as tables: published figures next to measured ones, with n and spread.

Columns are the methods if the experiment compares some; figures are means over seeds with sample standard deviations.
"""

from collections.abc import Sequence

from experiments.published.claims import claim_lines, number
from experiments.published.results import Results
from experiments.published.values import (
    Address,
    figure_of,
    groups,
    measures_of,
    method_key,
    methods_of,
    published_of,
    spoken_average,
    with_methods,
)
from experiments.report.differences import Average
from experiments.report.table import Table, markdown_table, plain, text_table

NEUTRAL = ("data.root", "data.download", "device", "seed", "output.save-models")  # these do not change what is measured


def results_table(run: Results) -> Table:
    """Return the results: one row per group and measure, one column per method, published next to measured ones.

    With one method and nothing published, a group is one row, with a column for each measure.
    """
    if run.comparison.published or methods_of(run):
        return _by_method(run)
    measures = measures_of(run)
    rows = [
        (*_address_cells(run, address), *(_cell(figure_of(run, measure, **dict(address))) for measure in measures))
        for address in groups(run)
    ]
    return text_table((*_address_header(run), *map(_spoken, measures)), rows, title=run.title)


def _by_method(run: Results) -> Table:
    methods, compared = methods_of(run) or [""], bool(run.comparison.published)
    header = [*_address_header(run), "measure"]
    for method in methods:
        header += [f"{method} published".strip(), f"{method} here (n seeds)".strip()] if compared else [method]
    rows = []
    for address in groups(run):
        for measure in measures_of(run):
            places = with_methods(run, address)
            values = [figure_of(run, measure, **place) for place in places]
            known = [published_of(run, measure, **place) for place in places]
            if any(values):
                pairs = zip(known, values, strict=True)
                cells = [
                    _cell(value) for published, here in pairs for value in ((published, here) if compared else (here,))
                ]
                rows.append((*_address_cells(run, address), _spoken(measure), *cells))
    return text_table(header, rows, title=run.title)


def _address_header(run: Results) -> list[str]:
    return [
        *(["case"] if any(run.cases) else []),
        *(axis.rpartition(".")[2] for axis in run.axes if axis != method_key(run)),
    ]


def _address_cells(run: Results, address: Address) -> list[str]:
    return [str(value) for name, value in address if name != "case" or any(run.cases)]


def _cell(value: Average | float | None) -> str:
    return spoken_average(value) if isinstance(value, Average) else number(value)


def _spoken(measure: str) -> str:
    return measure.replace("_", " ")


def markdown_report(run: Results, figures: Sequence[str] = ()) -> str:
    """Return the complete report as Markdown."""
    seeds = sorted({record["seed"] for record in run.records})
    parts = [f"# {plain(run.title)}"]
    parts += [f"*Source: {plain(run.source)}*"] if run.source else []
    parts += [plain(run.question)] if run.question else []
    parts.append(markdown_table(results_table(run)))
    if lines := [*settings_lines(run), *claim_lines(run)]:
        parts.append("\n".join(f"- {plain(line)}" for line in lines))
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


def settings_lines(run: Results) -> list[str]:
    """Return notes on settings that differ from those of the file, and on measures that no cell has."""
    words = [f"{name}={value}" for name, value in run.words.items() if name not in NEUTRAL]
    parts = (["the quick form"] if run.form == "quick" else []) + words
    on_record = {name for record in run.records for name in (*record["measures"], *record["not_finite"])}
    absent = [name for name in run.comparison.measures if name not in on_record]
    missing = [f"not measured in any cell: {', '.join(absent)}"] if run.records and absent else []
    if not parts:
        return missing
    caution = "; published figures are those of other settings" if run.comparison.published else ""
    return [f"settings: {', '.join(parts)}{caution}", *missing]
