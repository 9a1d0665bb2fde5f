"""Partition schemes by name: a table, a function that draws a partition, and one that finds faults before any draw.

A scheme is a pure function (labels, clients, rng, *, settings) -> one array of indices per client. Its settings are its
keyword-only parameters: ``partition`` passes only these and, to a user's scheme, the user's own arguments. The schemes
are in ``dirichlet``, ``iid`` and ``shards``.
"""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions.assignment import Indices
from partitions.dirichlet import dirichlet, dirichlet_balanced, dirichlet_client
from partitions.feasibility import PartitionError, alpha_faults, class_faults, refuse, shard_faults, size_faults
from partitions.iid import iid
from partitions.shards import pathological, shards

__all__ = ["SCHEMES", "PartitionError", "Scheme", "find_faults", "partition"]

Scheme = Callable[..., list[Indices]]

SCHEMES: dict[str, Scheme] = {
    "dirichlet": dirichlet,
    "dirichlet-balanced": dirichlet_balanced,
    "dirichlet-client": dirichlet_client,
    "iid": iid,
    "shards": shards,
    "pathological": pathological,
}


def partition(
    scheme: str | Scheme,
    labels: NDArray[np.integer],
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float,
    min_size: int,
    shards_per_client: int,
    classes_per_client: int,
    args: Mapping[str, Any] | None = None,
) -> list[Indices]:
    """Divide examples among clients by a built-in scheme's name or a user's function.

    Parameters
    ----------
    scheme
        A name in ``SCHEMES``, or the user's own scheme, a function of the same kind.
    labels
        The examples' classes, integers (N,); a user's scheme may take labels of another form.
    clients
        Number of clients.
    rng
        Generator that draws the partition.
    alpha
        Dirichlet concentration, above 0, for schemes that take it: lower means more skew.
    min_size
        Smallest number of examples of a client, for every scheme: schemes that take it redraw, the result of others is
        checked.
    shards_per_client, classes_per_client
        Number of shards or classes of each client, at least 1, for schemes that take it.
    args
        The user's arguments for their own scheme.

    Returns
    -------
    list of (n,) int64
        Each client's indices into ``labels``, ascending.

    Raises
    ------
    PartitionError
        For an unknown scheme, impossible settings, a client with fewer than ``min_size`` examples, and a user's scheme
        that returns anything but one array of indices per client.
    """
    settings: dict[str, Any] = {
        "alpha": alpha,
        "min_size": min_size,
        "shards_per_client": shards_per_client,
        "classes_per_client": classes_per_client,
    }
    known: dict[str, Any] = {
        "clients": clients,
        "num_examples": len(labels),
        "num_classes": len(np.unique(labels)),
    }
    refuse(find_faults(scheme, args=args, **known, **settings))
    draw = SCHEMES[scheme] if isinstance(scheme, str) else scheme
    taken = keywords(draw)
    passed = {name: value for name, value in settings.items() if name in taken} | dict(args or {})
    parts = draw(labels, clients, rng, **passed)
    if not isinstance(scheme, str):
        parts = _checked(parts, clients=clients, num_examples=len(labels))
    if (smallest := min(len(part) for part in parts)) < min_size:
        raise PartitionError(
            f"the smallest client has {smallest} examples, partition.min-size is {min_size}; lower it, "
            "lower federation.clients, or take a partition.scheme with even sizes"
        )
    return parts


def find_faults(
    scheme: str | Scheme,
    *,
    clients: int,
    num_examples: int | None,
    num_classes: int | None,
    alpha: float,
    min_size: int,
    shards_per_client: int,
    classes_per_client: int,
    args: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return the settings that no draw can satisfy, one line each; only settings that the scheme takes are checked.

    ``num_examples`` and ``num_classes`` are None if the data are not known yet; checks that need them are skipped.
    """
    if isinstance(scheme, str) and scheme not in SCHEMES:
        near = get_close_matches(scheme.lower(), SCHEMES, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        return [f"no partition.scheme {scheme!r}{meant}; built in: {', '.join(SCHEMES)}"]
    taken = keywords(SCHEMES[scheme] if isinstance(scheme, str) else scheme)
    faults = size_faults(clients, num_examples, min_size=min_size)
    if isinstance(scheme, str):
        faults += [f"partition.args.{given} is for your own scheme; {scheme!r} takes none" for given in args or ()]
    if "alpha" in taken:
        faults += alpha_faults(alpha)
    if "shards_per_client" in taken:
        faults += shard_faults(shards_per_client, clients, num_examples)
    if "classes_per_client" in taken:
        faults += class_faults(classes_per_client, num_classes)
    return faults


def keywords(scheme: Scheme) -> set[str]:
    """Return the names of the settings that a scheme takes: its keyword-only parameters."""
    parameters = inspect.signature(scheme).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY}


def _checked(parts: Any, *, clients: int, num_examples: int) -> list[Indices]:
    """Return a user's parts as ascending int64; an index may be in two parts, but not twice in one."""
    if len(parts) != clients:
        raise PartitionError(f"the scheme returned {len(parts)} parts for federation.clients = {clients}")
    checked = []
    for client, part in enumerate(parts):
        indices = np.asarray(part)
        if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
            raise PartitionError(
                f"the scheme's part {client} is {indices.dtype} {indices.shape}; expected integers (n,)"
            )
        indices = np.sort(indices.astype(np.int64))
        if indices.size and not (indices[0] >= 0 and indices[-1] < num_examples and np.diff(indices).all()):
            raise PartitionError(f"the scheme's part {client} holds an index twice or outside 0..{num_examples - 1}")
        checked.append(indices)
    return checked
