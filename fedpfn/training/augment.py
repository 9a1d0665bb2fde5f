"""Augmentation of the images of a local batch: random crops and flips, drawn anew for every image at every step.

An augmentation is a function ``(images, generator) -> images`` on a batch as it lies in memory, uint8 (N, C, H, W) on
its device, before it is normalised. A crop pads by p black pixels on each side and cuts out a window of the old size at
an offset drawn from {0, ..., 2p}^2; a flip mirrors left and right with probability 1/2. For each image this is
torchvision's ``RandomCrop(size, padding=p)`` and ``RandomHorizontalFlip()`` (He et al., arXiv 1512.03385, section 4.2),
without a loop over images.

The draws of a step are a function of (seed, round, client, step) only, so that they are the same on any number of
nodes, in a stack of clients, and after a resumption.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedpfn import imports
from fedpfn.seeding import Path, derive, torch_seed

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class CropFlip:
    """Random crops after padding with ``padding`` black pixels (no crops if 0), and random horizontal flips.

    ``draw`` and ``apply`` are separate so that several clients' draws can be applied at once.
    """

    padding: int = 4
    flip: bool = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return new images: (N, C, H, W) in, (N, C, H, W) out."""
        return self.apply(images, self.draw(len(images), generator))

    @staticmethod
    def draw(count: int, generator: torch.Generator) -> Tensor:
        """Return ``count`` rows of three numbers, uniform in [0, 1): for the offset down and right, and the flip."""
        return torch.rand(count, 3, generator=generator, device=generator.device)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Crop and flip each image by its row of ``draws``; three values of 0.5 leave it unchanged."""
        if self.padding:
            height, width = images.shape[2:]
            offsets = (draws[:, :2] * (2 * self.padding + 1)).long().clamp_(max=2 * self.padding)
            # a view of all windows of each padded image, (N, C, 2p + 1, 2p + 1, H, W); each image takes one of them
            padded = functional.pad(images, (self.padding,) * 4)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            images = windows[torch.arange(len(images), device=images.device), :, offsets[:, 0], offsets[:, 1]]
        if self.flip:
            images = torch.where(draws[:, 2].view(-1, 1, 1, 1) < 0.5, images.flip(-1), images)
        return images


AUGMENTATIONS: dict[str, CropFlip] = {
    "crop-flip": CropFlip(),
    "crop": CropFlip(flip=False),
    "flip": CropFlip(padding=0),
}


def make_augment(name: str) -> Augment | None:
    """Return the augmentation called ``name``.

    Parameters
    ----------
    name
        ``crop-flip``, ``crop``, ``flip``, ``none``, or an import string of a user's own function. The function may draw
        from the generator that it is given or from PyTorch's default one, as torchvision's transforms do: both are
        seeded for it.

    Returns
    -------
    Augment or None
        A function (images, generator) -> images, or None for ``none``.

    Raises
    ------
    ValueError
        For an import string that does not load, or that names something that cannot be called.
    """
    if imports.is_reference(name):
        own = imports.load(name)
        if not callable(own):
            raise ValueError(f"{name!r} is of type {type(own).__name__}, not a function (images, generator) -> images")
        return own  # type: ignore[no-any-return]
    return None if name == "none" else AUGMENTATIONS[name]


@dataclass(frozen=True)
class Augmenter:
    """One client's augmentation in one round: a function (step, images) -> images.

    Parameters
    ----------
    augment
        The augmentation that is applied to the images of each step.
    seed
        Seed of the run.
    path
        Path below ``seed`` of the client's draws in this round (``seeding.derive``); each step has its own stream below
        it.
    """

    augment: Augment
    seed: int
    path: tuple[Path, ...]

    def __call__(self, step: int, images: Tensor) -> Tensor:
        """Augment the images (N, C, H, W) of a step.

        Raises ``ValueError`` for inputs that are not images, and for a function that returns other shapes or dtypes.
        """
        require_images(images)
        if isinstance(self.augment, CropFlip):
            return self.augment(images, self.generator(step, images.device))
        with torch_seed(self.seed, *self.path, step):
            augmented = self.augment(images, self.generator(step, images.device))
        if not isinstance(augmented, Tensor) or (augmented.shape, augmented.dtype) != (images.shape, images.dtype):
            raise ValueError(
                f"an augmentation must keep the images' shape and dtype, {_about(images)}; got {_about(augmented)}"
            )
        return augmented

    def generator(self, step: int, device: torch.device) -> torch.Generator:
        """Return a new generator for the draws of a step."""
        return torch.Generator(device).manual_seed(derive(self.seed, *self.path, step))


def augment_rows(
    augmenters: Sequence[Augmenter | None], images: Tensor, steps: Sequence[int], sizes: Sequence[int]
) -> Tensor:
    """Augment the batches of a stack of clients, ``images`` (rows, batch, C, H, W), as for each client alone.

    Row r is at the client's own step ``steps[r]`` with ``sizes[r]`` images; padding is left unchanged, and so are rows
    of size 0, rows without an augmenter, and further rows. Crops and flips are applied to all rows at once.
    """
    require_images(images[0])
    busy = [(row, one) for row, one in enumerate(augmenters) if one is not None and sizes[row]]
    first = busy[0][1].augment if busy else None
    if not isinstance(first, CropFlip) or any(one.augment != first for _, one in busy):
        images = images.clone()
        for row, one in busy:
            images[row, : sizes[row]] = one(steps[row], images[row, : sizes[row]])
        return images
    draws = torch.full((*images.shape[:2], 3), 0.5, device=images.device)
    for row, one in busy:
        draws[row, : sizes[row]] = first.draw(sizes[row], one.generator(steps[row], images.device))
    return first.apply(images.flatten(0, 1), draws.flatten(0, 1)).view(images.shape)


def require_images(inputs: Tensor) -> None:
    """Raise ``ValueError`` if a batch does not consist of images, uint8 (N, C, H, W)."""
    if inputs.dtype != torch.uint8 or inputs.dim() != 4:
        raise ValueError(f"augmentation needs images, uint8 (N, C, H, W); got {_about(inputs)}")


def image_faults(name: str, kind: str, input_shape: tuple[int, ...] | None) -> list[str]:
    """Return why the augmentation ``name`` cannot be used on data of a ``kind``.

    A user's own function is called twice on two images: the same draws must give the same images.

    Parameters
    ----------
    name
        As for ``make_augment``.
    kind
        Kind of the data; only ``images`` can be augmented.
    input_shape
        Shape of an image, (C, H, W); None if unknown, and then a user's own function is not tried.

    Returns
    -------
    list of str
        One line per fault; empty if there is none.
    """
    if name != "none" and kind != "images":
        return [f"train.augment={name} is for images, and the data are {kind}; set train.augment=none"]
    try:
        augment = make_augment(name)
    except ValueError as error:
        return [f"train.augment: {error}"]
    if augment is None or input_shape is None or isinstance(augment, CropFlip):
        return []
    with torch_seed(0, "augment-trial"):
        images = torch.randint(0, 256, (2, *input_shape), dtype=torch.uint8)
    try:
        first, second = (Augmenter(augment, 0, ("augment-trial",))(0, images.clone()) for _ in range(2))
    except Exception as error:  # a user's function may raise anything
        return [f"train.augment: {name!r} fails on two images {input_shape}: {type(error).__name__}: {error}"]
    if not torch.equal(first, second):
        return [
            f"train.augment: {name!r} does not draw from its generator alone: the same call twice gave different images"
        ]
    return []


def _about(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
