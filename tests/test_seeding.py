"""Seeded streams: a path names one stream, everywhere and always, and nothing global moves."""

import hashlib
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpfn.seeding import derive, numpy_generator, torch_seed

parts = st.integers(-(2**70), 2**70) | st.text(max_size=5)
paths = st.lists(parts, max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((0,), 6123453654292721103),
        ((0, "mask", 1), 8311425130757354860),
        ((1, "mask", 1), 5147876435172878337),
        ((0, "clients", 3), 7469739097804166533),
        ((0, "batches", 2, 7), 5869768678887818001),
        ((2**63 - 1, "model"), 6670920736848590292),
    ],
)
def test_the_derivation_is_pinned_since_every_recorded_run_hangs_on_it(path: tuple[int, ...], value: int) -> None:
    assert derive(*path) == value


def test_the_raw_numbers_of_a_stream_are_pinned() -> None:
    raw = numpy_generator(0, "mask", 1).bit_generator.random_raw(2)
    assert raw.tolist() == [6403804874037360761, 11008362263694101521]


def test_the_order_numpy_makes_of_a_stream_is_pinned() -> None:
    # NumPy promises its bit generators, not its methods: if this fails after an upgrade, batch orders have changed
    assert numpy_generator(0, "mask", 1).permutation(8).tolist() == [3, 5, 0, 4, 6, 7, 2, 1]


def test_the_value_is_read_from_the_path_by_hand() -> None:
    def length(n: int) -> bytes:
        return n.to_bytes(8, "little")

    text = length(3) + b"i12" + length(5) + b"smask" + length(2) + b"i3"
    digest = hashlib.blake2b(text, digest_size=8).digest()
    assert derive(12, "mask", 3) == int.from_bytes(digest, "little") // 2


def test_paths_that_look_alike_are_different_streams() -> None:
    alike = [
        (1, 23), (12, 3), (123,), (1, 2, 3), (1, "23"), (1, "2", "3"), (1, "2", 3), (1, 2, "3"), (1, "i23"), (1, "s23"),
        (1, -23), (1, 23, ""), (1, "", 23), (1, 23, 0),
    ]  # fmt: skip
    assert len({derive(*path) for path in alike}) == len(alike)


@given(paths, paths)
def test_distinct_paths_have_distinct_streams(first: tuple[int | str, ...], second: tuple[int | str, ...]) -> None:
    same_seed = derive(0, *first) == derive(0, *second)
    assert same_seed == (first == second)


@given(st.integers(), paths)
def test_a_derived_seed_fits_a_signed_64_bit_integer(seed: int, path: tuple[int | str, ...]) -> None:
    assert 0 <= derive(seed, *path) < 2**63


def test_rounds_and_clients_of_a_run_never_meet() -> None:
    seeds = {derive(0, "batches", server_round, client) for server_round in range(100) for client in range(100)}
    assert len(seeds) == 100 * 100


def test_one_path_gives_one_stream_however_often() -> None:
    first, second = numpy_generator(3, "clients", 1), numpy_generator(3, "clients", 1)
    assert first.random(5).tolist() == second.random(5).tolist()
    assert numpy_generator(3, "clients", 2).random(5).tolist() != numpy_generator(3, "clients", 1).random(5).tolist()


def test_no_global_generator_moves() -> None:
    # the legacy global generator is what is looked at
    numpy_before, python_before, torch_before = (
        np.random.get_state()[1].tolist(),  # type: ignore[index,union-attr]  # noqa: NPY002
        random.getstate(),
        torch.get_rng_state(),
    )
    numpy_generator(0, "mask").random(100)
    with torch_seed(0, "model"):
        torch.nn.Linear(10, 10)
        torch.nn.functional.dropout(torch.ones(10))
    assert np.random.get_state()[1].tolist() == numpy_before  # type: ignore[index,union-attr]  # noqa: NPY002
    assert random.getstate() == python_before
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_global_generators_have_no_say() -> None:
    drawn = []
    for global_seed in (1, 2):
        random.seed(global_seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(global_seed)
            with torch_seed(5, "model"):
                drawn.append((numpy_generator(5, "clients").random(), torch.rand(3).tolist()))
    assert drawn[0] == drawn[1]


def test_a_block_that_fails_puts_the_generator_back() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), torch_seed(0, "model"):
        torch.rand(3)
        raise RuntimeError("inside")
    assert torch.equal(torch.get_rng_state(), before)


def test_blocks_nest_and_the_outer_goes_on_where_it_was() -> None:
    with torch_seed(0, "outer"):
        plain = torch.rand(4)
    with torch_seed(0, "outer"):
        first = torch.rand(2)
        with torch_seed(0, "inner"):
            torch.rand(7)
        assert torch.equal(torch.cat([first, torch.rand(2)]), plain)


def test_numpys_integers_count_as_the_numbers_they_are() -> None:
    assert derive(0, np.int64(3)) == derive(0, 3) != derive(0, "3")
