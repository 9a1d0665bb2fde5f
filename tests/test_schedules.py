"""Round plans: what each schedule and each algorithm freezes, round by round, and for how many of the local steps."""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpfn.masking import Masking
from fedpfn.masks import MaskRecipe, build_mask
from fedpfn.runs.arguments import round_plans
from fedpfn.runs.config import ConfigError, RunConfig
from fedpfn.schedules import (
    SCHEDULES,
    UNMASKED,
    VARIANTS,
    Phase,
    Plan,
    PlanStep,
    decode_plan,
    encode_plan,
    fed_pfn,
    fed_pnu,
    make_schedule,
    phase_steps,
    plan_rounds,
)
from fedpfn.seeding import derive

ROUNDS = range(1, 7)


def masks_of(**settings: Any) -> Masking:
    """Return the masks of a run of six rounds."""
    return Masking(**{"rounds": 6} | settings)


def plans(masking: Masking, algorithm: PlanStep = fed_pfn) -> list[Plan]:
    plan = plan_rounds(masking, algorithm)
    return [plan(server_round) for server_round in ROUNDS]


def only_mask(plan: Plan) -> MaskRecipe:
    (phase,) = plan
    assert phase.share == 1 and phase.mask is not None
    return phase.mask


def drawn(server_round: int | str, seed: int = 0) -> int:
    return derive(seed, "mask", server_round)


# schedules by hand


def test_per_round_draws_a_fresh_mask_each_round() -> None:
    assert plans(masks_of()) == [(Phase(MaskRecipe(drawn(t), 0.4)),) for t in ROUNDS]
    assert len({only_mask(plan).seed for plan in plans(masks_of())}) == 6


def test_fixed_keeps_one_mask() -> None:
    assert plans(masks_of(schedule="fixed")) == [(Phase(MaskRecipe(drawn("fixed"), 0.4)),)] * 6


def test_complement_alternates_a_fresh_mask_and_its_inverse() -> None:
    assert plans(masks_of(schedule="complement")) == [
        (Phase(MaskRecipe(drawn(1), 0.4)),),
        (Phase(MaskRecipe(drawn(1), 0.4, inverted=True)),),
        (Phase(MaskRecipe(drawn(3), 0.4)),),
        (Phase(MaskRecipe(drawn(3), 0.4, inverted=True)),),
        (Phase(MaskRecipe(drawn(5), 0.4)),),
        (Phase(MaskRecipe(drawn(5), 0.4, inverted=True)),),
    ]


def test_cyclic_moves_the_window_of_one_order() -> None:
    config = masks_of(schedule="cyclic", blocks=4, ratio=0.25)
    starts = [0.0, 0.25, 0.5, 0.75, 0.0, 0.25]
    assert plans(config) == [(Phase(MaskRecipe(drawn("fixed"), 0.25, start=start)),) for start in starts]


@pytest.mark.parametrize("blocks", range(2, 8))
@pytest.mark.parametrize("frozen_blocks", ["one", "all but one"])
def test_cyclic_covers_every_entry_once_in_its_blocks_rounds(blocks: int, frozen_blocks: str) -> None:
    ratio = 1 / blocks if frozen_blocks == "one" else 1 - 1 / blocks
    config = masks_of(schedule="cyclic", blocks=blocks, ratio=ratio, rounds=blocks)
    plan = plan_rounds(config)
    parameters = {"w": torch.zeros(23), "v": torch.zeros(5, 7)}
    masks = [build_mask(only_mask(plan(t)), parameters) for t in range(1, blocks + 1)]
    for name in parameters:
        times = sum((~mask[name] if frozen_blocks == "one" else mask[name]).int() for mask in masks)
        assert torch.is_tensor(times) and bool((times == 1).all())


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_a_function_of_seed_and_round(name: str) -> None:
    config = masks_of(schedule=name)
    assert plans(config) == plans(config)
    plan = plan_rounds(config)
    backwards = [plan(t) for t in reversed(ROUNDS)]
    assert backwards[::-1] == plans(config)
    for mine, other in zip(plans(config), plans(replace(config, seed=1)), strict=True):
        assert only_mask(mine).seed != only_mask(other).seed


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_leaves_ratio_and_kind_of_mask_to_the_config(name: str) -> None:
    config = masks_of(
        schedule=name, ratio=0.2, granularity="neuron", draw="bernoulli",
        include="*.weight", exclude="out.*",
    )  # fmt: skip
    for plan in plans(config):
        mask = only_mask(plan)
        assert (mask.ratio, mask.granularity, mask.draw) == (0.2, "neuron", "bernoulli")
        assert (mask.include, mask.exclude) == ("*.weight", "out.*")


# warm-up and ratios


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("algorithm", [fed_pfn, fed_pnu("within-round", 0.5)], ids=["fedpfn", "fedpnu"])
def test_warm_up_rounds_train_everything_in_one_phase(name: str, algorithm: PlanStep) -> None:
    found = plans(masks_of(schedule=name, warmup_rounds=2), algorithm)
    assert found[:2] == [UNMASKED, UNMASKED]
    assert all(plan[0].mask is not None for plan in found[2:])


def test_warm_up_changes_no_later_mask() -> None:
    assert plans(masks_of(warmup_rounds=2))[2:] == plans(masks_of())[2:]


def ratios(**keys: Any) -> list[float]:
    config = masks_of(**keys)
    return [config.ratio_at(t) for t in ROUNDS]


def test_a_constant_ratio_stays() -> None:
    assert ratios(ratio=0.3) == [0.3] * 6


def test_a_linear_ratio_goes_from_the_first_round_to_the_last() -> None:
    found = ratios(ratio=0.2, final_ratio=0.7, ratio_shape="linear")
    assert found == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7], abs=1e-15)
    assert ratios(ratio=0.8, final_ratio=0.3, ratio_shape="linear")[-1] == pytest.approx(0.3)


def test_a_cosine_ratio_has_its_ends_its_middle_and_flat_ends() -> None:
    config = masks_of(ratio=0.2, final_ratio=0.6, ratio_shape="cosine", rounds=5)
    found = [config.ratio_at(t) for t in range(1, 6)]
    quarter = (1 - math.cos(math.pi / 4)) / 2
    assert found == pytest.approx([0.2, 0.2 + 0.4 * quarter, 0.4, 0.6 - 0.4 * quarter, 0.6], abs=1e-15)
    assert found[1] - found[0] < found[2] - found[1]


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_moving_ratio_starts_after_the_warm_up(shape: str) -> None:
    found = ratios(ratio=0.2, final_ratio=0.6, ratio_shape=shape, warmup_rounds=3)
    assert found[3:] == pytest.approx([0.2, 0.4, 0.6], abs=1e-15)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_run_of_one_masked_round_has_the_first_ratio(shape: str) -> None:
    config = masks_of(ratio=0.2, final_ratio=0.6, ratio_shape=shape, warmup_rounds=5)
    assert config.ratio_at(6) == 0.2


@given(
    st.sampled_from(["constant", "linear", "cosine"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 50),
    st.integers(0, 49),
)
def test_a_ratio_never_leaves_its_two_ends(shape: str, first: float, last: float, rounds: int, warmup: int) -> None:
    config = Masking(ratio_shape=shape, ratio=first, final_ratio=last, warmup_rounds=warmup, rounds=rounds)
    found = [config.ratio_at(t) for t in range(1, rounds + 1)]
    assert all(min(first, last) - 1e-15 <= ratio <= max(first, last) + 1e-15 for ratio in found)
    assert found in (sorted(found), sorted(found, reverse=True))


def test_the_ratio_of_the_round_is_the_masks() -> None:
    config = masks_of(ratio=0.0, final_ratio=1.0, ratio_shape="linear")
    assert [only_mask(plan).ratio for plan in plans(config)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


# algorithms


def test_fedavg_trains_everything_whatever_the_schedule() -> None:
    for name in SCHEDULES:
        plan = round_plans(RunConfig.parse({"strategy.name": "fedavg", "mask.schedule": name}))
        assert [plan(server_round) for server_round in ROUNDS] == [UNMASKED] * 6


def test_fedpnu_within_a_round_trains_the_mask_and_then_its_complement() -> None:
    first = MaskRecipe(drawn(2), 0.4)
    found = plans(masks_of(), fed_pnu("within-round", 0.25))[1]
    assert found == (Phase(first, 0.25), Phase(replace(first, inverted=True), 0.75))


def test_fedpnu_across_rounds_is_the_complement_schedule() -> None:
    config = RunConfig.parse({"rounds": 6, "strategy.name": "fedpnu", "strategy.variant": "across-rounds"})
    found = [round_plans(config)(server_round) for server_round in ROUNDS]
    assert found == plans(masks_of(schedule="complement"))


def test_fedpnu_across_rounds_refuses_another_schedule() -> None:
    with pytest.raises(ConfigError, match=r"across-rounds implies mask\.schedule=complement, but it is 'fixed'"):
        RunConfig.parse({"mask.schedule": "fixed", "strategy.name": "fedpnu", "strategy.variant": "across-rounds"})


def test_the_variant_is_fedpnus_alone() -> None:
    config = RunConfig.parse({"rounds": 6, "strategy.variant": "across-rounds"})
    assert [round_plans(config)(server_round) for server_round in ROUNDS] == plans(masks_of())


def test_fedpnu_then_all_trains_the_mask_and_then_everything() -> None:
    found = plans(masks_of(), fed_pnu("then-all", 0.5))[0]
    assert found == (Phase(MaskRecipe(drawn(1), 0.4), 0.5), Phase(None, 0.5))


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="one of within-round, across-rounds, then-all; got 'typo'"):
        fed_pnu("typo", 0.5)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_of_steps_beyond_all_of_them_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"within \[0, 1\]; got"):
        fed_pnu("within-round", share)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fedpnu_leaves_an_unmasked_phase_and_splits_only_its_own_share(variant: str) -> None:
    mixed = (Phase(None, 0.5), Phase(MaskRecipe(1, 0.4), 0.5))
    found = fed_pnu(variant, 0.5)(1, mixed)
    assert found[0] == Phase(None, 0.5)
    assert sum(phase.share for phase in found) == 1
    assert [phase.share for phase in found[1:]] == ([0.5] if variant == "across-rounds" else [0.25, 0.25])


def test_fedpnu_with_ratio_0_has_nothing_left_for_its_second_phase() -> None:
    (_, second) = plans(masks_of(ratio=0.0), fed_pnu("within-round", 0.5))[0]
    assert not any(bool(trained.any()) for trained in build_mask(second.mask, {"w": torch.zeros(9)}).values())


# steps of phases


@pytest.mark.parametrize(
    ("shares", "steps", "expected"),
    [
        ((1.0,), 7, (7,)),
        ((0.5, 0.5), 4, (2, 2)),
        ((0.5, 0.5), 5, (3, 2)),
        ((0.5, 0.5), 1, (1, 0)),
        ((0.25, 0.75), 4, (1, 3)),
        ((0.25, 0.75), 5, (1, 4)),
        ((1 / 3, 1 / 3, 1 / 3), 3, (1, 1, 1)),
        ((0.1,) * 10, 10, (1,) * 10),
        ((0.0, 1.0), 3, (0, 3)),
        ((0.5, 0.5), 0, (0, 0)),
    ],
)
def test_steps_are_split_as_by_hand(shares: tuple[float, ...], steps: int, expected: tuple[int, ...]) -> None:
    assert phase_steps(shares, steps) == expected


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any), st.integers(0, 10_000))
def test_all_steps_are_used_and_no_phase_is_more_than_one_off_its_share(parts: list[int], steps: int) -> None:
    shares = tuple(part / sum(parts) for part in parts)
    found = phase_steps(shares, steps)
    assert len(found) == len(shares)
    assert sum(found) == steps
    for count, share in zip(found, shares, strict=True):
        assert count >= 0
        assert abs(count - share * steps) <= 1 + 1e-6


# on the wire


recipes = st.builds(
    MaskRecipe, st.integers(0, 2**63 - 1), st.floats(0, 1), st.floats(0, 1, exclude_max=True), st.booleans()
)


def plan_of(phases: list[tuple[MaskRecipe | None, int]]) -> Plan:
    total = sum(part for _, part in phases)
    return tuple(Phase(mask, part / total) for mask, part in phases)


@given(st.lists(st.tuples(st.none() | recipes, st.integers(1, 9)), min_size=1, max_size=4).map(plan_of))
def test_a_plan_survives_the_wire_to_the_bit(plan: Plan) -> None:
    assert decode_plan(encode_plan(plan)) == plan


@pytest.mark.parametrize("text", ["", "{}", "[]", "[3]", '[{"mask": null}]', '[{"mask": {"ratio": 2}, "share": 1}]'])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="round plan"):
        decode_plan(text)


# a schedule of the user's


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Masking]]:
    """Give a function that plants an object under an import string and returns settings which name it."""
    module = ModuleType("planted_schedules")
    monkeypatch.setitem(sys.modules, "planted_schedules", module)

    def plant(schedule: object) -> Masking:
        module.mine = schedule  # type: ignore[attr-defined]
        return masks_of(schedule="planted_schedules:mine")

    yield plant


def test_a_users_schedule_gets_the_round_and_the_fresh_plan(users: Callable[..., Masking]) -> None:
    seen: list[tuple[int, Plan]] = []

    def mine(server_round: int, plan: Plan) -> Plan:
        seen.append((server_round, plan))
        return UNMASKED if server_round == 1 else plan

    found = plans(users(mine))
    assert seen == [(t, (Phase(MaskRecipe(drawn(t), 0.4)),)) for t in ROUNDS]
    assert found[0] == UNMASKED and found[1:] == plans(masks_of())[1:]


def test_the_algorithm_works_on_what_a_users_schedule_made(users: Callable[..., Masking]) -> None:
    mine = (Phase(MaskRecipe(7, 0.9)),)
    found = plans(users(lambda server_round, plan: mine), fed_pnu("within-round", 0.5))
    assert found == [(Phase(MaskRecipe(7, 0.9), 0.5), Phase(MaskRecipe(7, 0.9, inverted=True), 0.5))] * 6


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "expected a tuple of Phase"),
        ((), "expected a tuple of Phase"),
        ("ones", "expected a tuple of Phase"),
        (MaskRecipe(1, 0.4), "expected a tuple of Phase"),
        ((MaskRecipe(1, 0.4),), "expected a tuple of Phase"),
        (((None, 1.0),), "expected a tuple of Phase"),
        ((Phase(None, 0.5),), "sum to 1, got [0.5]"),
        ((Phase(None, 0.5), Phase(None, 0.6)), "sum to 1, got [0.5, 0.6]"),
        ((Phase(None, -0.5), Phase(None, 1.5)), "0 or more"),
        ((Phase(None, float("nan")),), "0 or more"),
        ((Phase(None, "1"),), "0 or more"),
        ((Phase("ones"),), "expected a tuple of Phase"),
    ],
    ids=str,
)
def test_a_users_schedule_that_returns_no_plan_is_named(
    users: Callable[..., Masking], returned: object, words: str
) -> None:
    with pytest.raises(ValueError) as caught:
        plans(users(lambda server_round, plan: returned))
    message = str(caught.value)
    assert message.startswith("mask.schedule 'planted_schedules:mine', round 1: ") and words in message


def test_a_users_schedule_that_is_no_function_is_named(users: Callable[..., Masking]) -> None:
    with pytest.raises(ValueError, match="'planted_schedules:mine' is not a function"):
        make_schedule(users(3))


def test_an_unknown_schedule_is_answered_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"per-round, fixed, complement, cyclic or package\.module:name, got 'weekly'"):
        make_schedule(masks_of(schedule="weekly"))


@pytest.mark.parametrize("reference", ["no_such_module_here:name", "json:no_such_name", "json:"])
def test_a_bad_import_string_is_a_value_error(reference: str) -> None:
    with pytest.raises(ValueError, match=reference):
        make_schedule(masks_of(schedule=reference))


@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_a_mask_and_its_complement_cover_everything_while_the_ratio_moves(warmup: int) -> None:
    config = Masking(
        0.2, schedule="complement", final_ratio=0.8, ratio_shape="linear", warmup_rounds=warmup, rounds=warmup + 4
    )
    plan = plan_rounds(config)
    for first in (warmup + 1, warmup + 3):
        (one,), (other,) = plan(first), plan(first + 1)
        assert one.mask is not None and other.mask == one.mask.complement() and not one.mask.inverted
