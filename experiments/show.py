"""Shows a run: its rounds as a table, the figures of its summary, one picture."""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from experiments.limits import limit_words
from experiments.progress import number, stop_words
from experiments.recorded import further_numbers, further_quantities, score_of, unit_words
from experiments.report.log_text import clean
from fedpfn.measures import describe
from fedpfn.runs import Run

_ARROWS = {"higher": " ↑", "lower": " ↓", "none": ""}


def show_run(run: Run, console: Console, *, every: int = 1) -> None:
    """Print the rounds of ``run`` and its summary, draw its picture into the run folder, and print the path."""
    console.print(rounds_table(run, every=every))
    if (score := score_of(run)).label != "accuracy":
        words = f"{score.label}{unit_words(score)}, {score.better} is better"
        console.print(f"score, barriers and fusion: {words}", soft_wrap=True, highlight=False)
    console.print(summary_table(run))
    if further := further_table(run):
        console.print(further)
    measured = [record for record in run.rounds if (record["barrier"] or {}).get("layers")]
    if measured:
        console.print(layers_table(measured[-1]))
    # imports Matplotlib, which only the picture needs
    from experiments.figures import rounds_figure, save_figure

    picture = save_figure(rounds_figure(run), run.path / "rounds.png")
    console.print(f"picture: {picture}", soft_wrap=True, highlight=False, markup=False)


def rounds_table(run: Run, *, every: int = 1) -> Table:
    """Return every ``every``-th round as a table, and always the first and the last."""
    # one space between columns, so that ten of them fit into eighty characters
    score = score_of(run)
    heads = ["round", "accuracy", "loss", "train", "clients", "frozen", "barrier", "max", "fusion", "up"]
    if score.label != "accuracy":
        heads[1] = "score"
    table = Table(
        title=Text(str(run.path)),
        title_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in heads:
        table.add_column(name, justify="right")
    last = len(run.rounds) - 1
    for place, record in enumerate(run.rounds):
        if place % every == 0 or place == last:
            table.add_row(*round_cells(record, score.name))
    return table


def layers_table(record: dict[str, Any]) -> Table:
    """Return the layerwise connectivity of a round's clients: E[1 - cos], mean over pairs."""
    title = f"round {record['round']}, E[1 - cos] of features over client pairs"
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    table.add_column("layer")
    for name in ("path against linear (LLFC)", "client against client"):
        table.add_column(name, justify="right")
    for layer in record["barrier"]["layers"]:
        table.add_row(Text(layer["layer"]), number(layer["llfc"]), number(layer["baseline"]))
    return table


def further_table(run: Run) -> Table | None:
    """Return the quantities that ``rounds_table`` does not show: last value, and mean over measured rounds."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, name in enumerate(("further measures", "last", "mean")):
        table.add_column(name, justify="right" if place else "left")
    numbers = [further_numbers(record) for record in run.rounds]
    for quantity in further_quantities([run]):
        if values := [line[quantity.name] for line in numbers if quantity.name in line]:
            name = f"{quantity.label}{unit_words(quantity)}{_ARROWS[quantity.better]}"
            table.add_row(Text(name), short(values[-1]), short(fmean(values)))
    by_class = [[value for value in record.get("class_accuracy") or () if value is not None] for record in run.rounds]
    if lowest := [min(accuracies) for accuracies in by_class if accuracies]:
        worst = describe("class_accuracy", run.measures).label.replace(" by ", " of the worst ")
        table.add_row(Text(f"{worst} ↑"), short(lowest[-1]), short(fmean(lowest)))
    return table if table.row_count else None


def summary_table(run: Run) -> RenderableType:
    """Return the figures of a complete run, or why it is not complete."""
    if run.summary is None:
        reason = clean(run.failure["reason"]) if run.failure else "it is still running, or was killed"
        return Text(f"not complete: {reason}", style="red")
    summary = run.summary
    # a round without an evaluation has neither an accuracy nor a loss
    evaluated = sum((record["accuracy"], record["loss"]) != (None, None) for record in run.rounds[1:])
    rounds = "rounds" if evaluated == summary.get("rounds") else "evaluated rounds"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    score = score_of(run)
    name, key = score.label, score.name
    rows = {
        f"final {name}": f"{number(summary.get(f'final_{key}'))}  (mean of the last {min(5, evaluated)} {rounds})",
        f"best {name}": f"{number(summary.get(f'best_{key}'))}  (round {summary.get('best_round')})",
        **_best_model(summary),
        f"{name} barrier": f"{number(summary.get(f'mean_{key}_barrier'))} over the run, "
        f"{number(summary.get(f'last_{key}_barrier'))} at the end  (mean over pairs)",
        "client to server": human_bytes(summary.get("bytes_up", 0)),
        "server to client": human_bytes(summary.get("bytes_down", 0)),
        "time": f"{summary.get('seconds', math.nan):.1f} s on {', '.join(summary.get('devices', []))}",
    }
    if stopped := stop_words(summary, run.config):
        rows["ended early"] = stopped
    if limits := limit_words(run.config):
        rows["limits"] = "\n".join(limits)
    for name, value in rows.items():
        # plain text: values read from files must not be parsed as markup
        table.add_row(name, Text(value))
    return Group(Text(), table)


def _best_model(summary: Mapping[str, Any]) -> dict[str, str]:
    best = summary.get("best_model")
    if best is None:
        return {}
    good = f"accuracy {number(best['accuracy'])}" if best["accuracy"] is not None else f"loss {number(best['loss'])}"
    return {"best model": f"checkpoints/best.safetensors, of round {best['round']}  ({good})"}


def short(value: float | None) -> str:
    """Return a number of any size with four digits, or a dash if it was not measured or is not finite.

    >>> short(0.123456), short(12345.6), short(None)
    ('0.1235', '1.235e+04', '–')
    """
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"


def human_bytes(count: float) -> str:
    """Return a number of bytes in the unit that gives one to three digits before the point.

    >>> human_bytes(2209680)
    '2.21 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def round_cells(record: Mapping[str, Any], key: str = "accuracy") -> list[str]:
    """Return the cells of a round for the columns of ``rounds_table``; ``key`` is that of the score."""
    barrier, fusion, mask = record["barrier"] or {}, record["fusion"] or {}, record["mask"] or {}
    return [
        str(record["round"]),
        number(record.get(key)),
        number(record["loss"]),
        number(record["train_loss"]),
        str(len(record["clients"]) or "–"),
        f"{mask['frozen']:.0%}" if mask else "–",
        number(barrier.get(f"{key}_mean")),
        number(barrier.get(f"{key}_max")),
        number(fusion.get(key)),
        human_bytes(record["bytes_up"]) if record["bytes_up"] else "–",
    ]
