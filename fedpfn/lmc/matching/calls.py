"""An operator call as seen by the rules, and the rules that apply to any operator."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedpfn.lmc.matching.ties import Dim, fix, fixed, length, tie

Dims = list[Dim]


@dataclass(frozen=True)
class Call:
    """One call of an operator: its arguments by their schema names, its output shapes, and the reason for fixing."""

    operator: Callable[..., Any]
    arguments: Mapping[str, Any]
    shapes: Sequence[tuple[int, ...]]
    dims_of: Callable[[Tensor], Dims]
    reason: str

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    def dims(self, *names: str) -> Dims:
        """Return the dimensions of the first of these arguments that is present."""
        return self.dims_of(next(self.arguments[name] for name in names if name in self.arguments))

    def tensors(self) -> list[Tensor]:
        """Return every tensor among the arguments, including those in lists."""
        values = [value if isinstance(value, list | tuple) else [value] for value in self.arguments.values()]
        return [entry for value in values for entry in value if isinstance(entry, Tensor)]


Rule = Callable[[Call], Sequence[Dims]]


def unknown(call: Call) -> Sequence[Dims]:
    """Fix all inputs: nothing is known about the operator."""
    for tensor in call.tensors():
        fix_all(call.dims_of(tensor), call.reason)
    return [[fixed(size) for size in shape] for shape in call.shapes]


def elementwise(call: Call) -> Sequence[Dims]:
    """Tie the dimensions that broadcasting aligns."""
    shape = call.shapes[0]
    result: list[Dim | None] = [None] * len(shape)
    for tensor in call.tensors():
        _lay_on(result, call.dims_of(tensor), call.reason)
    return [[fixed(size) if dim is None else dim for dim, size in zip(result, shape, strict=True)]]


def _lay_on(result: list[Dim | None], dims: Dims, reason: str) -> None:
    for place, dim in enumerate(dims, start=len(result) - len(dims)):
        if place >= 0 and length(dim) > 1:
            there = result[place]
            result[place] = dim if there is None else tie(there, dim, reason)


def broadcast(rows: Sequence[Dims], reason: str) -> Dims:
    """Tie the dimensions of tensors that broadcasting aligns, and return those of the result."""
    result: list[Dim | None] = [None] * max(map(len, rows))
    for row in rows:
        _lay_on(result, row, reason)
    return [fixed(1) if dim is None else dim for dim in result]


def fix_all(dims: Sequence[Dim], reason: str) -> None:
    """Fix several dimensions for one reason."""
    for dim in dims:
        fix(dim, reason)
