"""Where what is kept: the names of all keys, and the partitions that tie them together.

A conversation belongs to partition ``hash(id) mod 64``. Its keys and the partition's indexes share the hash tag ``{p}``, so
that in a Cluster they live in one slot, and one script may change them in one step. The number of partitions is fixed
when a store is used first, and stored.

::

    tenure:{17}:<id>:conversation_lock   hash     the record: owner, epoch, token, and what else the store keeps of it
    tenure:{17}:<id>:journal             stream   its events; an entry's id is <epoch in force>-<seq>
    tenure:{17}:<id>:epochs              zset     each claimed epoch, by the seq it begins with: finds a seq in the stream
    tenure:{17}:<id>:keys                hash     a command's key -> "<seq> <digest>"
    tenure:{17}:<id>:snapshot            hash     seq, fold, loop
    tenure:{17}:<id>:vault               hash     name -> "<version> <ciphertext>"
    tenure:{17}:<id>:refusals            list     refused writes, newest first, trimmed
    tenure:{17}:wanted                   zset     what is wanted, ordered by owner, agent and end of the back-off
    tenure:{17}:owners                   zset     owner -> how many of these it owns
    tenure:{17}:named                    zset     owner -> how many conversations it owns at all
    tenure:{17}:created                  zset     id, by creation number
    tenure:{nodes}:register              hash     every incarnation ever -> "registered" or "dead"; never shrinks
    tenure:{nodes}:living                zset     incarnations that nobody has buried, by order of registration
    tenure:{nodes}:node:<incarnation>    hash     its lease, and what it says of itself
    tenure:{nodes}:store                 hash     partitions, schema
    tenure:{papers}:documents:<kind>     hash     id -> "<version> <document>"
    tenure:{papers}:ids:<kind>           zset     the ids, in order
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from typing import final

SLOTS = 16384
"""Of a Redis Cluster."""

NODES = "nodes"
PAPERS = "papers"


def slot_of(tag: str) -> int:
    """The slot of a Cluster in which keys with this hash tag live."""
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


@final
@dataclass(frozen=True, slots=True)
class PartitionKeys:
    """The indexes of one partition."""

    tag: str
    begin: str
    """Of the names of its conversations' keys."""
    wanted: str
    owners: str
    named: str
    created: str


@final
class ConversationKeys:
    """The keys of one conversation; its partition's indexes are beside them."""

    __slots__ = ("_begin", "partition")

    def __init__(self, partition: PartitionKeys, begin: str) -> None:
        self.partition = partition
        self._begin = begin

    @property
    def tag(self) -> str:
        return self.partition.tag

    @property
    def lock(self) -> str:
        return f"{self._begin}conversation_lock"

    @property
    def journal(self) -> str:
        return f"{self._begin}journal"

    @property
    def epochs(self) -> str:
        return f"{self._begin}epochs"

    @property
    def keys(self) -> str:
        return f"{self._begin}keys"

    @property
    def snapshot(self) -> str:
        return f"{self._begin}snapshot"

    @property
    def vault(self) -> str:
        return f"{self._begin}vault"

    @property
    def refusals(self) -> str:
        return f"{self._begin}refusals"


@final
class Keyspace:
    """All names of one store. Two stores on one server differ by `prefix`."""

    def __init__(self, prefix: str, partitions: int) -> None:
        self.prefix = prefix
        self.partitions = tuple(self._partition(str(number)) for number in range(partitions))
        self.register = self._of(NODES, "register")
        self.living = self._of(NODES, "living")
        self.store = self._of(NODES, "store")
        self.nowhere = self._of(NODES, "nowhere")
        """Where nothing is ever kept."""

    def _of(self, tag: str, rest: str) -> str:
        return f"{self.prefix}:{{{tag}}}:{rest}"

    def _partition(self, tag: str) -> PartitionKeys:
        names = ("wanted", "owners", "named", "created")
        return PartitionKeys(tag, self._of(tag, ""), *(self._of(tag, name) for name in names))

    def conversation(self, id: str) -> ConversationKeys:
        """The keys of a conversation, which need not exist."""
        partition = self.partitions[binascii.crc32(id.encode()) % len(self.partitions)]
        return ConversationKeys(partition, f"{partition.begin}{id}:")

    def node(self, incarnation: str) -> str:
        """The key that a heartbeat renews."""
        return self._of(NODES, f"node:{incarnation}")

    def papers(self, kind: str) -> tuple[str, str]:
        """The papers of a kind, and their ids in order."""
        return self._of(PAPERS, f"documents:{kind}"), self._of(PAPERS, f"ids:{kind}")
