"""A GPU's memory that ran out: what the failed client held is given back, so that the next one finds it free."""

import traceback

import torch

from fedpfn.devices import release_memory


def give_back(error: BaseException) -> None:
    """Let go of what a training held that ran out of memory; what came out of it for other reasons is left as it is.

    The error stays, with the lines of its traceback: not what the variables of its functions held.
    """
    if not isinstance(error, torch.OutOfMemoryError):
        return
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    release_memory()
