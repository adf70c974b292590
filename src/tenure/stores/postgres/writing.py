"""Writing: what concerns conversations. Each operation is one statement; many at once travel together."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, LiteralString, final

from tenure.abc import Accepted, Amended, Appended, Deleted, Held, ReleasedNow, Sealed, Sent, Topic
from tenure.journal import Draft
from tenure.stores import rules
from tenure.stores.postgres import answers, requests
from tenure.stores.postgres.link import Statement
from tenure.stores.postgres.text import document, json_text, stored

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tenure.abc import (
        Append,
        AppendResult,
        Claim,
        Claimed,
        Fenced,
        Limits,
        Release,
        ReleaseResult,
        Stale,
        Submit,
        Submitted,
        Unknown,
    )
    from tenure.conversation import Record
    from tenure.journal import JsonObject
    from tenure.lease import Epoch, IncarnationId, Lease
    from tenure.stores.postgres.hints import Hints
    from tenure.stores.postgres.lanes import Lanes

DELTA_BYTES = 1 << 16
"""A larger delta is lost: what must arrive belongs into the journal."""

type Clock = list[float] | None
"""A test's idea of time: the store's now and the time of day; null where the server's counts."""

_COLUMNS: Final = answers.ANSWER
_GROUPS: Final[dict[str, LiteralString]] = {
    "append": f"SELECT {_COLUMNS} FROM append(%s::json, %s::float8[], %s, %s)",
    "append_many": f"SELECT {_COLUMNS} FROM append_many(%s::json, %s::float8[])",
    "submit_many": f"SELECT {_COLUMNS} FROM submit_many(%s::json, %s::float8[], %s)",
    "claim_many": f"SELECT {_COLUMNS} FROM claim_many(%s::json, %s::float8[])",
    "submit": f"SELECT {_COLUMNS} FROM submit(%s::json, %s::float8[], %s, %s)",
    "claim": f"SELECT {_COLUMNS} FROM claim(%s::json, %s::float8[], %s)",
    "publish": f"SELECT {_COLUMNS} FROM publish(%s::json, %s::float8[], %s, %s)",
}
_APPEND_ONE: Final = (
    f"SELECT {_COLUMNS} FROM append_one(%s, %s, %s::bigint, %s, %s::bigint, %s::bigint, %s, %s, %s, %s, %s::float8[])"
)
_DELETE: Final = f"SELECT {_COLUMNS} FROM delete_conversation(%s, %s::float8[], %s)"
_AMEND: Final = f"SELECT {_COLUMNS} FROM amend(%s, %s::float8[], %s, %s::json)"
_SEAL: Final = f"SELECT {_COLUMNS} FROM seal(%s, %s::float8[], %s, %s, %s)"
_FORGET: Final = "SELECT forget(%s, %s, %s)"


def composer(clock: Callable[[], Clock], limits: Limits, channel: str) -> Callable[[str, str, bool], Statement]:
    """What makes the statement for a group of requests."""

    def compose(operation: str, group: str, patient: bool) -> Statement:
        given: dict[str, tuple[Any, ...]] = {
            "append": (patient, limits.refusals),
            "append_many": (),
            "submit_many": (limits.unsettled,),
            "claim_many": (),
            "submit": (patient, limits.unsettled),
            "claim": (patient,),
            "publish": (channel, limits.refusals),
        }
        return Statement(_GROUPS[operation], (group, clock(), *given[operation]))

    return compose


@final
class Writes:
    """The writing half of the port, as far as it concerns conversations. `swift` lanes never wait for a row."""

    def __init__(
        self, swift: Lanes, patient: Lanes, say: Lanes, hints: Hints, *, limits: Limits, clock: Callable[[], Clock]
    ) -> None:
        self._swift = swift
        self._patient = patient
        self._say = say
        self._hints = hints
        self._limits = limits
        self._clock = clock

    async def each[Q, R](self, operation: Callable[[Q], Awaitable[R]], some: Sequence[Q]) -> list[R]:
        """A result per request, in order."""
        return list(await asyncio.gather(*(operation(request) for request in some)))

    async def submit(self, request: Submit) -> Submitted:
        command = request.command
        large = command and rules.oversize((Draft(command.kind, command.body),), self._limits)
        if large is not None:
            return large
        fields = json_text(requests.submit_fields(request, self._limits))
        plain = requests.is_plain_submit(request)
        result = answers.submitted_of(await self._swift.ask("submit", fields, request.conversation, plain=plain))
        if isinstance(result, Accepted):
            self._tell(result.record)
        return result

    async def claim(self, request: Claim) -> Claimed:
        fields = json_text(requests.claim_fields(request, self._limits))
        row = await self._swift.ask("claim", fields, request.conversation, plain=requests.is_plain_claim(request))
        result = answers.claimed_of(request, row)
        if isinstance(result, Held) and row[3] is not None:
            self._tell(result.record)
        return result

    async def append(self, request: Append) -> AppendResult:
        fields = requests.append_fields(request, self._limits)
        conversation, plain = request.lease.conversation, requests.is_plain_append(fields)
        text = json_text(fields)
        alone = partial(self._append_one, fields) if plain else None
        row = await self._swift.ask("append", text, conversation, plain=plain, alone=alone)
        result = answers.appended_of(row)
        if isinstance(result, Appended):
            self._moved(conversation, result.head, request.lease.incarnation if row[3] else None)
        return result

    def _append_one(self, fields: requests.Fields) -> Statement:
        return Statement(_APPEND_ONE, (*requests.values_of(fields), self._clock()))

    async def release(self, request: Release) -> ReleaseResult:
        fields = json_text(requests.release_fields(request, self._limits))
        conversation = request.batch.lease.conversation
        row = await self._swift.ask("append", fields, conversation)
        result = answers.released_of(row)
        if isinstance(result, ReleasedNow) and not result.repeated:
            self._moved(conversation, result.head, "" if result.wanted else None)
        return result

    async def delete(self, conversation: str, expected_epoch: Epoch) -> Deleted | Stale | Unknown:
        statement = Statement(_DELETE, (stored(conversation), self._clock(), expected_epoch))
        row = (await self._patient.run(statement))[0]
        result = answers.changed_of(row)
        assert not isinstance(result, Amended)
        if isinstance(result, Deleted) and document(row[2])[1]:
            self._moved(conversation, 0, None)
        return result

    async def amend(self, conversation: str, version: int, changes: JsonObject) -> Amended | Stale | Deleted | Unknown:
        fields = json_text(requests.change_fields(changes))
        statement = Statement(_AMEND, (stored(conversation), self._clock(), version, fields))
        result = answers.changed_of((await self._patient.run(statement))[0])
        if isinstance(result, Amended):
            self._tell(result.record)
        return result

    async def publish(self, lease: Lease, delta: JsonObject) -> Sent | Fenced:
        payloads = self._hints.payloads_of(lease.conversation, delta)
        small = sum(map(len, payloads)) <= DELTA_BYTES
        fields = json_text({**requests.lease_fields(lease), "payloads": [*payloads] if small else []})
        row = await self._say.ask("publish", fields, lease.conversation)
        if row[1] != "sent":
            return answers.fenced_of(row)
        if small:
            self._hints.hand_delta(lease.conversation, delta)
        return Sent()

    # the vault

    async def seal(
        self, conversation: str, name: str, ciphertext: bytes, version: int
    ) -> Sealed | Stale | Deleted | Unknown:
        statement = Statement(_SEAL, (stored(conversation), self._clock(), stored(name), ciphertext, version))
        row = (await self._patient.run(statement))[0]
        if row[1] == "sealed":
            return Sealed(name, ciphertext, version + 1)
        result = answers.changed_of(row)
        assert not isinstance(result, Amended)
        return result

    async def forget(self, conversation: str, name: str, version: int) -> bool:
        return (await self._patient.run(Statement(_FORGET, (stored(conversation), stored(name), version))))[0][0]

    # hints

    def _tell(self, record: Record) -> None:
        owner = record.owner.incarnation if record.owner else ""
        self._moved(record.conversation, record.head, owner if record.wanted else None)

    def _moved(self, conversation: str, head: int, wanted_of: IncarnationId | str | None) -> None:
        """The journal moved; something is wanted of its owner, of anybody (''), or of nobody (null)."""
        topics = [Topic(Topic.CONVERSATION, conversation)]
        if wanted_of is not None:
            topics.append(Topic(Topic.NODE, wanted_of) if wanted_of else Topic(Topic.WANTED))
        self._hints.tell(topics, conversation, head)
