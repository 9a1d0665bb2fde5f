"""Thirds of a network: every parameter in one of them, in order, vectors with their layer."""

import pytest
import torch
from torch import nn

from fedpfn.lmc.layer_groups import GROUPS, group_patterns
from fedpfn.masks import MaskRecipe, build_mask
from fedpfn.models import MODELS, build
from fedpfn.params import trainable


def test_the_cnns_five_layers_are_one_three_and_one() -> None:
    found = group_patterns(build("cnn", (3, 32, 32), 10, seed=0))
    assert found["first"] == ["conv1.weight", "conv1.bias"]
    assert found["last"] == ["head.weight", "head.bias"]
    assert [name for name in found["middle"] if "weight" in name] == ["conv2.weight", "conv3.weight", "linear.weight"]


def test_norms_go_with_the_layer_before_them() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 3), nn.Linear(3, 2))
    assert group_patterns(model)["first"] == ["0.weight", "0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"lstm"}))
def test_thirds_cover_every_parameter_once(name: str) -> None:
    model = build(name, (3, 32, 32), 10, seed=0, hidden=5) if name == "mlp" else build(name, (3, 32, 32), 10, seed=0)
    found = group_patterns(model)
    assert tuple(found) == GROUPS and [n for group in GROUPS for n in found[group]] == list(trainable(model))
    assert abs(len(found["first"]) - len(found["last"])) <= len(trainable(model)) // 4


def test_a_mask_of_a_third_freezes_nothing_else() -> None:
    parameters = trainable(build("cnn", (3, 32, 32), 10, seed=0))
    names = group_patterns(build("cnn", (3, 32, 32), 10, seed=0))["last"]
    mask = build_mask(MaskRecipe(0, 0.5, include=",".join(names)), parameters)
    assert {name for name, trained in mask.items() if not bool(torch.all(trained))} == set(names)


def test_fewer_layers_than_thirds_are_refused() -> None:
    with pytest.raises(ValueError, match="2 weighted layers cannot be cut into first, middle, last"):
        group_patterns(build("mlp", (4,), 2, seed=0, hidden=1))
