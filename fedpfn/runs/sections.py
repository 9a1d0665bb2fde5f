"""The sections of the run config: every setting of a run with its default, what it may be, and when it is used.

A setting is declared here once; documents, defaults of Flower's app, checks and the identity of a run follow from it
(``keys``). ``config`` puts the sections together.
"""

from dataclasses import dataclass

from fedpfn.runs.keys import key, unless, when, whole

# a part of the user's own, by import string
OWN = "*:*"
# a mask ratio that is left to the algorithm
BY_ALGORITHM = -1.0
_LR_SCHEDULES = ("constant", "cosine", "step", "linear")
_ARGS = "arguments of {}: one key per argument, such as {}, or one text of name=value pairs"


@dataclass(frozen=True)
class Federation:
    clients: int = key(10, "number of simulated clients K, independent of the number of SuperNodes", minimum=1)
    fraction: float = key(1.0, "share of the clients that train in a round", above=0, maximum=1)
    tolerate_failures: int = key(0, "number of clients of a round that may fail without stopping the run", minimum=0)
    quorum: float = key(
        0.5,
        "smallest share of a round's clients that must answer where failures are tolerated",
        above=0,
        maximum=1,
        used=(unless("federation.tolerate-failures", "0"),),
    )
    timeout: float = key(86400.0, "seconds to wait for the answers of a round", above=0, in_result=False)
    client_timeout: float = key(
        0.0, "seconds that a client may train in a round, after which it has failed; 0 = any time", minimum=0,
        in_result=False, since=2,
    )  # fmt: skip
    pinned: bool = key(
        False,
        "let each SuperNode train the clients of its own partition-id alone, and keep no other's examples",
        in_result=when("data.name", OWN),
        since=2,
    )

    @property
    def per_round(self) -> int:
        """Number of clients that train in a round, if that many have examples: fraction * clients, rounded.

        >>> Federation(clients=10, fraction=0.25).per_round, Federation(clients=3, fraction=0.1).per_round
        (3, 1)
        """
        return max(1, int(self.fraction * self.clients + 0.5))


@dataclass(frozen=True)
class Data:
    name: str = key(
        "digits",
        "digits, mnist, fashion-mnist, cifar10, cifar100, image-folder, imdb, digits-properties, diabetes or "
        "package.module:loader",
    )
    args: str = key("", _ARGS.format("your own loader", "data.args.size=300"), since=2)
    # for a folder of images and for the user's own loader it determines which data there are, not only where
    root: str = key("", "folder that holds the data (absolute)", in_result=when("data.name", "image-folder", OWN))
    download: bool = key(False, "let torchvision download what is missing", in_result=False)
    image_size: int = key(0, "side to which an image folder is cropped and resized; 0 = as it is", minimum=0)
    train_examples: int = key(0, "training examples to use, drawn from the seed; 0 = all", minimum=0, since=2)
    test_examples: int = key(0, "test examples to use, drawn from the seed; 0 = all", minimum=0, since=2)
    task: str = key(
        "auto",
        "what is learnt: loss, score and size of the outputs; auto goes by the labels (integers, floats, rows of 0/1)",
        choices=("auto", "classification", "regression", "multilabel"),
        own=True,
        since=2,
    )


@dataclass(frozen=True)
class Partition:
    scheme: str = key(
        "dirichlet",
        "dirichlet, dirichlet-balanced, dirichlet-client, iid, shards, pathological or package.module:scheme",
    )
    args: str = key("", _ARGS.format("your own scheme", "partition.args.share=0.6"), since=2)
    alpha: float = key(
        0.3,
        "concentration of the Dirichlet draw; smaller is more skewed",
        above=0,
        used=(when("partition.scheme", "dirichlet*", OWN),),
    )
    min_size: int = key(
        0, "smallest number of examples of a client (Dirichlet schemes redraw a limited number of times)", minimum=0
    )
    shards_per_client: int = key(
        2, "shards per client (scheme shards)", minimum=1, used=(when("partition.scheme", "shards", OWN),)
    )
    classes_per_client: int = key(
        2, "classes per client (scheme pathological)", minimum=1, used=(when("partition.scheme", "pathological", OWN),)
    )
    holdout: float = key(
        0.0,
        "share of each client's examples that it is tested on and not trained on, drawn from the seed",
        minimum=0,
        below=1,
        since=2,
    )


@dataclass(frozen=True)
class Model:
    name: str = key(
        "mlp", "mlp, cnn, resnet20 .. 56, wrn56, vgg11, vgg16, lstm, a torchvision name or package.module:factory"
    )
    args: str = key("", _ARGS.format("your own model", "model.args.width=64"), since=2)
    hidden: int = key(2, "hidden layers of the MLP", minimum=0, maximum=1000)
    width: int = key(200, "units of a hidden layer of the MLP", minimum=1, maximum=1_000_000)
    norm: str = key(
        "none",
        "normalisation of ResNets, VGGs and torchvision models; without it they need train.lr near 0.01",
        choices=("none", "group", "layer", "batch"),
    )
    width_multiplier: float = key(1.0, "width of a built-in model relative to its standard", above=0, maximum=1000)
    pretrained: bool = key(False, "start torchvision models from their published weights")


@dataclass(frozen=True)
class Strategy:
    name: str = key(
        "fedpfn",
        "the algorithm; by import string a fedpfn.training.LocalAlgorithm of your own",
        choices=(
            "fedavg", "fedpfn", "fedpnu", "fedprox", "scaffold", "feddyn", "moon", "fedsam", "fednova", "fedlc",
            "fedgucci", "fedexp", "ssfl",
        ),
        own=True,
    )  # fmt: skip
    base: str = key(
        "fedavg",
        "the Flower strategy under the mask: it aggregates the clients' models and takes the server's step",
        choices=(
            "fedavg", "fedavgm", "fedadam", "fedadagrad", "fedyogi", "fedmedian", "fedtrimmedavg", "krum", "multikrum",
            "bulyan", "qfedavg",
        ),
        own=True,
        since=2,
    )  # fmt: skip
    args: str = key("", _ARGS.format("the algorithm and of its base strategy", "strategy.args.eta=0.01"), since=2)
    variant: str = key(
        "within-round",
        "FedPNU's variant: m then 1-m within a round, across rounds, or m then everything",
        choices=("within-round", "across-rounds", "then-all"),
        used=(when("strategy.name", "fedpnu"),),
    )
    phase_share: float = key(
        0.5,
        "share of the local steps that FedPNU's first phase takes",
        above=0,
        below=1,
        used=(when("strategy.name", "fedpnu"), unless("strategy.variant", "across-rounds")),
    )
    match: str = key(
        "none",
        "renumber the hidden units of clients' models to match before they are averaged, by weights or by activations; "
        "units with frozen entries stay",
        choices=("none", "weights", "activations"),
        since=2,
    )
    match_to: str = key(
        "global",
        "what models are matched to: the model that the round started from, or the mean of those matched before",
        choices=("global", "mean"),
        used=(unless("strategy.match", "none"),),
        since=2,
    )
    match_examples: int = key(
        500,
        "test examples that activations are compared on, drawn from the seed, without labels; 0 = all",
        minimum=0,
        used=(when("strategy.match", "activations"),),
        since=2,
    )


@dataclass(frozen=True)
class Mask:
    schedule: str = key("per-round", "per-round, fixed, complement, cyclic or package.module:schedule")
    args: str = key("", _ARGS.format("your own schedule", "mask.args.offset=0"), since=2)
    ratio: float = key(
        BY_ALGORITHM,
        "share of frozen entries (zeros of the mask); -1 = 0.4 under fedpfn, fedpnu and ssfl, else no mask",
        minimum=0,
        maximum=1,
    )
    ratio_shape: str = key("constant", "how the ratio moves over the rounds", choices=("constant", "linear", "cosine"))
    final_ratio: float = key(
        0.4,
        "ratio of the last round, for ratio-shape linear and cosine",
        minimum=0,
        maximum=1,
        used=(unless("mask.ratio-shape", "constant"),),
    )
    warmup_rounds: int = key(0, "number of first rounds that train without a mask", minimum=0)
    granularity: str = key("weight", "what is frozen as a unit: an entry or a neuron", choices=("weight", "neuron"))
    draw: str = key("exact", "exact count per tensor, or independent draws", choices=("exact", "bernoulli"))
    blocks: int = key(
        4,
        "number of starting points of schedule cyclic, one per round in turn",
        minimum=2,
        used=(when("mask.schedule", "cyclic"),),
    )
    include: str = key("*", "comma-separated patterns of parameter names that a mask may touch")
    exclude: str = key("", "comma-separated patterns of parameter names that a mask leaves out")


@dataclass(frozen=True)
class Train:
    epochs: float = key(
        1,
        "local epochs of a round, 0.5 or 1.5 as well; the last step begun counts",
        above=0,
        used=(when("train.steps", "0"),),
        fraction=True,
    )
    steps: int = key(0, "local steps of a round; above 0 it replaces epochs", minimum=0)
    batch_size: int = key(32, "examples per local step", minimum=1)
    augment: str = key(
        "none",
        "random crops (padding 4) and flips of the images of a local step, or your own function (images, generator)",
        choices=("none", "crop-flip", "crop", "flip"),
        own=True,
        since=2,
    )
    optimizer: str = key(
        "sgd",
        "local optimiser, fresh in each round, such as torch.optim:RMSprop; called with the parameters and lr",
        choices=("sgd", "adam", "adamw"),
        own=True,
    )
    args: str = key("", _ARGS.format("the optimiser", "train.args.amsgrad=true"), since=2)
    lr: float = key(0.1, "local learning rate of round 1", above=0)
    lr_decay: float = key(1.0, "factor by which the learning rate changes from round to round", above=0, maximum=1)
    schedule: str = key(
        "constant",
        "learning rate over the local steps of a round, or your own function (done, total) -> factor",
        choices=_LR_SCHEDULES,
        own=True,
        since=2,
    )
    schedule_every: int = key(
        10, "local steps between two drops of train.schedule=step", minimum=1, used=(when("train.schedule", "step"),),
        since=2,
    )  # fmt: skip
    schedule_gamma: float = key(
        0.1,
        "factor of a drop of train.schedule=step",
        above=0,
        maximum=1,
        used=(when("train.schedule", "step"),),
        since=2,
    )
    round_schedule: str = key(
        "constant",
        "learning rate over the rounds of a run, or your own function (done, total) -> factor; times the others",
        choices=_LR_SCHEDULES,
        own=True,
        since=2,
    )
    round_schedule_every: int = key(
        10, "rounds between two drops of train.round-schedule=step", minimum=1,
        used=(when("train.round-schedule", "step"),), since=2,
    )  # fmt: skip
    round_schedule_gamma: float = key(
        0.1, "factor of a drop of train.round-schedule=step", above=0, maximum=1,
        used=(when("train.round-schedule", "step"),), since=2,
    )  # fmt: skip
    warmup_rounds: int = key(
        0, "first rounds n over which the learning rate rises from train.lr / (n + 1)", minimum=0, since=2
    )
    momentum: float = key(0.9, "momentum of sgd", minimum=0, below=1, used=(when("train.optimizer", "sgd"),))
    nesterov: bool = key(False, "Nesterov's momentum", used=(when("train.optimizer", "sgd"),))
    weight_decay: float = key(
        0.0,
        "L2 penalty of sgd and adam, decoupled decay of adamw",
        minimum=0,
        used=(unless("train.optimizer", OWN),),
    )
    loss: str = key(
        "auto",
        "what clients descend on: the task's loss, a variant, or package.module:function of (outputs, labels)",
        choices=("auto", "label-smoothing", "balanced"),
        own=True,
        since=2,
    )
    label_smoothing: float = key(
        0.1,
        "share of a label that label smoothing spreads over all of them",
        minimum=0,
        below=1,
        used=(when("train.loss", "label-smoothing"),),
        since=2,
    )
    proximal_mu: float = key(0.0, "FedProx: weight of the proximal term mu/2 |w - w_t|^2", minimum=0)
    clip_norm: float = key(0.0, "largest norm of a step's masked gradient; 0 = no clipping", minimum=0)
    threads: int = key(1, "CPU threads of a client; part of the result, since sums depend on it", minimum=1)
    stack: int = key(
        0,
        "clients that a node trains at once, stacked, if the model allows it; 0 = one by one, which is faster on a CPU",
        minimum=0,
        since=2,
    )

    def __post_init__(self) -> None:
        """Keep whole epochs as a whole number, which they are in configs written before there were others."""
        object.__setattr__(self, "epochs", whole(self.epochs))


_PRIVATE = (unless("privacy.clip-norm", "0.0"),)


@dataclass(frozen=True)
class Privacy:
    clip_norm: float = key(
        0.0, "largest norm of a client's update; above 0 all clients count the same, and noise is added", minimum=0,
        since=2,
    )  # fmt: skip
    noise_multiplier: float = key(
        0.0, "standard deviation of the noise in a round's sum of updates, in clip norms", minimum=0, used=_PRIVATE,
        since=2,
    )  # fmt: skip
    epsilon: float = key(
        0.0,
        "what all rounds together may cost; above 0 the noise multiplier follows",
        minimum=0,
        used=_PRIVATE,
        since=2,
    )
    delta: float = key(
        1e-5, "probability with which epsilon may not hold, well below 1 / clients", above=0, below=1, used=_PRIVATE,
        since=2,
    )  # fmt: skip
    where: str = key(
        "central",
        "who adds the noise: the server to the mean, or each client to its update",
        choices=("central", "local"),
        used=_PRIVATE,
        since=2,
    )
    noise_from: str = key(
        "seed",
        "the run's seed, for simulations that can be repeated, or the operating system, for what is to be published",
        choices=("seed", "system"),
        used=_PRIVATE,
        since=2,
    )


@dataclass(frozen=True)
class Transport:
    precision: str = key(
        "float32",
        "bits of the updates that clients send: int8 (a quarter of the bytes) or float16 (half); the model comes in "
        "full, as does what an algorithm sends besides",
        choices=("float32", "float16", "int8"),
        since=2,
    )
    error_feedback: bool = key(
        True,
        "let clients add to their next update what few bits lost of the last; each keeps a model's size in the run "
        "folder",
        used=(unless("transport.precision", "float32"),),
        since=2,
    )


@dataclass(frozen=True)
class Evaluate:
    every: int = key(
        1, "rounds between two evaluations of the global model; the last round is always evaluated", minimum=1, since=2
    )
    max_examples: int = key(0, "test examples of an evaluation, drawn from the seed; 0 = all", minimum=0, since=2)
    units_moved: bool = key(
        False,
        "count the hidden units of each client that matching by weights would move, without moving any",
        used=(when("strategy.match", "none"),),
        since=2,
    )


@dataclass(frozen=True)
class Stop:
    patience: int = key(
        0,
        "evaluations in a row without a better accuracy (or loss, where there is none) that end the run; 0 = never",
        minimum=0,
        since=2,
    )
    min_delta: float = key(
        0.0,
        "by how much an accuracy must be better to count as such",
        minimum=0,
        used=(unless("stop.patience", "0"),),
        since=2,
    )
    target: float = key(0.0, "test accuracy that ends the run; 0 = none", minimum=0, maximum=1, since=2)


_MEASURED = (unless("barrier.every", "0"),)


@dataclass(frozen=True)
class Barrier:
    every: int = key(1, "rounds between two barrier measurements; 0 = never", minimum=0)
    points: int = key(25, "points per path, both ends included", minimum=3, used=_MEASURED)
    max_pairs: int = key(0, "client pairs to measure, drawn from the seed; 0 = all", minimum=0, used=_MEASURED)
    max_examples: int = key(
        2000, "examples of each evaluation, drawn from the seed; 0 = all", minimum=0, used=_MEASURED
    )
    split: str = key("test", "data that barriers are measured on", choices=("test", "train"), used=_MEASURED)
    batch_norm: str = key(
        "average", "running statistics on a path: interpolated, re-estimated, or those of its ends (the worse counts)",
        choices=("average", "reset", "none"), used=_MEASURED,
    )  # fmt: skip
    layers: bool = key(
        False, "also measure the layerwise linear feature connectivity of the client models", used=_MEASURED
    )


@dataclass(frozen=True)
class Output:
    dir: str = key("", "run folder; empty = a new folder under runs/", in_result=False)
    checkpoint_every: int = key(
        5,
        "rounds between two checkpoints, from which a run can resume; 0 = none, only the final model",
        minimum=0,
        in_result=False,
    )
    keep_checkpoints: int = key(
        2, "number of latest checkpoints kept while the run lasts; 0 = all, and after it", minimum=0, in_result=False
    )
    resume: bool = key(False, "continue the run in output.dir from its last checkpoint, if it has one", in_result=False)
    tracker: str = key(
        "none",
        "where rounds are also shown; needs fedpfn[tensorboard] or fedpfn[mlflow]",
        choices=("none", "tensorboard", "mlflow"),
        in_result=False,
    )
    save_client_models: bool = key(
        False, "keep the client models of rounds in which barriers are measured", in_result=False
    )
    keep_best: bool = key(
        False, "keep the global model of the best evaluated round, next to the final one", in_result=False, since=2
    )
