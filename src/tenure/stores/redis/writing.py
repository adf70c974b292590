"""Writing: each operation is one script on one conversation, and one round trip; many at once travel together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, final

from tenure.abc import (
    Accepted,
    Amended,
    Dead,
    Deleted,
    Duplicate,
    Elsewhere,
    Fenced,
    Held,
    KeyReused,
    Paper,
    Refused,
    ReleasedNow,
    Repeated,
    Sealed,
    Sent,
    Stale,
    Unknown,
)
from tenure.errors import StoreUnavailableError
from tenure.journal import SettingsChanged, canonical, digest, draft
from tenure.lease import Epoch, Lease
from tenure.stores.redis.keys import PAPERS
from tenure.stores.redis.rebuild import rebuild
from tenure.stores.redis.replies import appended_of, created_no_of, record_of
from tenure.stores.redis.requests import (
    batch_arguments,
    claim_share,
    command_arguments,
    conversation_keys,
    creation_arguments,
    farewell_arguments,
    indexes,
    lease_arguments,
    plain_share,
)
from tenure.stores.redis.scripts import script

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tenure.abc import (
        Append,
        AppendResult,
        Claim,
        Claimed,
        Limits,
        Release,
        ReleaseResult,
        Submit,
        Submitted,
        Written,
    )
    from tenure.journal import JsonObject
    from tenure.stores.redis.keys import ConversationKeys, Keyspace
    from tenure.stores.redis.link import Reply
    from tenure.stores.redis.registry import Registry
    from tenure.stores.redis.scripts import Share
    from tenure.stores.redis.servers import Servers

DELTA_BYTES = 1 << 16
"""A larger delta is lost: what must arrive belongs into the journal."""
TRIES = 5
"""How often an operation looks again after what it learned: a lost record that was rebuilt, an owner that is dead."""


@final
class Writes:
    """The writing half of the port."""

    def __init__(
        self,
        servers: Servers,
        keyspace: Keyspace,
        registry: Registry,
        *,
        channel: str,
        limits: Limits,
        given: Callable[[], str],
    ) -> None:
        self._servers = servers
        self._keyspace = keyspace
        self._registry = registry
        self._channel = channel
        self._limits = limits
        self._given = given
        self.created_no = 0
        """The highest creation number that this process has seen: what it creates comes later."""

    async def each[Q, R](self, operation: Callable[[Q], Awaitable[R]], requests: Sequence[Q]) -> list[R]:
        """A result per request, in order."""
        if len(requests) == 1:
            return [await operation(requests[0])]
        return list(await asyncio.gather(*(operation(request) for request in requests)))

    async def _until_found(self, conversation: str, attempt: Callable[[], Awaitable[list[Reply]]]) -> list[Reply]:
        """The answer to an operation; a lost record whose journal is there is rebuilt first."""
        for _ in range(TRIES):
            answer = await attempt()
            if answer[0] != b"lost":
                return answer
            await rebuild(self._servers, self._keyspace.conversation(conversation), conversation)
        raise StoreUnavailableError(f"the record of conversation {conversation} is being rebuilt; repeat the request")

    def saw(self, created_no: int) -> None:
        """A creation number that came by."""
        self.created_no = max(self.created_no, created_no)

    # conversations

    async def submit(self, request: Submit) -> Submitted:
        keys = self._keyspace.conversation(request.conversation)
        command, large_command = command_arguments(request.command, self._limits)
        creation, large_event = creation_arguments(request.create, self.created_no, self._limits)
        call = script("submit").call(
            **conversation_keys(keys, "lock", "journal", "keys"),
            **indexes(keys.partition),
            created=keys.partition.created,
            given=self._given(),
            channel=self._channel,
            conversation=request.conversation,
            **command,
            unsettled_limit=self._limits.unsettled,
            **creation,
        )
        answer = await self._until_found(request.conversation, lambda: self._servers.run(keys.tag, call))
        match answer:
            case [b"accepted", seq, created, shown]:
                if created == b"1":
                    self.saw(created_no_of(shown))
                return Accepted(int(seq), record_of(shown), created == b"1")
            case [b"duplicate", seq, shown]:
                return Duplicate(int(seq), record_of(shown))
            case [b"reused", seq]:
                return KeyReused(int(seq))
            case [b"refused", reason, shown]:
                return Refused(reason.decode(), record_of(shown))
            case [b"deleted", epoch]:
                return Deleted(Epoch(int(epoch)))
            case [b"unknown"]:
                return Unknown()
            case [b"large", what]:
                large = large_command if what == b"command" else large_event
                assert large is not None, "the script was told so"
                return large
            case _:
                raise _strange("submit", answer)

    async def claim(self, request: Claim) -> Claimed:
        may_claim = await self._registry.may_claim(request.incarnation)
        answer: list[Reply] = []
        for _ in range(TRIES):
            answer = await self._claim(request, may_claim=may_claim)
            if answer[0] != b"elsewhere" or not self._servers.is_cluster:
                break
            owner = record_of(answer[1]).owner
            assert owner is not None, "elsewhere is with somebody"
            if not await self._registry.dead_among([owner.incarnation]):
                break
        return self._claimed(request, answer)

    async def claim_all(self, requests: Sequence[Claim]) -> list[Claimed]:
        """A few calls for all; what has to be looked at again is claimed by itself, with the same token (rule 3)."""
        may_claim = {name: await self._registry.may_claim(name) for name in {one.incarnation for one in requests}}
        shares = [self._claim_share(request, may_claim=may_claim[request.incarnation]) for request in requests]
        answers = await self._servers.join_all(shares)
        again = (b"lost", b"elsewhere") if self._servers.is_cluster else (b"lost",)
        return [
            await self.claim(request) if answer[0] in again else self._claimed(request, answer)
            for request, answer in zip(requests, answers, strict=True)
        ]

    async def _claim(self, request: Claim, *, may_claim: bool) -> list[Reply]:
        tag, share = self._claim_share(request, may_claim=may_claim)
        return await self._until_found(request.conversation, lambda: self._servers.join(tag, share))

    def _claim_share(self, request: Claim, *, may_claim: bool) -> tuple[str, Share]:
        keys, clustered = self._keyspace.conversation(request.conversation), self._servers.is_cluster
        creation, _ = creation_arguments(request.create, self.created_no, self._limits)
        common = {
            "given": self._given(),
            "channel": self._channel,
            "keys_each": "7" if clustered else "8",
            "lately_dead": f" {' '.join(self._registry.lately_dead)} " if clustered else "",
        }
        register = None if clustered else self._keyspace.register
        return keys.tag, claim_share(request, keys, register, common, creation, dead=not may_claim)

    def _claimed(self, request: Claim, answer: list[Reply]) -> Claimed:
        if answer[:2] == [b"held", b"1"]:
            self.saw(created_no_of(answer[2]))
        return _claimed(request, answer)

    async def append(self, request: Append) -> AppendResult:
        """Most batches are plain, and travel with everybody's; what is not, or is not simply the next one, goes by itself."""
        written = request.written()
        keys = self._keyspace.conversation(request.lease.conversation)
        share = plain_share(request, written, keys, {"given": self._given(), "channel": self._channel}, self._limits)
        if share is not None:
            result = await self._servers.join(keys.tag, share)
            if result:
                return appended_of(result)
        return await self._append(request, written, keys)

    async def _append(self, request: Append, written: Written, keys: ConversationKeys) -> AppendResult:
        batch, events, large = batch_arguments(request, written, self._limits)
        call = script("append").call(
            **self._batch_keys(keys), given=self._given(), channel=self._channel, **batch, events=events
        )
        answer = await self._servers.run(keys.tag, call)
        match answer:
            case [b"appended", result]:
                return appended_of(result)
            case [b"repeated", result]:
                return Repeated(appended_of(result))
            case [b"fenced", *shown]:
                return _fenced(shown)
            case [b"large"] if large is not None:
                return large
            case _:
                raise _strange("append", answer)

    async def release(self, request: Release) -> ReleaseResult:
        keys = self._keyspace.conversation(request.batch.lease.conversation)
        written = request.batch.written()
        batch, events, large = batch_arguments(request.batch, written, self._limits)
        batch["digest"] = request.digest(written)
        call = script("release").call(
            **self._batch_keys(keys),
            given=self._given(),
            channel=self._channel,
            **batch,
            **farewell_arguments(request),
            events=events,
        )
        answer = await self._servers.run(keys.tag, call)
        match answer:
            case [b"released", wanted, head, repeated]:
                return ReleasedNow(wanted == b"1", int(head), repeated == b"1")
            case [b"fenced", *shown]:
                return _fenced(shown)
            case [b"large"] if large is not None:
                return large
            case _:
                raise _strange("release", answer)

    def _batch_keys(self, keys: ConversationKeys) -> dict[str, str]:
        return conversation_keys(keys, "lock", "journal", "keys", "snapshot", "refusals") | indexes(keys.partition)

    async def publish(self, lease: Lease, delta: JsonObject) -> Sent | Fenced:
        keys = self._keyspace.conversation(lease.conversation)
        text = canonical(delta)
        call = script("publish").call(
            **conversation_keys(keys, "lock", "refusals"),
            given=self._given(),
            channel=self._channel,
            **lease_arguments(lease, self._limits),
            delta=text if len(text) <= DELTA_BYTES else "",
        )
        answer = await self._servers.run(keys.tag, call, durable=False)
        return Sent() if answer == [b"sent"] else _fenced(answer[1:])

    async def delete(self, conversation: str, expected_epoch: Epoch) -> Deleted | Stale | Unknown:
        keys = self._keyspace.conversation(conversation)
        call = script("delete").call(
            **conversation_keys(keys, "lock", "journal", "epochs", "keys", "snapshot", "vault"),
            **indexes(keys.partition),
            created=keys.partition.created,
            given=self._given(),
            channel=self._channel,
            expected_epoch=expected_epoch,
        )
        answer = await self._servers.run(keys.tag, call)
        match answer:
            case [b"deleted", epoch]:
                return Deleted(Epoch(int(epoch)))
            case [b"stale", shown]:
                return Stale(record_of(shown))
            case [b"unknown"]:
                return Unknown()
            case _:
                raise _strange("delete", answer)

    async def amend(self, conversation: str, version: int, changes: JsonObject) -> Amended | Stale | Deleted | Unknown:
        keys = self._keyspace.conversation(conversation)
        call = script("amend").call(
            **conversation_keys(keys, "lock", "journal"),
            **indexes(keys.partition),
            given=self._given(),
            channel=self._channel,
            version=version,
            **_changes(changes),
        )
        answer = await self._servers.run(keys.tag, call)
        match answer:
            case [b"amended", shown]:
                return Amended(record_of(shown))
            case [b"stale", shown]:
                return Stale(record_of(shown))
            case [b"deleted", epoch]:
                return Deleted(Epoch(int(epoch)))
            case [b"unknown"]:
                return Unknown()
            case _:
                raise _strange("amend", answer)

    # the vault, the papers

    async def seal(
        self, conversation: str, name: str, ciphertext: bytes, version: int
    ) -> Sealed | Stale | Deleted | Unknown:
        keys = self._keyspace.conversation(conversation)
        call = script("seal").call(
            **conversation_keys(keys, "lock", "vault"),
            given=self._given(),
            name=name,
            version=version,
            ciphertext=ciphertext,
        )
        answer = await self._servers.run(keys.tag, call)
        match answer:
            case [b"sealed"]:
                return Sealed(name, ciphertext, version + 1)
            case [b"stale", shown]:
                return Stale(record_of(shown))
            case [b"deleted", epoch]:
                return Deleted(Epoch(int(epoch)))
            case [b"unknown"]:
                return Unknown()
            case _:
                raise _strange("seal", answer)

    async def forget(self, conversation: str, name: str, version: int) -> bool:
        keys = self._keyspace.conversation(conversation)
        call = script("forget").call(vault=keys.vault, name=name, version=version)
        return await self._servers.run(keys.tag, call) == 1

    async def put_paper(self, kind: str, id: str, document: JsonObject, version: int) -> Paper | None:
        documents, ids = self._keyspace.papers(kind)
        topic = f"{self._channel}node:{id.partition('/')[0]}" if kind == "request" else ""
        call = script("put_paper").call(
            documents=documents, ids=ids, id=id, version=version, document=canonical(document), topic=topic
        )
        written = await self._servers.run(PAPERS, call) == 1
        return Paper(kind, id, document, version + 1) if written else None

    async def remove_paper(self, kind: str, id: str, version: int) -> bool:
        documents, ids = self._keyspace.papers(kind)
        call = script("remove_paper").call(documents=documents, ids=ids, id=id, version=version)
        return await self._servers.run(PAPERS, call) == 1


def _claimed(request: Claim, answer: list[Reply]) -> Claimed:
    match answer:
        case [b"held", created, shown]:
            record = record_of(shown)
            lease = Lease(request.conversation, request.incarnation, record.epoch, request.token)
            return Held(lease, record, created == b"1")
        case [b"elsewhere", shown]:
            return Elsewhere(record_of(shown))
        case [b"stale", shown]:
            return Stale(record_of(shown))
        case [b"refused", reason]:
            return Refused(reason.decode())
        case [b"refused", reason, shown]:
            return Refused(reason.decode(), record_of(shown))
        case [b"deleted", epoch]:
            return Deleted(Epoch(int(epoch)))
        case [b"dead"]:
            return Dead()
        case [b"unknown"]:
            return Unknown()
        case _:
            raise _strange("claim", answer)


def _fenced(shown: list[Reply]) -> Fenced:
    return Fenced(record_of(shown[0]) if shown else None)


def _changes(changes: JsonObject) -> dict[str, str]:
    arguments: dict[str, str] = dict.fromkeys(("title", "metadata", "settings", "settings_digest", "body"), "")
    if "title" in changes:
        title: Any = changes["title"]
        arguments["title"] = "-" if title is None else f"={title}"
    if "metadata" in changes:
        arguments["metadata"] = canonical(changes["metadata"])
    if "settings" in changes:
        settings: Any = changes["settings"]
        arguments["settings"], arguments["settings_digest"] = canonical(settings), digest(settings)
        arguments["body"] = canonical(draft(SettingsChanged(settings)).body)
    return arguments


def _strange(operation: str, answer: object) -> AssertionError:
    return AssertionError(f"{operation} answered {answer!r}, which it never does")
