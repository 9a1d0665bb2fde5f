"""Names of records and keys that server and clients must share, as plain strings.

A TRAIN message carries the global state (``ARRAYS``) and a config record (``CONFIG``), under Flower's usual keys. A
shared mask adds the round's plan and the names of the parameters that it covers to the config record; the application
adds the run's config. A reply carries ``ARRAYS`` and ``METRICS``. The names that a cohort adds begin at ``COHORT``.
"""

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"

# tensors that an algorithm's two halves exchange in addition to the model, and those that its client keeps
ALGORITHM = "algorithm"

# the quantisation error of its updates that a client keeps
RESIDUAL = "residual"

# the query for the saliency of entries for a client's data
SALIENCY = "saliency"

# the query for the clients that a node holds, and the keys of the answer's config record
HOLDING = "holding"
HELD_CLIENTS = "held-clients"
HELD_SIZES = "held-sizes"

# what a node's own config says about its data, by Flower's convention; in a cohort the first two are the client's, and
# the other two are the node's own
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
# how clients send their updates in fewer bits (fedpfn.coding): the precision, whether the error is added to the next
# update, and the seed of the rounding, if it must be repeatable
PRECISION = "transport-precision"
ERROR_FEEDBACK = "transport-error-feedback"
ROUNDING_SEED = "transport-seed"
# what the server knows about the data if nodes read their own, as JSON: the shape of an input, the number of classes,
# and the channels' mean and std
DATA_FACTS = "data-facts"
SHAPE, CLASSES, MEAN, STD = "shape", "classes", "mean", "std"

# how workers may sum their clients' arrays: weighted by which metric, on which grid (fedpfn.averaging)
SUM_BY = "sum-by"
SUM_EXPONENTS = "sum-exponents"
SUM_CLIENTS = "sum-clients"

# keys of a reply's metric record
NUM_EXAMPLES = "num-examples"
# 1 for each client, if clients must not be weighted by numbers of examples
WEIGHT = "weight"
TRAIN_LOSS = "train-loss"
SECONDS = "seconds"
PHASE_STEPS = "phase-steps"
TEST_EXAMPLES = "test-examples"
TEST_ACCURACY = "test-accuracy"

# in a round's metrics: the number of renumbered units of a layer, one per client; followed by the layer's name
MOVED = "units-moved/"

# the config record of a reply that says where the client trained
WORKER = "worker"
DEVICE = "device"
PROCESS = "process"

# a cohort's config record, in both directions: the worker's clients, the number of all clients, and whether the worker
# may sum them up; their replies. The sum is a separate record; a record of one client is sent under own_key
COHORT = "cohort"
CLIENTS = "clients"
NUM_CLIENTS = "num-clients"
REPLIES = "replies"
SUM = "sum"
STATE = "state:"
# where clients' states are kept in files: the folder, the number of each client's file, and the number to write under
STATES_IN = "states-in"
STATES_READ = "states-read"
STATES_WRITE = "states-write"
# seconds that a client may train, and whether a cohort was lost before and will not be tried again
CLIENT_TIMEOUT = "client-timeout"
LAST_TRY = "last-try"
# in a node's config: its process may be ended, because it will be replaced
REPLACEABLE = "replaceable"
OWN = "client/"


def own_key(client: int, key: str) -> str:
    """Return the name under which a record for a single client is sent to its worker.

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
    """Return whether cohorts reserve ``key`` for their own records, so that no strategy may send a record of that name.

    >>> is_reserved("client/1/arrays"), is_reserved("clients")
    (True, False)
    """
    return key == COHORT or key.startswith((OWN, STATE))


def array_key(client: int, key: str, name: str) -> str:
    """Return the name under which an array of one client's record is sent back if it is sent alone.

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
