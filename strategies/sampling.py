"""Client sampling as a function of (seed, round), for any Flower strategy.

Flower's strategies sample with Python's global generator, so every run draws other clients. Here the generator is
seeded for the sampling and then restored, or the round's clients are drawn first and the strategy sees only those.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedpfn.seeding import derive, numpy_generator
from strategies.grids import Population
from strategies.wrapper import Wrapper


def draw_clients(seed: int, server_round: int, sizes: Sequence[int], *, count: int) -> list[int]:
    """Draw ``count`` client ids among those with examples, all of them if there are fewer; sorted."""
    eligible = [client for client, size in enumerate(sizes) if size > 0]
    generator = numpy_generator(seed, "clients", server_round)
    return sorted(eligible[i] for i in generator.choice(len(eligible), size=min(count, len(eligible)), replace=False))


class SeededSampling(Wrapper):
    """Let ``strategy`` sample the same clients in every run with the same seed.

    Parameters
    ----------
    strategy
        Any Flower strategy.
    seed
        Seed of the sampling.
    draw
        Function from a round to the ids that train in it. The strategy then sees only these nodes and samples its
        fraction of them. By default it sees all nodes.
    evaluate
        Whether clients evaluate after each round, as Flower's strategies have them do by default.
    """

    def __init__(
        self,
        strategy: Strategy,
        seed: int,
        draw: Callable[[int], Sequence[int]] | None = None,
        *,
        evaluate: bool = True,
    ) -> None:
        super().__init__(strategy)
        self.seed, self.draw, self.evaluate = seed, draw, evaluate

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy address its messages to clients drawn from the seed."""
        population = grid if self.draw is None else Population(grid, self.draw(server_round))
        with seeded_random(self.seed, "train", server_round):
            return list(self.strategy.configure_train(server_round, arrays, config, population))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy address its messages to clients sampled from the seed."""
        if not self.evaluate:
            return []
        with seeded_random(self.seed, "evaluate", server_round):
            return list(self.strategy.configure_evaluate(server_round, arrays, config, grid))


@contextmanager
def seeded_random(seed: int, *path: int | str) -> Iterator[None]:
    """Run a block with Python's global generator seeded for the stream ``path`` below ``seed``, then restore it."""
    before = random.getstate()
    random.seed(derive(seed, "sampling", *path))
    try:
        yield
    finally:
        random.setstate(before)
