"""How states travel packed: by hand, as an inverse, to the bit, and against choosing by booleans."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toys import bits, same_bits

from fedpfn.masks import Mask, MaskRecipe, build_mask
from fedpfn.packing import Positions, pack, unpack
from fedpfn.params import State

SHAPES = {"w": (3, 4), "norm": (4,), "s": (), "e": (0,), "running": (4,), "b": (5,)}


def a_state(seed: int, *, doubles: tuple[str, ...] = ()) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64 if name in doubles else torch.float32)
        for name, shape in SHAPES.items()
    }


def packed_by_booleans(state: State, active: Mask) -> dict[str, Tensor]:
    """The slow twin of ``pack``."""
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        entries = tensor[active[name]] if name in active else tensor.flatten()
        parts.setdefault(str(tensor.dtype).removeprefix("torch."), []).append(entries)
    return {f"packed:{dtype}": torch.cat(entries) for dtype, entries in parts.items()}


def test_packing_by_hand() -> None:
    state = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "mean": torch.tensor([5.0]), "b": torch.tensor(6.0)}
    active = {"w": torch.tensor([[True, False], [False, True]]), "b": torch.tensor(False)}
    assert pack(state, Positions.where(active))["packed:float32"].tolist() == [1, 4, 5]
    base = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    found = unpack({"packed:float32": torch.tensor([7.0, 8.0, 9.0])}, Positions.where(active), base)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"w": [[7, 0], [0, 8]], "mean": [9], "b": 0}


@given(
    st.integers(0, 1000),
    st.floats(0, 1),
    st.sampled_from(["weight", "neuron"]),
    st.sets(st.sampled_from(sorted(SHAPES))),
    st.sets(st.sampled_from(sorted(SHAPES))),
)
def test_unpacking_inverts_packing_and_keeps_the_rest_of_the_base(
    seed: int, ratio: float, granularity: str, buffers: set[str], doubles: set[str]
) -> None:
    state, base = a_state(seed, doubles=tuple(doubles)), a_state(seed + 1, doubles=tuple(doubles))
    masked = {name: tensor for name, tensor in state.items() if name not in buffers}
    active = build_mask(MaskRecipe(seed, ratio, granularity=granularity, draw="bernoulli"), masked)
    packed = pack(state, Positions.where(active))
    total = sum(int(active[name].sum()) if name in active else state[name].numel() for name in state)
    assert sum(entries.numel() for entries in packed.values()) == total
    found = unpack(packed, Positions.where(active), base)
    assert list(found) == list(base)
    for name, tensor in found.items():
        whole = active.get(name, torch.ones_like(tensor, dtype=torch.bool))
        assert torch.equal(bits(tensor), bits(torch.where(whole, state[name], base[name])))
    again = pack(found, Positions.where(active))
    assert same_bits(again, packed)
    assert same_bits(packed, packed_by_booleans(state, active))


def test_frozen_entries_of_the_base_stay_to_the_bit_whatever_their_value() -> None:
    odd = np.array([0x80000000, 0x7FC12345, 0x7F800001, 0x00000001, 0xFF800000], dtype=np.uint32)
    base = {"w": torch.from_numpy(odd.view(np.float32).copy())}
    active = {"w": torch.tensor([False] * 4 + [True])}
    found = unpack({"packed:float32": torch.tensor([1.0])}, Positions.where(active), base)["w"]
    assert bits(found).numpy().view(np.uint32).tolist() == [*odd[:4].tolist(), 0x3F800000]


def test_unpacking_leaves_base_and_packed_alone() -> None:
    base, active = {"w": torch.zeros(2), "m": torch.zeros(2)}, {"w": torch.tensor([True, False])}
    packed = {"packed:float32": torch.tensor([1.0, 2.0, 3.0])}
    found = unpack(packed, Positions.where(active), base)
    for tensor in found.values():
        tensor.add_(9)
    assert packed["packed:float32"].tolist() == [1, 2, 3]
    assert same_bits(base, {"w": torch.zeros(2), "m": torch.zeros(2)})


def test_the_order_of_entries_is_the_logical_one_not_the_one_in_memory() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    turned = {"w": tensor.t().contiguous().t(), "m": tensor.t().contiguous().t()}
    active = {"w": torch.tensor([[True, False, True], [False, True, False]])}
    packed = pack(turned, Positions.where(active))
    assert packed["packed:float32"].tolist() == [0, 2, 4, 0, 1, 2, 3, 4, 5]
    found = unpack(packed, Positions.where(active), {name: torch.zeros_like(value) for name, value in turned.items()})
    assert found["w"].tolist() == [[0, 0, 2], [0, 4, 0]] and found["m"].tolist() == tensor.tolist()


@pytest.mark.parametrize("length", [0, 1, 2, 4, 5])
def test_a_vector_of_the_wrong_length_is_refused(length: int) -> None:
    base, active = {"w": torch.zeros(4), "m": torch.zeros(1)}, {"w": torch.tensor([True, True, False, False])}
    with pytest.raises(ValueError, match="left over" if length > 3 else "end before"):
        unpack({"packed:float32": torch.zeros(length)}, Positions.where(active), base)


def test_a_dtype_too_many_or_too_few_is_refused() -> None:
    base, active = {"w": torch.zeros(2)}, {"w": torch.tensor([True, True])}
    with pytest.raises(ValueError, match="1 packed float64 entries are left over"):
        unpack(
            {"packed:float32": torch.zeros(2), "packed:float64": torch.zeros(1).double()}, Positions.where(active), base
        )
    with pytest.raises(ValueError, match="end before 'w'"):
        unpack({}, Positions.where(active), base)


def test_nothing_active_is_nothing_sent() -> None:
    base, active = {"w": torch.randn(4)}, {"w": torch.zeros(4, dtype=torch.bool)}
    packed = pack(base, Positions.where(active))
    assert packed["packed:float32"].numel() == 0
    assert same_bits(unpack(packed, Positions.where(active), base), base)


def test_nothing_active_needs_nothing_packed() -> None:
    base = {"w": torch.randn(3)}
    assert same_bits(unpack({}, Positions.where({"w": torch.zeros(3, dtype=torch.bool)}), base), base)
