"""quickstart: the ServerApp. Of fedpfn's there are the strategy and, for many simulated clients, the grid."""

import json
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedMedian, FedTrimmedAvg, Krum, Strategy

from quickstart.task import Net
from strategies import CohortGrid, FedPFN, FedPNU, SharedMask

app = ServerApp()

STRATEGIES: dict[str, Strategy] = {
    "fedpfn": FedPFN(mask_ratio=0.5),
    "fedpnu": FedPNU(mask_ratio=0.5),
    "fedadam": SharedMask(FedAdam(eta=0.01), mask_ratio=0.5),
    "fedavgm": SharedMask(FedAvgM(server_momentum=0.9), mask_ratio=0.5),
    "fedmedian": SharedMask(FedMedian(), mask_ratio=0.5),
    "fedtrimmedavg": SharedMask(FedTrimmedAvg(beta=0.2), mask_ratio=0.5),
    "krum": SharedMask(Krum(), mask_ratio=0.5),
}


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    torch.manual_seed(0)
    arrays = ArrayRecord(Net().state_dict())
    if config["clients"]:
        grid = CohortGrid(grid, sizes=config["clients"])

    def save(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        torch.save(arrays.to_torch_state_dict(), Path(config["out"], f"round-{server_round}.pt"))
        return MetricRecord({"round": server_round})

    result = STRATEGIES[config["strategy"]].start(
        grid=grid,
        initial_arrays=arrays,
        train_config=ConfigRecord({"lr": config["learning-rate"], "local-epochs": config["local-epochs"]}),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=save,
    )
    metrics = {number: dict(record) for number, record in result.evaluate_metrics_clientapp.items()}
    Path(config["out"], "result.json").write_text(json.dumps(metrics))
