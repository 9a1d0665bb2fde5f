"""Linear CKA: its invariances, its two estimates, and the column of the layer report."""

import math

import pytest
import torch
from torch import Tensor, nn

from fedpfn.examples import Examples
from fedpfn.lmc.layerwise import CKASums, layer_report, linear_cka
from fedpfn.params import read_state


def features(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(features(width, width, 99)).Q


@pytest.mark.parametrize("debiased", [False, True])
def test_rotations_scales_and_shifts_change_nothing(debiased: bool) -> None:
    x, y = features(20, 5, 0), features(20, 7, 1)
    expected = linear_cka(x, y, debiased=debiased)
    assert linear_cka(x, x, debiased=debiased) == pytest.approx(1)
    assert linear_cka(x, -4 * x @ rotation(5) + 3, debiased=debiased) == pytest.approx(1)
    assert linear_cka(x @ rotation(5) * 0.1 + 7, y, debiased=debiased) == pytest.approx(expected)
    assert linear_cka(y, x, debiased=debiased) == pytest.approx(expected)


def test_a_map_that_is_not_orthogonal_counts() -> None:
    x = features(50, 4, 0)
    assert linear_cka(x, x * torch.tensor([1.0, 1.0, 1.0, 50.0])) < 0.9


def test_the_plain_form_is_the_norm_of_the_cross_covariance() -> None:
    # |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F) of centred features (Kornblith et al. 2019, section 3)
    x, y = features(30, 4, 0), features(30, 6, 1)
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    expected = (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    assert linear_cka(x + 2, y - 1) == pytest.approx(float(expected))


def test_unrelated_features_are_alike_for_the_plain_estimate_alone() -> None:
    plain, debiased = (
        sum(linear_cka(features(8, 200, seed), features(8, 200, 100 + seed), debiased=kind) for seed in range(40)) / 40
        for kind in (False, True)
    )
    assert plain > 0.8 and abs(debiased) < 0.05


@pytest.mark.parametrize("batch", [1, 30, 100, 250, 2050])
def test_groups_are_averaged_before_they_are_divided_whatever_the_batches(batch: int) -> None:
    x, y = features(2050, 6, 0), features(2050, 6, 0) + features(2050, 6, 1)
    sums, other = CKASums(), CKASums()
    for start in range(0, 2050, batch):
        sums.add(x[start : start + batch], y[start : start + batch])
    other.add(x, y)
    assert sums.value == pytest.approx(other.value)
    assert sums.value == pytest.approx(linear_cka(x, y, debiased=True), abs=0.02)


def test_three_examples_have_no_estimate() -> None:
    x = features(3, 6, 0)
    alone = CKASums()
    alone.add(x, x)
    assert math.isnan(alone.value)


def test_what_cannot_be_compared() -> None:
    assert math.isnan(linear_cka(torch.ones(5, 2), features(5, 2, 0)))
    assert math.isnan(linear_cka(features(3, 2, 0), features(3, 2, 0), debiased=True))
    with pytest.raises(ValueError, match="got 3 and 4"):
        linear_cka(features(3, 2, 0), features(4, 2, 0))


def test_the_layer_report_has_a_column_of_it() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2)]
    examples = Examples(torch.randn(50, 4), torch.randint(0, 3, (50,)))
    first, second = map(read_state, models)
    same, other = (layer_report(models[0], first, end, examples, stitching=False).rows() for end in (first, second))
    assert [row["cka"] for row in same] == pytest.approx([1.0, 1.0])
    hidden = [model[1](model[0](examples.inputs)).detach() for model in models]
    assert other[0]["cka"] == pytest.approx(linear_cka(*hidden, debiased=True))
    assert all(float(row["cka"]) < 0.95 for row in other)


def test_a_report_says_how_far_it_has_come() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    examples, seen = Examples(torch.randn(50, 4), torch.randint(0, 3, (50,))), []
    state = read_state(model)
    layer_report(model, state, state, examples, batch_size=20, progress=lambda *at: seen.append(at))
    # three batches, two layers stitched each way, two layers summed up
    assert seen[0] == (1, 9) and seen[-1] == (9, 9)
