"""The mean on a grid: order and parts make no difference, errors stay below their bound, what is summed is exact."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from toys import bits

from fedpfn.averaging import (
    SUMMABLE,
    Sum,
    grid_exponents,
    is_summed,
    open_sum,
    read_totals,
    write_totals,
)
from fedpfn.masks import MaskRecipe, build_mask
from fedpfn.packing import Positions, pack, unpack
from fedpfn.params import State, weighted_mean
from fedpfn.protocol import PARAMETERS, PLAN, SUM_CLIENTS, SUM_EXPONENTS
from fedpfn.schedules import Phase, encode_plan
from fedpfn.updates import Updates

Client = tuple[State, float]

entries = st.floats(-8, 8, width=32)
rows = st.lists(entries, min_size=3, max_size=3)


def one(values: Sequence[float]) -> State:
    return {"w": torch.tensor(values, dtype=torch.float32)}


def a_sum(before: State, clients: int, largest: float = 64) -> Sum:
    updates = Updates(before)
    return Sum(updates, grid_exponents(updates.before, clients, largest), clients)


def mean_of(before: State, clients: Sequence[Client], *, room: int | None = None, largest: float = 64) -> State:
    total = a_sum(before, room or len(clients), largest)
    others = [(arrays, weight) for arrays, weight in clients if not total.add(arrays, weight)[0]]
    return total.mean(math.fsum(weight for _, weight in clients), others)


def exact(clients: Sequence[Client], place: int) -> Fraction:
    weights = [Fraction(weight) for _, weight in clients]
    values = [Fraction(float(arrays["w"][place])) for arrays, _ in clients]
    return sum((w * v for w, v in zip(weights, values, strict=True)), Fraction()) / sum(weights)


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_a_mean_by_hand() -> None:
    clients = [(one([4, 2, 0]), 1.0), (one([1, 5, 0]), 2.0)]
    assert mean_of(one([1, 2, 0]), clients)["w"].tolist() == [2, 4, 0]


def test_the_grid_by_hand() -> None:
    before = {"w": torch.tensor([0.3, -0.75]), "b": torch.zeros(1), "n": torch.tensor([4.0])}
    # E is 0, 1 for zeros, and 3; 3 bits of headroom, 6 for weights up to 64, 51 bits of room
    assert grid_exponents(before, clients=16, largest=64) == {"w": -42, "b": -41, "n": -39}
    # a tensor next to zero may grow as one of 2^-8
    assert grid_exponents({"w": torch.tensor([1e-20])}, clients=16, largest=64) == {"w": -50}
    # 2^20 clients leave 42 bits each
    assert grid_exponents(before, clients=2**20, largest=64)["w"] == -33


def test_what_lies_below_the_grid_is_rounded_and_what_lies_on_it_is_not() -> None:
    before, grain = one([1, 1, 0]), 2.0 ** grid_exponents(one([1, 1, 0]), clients=1, largest=1)["w"]
    assert grain == 2.0**-47
    assert mean_of(before, [(one([1, 1, grain]), 1)], largest=1)["w"].tolist() == [1, 1, grain]
    assert mean_of(before, [(one([1, 1, grain * 1.25]), 1)], largest=1)["w"].tolist() == [1, 1, grain]


# ---- laws -----------------------------------------------------------------------------------------------------------


@given(rows, st.lists(st.tuples(rows, st.integers(1, 60)), min_size=1, max_size=6), st.randoms(), st.data())
def test_neither_the_order_nor_the_parts_of_a_sum_make_a_difference(
    start: list[float], drawn: list[tuple[list[float], int]], order: object, data: st.DataObject
) -> None:
    before, clients = one(start), [(one(values), float(weight)) for values, weight in drawn]
    total = sum(weight for _, weight in clients)
    whole = a_sum(before, len(clients))
    taken = [whole.add(arrays, weight)[0] for arrays, weight in clients]
    assume(all(taken))
    shuffled = data.draw(st.permutations(clients))
    cuts = sorted({0, len(clients), *data.draw(st.lists(st.integers(0, len(clients)), max_size=3))})
    merged = a_sum(before, len(clients))
    for begin, end in pairwise(cuts):
        part = a_sum(before, len(clients))
        for arrays, weight in shuffled[begin:end]:
            assert part.add(arrays, weight)[0]
        merged.merge(part.totals())
    assert torch.equal(bits(merged.mean(total)["w"]), bits(whole.mean(total)["w"]))


@given(rows, st.lists(st.tuples(rows, st.integers(1, 60)), min_size=1, max_size=6))
def test_the_error_is_below_its_bound_and_its_rounding(
    start: list[float], drawn: list[tuple[list[float], int]]
) -> None:
    before, clients = one(start), [(one(values), float(weight)) for values, weight in drawn]
    found = mean_of(before, clients)["w"]
    weight = sum(weight for _, weight in clients)
    grain = 2.0 ** grid_exponents(before, len(clients), 64)["w"]
    for place in range(3):
        size = abs(start[place]) + max(abs(float(arrays["w"][place])) for arrays, _ in clients)
        bound = len(clients) * grain / 2 / weight + 2.0**-50 * size
        mean = exact(clients, place)
        # half a unit in the last place of float32, whose least is 2^-150
        rounding = max(abs(float(mean)) * 2.0**-24, 2.0**-150)
        assert abs(Fraction(float(found[place])) - mean) <= Fraction(bound * (1 + 2.0**-20) + rounding * (1 + 2.0**-20))


@given(st.integers(1, 4), st.data())
def test_what_lies_on_the_grid_is_rounded_once(log2: int, data: st.DataObject) -> None:
    """Halfway between two floats is where a sum in another order would go either way."""
    count = 2**log2
    numerators = data.draw(st.lists(st.integers(2**23, 2**24 - 1), min_size=count, max_size=count))
    found = mean_of(one([0.5]), [(one([numerator * 2.0**-24]), 1.0) for numerator in numerators])["w"].item()
    # Python rounds a quotient of integers to the nearest, halfway to the even one: float32's is 2^-24 here
    assert found == round(Fraction(sum(numerators), count)) * 2.0**-24


@given(rows, rows, st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_the_mean_of_equal_clients_is_that_client(start: list[float], moved: list[float], weights: list[int]) -> None:
    before, arrays = one(start), one(moved)
    found = mean_of(before, [(arrays, float(weight)) for weight in weights])["w"]
    assert torch.allclose(found, arrays["w"], rtol=2**-23, atol=1e-12)
    # no client moved: to the bit, -0.0 as well
    before["w"][0] = -0.0
    still = mean_of(before, [(before, float(weight)) for weight in weights])["w"]
    assert torch.equal(bits(still), bits(before["w"]))


@given(st.lists(st.floats(0.5, 1, width=32), min_size=4, max_size=4), st.integers(2, 5))
def test_packed_clients_have_the_mean_of_whole_ones(values: list[float], clients: int) -> None:
    generator = torch.Generator().manual_seed(clients)
    before = {"w": torch.tensor(values).view(2, 2), "b": torch.zeros(3), "mean": torch.ones(2)}
    recipe, names = MaskRecipe(seed=clients, ratio=0.5), ("w", "b")
    active = build_mask(recipe, {name: before[name] for name in names})
    states = []
    for _ in range(clients):
        noise = {name: torch.rand(tensor.shape, generator=generator) for name, tensor in before.items()}
        states.append({n: t + noise[n] * active.get(n, torch.ones(())) for n, t in before.items()})
    config = {
        SUM_EXPONENTS: list(grid_exponents(before, clients).values()),
        SUM_CLIENTS: clients,
        PLAN: encode_plan((Phase(recipe),)),
        PARAMETERS: list(names),
    }
    positions = Positions.where(active)
    means = []
    for replies in (states, [pack(state, positions) for state in states]):
        total = open_sum(list(replies[0]), before, config)
        assert all(total.add(reply, 10.0)[0] for reply in replies)
        means.append(total.mean(10.0 * clients))
    whole, packed = means
    unpacked = unpack(packed, positions, before)
    assert all(torch.equal(whole[name], unpacked[name]) for name in before)


# ---- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_a_client_that_does_not_fit_leaves_the_sum_as_it_is(value: float) -> None:
    before = one([1, 1, 1])
    total = a_sum(before, clients=2)
    assert not total.add(one([2, value, 1]), 1)[0]
    assert total.totals()["w"].tolist() == [0, 0, 0]
    assert total.add(one([2, 3, 1]), 1)[0]
    assert total.mean(1)["w"].tolist() == [2, 3, 1]


def test_a_client_that_does_not_fit_counts_all_the_same() -> None:
    clients = [(one([2, 1, 1]), 1.0), (one([1e6, 1, 1]), 3.0)]
    assert mean_of(one([1, 1, 1]), clients)["w"].tolist() == [750000.5, 1, 1]


def test_as_many_clients_as_there_is_room_for_cannot_overflow() -> None:
    before = one([0.5])
    total = a_sum(before, clients=4, largest=1)
    # the largest update that fits moves an entry by 8
    largest = 7.999
    for _ in range(4):
        assert total.add(one([0.5 + largest]), 1)[0]
    assert total.mean(4)["w"].item() == pytest.approx(0.5 + largest)
    assert not total.add(one([9.0]), 1)[0]


@given(st.lists(st.sampled_from([2.0**42, -(2.0**42), 1.0]), min_size=2, max_size=40))
def test_integers_are_read_out_of_floats_without_an_error(values: list[float]) -> None:
    updates = Updates(one([0]))
    total = Sum(updates, {"w": 0}, clients=64)
    taken = [value for value in values if total.add(one([value]), 1.0)[0]]
    assert taken == values
    assert total.totals()["w"].item() == sum(map(int, values))


@pytest.mark.parametrize(
    "arrays",
    [
        {"v": torch.zeros(3)},
        {"w": torch.zeros(2)},
        {"w": torch.zeros(3, dtype=torch.float64)},
        {"w": torch.zeros(3), "v": torch.zeros(1)},
    ],
)
def test_other_arrays_do_not_fit(arrays: State) -> None:
    assert not Updates(one([1, 2, 3])).fit(arrays)
    assert Updates(one([1, 2, 3])).fit(one([0, 0, 0]))


# ---- forms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", sorted(SUMMABLE, key=str))
def test_any_dtype_that_is_coarser_than_the_grid(dtype: torch.dtype) -> None:
    before = {"w": torch.tensor([1.0, 2.0], dtype=dtype)}
    clients = [({"w": torch.tensor([values, 2.5], dtype=dtype)}, 1.0) for values in (1.5, 2.5)]
    found = mean_of(before, clients)["w"]
    assert found.dtype == dtype and found.tolist() == [2, 2.5]


def test_a_sum_travels_under_the_names_of_what_it_sums() -> None:
    total = a_sum(one([1, 2, 3]), clients=1)
    written = write_totals(total)
    assert list(written) == ["summed:float32:w"] and is_summed(written) and not is_summed(["w"])
    assert list(read_totals(written)) == ["w"] and written["summed:float32:w"].dtype == torch.int64


def test_a_state_without_entries_has_a_mean() -> None:
    before = {"w": torch.zeros(0)}
    assert mean_of(before, [(before, 1.0)])["w"].tolist() == []


def test_the_mean_is_that_in_double_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    before = {"w": torch.randn(50_000, generator=generator)}
    clients = [({"w": before["w"] + 0.1 * torch.randn(50_000, generator=generator)}, 7.0 + i) for i in range(9)]
    tensors, weights = [arrays["w"] for arrays, _ in clients], [weight for _, weight in clients]
    found, expected = mean_of(before, clients)["w"], weighted_mean(tensors, weights)
    # they differ where the mean lies halfway between two floats, by one of them
    different = (found != expected).nonzero().flatten().tolist()
    assert len(different) < 50
    for place in different:
        mean = exact(clients, place)
        error, other = (abs(Fraction(float(x[place])) - mean) for x in (found, expected))
        assert error <= other
