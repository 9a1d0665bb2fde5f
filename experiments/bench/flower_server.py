"""The server of the two Flower contestants: Flower's own FedAvg, evaluated on the server, with one node per client.

It follows Flower's PyTorch quickstart, but without evaluation by clients, which the other contestants do not do either.
"""

from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from experiments.bench.contest import run_config, stopwatch
from fedpfn.examples import Examples
from strategies.assembly import build_model, load_data

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for the configured rounds; times are written to ``output.dir``."""
    torch.set_num_threads(1)
    config = run_config()
    dataset = load_data(config).dataset
    model = build_model(config, dataset)
    test = Examples.from_arrays(dataset.test.inputs, dataset.test.labels, mean=dataset.mean, std=dataset.std)
    federation = config.federation
    strategy = FedAvg(
        fraction_train=federation.fraction,
        fraction_evaluate=0.0,
        min_train_nodes=1,
        min_available_nodes=federation.clients,
    )
    strategy.start(
        grid,
        ArrayRecord(model.state_dict()),
        num_rounds=config.rounds,
        train_config=ConfigRecord({"lr": config.train.lr}),
        evaluate_fn=stopwatch(Path(config.output.dir), model, test),
    )
