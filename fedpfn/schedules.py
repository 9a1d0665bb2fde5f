"""Round plans and mask schedules: which masks a round trains with, and for how much of the local steps each.

A plan is a tuple of phases (mask recipe, share of the local steps) and covers every algorithm (arXiv 2402.01342,
section 4.2): FedAvg ((ones, 1),), FedPFN ((m, 1),), FedPNU ((m, phi), (1-m, 1-phi)). A schedule is a function
``(server_round, plan so far) -> plan`` that gets the plan of a fresh mask with the round's ratio and returns the one to
use; algorithms are functions of the same kind, applied after it. ``plan_round`` puts them together.
"""

import json
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedpfn import imports
from fedpfn.masks import MaskRecipe
from fedpfn.runs.config import Mask, RunConfig
from fedpfn.seeding import derive


@dataclass(frozen=True)
class Phase:
    """A share of a round's local steps, and the mask they train with; None trains every entry."""

    mask: MaskRecipe | None
    share: float = 1.0


Plan = tuple[Phase, ...]
PlanStep = Callable[[int, Plan], Plan]

UNMASKED: Plan = (Phase(None),)


def per_round(server_round: int, plan: Plan) -> Plan:
    """Draw a fresh mask in each round: the papers' schedule."""
    return plan


def fixed(seed: int) -> PlanStep:
    """Keep one mask for the whole run."""
    return lambda server_round, plan: _with(plan, seed=derive(seed, "mask", "fixed"))


def complement(config: RunConfig) -> PlanStep:
    """Draw a fresh mask in the first, third, ... masked round and train its complement in the round after.

    Both rounds of a pair have the ratio of its first, so that they cover every entry once while the ratio moves.
    """

    def step(server_round: int, plan: Plan) -> Plan:
        second = (server_round - config.mask.warmup_rounds) % 2 == 0
        drawn_in = server_round - second
        ratio = ratio_at(config.mask, drawn_in, config.rounds)
        return _with(plan, seed=derive(config.seed, "mask", drawn_in), ratio=ratio, inverted=second)

    return step


def cyclic(seed: int, blocks: int) -> PlanStep:
    """Move the frozen window of one random order by 1/blocks of each tensor from round to round.

    With ratio 1/blocks, disjoint blocks freeze in turn; with 1 - 1/blocks, disjoint blocks train in turn.
    """

    def step(server_round: int, plan: Plan) -> Plan:
        return _with(plan, seed=derive(seed, "mask", "fixed"), start=(server_round - 1) % blocks / blocks)

    return step


SCHEDULES: dict[str, Callable[[RunConfig], PlanStep]] = {
    "per-round": lambda config: per_round,
    "fixed": lambda config: fixed(config.seed),
    "complement": complement,
    "cyclic": lambda config: cyclic(config.seed, config.mask.blocks),
}


def fed_avg(server_round: int, plan: Plan) -> Plan:
    """Train every entry."""
    return UNMASKED


def fed_pfn(server_round: int, plan: Plan) -> Plan:
    """Train under the mask as it is."""
    return plan


def fed_pnu(variant: str, phase_share: float) -> PlanStep:
    """Return progressive neuron updating; the paper leaves the phases open, so each reading is a variant.

    ``within-round``: the first ``phase_share`` of the steps with m, the rest with 1-m. ``across-rounds``: m in one
    round, its complement in the next (that is the schedule ``complement``).
    ``then-all``: m, then every entry. An unmasked phase stays as it is. Steps are whole: a client with a single local
    step takes it in the first phase.
    """

    def step(server_round: int, plan: Plan) -> Plan:
        phases: list[Phase] = []
        for phase in plan:
            if phase.mask is None or variant == "across-rounds":
                phases.append(phase)
                continue
            second = phase.mask.complement() if variant == "within-round" else None
            phases.append(Phase(phase.mask, phase.share * phase_share))
            phases.append(Phase(second, phase.share * (1 - phase_share)))
        return tuple(phases)

    return step


def ratio_at(mask: Mask, server_round: int, rounds: int) -> float:
    """Return the frozen share of a round: constant, or from ``ratio`` to ``final_ratio`` over the masked rounds.

    With progress s in [0, 1]: linear r0 + s (r1 - r0); cosine r0 + (1 - cos(pi s)) / 2 (r1 - r0).
    """
    if mask.ratio_shape == "constant":
        return mask.ratio
    first = mask.warmup_rounds + 1
    progress = min(max((server_round - first) / max(rounds - first, 1), 0.0), 1.0)
    if mask.ratio_shape == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return mask.ratio + progress * (mask.final_ratio - mask.ratio)


def schedule_name(config: RunConfig) -> str:
    """Return the schedule in force: the one asked for, but ``complement`` for FedPNU across rounds."""
    across = config.strategy.name == "fedpnu" and config.strategy.variant == "across-rounds"
    return "complement" if across else config.mask.schedule


def make_schedule(config: RunConfig) -> PlanStep:
    """Return the schedule that the config names. Raises ``ValueError`` for an unknown one or a bad import string."""
    name = schedule_name(config)
    if imports.is_reference(name):
        found = imports.load(name)
        # a schedule with a state of its own is a class, or an object: each run gets its own, as it was at first
        schedule = found() if isinstance(found, type) else deepcopy(found)
        if not callable(schedule):
            raise ValueError(f"mask.schedule {name!r} is not a function (server_round, plan) -> plan")
        return schedule  # type: ignore[no-any-return]
    if name not in SCHEDULES:
        raise ValueError(f"mask.schedule must be one of {', '.join(SCHEDULES)} or package.module:name, got {name!r}")
    return SCHEDULES[name](config)


def plan_round(config: RunConfig, server_round: int, schedule: PlanStep, algorithm: PlanStep) -> Plan:
    """Return the plan of a round: fresh mask, then the schedule, then the algorithm; nothing masked while warming up.

    Raises ``ValueError`` if a user's schedule returns something else than phases whose shares sum to 1.
    """
    mask = config.mask
    if server_round <= mask.warmup_rounds:
        return algorithm(server_round, UNMASKED)
    fresh = MaskRecipe(
        seed=derive(config.seed, "mask", server_round),
        ratio=ratio_at(mask, server_round, config.rounds),
        granularity=mask.granularity,
        draw=mask.draw,
        include=mask.include,
        exclude=mask.exclude,
    )
    scheduled = schedule(server_round, (Phase(fresh),))
    _check(scheduled, f"mask.schedule {mask.schedule!r}, round {server_round}")
    return algorithm(server_round, scheduled)


def phase_steps(shares: tuple[float, ...], steps: int) -> tuple[int, ...]:
    """Split ``steps`` by ``shares``: each phase ends at its cumulated share, rounded, so that all steps are used.

    >>> phase_steps((0.5, 0.5), 5)
    (3, 2)
    """
    ends = [math.floor(round(sum(shares[: i + 1]) * steps, 6) + 0.5) for i in range(len(shares))]
    ends[-1] = steps
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


def encode_plan(plan: Plan) -> str:
    """Write a plan as the JSON text in which it travels."""
    return json.dumps([asdict(phase) for phase in plan])


def decode_plan(text: str) -> Plan:
    """Read a plan written by ``encode_plan``."""
    return tuple(
        Phase(None if phase["mask"] is None else MaskRecipe(**phase["mask"]), phase["share"])
        for phase in json.loads(text)
    )


def _with(plan: Plan, **changes: Any) -> Plan:
    return tuple(phase if phase.mask is None else Phase(replace(phase.mask, **changes), phase.share) for phase in plan)


def _check(plan: object, who: str) -> None:
    phases = plan if isinstance(plan, tuple | list) else ()
    if not phases or not all(
        isinstance(phase, Phase) and isinstance(phase.mask, MaskRecipe | None) for phase in phases
    ):
        raise ValueError(f"{who}: expected a tuple of Phase(mask recipe or None, share), got {plan!r}")
    shares = [phase.share for phase in phases]
    if not all(isinstance(share, int | float) and share >= 0 for share in shares) or not abs(sum(shares) - 1) <= 1e-9:
        raise ValueError(f"{who}: the phases' shares must be numbers of 0 or more that sum to 1, got {shares}")
