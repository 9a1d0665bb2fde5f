"""The small transformer computes attention as defined, alike in every mode; weights from a file fit or are refused."""

import copy
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from toys import Command, seeded

from fedpfn.masks import MaskRecipe, build_mask, frozen_share
from fedpfn.models import build, inspect_model
from fedpfn.models.vit import Attention, Block, MeanToken, Tokens, vit
from fedpfn.models.weights import load_weights
from fedpfn.params import read_state, trainable

DIGITS = (1, 8, 8)


def tiny(seed: int = 0, **options: int) -> nn.Sequential:
    return seeded(seed, lambda: vit(DIGITS, 10, **({"depth": 2, "heads": 2} | options)))


def images(count: int = 3, shape: tuple[int, ...] = DIGITS, seed: int = 7) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


# Shapes and counts


@pytest.mark.parametrize(("shape", "patch"), [(DIGITS, 2), ((1, 28, 28), 4), ((3, 32, 32), 4), ((3, 8, 12), 2)])
def test_an_image_is_cut_into_at_most_64_whole_patches(shape: tuple[int, ...], patch: int) -> None:
    model = vit(shape, 10)
    assert model.patches.kernel_size == model.patches.stride == (patch, patch)
    assert model.tokens.positions.shape == (shape[1] * shape[2] // patch**2, 64)
    assert model(images(2, shape)).shape == (2, 10)


def test_the_count_of_parameters_by_hand() -> None:
    attention = 64 * 65 * 3 + 64 * 64
    block = attention + 2 * 2 * 64 + 64 * 128 + 128 + 128 * 64 + 64
    expected = (16 + 1) * 64 + 49 * 64 + 4 * block + 2 * 64 + 65 * 10
    assert sum(p.numel() for p in vit((1, 28, 28), 10).parameters()) == expected


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 12))
@settings(max_examples=40)
def test_a_patch_divides_the_image_or_is_refused_in_one_line(height: int, width: int, patch: int) -> None:
    try:
        model = vit((1, height, width), 3, patch=patch, depth=0, heads=1)
    except ValueError as error:
        assert f"{height}x{width}" in str(error)
        assert "\n" not in str(error)
        sides = [patch] if patch else range(2, 41)
        fits = [s for s in sides if not height % s and not width % s and (patch or 2 <= height * width // s**2 <= 64)]
        assert not fits
    else:
        side = model.patches.stride[0]
        assert len(model.tokens.positions) * side**2 == height * width
        assert model(torch.zeros(1, 1, height, width)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 3}, "3 does not divide the sides 8x8"),
        ({"patch": -2}, "-2 does not divide"),
        ({"depth": -1}, "depth=-1"),
        ({"heads": 0}, "heads=0"),
    ],
)
def test_impossible_settings_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vit(DIGITS, 10, **options)


def test_a_prime_side_has_no_patch() -> None:
    with pytest.raises(ValueError, match="29x29 into 2 to 64 tokens"):
        vit((1, 29, 29), 10)


@pytest.mark.parametrize(("multiplier", "channels"), [(0.25, 16), (1.0, 64), (2.0, 128), (0.01, 4)])
def test_a_width_multiplier_widens_every_head(multiplier: float, channels: int) -> None:
    model = build("vit", DIGITS, 10, seed=0, width_multiplier=multiplier)
    assert model.head.in_features == channels
    assert model.block1.attention.heads == 4


# What it computes


def test_tokens_are_patches_row_by_row_with_their_positions_added() -> None:
    tokens = Tokens(4, 3)
    x = torch.arange(12.0).view(1, 3, 2, 2)
    expected = torch.tensor([[0.0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]) + tokens.positions
    assert torch.equal(tokens(x), expected[None])


def test_attention_agrees_with_the_one_of_torch() -> None:
    attention = seeded(0, lambda: Attention(8, 2))
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([attention.query.weight, attention.key.weight, attention.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([attention.query.bias, torch.zeros(8), attention.value.bias]))
        theirs.out_proj.load_state_dict(attention.out.state_dict())
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(attention(x), theirs(x, x, x, need_weights=False)[0])


def test_a_block_agrees_with_a_plain_double_loop() -> None:
    block = seeded(0, lambda: Block(6, 3)).double()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    expected = torch.empty_like(x)
    layer = block.attention
    for example in range(2):
        normed = block.norm1(x[example])
        query, key, value = layer.query(normed), layer.key(normed), layer.value(normed)
        mixed = torch.zeros(4, 6, dtype=torch.float64)
        for head in range(3):
            own = slice(2 * head, 2 * head + 2)
            for token in range(4):
                weights = torch.stack([query[token, own] @ key[other, own] / 2**0.5 for other in range(4)]).exp()
                mixed[token, own] = sum(weights[other] / weights.sum() * value[other, own] for other in range(4))
        inner = x[example] + layer.out(mixed)
        hidden = nn.functional.gelu(block.linear1(block.norm2(inner)))
        expected[example] = inner + block.linear2(hidden)
    torch.testing.assert_close(block(x), expected)


def test_without_positions_the_order_of_the_tokens_is_lost_and_with_them_not() -> None:
    model = tiny()
    x = images()
    with torch.no_grad():
        model.tokens.positions.mul_(20)
        shuffled = x.flip(2).flip(3).unflatten(2, (4, 2)).unflatten(4, (4, 2)).flip(3).flip(5).reshape(x.shape)
        with_positions = model(x), model(shuffled)
        model.tokens.positions.zero_()
        without = model(x), model(shuffled)
    torch.testing.assert_close(*without, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*with_positions, rtol=1e-2, atol=1e-2)


def test_pooling_is_the_mean_over_tokens() -> None:
    assert torch.equal(MeanToken()(torch.tensor([[[1.0, 2], [3, 6]]])), torch.tensor([[2.0, 4]]))


# The same in every mode


@pytest.mark.parametrize("grad", [True, False])
def test_training_and_evaluation_compute_the_same_to_the_bit(grad: bool) -> None:
    model, x = tiny(), images()
    expected = model.train()(x)
    with torch.set_grad_enabled(grad):
        assert torch.equal(model.eval()(x), expected)
        assert torch.equal(model(x), expected)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.equal(functional_call(tiny(seed=1), read_state(model), (x,)), expected)


def test_per_example_gradients_under_vmap_are_those_of_single_examples() -> None:
    model, x = tiny(depth=1), images()
    state = read_state(model)

    def score(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, parameters, (image[None],)).logsumexp(dim=1).sum()

    batched = torch.func.vmap(torch.func.grad(score), in_dims=(None, 0))(state, x)
    for number in range(len(x)):
        single = torch.func.grad(score)(state, x[number])
        for name in state:
            torch.testing.assert_close(batched[name][number], single[name], rtol=1e-4, atol=1e-5)


def test_a_gradient_reaches_every_entry() -> None:
    model = tiny()
    nn.functional.cross_entropy(model(images(8)), torch.arange(8)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # a bias of the keys would come out at rounding, 1e-10
        assert bool((parameter.grad.abs() > 1e-8).float().mean() > 0.95), name


def test_inspection_finds_nothing_to_say() -> None:
    inspection = inspect_model(partial(build, "vit", DIGITS, 10, seed=0), DIGITS, 10)
    assert {finding.level for finding in inspection.findings} == {"ok"}


@pytest.mark.parametrize("granularity", ["weight", "neuron"])
def test_masks_touch_every_tensor(granularity: str) -> None:
    parameters = trainable(tiny())
    mask = build_mask(MaskRecipe(1, 0.5, granularity=granularity), parameters)
    assert mask.keys() == parameters.keys()
    assert all(bool(trained.any()) and not bool(trained.all()) for trained in mask.values())
    assert frozen_share(mask) == pytest.approx(0.5, abs=0.01)


def test_it_learns_what_only_positions_tell() -> None:
    # the class is the quarter of the image that is lit: patches alone are the same in every class
    labels = torch.arange(64) % 4
    x = 0.1 * images(64)
    for number, label in enumerate(labels.tolist()):
        x[number, 0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 1
    model = tiny()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


# Weights from a file


def transformer(classes: int, *, image: int = 16, seed: int = 0) -> nn.Module:
    return seeded(
        seed,
        lambda: torchvision.models.VisionTransformer(
            image_size=image, patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=classes
        ),
    )


def write(path: Path, state: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt"])
def test_all_but_the_head_arrives_in_a_model_with_other_classes(name: str, tmp_path: Path) -> None:
    published, model = transformer(1000, seed=1), transformer(7, seed=2)
    head = model.heads.head.weight.detach().clone()
    path = write(tmp_path / name, published.state_dict())
    assert load_weights(model, path) == ("heads.head.bias", "heads.head.weight")
    theirs = published.state_dict()
    for key, tensor in model.state_dict().items():
        assert key.startswith("heads.") or torch.equal(tensor, theirs[key]), key
    assert torch.equal(model.heads.head.weight, head)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 7)


def test_a_head_that_fits_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", tiny(seed=1).state_dict())
    model = tiny(seed=2)
    assert load_weights(model, path, head="head.*") == ("head.bias", "head.weight")
    assert not torch.equal(model.head.weight, tiny(seed=1).head.weight)
    assert load_weights(model, path, head="") == ()
    assert torch.equal(model.head.weight, tiny(seed=1).head.weight)


def test_a_file_without_a_head_will_do(tmp_path: Path) -> None:
    body = {name: tensor for name, tensor in tiny(seed=1).state_dict().items() if not name.startswith("head.")}
    assert load_weights(tiny(), write(tmp_path / "w.pth", body)) == ("head.bias", "head.weight")


def test_a_norm_taken_out_of_the_model_is_left_out_of_the_file(tmp_path: Path) -> None:
    published = torchvision.models.resnet18(num_classes=5)
    model = build("resnet18", (3, 32, 32), 3, seed=0)
    out = load_weights(model, write(tmp_path / "w.pth", published.state_dict()))
    assert {"fc.weight", "bn1.running_mean", "layer2.0.downsample.1.weight"} <= set(out)
    assert len(out) == 2 + 20 * 5
    assert torch.equal(model.layer4[1].conv2.weight, published.layer4[1].conv2.weight)


def test_values_take_the_type_of_the_model(tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in tiny(seed=1).state_dict().items()}
    model = tiny()
    load_weights(model, write(tmp_path / "w.safetensors", half), head="")
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, half["head.weight"].float())


def spoilt(fault: str) -> dict[str, Tensor]:
    state = dict(transformer(7, seed=1).state_dict())
    if fault == "missing":
        del state["class_token"]
    elif fault == "extra":
        state["more"] = torch.zeros(1)
    elif fault == "size":
        state = dict(transformer(7, image=24).state_dict())
    elif fault == "nan":
        state["class_token"] = state["class_token"].clone()
        state["class_token"][0, 0, 3] = float("nan")
    return state


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "missing in the file class_token"),
        ("extra", "not in the model more"),
        ("size", "other shapes: encoder.pos_embedding (1, 10, 8), in the model (1, 5, 8)"),
        ("nan", "NaN or infinity in class_token"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_written(fault: str, message: str, tmp_path: Path) -> None:
    model = transformer(7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_weights(model, write(tmp_path / "w.pth", spoilt(fault)))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_head_patterns_that_match_nothing_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", tiny().state_dict())
    with pytest.raises(ValueError, match=r"head='fc\.\*' matches none of the model's tensors: patches.weight"):
        load_weights(tiny(), path, head="fc.*")


@pytest.mark.parametrize("kind", ["absent", "text", "text.safetensors", "code"])
def test_what_is_no_file_of_weights_is_refused_in_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / (kind if "." in kind else f"{kind}.pth")
    if kind.startswith("text"):
        path.write_text("no weights at all")
    elif kind == "code":
        torch.save({"w": Command()}, path)
    expected = {"absent": "no file", "code": "needs code to be read"}.get(kind, "cannot be read as")
    with pytest.raises(ValueError, match=expected) as caught:
        load_weights(tiny(), path)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
