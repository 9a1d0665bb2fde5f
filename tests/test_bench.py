"""The benchmark: equal work for all contestants, times that leave evaluation out, ratios taken turn by turn.

That contestants run through the real runtime is shown by `fedpfn bench --quick`, which CI runs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from rich.console import Console
from typer.testing import CliRunner

from experiments.bench import (
    barriers,
    bench,
    cached_client,
    contest,
    contestants,
    figures,
    made_data,
    scale,
    server_side,
    stock_client,
)
from experiments.bench import tables as bench_tables
from experiments.bench.bare import bare_seconds
from experiments.bench.contestants import CONTESTANTS, Timing
from experiments.bench.memory import family, held
from experiments.bench.table import Table
from experiments.bench.workloads import SIZES, Workload, over_clients, workloads
from experiments.cli import app
from experiments.runtime.failure import RunFailedError
from fedpfn import imports
from fedpfn.examples import Examples
from fedpfn.models import build
from fedpfn.runs.config import RunConfig
from fedpfn.seeding import numpy_generator
from partitions import partition
from strategies.assembly import build_model, load_data

QUICK = workloads("quick")["c"]


def config_of(workload: Workload, **keys: Any) -> RunConfig:
    return RunConfig.parse(workload.settings() | {"device": "cpu"} | keys)


# the work


@pytest.mark.parametrize("size", SIZES)
def test_every_client_of_a_workload_has_the_same_work(size: str) -> None:
    for workload in [*workloads(size).values(), *over_clients(size)]:
        config = config_of(workload)
        labels = np.arange(workload.clients * workload.examples) % made_data.CLASSES
        settings = config.partition
        parts = partition(
            settings.scheme, labels, workload.clients, numpy_generator(0, "partition"), alpha=0.3, min_size=0,
            shards_per_client=settings.shards_per_client, classes_per_client=settings.classes_per_client,
        )  # fmt: skip
        assert {len(part) for part in parts} == {workload.examples}
        assert round(config.federation.fraction * workload.clients) == workload.a_round
        assert workload.steps == config.train.epochs * int(np.ceil(workload.examples / config.train.batch_size))


def test_two_class_shards_are_what_workload_a_says() -> None:
    workload = workloads("full")["a"]
    assert (workload.clients, workload.a_round, workload.epochs, workload.batch) == (100, 100, 5, 50)
    assert config_of(workload).partition.scheme == "shards" and config_of(workload).partition.shards_per_client == 2


def test_made_images_are_the_same_at_every_call_and_have_the_size_in_their_name() -> None:
    loader = imports.load(made_data.name_of("mnist", 40))
    (images, labels), (test_images, _) = loader()
    assert images.shape == (40, 1, 28, 28) and images.dtype == np.uint8 and len(test_images) == made_data.TEST
    assert np.bincount(labels).tolist() == [4] * 10
    assert np.array_equal(images, loader()[0][0])
    with pytest.raises(ValueError, match="no 'svhn_5'"):
        imports.load("experiments.bench.made_data:svhn_5")


# the contestants


def answer_of(client: Any, config: RunConfig, arrays: ArrayRecord, partition_id: int) -> Message:
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"lr": config.train.lr})})
    message = Message(content, dst_node_id=1, message_type=MessageType.TRAIN)
    context = Context(
        run_id=0, node_id=1, node_config={"partition-id": partition_id, "num-partitions": 4}, state=RecordDict(),
        run_config={},
    )  # fmt: skip
    job = contest.Job(client.__name__, config.flat(), nodes=4, actors=1, gpus=0, scratch="")
    contest.run_config.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in job.environment().items():
            patch.setenv(name, value)
        return cast(Message, client.app(message, context))


@pytest.mark.parametrize("client", [stock_client, cached_client], ids=["stock", "cached"])
def test_a_flower_contestant_takes_the_steps_that_the_workload_says(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(QUICK)
    arrays = ArrayRecord(build_model(config, load_data(config).dataset).state_dict())
    taken: list[int] = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (taken.append(1), step(self))[1])
    answer = answer_of(client, config, arrays, 2)
    assert len(taken) == QUICK.steps == 2
    assert answer.content.metric_records["metrics"]["num-examples"] == QUICK.examples
    after = answer.content.array_records["arrays"].to_torch_state_dict()
    before = arrays.to_torch_state_dict()
    assert after.keys() == before.keys() and not torch.equal(after["head.weight"], before["head.weight"])


def test_stock_and_cached_see_the_same_images() -> None:
    config = config_of(QUICK)
    dataset, images, parts = stock_client._data(config)
    kept = cached_client._keep(config)
    for index in parts[1][:3]:
        stock, label = images[int(index)]
        torch.testing.assert_close(stock, kept.inputs[index], rtol=0, atol=1e-6)
        assert label == int(kept.labels[index]) == int(dataset.train.labels[index])


def test_a_rounds_time_leaves_evaluation_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("mlp", (4,), 3, seed=0, width=4)
    test = Examples(torch.randn(10, 4), torch.randint(0, 3, (10,)))
    real = contest.evaluate
    monkeypatch.setattr(contest, "evaluate", lambda *args: (time.sleep(0.3), real(*args))[1])
    stop = contest.stopwatch(tmp_path, model, test)
    for server_round in range(3):
        stop(server_round, ArrayRecord(model.state_dict()))
        time.sleep(0.05)
    rounds = contest.read_rounds(tmp_path)
    assert [record["round"] for record in rounds] == [1, 2]
    assert all(0.05 <= record["seconds"] < 0.25 for record in rounds)


def test_a_contestant_that_fails_says_why_in_its_last_words(tmp_path: Path) -> None:
    refused = pytest.raises(RunFailedError, match=r"^- federation\.clients must be at least 1, got 0$")
    with refused, contestants.fedpfn_run({"federation.clients": 0}, [], tmp_path):
        pass
    said = "ValueError: first\nKeyError: 'lr'\n\x1b[31mRuntimeError: Simulation Runtime crashed.\x1b[0m\n\n"
    assert contestants.last_words(said) == "KeyError: 'lr'"


def test_the_bare_loop_takes_all_steps_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (taken.append(1), step(self))[1])
    (seconds,) = bare_seconds(QUICK, device="cpu", repeats=1)
    assert seconds > 0
    # one round to warm up, one timed
    assert len(taken) == 2 * QUICK.a_round * QUICK.steps


# barriers and the server's part


def test_evaluations_and_matrix_products_by_hand() -> None:
    case = barriers.Measurement("", "mnist", "mlp", {}, models=4, examples=10, points=5)
    # four ends, six pairs with three inner points
    assert case.evaluations == 4 + 6 * 3
    mlp = build("mlp", (1, 28, 28), 10, seed=0, hidden=1, width=7)
    assert barriers._products(mlp, torch.zeros(2, 1, 28, 28)) == [(1, 784, 7), (1, 7, 10)]
    cnn = build("cnn", (1, 18, 18), 10, seed=0)
    rows = barriers._products(cnn, torch.zeros(2, 1, 18, 18))
    assert rows == [(256, 9, 32), (36, 288, 64), (1, 576, 64), (1, 64, 64), (1, 64, 10)]


def test_both_ways_to_measure_barriers_agree() -> None:
    for case in barriers.measurements("quick"):
        found = barriers.measure(case, device="cpu")
        assert found["evaluations"] == case.evaluations == 3 + 3 * 3
        assert max(found["largest-difference"][kind] for kind in ("loss", "loss_barriers")) <= 1e-6
        assert found["limit"] > 0 and all(len(seconds) == 1 for seconds in found["seconds"].values())


def test_the_servers_part_is_told_per_100_megabytes() -> None:
    (case,) = server_side.cases("quick")
    found = server_side.measure(case)
    assert found["megabytes"] == pytest.approx(4 * 199210 * 4 / 1e6)
    whole = found["configure"] + found["aggregate"]
    assert found["seconds-per-100-MB"] == pytest.approx(whole * 100 / found["megabytes"])


# what is made of it


def a_result() -> dict[str, Any]:
    """Two turns of (c): ours 1 s and 2 s, stock 4 s and 12 s, cached failed once and took 4 s once."""
    seconds: dict[str, list[list[float] | None]] = {
        "stock": [[4.0, 4.0, 9.0], [12.0]],
        "cached": [None, [4.0]],
        "ours-each": [[1.0], [1.0]],
        "ours": [[1.0], [2.0]],
        "ours-fedpfn": [[1.02], [2.02]],
        "pfl": [[0.5], [1.0]],
        "bare": [[1.6], [1.6]],
    }
    training = []
    for name, runs in seconds.items():
        for turn, found in enumerate(runs):
            entry = {"workload": "c", "clients": 3, "contestant": name, "repeat": turn, "load": 1.0 + turn}
            ours = [0.8 * second for second in found or []] if name.startswith("ours") else []
            accuracy = None if name == "bare" else 0.9
            result = {"failed": "why"} if found is None else {"seconds": found, "train": ours, "accuracy": accuracy}
            training.append(entry | result)
    return {
        "command": "fedpfn bench c",
        "size": "reduced",
        "actors": 2,
        "cores": 2,
        "environment": {
            "device": "cpu", "accelerator": "none", "platform": "Linux", "python": "3.11", "versions": {"flwr": "1.41"},
            "git-revision": "abc",
        },
        "not-installed": {"fluke": "no network"},
        "training": training,
        "barriers": [],
        "server": [],
        "over-clients": [],
        "over-models": [],
        "scale": [],
        "long": [],
    }  # fmt: skip


def rows_of(table: Table) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in table.rows}


def test_ratios_are_taken_turn_by_turn() -> None:
    rounds, to_ours, _, local = bench_tables.tables(a_result())
    seconds, ratios = rows_of(rounds), rows_of(to_ours)
    assert seconds["Flower's quickstart"] == ["8.000 (4.000)"] and seconds["ours, cohorts"] == ["1.500 (1.000)"]
    # 4 / 1 and 12 / 2, not 8 / 1.5; cached completed the second turn alone
    assert ratios["Flower's quickstart"] == ["5.00 [4.00, 6.00] (≥ 8)"]
    assert ratios["with caches"] == ["2.00 (≥ 3)"]
    assert ratios["pfl-research, a process per core"] == ["0.50 [0.50, 0.50]"]
    # two actors train for 1.6 s and 3.2 s together
    assert local.rows[0][1:4] == ["1.600", "2.400", "0.75 [0.50, 1.00]"]
    assert local.rows[0][4].startswith("1.015 [1.010, 1.020] (≤ 1.03)")


def test_tables_as_markdown_say_the_machine_the_accuracies_and_who_is_missing() -> None:
    text = bench_tables.markdown(a_result())
    assert "2 CPU cores, 2 actors; Linux, Python 3.11, flwr 1.41; revision abc; load 1.0 to 2.0" in text
    assert "| Flower's quickstart | 8.000 (4.000) |" in text
    assert "| ours, cohorts | 0.900 |" in text and "| bare PyTorch loop, one process | – |" in text
    assert "fluke, which was not installed: no network" in text


def test_the_memory_of_a_process_counts_what_it_starts() -> None:
    hold = "import time; held = bytearray(60_000_000); print('ready', flush=True); time.sleep(60)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    process = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert 60e6 < sum(map(held, family(process.pid))) < 200e6
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert family(process.pid) == []


def test_scale_is_shown_as_a_table_and_a_figure(tmp_path: Path) -> None:
    seconds = {"round": 0.5, "train": 0.25, "transfer": 0.125, "aggregate": 0.0625}
    entries = [
        {"case": asdict(case), "model_bytes": case.model_bytes, "seconds": seconds, "peak_bytes": 2_500_000_000}
        for case in scale.cases("full")
    ]
    (table,) = [t for t in bench_tables.tables(a_result() | {"scale": entries}) if t.title == "How a federation grows"]
    assert table.rows[4] == ["100,000", "0.1", "0.500", "0.250", "0.125", "0.062", "2.50"]
    assert table.rows[-1][:2] == ["10", "45.0"]
    (file,) = figures.write_figures(a_result() | {"scale": entries}, tmp_path)
    assert file.name == "scale.png" and file.stat().st_size > 10_000


def test_a_long_run_is_shown_early_and_late(tmp_path: Path) -> None:
    samples = [
        {"round": number, "bytes": {"server": 4e8, "workers": 9e8 + 1e6 * number, "Ray": 2e8, "log": 1e3 * number}}
        for number in range(101)
    ]
    entry = {"rounds": 100, "samples": samples, "seconds": [0.5] * 50 + [0.25] * 50}
    (table,) = [t for t in bench_tables.tables(a_result() | {"long": [entry]}) if t.title.startswith("100 rounds")]
    assert ["workers, MB", "930.0", "990.0"] in table.rows and ["server, MB", "400.0", "400.0"] in table.rows
    assert table.rows[-1] == ["seconds per round", "0.5000", "0.2500"]
    (file,) = figures.write_figures(a_result() | {"long": [entry]}, tmp_path)
    assert file.name == "long.png" and file.stat().st_size > 10_000


def test_contestants_take_turns_and_a_failure_is_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def run(contestant: Any, workload: Workload, **machine: Any) -> Timing:
        order.append(contestant.name)
        if contestant.name == "cached":
            raise RunFailedError("no memory")
        return Timing([1.0, 3.0, 2.0], [0.5], 0.8)

    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(bench, "bare_seconds", lambda workload, device: [1.0])
    file, console = tmp_path / "bench.json", Console(file=(tmp_path / "printed").open("w"), width=200)
    found = bench.bench(
        ["c", "clients", "models", "server"],
        console,
        size="quick",
        repeats=2,
        device="cpu",
        actors=2,
        gpus=0,
        file=file,
        environments=tmp_path,
    )
    assert order == [*CONTESTANTS, *CONTESTANTS, "ours"]
    assert json.loads(file.read_text()) == json.loads(json.dumps(found))
    failed = [entry for entry in found["training"] if "failed" in entry]
    assert [(entry["contestant"], entry["repeat"], entry["failed"]) for entry in failed] == [
        ("cached", 0, "no memory"),
        ("cached", 1, "no memory"),
    ]
    made = figures.write_figures(found, tmp_path)
    assert all(path.stat().st_size > 1000 for path in made) and len(made) == 2


def test_what_was_measured_before_a_failure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(case: scale.Case, *, actors: int) -> dict[str, Any]:
        if case.axis == "width":
            raise RunFailedError("no memory")
        return {"case": asdict(case)}

    monkeypatch.setattr(scale, "measure", measure)
    file, console = tmp_path / "bench.json", Console(file=(tmp_path / "printed").open("w"))
    with pytest.raises(RunFailedError):
        bench.bench(
            ["scale"],
            console,
            size="quick",
            repeats=1,
            device="cpu",
            actors=1,
            gpus=0,
            file=file,
            environments=tmp_path,
        )
    assert [entry["case"]["axis"] for entry in json.loads(file.read_text())["scale"]] == ["clients"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["z"], "there is no part 'z' at size reduced; there are a, b, c, cnn, e1, e2, d, server, clients, models"),
        (["a", "--quick"], "there is no part 'a' at size quick; there are c, d, server, clients, models"),
        (["--peers", "pfl,flwr"], "there is no peer 'flwr'; there are pfl, pfl-1, fluke, blazefl"),
        (["--quick", "--full"], "--quick and --full are mutually exclusive"),
    ],
)
def test_what_cannot_be_asked_for_is_said_at_once(words: list[str], message: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["bench", *words, "--out", str(tmp_path / "out")])
    assert found.exit_code == 1 and message in " ".join(str(found.exception).split())
    assert not (tmp_path / "out").exists()
