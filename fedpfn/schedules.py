"""Round plans and mask schedules: which masks a round trains with, and for what share of the local steps.

A plan is a tuple of phases (mask recipe, share of the local steps) and covers every algorithm (arXiv 2402.01342,
section 4.2): FedAvg ((ones, 1),), FedPFN ((m, 1),), FedPNU ((m, phi), (1-m, 1-phi)). A schedule is a function
``(server_round, plan) -> plan`` that gets the plan of a fresh mask with the round's ratio and returns the one to use;
algorithms are functions of the same kind, applied after it. ``plan_rounds`` combines them.
"""

import json
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any

from fedpfn import imports
from fedpfn.masking import Masking
from fedpfn.masks import MaskRecipe
from fedpfn.parts import call_with, converted
from fedpfn.protocol import PLAN
from fedpfn.seeding import derive


@dataclass(frozen=True)
class Phase:
    """A part of a round's local steps, and the mask that they train with.

    Attributes
    ----------
    mask
        The mask's recipe; None trains every entry.
    share
        Share of the local steps, 0 or more; the shares of a plan's phases sum to 1.
    """

    mask: MaskRecipe | None
    share: float = 1.0


Plan = tuple[Phase, ...]
PlanStep = Callable[[int, Plan], Plan]
RoundPlans = Callable[[int], Plan]

VARIANTS = ("within-round", "across-rounds", "then-all")  # of FedPNU

UNMASKED: Plan = (Phase(None),)


def per_round(masking: Masking) -> PlanStep:
    """Draw a fresh mask in each round, as in the papers."""
    return lambda server_round, plan: plan


def fixed(masking: Masking) -> PlanStep:
    """Keep one mask for the whole run."""
    return lambda server_round, plan: _with(plan, seed=derive(masking.seed, "mask", "fixed"))


def complement(masking: Masking) -> PlanStep:
    """Draw a fresh mask in the first, third, ... masked round and train its complement in the round after.

    Both rounds of a pair use the ratio of the first, so that they cover every entry once even if the ratio changes.
    """

    def step(server_round: int, plan: Plan) -> Plan:
        second = (server_round - masking.warmup_rounds) % 2 == 0
        drawn_in = server_round - second
        seed, ratio = derive(masking.seed, "mask", drawn_in), masking.ratio_at(drawn_in)
        return _with(plan, seed=seed, ratio=ratio, inverted=second)

    return step


def cyclic(masking: Masking) -> PlanStep:
    """Move the frozen window of one random order by 1/blocks of each tensor from round to round.

    With ratio 1/blocks, disjoint blocks freeze in turn; with 1 - 1/blocks, disjoint blocks train in turn.
    """

    def step(server_round: int, plan: Plan) -> Plan:
        start = (server_round - 1) % masking.blocks / masking.blocks
        return _with(plan, seed=derive(masking.seed, "mask", "fixed"), start=start)

    return step


SCHEDULES: dict[str, Callable[[Masking], PlanStep]] = {
    "per-round": per_round,
    "fixed": fixed,
    "complement": complement,
    "cyclic": cyclic,
}


def fed_pfn(server_round: int, plan: Plan) -> Plan:
    """Train under the scheduled mask.

    Parameters
    ----------
    server_round
        Number of the round.
    plan
        The scheduled plan.

    Returns
    -------
    tuple of Phase
        ``plan`` itself.
    """
    return plan


def fed_pnu(variant: str, phase_share: float) -> PlanStep:
    """Return progressive neuron updating; the paper does not define the phases, so each reading is a variant.

    An unmasked phase stays unchanged. Steps are not divided: a client with one local step takes it in the first phase.

    Parameters
    ----------
    variant
        ``within-round``: m, then 1-m. ``across-rounds``: m in one round, its complement in the next (this is the
        schedule ``complement``; plans stay unchanged). ``then-all``: m, then every entry.
    phase_share
        Share of the steps that train with m, from 0 to 1; not used by ``across-rounds``.

    Returns
    -------
    function
        From the number of a round and its scheduled plan to the plan to use.

    Raises
    ------
    ValueError
        For another variant, and for a share outside [0, 1].
    """
    if variant not in VARIANTS:
        raise ValueError(f"FedPNU's variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
    if not 0 <= phase_share <= 1:
        raise ValueError(f"FedPNU's phase_share is a share of the local steps, within [0, 1]; got {phase_share!r}")

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


def make_schedule(masking: Masking) -> PlanStep:
    """Return the schedule that ``masking`` names. Raises ``ValueError`` for an unknown one or a bad import string."""
    name = masking.schedule
    if imports.is_reference(name):
        # a schedule with state is a class or an object: each run gets its own copy, in its initial state
        schedule = deepcopy(imports.load(name))
        if isinstance(schedule, type):
            schedule = call_with(schedule, {}, masking.args)
        elif masking.args:
            schedule = partial(schedule, **converted(schedule, masking.args))
        if not callable(schedule):
            raise ValueError(f"mask.schedule {name!r} is not a function (server_round, plan) -> plan")
        return schedule  # type: ignore[no-any-return]
    if name not in SCHEDULES:
        raise ValueError(f"mask.schedule must be one of {', '.join(SCHEDULES)} or package.module:name, got {name!r}")
    return SCHEDULES[name](masking)


def plan_rounds(masking: Masking, algorithm: PlanStep = fed_pfn) -> RoundPlans:
    """Return the function from a round to its plan: fresh mask, then the schedule, then the algorithm.

    Parameters
    ----------
    masking
        How masks are drawn; its warm-up rounds have no mask.
    algorithm
        Function of a round's number and its scheduled plan that returns the plan to use; by default FedPFN.

    Returns
    -------
    function
        From the number of a round, counted from 1, to its plan.

    Raises
    ------
    ValueError
        For an unknown schedule or a bad import string. The returned function raises it if a user's schedule returns
        anything but phases whose shares sum to 1.

    Examples
    --------
    >>> plan = plan_rounds(Masking(0.4, seed=1, warmup_rounds=1), fed_pnu("within-round", 0.5))
    >>> [len(plan(server_round)) for server_round in (1, 2)]
    [1, 2]
    """
    schedule = make_schedule(masking)

    def plan(server_round: int) -> Plan:
        if server_round <= masking.warmup_rounds:
            return algorithm(server_round, UNMASKED)
        scheduled = schedule(server_round, (Phase(masking.fresh(server_round)),))
        _check(scheduled, f"mask.schedule {masking.schedule!r}, round {server_round}")
        return algorithm(server_round, scheduled)

    return plan


def phase_steps(shares: tuple[float, ...], steps: int) -> tuple[int, ...]:
    """Split local steps among phases: each ends at its cumulative share, rounded, so that all steps are used.

    Parameters
    ----------
    shares
        The phases' shares, which sum to 1.
    steps
        Number of local steps.

    Returns
    -------
    tuple of int
        Number of steps of each phase.

    Examples
    --------
    >>> phase_steps((0.5, 0.5), 5)
    (3, 2)
    """
    ends = [math.floor(round(sum(shares[: i + 1]) * steps, 6) + 0.5) for i in range(len(shares))]
    ends[-1] = steps
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


def encode_plan(plan: Plan) -> str:
    """Return a plan as the JSON text in which it is sent."""
    phases = [asdict(phase) for phase in plan]
    for phase in phases:
        # a drawn mask is written without the key, as in earlier versions
        if phase["mask"] is not None and not phase["mask"]["chosen"]:
            del phase["mask"]["chosen"]
    return json.dumps(phases)


@lru_cache(maxsize=4)
def decode_plan(text: str) -> Plan:
    """Read a plan written by ``encode_plan``. Raises ``ValueError`` for anything else."""
    try:
        plan = tuple(
            Phase(None if phase["mask"] is None else MaskRecipe(**phase["mask"]), phase["share"])
            for phase in json.loads(text)
        )
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"the text is not a round plan ({error}): {text[:80]!r}") from error
    _check(plan, "a round plan")
    return plan


def plan_in(config: Mapping[str, Any]) -> Plan:
    """Return the plan in a round's config record; without one, a plan that trains every entry."""
    return decode_plan(str(config[PLAN])) if PLAN in config else UNMASKED


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
