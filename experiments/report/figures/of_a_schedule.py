"""What a mask schedule freezes, round by round: a sample of each tensor's entries, rebuilt from the config alone.

Masks are functions of (config, round, names and shapes of the parameters): plans come from the run's strategy, shapes
from its final checkpoint, and data are not needed. The share that a rebuilt round freezes is compared with the one on
record; if they differ, the figure is not drawn.
"""

import re
from collections.abc import Mapping
from math import isclose, prod
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from safetensors import SafetensorError

from experiments.report.figures import style
from experiments.report.figures.style import NotDrawnError, in_style
from experiments.report.units import counted
from fedpfn.algorithms import TITLES
from fedpfn.imports import is_reference
from fedpfn.masks import Shapes, mask_arrays
from fedpfn.runs import Run
from fedpfn.runs.arguments import is_masked, round_plans
from fedpfn.schedules import Plan

MOST_ROUNDS, MOST_TENSORS = 40, 24
# rows of the figure, shared by its tensors
_ROWS = 144
# largest number of entries to rebuild; of a large model, fewer rounds are shown
_BUDGET = 40_000_000
# what torch's normalisation layers keep in addition to their parameters
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

TRAINED, SECOND, FIRST, FROZEN = "trained in all steps", "frozen in phase 2", "frozen in phase 1", "frozen in all steps"
PARTLY = "frozen in some phases"
_COLOURS = {TRAINED: "#E4E4E4", SECOND: "#56B4E9", PARTLY: "#56B4E9", FIRST: "#D55E00", FROZEN: "#1A1A1A"}


@in_style()
def schedule(run: Run, *, trust: bool = False) -> Figure:
    """Draw which entries the first rounds freeze, rounds by entries, below the share that each round freezes.

    Evenly spaced entries of each tensor are drawn; of many tensors, only some. A user's own schedule is called for its
    rounds in order, as in the run, but only with ``trust``: it is code, and the folder may come from anybody. The
    caption is the figure's label. Raises ``NotDrawnError`` if there is nothing to draw.
    """
    trained = [record for record in run.rounds if record["mask"]]
    if not is_masked(run.config):
        title = TITLES.get(run.config.strategy.name, run.config.strategy.name)
        raise NotDrawnError(f"{title} trains every entry in every round")
    if run.config.strategy.name == "ssfl":
        raise NotDrawnError("SSFL's mask is chosen by the clients' data")
    if not trained:
        raise NotDrawnError("no round of training is on record")
    if is_reference(run.config.mask.schedule) and not trust:
        raise NotDrawnError(f"the schedule {run.config.mask.schedule} is code of its author's; --trust runs it")
    try:
        shapes = _shapes(run)
    except (OSError, SafetensorError) as error:
        raise NotDrawnError(f"the final checkpoint cannot be read: {' '.join(str(error).split())}") from error
    entries = sum(prod(shape) for _, shape in shapes)
    if not entries:
        raise NotDrawnError("the final checkpoint holds no parameters")
    rounds = min(len(trained), MOST_ROUNDS, max(1, _BUDGET // entries))
    try:
        plan_of = round_plans(run.config)
        plans = [plan_of(server_round) for server_round in range(1, rounds + 1)]
    # whatever a user's own schedule raises now: the run is over, and its other figures can still be drawn
    except Exception as error:
        raise NotDrawnError(f"the schedule cannot be called again: {' '.join(str(error).split())}") from error
    for record, plan in zip(trained, plans, strict=False):
        said, actual = record["mask"]["frozen"], _frozen(plan, shapes)
        if not isclose(said, actual, rel_tol=1e-9, abs_tol=1e-12):
            raise NotDrawnError(f"round {record['round']} froze {said:.6g}, rebuilt it freezes {actual:.6g}")
    sample = _sample(shapes)
    states, words = _states(plans, shapes, sample)
    figure = _draw(run, trained, states, words, sample)
    shown = f"the first {rounds} of {len(trained)} rounds" if rounds < len(trained) else counted([rounds], "round")
    figure.set_label(
        f"What the mask schedule {trained[0]['mask']['schedule']} freezes in {shown}: "
        f"{sum(map(len, sample.values()))} of {entries:,} entries, evenly spaced over {len(sample)} of "
        f"{counted([len(shapes)], 'tensor')}. Above, the share of entries that is frozen, weighted by the phases' "
        f"local steps. One run (n = 1 seed), the same for all of its clients: {style.title_of(run)}."
    )
    return figure


def _shapes(run: Run) -> Shapes:
    """Return names and shapes of the parameters, sorted by name: their order in the model is not on record."""
    state = run.state()
    return tuple(
        (name, tuple(tensor.shape))
        for name, tensor in sorted(state.items(), key=lambda item: _by_number(item[0]))
        if name.rpartition(".")[2] not in _BUFFERS and tensor.is_floating_point()
    )


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return a sort key that orders numbers in names by value: layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _frozen(plan: Plan, shapes: Shapes) -> float:
    """Return the share of entries that a round freezes, weighted by its phases' shares of the local steps."""
    entries = sum(prod(shape) for _, shape in shapes)
    active = [sum(int(mask.sum()) for mask in mask_arrays(phase.mask, shapes).values()) for phase in plan]
    return sum(phase.share * (1 - trained / entries) for phase, trained in zip(plan, active, strict=True))


def _sample(shapes: Shapes) -> dict[str, NDArray[np.int64]]:
    """Return evenly spaced positions within flattened tensors; of many tensors, for an evenly spaced choice of them."""
    tensors = [(name, prod(shape)) for name, shape in shapes if prod(shape)]
    chosen = np.unique(np.linspace(0, len(tensors) - 1, min(len(tensors), MOST_TENSORS)).round().astype(np.int64))
    rows = max(1, _ROWS // len(chosen))
    spaced = ((tensors[at][0], tensors[at][1]) for at in chosen)
    return {
        name: np.unique(np.linspace(0, size - 1, min(size, rows)).round().astype(np.int64)) for name, size in spaced
    }


def _states(
    plans: list[Plan], shapes: Shapes, sample: Mapping[str, NDArray[np.int64]]
) -> tuple[NDArray[np.int64], list[str]]:
    """Return an array (entries, rounds) of indices into a list of labels that say when an entry is frozen."""
    used = [[phase for phase in plan if phase.share > 0] for plan in plans]
    phases = max(map(len, used))
    words = {1: [TRAINED, FROZEN], 2: [TRAINED, SECOND, FIRST, FROZEN]}.get(phases, [TRAINED, PARTLY, FROZEN])
    columns = []
    for plan in used:
        masks = (mask_arrays(phase.mask, shapes) for phase in plan)
        frozen = np.array([
            np.concatenate([~mask[name].reshape(-1)[positions] for name, positions in sample.items()]) for mask in masks
        ])  # fmt: skip
        column = np.where(frozen.all(axis=0), len(words) - 1, np.where(frozen.any(axis=0), 1, 0))
        if phases == 2 and len(plan) == 2:
            column = np.where(frozen[0] & ~frozen[1], 2, column)
        columns.append(column)
    return np.stack(columns, axis=1), words


def _draw(
    run: Run,
    trained: list[dict[str, Any]],
    states: NDArray[np.int64],
    words: list[str],
    sample: Mapping[str, NDArray[np.int64]],
) -> Figure:
    rounds = states.shape[1]
    figure = style.new_figure(style.DOUBLE, 4.4)
    above, below = figure.subplots(2, 1, height_ratios=(1, 4.5), sharex=rounds == len(trained))
    numbers = [record["round"] for record in trained]
    above.step(numbers, [record["mask"]["frozen"] for record in trained], where="mid", color=style.BLUE)
    above.set(ylim=(-0.04, 1.04), ylabel="share\nfrozen")
    above.grid(True)
    above.xaxis.set_major_locator(MaxNLocator(integer=True))
    colours = ListedColormap([_COLOURS[word] for word in words])
    picture, middles = _with_gaps(states, [len(positions) for positions in sample.values()])
    below.imshow(
        picture,
        cmap=colours,
        vmin=-0.5,
        vmax=len(words) - 0.5,
        extent=(0.5, rounds + 0.5, len(picture) - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
    )
    below.set_yticks(middles, list(sample), fontsize=6)
    below.tick_params(axis="y", length=0)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.set(xlabel="communication round", ylabel="sample of entries")
    handles = {word: Patch(facecolor=_COLOURS[word], edgecolor="0.6", linewidth=0.5) for word in words}
    style.add_legend(
        figure, {word: handle for at, (word, handle) in enumerate(handles.items()) if (states == at).any()}
    )
    style.entitle(figure, style.title_of(run), f"schedule {trained[0]['mask']['schedule']}")
    return figure


def _with_gaps(states: NDArray[np.int64], sizes: list[int], gap: int = 2) -> tuple[Any, list[float]]:
    """Return the rows with empty ones between tensors, and the position of the middle of each tensor."""
    ends = np.cumsum(sizes)
    starts = ends - sizes + gap * np.arange(len(sizes))
    picture = np.full((len(states) + gap * (len(sizes) - 1), states.shape[1]), -1, dtype=np.int64)
    for start, size, end in zip(starts, sizes, ends, strict=True):
        picture[start : start + size] = states[end - size : end]
    return np.ma.MaskedArray(picture, mask=picture < 0), [
        float(start + (size - 1) / 2) for start, size in zip(starts, sizes, strict=True)
    ]
