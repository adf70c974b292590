"""The past of a copy: a judged recording is written into a new conversation, under a claim, in bounded batches (0060).

From the outside there is a conversation with all its past, or one that is seen not to be whole. Who repeats the request,
at any node, goes on where it stood: what a batch holds follows from the recording alone.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

from tenure.abc import (
    Accepted,
    Buried,
    Claim,
    Dead,
    Death,
    Deleted,
    Duplicate,
    Elsewhere,
    Held,
    Reading,
    Reason,
    Refused,
    Stale,
    Submit,
    Unknown,
)
from tenure.conversation import REPLAY, closing, is_own, recorded
from tenure.errors import (
    CommandRefusedError,
    ConversationDeletedError,
    ConversationExistsError,
    ConversationOwnedElsewhereError,
    InvalidInputError,
    JournalError,
    NodeUnavailableError,
    OwnershipLostError,
    StoreUnavailableError,
)
from tenure.journal import CORE_COMMANDS, Claimed, Command, Delivery, Rehydrating, canonical, draft, read_body
from tenure.lease import UNCLAIMED, Epoch, new_token
from tenure.node.tasks import settled
from tenure.node.tenure import Tenure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from tenure.abc import AgentLoop, Creation, Limits, Submitted
    from tenure.abc import Claimed as ClaimResult
    from tenure.conversation import Record, Recording
    from tenure.journal import Draft, Event
    from tenure.node.incarnation import Incarnation
    from tenure.node.tenure import Means


BATCH_EVENTS = 100
BATCH_BYTES = 1 << 20
PATIENCE_S = 10.0
"""How long another node that writes the same copy is waited for."""
POLL_S = 0.1


@final
@dataclass(frozen=True, slots=True)
class Copy:
    """What is asked for: this recording as the past of this conversation. `rerun`: then its messages once more."""

    conversation_id: str
    recording: Recording
    creation: Creation
    rerun: bool = False

    @property
    def request(self) -> tuple[str, str | None, bool]:
        """What makes two requests for one conversation the same."""
        return self.recording.digest, self.creation.user_id, self.rerun


@final
@dataclass(frozen=True, slots=True)
class Copied:
    """A copy that is whole. `created`: by this request, and not by an earlier one like it."""

    record: Record
    created: bool


@final
@dataclass(frozen=True, slots=True)
class Rehydration:
    """A copy that is being written here."""

    copy: Copy
    task: asyncio.Task[Copied]


async def rehydrate(incarnation: Incarnation, means: Means, copy: Copy) -> Copied:
    """The copy, whole and released. Not cancelled with its caller; the same request joins the one under way.

    :raises ConversationExistsError: the id is something else. :raises ConversationDeletedError: it was.
    :raises ConversationOwnedElsewhereError: another node writes it, and takes long. :raises NodeUnavailableError: the lease
        was lost meanwhile; repeat it. :raises CommandRefusedError: disturbed or stopped; nothing of it is kept.
    """
    under_way = incarnation.rehydrating.get(copy.conversation_id)
    if under_way is None:
        task = means.tasks.start(_rehydrate(incarnation, means, copy), f"rehydrate {copy.conversation_id}")
        under_way = incarnation.rehydrating[copy.conversation_id] = Rehydration(copy, task)
        task.add_done_callback(lambda _: incarnation.rehydrating.pop(copy.conversation_id, None))
    elif under_way.copy.request != copy.request:
        raise ConversationExistsError(copy.conversation_id)
    try:
        return await settled(under_way.task)
    except asyncio.CancelledError:
        if under_way.task.cancelled():
            raise NodeUnavailableError("this node is leaving; repeat the request") from None
        raise


def insist_on_copyable(copy: Copy, agent: AgentLoop | None, limits: Limits) -> None:
    """What the recording alone cannot tell, before anything is claimed. `agent` is the copy's, if this node knows it.

    :raises InvalidInputError: names the place, the limit and the remedy.
    """
    _insist_on_rerun(copy)
    if agent is not None:
        _insist_on_commands(copy, agent)
    open_ones = len(closing(copy.recording.fold, copy.recording))  # with the end of the past itself
    if open_ones > limits.batch_events:
        what = (
            f"its end leaves {open_ones - 1} things open, at most {limits.batch_events - 1} can be closed in one step"
        )
        raise InvalidInputError("replay", what, "let the original settle them first, or fork it at an earlier event")


def _insist_on_commands(copy: Copy, agent: AgentLoop) -> None:
    for kind, where in copy.recording.commands.items():
        if kind not in agent.commands:
            known = ", ".join([*CORE_COMMANDS, *sorted(agent.commands)])
            problem = f"{kind[:80]!r} is no command of this agent (it takes {known})"
            raise InvalidInputError(f"{where}: kind", problem, "copy it to an agent that declares the command")


def _insist_on_rerun(copy: Copy) -> None:
    if not copy.rerun:
        return
    if copy.recording.fold.stopped:
        raise InvalidInputError("rerun", "the past ends stopped", "fork it before the stop, or start the copy and send")
    if not copy.recording.messages:
        raise InvalidInputError("rerun", "the past has no message", "leave rerun out")


async def _rehydrate(incarnation: Incarnation, means: Means, copy: Copy) -> Copied:
    tenure = await _hold(incarnation, means, copy)
    if tenure is None:
        await _rerun(means, copy)
    else:
        if (before := incarnation.table.get(copy.conversation_id)) is not None:
            before.lose("superseded by who has the recording")
        work = means.tasks.start(_work(tenure, copy), f"past of {copy.conversation_id}")
        tenure.work = work
        incarnation.enter(tenure, work)
        try:
            await work
        except OwnershipLostError as loss:
            raise NodeUnavailableError(f"the copy was cut off ({loss.why}); repeat the request") from loss
    [record] = await means.store.records([copy.conversation_id])
    if record is None or record.deleted:
        raise ConversationDeletedError(copy.conversation_id)
    return Copied(record, tenure is not None)


# --- claim ----------------------------------------------------------------------------------------------------------


async def _hold(incarnation: Incarnation, means: Means, copy: Copy) -> Tenure | None:
    """The claim of the copy, new or unfinished; null when it is whole already.

    :raises ConversationExistsError: what stands there is something else. The rest as :func:`rehydrate`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while True:
        epoch, whole = await _found(means, copy)
        if whole:
            return None
        answer = await _claim(incarnation, means, copy, epoch)
        match answer:
            case Held():
                return Tenure(means, answer.lease, answer.record)
            case Elsewhere(record):
                assert record.owner is not None, "somebody owns it"
                buried = await means.store.bury(record.owner.incarnation, Death.EXPIRED)
                if not isinstance(buried, Buried):
                    if loop.time() > deadline:
                        raise ConversationOwnedElsewhereError(
                            copy.conversation_id, replace(record.owner, expires_in_s=buried.expires_in_s)
                        )
                    await asyncio.sleep(POLL_S * means.rng.uniform(0.5, 1.5))
            case Stale():
                await asyncio.sleep(POLL_S * means.rng.uniform(0, 0.1))
            case Refused(record=None):
                raise InvalidInputError("settings", "are larger than the store takes", "make them smaller")
            case Refused():
                raise ConversationExistsError(copy.conversation_id)
            case Deleted() | Unknown():
                raise ConversationDeletedError(copy.conversation_id)
            case Dead():
                incarnation.give_up("the store calls this incarnation dead")
                raise NodeUnavailableError("this node lost its lease and registers anew")


async def _found(means: Means, copy: Copy) -> tuple[Epoch, bool]:
    """The epoch of what stands under this id (0: nothing does), and whether it is the copy, whole.

    :raises ConversationExistsError: it is something else. :raises ConversationDeletedError: it was deleted.
    """
    conversation_id = copy.conversation_id
    opening = await means.store.read(conversation_id, 0, 2)
    if isinstance(opening, Unknown):
        return UNCLAIMED, False
    marks = await means.store.read(conversation_id, 0, 2, kinds=("rehydrating", "rehydrated"))
    if not isinstance(opening, Reading) or not isinstance(marks, Reading):
        raise ConversationDeletedError(conversation_id)
    claimed = read_body(opening.events[-1])
    of_copy = isinstance(claimed, Claimed) and claimed.why == REPLAY
    others = opening.record.user_id != copy.creation.user_id
    digests = {str(mark.body["digest"]) for mark in marks.events}
    if others or not of_copy or not digests <= {copy.recording.digest}:
        raise ConversationExistsError(conversation_id)
    return opening.record.epoch, any(mark.kind == "rehydrated" for mark in marks.events)


async def _claim(incarnation: Incarnation, means: Means, copy: Copy, expected: Epoch) -> ClaimResult:
    """One claim attempt under one token, repeated until it is answered: it is never forgotten (rule 3)."""
    request = Claim(
        conversation=copy.conversation_id,
        incarnation=incarnation.id,
        token=new_token(),
        expected_epoch=expected,
        node=means.config.node,
        address=means.config.public_address,
        why=REPLAY,
        create=replace(copy.creation, wanted=True),
        floor=means.floor,
    )
    failures = 0
    while True:
        if not incarnation.trusts():
            raise NodeUnavailableError("this node lost its lease and registers anew")
        try:
            return await means.store.claim(request)
        except StoreUnavailableError:
            failures = min(failures + 1, 8)
            await asyncio.sleep(0.01 * 2**failures * means.rng.uniform(0.5, 1.5))


# --- write ----------------------------------------------------------------------------------------------------------


async def _work(tenure: Tenure, copy: Copy) -> None:
    """From the claim to the release: what a tenure of a copy does.

    :raises OwnershipLostError: cut off. :raises CommandRefusedError: disturbed, and deleted.
    """
    try:
        try:
            await tenure.catch_up()
            if tenure.fold.rehydrating:
                await _write(tenure, copy)
        except (_Disturbed, JournalError, InvalidInputError) as error:
            raise await _dropped(tenure, error) from error
        await _rerun(tenure.means, copy)
        await tenure.release(Reason.IDLE)
    except OwnershipLostError as loss:
        tenure.lose(loss.why)
        raise
    except BaseException as error:
        tenure.lose(f"the copy was not finished: {error}")
        raise


class _Disturbed(Exception):
    """Somebody wrote to the copy while its past was written: references by seq no longer hold."""


async def _dropped(tenure: Tenure, error: Exception) -> CommandRefusedError:
    """Nothing of it is kept; nobody was told yet that it is there."""
    conversation_id = tenure.conversation_id
    await tenure.means.store.delete(conversation_id, tenure.lease.epoch, "tenure")
    tenure.lose("its past could not be written: deleted")
    words = f"conversation {conversation_id} was deleted while its past was written: {error}; repeat it with another id or key"
    return CommandRefusedError(conversation_id, "copy-disturbed", words)


async def _write(tenure: Tenure, copy: Copy) -> None:
    """What is missing of the past, batch by batch, and its end.

    :raises _Disturbed: somebody wrote in between.
    """
    recording = copy.recording
    places: dict[int, int] = {}
    past = recording.past()
    begun = await _match(tenure, past, places)
    if not begun:
        await _append(tenure, [draft(Rehydrating(recording.digest, recording.conversation, recording.past_events))])
    for batch in _batches(past, places, lambda: tenure.fold.seq):
        await _append(tenure, batch)
    tenure.agent_status = recording.agent_status
    await _append(tenure, closing(tenure.fold, recording))


async def _match(tenure: Tenure, past: Iterator[Event], places: dict[int, int]) -> bool:
    """Walk over what an earlier try has written, which is how far `past` moves; whether there was one.

    :raises _Disturbed: something else stands there.
    """
    begun = False
    async for event in _journal(tenure):
        if event.kind == Rehydrating.kind:
            begun = True
        if is_own(event):
            continue
        original = next(past, None)
        if original is None:
            raise _Disturbed(f"event {event.seq} is not of its past")
        expected = recorded(original, places).stored(event.seq, event.epoch, event.at)
        if canonical(expected.as_json()) != canonical(event.as_json()):
            raise _Disturbed(f"event {event.seq} is not of its past")
        if event.is_command:
            places[original.seq] = event.seq
    return begun


async def _journal(tenure: Tenure) -> AsyncIterator[Event]:
    after = 0
    while events := (await tenure.read(after)).events:
        for event in events:
            yield event
        after = events[-1].seq


def _batches(past: Iterator[Event], places: dict[int, int], seq: Callable[[], int]) -> Iterator[list[Draft]]:
    """The rest of the past, in batches that every store takes in one step. Asked for the next when the last one stands."""
    batch: list[Draft] = []
    size = 0
    for original in past:
        if batch and (len(batch) == BATCH_EVENTS or size >= BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(recorded(original, places))
        size += len(canonical(batch[-1].body))
        if original.is_command:
            places[original.seq] = seq() + len(batch)
    if batch:
        yield batch


async def _append(tenure: Tenure, drafts: Sequence[Draft]) -> None:
    expected = tenure.fold.seq + 1
    result = await tenure.append(drafts)
    if result.first != expected:
        raise _Disturbed(f"somebody wrote to it at {expected}")


async def _rerun(means: Means, copy: Copy) -> None:
    """The messages that the past left unanswered, or its last one, once more: new commands, under keys of their own."""
    if not copy.rerun:
        return
    for number, message in enumerate(copy.recording.messages, 1):
        key = f"rerun-{copy.recording.digest[:32]}-{number}"
        again = Submit(copy.conversation_id, Command("message", message.body, key, Delivery.TURN))
        answer = await _submitted(means, again)
        if not isinstance(answer, Accepted | Duplicate):
            raise CommandRefusedError(
                copy.conversation_id, "rerun-refused", f"the copy is whole, its message was refused: {answer}"
            )


async def _submitted(means: Means, request: Submit) -> Submitted:
    failures = 0
    while True:
        try:
            return await means.store.submit(request)
        except StoreUnavailableError:
            if failures == 8:
                raise
            failures += 1
            await asyncio.sleep(0.01 * 2**failures * means.rng.uniform(0.5, 1.5))
