"""Write a mask as text, one bit per entry, if no recipe describes it because it was chosen from data."""

import base64
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def mask_text(mask: Mapping[str, NDArray[np.bool_]]) -> str:
    """Return a mask as text, one bit per entry before compression; ``bits_of`` reads it."""
    bits = np.packbits(np.concatenate([part.reshape(-1) for part in mask.values()]))
    return base64.b64encode(zlib.compress(bits.tobytes(), 1)).decode()


def bits_of(text: str, size: int) -> NDArray[np.bool_]:
    """Return the entries of a mask that ``mask_text`` wrote.

    Parameters
    ----------
    text
        The mask as text.
    size
        Number of entries of all its arrays together.

    Returns
    -------
    (size,) bool
        The entries, array after array.

    Raises
    ------
    ValueError
        For any other text.
    """
    num_bytes = -(-size // 8)
    try:
        reader = zlib.decompressobj()
        # read no more than expected, whatever the text claims
        data = reader.decompress(base64.b64decode(text, validate=True), num_bytes + 1)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"the text is not a mask: {error}") from error
    if len(data) != num_bytes:
        raise ValueError(f"the text is not a mask of {size} entries")
    return np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=size).astype(bool)
