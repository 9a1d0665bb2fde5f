"""Who trains in a round, on which node, and what came back from there.

Clients are not SuperNodes: clients are drawn by id from the seed, so that every algorithm meets the same ones in the
same rounds, and dealt out to the nodes at hand. Nothing here depends on Flower's node ids, which are random, but the
address on the envelope.
"""

import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from torch import Tensor

from fedpfn import protocol
from fedpfn.answers import Failure, Update
from fedpfn.npy import from_npy, to_npy
from fedpfn.params import State
from fedpfn.runs.keys import Scalar
from fedpfn.schedules import Plan, encode_plan
from fedpfn.seeding import numpy_generator


@dataclass(frozen=True)
class Answers:
    """The answers of a round, sorted by client id whatever order they came in.

    ``train_seconds`` is the training time of the busiest process: processes work side by side. ``bytes_up`` are those
    of all updates as serialised.
    """

    updates: list[Update]
    failures: list[Failure]
    devices: list[str]
    train_seconds: float
    bytes_up: int


def draw_clients(seed: int, server_round: int, sizes: Sequence[int], *, clients: int, fraction: float) -> list[int]:
    """Draw round(fraction * clients) client ids, at least 1, among those with examples; sorted."""
    eligible = [client for client, size in enumerate(sizes) if size > 0]
    count = min(max(int(fraction * clients + 0.5), 1), len(eligible))
    generator = numpy_generator(seed, "clients", server_round)
    return sorted(eligible[i] for i in generator.choice(len(eligible), size=count, replace=False))


def assign(clients: Iterable[int], sizes: Sequence[int], *, nodes: int) -> list[list[int]]:
    """Deal clients out to ``nodes`` cohorts of even work: longest first onto the least loaded; none is empty.

    >>> assign([0, 1, 2, 3], [50, 10, 30, 20], nodes=2)
    [[0, 1], [2, 3]]
    """
    heap: list[tuple[int, int, list[int]]] = [(0, node, []) for node in range(nodes)]
    for client in sorted(clients, key=lambda c: (-sizes[c], c)):
        load, node, cohort = heapq.heappop(heap)
        cohort.append(client)
        heapq.heappush(heap, (load + sizes[client], node, cohort))
    cohorts = [sorted(cohort) for _, _, cohort in sorted(heap, key=lambda entry: entry[1])]
    return [cohort for cohort in cohorts if cohort]


def train_messages(
    server_round: int,
    arrays: ArrayRecord,
    plan: Plan,
    cohorts: Mapping[int, Sequence[int]],
    run_config: Mapping[str, Scalar],
) -> list[Message]:
    """Return a TRAIN message for each node of ``cohorts``: global arrays, plan, its clients, the run's config."""
    return [
        Message(
            RecordDict(
                {
                    protocol.GLOBAL: arrays,
                    protocol.ROUND: ConfigRecord(
                        {
                            protocol.SERVER_ROUND: server_round,
                            protocol.CLIENTS: list(clients),
                            protocol.PLAN: encode_plan(plan),
                        }
                    ),
                    protocol.CONFIG: ConfigRecord(dict(run_config)),
                }
            ),
            dst_node_id=node,
            message_type=MessageType.TRAIN,
        )
        for node, clients in cohorts.items()
    ]


def read_answers(replies: Iterable[Message], cohorts: Mapping[int, Sequence[int]]) -> Answers:
    """Read the replies of the nodes of ``cohorts``. A node's error, or its silence, is a failure of all its clients."""
    updates: list[Update] = []
    failures: list[Failure] = []
    devices: list[str] = []
    process_seconds: dict[int, float] = {}
    bytes_up = 0
    silent = dict(cohorts)
    for reply in replies:
        node = reply.metadata.src_node_id
        clients = silent.pop(node)
        if reply.has_error():
            reason = f"its node failed: {reply.error.reason}"
            failures += [Failure(client, "answering", reason) for client in clients]
            continue
        found = _read_updates(reply)
        updates += found
        bytes_up += record_bytes(reply.content.array_records[protocol.UPDATES])
        about = reply.content.config_records[protocol.REPORT]
        process = cast(int, about[protocol.PROCESS])
        process_seconds[process] = process_seconds.get(process, 0.0) + sum(update.seconds for update in found)
        devices.append(cast(str, about[protocol.DEVICE]))
        failures += [Failure(**report) for report in json.loads(cast(str, about[protocol.FAILURES]))]
    for clients in silent.values():
        failures += [Failure(client, "answering", "no answer within federation.timeout") for client in clients]
    return Answers(
        sorted(updates, key=lambda update: update.client),
        sorted(failures, key=lambda failure: failure.client),
        sorted(set(devices)),
        max(process_seconds.values(), default=0.0),
        bytes_up,
    )


def encode(tensor: Tensor) -> Array:
    """Return what ``Array(tensor.numpy())`` is, with one copy less."""
    kind = str(tensor.dtype).removeprefix("torch.")
    return Array(dtype=kind, shape=tuple(tensor.shape), stype="numpy.ndarray", data=to_npy(tensor))


def to_record(state: State) -> ArrayRecord:
    """Write a state as Flower's arrays."""
    return ArrayRecord({name: encode(tensor) for name, tensor in state.items()})


def from_record(arrays: ArrayRecord, device: torch.device) -> State:
    """Read Flower's arrays as a state on ``device``, not to be written to: on a CPU it shares their memory."""
    return {name: from_npy(array.data).to(device) for name, array in arrays.items()}


def record_bytes(arrays: ArrayRecord) -> int:
    """Return the bytes that the arrays take on the wire."""
    return sum(len(array.data) for array in arrays.values())


def _read_updates(reply: Message) -> list[Update]:
    packed: dict[int, dict[str, Tensor]] = {}
    for name, array in reply.content.array_records[protocol.UPDATES].items():
        client, dtype = protocol.read_update_key(name)
        packed.setdefault(client, {})[dtype] = from_npy(array.data)
    measures = reply.content.metric_records[protocol.MEASURES]
    columns = [
        cast(list[float], measures[name])
        for name in (
            protocol.CLIENT_IDS,
            protocol.NUM_EXAMPLES,
            protocol.NUM_STEPS,
            protocol.TRAIN_LOSS,
            protocol.SECONDS,
        )
    ]
    return [
        Update(int(client), packed[int(client)], int(examples), int(steps), loss, seconds)
        for client, examples, steps, loss, seconds in zip(*columns, strict=True)
    ]
