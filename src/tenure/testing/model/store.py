"""The real store as the model steps through it: its operations, run once for each different situation.

What a store holds is kept as a number for its *content*, in which the few names that matter have been replaced by
their parts (the owner, its token, the token of the last release), beside the names themselves. So an operation of the
memory store runs only once for all the states of the world that differ in nothing it could see.

Left out of a content, because no rule of the store or of the model's nodes reads it: ``claimed`` and ``released`` in
the journal, whose epoch no event exceeds; the epoch on each event (who wrote it is judged when it is written); counts
that only bound retries; times, which stand still.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

from tenure.abc import (
    About,
    Append,
    Appended,
    Claim,
    Creation,
    Death,
    Held,
    Reason,
    Release,
    ReleasedNow,
    Repeated,
    Submit,
)
from tenure.conversation import Fold, fold, settlement
from tenure.journal import Claimed, Command, Draft, Event, Released, canonical
from tenure.lease import Epoch, IncarnationId, Lease, Token
from tenure.stores.memory import MemoryStore
from tenure.testing.checker import work_is_forgotten
from tenure.testing.clock import ManualClock

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from tenure.conversation import Record, Settle
    from tenure.stores.memory import Disk
    from tenure.stores.rules import Row

CONVERSATION = "c"
OWNER, OTHER = IncarnationId("owner"), IncarnationId("other")
THE_TOKEN, FORMER, ANOTHER = Token("token"), Token("former"), Token("another")


class Request(NamedTuple):
    """Something under way to the store; parts that its operation does not have are 0.

    `epoch` is the lease's, or the one that a claim or a deletion expects; `number` the batch's, or 1 for a claim that
    was sent because its sender knew the owner to be dead; `content` the number of a batch's or a command's content.
    """

    op: str
    inc: int = 0
    token: int = 0
    epoch: int = 0
    number: int = 0
    content: int = 0


class Kept(NamedTuple):
    """What the store holds: the number of a content, and the names in it (0: none)."""

    content: int
    owner: int = 0
    token: int = 0
    former: int = 0
    """The token of the last release, while its repetition would be recognised."""


class Answer(NamedTuple):
    """What the store said: the result's class, and what the node takes from it."""

    word: str
    epoch: int = 0
    head: int = 0
    changed: bool = False


@final
@dataclass(frozen=True, slots=True)
class Content:
    """What is known of a content."""

    disk: Disk
    record: Record
    journal: int
    forgotten: bool
    """Work is left and the record does not say so (rule 6)."""


class Batch(NamedTuple):
    """What a batch carries, lease and number aside; with a reason it is a release."""

    drafts: tuple[Draft, ...]
    seen: int
    settle: Settle
    reason: Reason | None


@final
class RealStore:
    """Every content that was met, and what each operation made of it."""

    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self.contents: list[Content] = []
        self.journals: list[tuple[Event, ...]] = []
        self.folds: list[Fold] = []
        self.batches: list[Batch] = []
        self.executed = 0
        """Operations of the memory store that ran."""
        self._contents: dict[Any, int] = {}
        self._journals: dict[tuple[Any, ...], int] = {}
        self._batches: dict[Any, int] = {}
        self._results: dict[tuple[Any, ...], tuple[Kept, Answer]] = {}
        self._clock = ManualClock()
        self._nodes: dict[IncarnationId, Any] = {}

    def begin(self) -> Kept:
        """A store with the conversation, which nobody owns."""
        store = MemoryStore(clock=self._clock)
        about = About("n", "a", 1, ("agent",), self._clock.now())
        for incarnation in (OWNER, OTHER):
            _at_once(store.register(incarnation, about, 1.0))
        self._nodes = store.disk.nodes
        _at_once(store.submit_all([Submit(CONVERSATION, None, Creation(agent="agent"))]))
        return self._keep(store.disk)

    # what a store holds

    def record(self, kept: Kept) -> Record:
        """The record; the names in it are parts, the true ones are in `kept`."""
        return self.contents[kept.content].record

    def prefix(self, journal: int, head: int) -> int:
        """The journal up to `head`, as somebody has read it."""
        events = self.journals[journal]
        return journal if len(events) == head else self._journal(events[:head])

    def batch(self, journal: int, drafts: tuple[Draft, ...], reason: Reason | None = None) -> int:
        """The number of a batch that a node composes who has read this journal."""
        before = self.folds[journal]
        after = fold(before, (d.stored(before.seq + 1 + i, None, self._clock.now()) for i, d in enumerate(drafts)))
        new = Batch(drafts, before.seq, settlement(before, after, drafts), reason)
        key = canonical([[d.as_json() for d in drafts], new.seen, new.settle.as_json(), reason])
        if key not in self._batches:
            self._batches[key] = len(self.batches)
            self.batches.append(new)
        return self._batches[key]

    def wanted(self, kept: Kept, me: int, alive: Sequence[int]) -> bool:
        """Whether the store's sweep shows the conversation to this incarnation."""
        place = (kept.content, "wanted", me == kept.owner, kept.owner in alive)
        if place not in self._results:
            store = self._open(kept, alive)
            found = _at_once(store.wanted(OWNER if me == kept.owner else OTHER, ["agent"], None, 10))
            self._results[place] = kept, Answer(str(len(found.items)))
        return self._results[place][1].word == "1"

    # its operations

    def execute(self, kept: Kept, alive: Sequence[int], request: Request) -> tuple[Kept, Answer]:
        """Run the request on what the store holds; `alive` are the incarnations that are not buried."""
        mine = request.inc == kept.owner != 0
        token = THE_TOKEN if request.token == kept.token != 0 else FORMER if request.token == kept.former else ANOTHER
        lives = kept.owner in alive, request.inc in alive
        place = (kept.content, request.op, mine, token, request.epoch, request.number, request.content, *lives)
        found = self._results.get(place)
        if found is None:
            store = self._open(kept, alive)
            if not mine and request.inc and request.inc not in alive:
                _at_once(store.bury(OTHER, Death.EXITED))
            lease = Lease(CONVERSATION, OWNER if mine else OTHER, Epoch(request.epoch), token)
            before = store.disk.conversations[CONVERSATION].row
            answer = self._run(store, lease, request)
            changed = store.disk.conversations[CONVERSATION].row is not before
            self.executed += 1
            found = self._results[place] = self._keep(store.disk), answer._replace(changed=changed)
        after, answer = found
        names = (0, kept.owner, kept.token, kept.former, request.inc, request.token)
        return Kept(after.content, names[after.owner], names[after.token], names[after.former]), answer

    def _open(self, kept: Kept, alive: Sequence[int]) -> MemoryStore:
        store = MemoryStore(self.contents[kept.content].disk.copy(), self._clock)
        if kept.owner and kept.owner not in alive:
            _at_once(store.bury(OWNER, Death.EXITED))
        return store

    def _run(self, store: MemoryStore, lease: Lease, request: Request) -> Answer:
        match request.op:
            case "claim" | "take over":
                forced = request.op == "take over"
                claim = Claim(
                    CONVERSATION, lease.incarnation, lease.token, lease.epoch, "n", "a", "sweep", forced=forced
                )
                result = _at_once(store.claim_all([claim]))[0]
            case "append" | "release":
                batch = self.batches[request.content]
                append = Append(lease, request.number, batch.seen, batch.drafts, batch.settle)
                if batch.reason is None:
                    result = _at_once(store.append_all([append]))[0]
                else:
                    result = _at_once(store.release_all([Release(append, batch.reason)]))[0]
            case "submit":
                result = _at_once(store.submit_all([Submit(CONVERSATION, self.commands[request.content])]))[0]
            case _:
                result = _at_once(store.delete(CONVERSATION, lease.epoch, "operator"))
        return _answer(result)

    # contents

    def _keep(self, disk: Disk) -> Kept:
        """The number of what the disk holds now."""
        one = disk.conversations[CONVERSATION]
        events = list(one.events)
        row = one.row
        while events and events[-1].kind in (Claimed.kind, Released.kind):
            ended = events.pop()
            assert (ended.epoch or 0) <= row.record.epoch, "no journal runs ahead of its record"
            row = replace(row, record=replace(row.record, head=row.record.head - 1))
        names = Kept(0, *_names(row))
        one.row = row = _normal(row)
        one.events = [replace(event, epoch=None) for event in events]
        one.refusals.clear()
        disk.nodes = {name: replace(node) for name, node in self._nodes.items()}
        journal = self._journal(tuple(one.events))
        key = (_frozen(row), journal)
        if key not in self._contents:
            self._contents[key] = len(self.contents)
            forgotten = work_is_forgotten(self.folds[journal], row.record)
            self.contents.append(Content(disk, row.record, journal, forgotten))
        return names._replace(content=self._contents[key])

    def _journal(self, events: tuple[Event, ...]) -> int:
        key = tuple((e.kind, canonical(e.body), e.turn, e.key) for e in events)
        found = self._journals.get(key)
        if found is None:
            meaning = fold(Fold(), events)  # the strict one: a journal that means nothing is refused here
            found = self._journals[key] = len(self.journals)
            self.journals.append(events)
            self.folds.append(meaning)
        return found


_PLACES: Mapping[str | None, int] = {None: 0, OWNER: 1, THE_TOKEN: 2, FORMER: 3, OTHER: 4, ANOTHER: 5}


def _names(row: Row) -> tuple[int, int, int]:
    """Which of the parts before the step are the owner, its token and the token of the last release after it."""
    record = row.record
    owner = record.owner.incarnation if record.owner else None
    repeatable = record.owner is None and row.released_epoch == record.epoch
    return _PLACES[owner], _PLACES[record.token], _PLACES[row.released_token] if repeatable else 0


def _normal(row: Row) -> Row:
    """The row with its parts in their places, without what no rule will read again."""
    record = row.record
    owner = record.owner and replace(record.owner, incarnation=OWNER)
    repeatable = owner is None and row.released_epoch == record.epoch
    return replace(
        row,
        record=replace(record, owner=owner, token=record.token and THE_TOKEN, lost=0, failures=0, started=False),
        digest=row.digest if owner else None,
        result=row.result if owner else None,
        released_epoch=row.released_epoch if repeatable else 0,
        released_token=FORMER if repeatable else None,
        released_digest=row.released_digest if repeatable else None,
    )


def _answer(result: Any) -> Answer:
    word = type(result).__name__
    match result:
        case Held(lease):
            return Answer(word, lease.epoch)
        case Appended(head=head) | Repeated(Appended(head=head)):
            return Answer(word, head=head)
        case ReleasedNow(repeated=True):
            return Answer("Repeated")
        case _:
            return Answer(word)


def _frozen(value: Any) -> Any:
    """A key that is equal exactly for equal values."""
    if dataclasses.is_dataclass(value):
        return tuple(_frozen(getattr(value, part.name)) for part in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return canonical(cast("Mapping[str, Any]", value))
    return value


def _at_once[R](work: Coroutine[Any, Any, R]) -> R:
    """Run an operation of the memory store, which never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("an operation of the memory store waited")
