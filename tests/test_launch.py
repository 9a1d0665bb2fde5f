"""Launching a run: the plan of resources, the app's TOML, the reason of a failure; real runs of a toy federation."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from experiments.flower_home import app_toml, flower_home, import_path
from experiments.reasons import reason
from experiments.resources import Resources, plan_resources


def plan(**asked: Any) -> Resources:
    machine = {"device": "cpu", "clients_per_round": 10, "cpus": 4, "gpus": 0}
    return plan_resources(**({"supernodes": None, "actors": None, "gpus_per_actor": None} | machine | asked))


def test_a_cpu_run_gets_an_actor_and_a_supernode_for_each_core():
    assert plan() == Resources(supernodes=4, actors=4, cpus_per_actor=1, gpus=0, gpus_per_actor=0.0)


def test_no_more_actors_than_clients_in_a_round():
    assert plan(clients_per_round=3) == Resources(3, 3, 1, 0, 0.0)


def test_a_cuda_run_gets_an_actor_for_each_gpu_and_shares_the_cores():
    assert plan(device="cuda", cpus=16, gpus=2) == Resources(2, 2, 8, 2, 1.0)


def test_gpu_shares_sit_inside_single_gpus():
    assert plan(device="cuda", cpus=16, gpus=2, gpus_per_actor=0.4).actors == 4
    assert plan(device="cuda", cpus=16, gpus=1, gpus_per_actor=1 / 3).actors == 3
    assert plan(device="cuda", cpus=16, gpus=4, gpus_per_actor=2).actors == 2


def test_gpus_are_left_alone_on_device_cpu():
    assert plan(gpus=2).gpus == 0


def test_what_was_asked_for_is_kept():
    assert plan(supernodes=10, actors=2) == Resources(10, 2, 1, 0, 0.0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"actors": 5}, "5 actors were asked for, but there are 4 CPUs"),
        ({"actors": 0}, "actors must be at least 1"),
        ({"supernodes": 0}, "SuperNodes must be at least 1"),
        ({"clients_per_round": 0}, "clients per round must be at least 1"),
        ({"gpus_per_actor": 0.5}, "make no sense on device cpu"),
        ({"device": "cuda"}, "no GPU is visible"),
        ({"device": "cuda", "gpus": 1, "gpus_per_actor": 0.0}, "above 0"),
        ({"device": "cuda", "gpus": 1, "gpus_per_actor": 2.0}, "but 1 are visible"),
        ({"device": "cuda", "gpus": 2, "gpus_per_actor": 1.5}, "whole number"),
        ({"device": "cuda", "gpus": 1, "actors": 2}, "do not fit on 1 GPUs"),
    ],
)
def test_the_impossible_is_refused_in_one_line(asked, message):
    with pytest.raises(ValueError, match=message) as caught:
        plan(**asked)
    assert "\n" not in str(caught.value)


def test_federation_config_has_flowers_keys_and_fixes_the_number_of_actors():
    from flwr.common.config import parse_config_args
    from flwr.supercore.utils import simulation_config_from_json

    text = Resources(supernodes=3, actors=2, cpus_per_actor=4, gpus=1, gpus_per_actor=0.5).federation_config()
    read = {key.replace("-", "_"): value for key, value in parse_config_args([text]).items()}
    config = simulation_config_from_json(read)
    assert config.num_supernodes == 3
    assert config.init_args_num_cpus / config.client_resources_num_cpus == 2
    assert config.init_args_num_gpus == 1
    assert config.client_resources_num_gpus == 0.5
    assert config.init_args_log_to_driver is True


def test_the_run_config_comes_through_toml_unchanged():
    config = {
        "rounds": 3,
        "tiny": 1e-07,
        "train.lr": 0.1,
        "train.nesterov": True,
        "data.root": 'a "quoted" \\ path\nüber\t\x7f\x00 🌻',
        "odd key.x": -(2**63),
        "limit": float("inf"),
    }
    from flwr.common.config import flatten_dict, validate_fields_in_config

    parsed = tomllib.loads(app_toml(config, server_app="a.b:app", client_app="c.d:app"))
    assert flatten_dict(parsed["tool"]["flwr"]["app"]["config"]) == config
    assert validate_fields_in_config(parsed) == (True, [], [])
    assert parsed["tool"]["flwr"]["app"]["components"] == {"serverapp": "a.b:app", "clientapp": "c.d:app"}


def test_an_integer_that_flower_cannot_carry_is_refused():
    with pytest.raises(ValueError, match=r"seed = .* 64 bits"):
        app_toml({"seed": 2**63}, server_app="a:app", client_app="b:app")


def test_the_folder_is_short_enough_for_rays_sockets_and_goes_away(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("deep" * 20)))
    with flower_home({}, log_file=tmp_path / "log", server_app="a:app", client_app="b:app") as home:
        socket = home.root / "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
        assert len(os.fsencode(socket)) <= 107
        assert home.app.joinpath("pyproject.toml").is_file()
    assert not home.root.exists()


def test_a_users_folder_comes_last_on_the_import_path(tmp_path):
    path = import_path(tmp_path)
    ours = str(Path(__file__).resolve().parents[1])
    assert path[-1] == str(tmp_path)
    assert path.index(str(Path(os.__file__).parent)) < path.index(ours) < path.index(str(tmp_path))


@pytest.mark.parametrize(
    ("details", "log", "expected"),
    [
        (
            "Simulation failed with exception: loss is nan",
            "ERROR\nTraceback (most recent call last):\n  File x\nFloatingPointError: loss is nan\nExit Code: 700",
            "FloatingPointError: loss is nan",
        ),
        (
            "Simulation failed with exception: An error was encountered. Ending simulation.",
            "Traceback (most recent call last):\n  File x\nfedpfn.x.Broken: no actors\n\nThe above ...\n\n"
            "Traceback (most recent call last):\n  File y\nRuntimeError: Simulation Runtime crashed.\n",
            "Broken: no actors",
        ),
        ("Simulation failed with exception: two\nlines", "", "two lines"),
        (
            "Simulation failed with exception: client 3 failed: <class 'x'>:<'ray::Actor.run() (pid=1)\n  File x\n"
            "KeyError: 'lr'\n\nThe above ...\n\nray::Actor.run()\nflwr.ClientAppException: 'lr''>",
            "",
            "client 3 failed: KeyError: 'lr'",
        ),
        ("N/A", "one\ntwo\n\n", "the run ended as finished:failed: two"),
    ],
)
def test_the_reason_is_the_most_telling_line(details, log, expected):
    assert reason("finished:failed", details, log) == expected


SERVER = """
    import time
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.serverapp import Grid, ServerApp

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        while not (nodes := list(grid.get_node_ids())):
            time.sleep(0.05)
        for number in range(context.run_config["rounds"]):
            asked = [Message(RecordDict(), node, "train", group_id=str(number)) for node in nodes]
            for reply in grid.send_and_receive(asked):
                print("reply", reply.content["told"]["where"], flush=True)
"""
CLIENT = """
    import time
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        import clients, random, toy_model

        print("training", flush=True)
        if message.metadata.group_id == "2":
            time.sleep(context.run_config["toy.sleep"])
        told = ConfigRecord({"where": f"{toy_model.NAME} {random.__file__} {clients.__file__}"})
        return Message(RecordDict({"told": told}), reply_to=message)
"""
DRIVER = """
    import sys
    from pathlib import Path

    from experiments.launch import launch
    from experiments.resources import Resources

    calls = []
    try:
        launch(
            {"rounds": 3, "toy.sleep": 300.0},
            Resources(supernodes=2, actors=2, cpus_per_actor=1, gpus=0, gpus_per_actor=0.0),
            workdir=Path(sys.argv[1]),
            log_file=Path(sys.argv[1], "out", "run.log"),
            watch=lambda: calls.append(None),
            server_app="toy_server:app",
            client_app="toy_client:app",
        )
    finally:
        print(len(calls))
"""


def written(folder: Path) -> Path:
    """A user's folder: a toy federation, a module of theirs, and names that would hide the library's and ours."""
    for name, text in {"toy_server": SERVER, "toy_client": CLIENT, "driver": DRIVER}.items():
        folder.joinpath(f"{name}.py").write_text(textwrap.dedent(text))
    folder.joinpath("toy_model.py").write_text("NAME = 'the toy model'\n")
    folder.joinpath("random.py").write_text("raise ImportError('hides the standard library')\n")
    folder.joinpath("clients").mkdir()
    folder.joinpath("clients/__init__.py").write_text("raise ImportError('hides a package of ours')\n")
    return folder


def marked(mark: str) -> list[str]:
    """Live processes that inherited the mark."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in entry.joinpath("environ").read_bytes():
                found.append(entry.joinpath("cmdline").read_bytes().decode().replace("\0", " "))
        except OSError:
            continue
    return found


class Launched(NamedTuple):
    """What was seen of a launch: how often it was watched, its words on standard error, processes during and after."""

    folder: Path
    log: str
    calls: int
    errors: str
    during: list[str]
    after: list[str]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """A launch that trains two rounds on two nodes and has Ctrl-C in the third.

    How one ends of itself, well or with a reason, is seen through ``fedpfn run`` in ``test_cli``; ``test_sweep_run``
    has a launcher killed outright, and looks for what its guards leave.
    """
    folder = written(tmp_path_factory.mktemp("launched"))
    mark = f"FEDPFN_TEST={uuid.uuid4()}"
    name, value = mark.split("=")
    repository = str(Path(__file__).resolve().parents[1])
    driver = subprocess.Popen(
        [sys.executable, "driver.py", str(folder)],
        cwd=folder,
        # Safe path: the driver's own folder hides the standard library.
        env=os.environ | {name: value, "PYTHONPATH": repository, "PYTHONSAFEPATH": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = folder / "out" / "run.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("training") == 6):
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    during = marked(mark)
    driver.send_signal(signal.SIGINT)
    # patience with a loaded machine; what is asserted is that nothing is left
    said, errors = driver.communicate(timeout=90)
    return Launched(folder, log.read_text(), int(said), errors, during, after=marked(mark))


@pytest.mark.slow
def test_a_run_finds_the_users_module_but_nothing_hidden_by_it(launched):
    replies = [line for line in launched.log.splitlines() if line.startswith("reply")]
    assert len(replies) == 4
    assert all(line.startswith("reply the toy model") and str(launched.folder) not in line for line in replies)
    assert launched.log.count("training") == 6


@pytest.mark.slow
def test_a_run_is_watched_all_along(launched):
    assert launched.calls > 10


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_nothing_of_an_interrupted_run_is_left(launched):
    assert len(launched.during) > 5
    assert launched.errors.strip().endswith("KeyboardInterrupt")
    assert launched.after == []
