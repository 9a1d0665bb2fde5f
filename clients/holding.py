"""Which clients a node holds: node i of n, by its node config, holds clients i, i + n, i + 2n, ...

``--node-config "partition-id=0 num-partitions=2"``, Flower's convention, sets i and n for a SuperNode. It answers the
server's query with the clients that it holds, and trains no others. Its data are its share of a data set that all nodes
can read or, with a loader that reads parts, data that only it has (``partitions.user_loader``).
"""

import json
from dataclasses import dataclass
from functools import lru_cache

from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedpfn.protocol import (
    CLASSES,
    CONFIG,
    DATA_FACTS,
    HELD_CLIENTS,
    HELD_SIZES,
    MEAN,
    NODE_PARTITION,
    NODE_PARTITIONS,
    PARTITION,
    PARTITIONS,
    SHAPE,
    STD,
)


@dataclass(frozen=True)
class Facts:
    """What a node cannot derive from its own data alone: input shape, number of classes, channel statistics."""

    shape: tuple[int, ...]
    classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Facts":
        """Read what the server sent."""
        sent = json.loads(text)
        return cls(tuple(sent[SHAPE]), sent[CLASSES], tuple(sent[MEAN]), tuple(sent[STD]))


@dataclass(frozen=True)
class Holding:
    """The clients of node ``partition``, where clients are assigned to ``partitions`` nodes in turn.

    ``facts`` are given if the node reads its own data.

    >>> list(Holding(1, 3).clients(8)), 4 in Holding(1, 3)
    ([1, 4, 7], True)
    """

    partition: int
    partitions: int
    facts: Facts | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.partition < self.partitions:
            raise ValueError(
                f"a node's partition-id is a number from 0 to num-partitions - 1; its node config says "
                f"partition-id={self.partition} num-partitions={self.partitions}"
            )

    def clients(self, total: int) -> range:
        """Return the ids of the node's clients, out of ``total``."""
        return range(self.partition, total, self.partitions)

    def __contains__(self, client: int) -> bool:
        return client % self.partitions == self.partition


def holding_of(message: Message, context: Context) -> Holding:
    """Return which clients a context's node holds, from the node's config and the server's message.

    Raises ``ValueError`` for a node whose config does not say.
    """
    config = context.node_config
    names = (NODE_PARTITION, NODE_PARTITIONS) if NODE_PARTITION in config else (PARTITION, PARTITIONS)
    if not all(name in config for name in names):
        raise ValueError(
            "federation.pinned=true needs SuperNodes that say which part of the data they hold: start each with "
            '--node-config "partition-id=0 num-partitions=2", counted from 0'
        )
    partition, partitions = (int(config[name]) for name in names)
    facts = message.content.config_records[CONFIG].get(DATA_FACTS)
    return Holding(partition, partitions, None if facts is None else _facts(str(facts)))


# the same in every message of a run
_facts = lru_cache(maxsize=1)(Facts.parse)


def reply_with_holding(sizes: dict[int, int], message: Message) -> Message:
    """Write the clients that a node holds, with their numbers of examples, as the reply to ``message``."""
    about = ConfigRecord({HELD_CLIENTS: list(sizes), HELD_SIZES: list(sizes.values())})
    return Message(RecordDict({CONFIG: about}), reply_to=message)
