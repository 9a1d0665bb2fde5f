"""``fedpfn masks``: what a schedule freezes, round by round and tensor by tensor, without running anything."""

from collections.abc import Mapping, Sequence

from rich.table import Table
from torch import Tensor

from fedpfn.masks import Mask, build_mask, frozen_share
from fedpfn.runs.config import RunConfig
from fedpfn.schedules import Phase, Plan, RoundPlans


def plans_of(plan: RoundPlans, rounds: int) -> list[Plan]:
    """Return the plans of rounds 1 to ``rounds``."""
    return [plan(server_round) for server_round in range(1, rounds + 1)]


def rounds_table(config: RunConfig, plans: Sequence[Plan], parameters: Mapping[str, Tensor]) -> Table:
    """Return one row per phase: its share of the local steps, what it freezes, and how much of it was frozen before."""
    title = f"{config.strategy.name}, mask.schedule={config.mask.schedule}, mask.ratio={config.mask.ratio:g}"
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in (
        "round",
        "phase",
        "of the steps",
        "ratio",
        "entries frozen",
        "share",
        "also frozen in the phase before",
    ):
        table.add_column(name, justify="right")
    before: Mask | None = None
    for server_round, plan in enumerate(plans, start=1):
        for position, phase in enumerate(plan, start=1):
            mask = build_mask(phase.mask, parameters)
            frozen = sum(int((~trained).sum()) for trained in mask.values())
            table.add_row(
                str(server_round) if position == 1 else "",
                str(position),
                f"{phase.share:.0%}",
                _ratio(phase),
                f"{frozen:,}",
                f"{frozen_share(mask):.1%}",
                "–" if before is None else f"{_overlap(mask, before):.1%}",
            )
            before = mask
    return table


def tensors_table(plans: Sequence[Plan], parameters: Mapping[str, Tensor]) -> Table:
    """Return one row per tensor with the number of entries that each round's first phase freezes."""
    table = Table(
        title="frozen entries of the first phase", title_justify="left", box=None, header_style="bold", pad_edge=False
    )
    table.add_column("tensor")
    table.add_column("shape")
    table.add_column("entries", justify="right")
    for server_round in range(1, len(plans) + 1):
        table.add_column(f"r{server_round}", justify="right")
    masks = [build_mask(plan[0].mask, parameters) for plan in plans]
    for name, parameter in parameters.items():
        counts = [f"{int((~mask[name]).sum()):,}" for mask in masks]
        table.add_row(name, "×".join(map(str, parameter.shape)) or "scalar", f"{parameter.numel():,}", *counts)
    return table


def _ratio(phase: Phase) -> str:
    if phase.mask is None:
        return "–"
    return f"{phase.mask.ratio:.3g}" + (" inverted" if phase.mask.inverted else "")


def _overlap(mask: Mask, before: Mask) -> float:
    """Return the share of the entries frozen by ``mask`` that ``before`` also froze."""
    frozen = sum(int((~trained).sum()) for trained in mask.values())
    both = sum(int((~trained & ~before[name]).sum()) for name, trained in mask.items())
    return both / frozen if frozen else 0.0
