"""pfl-research as in its image classification benchmark: FederatedAveraging on the SimulatedBackend.

``python`` runs it in one process, ``torchrun`` in several, which share the users of a round. Each user is a ``Dataset``
in memory, the fastest kind according to its documentation; batches are slices in the order of the data, which pfl does
not shuffle.
"""

import os
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from experiments.bench.peers.job import Stopwatch, read


class Classifier(nn.Module):
    """The workload's model with the two methods that pfl calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return cast(Tensor, self.network(inputs))

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.train()
        return nn.functional.cross_entropy(self(inputs), labels)

    def metrics(self, inputs: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return no metrics: the accuracy is measured once, after the last round."""
        return {}


class Laps(TrainingProcessCallback):  # type: ignore[misc]
    """End a round of the stopwatch after each central iteration."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch

    def on_train_begin(self, *, model: Any) -> Any:
        self.stopwatch.start()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        self.stopwatch.lap()
        return False, Metrics()


def main(folder: Path) -> None:
    """Run the job in ``folder``."""
    job, data = read(folder)
    # all processes must draw the same users
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    users = {user: (data.inputs[part], data.labels[part]) for user, part in enumerate(data.parts)}
    module = Classifier(job.build())
    model = PyTorchModel(
        model=module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    stopwatch = Stopwatch()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=job.rounds,
            evaluation_frequency=job.rounds,
            train_cohort_size=job.a_round,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(
            training_data=FederatedDataset.from_slices(users, get_user_sampler("random", list(users))),
            val_data=None,
            postprocessors=[WeightByDatapoints()],
        ),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_learning_rate=job.lr, local_num_epochs=job.epochs, local_batch_size=job.batch
        ),
        callbacks=[Laps(stopwatch)],
    )
    if os.environ.get("RANK", "0") == "0":
        stopwatch.write(folder, module, data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
