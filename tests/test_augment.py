"""Crops and flips: those of torchvision image by image, drawn anew for every image, whoever trains whom and where."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as torchvision
from toys import federate, same_state

from fedpfn.examples import Examples
from fedpfn.models import build
from fedpfn.params import State, read_state, trainable
from fedpfn.runs.config import ConfigError, RunConfig
from fedpfn.training import (
    Augmenter,
    ClientTraining,
    batch_order,
    image_faults,
    make_augment,
    make_optimizer,
    train,
    train_stacked,
)
from fedpfn.training.augment import AUGMENTATIONS, CropFlip, augment_rows
from fedpfn.training.stacked import Outcome
from strategies.preflight import find_faults


def unchanged(images: Tensor, generator: torch.Generator) -> Tensor:
    return images


def erased(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blacken whole images, a third of them, by a draw from the generator and one from PyTorch's default."""
    drawn = torch.rand(len(images), generator=generator, device=images.device)
    return images * ((drawn + torch.rand(len(images)).to(images.device)) % 1 > 1 / 3).view(-1, 1, 1, 1)


def halved(images: Tensor, generator: torch.Generator) -> Tensor:
    return images[..., ::2]


def as_floats(images: Tensor, generator: torch.Generator) -> Tensor:
    return images / 255


def from_elsewhere(images: Tensor, generator: torch.Generator) -> Tensor:
    return images.roll(random.randrange(10**6), dims=-1) + random.randrange(256)


def broken(images: Tensor, generator: torch.Generator) -> Tensor:
    raise RuntimeError("no such luck")


def features() -> Any:
    drawn = np.random.default_rng(0)
    inputs = drawn.normal(size=(60, 4)).astype(np.float32)
    labels = np.tile(np.arange(3), 20)
    return (inputs, labels), (inputs, labels)


def images_of(count: int, *, shape: tuple[int, ...] = (3, 6, 5), seed: int = 0, device: str = "cpu") -> Tensor:
    drawn = torch.randint(1, 256, (count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return drawn.to(device)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# what a crop and a flip are


def test_a_crop_and_a_flip_by_hand() -> None:
    image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    one_right_and_down = torch.tensor([[0.7, 0.7, 0.9]])
    top_left_flipped = torch.tensor([[0.1, 0.1, 0.1]])
    crop = CropFlip(padding=1)
    assert crop.apply(image, one_right_and_down).tolist() == [[[[4, 0], [0, 0]]]]
    assert crop.apply(image, top_left_flipped).tolist() == [[[[0, 0], [1, 0]]]]
    assert CropFlip(padding=0).apply(image, top_left_flipped).tolist() == [[[[2, 1], [4, 3]]]]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_image_is_torchvisions_by_its_own_draws(name: str) -> None:
    augment, images = AUGMENTATIONS[name], images_of(40)
    draws = augment.draw(40, generator())
    found = augment.apply(images, draws)
    p, (height, width) = augment.padding, images.shape[2:]
    for image, (down, right, flip), one in zip(images, draws.tolist(), found, strict=True):
        padded = torchvision.pad(image, [p])
        expected = torchvision.crop(padded, int(down * (2 * p + 1)), int(right * (2 * p + 1)), height, width)
        expected = torchvision.horizontal_flip(expected) if augment.flip and flip < 0.5 else expected
        assert torch.equal(one, expected)
    assert found.shape == images.shape and found.dtype == images.dtype


@given(st.integers(0, 6), st.integers(0, 2**32))
def test_draws_in_the_middle_leave_images_as_they_are_and_so_does_no_padding_without_flips(p: int, seed: int) -> None:
    images = images_of(3, seed=seed)
    assert torch.equal(CropFlip(padding=p).apply(images, torch.full((3, 3), 0.5)), images)
    assert torch.equal(CropFlip(padding=0, flip=False)(images, generator(seed)), images)


def test_the_same_flips_twice_are_none_and_the_images_given_stay_as_they_are() -> None:
    images, flip = images_of(64), AUGMENTATIONS["flip"]
    before = images.clone()
    flipped = flip(images, generator(3))
    assert not torch.equal(flipped, images) and torch.equal(flip(flipped, generator(3)), images)
    AUGMENTATIONS["crop-flip"](images, generator(3))
    assert torch.equal(images, before)


def test_every_offset_is_drawn_alike_and_half_of_the_images_are_flipped() -> None:
    """The position of a single white pixel shows the offset; chi-squared of 81 cells at the 0.999999 quantile."""
    count, p = 81_000, 4
    images = torch.zeros(count, 1, 9, 9, dtype=torch.uint8)
    images[:, 0, 4, 4] = 255
    seen = CropFlip(p, flip=False)(images, generator(1)).flatten(1).argmax(dim=1)
    counts = torch.bincount(seen, minlength=81).double()
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 153
    images = torch.tensor([0, 255], dtype=torch.uint8).expand(10_000, 1, 1, 2).contiguous()
    flipped = AUGMENTATIONS["flip"](images, generator(2))[:, 0, 0, 0] == 255
    assert abs(float(flipped.double().mean()) - 0.5) < 5 * 0.5 / 100


def test_the_largest_draw_is_the_last_window() -> None:
    top = torch.full((1, 3), float(np.nextafter(np.float32(1), np.float32(0))))
    for p in range(1, 64):
        assert CropFlip(p).apply(images_of(1), top).shape == (1, 3, 6, 5)


# whose draws they are


def test_draws_are_a_function_of_seed_path_and_step() -> None:
    images = images_of(32)
    crop = AUGMENTATIONS["crop-flip"]
    one = Augmenter(crop, 0, ("augment", 1, 2))
    assert torch.equal(one(5, images), one(5, images))
    others = [one(6, images), replace(one, seed=1)(5, images), replace(one, path=("augment", 2, 2))(5, images)]
    others.append(replace(one, path=("augment", 1, 3))(5, images))
    assert not any(torch.equal(one(5, images), other) for other in others)


def test_a_function_of_the_users_own_may_draw_from_pytorchs_default_which_goes_on_as_if_it_had_not() -> None:
    own = Augmenter(erased, 0, ("augment", 1, 2))
    images = images_of(40)
    torch.manual_seed(1)
    first = own(0, images)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1)) and torch.equal(own(0, images), first)
    assert 0 < int((first.flatten(1).sum(dim=1) == 0).sum()) < 40


@pytest.mark.parametrize("augment", [*AUGMENTATIONS.values(), erased], ids=[*AUGMENTATIONS, "own"])
def test_rows_of_a_stack_are_augmented_as_alone(augment: Any) -> None:
    images = images_of(5 * 8).view(5, 8, 3, 6, 5)
    augmenters = [Augmenter(augment, 0, ("augment", 1, client)) for client in range(3)] + [None]
    found = augment_rows(augmenters, images.clone(), [4, 0, 7, 1], [8, 5, 0, 8])
    for row, (step, size) in enumerate([(4, 8), (0, 5)]):
        one = augmenters[row]
        assert one is not None and torch.equal(found[row, :size], one(step, images[row, :size]))
        assert torch.equal(found[row, size:], images[row, size:])
    assert torch.equal(found[2:], images[2:])


# in training


def client(
    size: int, steps: tuple[int, ...], augment: Any, *, client: int = 0, lr: Callable[[int], float] | None = None
) -> ClientTraining:
    examples = Examples(
        images_of(size, shape=(1, 8, 8), seed=client),
        torch.from_numpy(np.random.default_rng(client).integers(0, 3, size)),
        mean=(0.4,),
        std=(0.3,),
    )
    augmenter = None if augment is None else Augmenter(augment, 0, ("augment", 1, client))
    return ClientTraining(examples, batch_order(size, 8, np.random.default_rng(client)), steps, lr, augmenter)


def alone(client: ClientTraining, model_seed: int = 0) -> State:
    model = build("mlp", (1, 8, 8), 3, seed=model_seed, width=10)
    train(
        model, client.examples, client.batches, [(None, steps) for steps in client.steps],
        optimizer=make_optimizer("sgd", lr=0.05, momentum=0.9), augment=client.augment, lr_factor=client.lr_factor,
    )  # fmt: skip
    return read_state(model)


def test_images_are_augmented_before_they_are_normalised_and_otherwise_nothing_changes() -> None:
    plain = client(30, (6,), None)
    decoded = replace(client(30, (6,), None), examples=plain.examples.decoded())
    assert same_state(alone(client(30, (6,), unchanged)), alone(decoded))
    assert same_state(alone(client(30, (6,), CropFlip(0, flip=False))), alone(plain))
    assert not same_state(alone(client(30, (6,), AUGMENTATIONS["crop-flip"])), alone(client(30, (6,), None)))


@pytest.mark.parametrize("augment", [AUGMENTATIONS["crop-flip"], erased], ids=["crop-flip", "own"])
def test_a_client_in_a_stack_sees_the_images_that_it_sees_alone(augment: Any) -> None:
    """In two phases, in which the clients have other numbers of steps, so that the stack's steps are not theirs."""

    def clients() -> list[ClientTraining]:
        return [
            client(30, (3, 4), augment, client=0),
            client(7, (6, 1), augment, client=1),
            client(9, (1, 5), None, client=2),
        ]

    model = build("mlp", (1, 8, 8), 3, seed=0, width=10)
    outcomes = train_stacked(
        model, clients(), [None, None], optimizer=make_optimizer("sgd", lr=0.05, momentum=0.9), batch_size=8, rows=4
    )
    for outcome, one in zip(outcomes, clients(), strict=True):
        assert isinstance(outcome, Outcome)
        expected = alone(one)
        for name in trainable(model):
            torch.testing.assert_close(outcome.state[name], expected[name], rtol=1e-4, atol=1e-6)


def test_what_is_not_an_image_is_refused() -> None:
    crop = Augmenter(AUGMENTATIONS["crop"], 0, ())
    with pytest.raises(ValueError, match=r"needs images, uint8 \(N, C, H, W\); got torch.float32 \(2, 4\)"):
        crop(0, torch.zeros(2, 4))
    with pytest.raises(
        ValueError, match=r"must keep the images' shape and dtype, .*\(2, 3, 6, 5\); got .*\(2, 3, 6, 3\)"
    ):
        Augmenter(halved, 0, ())(0, images_of(2))


# in a run

BASE: dict[str, Any] = {
    "rounds": 3, "federation.clients": 4, "model.width": 8, "model.hidden": 1, "train.batch-size": 64,
    "barrier.every": 0, "device": "cpu", "train.augment": "crop-flip", "output.checkpoint-every": 1,
}  # fmt: skip


run: Callable[..., Any] = partial(federate, BASE)


@pytest.mark.parametrize("augment", ["crop-flip", f"{__name__}:erased"])
def test_bits_depend_neither_on_the_number_of_nodes_nor_on_a_resumption(tmp_path: Path, augment: str) -> None:
    runs = [run(tmp_path / str(nodes), nodes=nodes, train__augment=augment) for nodes in (1, 2, 4)]
    run(tmp_path / "parted", rounds=2, train__augment=augment)
    runs.append(run(tmp_path / "parted", train__augment=augment, output__resume=True))
    runs += [run(tmp_path / f"stacked{n}", nodes=n, train__augment=augment, train__stack=2) for n in (1, 2)]
    plain = run(tmp_path / "plain", train__augment="none")
    digests = [one.summary["weights_sha256"] for one in [*runs, plain]]
    assert len(set(digests[:4])) == 1 and digests[4] == digests[5] and len(set(digests)) == 3
    for one, other in zip(runs[0].rounds, runs[4].rounds, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crop-flop", "did you mean 'crop-flip'"),
        ("no_such_module:x", "no module named 'no_such_module'"),
        ("math:pi", "is of type float, not a function"),
        (f"{__name__}:halved", "must keep the images' shape and dtype"),
        (f"{__name__}:as_floats", "must keep the images' shape and dtype"),
        (f"{__name__}:from_elsewhere", "does not draw from its generator alone"),
        (f"{__name__}:broken", "fails on two images (1, 8, 8): RuntimeError: no such luck"),
    ],
)
def test_what_cannot_augment_is_a_fault_before_anything_starts(name: str, reason: str) -> None:
    reading = RunConfig.read({"train.augment": name})
    faults = [*reading.faults, *find_faults(reading.config, unknown=reading.unknown)]
    assert len(faults) == 1 and faults[0].startswith("train.augment") and reason in faults[0]


def test_data_that_are_not_images_are_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.augment=crop-flip is for images, and the data are features"):
        run(tmp_path / "run", data__name=f"{__name__}:features")
    assert image_faults("crop", "tokens", (400,)) and not image_faults("none", "tokens", (400,))
    assert make_augment("none") is None and not image_faults(f"{__name__}:erased", "images", (3, 8, 8))
