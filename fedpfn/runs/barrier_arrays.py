"""The connectivity of a round as the arrays of ``barriers/round-NNNN.npz``."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpfn.measures import Instruments
from fedpfn.rounds import Round

CONVENTION = "w(alpha) = alpha * first + (1 - alpha) * second"


def barrier_arrays(round: Round, instruments: Instruments, *, to_global: bool = True) -> dict[str, NDArray[Any]]:
    """Return the curves and matrices of a round's connectivity; empty for fewer than two clients.

    ``loss`` and ``accuracy`` (pairs, points) are the curves over ``alphas``; ``loss_matrix`` and ``accuracy_matrix``
    (clients, clients) the barriers; ``client_loss``, ``client_accuracy`` (clients,) the ends; ``to_global`` adds
    ``global_loss_barriers`` and ``global_accuracy_barriers`` (clients,), to the global model after the round. For a
    task that is scored by an error, there are the same arrays with ``error`` in their names.
    """
    connectivity, clients = instruments.connectivity(round), np.array(round.clients, dtype=np.int64)
    if connectivity is None:
        return {}
    barriers = connectivity.barriers
    arrays = {
        "clients": clients,
        "pairs": clients[barriers.pairs],
        "alphas": barriers.alphas,
        "loss": barriers.loss,
        "accuracy": barriers.accuracy,
        "loss_matrix": barriers.matrix("loss", len(clients)),
        "accuracy_matrix": barriers.matrix("accuracy", len(clients)),
        "client_loss": np.array([end.loss for end in connectivity.ends]),
        "client_accuracy": np.array([end.accuracy for end in connectivity.ends]),
        "convention": np.array(CONVENTION),
    }
    has_error = not instruments.task.has_accuracy
    if has_error:
        arrays |= {
            "error": barriers.error,
            "error_matrix": barriers.matrix("error", len(clients)),
            "client_error": np.array([end.error for end in connectivity.ends], dtype=float),
        }
    if (layers := instruments.layer_cosines(round)) is not None:
        arrays |= {"layer_llfc": layers.llfc, "layer_baseline": layers.baseline}
    if to_global and (paths := instruments.client_to_global(round)) is not None:
        arrays |= {"global_loss_barriers": paths.loss_barriers, "global_accuracy_barriers": paths.accuracy_barriers}
        if has_error:
            arrays |= {"global_error_barriers": paths.error_barriers}
    return arrays
