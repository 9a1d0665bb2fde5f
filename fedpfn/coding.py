"""Replies in fewer bits: the arrays on the wire that represent a client's, and how to decode them (``quantisation``).

For an array ``a`` that is sent in fewer bits, ``coded:a`` holds the values of its update, flat, and ``scales:a`` the
scales of int8. Arrays may be packed or not. Server and workers read the same config record of the round, so that what
a worker sums up is bit-identical to what the server would have decoded. Running statistics are never rounded: a
variance could become negative.

If the server adds the noise that makes updates private (``fedpfn.privacy``), they are clipped again when decoded:
rounding, and what error feedback adds, could make an update longer than the bound that the noise is calibrated to. An
update to which the client already added noise may be rounded freely, and so may its error: this is post-processing,
which does not use the data again.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedpfn.packing import Positions, is_packed, pack, positions_in
from fedpfn.params import State
from fedpfn.privacy import clip_update
from fedpfn.protocol import CLIENT_NOISE, CLIP_NORM, PARAMETERS, PRECISION
from fedpfn.quantisation import BLOCK, LEVELS, PRECISIONS, Code, dequantise, is_quantised, num_scales

CODED, SCALES = "coded:", "scales:"
_STATISTICS = ("running_mean", "running_var")
# dtype and shape of arrays by name
Kinds = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def is_coded(names: Collection[str]) -> bool:
    """Return whether arrays with these names are a reply in fewer bits.

    >>> is_coded(["coded:packed:float32", "scales:packed:float32"]), is_coded(["packed:float32"])
    (True, False)
    """
    return any(name.startswith(CODED) for name in names)


def decoded_name(name: str) -> str:
    """Return the name of the array that ``name`` on the wire represents; ``name`` itself if it is not coded."""
    return name.removeprefix(CODED)


def fit_scales(name: str, tensor: Tensor) -> bool:
    """Return whether the squares of the largest values that scales can represent sum to a finite float32.

    Parameters
    ----------
    name
        Name of the array on the wire.
    tensor
        The array.

    Returns
    -------
    bool
        True also for arrays that are not scales.

    Examples
    --------
    >>> fit_scales("scales:w", torch.tensor([1e-3])), fit_scales("scales:w", torch.tensor([1e19]))
    (True, False)
    """
    if not name.startswith(SCALES):
        return True
    limit = float(tensor.detach().double().square().sum()) * LEVELS**2 * BLOCK
    return limit < torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False)
class Coding:
    """How a round's replies are decoded.

    Attributes
    ----------
    before
        Complete state that the round's clients started from.
    config
        The round's config record, with the precision and, under a shared mask, the plan.

    Examples
    --------
    >>> coding = Coding({"w": torch.zeros(3)}, {PRECISION: "int8"})
    >>> coding.decode({"coded:w": torch.tensor([2, -127, 0], dtype=torch.int8), "scales:w": torch.tensor([0.5])})
    {'w': tensor([  1.0000, -63.5000,   0.0000])}
    """

    before: State
    config: Mapping[str, Any]

    @property
    def precision(self) -> str:
        """The precision in which clients reply, ``float32`` if none was requested."""
        return str(self.config.get(PRECISION, "float32"))

    @cached_property
    def positions(self) -> Positions:
        """The positions of the entries that the round trains; without a plan, of all entries."""
        return positions_in(self.config, self.before)

    @cached_property
    def rounded(self) -> tuple[str, ...]:
        """The arrays of the state that are sent in fewer bits: parameters wider than the precision."""
        names = self.config.get(PARAMETERS)
        parameters = set(names) if names is not None else {n for n in self.before if not n.endswith(_STATISTICS)}
        wide = (name for name, tensor in self.before.items() if is_quantised(tensor.dtype, self.precision))
        return tuple(name for name in wide if name in parameters)

    @cached_property
    def _packed(self) -> State:
        return pack(self.before, self.positions)

    def start(self, names: Collection[str]) -> State:
        """Return the state that clients started from, packed if arrays with these names are."""
        return self._packed if is_packed(names) else self.before

    def in_fewer_bits(self, arrays: Mapping[str, Any]) -> list[str]:
        """Return which arrays, packed or not, are sent in fewer bits.

        Raises ``ValueError`` for packed arrays that hold running statistics next to parameters.
        """
        if not is_packed(arrays):
            return list(self.rounded)
        rounded = pack({name: torch.empty(0, dtype=self.before[name].dtype) for name in self.rounded}, Positions({}))
        kept = [n for n, t in self.before.items() if n not in self.rounded and is_quantised(t.dtype, self.precision)]
        if kept:
            raise ValueError(
                f"{kept[0]} is not a parameter and must not be rounded: send whole arrays, without packing_mod"
            )
        return list(rounded)

    def on_the_wire(self, kinds: Kinds) -> Kinds:
        """Return the kinds of the arrays that represent arrays of these kinds, packed or not, on the wire."""
        coded: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        rounded = set(self.in_fewer_bits(kinds))
        for name, (dtype, shape) in kinds.items():
            if name not in rounded:
                coded[name] = dtype, shape
                continue
            entries = torch.Size(shape).numel()
            coded[CODED + name] = PRECISIONS[self.precision], (entries,)
            if scales := num_scales(entries, self.precision):
                coded[SCALES + name] = torch.float32, (scales,)
        return coded

    def decode(self, arrays: Mapping[str, Tensor]) -> State:
        """Return a client's arrays as they enter the mean: decoded, and clipped if the server adds noise.

        Arrays that are not coded are returned unchanged. Raises ``ValueError`` for arrays that do not represent those
        that the server sent.
        """
        if not is_coded(arrays):
            return dict(arrays)
        state = self.received(arrays)
        if CLIP_NORM in self.config and not self.config.get(CLIENT_NOISE):
            return clip_update(state, self.start(state), float(self.config[CLIP_NORM]))
        return state

    def received(self, arrays: Mapping[str, Tensor]) -> State:
        """Return w + Q(u) in the arrays' own dtype. Raises ``ValueError`` as ``decode`` does."""
        start = self.start([decoded_name(name) for name in arrays])
        kinds = self.on_the_wire({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in start.items()})
        if unlike := sorted(arrays.keys() ^ kinds.keys()):
            raise ValueError(f"its arrays in fewer bits are not those requested: {unlike}")
        for name, kind in kinds.items():
            if (own := (arrays[name].dtype, tuple(arrays[name].shape))) != kind:
                raise ValueError(f"{name} is {own[0]} of shape {own[1]}, not {kind[0]} of {kind[1]}")
        state: State = {}
        for name, before in start.items():
            if (values := arrays.get(CODED + name)) is None:
                state[name] = arrays[name]
                continue
            update = dequantise(Code(values, arrays.get(SCALES + name))).view(before.shape)
            wide = torch.promote_types(before.dtype, torch.float32)
            state[name] = (before.to(wide) + update.to(wide)).to(before.dtype)
        return state
