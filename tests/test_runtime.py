"""The runtime of `fedpfn run`: the plan of resources, what workers see and say, what an interrupted run leaves."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from processes import marked, needs_proc

from experiments.resources import Machine, Resources, plan_resources
from experiments.runtime import cluster, phases, ray_node
from experiments.runtime.cluster import import_path
from experiments.runtime.failure import RunFailedError, one_line
from experiments.runtime.output import output_to, shorten
from experiments.runtime.runtime import run_on, started
from experiments.runtime.temporary import temporary_folder
from experiments.runtime.workers import Workers
from fedpfn import imports
from fedpfn.runs import LOG, read_run
from fedpfn.runs.config import ConfigError, RunConfig

ROOT = Path(__file__).resolve().parents[1]

# ---- a Ray that does not start --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["node", "connection"])
def test_a_ray_that_does_not_start_is_one_line(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise Exception("the node timed out\nduring startup")  # as Ray raises it

    if fails == "node":
        monkeypatch.setattr(ray_node, "_SmallNode", fail)
    else:
        monkeypatch.setattr("ray.init", fail)
        monkeypatch.setattr(ray_node, "_SmallNode", lambda *_, **__: SimpleNamespace(gcs_address="", all_processes={}))
    before = dict(os.environ), Path.cwd()
    with (
        pytest.raises(RunFailedError, match=r"^Ray .* the node timed out during startup$"),
        cluster.local_ray(cpus=1, gpus=0, workdir=tmp_path),
    ):
        pass
    assert (dict(os.environ), Path.cwd()) == before


# ---- resources ------------------------------------------------------------------------------------------------------


def plan(**asked: Any) -> Resources:
    if "machines" not in asked:
        asked["machines"] = [Machine(asked.pop("cpus", 4), asked.pop("gpus", 0))]
    open_ones = {"supernodes": None, "actors": None, "gpus_per_actor": None}
    return plan_resources(**({"device": "cpu", "clients_per_round": 10} | open_ones | asked))


def test_a_cpu_run_gets_an_actor_and_a_supernode_for_each_core() -> None:
    assert plan() == Resources(supernodes=4, actors=4, cpus_per_actor=1, gpus=0, gpus_per_actor=0.0)


def test_no_more_actors_than_clients_in_a_round() -> None:
    assert plan(clients_per_round=3) == Resources(3, 3, 1, 0, 0.0)


def test_a_cuda_run_gets_an_actor_for_each_gpu_and_shares_the_cores() -> None:
    assert plan(device="cuda", cpus=16, gpus=2) == Resources(2, 2, 8, 2, 1.0)


def test_gpu_shares_sit_inside_single_gpus() -> None:
    assert plan(device="cuda", cpus=16, gpus=2, gpus_per_actor=0.4).actors == 4
    assert plan(device="cuda", cpus=16, gpus=1, gpus_per_actor=1 / 3).actors == 3
    assert plan(device="cuda", cpus=16, gpus=1, gpus_per_actor=0.33333334).actors == 3


def test_a_cluster_is_planned_machine_by_machine() -> None:
    two = [Machine(3), Machine(5)]
    assert plan(machines=two) == Resources(8, 8, 1, 0, 0.0)
    cards = [Machine(0, 4), Machine(4, 2), Machine(16, 2), Machine(8)]
    planned = plan(device="cuda", machines=cards)
    # two on each machine that has both, with as many CPUs as the smaller one can give
    assert (planned.actors, planned.cpus_per_actor, planned.gpus_per_actor) == (4, 2, 1.0)


def test_shares_are_as_large_as_spreads_actors_over_the_cards() -> None:
    # Ray puts as many actors on a card as their shares allow before it takes the next
    assert plan(device="cuda", cpus=16, gpus=4, gpus_per_actor=0.1, actors=4).gpus_per_actor == 1.0
    assert plan(device="cuda", cpus=16, gpus=4, gpus_per_actor=0.1, actors=6).gpus_per_actor == 0.5
    many = plan(device="cuda", cpus=40, gpus=2, gpus_per_actor=0.1, actors=20, clients_per_round=20)
    assert many.gpus_per_actor == 0.1


def test_gpus_are_left_alone_on_device_cpu() -> None:
    assert plan(gpus=2).gpus == 0


def test_what_was_asked_for_is_kept() -> None:
    assert plan(supernodes=10, actors=2) == Resources(10, 2, 1, 0, 0.0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"actors": 5}, "5 actors were requested, but there are 4 CPUs"),
        ({"actors": 0}, "actors must be at least 1"),
        ({"supernodes": 0}, "SuperNodes must be at least 1"),
        ({"clients_per_round": 0}, "clients per round must be at least 1"),
        ({"gpus_per_actor": 0.5}, "make no sense on device cpu"),
        ({"device": "cuda"}, "no GPU is visible"),
        ({"device": "cuda", "gpus": 1, "gpus_per_actor": 0.0}, "above 0"),
        ({"device": "cuda", "gpus": 1, "gpus_per_actor": 1.5}, "an actor computes on one GPU"),
        # it would leave one of them alone
        ({"device": "cuda", "gpus": 2, "gpus_per_actor": 2.0}, "an actor computes on one GPU"),
        ({"device": "cuda", "gpus": 1, "actors": 2}, "do not fit on 1 GPUs"),
    ],
)
def test_the_impossible_is_refused_in_one_line(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        plan(**asked)
    assert "\n" not in str(caught.value)


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_a_users_folder_comes_last_on_the_import_path(tmp_path: Path) -> None:
    path = import_path(tmp_path)
    ours = str(Path(__file__).resolve().parents[1])
    assert path[-1] == str(tmp_path)
    assert path.index(str(Path(os.__file__).parent)) < path.index(ours) < path.index(str(tmp_path))


def test_a_reason_is_one_line_without_colours() -> None:
    assert one_line("\x1b[31mKeyError:\x1b[0m 'lr'\n  in a file\n") == "KeyError: 'lr' in a file"
    assert len(one_line("x" * 5000)) == 1000


def test_output_goes_to_the_log_from_wherever_it_comes_and_back_again(tmp_path: Path) -> None:
    script = (
        "import os, subprocess, sys; from pathlib import Path; from experiments.runtime.output import output_to\n"
        "print('before', flush=True)\n"
        f"with output_to(Path({str(tmp_path / 'log')!r})):\n"
        "    print('inside', flush=True); os.write(2, b'raw\\n'); subprocess.run(['echo', 'child'])\n"
        "print('after', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "before\nafter\n"
    assert (tmp_path / "log").read_text() == "inside\nraw\nchild\n"
    with output_to(tmp_path / "log"):
        pass
    assert (tmp_path / "log").read_text() == "inside\nraw\nchild\n"


def test_a_log_that_grows_without_end_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    shorten(log, max_bytes=8000)
    with log.open("ab", buffering=0) as writer:
        for line in range(100):
            writer.write(b"line %d\n" % line)
        shorten(log, max_bytes=8000)
        assert log.stat().st_size == sum(len(f"line {line}\n") for line in range(100))
        for line in range(100, 3000):
            writer.write(b"line %d\n" % line)
            shorten(log, max_bytes=8000)
        # whoever had it open goes on at its end
        writer.write(b"the last\n")
    assert log.stat().st_size <= 8000 + len("the last\n")
    text = log.read_text()
    assert text.startswith("line 0\nline 1\n") and text.endswith("line 2998\nline 2999\nthe last\n")
    assert "bytes left out: a log is kept below 8000 bytes" in text


# ---- a user's folder ------------------------------------------------------------------------------------------------

# says where its parts come from whenever it is trained
USERS = """
    import random
    import sys
    import time

    import torch
    from torch import nn

    import clients
    from users_part import NAME


    class Net(nn.Module):
        def __init__(self, input_shape: tuple[int, ...], num_classes: int, *, sleep: float = 0.0, fail: bool = False):
            super().__init__()
            self.sleep, self.fail, self.steps = sleep, fail, 0
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), num_classes))

        def forward(self, inputs):
            if self.training and torch.is_grad_enabled():
                print(f"trained with {NAME}, {random.__file__}, {clients.__file__}")
                print("on standard error", file=sys.stderr)
                time.sleep(self.sleep)
                self.steps += 1
                # not when the model is only tried out
                if self.fail and self.steps > 2:
                    raise ArithmeticError("the cat sat\\non the keyboard")
            return self.layers(inputs)
"""


def written(folder: Path) -> Path:
    """A user's folder: a model of theirs, and names that would hide the library's and ours."""
    folder.joinpath("users_model.py").write_text(textwrap.dedent(USERS))
    folder.joinpath("users_part.py").write_text("NAME = 'a part of the user'\n")
    folder.joinpath("random.py").write_text("raise ImportError('hides the standard library')\n")
    folder.joinpath("clients").mkdir()
    folder.joinpath("clients/__init__.py").write_text("raise ImportError('hides a package of ours')\n")
    return folder


def toy(folder: Path, name: str, **changes: Any) -> RunConfig:
    """Two clients, who train for two rounds."""
    ours = {"rounds": 2, "federation.clients": 2, "data.name": "toys:toy_data", "partition.alpha": 5.0}
    ours |= {"model.name": "users_model:Net", "barrier.every": 0, "output.dir": str(folder / name), "device": "cpu"}
    return RunConfig.parse(ours | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path, known = written(tmp_path_factory.mktemp("user")), set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(imports, "_folders", [])
        imports.look_in(path)
        yield path
    for name in {"users_model", "users_part"} - known:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def workers(folder: Path) -> Iterator[Workers]:
    """Two workers, whose user typed the command in ``folder``."""
    with started(Resources(2, 2, 1, 0, 0.0), workdir=folder) as made:
        yield made


@pytest.mark.slow
def test_a_run_finds_the_users_modules_and_nothing_that_they_hide(workers: Workers, folder: Path) -> None:
    watched: list[None] = []
    log = folder / "run" / LOG
    path = run_on(workers, toy(folder, "run"), nodes=2, log=log, watch=lambda: watched.append(None))
    found = read_run(path)
    assert found.summary is not None and len(found.rounds) == 3
    said = log.read_text()
    trained = [line for line in said.splitlines() if line.startswith("trained with")]
    assert trained and all(line.startswith("trained with a part of the user, ") for line in trained)
    assert all(str(folder) not in line for line in trained)
    assert said.count("on standard error") == len(trained)
    # once in each round, and several times a second
    assert len(watched) >= 2


@pytest.mark.slow
def test_a_client_that_fails_is_named_with_its_reason_in_one_line(workers: Workers, folder: Path) -> None:
    log = folder / "failing" / LOG
    with pytest.raises(RunFailedError) as caught:
        run_on(workers, toy(folder, "failing", **{"model.args.fail": True}), nodes=2, log=log)
    assert str(caught.value).startswith("RoundFailedError: client ") and "\n" not in str(caught.value)
    assert "local training: ArithmeticError: the cat sat on the keyboard" in str(caught.value)
    with pytest.raises(ConfigError, match="min"):
        run_on(workers, toy(folder, "refused", **{"partition.min-size": 2000}), nodes=2, log=folder / "refused.log")
    # and the workers are as good as before
    assert run_on(workers, toy(folder, "next"), nodes=2, log=folder / "next" / LOG).is_dir()


@pytest.mark.slow
def test_the_log_has_the_traceback_of_a_client_that_failed_on_its_worker(tmp_path: Path) -> None:
    words = ["rounds=1", "federation.clients=2", "model.name=users_model:Net", "model.args.fail=true", "output.dir=out"]
    done = subprocess.run(
        [sys.executable, "-m", "fedpfn", "run", *words, "--actors", "1"],
        cwd=written(tmp_path),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for client in (0, 1):
        said = (tmp_path / "out" / LOG).read_text().partition(f"client {client}, round 1, local training: ")[2]
        assert said.startswith("ArithmeticError: the cat sat")
        trace = said.partition("WARNING")[0]
        assert "Traceback (most recent call last)" in trace and 'users_model.py", line' in trace


# ---- what a run costs besides training ------------------------------------------------------------------------------

# a worker needs none of them; each costs it up to a second and tens of megabytes
NOT_NEEDED = {"matplotlib", "pandas", "scipy", "sklearn", "torch._dynamo", "torchvision"}
SAYS_MODULES = f"""
    import sys
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self, input_shape, num_classes):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), num_classes))

        def forward(self, inputs):
            if self.training:
                print("needless:", sorted(set({sorted(NOT_NEEDED)}) & sys.modules.keys()))
            return self.layers(inputs)
"""


class Finished(NamedTuple):
    """A run that came to its end: its folder, its words, and the processes and files that it left."""

    out: Path
    said: str
    after: list[str]
    temporary: list[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """`fedpfn run --verbose` on the digits, for two rounds."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "slim.py").write_text(textwrap.dedent(SAYS_MODULES))
    temporary = Path(tempfile.mkdtemp(prefix="fedpfn-test-", dir="/tmp"))
    mark = f"FEDPFN_TEST={uuid.uuid4()}"
    words = ["rounds=2", "federation.clients=2", "model.name=slim:Net", "barrier.every=0", "output.dir=out"]
    done = subprocess.run(
        [sys.executable, "-m", "fedpfn", "run", *words, "--actors", "1", "--verbose"],
        cwd=folder,
        env=os.environ | dict([mark.split("=")]) | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    after = marked(mark)
    assert done.returncode == 0, done.stderr
    yield Finished(folder / "out", done.stdout, after, sorted(path.name for path in temporary.glob("*fedpfn-*")))
    shutil.rmtree(temporary)


@pytest.mark.slow
def test_workers_import_nothing_that_they_do_not_need(finished: Finished) -> None:
    lines = [line for line in (finished.out / LOG).read_text().splitlines() if line.startswith("needless:")]
    assert lines and set(lines) == {"needless: []"}


@pytest.mark.slow
def test_the_phases_of_a_run_are_shown_and_logged(finished: Finished) -> None:
    for text in (finished.said, (finished.out / LOG).read_text()):
        table = text.partition("phases")[2]
        for phase in (phases.COMMAND, phases.RAY, phases.WORKERS, phases.ROUND_1, phases.ENDED):
            assert phase in table


@pytest.mark.slow
@needs_proc
def test_nothing_of_a_finished_run_is_left(finished: Finished) -> None:
    assert finished.after == []
    assert finished.temporary == []


def test_phases_follow_each_other_in_time() -> None:
    ends = phases.Phases()
    for phase, at in ((phases.ROUND_1, 9.0), (phases.WORKERS, 7.0), (phases.RAY, 3.0), (phases.RAY, 8.0)):
        ends.end(phase, at)
    assert ends.rows(1.0) == [(phases.RAY, 2.0, 2.0), (phases.WORKERS, 6.0, None), (phases.ROUND_1, 8.0, 6.0)]


def test_a_temporary_folder_is_gone_with_its_owner_or_when_the_next_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder("fedpfn-", longest=500) as mine:
        code = (
            "import os; from experiments.runtime.temporary import temporary_folder\n"
            "with temporary_folder('fedpfn-', longest=500) as folder:\n"
            "    (folder / 'file').touch(); os.kill(os.getpid(), 9)\n"
        )
        environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], env=environment, check=False)
        (abandoned,) = set(tmp_path.glob("fedpfn-*")) - {mine}
        assert (abandoned / "file").is_file()
        with temporary_folder("fedpfn-", longest=500) as another:
            assert set(tmp_path.glob("fedpfn-*")) == {mine, another}
    assert list(tmp_path.iterdir()) == []


# ---- an interrupted run ---------------------------------------------------------------------------------------------


class Interrupted(NamedTuple):
    """What was seen of an interrupted run: its code, its words, processes during and after, temporary files after."""

    code: int
    said: str
    errors: str
    during: list[str]
    after: list[str]
    temporary: list[str]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Interrupted]]:
    """`fedpfn run`, interrupted in its second round by Ctrl-C, with the signal sent to the whole group."""
    folder, out = written(tmp_path_factory.mktemp("interrupted")), "out"
    # short: Ray's sockets lie below
    temporary = Path(tempfile.mkdtemp(prefix="fedpfn-test-", dir="/tmp"))
    mark = f"FEDPFN_TEST={uuid.uuid4()}"
    words = ["rounds=50", "federation.clients=2", "model.name=users_model:Net", "model.args.sleep=0.2"]
    words += [f"output.dir={out}", "barrier.every=0", "data.train-examples=300", "train.batch-size=32"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedpfn", "run", *words, "--actors", "1"],
        cwd=folder,
        env=os.environ | dict([mark.split("=")]) | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = folder / out / LOG
    deadline = time.monotonic() + 120
    while not (log.exists() and "[ROUND 2/" in log.read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    during = marked(mark)
    os.killpg(process.pid, signal.SIGINT)
    # patience with a loaded machine; what is asserted is that nothing is left
    said, errors = process.communicate(timeout=90)
    # PyTorch has a folder of its own there
    left = sorted(path.name for path in temporary.glob("fedpfn-*"))
    yield folder / out, Interrupted(process.returncode, said, errors, during, marked(mark), left)
    shutil.rmtree(temporary)


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_shows_the_rounds_that_it_did(interrupted: tuple[Path, Interrupted]) -> None:
    out, seen = interrupted
    last = ["stopped", f"run folder: {out}", f"to resume: fedpfn run --resume {out}"]
    assert seen.code == 130 and seen.errors.strip().splitlines()[-3:] == last
    assert "round    1/50" in seen.said
    failure = read_run(out).failure
    assert failure is not None and failure["reason"] == "stopped by the user"
    log = (out / LOG).read_text()
    assert "Run folder" in log and "[ROUND 2/50]" in log and "trained with a part of the user" in log


@pytest.mark.slow
@needs_proc
def test_nothing_of_an_interrupted_run_is_left(interrupted: tuple[Path, Interrupted]) -> None:
    _, seen = interrupted
    # the command, Ray's own, a worker
    assert len(seen.during) >= 4
    assert seen.after == []
    assert seen.temporary == []
