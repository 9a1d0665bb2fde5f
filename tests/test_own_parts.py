"""A part of one's own is one new file and a setting on the command line: each family, through the real apps."""

import logging
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from rich.console import Console
from toys import digest

from experiments.run import prepare, unused_settings
from experiments.run_words import read_run_config
from experiments.runtime.in_process import InProcessGrid, run_in_process
from experiments.show import summary_table
from experiments.sweep.cells import expand
from experiments.sweep.file import read_sweep
from fedpfn import imports
from fedpfn.runs import Run, read_run
from fedpfn.runs.config import ConfigError, RunConfig
from strategies import server_app

# what a user writes, one file per part
FILES = {
    "my_data": """
import numpy as np

def load(*, size: int = 60, shift: float = 3.0):
    rng = np.random.default_rng(0)

    def draw(count):
        labels = np.arange(count) % 3
        return (np.eye(3, 5)[labels] * shift + rng.normal(size=(count, 5))).astype(np.float32), labels

    return draw(size), draw(30)
""",
    "my_strategies": """
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg

class Damped(FedAvg):
    "w + beta (mean - w)"

    def __init__(self, *, beta: float = 1.0):
        super().__init__(min_train_nodes=1, min_available_nodes=1)
        self.beta = beta

    def configure_train(self, server_round, arrays, config, grid):
        self.before = arrays.to_torch_state_dict()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        mean = arrays.to_torch_state_dict()
        return ArrayRecord({n: w + self.beta * (mean[n] - w) for n, w in self.before.items()}), metrics

class Open(FedAvg):
    def __init__(self, beta: float = 1.0, **settings):
        super().__init__(**settings)
""",
    "my_schemes": """
import numpy as np

def one_large(labels, clients, rng, *, share: float = 0.5):
    order = rng.permutation(len(labels))
    cut = round(share * len(labels))
    return [order[:cut], *np.array_split(order[cut:], clients - 1)]
""",
    "my_schedules": """
from fedpfn.schedules import UNMASKED

def late(server_round, plan, offset: int = 0):
    return plan if server_round > offset else UNMASKED

class Late:
    def __init__(self, offset: int = 0):
        self.offset, self.calls = offset, 0

    def __call__(self, server_round, plan):
        self.calls += 1  # a state of its own, and a new object in each run
        return plan if self.calls > self.offset else UNMASKED
""",
    "my_models": """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, input_shape, num_classes, width: int = 4):
        super().__init__(nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, num_classes))
""",
    "my_optimizers": """
import torch

class Scaled(torch.optim.SGD):
    def __init__(self, params, lr, *, factor: float = 1.0):
        super().__init__(params, lr=lr * factor)
""",
    "my_measures": """
import math

def step(round, instruments):
    if round.server_round == 0:
        return None
    return math.sqrt(sum(float((round.after[n] - round.before[n]).double().square().sum()) for n in round.parameters))

step.unit = "weights"
""",
}

BASE = (
    "rounds=1", "federation.clients=4", "partition.scheme=iid", "train.batch-size=8", "barrier.every=0", "device=cpu",
)  # fmt: skip
MLP = ("model.hidden=1", "model.width=8")
ByReference = Callable[[str], str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder in which the user's files lie and commands are typed."""
    for name, code in FILES.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(imports, "_folders", [])
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name, None)


@pytest.fixture(params=["my_parts:Name", "path/to/my_parts.py:Name"])
def named(request: pytest.FixtureRequest) -> ByReference:
    """Return how a part is named: as a module's, or by its file."""
    return lambda reference: reference.replace(":", ".py:") if ".py" in request.param else reference


def run(here: Path, *words: str, name: str = "run", data: str = "my_data:load", nodes: int = 2) -> Run:
    """Run as ``fedpfn run`` does, in this process."""
    # of two words for a key the later one counts; a model of one's own takes no setting of the MLP
    model = () if any(word.startswith("model.name=") for word in words) else MLP
    words = (*BASE, *model, f"data.name={data}", f"output.dir={here / name}", *words)
    config = prepare(read_run_config(words, file=None, workdir=here), workdir=here)
    return read_run(run_in_process(config, nodes=nodes))


def faults(here: Path, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run(here, *words)
    assert not (here / "run").exists()
    return str(caught.value)


# one file per part


def test_a_strategy(here: Path, named: ByReference) -> None:
    words = ("strategy.name=fedavg", f"strategy.base={named('my_strategies:Damped')}", "output.checkpoint-every=1")
    full, half, none = (
        run(here, *words, f"strategy.args.beta={beta}", name=f"beta-{beta}").state("final") for beta in (1, 0.5, 0)
    )
    for name, start in none.items():
        assert not torch.equal(full[name], start)
        assert torch.equal(half[name], start + 0.5 * (full[name] - start))


def test_a_strategy_under_a_mask(here: Path) -> None:
    """Frozen entries are at their old values whatever the strategy makes of the others."""
    words = ("strategy.name=fedpfn", "mask.ratio=0.5", "strategy.base=my_strategies:Damped")
    start, end = (
        run(here, *words, f"strategy.args.beta={beta}", name=f"beta-{beta}").state("final") for beta in (0, 0.5)
    )
    assert all(float((end[name] == start[name]).float().mean()) >= 0.5 for name in ("linear1.weight", "head.weight"))
    assert not torch.equal(end["linear1.weight"], start["linear1.weight"])


def test_a_partition_scheme(here: Path, named: ByReference) -> None:
    words = (f"partition.scheme={named('my_schemes:one_large')}", "partition.args.share=0.7")
    partition = run(here, *words).partition
    assert partition is not None and partition["sizes"] == [42, 6, 6, 6]


@pytest.mark.parametrize("kind", ["late", "Late"])
def test_a_schedule(here: Path, named: ByReference, kind: str) -> None:
    words = (f"mask.schedule={named(f'my_schedules:{kind}')}", "rounds=3")
    for offset in (1, 2):
        records = run(here, *words, f"mask.args.offset={offset}", name=f"offset-{offset}").rounds[1:]
        assert [record["mask"]["frozen"] > 0 for record in records] == [round > offset for round in (1, 2, 3)]


def test_a_model(here: Path, named: ByReference) -> None:
    words = (f"model.name={named('my_models:Net')}", "model.args.width=6")
    state = run(here, *words).state("final")
    assert state["0.weight"].shape == (6, 5) and state["2.weight"].shape == (3, 6)


def test_an_optimiser(here: Path, named: ByReference) -> None:
    words = (f"train.optimizer={named('my_optimizers:Scaled')}", "rounds=2")
    doubled = run(here, *words, "train.lr=0.05", "train.args.factor=2", name="doubled")
    plain, still = (run(here, *words, "train.lr=0.1", f"train.args.factor={f}", name=f"factor-{f}") for f in (1, 0))
    assert digest(doubled) == digest(plain) != digest(still)
    assert len({record["weights_sha256"] for record in still.rounds}) == 1


def test_a_data_loader(here: Path, named: ByReference) -> None:
    found = run(here, "data.args.size=36", data=named("my_data:load"))
    assert found.partition is not None and sum(found.partition["sizes"]) == 36


def test_a_measure(here: Path, named: ByReference) -> None:
    still = ("strategy.base=my_strategies:Damped", "strategy.args.beta=0")
    words = (f"measures={named('my_measures:step')}", "rounds=2")
    records, found = run(here, *words, *still, name="still").rounds, run(here, *words)
    # None is not recorded
    assert [record.get("step", "absent") for record in records] == ["absent", 0, 0]
    assert all(record["step"] > 0 for record in found.rounds[1:])
    assert found.measures["step"]["unit"] == "weights"


def test_all_of_them_at_once_and_the_number_of_nodes_does_not_matter(here: Path) -> None:
    words = (
        "strategy.base=my_strategies:Damped", "strategy.args=beta=0.5", "partition.scheme=my_schemes:one_large",
        "partition.args=share=0.4", "mask.schedule=my_schedules:Late", "mask.args=offset=1", "model.name=my_models:Net",
        "model.args=width=6", "train.optimizer=my_optimizers:Scaled", "train.args=factor=0.5",
        "measures=my_measures:step", "data.args='size=48, shift=2'", "rounds=2",
    )  # fmt: skip
    one, three = (run(here, *words, name=f"nodes-{nodes}", nodes=nodes) for nodes in (1, 3))
    assert digest(one) == digest(three)
    # what the run recorded says how to repeat it
    again = read_run_config([f"output.dir={here}/again"], file=one.path / "config.yaml", workdir=here)
    assert digest(read_run(run_in_process(prepare(again, workdir=here), nodes=2))) == digest(one)


# settings that are not


@pytest.mark.parametrize(
    ("part", "setting", "accepted"),
    [
        ("strategy.base=my_strategies:Damped", "strategy.args.betta=0.1", "beta"),
        ("partition.scheme=my_schemes:one_large", "partition.args.shares=0.1", "share"),
        ("mask.schedule=my_schedules:late", "mask.args.ofset=1", "offset"),
        ("mask.schedule=my_schedules:Late", "mask.args.ofset=1", "offset"),
        ("model.name=my_models:Net", "model.args.widht=16", "width"),
        ("train.optimizer=my_optimizers:Scaled", "train.args.facter=2", "factor"),
        ("data.name=my_data:load", "data.args.sizes=9", "size, shift"),
    ],
)
def test_an_unknown_setting_is_a_fault_that_names_those_there_are(
    here: Path, part: str, setting: str, accepted: str
) -> None:
    message = faults(here, part, setting)
    name, near = setting.partition("=")[0], accepted.partition(",")[0]
    assert name in message and f"did you mean {near!r}?" in message and f"(it takes {accepted})" in message


def test_a_value_of_the_wrong_type_is_a_fault(here: Path) -> None:
    message = faults(here, "model.name=my_models:Net", "model.args.width=wide", "strategy.args.eta=0.1")
    # every fault of the config at once
    assert "model.args.width must be a whole number" in message and "strategy.args.eta" in message


def test_a_strategy_that_passes_settings_on_is_asked_and_what_it_could_take_is_named(here: Path) -> None:
    message = faults(here, "strategy.base=my_strategies:Open", "strategy.args.betta=0.1")
    assert "strategy.args.betta: 'my_strategies:Open' takes no argument 'betta'; did you mean 'beta'?" in message


def test_a_setting_of_a_part_is_swept_like_any_key(here: Path) -> None:
    (here / "sweep.yaml").write_text(
        "base: {model.name: my_models.py:Net, data.name: my_data:load, rounds: 1, barrier.every: 0}\n"
        "grid: {model.args.width: [16, 64]}\n"
    )
    sweep = read_sweep(here / "sweep.yaml", workdir=here)
    (axis,) = sweep.grid
    assert axis.keys == ("model.args.width",) and axis.rows == ((16,), (64,))
    cells = expand(sweep)
    # processes of a run start in folders of their own
    assert {cell.config.model.name for cell in cells} == {f"{here.resolve()}/my_models.py:Net"}
    assert [cell.config.model.args for cell in cells] == ["width=16", "width=64"]
    assert len({cell.address for cell in cells}) == 2


def test_a_sweep_over_no_setting_of_the_part_is_a_fault(here: Path) -> None:
    (here / "sweep.yaml").write_text("grid: {model.argz.width: [16, 64]}\n")
    with pytest.raises(ConfigError, match=r"model\.argz\.width"):
        read_sweep(here / "sweep.yaml", workdir=here)


# settings of the built-in parts that go with them


def test_the_old_spelling_of_server_optimisers_is_the_same_run(here: Path) -> None:
    old = run(here, "strategy.server-optimizer=avgm", "strategy.server-lr=0.7", "rounds=3", name="old")
    arguments = ("strategy.args.server_learning_rate=0.7", "strategy.args.server_momentum=0.9")
    new = run(here, "strategy.base=fedavgm", *arguments, "rounds=3", name="new")
    plain = run(here, "rounds=3", name="plain")
    assert digest(old) == digest(new) != digest(plain)
    assert old.config.strategy == new.config.strategy


def test_evaluation_every_other_round_and_in_the_last(here: Path) -> None:
    sparse, full = run(here, "rounds=5", "evaluate.every=2"), run(here, "rounds=5", name="full")
    assert [r["round"] for r in sparse.rounds if r["accuracy"] is not None] == [0, 2, 4, 5]
    assert [r["round"] for r in sparse.rounds if r["loss"] is not None] == [0, 2, 4, 5]
    assert all(
        ours["accuracy"] in (None, theirs["accuracy"]) for ours, theirs in zip(sparse.rounds, full.rounds, strict=True)
    )
    assert sparse.summary is not None
    accuracies = [r["accuracy"] for r in sparse.rounds[1:] if r["accuracy"] is not None]
    assert sparse.summary["final_accuracy"] == pytest.approx(sum(accuracies) / 3)
    console = Console(width=200, record=True, file=StringIO())
    console.print(summary_table(sparse))
    assert "mean of the last 3 evaluated rounds" in console.export_text()
    # what is looked at does not change what is trained
    assert digest(sparse) == digest(full)


def test_examples_can_be_limited(here: Path) -> None:
    whole, few = run(here, name="whole"), run(here, "data.train-examples=24", "data.test-examples=7")
    assert whole.partition is not None and sum(whole.partition["sizes"]) == 60
    assert few.partition is not None and sum(few.partition["sizes"]) == 24
    assert few.rounds[-1]["accuracy"] * 7 == pytest.approx(round(few.rounds[-1]["accuracy"] * 7))


@pytest.mark.parametrize(
    ("words", "unused"),
    [
        (["strategy.name=fedavg", "mask.ratio=0.6"], "mask.ratio"),
        (["partition.scheme=iid", "partition.alpha=0.1"], "partition.alpha"),
        (["mask.blocks=8"], "mask.blocks"),
        (["train.optimizer=my_optimizers:Scaled", "train.momentum=0.5"], "train.momentum"),
        (["barrier.every=0", "barrier.points=5"], "barrier.points"),
    ],
)
def test_a_setting_that_no_part_uses_is_warned_about(here: Path, words: list[str], unused: str) -> None:
    config = read_run_config(words, file=None, workdir=here)
    (warning,) = unused_settings(config, words, file=None)
    assert unused in warning


def test_settings_in_use_are_not_warned_about(here: Path) -> None:
    words = ["mask.ratio=0.6", "model.name=my_models:Net", "model.args.width=8", "partition.alpha=0.1"]
    assert unused_settings(read_run_config(words, file=None, workdir=here), words, file=None) == []


def test_a_plain_flwr_run_warns_in_its_log(
    here: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    monkeypatch.setattr(server_app, "run", lambda grid, config, keep_log: here)
    settings = RunConfig.parse({"strategy.name": "fedavg", "mask.ratio": 0.6, "train.lr": 0.2}).flat()
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings)
    server_app.main(InProcessGrid(ClientApp(), {}, nodes=1), context)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "mask.ratio has no effect with strategy.name=fedavg"
    ]


def test_a_plain_flwr_run_names_all_faults_at_once(here: Path) -> None:
    settings = RunConfig().flat() | {"rounds": 0, "barrier.points": 4, "model.name": "my_models:Nett"}
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings)
    with pytest.raises(ConfigError) as caught:
        server_app.main(InProcessGrid(ClientApp(), {}, nodes=1), context)
    assert len(caught.value.faults) == 3
