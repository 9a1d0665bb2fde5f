"""The sections of the run config: every setting of a run with its default, its permitted values, and when it is used.

A setting is declared once, here; documents, defaults of Flower's app, checks and the identity of a run follow from it
(``keys``). ``config`` combines the sections.
"""

from dataclasses import dataclass

from fedpfn.runs.keys import key, unless, when, whole

# pattern of an import string, which names a user's own part
OWN = "*:*"
# mask ratio that stands for the algorithm's default
BY_ALGORITHM = -1.0
_LR_SCHEDULES = ("constant", "cosine", "step", "linear")
_ARGS = "arguments of {}: one key per argument, such as {}, or one string of name=value pairs"


@dataclass(frozen=True)
class Federation:
    clients: int = key(10, "number of simulated clients K; it does not depend on the number of SuperNodes", minimum=1)
    fraction: float = key(1.0, "fraction of the clients that train in a round", above=0, maximum=1)
    tolerate_failures: int = key(0, "number of clients per round that may fail without stopping the run", minimum=0)
    quorum: float = key(
        0.5,
        "minimum fraction of a round's clients that must reply if failures are tolerated",
        above=0,
        maximum=1,
        used=(unless("federation.tolerate-failures", "0"),),
    )
    timeout: float = key(86400.0, "seconds to wait for the replies of a round", above=0, in_result=False)
    client_timeout: float = key(
        0.0, "seconds that a client may train in a round before it counts as failed; 0 = no limit", minimum=0,
        in_result=False, since=2,
    )  # fmt: skip
    pinned: bool = key(
        False,
        "each SuperNode trains only the clients of its own partition-id, and holds only their examples",
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
    # for a folder of images and for the user's own loader it determines which data are used, not only where they are
    root: str = key(
        "", "folder that contains the data (absolute path)", in_result=when("data.name", "image-folder", OWN)
    )
    download: bool = key(False, "let torchvision download what is missing", in_result=False)
    image_size: int = key(
        0, "side in pixels to which images of a folder are resized and cropped; 0 = as they are", minimum=0
    )
    train_examples: int = key(0, "training examples to use, drawn from the seed; 0 = all", minimum=0, since=2)
    test_examples: int = key(0, "test examples to use, drawn from the seed; 0 = all", minimum=0, since=2)
    task: str = key(
        "auto",
        "task, which sets loss, score and number of outputs; auto follows the labels (integers, floats, rows of 0/1)",
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
        "concentration of the Dirichlet distribution; smaller is more skewed",
        above=0,
        used=(when("partition.scheme", "dirichlet*", OWN),),
    )
    min_size: int = key(
        0, "minimum number of examples per client (Dirichlet schemes redraw a limited number of times)", minimum=0
    )
    shards_per_client: int = key(
        2, "shards per client (scheme shards)", minimum=1, used=(when("partition.scheme", "shards", OWN),)
    )
    classes_per_client: int = key(
        2, "classes per client (scheme pathological)", minimum=1, used=(when("partition.scheme", "pathological", OWN),)
    )
    holdout: float = key(
        0.0,
        "fraction of each client's examples that are held out to test on, drawn from the seed",
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
    width: int = key(200, "units per hidden layer of the MLP", minimum=1, maximum=1_000_000)
    norm: str = key(
        "none",
        "normalisation in ResNets, VGGs and torchvision models; without it they need train.lr near 0.01",
        choices=("none", "group", "layer", "batch"),
    )
    width_multiplier: float = key(
        1.0, "width of a built-in model relative to its standard width", above=0, maximum=1000
    )
    pretrained: bool = key(False, "start torchvision models from their published weights")


@dataclass(frozen=True)
class Strategy:
    name: str = key(
        "fedpfn",
        "the algorithm, or the import string of your own fedpfn.training.LocalAlgorithm",
        choices=(
            "fedavg", "fedpfn", "fedpnu", "fedprox", "scaffold", "feddyn", "moon", "fedsam", "fednova", "fedlc",
            "fedgucci", "fedexp", "ssfl",
        ),
        own=True,
    )  # fmt: skip
    base: str = key(
        "fedavg",
        "the Flower strategy under the mask, which aggregates the clients' models and takes the server's step",
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
        "FedPNU's variant: m then 1-m within a round or in alternate rounds, or m then all entries",
        choices=("within-round", "across-rounds", "then-all"),
        used=(when("strategy.name", "fedpnu"),),
    )
    phase_share: float = key(
        0.5,
        "fraction of the local steps that FedPNU's first phase takes",
        above=0,
        below=1,
        used=(when("strategy.name", "fedpnu"), unless("strategy.variant", "across-rounds")),
    )
    match: str = key(
        "none",
        "permute the hidden units of clients' models to match before they are averaged, by weights or "
        "activations; units with frozen entries stay in place",
        choices=("none", "weights", "activations"),
        since=2,
    )
    match_to: str = key(
        "global",
        "what client models are matched to: the model that the round started from, or the mean of those matched so far",
        choices=("global", "mean"),
        used=(unless("strategy.match", "none"),),
        since=2,
    )
    match_examples: int = key(
        500,
        "test examples, without labels, on which activations are compared, drawn from the seed; 0 = all",
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
        "fraction of frozen entries (zeros of the mask); -1 = 0.4 with fedpfn, fedpnu and ssfl, otherwise no mask",
        minimum=0,
        maximum=1,
    )
    ratio_shape: str = key(
        "constant", "how the ratio changes over the rounds", choices=("constant", "linear", "cosine")
    )
    final_ratio: float = key(
        0.4,
        "ratio in the last round, for ratio-shape linear and cosine",
        minimum=0,
        maximum=1,
        used=(unless("mask.ratio-shape", "constant"),),
    )
    warmup_rounds: int = key(0, "number of initial rounds without a mask", minimum=0)
    granularity: str = key(
        "weight", "what is frozen as a unit: a single weight or a neuron", choices=("weight", "neuron")
    )
    draw: str = key(
        "exact", "exact count of frozen entries per tensor, or independent draws", choices=("exact", "bernoulli")
    )
    blocks: int = key(
        4,
        "number of starting points that schedule cyclic takes in turn, one per round",
        minimum=2,
        used=(when("mask.schedule", "cyclic"),),
    )
    include: str = key("*", "comma-separated patterns of the names of parameters that may be masked")
    exclude: str = key("", "comma-separated patterns of the names of parameters that are never masked")


@dataclass(frozen=True)
class Train:
    epochs: float = key(
        1,
        "local epochs per round, which may be fractional (0.5, 1.5); the number of steps is rounded up",
        above=0,
        used=(when("train.steps", "0"),),
        fraction=True,
    )
    steps: int = key(0, "local steps per round; above 0 it replaces epochs", minimum=0)
    batch_size: int = key(32, "examples per local step", minimum=1)
    augment: str = key(
        "none",
        "augmentation of training images by random crops (padding 4) and flips, or your own function "
        "(images, generator)",
        choices=("none", "crop-flip", "crop", "flip"),
        own=True,
        since=2,
    )
    optimizer: str = key(
        "sgd",
        "local optimiser, created anew each round; an import string (torch.optim:RMSprop) is called with "
        "parameters and lr",
        choices=("sgd", "adam", "adamw"),
        own=True,
    )
    args: str = key("", _ARGS.format("the optimiser", "train.args.amsgrad=true"), since=2)
    lr: float = key(0.1, "local learning rate in round 1", above=0)
    lr_decay: float = key(1.0, "factor applied to the learning rate from one round to the next", above=0, maximum=1)
    schedule: str = key(
        "constant",
        "learning rate schedule over the local steps of a round, or your own function (done, total) -> factor",
        choices=_LR_SCHEDULES,
        own=True,
        since=2,
    )
    schedule_every: int = key(
        10, "local steps between drops, for train.schedule=step", minimum=1, used=(when("train.schedule", "step"),),
        since=2,
    )  # fmt: skip
    schedule_gamma: float = key(
        0.1,
        "factor of each drop, for train.schedule=step",
        above=0,
        maximum=1,
        used=(when("train.schedule", "step"),),
        since=2,
    )
    round_schedule: str = key(
        "constant",
        "learning rate schedule over the rounds of a run, or your own function (done, total) -> factor; "
        "multiplies the other factors",
        choices=_LR_SCHEDULES,
        own=True,
        since=2,
    )
    round_schedule_every: int = key(
        10, "rounds between drops, for train.round-schedule=step", minimum=1,
        used=(when("train.round-schedule", "step"),), since=2,
    )  # fmt: skip
    round_schedule_gamma: float = key(
        0.1, "factor of each drop, for train.round-schedule=step", above=0, maximum=1,
        used=(when("train.round-schedule", "step"),), since=2,
    )  # fmt: skip
    warmup_rounds: int = key(
        0, "number n of initial rounds over which the learning rate rises, from train.lr / (n + 1)", minimum=0, since=2
    )
    momentum: float = key(0.9, "momentum of SGD", minimum=0, below=1, used=(when("train.optimizer", "sgd"),))
    nesterov: bool = key(False, "whether SGD uses Nesterov momentum", used=(when("train.optimizer", "sgd"),))
    weight_decay: float = key(
        0.0,
        "L2 penalty of sgd and adam, decoupled weight decay of adamw",
        minimum=0,
        used=(unless("train.optimizer", OWN),),
    )
    loss: str = key(
        "auto",
        "loss that clients minimise: the task's own, a variant, or package.module:function of (outputs, labels)",
        choices=("auto", "label-smoothing", "balanced"),
        own=True,
        since=2,
    )
    label_smoothing: float = key(
        0.1,
        "share of each label that label smoothing spreads over all classes",
        minimum=0,
        below=1,
        used=(when("train.loss", "label-smoothing"),),
        since=2,
    )
    proximal_mu: float = key(0.0, "FedProx: weight mu of the proximal term mu/2 |w - w_t|^2", minimum=0)
    clip_norm: float = key(0.0, "maximum norm of a step's masked gradient; 0 = no clipping", minimum=0)
    threads: int = key(1, "CPU threads per client; results depend on it, since the order of sums does", minimum=1)
    stack: int = key(
        0,
        "number of clients that a worker trains at once, stacked, if the model allows it; 0 = one by one, "
        "which is faster on a CPU",
        minimum=0,
        since=2,
    )

    def __post_init__(self) -> None:
        """Keep an integral number of epochs as an int, as in configs written before fractions were allowed."""
        object.__setattr__(self, "epochs", whole(self.epochs))


_PRIVATE = (unless("privacy.clip-norm", "0.0"),)


@dataclass(frozen=True)
class Privacy:
    clip_norm: float = key(
        0.0,
        "maximum norm of a client's update; above 0 all clients have the same weight, and noise is added",
        minimum=0,
        since=2,
    )
    noise_multiplier: float = key(
        0.0,
        "standard deviation of the noise in clip norms: in a round's sum of updates (central), or in each "
        "update (local)",
        minimum=0,
        used=_PRIVATE,
        since=2,
    )
    epsilon: float = key(
        0.0,
        "privacy budget of all rounds together; above 0 the noise multiplier is derived from it",
        minimum=0,
        used=_PRIVATE,
        since=2,
    )
    delta: float = key(
        1e-5,
        "probability with which the bound epsilon may fail; well below 1 / clients",
        above=0,
        below=1,
        used=_PRIVATE,
        since=2,
    )
    where: str = key(
        "central",
        "who adds the noise: the server, to the mean, or each client, to its update",
        choices=("central", "local"),
        used=_PRIVATE,
        since=2,
    )
    noise_from: str = key(
        "seed",
        "source of the noise: the run's seed, for repeatable simulations, or the operating system, for "
        "models to be published",
        choices=("seed", "system"),
        used=_PRIVATE,
        since=2,
    )


@dataclass(frozen=True)
class Transport:
    precision: str = key(
        "float32",
        "precision of the updates that clients send: int8 (a quarter of the bytes) or float16 (half); the "
        "server's model, and what an algorithm sends in addition, stay in full precision",
        choices=("float32", "float16", "int8"),
        since=2,
    )
    error_feedback: bool = key(
        True,
        "clients add the rounding error of one update to the next; each stores a tensor of the model's size "
        "in the run folder",
        used=(unless("transport.precision", "float32"),),
        since=2,
    )


@dataclass(frozen=True)
class Evaluate:
    every: int = key(
        1, "rounds between evaluations of the global model; the last round is always evaluated", minimum=1, since=2
    )
    max_examples: int = key(
        0, "test examples per evaluation, drawn from the seed; 0 = all; the last round takes all", minimum=0, since=2
    )
    units_moved: bool = key(
        False,
        "count the hidden units of each client that matching by weights would move, without moving them",
        used=(when("strategy.match", "none"),),
        since=2,
    )


@dataclass(frozen=True)
class Stop:
    patience: int = key(
        0,
        "number of evaluations in a row without a better accuracy (or loss, if the task has no accuracy) that "
        "end the run; 0 = never",
        minimum=0,
        since=2,
    )
    min_delta: float = key(
        0.0,
        "minimum improvement of the accuracy that counts as better",
        minimum=0,
        used=(unless("stop.patience", "0"),),
        since=2,
    )
    target: float = key(0.0, "test accuracy that ends the run; 0 = none", minimum=0, maximum=1, since=2)


_MEASURED = (unless("barrier.every", "0"),)


@dataclass(frozen=True)
class Barrier:
    every: int = key(1, "rounds between barrier measurements; 0 = never", minimum=0)
    points: int = key(25, "points per path, including both ends", minimum=3, used=_MEASURED)
    max_pairs: int = key(
        0, "client pairs to measure per round, drawn from the seed; 0 = all", minimum=0, used=_MEASURED
    )
    max_examples: int = key(
        2000, "examples per evaluation on a path, drawn from the seed; 0 = all", minimum=0, used=_MEASURED
    )
    split: str = key(
        "test", "split of the data on which barriers are measured", choices=("test", "train"), used=_MEASURED
    )
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
        "rounds between checkpoints, from which a run can resume; 0 = none, only the final model",
        minimum=0,
        in_result=False,
    )
    keep_checkpoints: int = key(
        2,
        "number of latest checkpoints to keep during the run; 0 = keep all, also after the run",
        minimum=0,
        in_result=False,
    )
    resume: bool = key(False, "resume the run in output.dir from its last checkpoint, if there is one", in_result=False)
    tracker: str = key(
        "none",
        "tracker that also gets every round; needs fedpfn[tensorboard] or fedpfn[mlflow], or is your own class",
        choices=("none", "tensorboard", "mlflow"),
        own=True,
        in_result=False,
    )
    save_client_models: bool = key(
        False, "save the client models of rounds in which barriers are measured", in_result=False
    )
    keep_best: bool = key(False, "also keep the global model of the best evaluated round", in_result=False, since=2)
