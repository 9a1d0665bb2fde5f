"""Hostile input, drawn by Hypothesis: what a reader of ours may be handed, and the property that holds for all of it.

A reader either returns or raises ``ValueError`` (or, for a file that is not there, ``OSError``) in one line per fault;
any other exception is a fault of ours. ``python tests/hostile.py 20000`` tries that many inputs, shared out over the
kinds, and says how many of each it took; the suite tries a few of each.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console
from run_folders import write_run

from experiments.lab.cell import write_cell_config
from experiments.published.results import read_results
from experiments.published.tables import markdown_report
from experiments.report.formats import csv_text, latex_text, markdown_text, rounds_text
from experiments.report.study import make_study
from experiments.report.tables import make_report
from experiments.show import rounds_table, show_run, summary_table
from experiments.sweep.cells import expand
from experiments.sweep.file import read_sweep
from experiments.watch import view_of
from fedpfn import imports
from fedpfn.npy import from_npy, split_npy, to_npy
from fedpfn.runs import Checkpoint, find_runs, last_checkpoint, read_run, write_checkpoint
from fedpfn.runs.arrays_file import read_arrays
from fedpfn.runs.config import KEYS, RunConfig, parse_overrides
from fedpfn.runs.files import parse_json
from fedpfn.runs.identity import address
from fedpfn.runs.yaml_text import parse_yaml

# of computation, for one input
MOST_SECONDS = 20.0

texts = st.text(max_size=12) | st.sampled_from(
    [
        "",
        "${oc.env:HOME}",
        "???",
        "=1+1",
        "a:b",
        "os:system",
        "x" * 5000,
        "\x1b[31m",
        "\0",
        "../..",
        "$\\frac$",
        "[red]",
    ]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.sampled_from([2**63, -(2**63), 10**300, 10**18, 1e308, -0.0, float("nan"), float("inf")])
    | st.floats()
    | texts
)
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))
names = st.sampled_from(sorted(KEYS)) | texts
configs = st.dictionaries(names, scalars | trees, max_size=6)


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes that were whole once: cut, doubled, overwritten."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start, length = draw(st.integers(0, len(data))), draw(st.integers(0, 40))
        kind = draw(st.sampled_from(["cut", "double", "overwrite", "end"]))
        if kind == "cut":
            del data[start : start + length]
        elif kind == "double":
            data[start:start] = data[start : start + length]
        elif kind == "overwrite":
            data[start : start + length] = draw(st.binary(max_size=40))
        else:
            del data[start:]
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, tree: Any) -> Any:
    """A tree with some of its values, at any depth, replaced, removed or added to."""
    if draw(st.integers(0, 9)) == 0:
        return draw(trees)
    if isinstance(tree, dict):
        kept = {name: draw(altered(value)) for name, value in tree.items() if draw(st.integers(0, 30))}
        return kept | (draw(configs) if draw(st.integers(0, 20)) == 0 else {})
    if isinstance(tree, list):
        return [draw(altered(value)) for value in tree if draw(st.integers(0, 30))]
    return tree


@contextmanager
def refused_at_worst(what: Any) -> Iterator[None]:
    """Hold the property: no error but one in a line per fault, and none that takes long."""
    begun = time.process_time()
    try:
        yield
    except (ValueError, OSError) as error:
        lines = str(error).splitlines()
        assert len(lines) <= 1 or all(line.startswith(("  - ", "the config has")) for line in lines), (what, lines)
        assert all(len(line) < 20_000 for line in lines), (what, len(str(error)))
    assert time.process_time() - begun < MOST_SECONDS, what


class Places:
    """A whole run, checkpoint, sweep and experiment, of which the inputs are altered copies."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = write_run(root / "whole" / "run")
        record = json.loads((self.run / "rounds.jsonl").read_bytes().splitlines()[1])
        barrier = {
            "accuracy_mean": 0.1,
            "accuracy_max": 0.2,
            "loss_mean": 0.1,
            "loss_max": 0.2,
            "pairs": 1,
            "points": 3,
        }
        record |= {"barrier": barrier, "fusion": {"accuracy": 0.5, "barrier": 0.0}, "class_accuracy": [0.5, None]}
        self.files: dict[str, Any] = {
            "config.yaml": yaml.safe_load((self.run / "config.yaml").read_bytes()),
            "summary.json": json.loads((self.run / "summary.json").read_bytes()) | {"final_accuracy": 0.5},
            "failure.json": {"reason": "no such data", "rounds": 1, "traceback": "Traceback"},
            "partition.json": json.loads((self.run / "partition.json").read_bytes()),
            "measures.json": {"own": {"label": "own measure", "unit": "", "better": "higher"}},
            "rounds.jsonl": [
                json.loads((self.run / "rounds.jsonl").read_bytes().splitlines()[0]),
                record,
                record | {"round": 2, "own": 0.25},
            ],
        }
        arrays = {
            "clients": np.arange(2), "pairs": np.array([[0, 1]]), "alphas": np.linspace(0, 1, 3),
            "accuracy": np.zeros((1, 3)), "loss": np.zeros((1, 3)), "accuracy_matrix": np.zeros((2, 2)),
            "client_accuracy": np.zeros(2),
        }  # fmt: skip
        np.savez_compressed(root / "arrays.npz", **arrays)
        self.arrays = (root / "arrays.npz").read_bytes()
        (root / "kept").mkdir()
        self.checkpoint = write_checkpoint(root / "kept", Checkpoint(2, {"w": _ones()}, {"m": _ones()}), keep=1)
        self.sweep = {
            "question": "Why?", "base": {"rounds": 2, "train": {"lr": 0.1}}, "seeds": [0, 1],
            "grid": {"partition.alpha": [0.1, 1.0], "model.name, train.lr": [["mlp", 0.1], ["cnn", 0.05]]},
            "include": [{"strategy.name": "fedavg"}], "exclude": [{"partition.alpha": 1.0}],
        }  # fmt: skip
        self.experiment: dict[str, Any] = {
            "title": "T",
            "source": "S",
            "question": "Q",
            "kind": "siblings",
            "seeds": 2,
            "base": {"data.name": "digits"},
            "cases": {"a": {"model.width": 8}, "b": {}},
            "quick": {"seeds": 1, "grid": {"train.method": ["vanilla"]}},
            "grid": {"train.method": ["vanilla", "tna-pfn"]},
            "measures": ["accuracy_barrier"],
            "published": [{"case": "a", "train.method": "vanilla", "accuracy_barrier": 0.1}],
            "figures": [{"kind": "bars", "y": ["accuracy_barrier"]}],
        }
        self.cells = _cell_folder(root / "cells-of-one")
        self.cell_files = {file.name: file.read_bytes() for file in self.cells.iterdir()}
        self.lab = self.experiment | {"name": "x", "form": "full", "words": {}, "keys": ["0" * 16, "1" * 16]}
        self.records = [
            {"cell": f"{number}" * 16, "case": "a", "axes": {"train.method": method}, "seed": 0, "config": {},
             "measures": {"accuracy_barrier": 0.1}, "not_finite": {"loss": "inf"}, "rows": {}, "seconds": 1.0}
            for number, method in enumerate(("vanilla", "pfn"))
        ]  # fmt: skip


def _cell_folder(out: Path) -> Path:
    """Write an experiment of the laboratory with one cell that is done, and return the cell's folder."""
    out.mkdir()
    file = out / "sweep.yaml"
    file.write_text("{kind: theorem, measures: [z], base: {theorem: {trials: 5}}}")
    (cell,) = expand(read_sweep(file, workdir=out))
    folder = out / "cells" / f"seed=0-{cell.address}"
    write_cell_config(folder, "theorem", cell.config)
    (folder / "findings.json").write_text('{"measures": {"z": 0.5}, "not_finite": {"w": "inf"}, "rows": {"a": [{}]}}')
    (folder / "summary.json").write_text('{"rounds": 1, "seconds": 1.5}')
    return folder


def _ones() -> Any:
    import torch

    return torch.ones(2, 3)


def _dump(tree: Any) -> bytes:
    return json.dumps(tree, default=str).encode(errors="replace")


def _look(run_folder: Path, out: Path) -> None:
    """Do with a run folder what the commands do: read it, show it, report it among others."""
    with refused_at_worst("read"):
        run = read_run(run_folder)
        console = Console(file=StringIO(), width=100)
        console.print(rounds_table(run), summary_table(run))
        assert len(address(run.config)) == 12
    with refused_at_worst("watch"):
        view = view_of(run_folder)
        view.look()
        Console(file=StringIO()).print(view.render(), view.line(), markup=False)
    broken: dict[Path, str] = {}
    runs = find_runs([out.parent / "whole", run_folder.parent], broken=broken.__setitem__)
    assert all("\n" not in fault for fault in broken.values())
    with refused_at_worst("report"):
        report = make_report(make_study(runs, broken=broken), target=0.5)
        for text in (csv_text(report), markdown_text(report, title="T"), latex_text(report), rounds_text(runs)):
            text.encode()


def checks(places: Places) -> dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any], int]]:
    """Return every kind of input: what is done with one, how it is drawn, and how many of a hundred are of the kind."""
    root, whole = places.root, {name: _dump(tree) for name, tree in places.files.items()}
    whole["rounds.jsonl"] = b"".join(_dump(line) + b"\n" for line in places.files["rounds.jsonl"])
    whole["config.yaml"] = (places.run / "config.yaml").read_bytes()

    def parse(tree: Any) -> None:
        with refused_at_worst(tree):
            address(RunConfig.parse(tree))

    def words(typed: list[str]) -> None:
        with refused_at_worst(typed):
            RunConfig.parse(parse_overrides(typed))

    def document(data: bytes) -> None:
        for parser in (parse_yaml, parse_json):
            with refused_at_worst(data):
                parser(data)

    def written(tree: Any) -> None:
        with refused_at_worst(tree):
            RunConfig.parse(
                tree if isinstance(tree := parse_yaml(yaml.safe_dump(tree).encode(errors="replace")), dict) else {}
            )

    def reference(text: str) -> None:
        with refused_at_worst(text):
            imports.near_reference(text), imports.colon_hint(text), imports.absolute_reference(text, root)
            # a module that there is may be imported by whoever types its name
            if text.partition(":")[0] not in sys.modules:
                imports.load(f"no_such_{text}")

    def run_folder(files: dict[str, bytes]) -> None:
        folder = root / "received" / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, data in {**whole, **files}.items():
            (folder / name).write_bytes(data)
        _look(folder, root / "out")

    def picture(files: dict[str, bytes]) -> None:
        folder = root / "pictured"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "barriers").mkdir(parents=True)
        for name, data in {**whole, **files}.items():
            (folder / name).write_bytes(data)
        for number in (1, 2):
            (folder / "barriers" / f"round-{number:04d}.npz").write_bytes(files.get("arrays", places.arrays))
        with refused_at_worst("show"):
            show_run(read_run(folder), Console(file=StringIO(), width=100))

    def arrays(data: bytes) -> None:
        (root / "altered.npz").write_bytes(data)
        with refused_at_worst("npz"):
            read_arrays(root / "altered.npz")

    def npy(data: bytes) -> None:
        with refused_at_worst(data):
            split_npy(data)
        with refused_at_worst(data):
            from_npy(data)

    def checkpoint(data: bytes) -> None:
        path = root / "altered" / "checkpoints" / "round-0002.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        with refused_at_worst("checkpoint"):
            found = last_checkpoint(root / "altered", up_to=9)
            # one that is accepted is the one that was written, or of a version that wrote no digest
            assert found is None or "digest" not in found.about or found.about["digest"] == found.digest

    def sweep(data: bytes) -> None:
        (root / "sweep.yaml").write_bytes(data)
        with refused_at_worst(data):
            read_sweep(root / "sweep.yaml", workdir=root)

    def experiment(data: bytes) -> None:
        (root / "experiment.yaml").write_bytes(data)
        for quick in (False, True):
            with refused_at_worst(data):
                read_sweep(root / "experiment.yaml", workdir=root, quick=quick)

    def cells(found: dict[str, bytes]) -> None:
        for name, data in found.items():
            (places.cells / name).write_bytes(data)
        with refused_at_worst(found):
            markdown_report(read_results(places.cells.parent.parent))
        for name, data in places.cell_files.items():
            (places.cells / name).write_bytes(data)

    def lab(files: tuple[bytes, bytes]) -> None:
        folder = root / "lab"
        folder.mkdir(exist_ok=True)
        (folder / "experiment.yaml").write_bytes(files[0])
        (folder / "records.jsonl").write_bytes(files[1])
        with refused_at_worst(files):
            markdown_report(read_results(folder))

    def one_file(name: str) -> st.SearchStrategy[dict[str, bytes]]:
        tree = places.files[name]
        lines = b"\n".join if name == "rounds.jsonl" else None
        as_tree = altered(tree).map(lambda found: _lines(found) if lines else _dump(found))
        return (as_tree | mutated(whole[name]) | st.binary(max_size=60)).map(lambda data: {name: data})

    some_file = st.sampled_from(sorted(whole)).flatmap(one_file)
    cell_file = st.sampled_from(sorted(places.cell_files)).flatmap(
        lambda name: (mutated(places.cell_files[name]) | st.binary(max_size=60)).map(lambda data: {name: data})
    )
    lab_files = st.tuples(
        altered(places.lab).map(_dump) | mutated(_dump(places.lab)), altered(places.records).map(_lines)
    )
    lab_records = st.tuples(
        st.just(_dump(places.lab)), altered(places.records).map(_lines) | mutated(_lines(places.records))
    )
    import torch

    return {
        "config trees": (parse, configs, 20),
        "words": (words, st.lists(st.builds("{}={}".format, names, texts) | texts, max_size=4), 10),
        "YAML and JSON bytes": (document, st.binary() | mutated(whole["config.yaml"]) | trees.map(_dump), 15),
        "config files": (written, configs.map(lambda tree: parse_json(_dump_finite(tree))), 8),
        "import strings": (reference, texts | st.builds("{}:{}".format, texts, texts), 6),
        "run folders": (run_folder, some_file, 12),
        "pictures of a run": (picture, some_file | mutated(places.arrays).map(lambda data: {"arrays": data}), 1),
        "npz files": (arrays, mutated(places.arrays) | st.binary(), 4),
        "npy arrays": (npy, mutated(to_npy(torch.ones(2, 3))) | st.binary(), 6),
        "checkpoints": (checkpoint, mutated(places.checkpoint.read_bytes()), 6),
        "sweep files": (sweep, altered(places.sweep).map(_dump) | mutated(_dump(places.sweep)), 6),
        "experiment files": (experiment, altered(places.experiment).map(_dump) | mutated(_dump(places.experiment)), 2),
        "laboratory folders": (cells, cell_file, 2),
        "laboratory folders of the earlier format": (lab, lab_files | lab_records, 2),
    }


def _lines(found: Any) -> bytes:
    return b"".join(_dump(line) + b"\n" for line in found) if isinstance(found, list) else _dump(found) + b"\n"


def _dump_finite(tree: Any) -> bytes:
    return json.dumps(json.loads(json.dumps(tree, default=str), parse_constant=lambda word: 0.0)).encode(
        errors="replace"
    )


def _counting(check: Callable[[Any], None], counts: dict[str, int], name: str) -> Callable[[Any], None]:
    def counted(value: Any) -> None:
        counts[name] = counts.get(name, 0) + 1
        check(value)

    return counted


def try_many(examples: int) -> dict[str, int]:
    """Try ``examples`` inputs in all and return how many of each kind were tried."""
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        for name, (check, drawn, share) in checks(Places(Path(folder))).items():
            counted = _counting(check, counts, name)
            limits = settings(
                max_examples=max(examples * share // 100, 1), deadline=None, database=None, derandomize=False,
                suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
            )  # fmt: skip
            seed(0)(limits(given(drawn)(counted)))()
    return counts


if __name__ == "__main__":
    found = try_many(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
    for kind, count in found.items():
        print(f"{count:7,}  {kind}")
    print(f"{sum(found.values()):7,}  in all")
