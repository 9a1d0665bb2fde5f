"""How the masks of a run are drawn, round by round: the settings shared by strategies and configs.

``schedules`` makes round plans from them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack, cast

from fedpfn.masks import MaskRecipe
from fedpfn.seeding import derive


@dataclass(frozen=True)
class Masking:
    """How the masks of a run are drawn, round by round.

    Attributes
    ----------
    ratio
        Share of frozen entries, in [0, 1].
    seed
        Seed of the run that every mask is derived from.
    schedule
        ``per-round``, ``fixed``, ``complement``, ``cyclic``, or an import string ``package.module:schedule``.
    ratio_shape, final_ratio, rounds
        How the ratio changes over the run's ``rounds``: ``constant``, or ``linear`` or ``cosine`` towards
        ``final_ratio``; the latter two need ``rounds``.
    warmup_rounds
        Number of initial rounds that train without a mask.
    granularity, draw
        As in ``MaskRecipe``.
    blocks
        Number of starting points that ``cyclic`` takes in turn.
    include, exclude
        As in ``MaskRecipe``.
    args
        Keyword arguments of a schedule that is imported.

    Raises
    ------
    ValueError
        For a ratio outside [0, 1], for an unknown shape, and for a shape other than ``constant`` without ``rounds``.
    """

    ratio: float = 0.4
    seed: int = 0
    schedule: str = "per-round"
    ratio_shape: str = "constant"
    final_ratio: float = 0.4
    rounds: int = 0
    warmup_rounds: int = 0
    granularity: str = "weight"
    draw: str = "exact"
    blocks: int = 4
    include: str = "*"
    exclude: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"the mask ratio is the share of frozen entries, within [0, 1]; got {self.ratio!r}")
        if self.ratio_shape not in ("constant", "linear", "cosine"):
            raise ValueError(f"a ratio's shape is constant, linear or cosine; got {self.ratio_shape!r}")
        if self.ratio_shape != "constant" and self.rounds < 1:
            raise ValueError(f"a {self.ratio_shape} ratio needs the number of rounds of the run")

    @classmethod
    def from_arguments(cls, **arguments: Unpack["MaskArguments"]) -> "Masking":
        """Return the masking that a strategy's arguments describe. Raises ``TypeError`` for an unknown one."""
        for name in arguments:
            if name not in MaskArguments.__annotations__:
                raise TypeError(
                    f"unknown argument {name!r} of a mask; expected one of {', '.join(MaskArguments.__annotations__)}"
                )
        return cls(**{name.removeprefix("mask_"): value for name, value in arguments.items()})  # type: ignore[arg-type]

    def ratio_at(self, server_round: int) -> float:
        """Return the frozen share of a round: constant, or from ``ratio`` to ``final_ratio`` over the masked rounds.

        With progress s in [0, 1]: linear r0 + s (r1 - r0); cosine r0 + (1 - cos(pi s)) / 2 (r1 - r0).
        """
        if self.ratio_shape == "constant":
            return self.ratio
        first = self.warmup_rounds + 1
        progress = min(max((server_round - first) / max(self.rounds - first, 1), 0.0), 1.0)
        if self.ratio_shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.ratio + progress * (self.final_ratio - self.ratio)

    def fresh(self, server_round: int) -> MaskRecipe:
        """Return the round's own mask, which a schedule may use or replace."""
        return MaskRecipe(
            seed=derive(self.seed, "mask", server_round),
            ratio=self.ratio_at(server_round),
            granularity=self.granularity,
            draw=self.draw,
            include=self.include,
            exclude=self.exclude,
        )


class MaskArguments(TypedDict, total=False):
    """The attributes of ``Masking`` as flat arguments of a strategy; omitted ones have the defaults of ``Masking``."""

    mask_ratio: float
    mask_schedule: str
    mask_args: Mapping[str, Any]
    mask_ratio_shape: str
    mask_final_ratio: float
    mask_granularity: str
    mask_draw: str
    mask_blocks: int
    mask_include: str
    mask_exclude: str
    warmup_rounds: int
    rounds: int
    seed: int


def split_arguments(arguments: Mapping[str, Any]) -> tuple[MaskArguments, dict[str, Any]]:
    """Split ``arguments`` into those for a mask, including misspelt ones, and the others.

    >>> split_arguments({"mask_ratio": 0.4, "fraction_train": 0.5})
    ({'mask_ratio': 0.4}, {'fraction_train': 0.5})
    """
    mask = {
        name: value
        for name, value in arguments.items()
        if name in MaskArguments.__annotations__ or name.startswith("mask_")
    }
    return cast(MaskArguments, mask), {name: value for name, value in arguments.items() if name not in mask}
