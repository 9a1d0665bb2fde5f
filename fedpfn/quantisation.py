"""A client's update in fewer bits: 8-bit integers by stochastic rounding, or float16, with error feedback.

The change u = x - w is quantised, not the weights: the quantisation step is then a small part of the change, whatever
the size of the weights. Entries are cut into blocks of B neighbours, each with its own scale:

    s = max |u| / 127,    q = floor(u / s + r),  r ~ U[0, 1),    Q(u) = s q.

For each entry E[Q(u)] = u and |Q(u) - u| < s (QSGD, Alistarh et al. 2017): errors of many clients average out. float16
rounds to nearest instead, by up to 2^-11 of an entry.

With error feedback (Seide et al. 2014; EF-SGD, Karimireddy et al. 2019) a client adds the error of its last update to
the next one, e <- (u + e) - Q(u + e), so that no part of its updates is lost permanently: what it has sent and the
error that it keeps add up to what it trained. The server receives w + Q(u + e) in the arrays' own dtype, and e is the
difference, rounding included.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PRECISIONS: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}

# entries that share a scale of 4 bytes, an overhead of 1.6 %: the error is 1.2 to 1.5 % of the norm of an MLP's or a
# CNN's update; with one scale per tensor it is 2.8 to 3.3 %, with blocks of 64 (overhead 6 %) 1.0 to 1.1 %
BLOCK = 256
# int8 without -128
LEVELS = 127


class Code(NamedTuple):
    """An update as it is sent.

    Attributes
    ----------
    values
        The entries in few bits, (n,).
    scales
        The scales of their blocks, float32; None for float16.
    """

    values: Tensor
    scales: Tensor | None


def is_quantised(dtype: torch.dtype, precision: str) -> bool:
    """Return whether arrays of a dtype are sent in fewer bits.

    Parameters
    ----------
    dtype
        The arrays' own dtype.
    precision
        ``float32`` for arrays in full, ``float16`` or ``int8``.

    Returns
    -------
    bool
        True for floating-point arrays that are wider than the precision.

    Examples
    --------
    >>> is_quantised(torch.float32, "int8"), is_quantised(torch.int64, "int8"), is_quantised(torch.float16, "float16")
    (True, False, False)
    """
    return precision != "float32" and dtype.is_floating_point and dtype.itemsize > PRECISIONS[precision].itemsize


def num_scales(entries: int, precision: str) -> int:
    """Return the number of scales for a number of entries.

    Parameters
    ----------
    entries
        Number of entries.
    precision
        A key of ``PRECISIONS``.

    Returns
    -------
    int
        One per block for ``int8``, counting the last, partial block; otherwise 0.
    """
    return -(-entries // BLOCK) if precision == "int8" else 0


def quantise(update: Tensor, precision: str, generator: np.random.Generator) -> Code:
    """Return an update's code.

    Parameters
    ----------
    update
        u, of any shape, on the CPU.
    precision
        ``int8`` or ``float16``.
    generator
        Draws r, one number per entry; float16 draws none.

    Returns
    -------
    Code
        int8 values in [-127, 127] with float32 scales, or float16 values. NaN and infinity make the scale of their
        block NaN or infinite, or remain in float16, so that the decoder sees them.

    Examples
    --------
    >>> code = quantise(torch.tensor([1.0, -0.5, 0.0]), "int8", np.random.default_rng(0))
    >>> code.values.tolist(), round(code.scales.item() * 127, 6)
    ([127, -63, 0], 1.0)
    """
    flat = update.detach().reshape(-1)
    if precision == "float16":
        return Code(flat.to(torch.float16), None)
    blocks = _blocks(flat.to(torch.promote_types(flat.dtype, torch.float32)))
    scales = (blocks.abs().amax(1) / LEVELS).float() if len(blocks) else blocks.new_zeros(0).float()
    steps = blocks / scales.to(blocks.dtype)[:, None]
    draws = torch.from_numpy(generator.random(flat.numel(), dtype=np.float32))
    # 0 / 0 in a block of zeros
    values = steps.add_(_blocks(draws)).floor_().nan_to_num_(0.0).clamp_(-LEVELS, LEVELS).to(torch.int8)
    return Code(values.reshape(-1)[: flat.numel()], scales)


def dequantise(code: Code) -> Tensor:
    """Return Q(u), flat, in float32. Raises ``ValueError`` if the number of scales does not fit the values."""
    values, scales = code
    if scales is None:
        return values.float()
    if scales.shape != (num_scales(values.numel(), "int8"),):
        raise ValueError(f"{values.numel()} values in blocks of {BLOCK} do not go with scales {tuple(scales.shape)}")
    return (_blocks(values).float() * scales[:, None]).reshape(-1)[: values.numel()]


def _blocks(flat: Tensor) -> Tensor:
    """Return entries as rows, one per block, the last padded with zeros."""
    missing = -flat.numel() % BLOCK
    return (torch.nn.functional.pad(flat, (0, missing)) if missing else flat).view(-1, BLOCK)
