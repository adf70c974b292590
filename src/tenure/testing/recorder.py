"""Who watches a simulated cluster: from the store's side, from inside the loops, and from the clients' side.

The :class:`Recorder` sees each atomic step of the store as it happens (so the order of its history is the truth), keeps
a shadow of every journal that survives deletion, folds it as it grows, and looks after each step whether work was
forgotten. Everything that it sees also goes into one digest: two runs of a seed must agree on it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from tenure.abc import Accepted, Append, Appended, Buried, Death, Release, ReleasedNow, Submit
from tenure.conversation import Fold, fold
from tenure.errors import JournalError
from tenure.journal import Claimed, Event, read_body
from tenure.testing.checker import work_is_forgotten
from tenure.testing.history import (
    Attempt,
    Burial,
    Effect,
    Excuse,
    Forgotten,
    Frozen,
    Grant,
    History,
    Journal,
    Span,
    Teardown,
    Write,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tenure.conversation import Record
    from tenure.lease import Lease
    from tenure.testing.backing import Backing, Stored
    from tenure.testing.simloop import SimLoop, SimProcess


@final
@dataclass(slots=True)
class Shadow:
    """A journal as the store has written it so far, with its meaning."""

    events: list[Event] = field(default_factory=list[Event])
    fold: Fold = field(default_factory=Fold)
    sound: bool = True
    """The fold has taken every event; after a refusal there is none to go on from."""
    deleted: bool = False


@final
class Recorder:
    """Sees everything, changes nothing."""

    def __init__(self, loop: SimLoop, backing: Backing) -> None:
        self._loop = loop
        self._backing = backing
        self._digest = hashlib.sha256()
        self._spans: dict[int, tuple[SimProcess, Span]] = {}
        self._span_no = 0
        self._frozen: dict[str, float] = {}
        self._buried: set[str] = set()
        self._refused_keys: set[str] = set()
        self.trusts: Callable[[str], bool] = lambda _: False
        """Whether the node of an incarnation, not frozen, believes in its lease."""
        self.history = History()
        self.timeline: list[str] = []
        self.shadows: dict[str, Shadow] = {}
        self.closed = False
        """The run is over: what killed processes still try is not recorded."""

    @property
    def digest(self) -> str:
        """What two runs of one seed must agree on."""
        return self._digest.hexdigest()

    def note(self, what: str) -> None:
        """A line of the timeline: a fault, or something else worth telling."""
        self.timeline.append(f"{self._loop.time():8.3f} {what}")
        self._mix(what)

    def _mix(self, what: str) -> None:
        self._digest.update(f"{self._loop.time():.9f} {what}\n".encode())

    # --- from the store's side --------------------------------------------------------------------------------------

    def observe(self, operation: str, arguments: tuple[Any, ...], result: Any) -> None:
        """An operation was executed; see :data:`tenure.testing.faults.Observer`."""
        match operation:
            case "submit_all":
                self._each(operation, arguments[0], result)
            case "claim_all":
                self._each(operation, arguments[0], result)
            case "append_all" | "release_all":
                self._each(operation, arguments[0], result)
            case "delete" | "amend":
                self._touched(operation, arguments[0], result)
            case "bury":
                self._mix(f"bury {type(result).__name__}")
                if isinstance(result, Buried) and arguments[0] not in self._buried:
                    self._buried.add(arguments[0])
                    trusted = arguments[1] is Death.EXPIRED and self.trusts(arguments[0])
                    self.history.add(Burial(arguments[0], str(arguments[1]), self._loop.time(), trusted))
            case _:
                self._mix(f"{operation} {type(result).__name__}")

    def _each(self, operation: str, requests: Sequence[Any], results: Sequence[Any]) -> None:
        for request, result in zip(requests, results, strict=True):
            match request:
                case Append():
                    conversation = request.lease.conversation
                    if isinstance(result, Appended):
                        self._write(request.lease, result.first, result.count, release=False)
                case Release():
                    conversation = request.batch.lease.conversation
                    if isinstance(result, ReleasedNow) and not result.repeated:
                        count = len(request.batch.drafts) + 1
                        self._write(request.batch.lease, result.head - count + 1, count, release=True)
                case Submit():
                    conversation = request.conversation
                    key = request.command.key if request.command is not None else None
                    if isinstance(result, Accepted) and key in self._refused_keys:
                        self.excuse("late-submission", key or "")
                case _:
                    conversation = request.conversation
            self._touched(operation, conversation, result)

    def _write(self, lease: Lease, first: int, count: int, *, release: bool) -> None:
        at = self._loop.time()
        self.history.add(Write(lease.conversation, lease.epoch, lease.token, first, count, release, at))

    def _touched(self, operation: str, conversation: str, result: Any) -> None:
        """Take over what the step has written, and judge the moment after it."""
        self._mix(f"{operation} {conversation} {type(result).__name__}")
        stored = self._backing.get(conversation)
        if stored is None:
            return
        record = stored.record
        shadow = self.shadows.setdefault(conversation, Shadow())
        if record.deleted:
            shadow.deleted = True
            return
        new = stored.events[len(shadow.events) :]
        if new:
            self._grow(shadow, new, record)
        if shadow.sound and work_is_forgotten(shadow.fold, record):
            self.history.add(Forgotten(conversation, record.head, self._loop.time()))

    def _grow(self, shadow: Shadow, new: Sequence[Event], record: Record) -> None:
        shadow.events.extend(new)
        for event in new:
            self._mix(f"{record.conversation} {event.seq} {event.epoch} {event.kind}")
            body = read_body(event)
            if isinstance(body, Claimed):
                at, epoch = self._loop.time(), event.epoch or 0
                token, forced = str(record.token), body.forced
                self.history.add(
                    Grant(record.conversation, epoch, token, body.incarnation, body.address, body.previous, forced, at)
                )
        if shadow.sound:
            try:
                shadow.fold = fold(shadow.fold, new)
            except (JournalError, ValueError):
                shadow.sound = False

    def rewound(self) -> None:
        """The store has become an older copy of itself."""
        self.excuse("rewound")
        self.shadows.clear()
        for name in self._backing.names():
            stored = self._stored(name)
            shadow = self.shadows[name] = Shadow(list(stored.events), deleted=stored.record.deleted)
            shadow.fold = fold(Fold(), stored.events)

    def _stored(self, conversation: str) -> Stored:
        stored = self._backing.get(conversation)
        assert stored is not None, "its name was known"
        return stored

    def excuse(self, what: str, key: str = "") -> None:
        self.history.add(Excuse(what, self._loop.time(), key))

    # --- from inside the processes ----------------------------------------------------------------------------------

    def opened(self, process: SimProcess, conversation: str, epoch: int) -> int:
        """A loop came to life; the number is for :meth:`ended`."""
        self._span_no += 1
        self._spans[self._span_no] = (process, Span(conversation, epoch, process.name, self._loop.time()))
        self._mix(f"loop {process.name} {conversation} {epoch}")
        return self._span_no

    def ended(self, number: int) -> None:
        """The loop ended."""
        found = None if self.closed else self._spans.pop(number, None)
        if found is not None:
            self._end(found[1])

    def _end(self, span: Span) -> None:
        now = self._loop.time()
        self.history.add(Span(span.conversation, span.epoch, span.process, span.started, now))
        self._mix(f"loop ended {span.process} {span.conversation} {span.epoch}")

    def alive(self, process: SimProcess) -> list[str]:
        """The loops that have not ended in the process."""
        return [f"{s.conversation}@{s.epoch}" for its, s in self._spans.values() if its is process]

    def killed(self, process: SimProcess) -> None:
        """A process is no more, and its loops with it."""
        self.thawed(process)
        for number in [n for n, (its, _) in self._spans.items() if its is process]:
            self._end(self._spans.pop(number)[1])

    def frozen(self, process: SimProcess) -> None:
        """From now on the process cannot act in time."""
        self._frozen.setdefault(process.name, self._loop.time())

    def thawed(self, process: SimProcess) -> None:
        """It can again."""
        since = self._frozen.pop(process.name, None)
        if since is not None:
            self.history.add(Frozen(process.name, since, self._loop.time()))

    def effect(self, process: SimProcess, conversation: str, call: str, key: str, epoch: int) -> None:
        """A tool acted on the world."""
        if not self.closed and not process.dead:
            self.history.add(Effect(conversation, call, key, epoch, process.name, self._loop.time()))
            self._mix(f"effect {conversation} {call} {epoch}")

    def teardown(self, process: SimProcess, conversation: str, name: str) -> None:
        """A provider destroyed a runtime."""
        shadow = self.shadows.get(conversation)
        current = shadow is not None and shadow.sound and not shadow.deleted and shadow.fold.runtime == name
        if not self.closed:
            self.history.add(Teardown(conversation, name, process.name, current, self._loop.time()))

    # --- from the clients' side -------------------------------------------------------------------------------------

    def attempt(self, attempt: Attempt) -> None:
        """A client's submission came to an end."""
        if attempt.outcome == "refused":
            self._refused_keys.add(attempt.key)
        self.history.add(attempt)
        self._mix(f"{attempt.client} {attempt.kind} {attempt.key} {attempt.outcome} {attempt.seq}")

    # --- at the end -------------------------------------------------------------------------------------------------

    def restless(self) -> list[str]:
        """What is not at rest: conversations with work that can be done, or that somebody should own."""
        found: list[str] = []
        for name, shadow in self.shadows.items():
            record = self._stored(name).record
            if shadow.deleted or record.deleted or record.failed:
                continue
            if record.wanted or shadow.fold.runnable:
                owner = record.owner.address if record.owner else "nobody"
                found.append(f"{name}: wanted {record.wanted}, owner {owner}, unsettled {list(shadow.fold.pending)}")
        return found

    def finish(self, *, quiescent: bool) -> None:
        """Write the journals down, and stop recording."""
        for process, span in self._spans.values():
            self.thawed(process)
            self.history.add(span)
        for name, shadow in self.shadows.items():
            record = self._stored(name).record
            self.history.add(
                Journal(
                    name,
                    tuple(shadow.events),
                    record.epoch,
                    owner=record.owner.incarnation if record.owner else None,
                    wanted=record.wanted,
                    stopped=record.stopped,
                    failed=record.failed,
                    deleted=shadow.deleted,
                    quiescent=quiescent,
                )
            )
        self.closed = True
