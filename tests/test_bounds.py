"""Theorem 3.2: what is exactly 0, z and its derivatives against sampling and differences, the bounds on random nets."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpfn.lmc.bounds import TwoLayerSetting, bound_z, bound_z_prime, bound_z_second, bounds
from fedpfn.lmc.two_layer_nets import Networks, difference_along_path, draw_pair, mean_activation, measure

ALPHAS = np.linspace(0, 1, 9)


def pair(seed=0, **given):
    setting = TwoLayerSetting(**({"hidden": 6, "inputs": 3} | given))
    return draw_pair(setting, np.random.default_rng(seed))


def single(u: float, v: float) -> Networks:
    """One hidden unit of one input."""
    return Networks(np.array([[u]]), np.array([v]))


# By hand


def test_one_unit_by_hand():
    # x uniform on (-1, 1): the mean of relu(u x) is |u| / 4. From u = -1 to 1 with v = 2 and 1:
    # at alpha = 3/4, u = 1/2 and v = 5/4, so z = (5/8 - 3/4 * 1 - 1/4 * 2) / 4
    found = difference_along_path(single(1, 1), single(-1, 2), [0.75])
    assert found.z == pytest.approx([(5 / 8 - 3 / 4 - 2 / 4) / 4])
    # n = 2 alpha - 1 and v = 2 - alpha there: (v n)' = 5 - 4 alpha, less the chord's slope v1 n1 - v2 n2 = 1 - 2
    assert found.z_prime == pytest.approx([(5 - 4 * 0.75 + 1) / 4])
    assert found.z_second == pytest.approx([-4 / 4])
    assert found.kinks == pytest.approx([0], abs=1e-12)


def test_bounds_by_hand():
    # log(8 h / delta) = 4, log(24 h / delta) = 4 + log 3, log(4 h / delta) = 4 - log 2
    delta = 8 * 4 / math.exp(4)
    setting = TwoLayerSetting(
        hidden=4, hidden_ratio=0.75, output_ratio=0.19, hidden_deviation=2, output_deviation=3, radius=5
    )
    assert bound_z(setting, delta) == pytest.approx(math.sqrt(2) * 5 * 3 * 2 * 4 * 2 * 0.5)
    assert bound_z_prime(setting, delta) == pytest.approx(4 * math.sqrt(2) * 30 * (4 + math.log(3)) * 2 * (0.9 + 0.5))
    assert bound_z_second(setting, delta) == pytest.approx(8 * 30 * (4 - math.log(2)) * 2 * 0.5)
    assert bounds(setting, delta).tolist() == [
        bound_z(setting, delta),
        bound_z_prime(setting, delta),
        bound_z_second(setting, delta),
    ]


def test_mean_activation_is_known_on_the_interval_the_disc_and_the_ball():
    # half the mean of |x_1|: 1/2 on (-1, 1), 4 / (3 pi) on the disc, 3/8 on the ball
    assert [mean_activation(d) for d in (1, 2, 3)] == pytest.approx([1 / 4, 2 / (3 * math.pi), 3 / 16])
    assert mean_activation(1000, radius=2) == pytest.approx(2 / math.sqrt(2 * math.pi * 1000), rel=2e-3)


# What is exactly 0


@given(st.integers(0, 99), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
def test_z_is_exactly_0_at_both_ends(seed, hidden_ratio, output_ratio):
    found = difference_along_path(*pair(seed, hidden_ratio=hidden_ratio, output_ratio=output_ratio), [0, 1])
    assert found.z.tolist() == [0, 0]


def test_all_is_exactly_0_where_all_is_shared_or_only_v_differs():
    for output_ratio in (1.0, 0.0):
        first, second = pair(hidden_ratio=1, output_ratio=output_ratio)
        found = difference_along_path(first, second, ALPHAS)
        assert (first.output == second.output).all() == (output_ratio == 1)
        for part in (found.z, found.z_prime, found.z_second, found.kinks):
            assert not part.any()


def test_a_shared_output_layer_leaves_only_the_kinks_of_the_second_derivative():
    found = difference_along_path(*pair(output_ratio=1), ALPHAS)
    assert not found.z_second.any()
    assert (abs(found.kinks) > 1e-3).all() and (abs(found.z[1:-1]) > 1e-3).all()
    # of which the bound, 0 here, does not speak
    assert bound_z_second(TwoLayerSetting(hidden=6, output_ratio=1), 0.1) == 0


def test_a_unit_at_the_origin_has_no_slope_of_its_own():
    found = difference_along_path(single(1, 1), single(-1, 1), [0.5])
    assert found.z_prime.tolist() == found.z_second.tolist() == found.kinks.tolist() == [0]


# Laws


def sampled(first: Networks, second: Networks, alpha: float, *, radius: float, count: int = 200_000):
    """z, z' and z'' by their definitions, as the mean over drawn x, each with its standard error: (3,), (3,)."""
    rng = np.random.default_rng(5)
    directions = rng.standard_normal((count, first.hidden.shape[1]))
    lengths = radius * rng.random((count, 1)) ** (1 / first.hidden.shape[1])
    x = lengths * directions / np.linalg.norm(directions, axis=1, keepdims=True)

    def at(hidden, output):
        return np.maximum(x @ hidden.T, 0) @ output

    u = alpha * first.hidden + (1 - alpha) * second.hidden
    v = alpha * first.output + (1 - alpha) * second.output
    on, du, dv = x @ u.T > 0, x @ (first.hidden - second.hidden).T, first.output - second.output
    ends = at(first.hidden, first.output), at(second.hidden, second.output)
    values = np.array(
        [
            at(u, v) - alpha * ends[0] - (1 - alpha) * ends[1],
            at(u, dv) + (on * du) @ v - ends[0] + ends[1],
            2 * (on * du) @ dv,
        ]
    )
    return values.mean(axis=1), values.std(axis=1) / math.sqrt(count)


@pytest.mark.parametrize("inputs", [1, 2, 5])
def test_the_closed_form_agrees_with_the_mean_over_drawn_inputs(inputs):
    first, second = pair(inputs, hidden=4, inputs=inputs, hidden_ratio=0.3, output_ratio=0.3)
    for alpha in (0.2, 0.5):
        found = difference_along_path(first, second, [alpha], radius=1.5)
        expected, error = sampled(first, second, alpha, radius=1.5)
        exact = np.array([found.z[0], found.z_prime[0], found.z_second[0]])
        assert (abs(exact - expected) <= 4 * error).all()
        assert (abs(exact) > 8 * error).any(), "0 would pass as well"


@given(st.integers(0, 999), st.floats(0.05, 0.95))
def test_derivatives_are_those_of_z(seed, alpha):
    step = 1e-5
    found = difference_along_path(*pair(seed), [alpha - step, alpha, alpha + step])
    assert (found.z[2] - found.z[0]) / (2 * step) == pytest.approx(found.z_prime[1], rel=1e-4, abs=1e-5)
    second = found.z_second[1] + found.kinks[1]
    assert (found.z_prime[2] - found.z_prime[0]) / (2 * step) == pytest.approx(second, rel=1e-3, abs=1e-4)


@given(st.integers(0, 99))
def test_the_path_runs_backwards_where_the_networks_change_places(seed):
    first, second = pair(seed)
    there, back = difference_along_path(first, second, ALPHAS), difference_along_path(second, first, ALPHAS)
    assert there.z == pytest.approx(back.z[::-1])
    assert there.z_prime == pytest.approx(-back.z_prime[::-1])
    assert there.z_second == pytest.approx(back.z_second[::-1])


def test_measuring_takes_each_pair_by_itself(monkeypatch):
    setting = TwoLayerSetting(hidden=5, inputs=2, hidden_ratio=0.3)
    found = measure(setting, trials=7, points=5, seed=3)
    assert found.path.z.shape == found.path.kinks.shape == (7, 5)
    monkeypatch.setattr("fedpfn.lmc.two_layer_nets._ENTRIES_AT_ONCE", 25)
    again = measure(setting, trials=4, points=5, seed=3)
    assert np.array_equal(again.path.z, found.path.z[:4]) and np.array_equal(again.path.kinks, found.path.kinks[:4])
    assert len({row.tobytes() for row in found.path.z}) == 7
    assert not np.array_equal(measure(setting, trials=4, points=5, seed=4).path.z, again.path.z)


@pytest.mark.parametrize(("hidden_ratio", "output_ratio"), [(0, 0.5), (0.4, 0), (1, 1)])
def test_networks_share_as_many_entries_as_the_ratios_say(hidden_ratio, output_ratio):
    setting = TwoLayerSetting(hidden=10, inputs=7, hidden_ratio=hidden_ratio, output_ratio=output_ratio)
    first, second = draw_pair(setting, np.random.default_rng(0))
    assert (first.hidden == second.hidden).sum() == round(70 * hidden_ratio)
    assert (first.output == second.output).sum() == round(10 * output_ratio)


def test_entries_have_the_deviations_asked_for():
    for network in pair(hidden=4000, inputs=3, hidden_deviation=0.5, output_deviation=3, hidden_ratio=0.5):
        assert network.hidden.std() == pytest.approx(0.5, rel=0.05)
        assert network.output.std() == pytest.approx(3, rel=0.05)


def test_the_ratios_of_a_measurement_are_those_drawn():
    found = measure(TwoLayerSetting(hidden=3, inputs=1, hidden_ratio=0.5, output_ratio=0.1), trials=1)
    assert (found.setting.hidden_ratio, found.setting.output_ratio) == (2 / 3, 0)


def test_quantiles_are_those_of_the_absolute_values():
    found = measure(TwoLayerSetting(hidden=4, inputs=2), trials=10, points=3)
    assert found.quantiles(0.2).shape == (3, 3)
    assert found.quantiles(0.2)[1, 1] == sorted(abs(found.path.z_prime[:, 1]))[7]
    # two of ten may lie above
    assert (abs(found.path.z_second[:, 1]) > found.quantiles(0.2)[2, 1]).sum() == 2


# The theorem


@pytest.mark.parametrize(
    ("hidden", "inputs", "hidden_ratio", "output_ratio"),
    list(product((1, 16, 128), (1, 16), (0.0, 0.4, 0.95), (0.0, 0.4, 1.0))),
)
def test_the_bounds_hold_on_random_networks(hidden, inputs, hidden_ratio, output_ratio):
    setting = TwoLayerSetting(
        hidden=hidden,
        inputs=inputs,
        hidden_ratio=hidden_ratio,
        output_ratio=output_ratio,
        hidden_deviation=0.3,
        output_deviation=2,
        radius=4,
    )
    found = measure(setting, trials=100, points=5)
    assert all(found.within(delta) for delta in (0.5, 0.1, 0.01))


def test_the_bounds_hold_at_the_worst_input_too():
    # not only for the mean over the ball, which divides z by about the root of the dimension
    for seed in range(20):
        setting = TwoLayerSetting(hidden=64, inputs=8, hidden_ratio=0.4, output_ratio=0.4)
        first, second = draw_pair(setting, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((500, 8))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        outputs = [
            np.maximum(x @ hidden.T, 0) @ output
            for hidden, output in (
                ((first.hidden + second.hidden) / 2, (first.output + second.output) / 2),
                (first.hidden, first.output),
                (second.hidden, second.output),
            )
        ]
        assert (abs(outputs[0] - (outputs[1] + outputs[2]) / 2) < bound_z(setting, 0.1)).all()


def median(**given) -> np.ndarray:
    """Medians of |z|, |z'| and |z''| halfway; at an end for z', whose middle is nearly 0."""
    found = measure(TwoLayerSetting(**given), trials=600, points=3, seed=1).quantiles(0.5)
    return np.array([found[0, 1], found[1, 2], found[2, 1]])


def test_measured_sizes_grow_with_the_root_of_the_width_as_the_bounds_do():
    growth = median(hidden=256, inputs=4) / median(hidden=16, inputs=4)
    assert (growth > 3).all() and (growth < 5.3).all()


def test_measured_sizes_fall_with_the_root_of_the_share_not_shared_where_a_unit_is_shared_whole():
    fall = median(hidden=128, inputs=1, hidden_ratio=0.75) / median(hidden=128, inputs=1)
    assert (fall[[0, 2]] > 0.38).all() and (fall[[0, 2]] < 0.65).all()


def test_measured_z_falls_faster_than_its_bound_where_shared_entries_are_spread_over_units():
    # |u(1/2)| / |u| tends to the root of (1 + rho) / 2: what z has left is 1 less that, about (1 - rho) / 4
    fall = median(hidden=8, inputs=1024, hidden_ratio=0.75)[0] / median(hidden=8, inputs=1024)[0]
    assert fall == pytest.approx((1 - math.sqrt(0.875)) / (1 - math.sqrt(0.5)), rel=0.15)
    assert fall < 0.6 * math.sqrt(0.25)


def test_sizes_are_proportional_to_deviations_and_radius():
    plain = measure(TwoLayerSetting(hidden=5, inputs=2), trials=3).path
    scaled = measure(
        TwoLayerSetting(hidden=5, inputs=2, hidden_deviation=2, output_deviation=3, radius=5), trials=3
    ).path
    for name in ("z", "z_prime", "z_second", "kinks"):
        assert getattr(scaled, name) == pytest.approx(30 * getattr(plain, name))


# What is refused


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ({"hidden": 0}, "hidden must be a size"),
        ({"inputs": 0}, "inputs must be a size"),
        ({"hidden_ratio": -0.1}, "hidden_ratio is the share"),
        ({"output_ratio": 1.1}, "output_ratio is the share"),
        ({"output_ratio": math.nan}, "output_ratio is the share"),
        ({"hidden_deviation": 0.0}, "hidden_deviation must be positive"),
        ({"output_deviation": math.inf}, "output_deviation must be positive"),
        ({"radius": -1.0}, "radius must be positive"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(setting, word):
    with pytest.raises(ValueError, match=word) as caught:
        TwoLayerSetting(**({"hidden": 4} | setting))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_delta_is_a_probability(delta):
    for bound in (bound_z, bound_z_prime, bound_z_second):
        with pytest.raises(ValueError, match="delta"):
            bound(TwoLayerSetting(hidden=4), delta)
    with pytest.raises(ValueError, match="delta"):
        measure(TwoLayerSetting(hidden=4), trials=2).quantiles(delta)


def test_paths_and_trials_that_cannot_be_are_refused():
    first, second = pair()
    with pytest.raises(ValueError, match=r"alphas within \[0, 1\]"):
        difference_along_path(first, second, [0.5, 1.1])
    with pytest.raises(ValueError, match="one shape"):
        difference_along_path(first, pair(hidden=5)[1], [0.5])
    with pytest.raises(ValueError, match="one shape"):
        difference_along_path(*[Networks(net.hidden, net.output[:-1]) for net in (first, second)], [0.5])
    with pytest.raises(ValueError, match="trials"):
        measure(TwoLayerSetting(hidden=4), trials=0)
    with pytest.raises(ValueError, match="odd number"):
        measure(TwoLayerSetting(hidden=4), points=4)
    with pytest.raises(ValueError, match="positive radius"):
        mean_activation(2, radius=0)
