"""The loop that hands messages on: all of them, in order, promptly, and in the place that Flower calls."""

import inspect
import threading
import time
from queue import Queue
from typing import Any

import pytest
from flwr.server.superlink.fleet.vce import vce_api

from experiments import prompt_simulation
from experiments.prompt_simulation import hand_on


class State:
    """Messages by node, as Flower's state hands them out."""

    def __init__(self, waiting: dict[int, list[str]], slowness: float = 0.0) -> None:
        self.waiting, self.slowness, self.looks = waiting, slowness, 0

    def get_message_ins(self, node_id: int, limit: int) -> list[str]:
        assert limit == 1
        self.looks += 1
        time.sleep(self.slowness)
        taken, self.waiting[node_id] = self.waiting[node_id][:1], self.waiting[node_id][1:]
        return taken


def test_flower_still_calls_the_function_that_is_replaced() -> None:
    assert list(inspect.signature(vce_api.add_messages_to_queue).parameters) == list(
        inspect.signature(hand_on).parameters
    )
    assert "target=add_messages_to_queue" in inspect.getsource(vce_api.run_api)


def test_main_puts_it_in_place_and_runs_flowers_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vce_api, "add_messages_to_queue", vce_api.add_messages_to_queue)
    seen: list[Any] = []
    monkeypatch.setattr(prompt_simulation, "flwr_simulation", lambda: seen.append(vce_api.add_messages_to_queue))
    with pytest.raises(SystemExit):
        prompt_simulation.main()
    assert seen == [hand_on]


def run_for(state: State, queue: "Queue[Any]", *, enough: int) -> float:
    stop = threading.Event()
    thread = threading.Thread(target=hand_on, args=(state, queue, dict.fromkeys(state.waiting, 0), stop))
    began = time.perf_counter()
    thread.start()
    while queue.qsize() < enough and time.perf_counter() < began + 20:
        time.sleep(0.001)
    took = time.perf_counter() - began
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    return took


def test_every_message_is_handed_on_once_and_in_order() -> None:
    queue: Queue[Any] = Queue()
    run_for(State({1: ["a", "b", "c"], 2: ["x"], 3: []}), queue, enough=4)
    assert list(queue.queue) == ["a", "x", "b", "c"]


def test_looking_takes_a_tenth_of_the_time_at_most() -> None:
    state = State({node: [] for node in range(4)}, slowness=0.002)
    stop = threading.Event()
    thread = threading.Thread(target=hand_on, args=(state, Queue(), dict.fromkeys(range(4), 0), stop))
    thread.start()
    time.sleep(0.5)
    stop.set()
    thread.join(5)
    # four looks of 2 ms, then 80 ms or more of rest
    assert 4 <= state.looks <= 4 * (1 + 0.5 / 0.08)
