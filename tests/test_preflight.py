"""The one pass over a config before anything starts: data, partition, model, mask, strategy and optimiser together."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAdam
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import partitions
from fedpfn.runs.config import RunConfig, given_keys, parse_overrides
from fedpfn.runs.identity import config_warnings
from fedpfn.schedules import Plan
from strategies.mask_faults import never_trained_share
from strategies.preflight import all_faults, find_faults


def own_model(input_shape: tuple[int, ...], num_classes: int, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), width), nn.Linear(width, num_classes))


def own_scheme(labels: np.ndarray, clients: int, rng: np.random.Generator, *, alpha: float, spread: float = 1.0) -> Any:
    return np.array_split(rng.permutation(len(labels)), clients)


def own_loader(size: int = 20) -> Any:
    labels = np.arange(size) % 2
    return (np.ones((size, 3), dtype=np.float32), labels), (np.ones((size, 3), dtype=np.float32), labels)


def own_schedule(server_round: int, plan: Plan, *, period: int = 2) -> Plan:
    return plan


class Schedule:
    def __init__(self, period: int) -> None: ...

    def __call__(self, server_round: int, plan: Plan) -> Plan:
        return plan


class Forwarding(FedAdam):
    def __init__(self, beta: float = 0.5, **kwargs: Any) -> None:
        self.gamma = kwargs.pop("gamma", 0.1)
        super().__init__(**kwargs)


def own_optimizer(parameters: Any, lr: float, *, nudge: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr + nudge)


HERE = __name__


def faults(*words: str) -> list[str]:
    return find_faults(RunConfig.parse(parse_overrides(words)))


@pytest.mark.parametrize(
    "words",
    [
        "",
        f"model.name={HERE}:own_model model.args.width=4 data.name={HERE}:own_loader data.args.size=30",
        f"partition.scheme={HERE}:own_scheme partition.args.spread=2",
        f"mask.schedule={HERE}:own_schedule mask.args.period=3",
        f"mask.schedule={HERE}:Schedule mask.args.period=3",
        f"train.optimizer={HERE}:own_optimizer train.args.nudge=0.1",
        "train.optimizer=torch.optim:RMSprop train.args.alpha=0.9 train.args.centered=true",
        "train.optimizer=adam train.args.amsgrad=true",
        "strategy.base=fedadam strategy.args.eta=0.3",
        "strategy.base=flwr.serverapp.strategy:FedTrimmedAvg strategy.args.beta=0.1",
        f"strategy.base={HERE}:Forwarding strategy.args.eta=1 strategy.args.gamma=0.2 strategy.args.beta=0.3",
        "mask.schedule=cyclic mask.ratio=0.75 mask.blocks=4",
        "mask.schedule=cyclic mask.ratio=0.9 mask.blocks=4 strategy.name=fedpnu",
        "mask.schedule=cyclic mask.ratio=0.9 mask.final-ratio=0.2 mask.ratio-shape=linear",
        "mask.ratio=1 mask.exclude=head*",
        "mask.ratio=1 strategy.name=fedavg",
    ],
)
def test_what_fits_is_no_fault(words: str) -> None:
    assert faults(*words.split()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (f"model.name={HERE}:own_model model.args.widht=4", "did you mean 'width'?"),
        (f"model.name={HERE}:own_model model.width=64", "gets arguments as model.args.width=64"),
        ("model.args.width=64", "model.args.width is for your own model; 'mlp' takes model.hidden"),
        ("model.name=my_cnn.py", "write it as 'my_cnn.py:Name'"),
        ("model.name=my_cnn.MyCNN", "write it as 'my_cnn:MyCNN'"),
        ("model.name=MLP", "did you mean mlp"),
        ("model.name=resnet18", "model resnet18: fails: "),
        ("model.name=cnn", "smallest side is 18"),
        ("data.args.size=3", "data.args.size is for your own loader"),
        (f"data.name={HERE}:own_loader data.args.size=many", "data.args.size must be a whole number"),
        (f"data.name={HERE}:own_loader data.args.sizes=3", "takes no argument 'sizes'; did you mean 'size'?"),
        ("data.name=my_data.load", "write it as 'my_data:load'"),
        (f"partition.scheme={HERE}:own_scheme partition.args.alpha=2", "cannot be set: fedpfn itself passes alpha"),
        (f"partition.scheme={HERE}:own_scheme partition.args.spread=x", "partition.args.spread must be a number"),
        ("partition.scheme=my.scheme", "write it as 'my:scheme'"),
        ("federation.clients=2000", "is more than the 1438 training examples"),
        ("data.train-examples=100 federation.clients=200", "is more than the 100 training examples"),
        ("partition.scheme=pathological partition.classes-per-client=11", "more than the 10 classes"),
        ("mask.args.period=3", "mask.args.period is for your own schedule"),
        (f"mask.schedule={HERE}:Schedule", "needs period, which has no default; set mask.args.period"),
        (f"mask.schedule={HERE}:own_schedule mask.args.plan=3", "cannot be set"),
        ("mask.include=nothing*", "mask.include has 'nothing*', which matches no parameter"),
        ("mask.ratio=1", "nothing trains in it"),
        ("mask.ratio=1 strategy.name=fedpnu strategy.variant=then-all", "nothing trains in its first phase"),
        ("mask.ratio-shape=linear mask.final-ratio=1 rounds=7", "ratio is 1 in round 7"),
        ("mask.schedule=cyclic mask.ratio=0.8", "trains 20.0% of the network never; lower the ratio to 0.75 or less"),
        ("mask.schedule=cyclic mask.ratio=0.8 mask.warmup-rounds=1", "20.0% of the network never after the warm-up"),
        ("train.optimizer=torch.optim:LBFGS", "evaluates the loss several times"),
        ("train.optimizer=torch.optim:SparseAdam", "takes sparse gradients"),
        ("train.optimizer=torch.optim:RMSprop train.args.lr=1", "cannot be set: fedpfn itself passes lr"),
        ("train.optimizer=torch.optim:RMSprop train.args.alfa=1", "did you mean 'alpha'?"),
        ("train.optimizer=torch.optim:RMSprop train.args.alpha=-1", "cannot be made: Invalid alpha value"),
        ("train.optimizer=torch.optim:Nothing", "has no 'Nothing'"),
        (f"train.optimizer={HERE}:own_model", "takes no"),
        ("train.optimizer=torch.optim:RMSprop train.stack=4", "train.stack needs one of sgd, adam, adamw"),
        ("strategy.args.eta=1", "strategy.args.eta: strategy.base=fedavg takes no argument 'eta'"),
        ("strategy.base=fedadam strategy.args.fraction_train=0.1", "cannot be set"),
        (
            f"strategy.base={HERE}:Forwarding strategy.args.etta=1",
            "takes no argument 'etta'; did you mean 'eta'? (it takes",
        ),
        (f"strategy.base={HERE}:Forwarding strategy.args.eta=high", "strategy.args.eta must be a number, got 'high'"),
        ("measures=mine.py", "write it as 'mine.py:Name'"),
        ("measures=no_such_module:measure", "no module named 'no_such_module'"),
    ],
)
def test_a_fault_is_named_before_anything_starts(words: str, expected: str) -> None:
    found = faults(*words.split())
    if words.endswith(":own_model") and expected == "takes no":
        assert found
    else:
        assert any(expected in fault for fault in found), found


def test_faults_of_all_parts_come_at_once() -> None:
    found = faults("data.args.a=1", "federation.clients=2000", "model.name=resnet18", "mask.ratio=1", "train.args.b=1")
    assert len(found) == 5


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rounds=0 data.args.a=1 federation.clients=2000 mask.include=x* train.args.b=1", 5),
        ("partition.alpha=0 model.name=resnet18 train.args.b=1", 3),
        ("mask.ratio=1.5 mask.schedule=per-rund model.name=resnet18", 3),
        ("train.lr=fast measures=mine.py strategy.args.eta=1", 3),
        # each of these would be a fault with the default in place of what is faulty
        ("model.nmae=cnn mask.include=conv*", 1),
        ("model.hidden=many mask.include=hidden*", 1),
        ("data.name=7 federation.clients=2000", 1),
        ("data.train-examples=-1 federation.clients=2000", 1),
        ("strategy.bse=fedadam strategy.args.eta=1", 1),
        ("strategy.name=fedavgg mask.ratio=1", 1),
        ("train.optimzer=torch.optim:RMSprop train.args.alpha=0.5", 1),
        ("rounds=x mask.ratio=1", 1),
        ("model.name=resnet18 model.args.bad!=1", 1),
    ],
)
def test_faulty_values_hide_neither_other_faults_nor_make_some(words: str, expected: int) -> None:
    layer = parse_overrides(words.split())
    if words.startswith("data.name=7"):
        layer["data.name"] = 7
    found = all_faults(RunConfig.read(layer))
    assert len(found) == expected, found


def test_the_facts_of_the_digits_are_those_of_the_digits() -> None:
    digits, facts = partitions.load("digits"), partitions.datasets.FACTS["digits"]
    assert (digits.input_shape, digits.num_classes, len(digits.train.labels), len(digits.test.labels)) == (
        facts.input_shape, facts.num_classes, facts.train_examples, facts.test_examples,
    )  # fmt: skip


@given(st.integers(2, 8), st.floats(0, 1))
def test_the_share_that_a_cycle_never_trains_is_what_is_above_its_largest_ratio(blocks: int, ratio: float) -> None:
    share = never_trained_share([(block / blocks, ratio) for block in range(blocks)])
    assert share == pytest.approx(max(0.0, blocks * ratio - (blocks - 1)), abs=1e-9)


# settings without an effect


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("strategy.name=fedavg mask.ratio=0.9", ["mask.ratio has no effect with strategy.name=fedavg"]),
        ("partition.scheme=shards partition.alpha=0.1", ["partition.alpha has no effect with partition.scheme=shards"]),
        ("train.optimizer=adam train.momentum=0.5", ["train.momentum has no effect with train.optimizer=adam"]),
        ("model.name=cnn model.width=64", ["model.width has no effect with model.name=cnn"]),
        ("model.hidden=0 model.width=64", ["model.width has no effect with model.name=mlp and model.hidden=0"]),
        ("train.steps=3 train.epochs=2", ["train.epochs has no effect with train.steps=3"]),
        ("barrier.every=0 barrier.points=5", ["barrier.points has no effect with barrier.every=0"]),
        ("strategy.phase-share=0.2", ["strategy.phase-share has no effect with strategy.name=fedpfn"]),
        ("data.name=mnist data.root=/a output.dir=/b mask.ratio=0.9", []),
    ],
)
def test_a_setting_that_no_part_reads_is_warned_about(words: str, expected: list[str]) -> None:
    typed = parse_overrides(words.split())
    assert config_warnings(RunConfig.parse(typed), given_keys({}, typed)) == expected


def test_a_default_in_a_file_is_not_a_setting_that_was_given() -> None:
    file, words = RunConfig.parse({"mask.ratio": 0.9}).nested(), {"strategy.name": "fedavg"}
    warnings = config_warnings(RunConfig.parse(file, words), given_keys(file, words))
    assert warnings == ["mask.ratio has no effect with strategy.name=fedavg"]


def test_a_built_in_scheme_reads_the_keys_that_are_declared_for_it() -> None:
    for name, scheme in partitions.SCHEMES.items():
        taken = partitions.schemes.keywords(scheme) - {"min_size", "max_redraws"}
        settings = {"alpha": 0.5, "shards-per-client": 3, "classes-per-client": 3}
        given = {f"partition.{setting}": value for setting, value in settings.items()}
        config = RunConfig.parse({"partition.scheme": name}, given)
        unused = {warning.split()[0] for warning in config_warnings(config, set(given))}
        assert given.keys() - unused == {f"partition.{setting.replace('_', '-')}" for setting in taken}
