"""Masks from recipes: counts, complements, windows, granularity, and that a recipe is the same mask everywhere."""

import hashlib
import json
from dataclasses import asdict, replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fedpfn import masks
from fedpfn.masks import Mask, MaskRecipe, build_mask, frozen_share, mask_arrays, union
from fedpfn.seeding import derive

SHAPES = {"conv.weight": (4, 3, 2, 2), "conv.bias": (4,), "out.weight": (7, 4), "out.bias": (7,), "scale": ()}
DRAWS, GRANULARITIES = ("exact", "bernoulli"), ("weight", "neuron")


def parameters(shapes: dict[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in (SHAPES if shapes is None else shapes).items()}


def built(recipe: MaskRecipe | None, shapes: dict[str, tuple[int, ...]] | None = None) -> Mask:
    return build_mask(recipe, parameters(shapes))


def frozen(recipe: MaskRecipe, size: int, name: str = "w") -> NDArray[np.bool_]:
    """Return which entries of one tensor of ``size`` entries are frozen."""
    return ~mask_arrays(recipe, ((name, (size,)),))[name]


def half_up(value: float) -> int:
    return int(np.floor(round(value, 6) + 0.5))


recipes = st.builds(
    MaskRecipe,
    seed=st.integers(0, 2**63 - 1),
    ratio=st.floats(0, 1),
    start=st.floats(0, 1, exclude_max=True),
    inverted=st.booleans(),
    granularity=st.sampled_from(GRANULARITIES),
    draw=st.sampled_from(DRAWS),
    include=st.sampled_from(["*", "*.weight", "out.*,scale", ""]),
    exclude=st.sampled_from(["", "*.bias", "conv.*"]),
)


# counts


@pytest.mark.parametrize(
    ("ratio", "size", "count"),
    [(0.4, 10, 4), (0.4, 5, 2), (0.4, 1, 0), (0.6, 1, 1), (0.5, 7, 4), (0.5, 1, 1), (0.1, 4, 0), (0.25, 4, 1),
     (1 / 3, 9, 3), (0.3, 10, 3), (0.7, 10, 7), (0.57, 100, 57), (0.999, 10, 10), (0.0, 5, 0), (1.0, 5, 5)],
)  # fmt: skip
def test_exactly_the_rounded_share_of_a_tensor_is_frozen(ratio: float, size: int, count: int) -> None:
    for seed in range(5):
        assert frozen(MaskRecipe(seed, ratio), size).sum() == count


@given(st.integers(0, 2**63 - 1), st.floats(0, 1), st.integers(0, 300))
def test_the_count_of_each_tensor_is_exact_on_its_own(seed: int, ratio: float, size: int) -> None:
    mask = built(MaskRecipe(seed, ratio), {"w": (size,), "v": (3, size)})
    assert int((~mask["w"]).sum()) == half_up(ratio * size)
    assert int((~mask["v"]).sum()) == half_up(ratio * 3 * size)


@given(st.integers(0, 2**63 - 1), st.floats(0, 1), st.floats(0, 1, exclude_max=True), st.integers(1, 300))
def test_a_window_elsewhere_is_one_entry_off_at_most(seed: int, ratio: float, start: float, size: int) -> None:
    count = int(frozen(MaskRecipe(seed, ratio, start=start), size).sum())
    assert abs(count - ratio * size) <= 1 + 1e-6


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("start", [0.0, 0.3, 0.75])
def test_ratio_0_trains_all_and_ratio_1_freezes_all(draw: str, granularity: str, start: float) -> None:
    recipe = MaskRecipe(3, 0.0, start=start, draw=draw, granularity=granularity)
    assert all(bool(trained.all()) for trained in built(recipe).values())
    assert not any(bool(trained.any()) for trained in built(replace(recipe, ratio=1.0)).values())
    assert not any(bool(trained.any()) for trained in built(recipe.complement()).values())


def test_no_recipe_trains_everything() -> None:
    mask = built(None)
    assert all(trained.dtype == torch.bool and bool(trained.all()) for trained in mask.values())
    assert {name: tuple(trained.shape) for name, trained in mask.items()} == SHAPES
    assert frozen_share(mask) == 0


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.9])
def test_independent_draws_have_a_binomial_count(ratio: float) -> None:
    counts = np.array([frozen(MaskRecipe(seed, ratio, draw="bernoulli"), 400).sum() for seed in range(200)])
    spread = np.sqrt(400 * ratio * (1 - ratio))
    assert abs(counts.mean() - 400 * ratio) < 4 * spread / np.sqrt(200)
    assert 0.8 * spread < counts.std() < 1.2 * spread


# the draw itself


def exact_by_sorting(recipe: MaskRecipe, name: str, size: int) -> NDArray[np.bool_]:
    """The exact draw as its definition reads: sort the keys, freeze the ranks in the window."""
    bits = np.random.Philox(derive(recipe.seed, "mask", name)).random_raw(size)
    order = np.argsort(bits >> np.uint64(32), kind="stable")
    first, last = half_up(recipe.start * size), half_up((recipe.start + recipe.ratio) * size)
    marked = np.zeros(size, dtype=bool)
    for rank in range(first, last):
        marked[order[rank % size]] = True
    return ~marked if recipe.inverted else marked


@given(
    recipes.map(lambda recipe: replace(recipe, draw="exact", include="*", exclude="")),
    st.integers(1, 200),
)
def test_the_fast_exact_draw_agrees_with_a_sort(recipe: MaskRecipe, size: int) -> None:
    recipe = replace(recipe, granularity="weight")
    assert np.array_equal(frozen(recipe, size), exact_by_sorting(recipe, "w", size))


def test_entries_with_equal_random_bits_still_freeze_to_the_exact_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant:
        def __init__(self, seed: int) -> None: ...

        def random_raw(self, size: int) -> NDArray[np.uint64]:
            return np.full(size, 7 << 40, dtype=np.uint64)

    monkeypatch.setattr(np.random, "Philox", Constant)
    assert frozen(MaskRecipe(1, 0.4), 10, "ties").tolist() == [True] * 4 + [False] * 6


def digest(mask: Mask) -> str:
    whole = hashlib.sha256()
    for name, trained in mask.items():
        whole.update(name.encode() + np.packbits(trained.numpy().reshape(-1)).tobytes())
    return whole.hexdigest()[:16]


def test_a_tiny_mask_is_pinned_entry_by_entry() -> None:
    assert frozen(MaskRecipe(0, 0.4), 10).astype(int).tolist() == [0, 1, 1, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("recipe", "pinned"),
    [
        (MaskRecipe(0, 0.4), "1ad9b20e260a163e"),
        (MaskRecipe(0, 0.4, granularity="neuron"), "594c4a6f406383df"),
        (MaskRecipe(0, 0.4, draw="bernoulli"), "2e502ff9242476b7"),
        (MaskRecipe(2**63 - 1, 0.25, start=0.75, inverted=True, exclude="*.bias"), "fd774ed3efb3b01f"),
    ],
    ids=["exact", "neuron", "bernoulli", "window"],
)
def test_the_masks_of_a_recipe_are_pinned_since_both_ends_rebuild_them(recipe: MaskRecipe, pinned: str) -> None:
    assert digest(built(recipe)) == pinned


def test_a_mask_does_not_depend_on_what_else_is_drawn() -> None:
    recipe = MaskRecipe(5, 0.4)
    alone = built(recipe, {"out.weight": (7, 4)})
    turned = built(recipe, dict(reversed(SHAPES.items())))
    for mask in (alone, turned):
        assert torch.equal(mask["out.weight"], built(recipe)["out.weight"])


def test_seeds_and_names_draw_their_own() -> None:
    first, second = frozen(MaskRecipe(1, 0.5), 64), frozen(MaskRecipe(2, 0.5), 64)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, frozen(MaskRecipe(1, 0.5), 64, name="v"))


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(("ratio", "size"), [(0.4, 10), (0.25, 8), (0.5, 2)])
def test_every_entry_is_frozen_its_share_of_the_time(draw: str, ratio: float, size: int) -> None:
    seeds = 1000
    times = sum(frozen(MaskRecipe(seed, ratio, draw=draw), size).astype(int) for seed in range(seeds))
    spread = np.sqrt(seeds * ratio * (1 - ratio))
    assert np.abs(times - seeds * ratio).max() < 4.5 * spread


def test_neighbours_are_frozen_together_no_more_often_than_chance() -> None:
    seeds, size = 1000, 10
    together = np.zeros((size, size))
    for seed in range(seeds):
        entries = frozen(MaskRecipe(seed, 0.4), size)
        together += np.outer(entries, entries)
    expected = seeds * 0.4 * 3 / 9
    off_diagonal = together[~np.eye(size, dtype=bool)]
    assert np.abs(off_diagonal - expected).max() < 5 * np.sqrt(expected)


# complements and windows


@given(recipes)
def test_a_mask_and_its_complement_train_every_entry_once(recipe: MaskRecipe) -> None:
    mask, other = built(recipe), built(recipe.complement())
    assert recipe.complement().complement() == recipe
    for name in SHAPES:
        if recipe.touches(name):
            assert torch.equal(mask[name], ~other[name])
        else:
            assert bool(mask[name].all()) and bool(other[name].all())
    assert all(bool(trained.all()) for trained in union([mask, other]).values())


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("blocks", range(2, 8))
def test_windows_that_tile_the_circle_freeze_every_entry_once(blocks: int, granularity: str, draw: str) -> None:
    shapes = {f"w{size}.weight": (size, 3) for size in (1, 2, 5, 7, 30, 101)} | {"w7.bias": (7,)}
    windows = [
        built(MaskRecipe(9, 1 / blocks, start=block / blocks, granularity=granularity, draw=draw), shapes)
        for block in range(blocks)
    ]
    for name in shapes:
        times = sum((~window[name]).int() for window in windows)
        assert bool((times == 1).all()), name


@given(st.integers(2, 40), st.integers(1, 500), st.sampled_from(DRAWS))
def test_any_tiling_freezes_every_entry_once(blocks: int, size: int, draw: str) -> None:
    windows = [frozen(MaskRecipe(9, 1 / blocks, start=block / blocks, draw=draw), size) for block in range(blocks)]
    assert bool((sum(window.astype(int) for window in windows) == 1).all())


@given(st.integers(1, 500), st.floats(0, 0.5), st.floats(0, 0.5), st.sampled_from(DRAWS))
def test_starts_a_window_apart_freeze_disjoint_entries(size: int, ratio: float, start: float, draw: str) -> None:
    first = frozen(MaskRecipe(4, ratio, start=start, draw=draw), size)
    second = frozen(MaskRecipe(4, ratio, start=start + ratio, draw=draw), size) if start + ratio < 1 else ~first
    assert not bool((first & second).any())


@given(st.integers(0, 100), st.integers(1, 200), st.sampled_from(DRAWS))
def test_a_smaller_ratio_of_one_seed_freezes_fewer_of_the_same(seed: int, size: int, draw: str) -> None:
    nested = [frozen(MaskRecipe(seed, ratio, draw=draw), size) for ratio in (0.1, 0.4, 0.8)]
    for smaller, larger in combinations(nested, 2):
        assert not bool((smaller & ~larger).any())


# granularity


def test_a_neuron_freezes_its_row_with_its_bias() -> None:
    recipe = MaskRecipe(2, 0.4, granularity="neuron")
    mask = built(recipe)
    assert int((~mask["out.bias"]).sum()) == 3
    for module in ("conv", "out"):
        weight, bias = mask[f"{module}.weight"], mask[f"{module}.bias"]
        for unit, row in enumerate(weight):
            assert bool((row == bias[unit]).all())


def test_neurons_of_two_layers_of_one_width_are_drawn_apart() -> None:
    shapes = {"a.weight": (64, 2), "b.weight": (64, 2)}
    mask = built(MaskRecipe(2, 0.5, granularity="neuron"), shapes)
    assert not torch.equal(mask["a.weight"], mask["b.weight"])


def test_every_gate_of_a_recurrent_layer_shares_rows() -> None:
    lstm = dict(torch.nn.LSTM(3, 2).named_parameters(prefix="lstm"))
    mask = build_mask(MaskRecipe(2, 0.5, granularity="neuron"), lstm)
    rows = mask["lstm.bias_ih_l0"]
    assert int(rows.sum()) == 4
    for trained in mask.values():
        assert bool((trained.reshape(8, -1) == rows[:, None]).all())


def test_one_recipe_draws_neurons_and_entries_differently() -> None:
    fine, coarse = (built(MaskRecipe(2, 0.5, granularity=granularity)) for granularity in GRANULARITIES)
    assert len({bool(entry) for entry in coarse["out.weight"][0]}) == 1
    assert any(len({bool(entry) for entry in row}) == 2 for row in fine["out.weight"])


# what a mask touches


@pytest.mark.parametrize(
    ("include", "exclude", "touched"),
    [
        ("*", "", set(SHAPES)),
        ("*.weight", "", {"conv.weight", "out.weight"}),
        ("conv.*, scale", "", {"conv.weight", "conv.bias", "scale"}),
        ("*", "*.bias,scale", {"conv.weight", "out.weight"}),
        ("conv.*", "*.bias", {"conv.weight"}),
        ("", "", set()),
        ("*", "*", set()),
        ("[co]*.bia?", "", {"conv.bias", "out.bias"}),
        ("CONV.*", "", set()),
    ],
)
def test_patterns_say_what_a_mask_touches(include: str, exclude: str, touched: set[str]) -> None:
    recipe = MaskRecipe(1, 1.0, include=include, exclude=exclude)
    assert {name for name, trained in built(recipe).items() if not bool(trained.any())} == touched
    assert {name for name in SHAPES if recipe.touches(name)} == touched


def test_what_is_left_out_does_not_change_what_is_drawn() -> None:
    for granularity in GRANULARITIES:
        whole = built(MaskRecipe(1, 0.4, granularity=granularity))
        part = built(MaskRecipe(1, 0.4, granularity=granularity, include="out.weight"))
        assert torch.equal(whole["out.weight"], part["out.weight"])


# shapes, union, share


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("draw", DRAWS)
def test_scalars_and_empty_tensors_have_masks(granularity: str, draw: str) -> None:
    mask = built(MaskRecipe(1, 0.5, granularity=granularity, draw=draw), {"a.s": (), "a.e": (0,), "b.e": (3, 0)})
    assert {name: tuple(trained.shape) for name, trained in mask.items()} == {"a.s": (), "a.e": (0,), "b.e": (3, 0)}


def test_a_scalar_is_one_unit() -> None:
    for granularity in GRANULARITIES:
        assert not bool(built(MaskRecipe(1, 0.6, granularity=granularity))["scale"])
        assert bool(built(MaskRecipe(1, 0.4, granularity=granularity))["scale"])
        drawn = [bool(built(MaskRecipe(s, 0.4, draw="bernoulli"))["scale"]) for s in range(30)]
        assert len(set(drawn)) == 2


def test_a_union_trains_what_any_mask_trains_and_leaves_them_as_they_are() -> None:
    first, second = {"w": torch.tensor([True, False, False])}, {"w": torch.tensor([False, False, True])}
    assert union([first, second])["w"].tolist() == [True, False, True]
    assert union(iter([first]))["w"].tolist() == [True, False, False]
    assert (first["w"].tolist(), second["w"].tolist()) == ([True, False, False], [False, False, True])


def test_the_frozen_share_counts_entries_not_tensors() -> None:
    assert frozen_share({"w": torch.tensor([True] * 6 + [False] * 2), "b": torch.tensor([False, False])}) == 0.4
    assert frozen_share({}) == 0


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_ratio_outside_0_and_1_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        MaskRecipe(0, ratio)


@pytest.mark.parametrize("wrong", [{"granularity": "layer"}, {"draw": "approximate"}])
def test_an_unknown_granularity_or_draw_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        MaskRecipe(0, 0.4, **wrong)  # type: ignore[arg-type]


@given(recipes)
def test_a_recipe_survives_json_to_the_bit(recipe: MaskRecipe) -> None:
    assert MaskRecipe(**json.loads(json.dumps(asdict(recipe)))) == recipe


@pytest.mark.gpu
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_mask_is_the_same_on_a_gpu(granularity: str) -> None:
    recipe = MaskRecipe(1, 0.4, granularity=granularity)
    there = build_mask(recipe, {name: tensor.cuda() for name, tensor in parameters().items()})
    for name, trained in built(recipe).items():
        assert there[name].device.type == "cuda" and torch.equal(there[name].cpu(), trained)


@pytest.mark.parametrize("start", [-0.25, 1.0, 1.5, float("nan")])
def test_a_window_starts_on_the_circle(start: float) -> None:
    with pytest.raises(ValueError, match="starts within"):
        MaskRecipe(1, 0.5, start=start)


def test_a_mask_may_be_written_to_without_changing_the_next() -> None:
    parameters = {"w": torch.zeros(10)}
    first = build_mask(MaskRecipe(1, 0.5), parameters)["w"]
    kept = first.clone()
    first.fill_(True)
    assert torch.equal(build_mask(MaskRecipe(1, 0.5), parameters)["w"], kept)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000, 20_000])
@pytest.mark.parametrize("skew", [False, True])
def test_the_smallest_keys_are_found_wherever_they_lie(size: int, skew: bool) -> None:
    generator = np.random.default_rng(size)
    keys = generator.integers(0, 2**64, size, dtype=np.uint64)
    if skew:
        # nothing lies where uniform keys would: the search falls back to all of them
        keys >>= np.uint64(20)
    in_order = np.sort(keys)
    for rank in {0, 1, size // 3, size // 2, size - 1, size} - {-1}:
        marked = masks._below(keys, rank)
        assert int(marked.sum()) == rank
        assert np.array_equal(np.sort(keys[marked]), in_order[:rank])
