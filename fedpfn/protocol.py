"""Names that both ends of the wire must share: records and their keys. Plain strings.

A TRAIN message carries the global state (``ARRAYS``) and a config record (``CONFIG``), under Flower's usual keys. A
shared mask adds the round's plan and the names of the parameters that it covers to the config record; the application
adds the run's config. A reply carries ``ARRAYS`` and ``METRICS``. What a cohort adds is named in ``COHORT``'s block.
"""

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"

# what an algorithm's two halves send each other besides the model, and what its client keeps
ALGORITHM = "algorithm"

# what a client keeps of its updates that was lost to quantisation
RESIDUAL = "residual"

# the question for what matters to a client's data
SALIENCY = "saliency"

# the question for the clients that a node holds, and the keys of the answer's config record
HOLDING = "holding"
HELD_CLIENTS = "held-clients"
HELD_SIZES = "held-sizes"

# what a node's own config says about its data, by Flower's convention; in a cohort the first two are the client's, and
# the node's own are named by the others
PARTITION = "partition-id"
PARTITIONS = "num-partitions"
NODE_PARTITION = "node-partition-id"
NODE_PARTITIONS = "node-num-partitions"

# keys of the config record
SERVER_ROUND = "server-round"
PLAN = "mask-plan"
PARAMETERS = "mask-parameters"
RUN_CONFIG = "run-config"
# how a client makes its update private: the largest norm, and the noise that it adds in multiples of it
CLIP_NORM = "privacy-clip-norm"
CLIENT_NOISE = "privacy-client-noise"
# how clients send their updates in fewer bits (fedpfn.coding): the precision, whether what is lost is added to the
# next update, and the seed of the rounding, where it is to be repeated
PRECISION = "transport-precision"
ERROR_FEEDBACK = "transport-error-feedback"
ROUNDING_SEED = "transport-seed"
# what the server knows about data that lie on the nodes, as JSON: the shape of an input, the number of classes, and the
# channels' mean and std; where nodes read data of their own
DATA_FACTS = "data-facts"
SHAPE, CLASSES, MEAN, STD = "shape", "classes", "mean", "std"

# how the clients' arrays may be summed where they train: weighted by which metric, on which grid (fedpfn.averaging)
SUM_BY = "sum-by"
SUM_EXPONENTS = "sum-exponents"
SUM_CLIENTS = "sum-clients"

# keys of a reply's metric record
NUM_EXAMPLES = "num-examples"
# 1 for each client, where numbers of examples must not count
WEIGHT = "weight"
TRAIN_LOSS = "train-loss"
SECONDS = "seconds"
PHASE_STEPS = "phase-steps"
TEST_EXAMPLES = "test-examples"
TEST_ACCURACY = "test-accuracy"

# a round's metrics: how many hidden units of a layer were renumbered, a list over clients; the layer's name follows
MOVED = "units-moved/"

# a reply's config record that says where it was made
WORKER = "worker"
DEVICE = "device"
PROCESS = "process"

# a cohort's config record, in both directions: the clients of a worker, how many there are in all, and whether the
# worker may sum them up; their replies. The sum is a record of its own; what is one client's travels under own_key
COHORT = "cohort"
CLIENTS = "clients"
NUM_CLIENTS = "num-clients"
REPLIES = "replies"
SUM = "sum"
STATE = "state:"
# where clients' states lie in files: the folder, the number of each client's file, and that of the ones to write
STATES_IN = "states-in"
STATES_READ = "states-read"
STATES_WRITE = "states-write"
# how many seconds a client may train, and whether a cohort was lost before and must not be tried again
CLIENT_TIMEOUT = "client-timeout"
LAST_TRY = "last-try"
# in a node's config: its process may be ended, since it will be replaced
REPLACEABLE = "replaceable"
OWN = "client/"


def own_key(client: int, key: str) -> str:
    """Return the name under which a record of one client alone travels to its worker.

    Parameters
    ----------
    client
        The client's number.
    key
        The record's own key.

    Returns
    -------
    str
        The name, reserved for cohorts (``is_reserved``).
    """
    return f"{OWN}{client}/{key}"


def is_reserved(key: str) -> bool:
    """Return whether a cohort reserves ``key`` for its own record, so that no strategy may send one of that name.

    >>> is_reserved("client/1/arrays"), is_reserved("clients")
    (True, False)
    """
    return key == COHORT or key.startswith((OWN, STATE))


def array_key(client: int, key: str, name: str) -> str:
    """Return the name under which an array of one client's record travels back, if it travels alone.

    Parameters
    ----------
    client
        The client's number.
    key
        The record's own key.
    name
        The array's own name.

    Returns
    -------
    str
        The three, separated by slashes.
    """
    return f"{client}/{key}/{name}"
