"""Faults of a run's mask that can be found before it starts: in its schedule, its ratio, its patterns."""

import fnmatch
from collections.abc import Iterable, Iterator
from itertools import pairwise

from fedpfn import imports
from fedpfn.args import args_of
from fedpfn.masking import Masking
from fedpfn.masks import split_patterns
from fedpfn.parts import signature_faults
from fedpfn.runs.arguments import is_masked, masking_of
from fedpfn.runs.config import RunConfig
from fedpfn.schedules import make_schedule


def schedule_faults(config: RunConfig) -> Iterator[str]:
    """Yield why the mask schedule is unavailable or refuses its arguments."""
    if not is_masked(config):
        return
    name, args = config.mask.schedule, args_of(config.mask.args)
    if config.strategy.name == "ssfl":
        # the setting would be silently ignored
        if config.mask.granularity != "weight":
            yield "strategy.name=ssfl freezes single entries and cannot be used with mask.granularity=neuron"
        if name not in ("per-round", "fixed"):
            yield f"strategy.name=ssfl keeps the mask that it chose and cannot be used with mask.schedule={name}"
    if imports.is_reference(name):
        try:
            schedule = imports.load(name)
        except ValueError as error:
            yield str(error)
            return
        # a class is made with its arguments; a function gets the round and the plan by position as well
        positional = 0 if isinstance(schedule, type) else 2
        if callable(schedule):
            yield from signature_faults(repr(name), schedule, args, key="mask.args", positional=positional)
            return
    if (hint := imports.colon_hint(name)) is not None:
        yield f"mask.schedule: {hint}"
        return
    yield from (f"mask.args.{given} is for your own schedule; {name!r} takes no arguments" for given in args)
    try:
        make_schedule(Masking(schedule=name))
    except ValueError as error:
        yield str(error)


def frozen_faults(config: RunConfig) -> Iterator[str]:
    """Yield the first round in which the mask freezes every parameter; masks with patterns are not checked."""
    mask = config.mask
    if not is_masked(config) or imports.is_reference(mask.schedule):
        return
    if 1 not in (mask.ratio, mask.final_ratio) or mask.include.strip() != "*" or mask.exclude.strip():
        return
    masking = masking_of(config)
    for server_round in range(mask.warmup_rounds + 1, config.rounds + 1):
        if masking.ratio_at(server_round) == 1:
            where = "its first phase" if config.strategy.name == "fedpnu" else "it"
            yield (
                f"the mask's ratio is 1 in round {server_round}: every entry is frozen and nothing trains in {where}; "
                "lower mask.ratio or mask.final-ratio"
            )
            return


def cycle_faults(config: RunConfig) -> Iterator[str]:
    """Yield the share of the network that no round of a cycle trains; FedPNU trains the complement as well."""
    if not is_masked(config) or config.strategy.name == "fedpnu" or config.mask.schedule != "cyclic":
        return
    mask, masking, first = config.mask, masking_of(config), config.mask.warmup_rounds + 1
    smallest: dict[float, float] = {}
    # a run shorter than a cycle is a trial
    for server_round in range(first, max(config.rounds + 1, first + mask.blocks)):
        start = (server_round - 1) % mask.blocks / mask.blocks
        ratio = masking.ratio_at(server_round)
        smallest[start] = min(ratio, smallest.get(start, 1.0))
    share = never_trained_share(smallest.items())
    if share < 1e-9:
        return
    when = "never" if first == 1 else "never after the warm-up"
    yield (
        f"mask.schedule=cyclic with mask.blocks={mask.blocks} and mask.ratio={mask.ratio:g} trains {share:.1%} of the "
        f"network {when}; lower the ratio to {1 - 1 / mask.blocks:g} or less, or raise mask.blocks"
    )


def pattern_faults(config: RunConfig, parameters: list[str]) -> list[str]:
    """Return which patterns of the mask match none of ``parameters``: a typo would silently freeze something else."""
    if not is_masked(config):
        return []
    return [
        f"{key} has {pattern!r}, which matches no parameter of {config.model.name}: {', '.join(parameters)}"
        for key, patterns in (("mask.include", config.mask.include), ("mask.exclude", config.mask.exclude))
        for pattern in split_patterns(patterns)
        if not fnmatch.filter(parameters, pattern)
    ]


def never_trained_share(windows: Iterable[tuple[float, float]]) -> float:
    """Return the share of a tensor that is frozen in every one of ``windows``, pairs (start, ratio) on the circle.

    >>> round(never_trained_share([(0.0, 0.8), (0.25, 0.8), (0.5, 0.8), (0.75, 0.8)]), 6)
    0.2
    """
    windows = list(windows)
    edges = sorted({0.0, 1.0} | {edge % 1 for start, ratio in windows for edge in (start, start + ratio)})
    return sum(
        end - begin
        for begin, end in pairwise(edges)
        if all(((begin + end) / 2 - start) % 1 < ratio for start, ratio in windows)
    )
