"""Partition schemes: exact small cases, then the laws that every scheme keeps, then the ways each can be refused."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from partitions.assignment import counts_of
from partitions.feasibility import PartitionError
from partitions.schemes import SCHEMES, find_faults, partition
from partitions.simplex import draw_dirichlet
from partitions.statistics import histograms, mean_total_variation

SETTINGS = {"alpha": 0.5, "min_size": 0, "shards_per_client": 2, "classes_per_client": 2}
COVERING = ("dirichlet", "dirichlet-balanced", "iid", "shards")
BY_ALPHA = ("dirichlet", "dirichlet-balanced", "dirichlet-client")
TEN_CLASSES = np.repeat(np.arange(10), 200)

some_labels = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(np.array)
seeds = st.integers(0, 2**32)
# From the smallest float there is to one that makes all shares equal.
alphas = st.one_of(st.floats(1e-8, 1e8), st.sampled_from([5e-324, 1e-300, 1e-6, 1e300]))


def draw(scheme, labels, clients, seed=0, **changes):
    return partition(scheme, labels, clients, np.random.default_rng(seed), **(SETTINGS | changes))


def counts(scheme, labels, clients, seed=0, **changes):
    return histograms(labels, draw(scheme, labels, clients, seed, **changes), int(labels.max()) + 1)


# Exact small cases


@pytest.mark.parametrize("scheme", ["dirichlet", "dirichlet-balanced", "dirichlet-client", "iid", "shards"])
def test_one_client_gets_everything(scheme):
    assert [part.tolist() for part in draw(scheme, np.array([1, 0, 1, 0]), 1)] == [[0, 1, 2, 3]]


def test_iid_sizes_differ_by_one_at_most():
    assert sorted(len(part) for part in draw("iid", np.zeros(11, dtype=int), 4)) == [2, 3, 3, 3]


def test_two_shards_of_one_class_each_make_two_class_clients():
    found = counts("shards", np.repeat(np.arange(4), 5), 2)
    assert (found.sum(axis=1) == 10).all() and set(found.ravel()) <= {0, 5}


def test_shards_cover_everything_where_they_do_not_divide_it():
    parts = draw("shards", np.repeat(np.arange(3), 5), 2, shards_per_client=2)
    assert sorted(np.concatenate(parts).tolist()) == list(range(15))
    assert sorted(len(part) for part in parts) == [7, 8]


def test_pathological_clients_with_all_classes_split_each_class_evenly():
    assert counts("pathological", np.repeat(np.arange(2), 6), 3).tolist() == [[2, 2]] * 3


def test_pathological_leaves_classes_without_an_owner_unused():
    found = counts("pathological", np.repeat(np.arange(5), 4), 2, classes_per_client=2)
    assert found.sum() == 16 and sorted(found.sum(axis=0).tolist()) == [0, 4, 4, 4, 4]


def test_dirichlet_client_leaves_the_remainder_unused():
    assert [len(part) for part in draw("dirichlet-client", np.repeat(np.arange(2), 7), 4)] == [3, 3, 3, 3]


def test_whole_numbers_keep_the_sum_and_are_right_on_average():
    rng = np.random.default_rng(0)
    exact = np.array([0.45, 0.05, 0.0, 0.5]) * 7
    drawn = np.array([counts_of(exact / 7, 7, rng) for _ in range(4000)])
    assert (drawn.sum(axis=1) == 7).all() and (np.abs(drawn - exact) < 1).all()
    assert drawn.mean(axis=0) == pytest.approx(exact, abs=0.03)


# The Dirichlet draw itself


@pytest.mark.parametrize("alpha", [0.05, 0.7, 3.0])
def test_the_dirichlet_draw_has_the_mean_and_variance_of_a_dirichlet(alpha):
    rng = np.random.default_rng(1)
    drawn = np.array([draw_dirichlet(np.full(4, alpha), rng).proportions() for _ in range(8000)])
    assert drawn.mean(axis=0) == pytest.approx([0.25] * 4, abs=0.02)
    assert drawn.var(axis=0) == pytest.approx([0.25 * 0.75 / (4 * alpha + 1)] * 4, rel=0.08)


@given(alpha=alphas, seed=seeds, allowed=st.lists(st.booleans(), min_size=1, max_size=6).filter(any))
def test_proportions_sum_to_one_over_whatever_is_allowed(alpha, seed, allowed):
    chosen = np.array(allowed)
    shares = draw_dirichlet(np.full(len(allowed), alpha), np.random.default_rng(seed)).proportions(chosen)
    assert np.isfinite(shares).all() and (shares >= 0).all()
    assert shares.sum() == pytest.approx(1) and not shares[~chosen].any()


def test_at_vanishing_alpha_every_entry_wins_equally_often():
    rng = np.random.default_rng(2)
    winners = [int(draw_dirichlet(np.full(4, 1e-200), rng).proportions().argmax()) for _ in range(4000)]
    assert np.bincount(winners, minlength=4) / 4000 == pytest.approx([0.25] * 4, abs=0.03)


# Laws


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=60, deadline=None)
@given(labels=some_labels, clients=st.integers(1, 12), seed=seeds, alpha=alphas)
def test_parts_are_disjoint_ascending_and_a_function_of_the_generator(scheme, labels, clients, seed, alpha):
    try:
        parts = draw(scheme, labels, clients, seed, alpha=alpha, classes_per_client=1, shards_per_client=1)
    except PartitionError:
        # The only ways these settings can be infeasible: empty clients, and a class that is too small for its owners.
        assert clients > len(labels) or scheme == "pathological"
        assume(False)
    again = draw(scheme, labels, clients, seed, alpha=alpha, classes_per_client=1, shards_per_client=1)
    used = np.concatenate(parts)
    assert len(parts) == clients and len(np.unique(used)) == len(used) <= len(labels)
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))


@pytest.mark.parametrize("scheme", COVERING)
@settings(max_examples=60, deadline=None)
@given(labels=some_labels, clients=st.integers(1, 12), seed=seeds, alpha=alphas)
def test_every_example_is_used_exactly_once(scheme, labels, clients, seed, alpha):
    assume(clients <= len(labels))
    parts = draw(scheme, labels, clients, seed, alpha=alpha, shards_per_client=1)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))


@settings(max_examples=60, deadline=None)
@given(labels=some_labels, clients=st.integers(1, 12), seed=seeds, alpha=alphas)
def test_dirichlet_client_fills_every_client_to_the_same_size_even_as_classes_run_out(labels, clients, seed, alpha):
    assume(clients <= len(labels))
    parts = draw("dirichlet-client", labels, clients, seed, alpha=alpha)
    assert {len(part) for part in parts} == {len(labels) // clients}


@settings(max_examples=60, deadline=None)
@given(num_classes=st.integers(1, 8), clients=st.integers(1, 12), wanted=st.integers(1, 8), seed=seeds)
def test_pathological_clients_have_exactly_their_number_of_classes(num_classes, clients, wanted, seed):
    assume(wanted <= num_classes)
    found = counts("pathological", np.repeat(np.arange(num_classes), 12), clients, seed, classes_per_client=wanted)
    owners = (found > 0).sum(axis=0)
    assert ((found > 0).sum(axis=1) == wanted).all() and owners.max() - owners.min() <= 1
    assert (found.sum(axis=0) == np.where(owners, 12, 0)).all()
    for per_class in found.T:
        held = per_class[per_class > 0]
        assert not held.size or held.max() - held.min() <= 1


def test_different_generators_give_different_partitions():
    for scheme in SCHEMES:
        one, other = draw(scheme, TEN_CLASSES, 5, seed=1), draw(scheme, TEN_CLASSES, 5, seed=2)
        assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True)), scheme


def test_balanced_clients_that_reached_the_mean_get_nothing_of_later_classes():
    for seed in range(20):
        found = counts("dirichlet-balanced", TEN_CLASSES, 8, seed, alpha=0.1)
        before = found.cumsum(axis=1) - found
        assert not found[before >= len(TEN_CLASSES) / 8].any()


def test_balanced_sizes_are_more_even_than_unbalanced_ones():
    spreads = {
        scheme: np.mean([counts(scheme, TEN_CLASSES, 8, seed).sum(axis=1).std() for seed in range(20)])
        for scheme in ("dirichlet", "dirichlet-balanced")
    }
    assert spreads["dirichlet-balanced"] < spreads["dirichlet"]


# Skew


@pytest.mark.parametrize("scheme", BY_ALPHA)
def test_skew_falls_as_alpha_grows(scheme):
    """Fails for a scheme that permutes the labels first: alpha is then without effect."""
    skews = [
        np.mean([mean_total_variation(counts(scheme, TEN_CLASSES, 10, seed, alpha=alpha)) for seed in range(5)])
        for alpha in (1e-3, 0.1, 1.0, 100.0)
    ]
    assert skews[0] > 0.75 and skews[-1] < 0.2
    assert all(high > low + 0.1 for high, low in pairwise(skews))


def test_tiny_alpha_gives_each_class_to_one_client():
    for alpha in (1e-6, 1e-12, 1e-300):
        assert ((counts("dirichlet", TEN_CLASSES, 10, alpha=alpha) > 0).sum(axis=0) == 1).all()


def test_tiny_alpha_gives_clients_of_a_fixed_size_one_class_each():
    # 40 clients of 50: four fill a class exactly, so no client ever meets an exhausted class halfway.
    for alpha in (1e-6, 1e-12, 1e-300):
        assert ((counts("dirichlet-client", TEN_CLASSES, 40, alpha=alpha) > 0).sum(axis=1) == 1).all()


def test_large_alpha_gives_every_client_its_share_of_every_class():
    for clients in (4, 30):
        for scheme in ("dirichlet", "dirichlet-balanced"):
            assert (np.abs(counts(scheme, TEN_CLASSES, clients, alpha=1e12)[:, :-1] - 200 / clients) <= 1).all()
    assert mean_total_variation(counts("dirichlet-client", TEN_CLASSES, 4, alpha=1e12)) < 0.06


def test_large_alpha_with_many_clients_does_not_favour_the_same_clients_in_every_class():
    # 2 examples of a class for 3 clients: a fixed rounding would leave one client in three without any.
    sizes = counts("dirichlet", np.repeat(np.arange(100), 2), 3, alpha=1e12).sum(axis=1)
    assert sizes == pytest.approx([200 / 3] * 3, abs=20)


def test_large_alpha_follows_unequal_class_sizes_in_dirichlet_client():
    labels = np.repeat([0, 1], [1800, 200])
    found = counts("dirichlet-client", labels, 5, alpha=1e9)
    assert (found[:, 1] / found.sum(axis=1)) == pytest.approx([0.1] * 5, abs=0.06)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_classs_indices_are_shuffled_before_they_are_dealt(scheme):
    # Without the shuffle a client holds a run of neighbours: 500 of 1000 in one run, here about 250 runs.
    changes = {"alpha": 1e9, "shards_per_client": 1, "classes_per_client": 1}
    first = draw(scheme, np.zeros(1000, dtype=int), 2, **changes)[0]
    assert len(first) == pytest.approx(500, abs=1) and (np.diff(first) > 1).sum() > 200


# Smallest sizes and refusals


@settings(max_examples=40, deadline=None)
@given(seed=seeds, clients=st.integers(1, 8), min_size=st.integers(0, 20))
@pytest.mark.parametrize("scheme", BY_ALPHA)
def test_the_smallest_size_is_kept_or_refused(scheme, seed, clients, min_size):
    try:
        parts = draw(scheme, np.repeat(np.arange(4), 25), clients, seed, min_size=min_size)
    except PartitionError as error:
        assert "partition.min-size" in str(error)
    else:
        assert min(len(part) for part in parts) >= min_size


@pytest.mark.parametrize("scheme", ["dirichlet", "dirichlet-balanced"])
def test_a_hopeless_smallest_size_ends_soon_and_says_what_was_reached(scheme):
    started = time.monotonic()
    with pytest.raises(PartitionError, match=r"none of 101 draws .* = 10 examples, .* smallest client 0; raise"):
        draw(scheme, TEN_CLASSES, 100, alpha=1e-6, min_size=10)
    assert time.monotonic() - started < 5


def test_the_number_of_redraws_can_be_set():
    with pytest.raises(PartitionError, match="none of 3 draws"):
        SCHEMES["dirichlet"](TEN_CLASSES, 50, np.random.default_rng(0), alpha=1e-6, min_size=1, max_redraws=2)


def test_a_smallest_size_holds_for_schemes_that_do_not_redraw():
    with pytest.raises(PartitionError, match=r"smallest client has 2 examples, partition\.min-size is 5;"):
        draw("pathological", np.repeat([0, 1], [2, 20]), 2, classes_per_client=1, min_size=5)


def test_a_class_too_small_for_its_owners_is_refused():
    with pytest.raises(PartitionError, match="class 7 has 2 examples for 3 clients"):
        draw("pathological", np.repeat([3, 7], [9, 2]), 3)


@pytest.mark.parametrize(
    ("scheme", "changes", "expected"),
    [
        ("dirichlet", {"alpha": 0.0}, "partition.alpha = 0.0 must be"),
        ("dirichlet-balanced", {"alpha": float("nan")}, "partition.alpha = nan must be"),
        ("dirichlet-client", {"alpha": float("inf")}, "partition.alpha = inf must be"),
        ("iid", {"clients": 0}, "federation.clients = 0 must be at least 1"),
        ("iid", {"clients": 101}, "federation.clients = 101 is more than the 100"),
        ("dirichlet", {"min_size": 11}, "partition.min-size = 11 for federation.clients = 10 needs 110"),
        ("iid", {"min_size": -1}, "partition.min-size = -1"),
        ("shards", {"shards_per_client": 11}, "partition.shards-per-client = 11 for federation.clients = 10 makes 110"),
        ("shards", {"shards_per_client": 0}, "partition.shards-per-client = 0"),
        ("pathological", {"classes_per_client": 5}, "partition.classes-per-client = 5 is more than the 4"),
        ("pathological", {"classes_per_client": 0}, "partition.classes-per-client = 0"),
        ("dirichlet-balance", {}, "no partition.scheme 'dirichlet-balance' (did you mean 'dirichlet-balanced'?)"),
        ("zzz", {}, "no partition.scheme 'zzz'; built in: dirichlet, "),
    ],
)
def test_what_no_draw_can_meet_is_found_before_any_draw_and_refused_by_it(scheme, changes, expected):
    asked = SETTINGS | {"clients": 10} | changes
    (fault,) = find_faults(scheme, num_examples=100, num_classes=4, **asked)
    assert fault.startswith(expected) and "\n" not in fault
    with pytest.raises(PartitionError) as refused:
        partition(scheme, np.repeat(np.arange(4), 25), asked.pop("clients"), np.random.default_rng(0), **asked)
    assert fault in str(refused.value)


def test_all_faults_are_told_at_once_and_settings_that_a_scheme_does_not_take_are_not_judged():
    asked = SETTINGS | {"alpha": -1.0, "shards_per_client": 0, "min_size": -1}
    assert len(find_faults("dirichlet", clients=0, num_examples=None, num_classes=None, **asked)) == 3
    assert find_faults("iid", clients=3, num_examples=None, num_classes=None, **(asked | {"min_size": 0})) == []


def test_labels_that_are_not_integers_are_refused():
    with pytest.raises(PartitionError, match=r"float64 \(4,\); expected integers"):
        draw("dirichlet", np.zeros(4), 2)


# A scheme of one's own


def test_a_users_scheme_gets_the_settings_it_takes_and_its_parts_come_back_ascending():
    def every_kth(labels, clients, rng, *, alpha):
        assert alpha == 0.5
        return [np.arange(len(labels))[::-1][k::clients] for k in range(clients)]

    assert [part.tolist() for part in draw(every_kth, np.zeros(4, dtype=int), 2)] == [[1, 3], [0, 2]]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([[0]], "1 parts for federation.clients = 2"),
        ([[0], [0.5]], "part 1 is float64"),
        ([[0], [4]], r"part 1 holds an index twice or outside 0\.\.3"),
        ([[1, 1], []], "part 0 holds an index twice"),
    ],
)
def test_a_users_scheme_that_returns_nonsense_is_refused(parts, expected):
    with pytest.raises(PartitionError, match=expected):
        draw(lambda labels, clients, rng: parts, np.zeros(4, dtype=int), 2)
