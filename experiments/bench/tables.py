"""The tables of a benchmark, from its JSON: seconds, ratios taken pair by pair, and what was aimed for.

A contestant's seconds a round are the median over the rounds of a run; a ratio divides two runs of one turn, and the
table shows the median over the turns with the least and the greatest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table as RichTable

from experiments.bench.contestants import CONTESTANTS

# at least so many times as fast as (stock, cached), on a CPU and on a GPU of the H100 class
AIMS: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "cpu": {"a": (1.5, None), "b": (4, 2), "c": (8, 3)},
    "cuda": {"a": (10, 3), "b": (20, 5), "c": (20, 5)},
}
_BARRIER_AIMS = {"cpu": {"MLP_h5_w200": 2.0, "CNN": 1.2}, "cuda": {"MLP_h5_w200": 10.0, "CNN": 10.0}}
_SERVER_AIM = {"cpu": 0.5, "cuda": 0.2}
_MASK_AIM = 1.03

Result = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, rows of text, and notes beneath."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]

    def rich(self) -> RichTable:
        """Return the table for a terminal."""
        table = RichTable(title=self.title, title_justify="left", caption="\n".join(self.notes), caption_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return "\n\n".join([f"### {self.title}", body, *self.notes]) + "\n"


def tables(result: Result) -> list[Table]:
    """Return a table for each part that was measured."""
    return list(_tables(result))


def markdown(result: Result) -> str:
    """Return all tables, with the machine they were measured on."""
    return "\n".join([machine(result), *(table.markdown() for table in tables(result))])


def machine(result: Result) -> str:
    """Say what it was measured on and with, in a paragraph."""
    about = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    accelerator = "" if about["accelerator"] == "none" else f", {about['accelerator']}"
    return (
        f"`{result['command']}`: {result['cores']} CPU cores{accelerator}, {result['actors']} actors; "
        f"{about['platform']}, Python {about['python']}, {versions}; revision {about['git-revision']}.\n"
    )


def turns(entries: Sequence[Result], field: str = "seconds") -> dict[int, float]:
    """Return the median of a contestant's rounds in each turn that it completed."""
    return {entry["repeat"]: median(entry[field]) for entry in entries if entry.get(field)}


def ratios(above: dict[int, float], below: dict[int, float]) -> list[float]:
    """Return above / below for every turn that both completed."""
    return [above[turn] / below[turn] for turn in above if turn in below]


def of(result: Result, part: str, **wanted: Any) -> list[Result]:
    """Return the entries of a part with these values."""
    return [entry for entry in result[part] if all(entry[key] == value for key, value in wanted.items())]


def _tables(result: Result) -> Iterator[Table]:
    device = str(result["environment"]["device"])
    letters = list(dict.fromkeys(entry["workload"] for entry in result["training"]))
    if letters:
        yield _rounds(result, letters, device)
        yield _local(result, letters)
    if result["barriers"]:
        yield _barriers(result, device)
    if result["server"]:
        yield _server(result, device)
    if result["over-clients"]:
        yield _over_clients(result)
    if result["over-models"]:
        yield _over_models(result)


def _rounds(result: Result, letters: list[str], device: str) -> Table:
    rows = []
    for letter in letters:
        times = {name: turns(of(result, "training", workload=letter, contestant=name)) for name in CONTESTANTS}
        aims = AIMS[device].get(letter, (None, None))
        rows.append(
            [
                letter,
                *(_seconds(times[name].values()) for name in CONTESTANTS),
                *(
                    _ratio(ratios(times[rival], times["ours"]), least=aim)
                    for rival, aim in zip(("stock", "cached"), aims, strict=True)
                ),
            ]
        )
    accuracies = "; ".join(
        f"({letter}) "
        + ", ".join(
            f"{name} {entries[-1]['accuracy']:.3f}"
            for name in CONTESTANTS
            if (entries := [e for e in of(result, "training", workload=letter, contestant=name) if "failed" not in e])
        )
        for letter in letters
    )
    titles = [contestant.title for contestant in CONTESTANTS.values()]
    return Table(
        "Seconds a round",
        ["", *titles, "stock ÷ ours", "cached ÷ ours"],
        rows,
        [f"Accuracy at the end: {accuracies}."],
    )


def _local(result: Result, letters: list[str]) -> Table:
    rows = []
    for letter in letters:
        ours, fedpfn = (of(result, "training", workload=letter, contestant=name) for name in ("ours", "ours-fedpfn"))
        limit = [entry["seconds"] for entry in of(result, "limit", workload=letter)]
        train = turns(ours, "train")
        busy = {turn: seconds * result["actors"] for turn, seconds in train.items()}
        bare = dict.fromkeys(busy, limit[-1]) if limit else {}
        rows.append(
            [
                letter,
                _seconds(limit),
                _seconds(busy.values()),
                _ratio(ratios(bare, busy), least=0.9 if letter == "a" else None),
                _ratio(ratios(turns(fedpfn, "train"), train), most=_MASK_AIM, digits=3),
                _ratio(ratios(turns(fedpfn), turns(ours)), most=_MASK_AIM, digits=3),
            ]
        )
    return Table(
        "Local training against a bare loop, and what a mask costs",
        ["", "bare loop, s", "ours × actors, s", "bare ÷ ours", "FedPFN ÷ FedAvg, training", "FedPFN ÷ FedAvg, round"],
        rows,
        ["The bare loop has the machine to itself; our actors share it."],
    )


def _barriers(result: Result, device: str) -> Table:
    rows = []
    for entry in result["barriers"]:
        case, seconds = entry["case"], {name: median(found) for name, found in entry["seconds"].items()}
        pairs = [
            above / below for above, below in zip(entry["seconds"]["plain"], entry["seconds"]["ours"], strict=True)
        ]
        rows.append(
            [
                f"{case['title']}, {case['models']} models, {case['examples']} examples",
                str(entry["evaluations"]),
                f"{seconds['plain']:.2f}",
                f"{seconds['ours']:.2f}",
                _ratio(pairs, least=_BARRIER_AIMS[device].get(case["title"])),
                f"{entry['limit']:.2f}",
                f"{entry['limit'] / seconds['ours']:.0%}",
                f"{entry['largest-difference']['loss']:.1e}",
            ]
        )
    columns = ["", "evaluations", "plain, s", "ours, s", "plain ÷ ours", "products alone, s", "share", "difference"]
    notes = [
        "Products alone: the matrix products of all evaluations of the plain loop at this machine's rate for their "
        "shapes. Ours does without most of the first layer's, so its share can exceed 100 %. Difference: the largest "
        "between losses on the paths, in nats."
    ]
    return Table("Barriers between all pairs, 25 points", columns, rows, notes)


def _server(result: Result, device: str) -> Table:
    rows = [
        [
            entry["title"],
            str(entry["clients"]),
            f"{entry['megabytes']:.0f}",
            f"{entry['configure']:.3f}",
            f"{entry['aggregate']:.3f}",
            f"{entry['seconds-per-100-MB']:.3f} (≤ {_SERVER_AIM[device]})",
        ]
        for entry in result["server"]
    ]
    columns = ["", "clients", "MB", "mask and messages, s", "read and average, s", "s per 100 MB"]
    return Table("The server's part in a FedPFN round", columns, rows, [])


def _over_clients(result: Result) -> Table:
    counts = list(dict.fromkeys(entry["clients"] for entry in result["over-clients"]))
    names = list(dict.fromkeys(entry["contestant"] for entry in result["over-clients"]))
    rows = [
        [
            f"{count:,}",
            *(_seconds(turns(of(result, "over-clients", clients=count, contestant=n)).values()) for n in names),
        ]
        for count in counts
    ]
    columns = ["clients, all a round", *(CONTESTANTS[name].title for name in names)]
    return Table("Seconds a round over the number of clients", columns, rows, ["One step of ten examples each."])


def _over_models(result: Result) -> Table:
    rows = [
        [
            str(entry["case"]["models"]),
            str(entry["evaluations"]),
            *(f"{median(entry['seconds'][name]):.2f}" for name in ("plain", "ours")),
        ]
        for entry in result["over-models"]
    ]
    return Table("Barrier time over the number of models", ["K", "evaluations", "plain, s", "ours, s"], rows, [])


def _seconds(values: Any) -> str:
    found = list(values)
    return f"{median(found):.3f}" if found else "–"


def _ratio(found: list[float], *, least: float | None = None, most: float | None = None, digits: int = 2) -> str:
    """Say a ratio, its spread where there are several, and what was aimed for."""
    if not found:
        return "–"
    spread = f" [{min(found):.{digits}f}, {max(found):.{digits}f}]" if len(found) > 1 else ""
    aim = f" (≥ {least:g})" if least else f" (≤ {most:g})" if most else ""
    return f"{median(found):.{digits}f}{spread}{aim}"
