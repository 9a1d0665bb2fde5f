"""Describe a partition: label histograms, clients' distances from the global distribution, and a record of it.

``schemes`` draws partitions.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions.assignment import Indices


def histograms(labels: NDArray[np.integer], parts: Sequence[Indices], num_classes: int) -> NDArray[np.int64]:
    """Return the number of examples of each class that each client holds, (K, C).

    >>> histograms(np.array([0, 1, 1]), [np.array([0, 1]), np.array([2])], 2).tolist()
    [[1, 1], [0, 1]]
    """
    counts = np.zeros((len(parts), num_classes), dtype=np.int64)
    for client, part in enumerate(parts):
        counts[client] = np.bincount(labels[part], minlength=num_classes)
    return counts


def total_variation(histograms: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each client's total variation distance from the global label distribution, (K,).

    TV_k = ½ Σ_c |h_kc / n_k - H_c / n| with H = Σ_k h_k: 0 for a client with the global distribution, close to 1 for
    one whose classes are rare elsewhere. Global means all examples that any client holds. A client without examples has
    no distribution: NaN.
    """
    sizes = histograms.sum(axis=1, keepdims=True)
    overall = histograms.sum(axis=0) / max(1, sizes.sum())
    distances: NDArray[np.float64] = np.abs(histograms / np.maximum(1, sizes) - overall).sum(axis=1) / 2
    return np.where(sizes[:, 0] > 0, distances, np.nan)


def mean_total_variation(histograms: NDArray[np.int64]) -> float:
    """Return the unweighted mean of ``total_variation`` over the clients that hold examples; 0 if none does."""
    distances = total_variation(histograms)
    held = distances[~np.isnan(distances)]
    return float(held.mean()) if held.size else 0.0


def manifest(
    labels: NDArray[np.integer],
    parts: Sequence[Indices],
    num_classes: int,
    *,
    held_out: Sequence[Indices] = (),
    **about: Any,
) -> dict[str, Any]:
    """Return a record of the partition for JSON: ``about`` (scheme, alpha, seed ...), then what was measured.

    Measured are ``clients``; ``examples``, the number held; ``unused``, the number that no client holds; ``sizes`` (K);
    ``class_counts`` (K, C); ``mean_total_variation``; and ``digest``, equal for two runs exactly if every client holds
    the same indices. They take precedence over entries of the same name in ``about``.

    All figures are of ``parts``, the examples to train on; if clients hold examples out, ``held_out`` (K) has their
    numbers, and these examples do not count as unused.
    """
    counts = histograms(labels, parts, num_classes)
    held = len(np.unique(np.concatenate(parts))) if len(parts) else 0
    used = len(np.unique(np.concatenate([*parts, *held_out]))) if len(parts) else 0
    tested = {"held_out": [len(part) for part in held_out]} if len(held_out) else {}
    return {
        **about,
        "clients": len(parts),
        "examples": held,
        "unused": len(labels) - used,
        "sizes": [len(part) for part in parts],
        **tested,
        "class_counts": counts.tolist(),
        "mean_total_variation": mean_total_variation(counts),
        "digest": _digest(parts),
    }


def _digest(parts: Sequence[Indices]) -> str:
    """Return the SHA-256 of every part's length and ascending indices, as little-endian 64-bit integers."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + np.sort(part).astype("<i8").tobytes())
    return f"sha256:{digest.hexdigest()}"
