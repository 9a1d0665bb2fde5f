"""fluke as in the tutorials on its Python interface: a custom data set, a custom model, FedAVG; one process."""

import sys
from pathlib import Path

from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.data import DataSplitter
from fluke.data.datasets import DataContainer
from fluke.evaluation import ClassificationEval
from fluke.utils import FederationObserver

from experiments.bench.peers.job import CLASSES, Stopwatch, read


class Laps(FederationObserver):  # type: ignore[misc]
    """End a round of the stopwatch when fluke ends one."""

    def __init__(self) -> None:
        self.stopwatch = Stopwatch()

    def end_round(self, round: int) -> None:
        self.stopwatch.lap()


def main(folder: Path) -> None:
    """Run the job in ``folder``."""
    job, data = read(folder)
    environment = FlukeENV()
    environment.set_seed(0)
    environment.set_device(job.device)
    environment.set_evaluator(ClassificationEval(eval_every=job.rounds + 1, n_classes=CLASSES))
    environment.set_eval_cfg(pre_fit=False, post_fit=False, server=False, locals=False)
    container = DataContainer(data.inputs, data.labels, data.test_inputs, data.test_labels, CLASSES)
    client = DDict(
        batch_size=job.batch,
        local_epochs=job.epochs,
        loss="CrossEntropyLoss",
        optimizer=DDict(lr=job.lr),
        scheduler=DDict(gamma=1, step_size=1),
    )
    algorithm = FedAVG(
        n_clients=job.clients,
        data_splitter=DataSplitter(dataset=container, distribution="iid"),
        hyper_params=DDict(client=client, server=DDict(weighted=True), model=job.build()),
    )
    laps = Laps()
    algorithm.set_callbacks(laps)
    laps.stopwatch.start()
    algorithm.run(job.rounds, job.fraction)
    laps.stopwatch.write(folder, algorithm.server.model, data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
