"""Decode an image file to a uint8 array: always RGB, at its own size or resized and cropped to a square.

``image_folder`` handles many files and caches the results.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from partitions.arrays import DataError

# Pillow silently clips these to 0..255 when converting to RGB; only the user knows which value is white.
_DEEP_MODES = ("I", "F")


def decode(path: Path, *, image_size: int = 0) -> NDArray[np.uint8]:
    """Return the image at ``path`` as RGB, (3, H, W).

    With ``image_size`` above 0 it does what torchvision's ``Resize`` and ``CenterCrop`` do: the shorter side is scaled
    to ``image_size`` (bilinear, antialiased), then the centre square is cut out. Grey becomes three equal channels.

    Raises ``DataError`` with the path for a file that cannot be decoded or that has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            rgb = None if mode.startswith(_DEEP_MODES) else image.convert("RGB")
    except Exception as error:  # with a broken file, Pillow's parsers raise many errors, from OSError to struct.error
        raise DataError(f"image {path} cannot be decoded: {error}") from error
    if rgb is None:
        raise DataError(f"image {path} has mode {mode!r}; expected at most 8 bits per channel: convert it first")
    if image_size:
        rgb = _centre_square(rgb, image_size)
    return np.ascontiguousarray(np.asarray(rgb, dtype=np.uint8).transpose(2, 0, 1))


def _centre_square(image: Image.Image, side: int) -> Image.Image:
    shorter = min(image.size)
    width, height = (side if length == shorter else int(side * length / shorter) for length in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
