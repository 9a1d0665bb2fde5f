"""The sums of a round's workers added up: one record for all clients that are in them."""

import numpy as np
import torch
from flwr.app import ArrayRecord

from strategies.records import TensorArray, from_record


class Totals:
    """A sum of sums, which shares their memory where there is one alone. Each was checked (``reply_checks``)."""

    def __init__(self) -> None:
        self.record = ArrayRecord()
        self._own = False

    def add(self, sums: ArrayRecord) -> None:
        """Add a worker's sum, of the same arrays as those before."""
        if not self.record:
            # read where it lies, in memory that is not to be written to
            self.record.update({name: TensorArray(total) for name, total in from_record(sums).items()})
            return
        others = from_record(sums)
        for name, total in from_record(self.record).items():
            out = total.numpy() if self._own else None
            self.record[name] = TensorArray(torch.from_numpy(np.add(total.numpy(), others[name].numpy(), out=out)))
        self._own = True
