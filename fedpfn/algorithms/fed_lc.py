"""FedLC (Zhang et al. 2022, arXiv 2209.00189): logits calibrated by a client's class counts.

A client's loss is the cross-entropy of z_c - tau n_c^(-1/4), with n_c its number of examples of class c: the fewer
there are, the larger the margin by which their logit has to win. A class that the client does not have gets n_c = 1
here, the largest finite calibration. With tau = 0 this is FedAvg.
"""

import torch
from torch import Tensor

from fedpfn.training import UNCORRECTED, Correction, LocalAlgorithm, Start


class FedLC(LocalAlgorithm):
    """Calibrated logits on the client; the server is FedAvg's. Needs class labels.

    Parameters
    ----------
    tau
        Strength of the calibration, 0 or more.
    """

    needs_classes = True

    def __init__(self, *, tau: float = 0.1) -> None:
        if tau < 0:
            raise ValueError(f"tau must be 0 or more, got {tau}")
        self.tau = tau
        self.margins = torch.zeros(0)

    def start(self, start: Start) -> Correction:
        """Count the client's examples of each class. Raises ``ValueError`` if labels are not classes."""
        if start.labels.is_floating_point() or start.labels.dim() != 1:
            raise ValueError("FedLC needs class labels; these labels are not classes")
        counts = torch.bincount(start.labels, minlength=start.num_classes).clamp(min=1)
        self.margins = self.tau * counts.float().pow(-0.25)
        return UNCORRECTED

    def loss(self, start: Start, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the calibrated logits."""
        return start.loss(start.model(inputs) - self.margins, labels)
