"""The total of the sums from a round's workers: one record for all of their clients."""

import numpy as np
import torch
from flwr.app import ArrayRecord

from strategies.records import TensorArray, from_record


class Totals:
    """The total of sums that were already checked (``reply_checks``); with only one, it shares that sum's memory."""

    def __init__(self) -> None:
        self.record = ArrayRecord()
        self._own = False

    def add(self, sums: ArrayRecord) -> None:
        """Add a worker's sum, which has the same arrays as those before."""
        if not self.record:
            # read in place, from memory that must not be written to
            self.record.update({name: TensorArray(total) for name, total in from_record(sums).items()})
            return
        others = from_record(sums)
        for name, total in from_record(self.record).items():
            out = total.numpy() if self._own else None
            self.record[name] = TensorArray(torch.from_numpy(np.add(total.numpy(), others[name].numpy(), out=out)))
        self._own = True
