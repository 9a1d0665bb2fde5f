"""The keys of a laboratory experiment: one cell of it is one ``LabConfig``.

They are parsed and spelled like a run's keys, with the same messages (``fedpfn.runs.config``). The module of each kind
says what its cells do with them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedpfn.lmc.siblings import METHODS
from fedpfn.runs import sections as run
from fedpfn.runs.keys import key
from fedpfn.runs.parsing import parse_layers

COMMAND = "fedpfn lmc keys"

# the keys that each kind of cell reads
_TRAINING = ("train.method", "train.batch-size", "train.optimizer", "train.lr", "train.momentum", "train.weight-decay")
_COMMON = ("seed", "device", "threads", "data.*", "model.*", *_TRAINING)
READ = {
    "siblings": (*_COMMON, "start.*", "train.*", "mask.*", "barrier.*", "match.*", "measure.*", "output.*"),
    "theorem": ("seed", "device", "threads", "theorem.*"),
    "soup": (*_COMMON, "start.*", "mask.*", "soup.*"),
    "cold": (*_COMMON, "train.epochs", "mask.*", "cold.*"),
}


@dataclass(frozen=True)
class Data(run.Data):
    name: str = key(
        "digits", "a data set as in `fedpfn run`, or quadratic, cubic (the regressions of arXiv 2402.01342)"
    )
    held_out: int = key(0, "training examples set aside for calibration and greedy soups, never trained on", minimum=0)


@dataclass(frozen=True)
class Model(run.Model):
    bias: bool = key(
        True, "keep the biases of linear and convolutional layers; without them features scale layer by layer"
    )


@dataclass(frozen=True)
class Start:
    kind: str = key(
        "random",
        "where models start: one random start, one trained on a disjoint share, one from a file, or one per model",
        choices=("random", "semi-trained", "file", "independent"),
    )
    path: str = key("", "weights for start.kind=file: safetensors, or a PyTorch file of tensors")
    head: str = key(
        "", "patterns of the tensors that are not read from the file; last = the last layer, for other classes"
    )
    share: float = key(0.5, "share of the training examples a semi-trained start has seen", above=0, below=1)
    epochs: float = key(0.5, "epochs of a semi-trained start on its share", above=0)


@dataclass(frozen=True)
class Train:
    method: str = key("vanilla", "how models are trained from the start", choices=METHODS)
    models: int = key(2, "models trained from one start", minimum=1)
    epochs: float = key(2.0, "epochs of each model; may be a fraction", above=0)
    steps: int = key(0, "steps of each model; above 0 it replaces epochs", minimum=0)
    batch_size: int = key(64, "examples per step", minimum=1)
    optimizer: str = key("adam", "the optimiser", choices=("sgd", "adam", "adamw"))
    lr: float = key(0.003, "learning rate", above=0)
    lr_schedule: str = key(
        "constant", "how the learning rate changes over the steps", choices=("constant", "cosine", "linear")
    )
    momentum: float = key(0.9, "momentum of sgd", minimum=0, below=1)
    weight_decay: float = key(0.0, "L2 penalty of sgd and adam, decoupled decay of adamw", minimum=0)
    spawn_share: float = key(
        0.0, "share of the steps that the models take together before they separate", minimum=0, below=1
    )


@dataclass(frozen=True)
class Mask:
    ratio: float = key(0.4, "share of frozen (or pruned) entries (zeros of the mask)", minimum=0, maximum=1)
    granularity: str = key("weight", "what is frozen as a unit: an entry or a neuron", choices=("weight", "neuron"))
    draw: str = key("exact", "exact count per tensor, or independent draws", choices=("exact", "bernoulli"))
    layers: str = key("all", "the third of the layers that is masked", choices=("all", "first", "middle", "last"))
    include: str = key("*", "comma-separated patterns of parameter names that the mask may touch")
    exclude: str = key("", "comma-separated patterns of parameter names that the mask leaves out")


@dataclass(frozen=True)
class Barrier:
    points: int = key(25, "points per path, both ends included", minimum=3)
    batch_norm: str = key(
        "average", "running statistics on a path: interpolated, re-estimated, or those of its ends (the worse counts)",
        choices=("average", "reset", "none"),
    )  # fmt: skip


@dataclass(frozen=True)
class Match:
    methods: str = key(
        "", "comma-separated: weight, activation, ste, annealing, merge (all models by weights); empty = none"
    )
    max_sweeps: int = key(100, "maximum number of sweeps of weight matching", minimum=1)
    restarts: int = key(0, "additional searches of weight matching; the best one counts", minimum=0)
    steps: int = key(100, "steps of the straight-through estimator, moves of annealing", minimum=1)
    examples: int = key(2000, "training examples that activation matching, ste and annealing see; 0 = all", minimum=0)


@dataclass(frozen=True)
class Measure:
    layers: bool = key(False, "layerwise measures of the first pair: LLFC, LEWC, additivity, commutativity, ...")
    layer_examples: int = key(2000, "test examples of the layerwise measures; 0 = all", minimum=0)
    plane: bool = key(False, "loss and accuracy over the plane through the first three models")
    plane_points: int = key(15, "points of the plane's grid along each side", minimum=2)
    calibration: bool = key(False, "loss barrier with a temperature at each point, fitted on data.held-out examples")


@dataclass(frozen=True)
class Theorem:
    hidden: int = key(256, "hidden units h of the two-layer nets", minimum=1)
    inputs: int = key(32, "input dimension d", minimum=1)
    radius: float = key(1.0, "bound b on the norm of an input", above=0)
    hidden_ratio: float = key(0.4, "share of the hidden layer's entries that both nets share", minimum=0, maximum=1)
    output_ratio: float = key(0.0, "share of the output layer's entries that both nets share", minimum=0, maximum=1)
    delta: float = key(0.05, "probability with which a bound may fail", above=0, below=1)
    trials: int = key(1000, "pairs of nets drawn", minimum=1)
    points: int = key(9, "points per path, both ends included", minimum=3)


@dataclass(frozen=True)
class Soup:
    lrs: str = key("0.003,0.001,0.0003", "learning rates of the fine-tuned members")
    epochs: str = key("1,2", "epochs of the fine-tuned members; with the rates, every combination is a member")
    pretrain_epochs: int = key(3, "epochs of the pre-training on half of the classes", minimum=1)


@dataclass(frozen=True)
class Cold:
    rounds: int = key(4, "rounds of fine-tuning and averaging", minimum=1)
    tasks: int = key(3, "contributors, each with its own classes", minimum=2)
    head: str = key("head.*", "comma-separated patterns of the parameters that stay with a task")


@dataclass(frozen=True)
class Output:
    save_models: bool = key(False, "keep the trained models as safetensors")


@dataclass(frozen=True)
class LabConfig:
    seed: int = key(0, "seed of every draw; an experiment of n seeds uses seed, ..., seed + n - 1", minimum=0)
    device: str = key("auto", "where models train", choices=("auto", "cpu", "cuda"))
    threads: int = key(1, "CPU threads of a cell; part of the result, since sums depend on it", minimum=1)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    start: Start = field(default_factory=Start)
    train: Train = field(default_factory=Train)
    mask: Mask = field(default_factory=Mask)
    barrier: Barrier = field(default_factory=Barrier)
    match: Match = field(default_factory=Match)
    measure: Measure = field(default_factory=Measure)
    theorem: Theorem = field(default_factory=Theorem)
    soup: Soup = field(default_factory=Soup)
    cold: Cold = field(default_factory=Cold)
    output: Output = field(default_factory=Output)

    @classmethod
    def parse(cls, *layers: Mapping[str, Any]) -> "LabConfig":
        """Merge ``layers`` over the defaults, later ones winning. Raises ``ConfigError`` naming every fault."""
        return parse_layers(cls, layers, (_path_faults, _list_faults), command=COMMAND)


def parse_numbers(text: str) -> list[float]:
    """Return the numbers of a comma-separated list. Raises ``ValueError`` if it is empty or holds anything else."""
    numbers = [float(word) for word in text.split(",") if word.strip()]
    if not numbers:
        raise ValueError(f"a list of numbers is empty: {text!r}")
    return numbers


def _path_faults(config: LabConfig) -> Iterator[str]:
    for name, points in (("barrier.points", config.barrier.points), ("theorem.points", config.theorem.points)):
        if points % 2 == 0:
            yield f"{name} must be odd, so that the midpoint is measured, got {points}"
    if (config.start.kind == "file") != bool(config.start.path):
        yield "start.kind=file and start.path belong together"
    if config.start.kind == "independent" and config.train.spawn_share:
        yield "train.spawn-share has no meaning for start.kind=independent"
    if config.measure.plane and config.train.models < 3:
        yield f"measure.plane needs train.models of 3 or more, got {config.train.models}"
    if config.measure.calibration and not config.data.held_out:
        yield "measure.calibration needs data.held-out examples to fit a temperature on"


def _list_faults(config: LabConfig) -> Iterator[str]:
    for name, text in (("soup.lrs", config.soup.lrs), ("soup.epochs", config.soup.epochs)):
        try:
            wrong = min(parse_numbers(text)) <= 0
            wrong |= name == "soup.epochs" and not all(number.is_integer() for number in parse_numbers(text))
        except ValueError:
            wrong = True
        if wrong:
            kind = "whole numbers, 1 or more," if name == "soup.epochs" else "positive numbers"
            yield f"{name} must be {kind} with commas between them, got {text!r}"
    known = ("weight", "activation", "ste", "annealing", "merge")
    for word in split_words(config.match.methods):
        if word not in known:
            yield f"match.methods has {word!r}, which is none of {', '.join(known)}"


def split_words(text: str) -> list[str]:
    """Return the words of a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]
