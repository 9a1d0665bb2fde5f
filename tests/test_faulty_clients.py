"""Clients that raise what is no ``Exception``, hang, or lose what they kept, and workers that die, on any grid."""

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import flower_apps as apps
import pytest
from flwr.app import ArrayRecord, Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from test_flower_apps import DRIVER, SECONDS, environment

from clients import cohort_mod
from clients.time_limit import ClientTimeoutError, time_limit
from experiments.runtime.in_process import InProcessGrid, run_in_process
from fedpfn.rounds import Round
from fedpfn.runs import state_digest
from fedpfn.runs.client_states import ClientStates
from fedpfn.runs.config import RunConfig
from strategies import CohortGrid, FedAvg, Observed, RoundFailedError
from strategies.cohort_failures import WorkerLostError
from strategies.grids import GridView

EXAMPLES = 8 * apps.BATCHES


def doing(what: Any, client: int = 2) -> Mod:
    """A mod in which one client does something before it trains."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if context.node_config["partition-id"] == client:
            what()
        return call_next(message, context)

    return mod


def raising(error: BaseException) -> Any:
    def what() -> None:
        raise error

    return what


def spin() -> None:
    """Loop in Python, and catch what can be caught."""
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


def grid(mods: Iterable[Mod], clients: int = 4, **settings: Any) -> CohortGrid:
    return CohortGrid(InProcessGrid(apps.client_app(mods=[cohort_mod, *mods]), {}, nodes=2), clients, **settings)


def run(over: CohortGrid, rounds: int = 1) -> tuple[str, list[Round]]:
    seen: list[Round] = []
    strategy = Observed(FedAvg(fraction_evaluate=0.0), seen.append)
    return state_digest(apps.start(strategy, apps.client_app(), rounds=rounds, grid=over)), seen


# ---- what they raise, and how long they take ------------------------------------------------------------------------


@pytest.mark.parametrize("error", [SystemExit(3), BaseException("no Exception")], ids=["exit", "base"])
def test_whatever_a_clients_code_raises_is_its_own_failure(error: BaseException) -> None:
    digest, seen = run(grid([doing(raising(error))], tolerate=1))
    (failure,) = seen[-1].failures
    assert (failure.client, failure.stage) == (2, "local training") and type(error).__name__ in failure.error
    without, _ = run(grid([], [EXAMPLES * (client != 2) for client in range(4)]))  # type: ignore[arg-type]
    assert digest == without


def test_the_users_ctrl_c_ends_a_run_in_this_process() -> None:
    with pytest.raises(KeyboardInterrupt):
        run(grid([doing(raising(KeyboardInterrupt()))], tolerate=4, quorum=0.1))


@pytest.mark.parametrize("hang", [spin, lambda: time.sleep(600)], ids=["python", "sleep"])
def test_a_client_that_hangs_is_interrupted_and_named(hang: Any) -> None:
    begun = time.monotonic()
    digest, seen = run(grid([doing(hang)], tolerate=1, client_timeout=0.5))
    assert time.monotonic() - begun < 30
    (failure,) = seen[-1].failures
    assert (failure.client, failure.stage) == (2, "local training")
    assert "longer than client-timeout, 0.5 s" in failure.error and "Traceback" in failure.traceback
    assert digest == run(grid([], [EXAMPLES * (client != 2) for client in range(4)]))[0]  # type: ignore[arg-type]


def test_a_limit_that_is_kept_leaves_no_timer_and_none_is_set_outside_the_main_thread() -> None:
    with time_limit(0.2):
        pass
    time.sleep(0.3)
    with pytest.raises(ClientTimeoutError, match=r"0\.1 s"), time_limit(0.1):
        time.sleep(5)

    def elsewhere() -> None:
        with time_limit(0.1):
            time.sleep(0.2)
        done.append(True)

    done: list[bool] = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done


def test_an_import_that_has_begun_is_not_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.6)\nwhole = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ClientTimeoutError), time_limit(0.2):
        import slow_to_import

        time.sleep(5)
    assert slow_to_import.whole


def test_a_process_that_may_end_does_where_nothing_returns_to_python() -> None:
    script = """
        import ctypes
        from clients.time_limit import time_limit
        lock = ctypes.create_string_buffer(256)
        with time_limit(0.2, ends_process=True):
            for _ in range(2):
                ctypes.PyDLL(None).pthread_mutex_lock(lock)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "Timeout" in ended.stderr


# ---- the application ------------------------------------------------------------------------------------------------

OWN_MODEL = """
import sys, time
from pathlib import Path
import torch
from torch import nn

class Net(nn.Sequential):
    '''Fails as its settings say in one training of all.'''
    trained = 0

    def forward(self, inputs):
        if self.training and torch.is_grad_enabled():
            Net.trained += 1
            if Net.trained == 9:
                {what}
        return super().forward(inputs)

def net(input_shape, num_classes):
    return Net(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.mark.parametrize(
    ("what", "reason"),
    [("sys.exit(3)", "SystemExit: 3"), ("time.sleep(600)", "ClientTimeoutError: .*client-timeout, 2 s")],
    ids=["exit", "hang"],
)
def test_a_model_of_the_users_own_that_exits_or_hangs_fails_its_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, reason: str
) -> None:
    name = f"faulty_{'exit' if 'exit' in what else 'hang'}"
    (tmp_path / f"{name}.py").write_text(OWN_MODEL.format(what=what))
    monkeypatch.syspath_prepend(str(tmp_path))
    config = RunConfig.parse(
        {
            "model.name": f"{name}:net",
            "federation.clients": 6,
            "federation.client-timeout": 2.0,
            "train.steps": 1,
            "rounds": 2,
            "barrier.every": 0,
            "output.dir": str(tmp_path / "run"),
        }
    )
    with pytest.raises(RoundFailedError, match=rf"client \d failed in round \d, local training: {reason}") as raised:
        run_in_process(config, nodes=1)
    assert len(raised.value.failures) == 1


# ---- what they kept -------------------------------------------------------------------------------------------------


def test_a_kept_state_that_cannot_be_read_fails_its_client_and_no_other(tmp_path: Path) -> None:
    def keep(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        context.state["kept"] = ArrayRecord({"own": apps.array([1.0])})
        return call_next(message, context)

    states = ClientStates(tmp_path)
    over = grid([keep], 5, tolerate=1, states=states)
    run(over)
    (file,) = tmp_path.glob("client-*2-*.safetensors")
    file.write_bytes(file.read_bytes()[:9])
    _, seen = run(over)
    (failure,) = seen[-1].failures
    assert (failure.client, failure.stage) == (2, "reading its kept state")
    assert "SafetensorError" in failure.traceback and seen[-1].clients == [0, 1, 3, 4]


# ---- workers that die in Flower's own simulation --------------------------------------------------------------------


class DeadActor(GridView):
    """Flower's simulation after the actor died that had the second node's message."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        for reply in self.grid.send_and_receive(messages, timeout=timeout):
            if reply.metadata.src_node_id == 2:
                reason = "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly.\n\tpid: 7'>"
                (sent,) = [m for m in messages if m.metadata.dst_node_id == 2]
                reply = Message(Error(code=0, reason=reason), reply_to=sent)
            yield reply


def test_a_dead_actor_in_flowers_pool_ends_the_run_whatever_may_fail() -> None:
    over = CohortGrid(DeadActor(grid([]).grid), 4, tolerate=4, quorum=0.1)
    with pytest.raises(
        WorkerLostError, match=r"Flower's simulation died in round 1 with clients 1, 3: ActorDiedError: The actor died"
    ):
        run(over)


@pytest.mark.system
def test_flowers_simulation_ends_in_the_round_in_which_a_client_ends_its_actor(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    driver = DRIVER.replace(
        "app = ServerApp()",
        textwrap.dedent(
            """
            import os
            from flwr.serverapp.strategy import FedAvg
            from clients import cohort_mod
            from strategies import CohortGrid
            import flower_apps

            def die(message, context, call_next):
                if context.node_config["partition-id"] == 3 and message.content["config"]["server-round"] == 2:
                    os._exit(7)
                return call_next(message, context)

            client_app.app = flower_apps.client_app(mods=[cohort_mod, die])

            class server_app:
                def main(grid, context):
                    over = CohortGrid(grid, 6, tolerate=6, quorum=0.1)
                    from flwr.app import ArrayRecord
                    FedAvg(fraction_evaluate=0.0).start(
                        over, ArrayRecord(flower_apps.net().state_dict()), num_rounds=3)
                    print("all rounds done")

            app = ServerApp()
            """
        ),
    )
    path = f"{Path(__file__).parent}:{environment(home)['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-c", driver, "[{}]"],
        env=environment(home) | {"RAY_TMPDIR": "/tmp", "PYTHONPATH": path},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    said = done.stdout + done.stderr
    assert "a worker of Flower's simulation died in round 2 with clients" in said, said[-3000:]
    assert "all rounds done" not in said and done.returncode != 0
