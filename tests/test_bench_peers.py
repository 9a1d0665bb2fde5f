"""Peers in the benchmark: the same work in other frameworks, each in an environment of its own.

That the drivers run in their frameworks is shown by `fedpfn bench --peers all`, since no framework is installed here.
"""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from experiments.bench import bench, contest
from experiments.bench.contestants import Timing
from experiments.bench.peers import environments, frameworks
from experiments.bench.peers.frameworks import PEERS
from experiments.bench.peers.job import Job, Stopwatch, read, write
from experiments.bench.workloads import workloads
from experiments.runtime.failure import RunFailedError
from fedpfn.examples import Examples
from fedpfn.runs.config import RunConfig
from strategies.assembly import build_model, load_data

QUICK = workloads("quick")["c"]


# the job


def test_a_driver_reads_the_workload_that_ours_trains(tmp_path: Path) -> None:
    write(tmp_path, *frameworks.make_job(QUICK, "cpu", workers=2))
    job, data = read(tmp_path)
    config = RunConfig.parse(QUICK.settings())
    federated = load_data(config)
    train = federated.dataset.train
    ours = Examples.from_arrays(train.inputs, train.labels, mean=federated.dataset.mean, std=federated.dataset.std)
    assert torch.equal(data.inputs, ours.decoded().inputs) and torch.equal(data.labels, ours.labels)
    assert [part.tolist() for part in data.parts] == [list(part) for part in federated.parts]
    model = build_model(config, federated.dataset)
    assert {k: v.shape for k, v in job.build().state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    assert (job.batch, job.epochs, job.lr) == (config.train.batch_size, config.train.epochs, config.train.lr)
    assert (job.rounds, job.workers, config.train.momentum) == (config.rounds, 2, 0.0)


@pytest.mark.parametrize(("clients", "a_round"), [(1000, 50), (100, 29), (100, 20), (3, 1), (20, 20)])
def test_a_share_of_the_clients_comes_to_whole_clients(clients: int, a_round: int) -> None:
    job = Job(clients, a_round, 1, 1, 1, 0.1, "mlp", (1, 28, 28), {}, "cpu", 1)
    assert int(clients * job.fraction) == a_round


def test_a_stopwatch_writes_what_the_benchmark_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 3.0, 3.5])
    monkeypatch.setattr("experiments.bench.peers.job.time", SimpleNamespace(perf_counter=lambda: next(times)))
    _, data = frameworks.make_job(QUICK, "cpu", workers=1)
    stopwatch = Stopwatch()
    stopwatch.start()
    stopwatch.lap()
    stopwatch.lap()
    first_class = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    with torch.no_grad():
        first_class[1].weight.zero_()
        first_class[1].bias.copy_(torch.tensor([1.0] + [0.0] * 9))
    stopwatch.write(tmp_path, first_class, data)
    rounds = contest.read_rounds(tmp_path)
    assert [(r["round"], r["seconds"]) for r in rounds] == [(1, 2.0), (2, 0.5)]
    assert rounds[-1]["accuracy"] == pytest.approx(0.1)


# running


def stand_in(tmp_path: Path, body: str) -> Path:
    """Return an interpreter that is no peer's: a script which gets the job's folder as its last argument."""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport json, os, sys\nfolder = sys.argv[-1]\n{body}\n")
    python.chmod(0o755)
    return python


def test_a_peers_rounds_are_read_without_those_to_warm_up(tmp_path: Path) -> None:
    body = (
        "job = json.load(open(f'{folder}/job.json'))\n"
        "with open(f'{folder}/bench.jsonl', 'w') as file:\n"
        "    for n in range(1, job['rounds'] + 1):\n"
        "        print(json.dumps({'round': n, 'seconds': 9.0 if n == 1 else 0.5, 'accuracy': 0.8}), file=file)\n"
        "assert os.environ['OMP_NUM_THREADS'] == '1'"
    )
    timing = frameworks.run(PEERS["fluke"], QUICK, python=stand_in(tmp_path, body), device="cpu", actors=2)
    assert timing == Timing([0.5] * QUICK.rounds, [], 0.8)


@pytest.mark.parametrize(
    ("body", "why"), [("raise KeyError('lr')", "KeyError: 'lr'"), ("print('done')", "0 rounds of 2: done")]
)
def test_a_peer_that_does_not_do_its_rounds_has_failed(body: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=why):
        frameworks.run(PEERS["fluke"], QUICK, python=stand_in(tmp_path, body), device="cpu", actors=2)


def test_only_a_peer_with_several_processes_is_launched_by_torchrun() -> None:
    folder = Path("folder")
    several = PEERS["pfl"].words(Path("python"), folder, 2)
    assert "--nproc_per_node=2" in several and several[-2:] == ["experiments.bench.peers.pfl_driver", "folder"]
    assert PEERS["pfl-1"].workers(2) == 1
    for name, workers in (("pfl-1", 1), ("fluke", 1), ("blazefl", 2)):
        words = PEERS[name].words(Path("python"), folder, workers)
        assert words == ["python", "-m", f"experiments.bench.peers.{PEERS[name].package}_driver", "folder"]
    for peer in PEERS.values():
        assert Path(frameworks.__file__).with_name(f"{peer.package}_driver.py").exists()


# installing


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the commands that are run, none of which does anything but succeed."""
    made: list[list[str]] = []

    def run(words: list[str], **options: Any) -> Any:
        made.append(words)
        if words[1:3] == ["-m", "venv"]:
            Path(words[3], "bin").mkdir(parents=True)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(environments.subprocess, "run", run)
    return made


def install(folder: Path, *requirements: str) -> Path:
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    return environments.python_of("toy", requirements, ["9.9", own], folder=folder)


def test_an_environment_is_made_once_with_our_pytorch(tmp_path: Path, calls: list[list[str]]) -> None:
    torch_of_ours = f"torch=={version('torch').partition('+')[0]}"
    python = install(tmp_path, "toy==1")
    assert python == tmp_path / "toy" / "bin" / "python"
    assert next(words for words in calls if "pip" in words)[-2:] == [torch_of_ours, "toy==1"]
    assert [sys.executable, "-m", "venv", str(tmp_path / "toy")] in calls
    calls.clear()
    assert install(tmp_path, "toy==1") == python and not calls
    install(tmp_path, "toy==2")
    assert [words[-1] for words in calls if "pip" in words] == ["toy==2"]


def test_an_environment_that_cannot_be_made_says_why_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[list[str]]
) -> None:
    succeed = environments.subprocess.run

    def run(words: list[str], **options: Any) -> Any:
        done = succeed(words, **options)
        return subprocess.CompletedProcess(words, 1, "", "ERROR: no match\n") if "pip" in words else done

    monkeypatch.setattr(environments.subprocess, "run", run)
    for _ in range(2):
        with pytest.raises(RunFailedError, match="python -m pip failed: ERROR: no match"):
            install(tmp_path, "toy==1")
    assert sum("pip" in words for words in calls) == 2
    with pytest.raises(RunFailedError, match=r"it needs Python 9\.8 or 9\.9, and none is on the path"):
        environments.python_of("toy", [], ["9.8", "9.9"], folder=tmp_path)


def test_peers_join_the_training_and_one_without_an_environment_stays_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(peer: Any, folder: Path) -> Path:
        if peer.name == "fluke":
            raise RunFailedError("no network")
        return folder / peer.name

    pythons: list[Path] = []

    def run(peer: Any, workload: Any, *, python: Path, **machine: Any) -> Timing:
        pythons.append(python)
        return Timing([0.25], [], 0.7)

    monkeypatch.setattr(frameworks.Peer, "install", install)
    monkeypatch.setattr(frameworks, "run", run)
    monkeypatch.setattr(bench, "run", lambda *args, **machine: Timing([1.0], [0.5], 0.8))
    monkeypatch.setattr(bench, "bare_seconds", lambda workload, device: [1.0])
    with (tmp_path / "said").open("w") as said:
        result = bench.bench(
            ["c", "clients"], Console(file=said, width=200), size="quick", repeats=1, device="cpu", actors=2, gpus=0,
            file=tmp_path / "bench.json", peers=[PEERS["pfl"], PEERS["fluke"]], environments=tmp_path,
        )  # fmt: skip
    assert pythons == [tmp_path / "pfl"] and result["not-installed"] == {"fluke": "no network"}
    names = [entry["contestant"] for entry in json.loads((tmp_path / "bench.json").read_text())["training"]]
    assert names[-2:] == ["pfl", "bare"] and "fluke" not in names
