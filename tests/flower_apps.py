"""An ordinary Flower app, as in Flower's quickstart: own model, own data, own training loop, none of our config."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from clients import freeze
from experiments.runtime.in_process import InProcessGrid
from fedpfn.params import State
from fedpfn.seeding import torch_seed
from strategies.records import from_record

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
EPOCHS, BATCHES = 2, 3


def adamw(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def net(*, norm: bool = False) -> nn.Module:
    with torch_seed(0, "net"):
        return nn.Sequential(
            OrderedDict(
                first=nn.Linear(6, 8), **({"norm": nn.BatchNorm1d(8)} if norm else {}), act=nn.ReLU(),
                last=nn.Linear(8, 3),
            )
        )  # fmt: skip


def batches(client: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(100 + client)
    labels = [torch.randint(0, 3, (8,), generator=generator) for _ in range(BATCHES)]
    return [(torch.randn(8, 6, generator=generator) + 2 * label[:, None], label) for label in labels]


def client_app(
    *,
    mods: Sequence[Mod] = (),
    optimizer: MakeOptimizer = adamw,
    frozen: bool = True,
    norm: bool = False,
    seen: list[Any] | None = None,
) -> ClientApp:
    """Return a ClientApp; ``frozen`` is whether it calls ``freeze``, ``seen`` gets each call's (client, context)."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        if seen is not None:
            seen.append((client, dict(context.state.config_records)))
        model = net(norm=norm)
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        stepper = optimizer(model.parameters())
        if frozen:
            freeze(model, stepper, message, steps=EPOCHS * BATCHES)
        loss = torch.zeros(())
        for _ in range(EPOCHS):
            for inputs, labels in batches(client):
                stepper.zero_grad()
                loss = nn.functional.cross_entropy(model(inputs), labels)
                loss.backward()
                stepper.step()
        metrics = MetricRecord({"train_loss": loss.item(), "num-examples": 8 * BATCHES})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        model = net(norm=norm)
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        inputs, labels = batches(int(context.node_config["partition-id"]))[0]
        loss = nn.functional.cross_entropy(model.eval()(inputs), labels).item()
        metrics = MetricRecord({"eval_loss": loss, "num-examples": 8})
        return Message(content=RecordDict({"metrics": metrics}), reply_to=message)

    return app


def start(
    strategy: Strategy, app: ClientApp, *, nodes: int = 5, rounds: int = 1, norm: bool = False, grid: Any = None
) -> State:
    """Run the app under ``strategy`` and return the global state."""
    grid = grid or InProcessGrid(app, {}, nodes=nodes)
    result = strategy.start(grid, ArrayRecord(net(norm=norm).state_dict()), num_rounds=rounds)
    return from_record(result.arrays)


def array(values: Any) -> Array:
    return Array(torch.tensor(values).numpy())
