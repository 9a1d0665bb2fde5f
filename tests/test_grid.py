"""What is asked of Flower's own grid beyond its interface, and that it is still there."""

from flwr.superlink.grid.inmemory_grid import InMemoryGrid

from clients.client_app import app
from experiments.runtime.in_process import InProcessGrid
from strategies.server_app import poll_often


class Factory:
    def state(self) -> None:
        return None


def test_the_simulation_grid_is_told_to_look_for_answers_more_often() -> None:
    grid = InMemoryGrid(Factory())  # type: ignore[arg-type]
    assert grid.pull_interval == 0.1
    poll_often(grid)
    assert grid.pull_interval == 0.01


def test_a_grid_that_does_not_poll_is_left_alone() -> None:
    grid = InProcessGrid(app, {}, nodes=1)
    poll_often(grid)
    assert not hasattr(grid, "pull_interval")
