"""Which layer produces the units of a permutation, the name they get from it, and where a hook can read their features.

The units of a stream are produced by several layers, which add to it. Its features are its values after the last of
them: after the norm, the sum and the first activation, as returned by a module or, if the activation is not a module,
as received by the next module.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from fedpfn.lmc.matching.permutations import Features
from fedpfn.lmc.matching.ties import Units, resolve
from fedpfn.lmc.matching.tracing import Step, Trace


@dataclass(frozen=True)
class Origin:
    """A permutation's name, the location of its features (None if no module shows them), and the step before which the
    module that it is named after starts."""

    name: str
    features: Features | None
    started: int


@dataclass(frozen=True)
class _Sight:
    """A step at which the units occur: ``axis`` holds only them; None if they lie among others."""

    at: int
    step: Step
    axis: int | None
    made: bool


def origins(traced: Trace) -> dict[Units, Origin]:
    """Return the origin of all units that lie on a tensor of the state, in the order in which they start."""
    tensors: dict[Units, str] = {}
    for name, dims in traced.tensors.items():
        for units in (part for dim in dims for part, _ in resolve(dim) if part is not None):
            tensors.setdefault(units, name)
    sights = _sights(traced)
    named: dict[Units, Origin] = {}
    for units, tensor in tensors.items():
        named[units] = _origin(sights.get(units, []), traced, tensor, taken={origin.name for origin in named.values()})
    return dict(sorted(named.items(), key=lambda pair: pair[1].started))


def _sights(traced: Trace) -> dict[Units, list[_Sight]]:
    sights: dict[Units, list[_Sight]] = {}
    for at, step in enumerate(traced.steps):
        rows = [resolve(dim) for dim in step.dims]
        for units in dict.fromkeys(part for row in rows for part, _ in row if part is not None):
            axis = next((axis for axis, row in enumerate(rows) if len(row) == 1 and row[0][0] is units), None)
            made = step.kind == "layer" and any(part is units for part, _ in rows[step.axis])
            sights.setdefault(units, []).append(_Sight(at, step, axis, made))
    return sights


def _origin(sights: Sequence[_Sight], traced: Trace, tensor: str, *, taken: set[str]) -> Origin:
    makers = list(
        dict.fromkeys(sight.step.weight.removesuffix(".weight") or sight.step.module for sight in sights if sight.made)
    )
    ends = [sight.at for sight in sights if sight.made or sight.step.kind == "depthwise"]
    within = _common_module(makers) if len(makers) > 1 else ""
    after = [sight for sight in sights if sight.at >= max(ends, default=0)]
    # for units that later lie among others, the features within their own module
    features = _features(after, within) or _features(sights, within)
    # a stream is named after the module that it leaves, unless it is only seen where it enters the next module
    leaves = [features.module] if features and not features.entering and len(makers) != 1 else []
    choices = [*leaves, *makers, tensor.rpartition(".")[0], tensor, f"{tensor} {len(taken)}"]
    name = next(name for name in choices if name and name not in taken)
    return Origin(name, features, traced.started.get(name, min(ends, default=len(traced.steps))))


def _common_module(names: Sequence[str]) -> str:
    """Return the innermost module that contains all of these."""
    paths = [name.split(".")[:-1] for name in names]
    common = list(takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))
    return ".".join(parts[0] for parts in common)


def _features(sights: Sequence[_Sight], within: str) -> Features | None:
    leaving: dict[tuple[int, int], Features] = {}
    entering: dict[tuple[int, int], Features] = {}
    wanted: list[tuple[int, int]] = []
    settled = False
    for sight in sights:
        step, axis = sight.step, sight.axis
        at = (step.tensor, step.version)
        if axis is None:
            continue
        if step.kind == "out":
            inner = leaving.get(at)
            # the outermost module that returns it: the stage, rather than its last activation
            if inner is None or (_is_in(inner.module, step.module) and _is_in(step.module, within)):
                leaving[at] = Features(step.module, step.call, axis)
        elif step.kind == "in":
            entering.setdefault(at, Features(step.module, step.call, axis, entering=True))
        elif not settled and step.kind != "other":
            wanted.insert(0, at)
            settled = step.kind == "activation"
    best = [places[wanted[0]] for places in (leaving, entering) if wanted and wanted[0] in places]
    pooled = [features for at, features in entering.items() if settled and at not in wanted]
    others = [places[at] for at in wanted[1:] for places in (leaving, entering) if at in places]
    return next(iter([*best, *pooled, *others]), None)


def _is_in(inner: str, outer: str) -> bool:
    return not outer or inner == outer or inner.startswith(f"{outer}.")
