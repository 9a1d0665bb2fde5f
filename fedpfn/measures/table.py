"""The table of measures: every number recorded for a round, its unit, its better direction and its function.

The recorder, ``fedpfn show``, reports, figures and trackers read this table. ``measures_of`` returns the table of a
task: for tasks other than classification it has accuracies labelled with the name of the task's score, or errors as
well.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isnan
from statistics import fmean
from typing import Any

from fedpfn.drift import Drift
from fedpfn.lmc import PairwiseBarriers
from fedpfn.masks import build_mask, frozen_share
from fedpfn.measures.clients import FIGURES, personal_accuracies
from fedpfn.measures.instruments import Instruments
from fedpfn.measures.measure import BYTES, NATS, SHARE, Due, Measure, Quantity, Value
from fedpfn.params import state_digest
from fedpfn.rounds import Round
from fedpfn.tasks import CLASSIFICATION, Task


def _train_loss(round: Round, instruments: Instruments) -> float | None:
    """Return the clients' mean training loss, weighted by their numbers of examples."""
    losses = [contribution.metrics.get("train-loss") for contribution in round.contributions]
    if not losses or not all(isinstance(loss, int | float) for loss in losses):
        return None
    weights = [contribution.examples for contribution in round.contributions]
    weighed: float = sum(loss * weight for loss, weight in zip(losses, weights, strict=True))  # type: ignore[operator,misc]
    return weighed / sum(weights)


def _mask(of: Callable[[Round], Value]) -> Callable[[Round, Instruments], Value]:
    return lambda round, instruments: of(round) if round.server_round else None


def _ratio(round: Round) -> float:
    return next((phase.mask.ratio for phase in round.plan if phase.mask is not None), 0.0)


def _frozen(round: Round) -> float:
    maskable = {name: round.before[name] for name in round.parameters}
    return sum(phase.share * frozen_share(build_mask(phase.mask, maskable)) for phase in round.plan)


def _phase_steps(round: Round) -> list[list[float]]:
    """Return each client's reported number of local steps in each phase."""
    reported = [contribution.metrics.get("phase-steps") for contribution in round.contributions]
    return [steps for steps in reported if isinstance(steps, list) and len(steps) == len(round.plan)]


def _mean_phase_steps(round: Round) -> list[float] | None:
    return [fmean(steps) for steps in zip(*_phase_steps(round), strict=True)] or None


def _phase_clients(round: Round) -> list[float] | None:
    return [fmean(step > 0 for step in steps) for steps in zip(*_phase_steps(round), strict=True)] or None


def _of(result: Callable[[Instruments, Round], Any], part: Callable[[Any], Value]) -> Callable[..., Value]:
    """Return a measure that extracts ``part`` from a shared result; None if there is no such result."""

    def function(round: Round, instruments: Instruments) -> Value:
        whole = result(instruments, round)
        return None if whole is None else part(whole)

    return function


def _barriers(
    of: Callable[[Instruments, Round], PairwiseBarriers | None], kind: str, which: str
) -> Callable[..., Value]:
    return _of(of, lambda barriers: float(getattr(getattr(barriers, f"{kind}_barriers"), which)()))


def _pairwise(instruments: Instruments, round: Round) -> PairwiseBarriers | None:
    connectivity = instruments.connectivity(round)
    return None if connectivity is None else connectivity.barriers


def _layers(round: Round, instruments: Instruments) -> list[dict[str, Any]] | None:
    """Return E[1 - cos] of each layer, averaged over pairs: LLFC at the midpoint, and the pair's own features."""
    cosines = instruments.layer_cosines(round)
    if cosines is None:
        return None
    return [
        {"layer": name, "llfc": float(cosines.llfc[:, at].mean()), "baseline": float(cosines.baseline[:, at].mean())}
        for at, name in enumerate(cosines.layers)
    ]


def _cosine(drift: Drift) -> float | None:
    # undefined if fewer than two clients moved
    return None if isnan(drift.cosine_mean) else drift.cosine_mean


def _by_client(
    name: str, label: str, accuracies: Callable[[Round, Instruments], Sequence[float] | None], due: Due
) -> Iterator[Measure]:
    """Yield the statistics over clients of a per-client accuracy."""

    def measure(figure: Callable[[Sequence[float]], float]) -> Callable[[Round, Instruments], float | None]:
        def function(round: Round, instruments: Instruments) -> float | None:
            values = accuracies(round, instruments)
            return figure(values) if values else None

        return function

    for leaf, (words, better, figure) in FIGURES.items():
        yield Measure(
            f"{name}.{leaf}", words.format(label), SHARE, better, measure(figure), due, needs_held_out=True
        )  # fmt: skip


_EVALUATION, _CONNECTIVITY, _DRIFT = Instruments.evaluation, Instruments.connectivity, Instruments.drift
_TO_GLOBAL, _TO_ROUND = Instruments.client_to_global, Instruments.round_to_round
_PHASES = _mask(lambda round: len(round.plan))

BUILT_IN: tuple[Measure, ...] = (
    Measure("accuracy", "accuracy", SHARE, "higher", _of(_EVALUATION, lambda evaluation: evaluation.accuracy)),
    Measure("loss", "loss", NATS, "lower", _of(_EVALUATION, lambda evaluation: evaluation.loss)),
    Measure("train_loss", "training loss", NATS, "lower", _train_loss, "always"),
    Measure("mask.ratio", "mask ratio", SHARE, "none", _mask(_ratio), "always"),
    Measure("mask.frozen", "frozen, mean over steps", SHARE, "none", _mask(_frozen), "always"),
    Measure("mask.untouched", "frozen all round", SHARE, "none", _mask(lambda r: frozen_share(r.active)), "always"),
    Measure("mask.phases", "phases", "", "none", _PHASES, "always"),
    Measure("mask.phase_steps", "steps per phase", "steps", "none", _mask(_mean_phase_steps), "always"),
    Measure("mask.phase_clients", "clients per phase", SHARE, "none", _mask(_phase_clients), "always"),
    Measure("barrier.accuracy_mean", "accuracy barrier", SHARE, "lower",
            _barriers(_pairwise, "accuracy", "mean"), "barriers"),
    Measure("barrier.accuracy_max", "max accuracy barrier", SHARE, "lower",
            _barriers(_pairwise, "accuracy", "max"), "barriers"),
    Measure("barrier.loss_mean", "loss barrier", NATS, "lower", _barriers(_pairwise, "loss", "mean"), "barriers"),
    Measure("barrier.loss_max", "max loss barrier", NATS, "lower", _barriers(_pairwise, "loss", "max"), "barriers"),
    Measure("barrier.pairs", "pairs", "", "none", _of(_pairwise, lambda barriers: len(barriers.pairs)), "barriers"),
    Measure("barrier.points", "points", "", "none", _of(_pairwise, lambda barriers: len(barriers.alphas)), "barriers"),
    Measure("barrier.layers", "layers", "", "none", _layers, "barriers"),
    Measure("fusion.accuracy", "accuracy of the clients' mean", SHARE, "higher",
            _of(_CONNECTIVITY, lambda report: report.fused.accuracy), "barriers"),
    Measure("fusion.barrier", "fusion barrier", SHARE, "lower",
            _of(_CONNECTIVITY, lambda report: report.fusion_barrier), "barriers"),
    Measure("client_to_global.accuracy_mean", "client-to-global accuracy barrier", SHARE, "lower",
            _barriers(_TO_GLOBAL, "accuracy", "mean"), "barriers"),
    Measure("client_to_global.accuracy_max", "max client-to-global accuracy barrier", SHARE, "lower",
            _barriers(_TO_GLOBAL, "accuracy", "max"), "barriers"),
    Measure("client_to_global.loss_mean", "client-to-global loss barrier", NATS, "lower",
            _barriers(_TO_GLOBAL, "loss", "mean"), "barriers"),
    Measure("client_to_global.loss_max", "max client-to-global loss barrier", NATS, "lower",
            _barriers(_TO_GLOBAL, "loss", "max"), "barriers"),
    Measure("round_to_round.accuracy", "round-to-round accuracy barrier", SHARE, "lower",
            _barriers(_TO_ROUND, "accuracy", "mean"), "barriers"),
    Measure("round_to_round.loss", "round-to-round loss barrier", NATS, "lower",
            _barriers(_TO_ROUND, "loss", "mean"), "barriers"),
    Measure("drift.norm_mean", "norm of client updates", "", "none", _of(_DRIFT, lambda d: fmean(d.norms))),
    Measure("drift.norm_max", "max norm of client updates", "", "none", _of(_DRIFT, lambda d: max(d.norms))),
    Measure("drift.cosine_mean", "cosine between client updates", "", "none", _of(_DRIFT, _cosine)),
    Measure("class_accuracy", "accuracy by class", SHARE, "higher", lambda r, i: i.class_accuracy(r)),
    *_by_client("client_accuracy", "accuracy by client", lambda r, i: i.client_accuracies(r), "evaluated"),
    *_by_client("personal_accuracy", "personal accuracy", lambda r, i: personal_accuracies(r), "always"),
    Measure("weights_sha256", "digest of the global weights", "", "none", lambda r, i: state_digest(r.after), "always"),
    Measure("bytes_down", "bytes down", BYTES, "lower", lambda r, i: r.bytes_down, "always"),
    Measure("bytes_up", "bytes up", BYTES, "lower", lambda r, i: r.bytes_up, "always"),
)  # fmt: skip

# only for a private federation
EPSILON = Measure(
    "privacy.epsilon", "privacy, epsilon", "", "lower", lambda round, _: round.metrics.get("epsilon"), "always"
)

MEASURES: dict[str, Measure] = {measure.name: measure for measure in BUILT_IN}


def measures_of(task: Task) -> tuple[Measure, ...]:
    """Return the built-in measures of a task: the table itself for a classification.

    A score that is a share of right answers is recorded as ``accuracy``, labelled with the task's name for it. If the
    score is an error, accuracies are null in the record, and errors are recorded in addition: ``error``,
    ``barrier.error_mean`` and so on.
    """
    if task == CLASSIFICATION:
        return BUILT_IN
    if not task.has_accuracy:
        return tuple(_in_unit(measure, task) for measure in (*BUILT_IN, *_errors(task)))
    by_class = "accuracy by label" if task.labels == "multi-hot" else f"{task.score_name} by class"
    named = (
        replace(m, label=by_class if m.name == "class_accuracy" else m.label.replace("accuracy", task.score_name))
        for m in BUILT_IN
    )
    return tuple(_in_unit(measure, task) for measure in named)


def _in_unit(measure: Measure, task: Task) -> Measure:
    return replace(measure, unit=task.loss_unit) if measure.unit == NATS != task.loss_unit else measure


def _errors(task: Task) -> Iterator[Measure]:
    """Yield the measures of an error: for the global model, for paths between models, for the clients' mean."""
    name, unit = task.score_name, task.score_unit
    yield Measure("error", name, unit, "lower", _of(_EVALUATION, lambda evaluation: evaluation.error))
    paths: tuple[tuple[str, str, Callable[..., PairwiseBarriers | None]], ...] = (
        ("barrier", f"{name} barrier", _pairwise),
        ("client_to_global", f"client-to-global {name} barrier", _TO_GLOBAL),
        ("round_to_round", f"round-to-round {name} barrier", _TO_ROUND),
    )
    for table, label, of in paths:
        if table == "round_to_round":
            yield Measure(f"{table}.error", label, unit, "lower", _barriers(of, "error", "mean"), "barriers")
            continue
        yield Measure(f"{table}.error_mean", label, unit, "lower", _barriers(of, "error", "mean"), "barriers")
        yield Measure(f"{table}.error_max", f"max {label}", unit, "lower", _barriers(of, "error", "max"), "barriers")
    fused = _of(_CONNECTIVITY, lambda report: report.fused.error)
    yield Measure("fusion.error", f"{name} of the clients' mean", unit, "lower", fused, "barriers")


def describe(name: str, own: Mapping[str, Mapping[str, Any]] | None = None) -> Quantity:
    """Return label, unit and direction of the recorded number ``name``.

    Parameters
    ----------
    name
        Key of the number in ``rounds.jsonl``, dotted if it is within a table.
    own
        The run's own measures (``Run.measures``), which take precedence over the table; None if it has none.

    Returns
    -------
    Quantity
        Its label, unit and direction. A number in the table of a user's measure has that measure's unit and direction;
        an unknown one has neither.

    Examples
    --------
    >>> describe("drift.norm_mean").label, describe("sharpness.at_end").label
    ('norm of client updates', 'sharpness at end')
    """
    own = own or {}
    if name in own:
        return Quantity(name, own[name]["label"], own[name].get("unit", ""), own[name].get("better", "none"))
    if name in MEASURES:
        return MEASURES[name]
    table, _, leaf = name.partition(".")
    about = own.get(table, {})
    label = f"{about.get('label', table)} {leaf}".strip().replace("_", " ")
    return Quantity(name, label, about.get("unit", ""), about.get("better", "none"))
