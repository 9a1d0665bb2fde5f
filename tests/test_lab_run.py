"""Tiny experiments of the laboratory from file to folder: each kind runs, is recorded once, and is drawn."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiment_results import METHOD, ran, written
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from experiments.lab.cell import run_cell
from experiments.lab.config import LabConfig
from experiments.lab.settings import load_material, lr_factor_of, mask_of, sample, steps_of
from experiments.lab.soup_cells import half_of_the_classes
from experiments.published.figures import draw_figures
from experiments.published.results import Results, read_results
from experiments.sweep.cell_queue import CellQueue, Stopped, Task
from experiments.sweep.display import Display
from experiments.sweep.run import sweep
from experiments.sweep.states import State, cell_state
from fedpfn.evaluation import evaluate
from fedpfn.examples import Examples
from fedpfn.masks import build_mask
from fedpfn.models import build
from fedpfn.params import lerp, trainable
from fedpfn.runs.config import ConfigError

SMALL = "data: {name: digits, train-examples: 200, test-examples: 100}, model: {hidden: 2, width: 12}"
TWO = f"""
title: Small
kind: siblings
seeds: 2
base: {{{SMALL}, train: {{epochs: 1, lr: 0.01, models: 3}}, barrier: {{points: 3}}, output: {{save-models: true}}}}
grid: {{train.method: [vanilla, tna-pfn]}}
figures:
  - {{kind: bars, y: [fusion_barrier]}}
  - {{kind: curves}}
"""


def models_of(out: Path, record: dict[str, Any]) -> Path:
    (folder,) = (out / "cells").glob(f"*-{record['cell']}")
    return folder / "models"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``TWO`` run into ``out``, to look at and not to touch."""
    folder = tmp_path_factory.mktemp("small")
    ran(folder, TWO)
    return folder


def test_an_experiment_leaves_a_record_for_each_cell(small: Path) -> None:
    found = read_results(small / "out")
    assert found.complete and len(found.records) == 4
    assert [(r["axes"][METHOD], r["seed"]) for r in found.records] == [
        ("vanilla", 0),
        ("vanilla", 1),
        ("tna-pfn", 0),
        ("tna-pfn", 1),
    ]
    assert found.environment["versions"]["torch"] == torch.__version__.split("+")[0]


def test_the_figures_on_record_are_those_of_the_saved_models(tmp_path: Path, small: Path) -> None:
    found = read_results(small / "out")
    cells = written(tmp_path, TWO)
    for record, cell in zip(found.records, cells, strict=True):
        material = load_material(cell.config)
        model = build("mlp", material.input_shape, 10, seed=0, hidden=2, width=12)
        folder = models_of(small / "out", record)
        states = [load_file(folder / f"model-{index}.safetensors") for index in range(3)]
        accuracies = [evaluate(model, material.test, state=state).accuracy for state in states]
        assert record["measures"]["average_accuracy"] == pytest.approx(np.mean(accuracies))
        half = [
            evaluate(model, material.test, state=lerp(states[i], states[j], 0.5)).accuracy
            for i, j in ((0, 1), (0, 2), (1, 2))
        ]
        assert record["measures"]["interpolated_accuracy"] == pytest.approx(np.mean(half))
        assert found.arrays(record)["accuracy"][:, 1] == pytest.approx(half)
        mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
        fused = evaluate(model, material.test, state=mean).accuracy
        assert record["measures"]["fusion_barrier"] == pytest.approx(1 - fused / np.mean(accuracies))
        frozen = torch.stack([state["linear1.weight"] for state in states])
        share = float(((frozen[0] == frozen[1]) & (frozen[1] == frozen[2])).float().mean())
        assert share == pytest.approx(0.4 if record["axes"]["train.method"] == "tna-pfn" else 0.0, abs=0.05)


def without_seconds(run: Results) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in run.records]


OWN = """
from torch import nn


class TinyNet(nn.Sequential):
    def __init__(self, input_shape, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment as typed in a folder with a module of the user's, run by two processes into ``out``."""
    folder = tmp_path_factory.mktemp("side_by_side")
    (folder / "side_by_side_models.py").write_text(OWN)
    (folder / "mine.yaml").write_text(
        f"{TWO}cases: {{mlp: {{}}, own: {{model: {{name: 'side_by_side_models:TinyNet', width: 200}}}}}}\n"
    )
    command = [str(Path(sys.executable).with_name("fedpfn")), "sweep", "mine.yaml", "--jobs", "2", "--out", "out"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.slow
def test_processes_side_by_side_give_the_same_records(side_by_side: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(side_by_side)
    alone = ran(side_by_side, (side_by_side / "mine.yaml").read_text(), out="alone")
    assert len(alone.records) == 8 and without_seconds(alone) == without_seconds(read_results(side_by_side / "out"))


@pytest.mark.slow
def test_modules_of_the_users_own_are_found_where_the_command_is_typed(side_by_side: Path) -> None:
    """Also in the processes of the cells."""
    own = [record for record in read_results(side_by_side / "out").records if record["case"] == "own"]
    assert [record["config"]["model.name"] for record in own] == ["side_by_side_models:TinyNet"] * 4


def test_a_cell_that_failed_is_recorded_with_its_reason_and_runs_again_when_asked(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(kind: str, config: LabConfig, folder: Path) -> None:
        if (config.train.method, config.seed) == ("tna-pfn", 0):
            raise FloatingPointError("a third cell\nwent wrong")
        run_cell(kind, config, folder)

    with monkeypatch.context() as patch:
        patch.setattr("experiments.lab.cell.run_cell", failing)
        half = ran(tmp_path, TWO)
    assert not half.complete and len(half.records) == 3
    (failure,) = (tmp_path / "out").rglob("failure.json")
    assert json.loads(failure.read_text())["reason"] == "FloatingPointError: a third cell went wrong"
    assert not ran(tmp_path, TWO).complete
    asked: dict[str, Any] = {"workdir": tmp_path, "out": tmp_path / "out", "jobs": 1, "in_process": True}
    assert sweep(tmp_path / "mine.yaml", [], Console(quiet=True), retry_failed=True, **asked)
    assert without_seconds(read_results(tmp_path / "out")) == without_seconds(read_results(small / "out"))
    assert not list((tmp_path / "out").rglob("failure.json"))


def test_a_cell_in_this_process_can_be_stopped_and_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("{kind: theorem, base: {theorem: {hidden: 8, inputs: 2, trials: 2000000}}}")
    begun = time.monotonic()

    def stop(self: CellQueue) -> None:
        if time.monotonic() > begun + 2:
            raise Stopped

    monkeypatch.setattr("experiments.sweep.cell_queue.CellQueue.check", stop)
    asked: dict[str, Any] = {"workdir": tmp_path, "out": tmp_path / "out", "jobs": 1, "in_process": True}
    assert not sweep(tmp_path / "mine.yaml", [], Console(quiet=True), **asked)
    assert time.monotonic() < begun + 60
    (folder,) = (tmp_path / "out" / "cells").iterdir()
    assert json.loads((folder / "failure.json").read_text()) == {"reason": "stopped by the user", "stopped": True}
    assert cell_state(folder) is State.CUT


def test_an_experiment_can_grow_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ran(tmp_path, TWO, "seeds=1")
    started: list[int] = []
    whole = run_cell
    monkeypatch.setattr("experiments.lab.cell.run_cell", lambda *cell: (started.append(cell[1].seed), whole(*cell)))
    second = ran(tmp_path, TWO)
    assert len(first.records) == 2 and len(second.records) == 4 and second.complete
    # what was there was not run again
    assert started == [1, 1] and second.seconds == pytest.approx(sum(r["seconds"] for r in second.records))


def test_everything_that_can_be_measured_is_measured_and_drawn(tmp_path: Path) -> None:
    text = f"""
kind: siblings
base:
  {{{SMALL}, train: {{epochs: 1, models: 3}}, barrier: {{points: 3}},
    measure: {{layers: true, plane: true, plane-points: 3, calibration: true}},
    match: {{methods: "weight,activation,ste,annealing,merge", steps: 3, examples: 50}}}}
cases: {{one: {{data: {{held-out: 50}}}}}}
grid: {{model.width: [8, 12], mask.ratio: [0.2, 0.4]}}
figures:
  - {{kind: lines, x: model.width, y: [accuracy_barrier, loss_barrier], log: true}}
  - {{kind: heat, x: model.width, y: mask.ratio, value: accuracy_barrier}}
  - {{kind: plane}}
  - {{kind: layers, y: [llfc_0.5, additivity]}}
  - {{kind: bars, y: fusion_barrier}}
  - {{kind: curves}}
"""
    found = ran(tmp_path, text)
    measures = found.records[0]["measures"]
    for name in (
        "weight_sweeps",
        "activation_accuracy_barrier",
        "ste_fusion_barrier",
        "annealing_loss_barrier",
        "merge_rounds",
    ):
        assert name in measures
    assert {"calibrated_loss_barrier", "calibrated_beta", "train_loss"} <= measures.keys()
    assert [row["layer"] for row in found.records[0]["rows"]["layers"]] == ["linear1", "linear2", "head"]
    assert found.arrays(found.records[0])["plane_loss"].shape == (3, 3)
    names = draw_figures(found)
    assert len(names) == 6
    for name in names:
        for suffix in (".png", ".svg"):
            assert (tmp_path / "out" / "figures" / name).with_suffix(suffix).stat().st_size > 1000


@pytest.mark.parametrize(
    "start",
    [
        "start: {kind: independent}",
        "start: {kind: semi-trained, epochs: 1}",
        "train: {spawn-share: 0.5, epochs: 1}",
        "train: {method: pruning, lr-schedule: cosine}",
        "mask: {layers: last}, train: {method: tna-pfn}",
        "model: {bias: false, hidden: 1}",
        "data: {name: quadratic}, train: {epochs: 1}",
    ],
)
def test_every_start_and_variant_runs(tmp_path: Path, start: str) -> None:
    base = "base: {data: {name: digits, train-examples: 100, test-examples: 50}}"
    text = f"kind: siblings\n{base}\ncases: {{it: {{{start}}}}}"
    found = ran(tmp_path, text, "barrier.points=3", "model.width=8")
    assert found.records[0]["measures"]["loss_barrier"] >= 0


def test_a_start_from_a_file_is_that_file(tmp_path: Path, small: Path) -> None:
    first = read_results(small / "out")
    weights = models_of(small / "out", first.records[0]) / "model-0.safetensors"
    found = ran(tmp_path, TWO, "start.kind=file", f"start.path={weights}", "train.lr=1e-9", "seeds=1", out="file")
    assert found.records[0]["measures"]["average_accuracy"] > first.records[0]["measures"]["average_accuracy"] - 0.1
    states = load_file(weights)
    kept = load_file(models_of(tmp_path / "file", found.records[0]) / "model-1.safetensors")
    assert all(torch.allclose(kept[name], states[name], atol=1e-6) for name in states)


def test_the_theorem_is_measured_below_its_bounds(tmp_path: Path) -> None:
    found = ran(
        tmp_path,
        """
kind: theorem
base: {theorem: {hidden: 16, inputs: 4, trials: 200}}
grid: {theorem.hidden-ratio: [0.0, 0.5, 1.0]}
figures: [{kind: theorem, x: theorem.hidden-ratio}]
""",
    )
    measures = [record["measures"] for record in found.records]
    assert all(0 <= m[f"{z}_quantile"] <= m[f"{z}_bound"] for m in measures for z in ("z", "z_prime", "z_second"))
    assert measures[-1]["z_quantile"] == 0 < measures[0]["z_quantile"]
    assert draw_figures(found) == ["1-theorem"]


def test_soups_and_cold_fusion_run_with_and_without_a_mask(tmp_path: Path) -> None:
    soup = ran(
        tmp_path,
        f"""
kind: soup
base: {{{SMALL}, soup: {{lrs: "0.01,0.003", epochs: "1", pretrain-epochs: 1}}}}
cases: {{a: {{data: {{held-out: 100}}}}}}
grid: {{train.method: [vanilla, tna-pfn]}}
""",
    )
    for record in soup.records:
        assert record["measures"]["held_out_greedy"] >= record["measures"]["held_out_best"]
    assert soup.records[0]["measures"] != soup.records[1]["measures"]
    cold = ran(
        tmp_path,
        f"kind: cold\nbase: {{{SMALL}, cold: {{rounds: 2, tasks: 3}}}}\ngrid: {{train.method: [vanilla, tna-pfn]}}",
        out="cold",
    )
    assert cold.arrays(cold.records[0])["after"].shape == (2, 3)
    assert cold.records[0]["measures"] != cold.records[1]["measures"]


def test_faults_are_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        ran(tmp_path, "kind: siblings\nbase: {data: {name: mnist}, model: {name: mpl}}")
    assert len(caught.value.faults) == 2 and not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"a soup needs data\.held-out examples"):
        ran(tmp_path, "kind: soup")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kind: theorem\nbase: {train: {epochs: 3}}", "kind theorem does not read train.epochs: leave it at 2.0"),
        ("kind: soup\nbase: {train: {steps: 5}, data: {held-out: 9}}", "kind soup does not read train.steps"),
        ("kind: soup\nbase: {train: {method: pruning}, data: {held-out: 9}}", "not pruning"),
        ("kind: soup\nbase: {start: {kind: independent}, data: {held-out: 9}}", "needs one start"),
        ("kind: cold\nbase: {train: {epochs: 1.5}}", "kind cold trains whole epochs"),
        ("kind: siblings\nbase: {soup: {lrs: '1'}}", "kind siblings does not read soup.lrs"),
        ("kind: siblings\nfigures: [{kind: pie}]", "figure 1: kind must be one of bars"),
        ("kind: siblings\nfigures: [{kind: lines, x: mask.ratio, y: loss_barrier}]", "'mask.ratio' is not an axis"),
        (
            "kind: siblings\ngrid: {mask.ratio: [0.1, 0.2]}\n"
            "figures: [{kind: heat, x: mask.ratio, y: [mask.ratio], value: loss_barrier}]",
            "['mask.ratio'] is not an axis",
        ),
    ],
)
def test_what_would_be_ignored_or_not_drawn_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ran(tmp_path, text)
    (fault,) = caught.value.faults
    assert told in fault


def test_some_of_the_examples_are_drawn_and_not_the_first() -> None:
    ordered = Examples(torch.arange(100.0)[:, None], torch.arange(100) // 50)
    found = sample(ordered, 20, 0, "match")
    assert len(found) == 20 and 3 < int(found.labels.sum()) < 17
    assert torch.equal(found.inputs, sample(ordered, 20, 0, "match").inputs)
    assert sample(ordered, 0, 0, "match") is ordered is sample(ordered, 100, 0, "match")


def test_a_third_of_the_layers_narrows_what_is_included(tmp_path: Path) -> None:
    def frozen(words: str) -> set[str]:
        (cell,) = written(tmp_path, f"kind: siblings\nbase: {{model: {{hidden: 2}}, mask: {{{words}}}}}")
        model = build("mlp", (4,), 2, seed=0, hidden=2, width=8)
        mask = build_mask(mask_of(cell.config, model), trainable(model))
        return {name for name, trained in mask.items() if not bool(trained.all())}

    assert frozen("layers: first") == {"linear1.weight", "linear1.bias"}
    assert frozen("layers: first, include: '*.weight'") == {"linear1.weight"}
    with pytest.raises(ConfigError, match=r"within mask\.layers=first matches none"):
        frozen("layers: first, include: 'head.*'")


def test_a_model_that_cannot_be_matched_is_told_before_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.lab.sibling_cells.train_siblings", lambda *_, **__: pytest.fail("it was trained"))
    one_unit = SMALL.replace("hidden: 2, width: 12", "hidden: 1, width: 1")
    ran(tmp_path, f"kind: siblings\nbase: {{{one_unit}, match: {{methods: weight}}}}")
    (failure,) = tmp_path.rglob("failure.json")
    assert "no units of the model can be permuted" in json.loads(failure.read_text())["reason"]


@pytest.mark.parametrize("measure", ["plane: true", "layers: true", "calibration: true"])
def test_batch_norms_policy_holds_for_every_measure(tmp_path: Path, measure: str) -> None:
    text = f"""
kind: siblings
base: {{data: {{name: cifar-like, train-examples: 60, test-examples: 40, held-out: 20}},
        model: {{name: "{__name__}:normed"}}, train: {{steps: 3, models: 3}}, barrier: {{points: 3}},
        measure: {{{measure}, plane-points: 3}}}}
grid: {{barrier.batch-norm: [average, reset]}}
""".replace("cifar-like", "digits")
    found = ran(tmp_path, text)
    average, reset = (found.arrays(record) | {"rows": record["rows"].get("layers", [])} for record in found.records)
    if "calibration" in measure:
        assert reset["loss"][0] == pytest.approx(reset["raw_loss"], rel=1e-5)
        assert average["loss"][0] == pytest.approx(average["raw_loss"], rel=1e-5)
        assert not np.allclose(average["raw_loss"], reset["raw_loss"])
    elif "plane" in measure:
        assert not np.allclose(average["plane_loss"], reset["plane_loss"])
    else:
        assert average["rows"][0]["llfc_0.5"] != reset["rows"][0]["llfc_0.5"]


def normed(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    size = int(np.prod(input_shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))


def test_steps_follow_from_epochs_which_may_be_fractions(tmp_path: Path) -> None:
    (cell,) = written(tmp_path, "kind: siblings\nbase: {train: {epochs: 1.5, batch-size: 10, lr-schedule: linear}}")
    assert steps_of(cell.config, 100) == 15
    factor = lr_factor_of(cell.config, 10)
    assert factor is not None and [factor(step) for step in (0, 5, 10)] == [1.0, 0.5, 0.0]
    (cell,) = written(tmp_path, "kind: siblings\nbase: {train: {steps: 7, lr-schedule: cosine}}")
    assert steps_of(cell.config, 100) == 7
    factor = lr_factor_of(cell.config, 10)
    assert factor is not None and [round(factor(step), 9) for step in (0, 5, 10)] == [1.0, 0.5, 0.0]


def test_held_out_examples_are_not_trained_on(tmp_path: Path) -> None:
    (cell,) = written(tmp_path, "kind: siblings\nbase: {data: {name: digits, held-out: 100}}")
    material = load_material(cell.config)
    held = {tensor.numpy().tobytes() for tensor in material.held_out.inputs}
    assert len(material.held_out) == 100
    overlap = sum(tensor.numpy().tobytes() in held for tensor in material.train.inputs)
    assert overlap <= 2  # digits holds a few equal images
    (cell,) = written(tmp_path, "kind: siblings\nbase: {data: {name: digits, held-out: 100000}}")
    with pytest.raises(ConfigError, match="leaves none of the"):
        load_material(cell.config)


def test_half_of_the_classes_is_half_of_them() -> None:
    assert len(half_of_the_classes(10, 0)) == 5 and len(set(half_of_the_classes(7, 1))) == 4
    assert half_of_the_classes(10, 0) != half_of_the_classes(10, 1)


def test_findings_are_strict_json(tmp_path: Path) -> None:
    found = ran(tmp_path, "kind: siblings\nbase: {data: {name: cubic}, train: {steps: 2}, barrier: {points: 3}}")
    (file,) = tmp_path.rglob("findings.json")
    findings = json.loads(file.read_text(), parse_constant=lambda text: pytest.fail(f"{text} in a record"))
    assert "average_accuracy" not in findings["measures"] and findings["not_finite"]["fusion_barrier"] == "nan"
    assert found.records[0]["config"] == {"data.name": "cubic", "train.steps": 2, "barrier.points": 3}


def test_the_time_left_is_judged_by_cells_that_are_done(tmp_path: Path) -> None:
    cells = written(tmp_path, "kind: theorem\ngrid: {theorem.hidden: [8, 16, 32]}")
    queue = CellQueue(Task(cell, cell.config, tmp_path / cell.address) for cell in cells)
    display = Display(queue, Console(quiet=True), total=3, before=0)
    first = queue.next(1)
    assert first is not None and display._seconds_left() is None
    queue.end(first, queue.done)
    first.seconds = 10.0
    assert display._seconds_left() == pytest.approx(20.0)
