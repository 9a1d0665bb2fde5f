"""Names that server and clients must spell alike: records, config keys and metric keys on the wire. Plain strings.

A TRAIN message to a node carries the global state once (``GLOBAL``), what to do in this round (``ROUND``) and the run's
whole config (``CONFIG``), so that one set of actors can serve one run after another. Its answer carries, for the
clients of that node's cohort, the packed updates (``UPDATES``, an array a client and dtype, named by ``update_key``),
their measures (``MEASURES``, lists in one order) and what went wrong and where it ran (``REPORT``).
"""

GLOBAL = "global"
ROUND = "round"
CONFIG = "config"
UPDATES = "updates"
MEASURES = "measures"
REPORT = "report"

# keys of the ROUND config record
SERVER_ROUND = "server-round"
CLIENTS = "clients"
PLAN = "plan"

# keys of the MEASURES metric record, each a list over the cohort's successful clients
CLIENT_IDS = "client-ids"
NUM_EXAMPLES = "num-examples"
NUM_STEPS = "num-steps"
TRAIN_LOSS = "train-loss"
SECONDS = "seconds"

# keys of the REPORT config record
FAILURES = "failures"
DEVICE = "device"
PROCESS = "process"


def update_key(client: int, dtype: str) -> str:
    """Return the name under which a client's packed entries of one dtype travel."""
    return f"{client}/{dtype}"


def read_update_key(name: str) -> tuple[int, str]:
    """Return (client, dtype) of a name made by ``update_key``."""
    client, _, dtype = name.partition("/")
    return int(client), dtype
