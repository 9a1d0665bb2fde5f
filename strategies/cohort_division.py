"""Which clients of a round share a worker: cohorts of similar work, and smaller ones after a worker has died."""

import heapq
from collections.abc import Iterable, Sequence


def assign(clients: Iterable[int], sizes: Sequence[int], *, nodes: int, together: int = 1) -> list[list[int]]:
    """Divide clients into at most ``nodes`` non-empty cohorts of similar work, in blocks of ``together`` neighbours.

    The largest block goes first, to the least loaded cohort. Blocks are formed from the ids in ascending order, so
    that they do not depend on the number of nodes.

    >>> assign([0, 1, 2, 3], [50, 10, 30, 20], nodes=2)
    [[0, 1], [2, 3]]
    >>> assign([0, 1, 2, 3, 4], [5, 5, 5, 5, 5], nodes=2, together=2)
    [[0, 1, 4], [2, 3]]
    """
    ids = sorted(clients)
    blocks = [ids[start : start + together] for start in range(0, len(ids), together)]
    work = {block[0]: sum(sizes[client] for client in block) for block in blocks}
    heap: list[tuple[int, int, list[int]]] = [(0, node, []) for node in range(nodes)]
    for block in sorted(blocks, key=lambda block: (-work[block[0]], block[0])):
        load, node, cohort = heapq.heappop(heap)
        cohort += block
        heapq.heappush(heap, (load + work[block[0]], node, cohort))
    cohorts = [sorted(cohort) for _, _, cohort in sorted(heap, key=lambda entry: entry[1])]
    return [cohort for cohort in cohorts if cohort]


def divided(clients: Sequence[int], together: int) -> list[Sequence[int]]:
    """Return the smaller cohorts into which to divide one whose worker died twice.

    They are as small as possible at once, since every death costs the start of a process, while small messages cost
    next to nothing: if one client of n kills its workers, three workers die and no client trains more than three times,
    whereas repeated halving would take log2(n) more deaths. Clients that train in one stack stay together, so that
    results keep their last bits, unless the worker died with just this stack.

    >>> divided([0, 1, 2], together=1), divided([0, 1, 2, 5, 8], together=2), divided([2, 5], together=2)
    ([[0], [1], [2]], [[0, 1], [2, 5], [8]], [[2], [5]])
    """
    size = together if len(clients) > together else 1
    return [clients[start : start + size] for start in range(0, len(clients), size)]
