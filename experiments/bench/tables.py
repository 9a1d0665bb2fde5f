"""The tables of a benchmark, from its JSON: training (in ``training_tables``), barriers, the server, scaling."""

from collections.abc import Iterator
from statistics import median

from experiments.bench.contestants import CONTESTANTS
from experiments.bench.long_run import growth
from experiments.bench.table import Result, Table, of, ratio_text, seconds_text, turns
from experiments.bench.training_tables import training_tables

_BARRIER_AIMS = {"cpu": {"MLP_h5_w200": 2.0, "CNN": 1.2}, "cuda": {"MLP_h5_w200": 10.0, "CNN": 10.0}}
_SERVER_AIM = {"cpu": 0.5, "cuda": 0.2}


def markdown(result: Result) -> str:
    """Return all tables as Markdown, with the machine they were measured on."""
    return "\n".join([machine(result), *(table.markdown() for table in tables(result))])


def machine(result: Result) -> str:
    """Return a paragraph on the machine and the versions."""
    about = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    accelerator = "" if about["accelerator"] == "none" else f", {about['accelerator']}"
    loads = [entry["load"] for entry in result["training"] + result["over-clients"]]
    load = f"; load {min(loads):.1f} to {max(loads):.1f} as runs began" if loads else ""
    return (
        f"`{result['command']}`: {result['cores']} CPU cores{accelerator}, {result['actors']} actors; "
        f"{about['platform']}, Python {about['python']}, {versions}; revision {about['git-revision']}{load}.\n"
    )


def tables(result: Result) -> Iterator[Table]:
    """Yield a table for each part that was measured."""
    device = str(result["environment"]["device"])
    if result["training"]:
        yield from training_tables(result)
    if result["barriers"]:
        yield _barriers(result, device)
    if result["server"]:
        yield _server(result, device)
    if result["over-clients"]:
        yield _over_clients(result)
    if result["over-models"]:
        yield _over_models(result)
    if result["scale"]:
        yield _scale(result)
    for entry in result["long"]:
        yield _long(entry)


def _barriers(result: Result, device: str) -> Table:
    rows = []
    for entry in result["barriers"]:
        case, seconds = entry["case"], {name: median(times) for name, times in entry["seconds"].items()}
        pairs = [
            above / below for above, below in zip(entry["seconds"]["plain"], entry["seconds"]["ours"], strict=True)
        ]
        rows.append(
            [
                f"{case['title']}, {case['models']} models, {case['examples']} examples",
                str(entry["evaluations"]),
                f"{seconds['plain']:.2f}",
                f"{seconds['ours']:.2f}",
                ratio_text(pairs, minimum=_BARRIER_AIMS[device].get(case["title"])),
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
            *(seconds_text(turns(of(result, "over-clients", clients=count, contestant=n)).values()) for n in names),
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


def _scale(result: Result) -> Table:
    rows = [
        [
            f"{entry['case']['clients']:,}",
            f"{entry['model_bytes'] / 1e6:.1f}",
            *(f"{entry['seconds'][stage]:.3f}" for stage in ("round", "train", "transfer", "aggregate")),
            f"{entry['peak_bytes'] / 1e9:.2f}",
        ]
        for entry in result["scale"]
    ]
    columns = [
        "clients, all each round",
        "model, MB",
        "round, s",
        "train, s",
        "transfer, s",
        "aggregate, s",
        "peak, GB",
    ]
    return Table("How a federation grows", columns, rows, ["One step of ten examples each; memory of all processes."])


def _long(entry: Result) -> Table:
    rounds = entry["rounds"]
    spans = [f"rounds {rounds // 5} to {2 * rounds // 5}", f"rounds {4 * rounds // 5} to {rounds}"]
    medians = growth(entry)
    rows = [
        [f"{name}, MB", *(f"{value / 1e6:.1f}" for value in medians[name])] for name in medians if name != "seconds"
    ]
    rows.append(["seconds per round", *(f"{value:.4f}" for value in medians["seconds"])])
    return Table(f"{rounds} rounds: medians early and late", ["", *spans], rows, [])
