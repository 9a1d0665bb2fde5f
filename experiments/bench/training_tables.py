"""The tables of the training workloads: seconds per round, ratios to fedpfn, accuracy, and local training.

A row is a contestant, a column a workload.
"""

from collections.abc import Callable, Iterator
from statistics import median

from experiments.bench.contestants import CONTESTANTS
from experiments.bench.peers.frameworks import PEERS
from experiments.bench.table import Result, Table, of, ratio_text, ratios, seconds_text, turns

TITLES = {
    **{name: contestant.title for name, contestant in CONTESTANTS.items()},
    **{name: peer.title for name, peer in PEERS.items()},
    "bare": "bare PyTorch loop, one process",
}
# targets: fedpfn is at least so many times as fast as a contestant, on a CPU and on a GPU of the H100 class
_AIMS: dict[str, dict[tuple[str, str], float]] = {
    "cpu": {("a", "stock"): 1.5, ("c", "stock"): 8, ("c", "cached"): 3},
    "cuda": {("a", "stock"): 10, ("a", "cached"): 3, ("c", "stock"): 20, ("c", "cached"): 5},
}
_MASK_AIM = 1.03


def training_tables(result: Result) -> Iterator[Table]:
    """Yield a table of seconds per round, of ratios, of accuracies and of local training."""
    aims = _AIMS[str(result["environment"]["device"])]
    without = [f"Without {name}, which was not installed: {why}." for name, why in result["not-installed"].items()]

    def seconds(letter: str, name: str) -> str:
        times = turns(_entries(result, letter, name)).values()
        return f"{median(times):.3f} ({min(times):.3f})" if times else "–"

    def times_ours(letter: str, name: str) -> str:
        ours = turns(_entries(result, letter, "ours"))
        return ratio_text(ratios(turns(_entries(result, letter, name)), ours), minimum=aims.get((letter, name)))

    def accuracy(letter: str, name: str) -> str:
        accuracies = [
            entry["accuracy"] for entry in _entries(result, letter, name) if entry.get("accuracy") is not None
        ]
        return f"{accuracies[-1]:.3f}" if accuracies else "–"

    yield _table("Seconds a round: the median turn (the fastest)", result, seconds, without)
    yield _table("Times as long as ours, cohorts", result, times_ours, [])
    yield _table("Accuracy at the end", result, accuracy, [])
    yield _local(result)


def _entries(result: Result, letter: str, name: str) -> list[Result]:
    return of(result, "training", workload=letter, contestant=name)


def _letters(result: Result) -> list[str]:
    return list(dict.fromkeys(entry["workload"] for entry in result["training"]))


def _table(title: str, result: Result, cell: Callable[[str, str], str], notes: list[str]) -> Table:
    letters = _letters(result)
    names = dict.fromkeys(entry["contestant"] for entry in result["training"])
    rows = [[TITLES[name], *(cell(letter, name) for letter in letters)] for name in names]
    return Table(title, ["", *letters], rows, notes)


def _local(result: Result) -> Table:
    rows = []
    for letter in _letters(result):
        ours, fedpfn, bare = (turns(_entries(result, letter, name)) for name in ("ours", "ours-fedpfn", "bare"))
        train, masked = (turns(_entries(result, letter, name), "train") for name in ("ours", "ours-fedpfn"))
        busy = {turn: seconds * result["actors"] for turn, seconds in train.items()}
        rows.append(
            [
                letter,
                seconds_text(bare.values()),
                seconds_text(busy.values()),
                ratio_text(ratios(bare, busy), minimum=0.9 if letter == "a" else None),
                ratio_text(ratios(masked, train), maximum=_MASK_AIM, digits=3),
                ratio_text(ratios(fedpfn, ours), maximum=_MASK_AIM, digits=3),
            ]
        )
    return Table(
        "Local training against a bare loop, and what a mask costs",
        ["", "bare loop, s", "ours × actors, s", "bare ÷ ours", "FedPFN ÷ FedAvg, training", "FedPFN ÷ FedAvg, round"],
        rows,
        ["The bare loop has the machine to itself; our actors share it."],
    )
