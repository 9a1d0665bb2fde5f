"""SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378, option II), client's half: drift corrected by control variates.

The client keeps c_i, the server sends c. A step's gradient is g - c_i + c, and after K steps of learning rate eta

    c_i+ = c_i - c + (w_t - w) / (K eta),

the mean gradient along its path. With momentum, K eta is replaced by how far a constant gradient would have moved an
entry (``Trained.reach``); otherwise c_i+ would be 1 / (1 - beta) times too large. Under a mask, only steps that trained
the entry count, and if there were none c_i stays: the formula would mistake the frozen entry's w_t - w = 0 for a
gradient of 0. The client sends c_i+ - c_i. The server's half is ``strategies.scaffold``.
"""

import torch

from fedpfn.training import Correction, End, Finished, LocalAlgorithm, Start


class Scaffold(LocalAlgorithm):
    """SCAFFOLD on the client; clients keep one tensor per parameter from round to round."""

    needs_sgd = True

    def start(self, start: Start) -> Correction:
        """Correct every gradient by c - c_i; both start at 0."""
        return Correction(
            offset={
                name: start.shared[name] - start.own[name] if name in start.own else start.shared[name]
                for name in start.before
                if name in start.shared
            }
        )

    @torch.no_grad()
    def finish(self, start: Start, end: End) -> Finished:
        """Return c_i+ - c_i for the server and c_i+ for the client."""
        changes, own = {}, {}
        for name, parameter in end.parameters.items():
            zero = torch.zeros_like(parameter)
            mine, everyones = start.own.get(name, zero), start.shared.get(name, zero)
            reach = torch.as_tensor(end.reach(name), dtype=parameter.dtype, device=parameter.device)
            along = (start.before[name] - parameter) / reach - everyones
            changes[name] = torch.where(reach > 0, along, 0.0).to(parameter.dtype)
            own[name] = mine + changes[name]
        return Finished(shared=changes, own=own)
