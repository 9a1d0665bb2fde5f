"""The number of hidden units that move when a round's client models are matched to the model that they started from.

A unit that training leaves in place is matched to itself; the fewer units move, the better the clients agree in the
numbering of units, which averaging assumes (arXiv 2402.01342). Counting does not permute the models. If the strategy
matches models itself, the units that it moved are counted; otherwise models are matched by weights here, with frozen
entries included, since the question is whether freezing kept units in place.
"""

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from fedpfn.lmc.matching import PermutationSpec, spec_for, units_moved, weight_matching
from fedpfn.measures.instruments import Instruments
from fedpfn.measures.measure import SHARE, Measure
from fedpfn.protocol import MOVED
from fedpfn.rounds import Round
from fedpfn.seeding import derive


def moved_by_layer(round: Round, instruments: Instruments) -> list[dict[str, Any]] | None:
    """Return for each layer its name, its number of units, and the number that moved per client, by ascending id."""
    if not round.contributions:
        return None
    spec = _spec(instruments)
    moved = {name.removeprefix(MOVED): counts for name, counts in round.metrics.items() if name.startswith(MOVED)}
    if not moved:
        counted = list(_counted(round, instruments))
        moved = {name: [counts[name] for counts in counted] for name in spec.sizes}
    return [{"layer": name, "units": size, "moved": moved[name]} for name, size in spec.sizes.items()]


def share_moved(round: Round, instruments: Instruments) -> float | None:
    """Return the share of units that moved, averaged over clients."""
    layers = instruments.once(round, "units moved", lambda: moved_by_layer(round, instruments))
    if not layers:
        return None
    return float(sum(fmean(layer["moved"]) for layer in layers) / sum(layer["units"] for layer in layers))


UNITS_MOVED: tuple[Measure, ...] = (
    Measure("units_moved.share", "hidden units moved", SHARE, "none", share_moved, needs_models=True),
    Measure("units_moved.layers", "hidden units moved by layer", "", "none",
            lambda r, i: i.once(r, "units moved", lambda: moved_by_layer(r, i)), needs_models=True),
)  # fmt: skip


def _spec(instruments: Instruments) -> PermutationSpec:
    return spec_for(instruments.model, instruments.test.batch(slice(0, 1))[0])


def _counted(round: Round, instruments: Instruments) -> Iterator[dict[str, int]]:
    spec = _spec(instruments)
    target = {name: round.before[name] for name in spec.axes}
    for contribution in round.contributions:
        whole = round.state(contribution)
        state = {name: whole[name] for name in spec.axes}
        seed = derive(instruments.seed, "matching", round.server_round, contribution.client)
        yield units_moved(weight_matching(spec, target, state, seed=seed).permutations)
