"""What was seen of a cluster from outside: the entries that :mod:`tenure.testing.checker` judges.

A history is an ordered list of entries: in a simulation the order is the truth; elsewhere it is that of writing, and
only times of one clock are compared. Each entry is one line of JSON, so that processes can write a history as they go
and any language can read it. A part that was not recorded is not judged.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast, final

from tenure.journal import Event

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@final
@dataclass(frozen=True, slots=True)
class Attempt:
    """A client asked to accept a command, once: a retry is another attempt with the same key.

    `outcome` is ``accepted``, ``duplicate``, ``refused`` (for good, with `reason`) or ``no-answer``.
    """

    type: ClassVar[str] = "attempt"
    client: str
    conversation: str
    kind: str
    key: str
    started: float
    ended: float
    outcome: str
    seq: int | None = None
    reason: str = ""


@final
@dataclass(frozen=True, slots=True)
class Start:
    """Somebody asked a process to run a conversation.

    `outcome` is ``here`` (with the epoch), ``elsewhere`` (with the owner's epoch and incarnation), ``provisioning``
    (the start failed), or anything else for "no".
    """

    type: ClassVar[str] = "start"
    conversation: str
    process: str
    started: float
    ended: float
    outcome: str
    epoch: int | None = None
    owner: str | None = None


@final
@dataclass(frozen=True, slots=True)
class Grant:
    """The store granted a claim. `previous` is the incarnation that had not released, `process` the new owner's."""

    type: ClassVar[str] = "grant"
    conversation: str
    epoch: int
    token: str
    incarnation: str
    process: str
    previous: str | None
    forced: bool
    at: float


@final
@dataclass(frozen=True, slots=True)
class Write:
    """The store accepted an owner's batch, or (`release`) its last one."""

    type: ClassVar[str] = "write"
    conversation: str
    epoch: int
    token: str
    first: int
    count: int
    release: bool
    at: float


@final
@dataclass(frozen=True, slots=True)
class Burial:
    """The store marked an incarnation dead for good: ``expired``, ``retired`` or ``exited``.

    `trusted`: at that moment its node, which was not frozen, still believed in its lease.
    """

    type: ClassVar[str] = "burial"
    incarnation: str
    why: str
    at: float
    trusted: bool = False


@final
@dataclass(frozen=True, slots=True)
class Death:
    """The process of an incarnation ended, or could act no more, as whoever did it to it knows: before any burial."""

    type: ClassVar[str] = "death"
    incarnation: str
    at: float


@final
@dataclass(frozen=True, slots=True)
class Span:
    """A live loop in a process, from its opening to its end; a null end: it was never seen to end."""

    type: ClassVar[str] = "span"
    conversation: str
    epoch: int
    process: str
    started: float
    ended: float | None = None


@final
@dataclass(frozen=True, slots=True)
class Effect:
    """A tool acted on the world outside of the store."""

    type: ClassVar[str] = "effect"
    conversation: str
    call: str
    key: str
    epoch: int
    process: str
    at: float


@final
@dataclass(frozen=True, slots=True)
class Frozen:
    """The process could not act, or not in time, from `started` to `ended`: stopped, starved, or its clock ran wrong."""

    type: ClassVar[str] = "frozen"
    process: str
    started: float
    ended: float


@final
@dataclass(frozen=True, slots=True)
class Look:
    """Somebody read a journal through a process: (seq, epoch, kind) of what was shown."""

    type: ClassVar[str] = "look"
    conversation: str
    process: str
    at: float
    shown: tuple[tuple[int, int | None, str], ...]


@final
@dataclass(frozen=True, slots=True)
class Unread:
    """Somebody tried to read a conversation that exists, through a process in reach of its store, and could not."""

    type: ClassVar[str] = "unread"
    conversation: str
    process: str
    at: float
    why: str


@final
@dataclass(frozen=True, slots=True)
class Forgotten:
    """At this moment the journal had work left that could be done, and the record did not say ``wanted``."""

    type: ClassVar[str] = "forgotten"
    conversation: str
    head: int
    at: float


@final
@dataclass(frozen=True, slots=True)
class Teardown:
    """A provider destroyed a runtime; `current`: though the journal called it the conversation's current one."""

    type: ClassVar[str] = "teardown"
    conversation: str
    name: str
    process: str
    current: bool
    at: float


@final
@dataclass(frozen=True, slots=True)
class Excuse:
    """Something happened that takes a promise away: a fail-over that lost writes (``rewound``), a store's clock that
    jumped (``store-clock``), a copy of a submission that was executed late (``late-submission``, with its key)."""

    type: ClassVar[str] = "excuse"
    what: str
    at: float
    key: str = ""


@final
@dataclass(frozen=True, slots=True)
class Journal:
    """A conversation at the end: its record's words, and its journal (for a deleted one: up to its deletion)."""

    type: ClassVar[str] = "journal"
    conversation: str
    events: tuple[Event, ...]
    epoch: int
    owner: str | None = None
    wanted: bool = False
    stopped: bool = False
    failed: bool = False
    deleted: bool = False
    quiescent: bool = True
    """Everything had its time to come to rest: what is not done by now will not be."""


type Entry = (
    Attempt
    | Start
    | Grant
    | Write
    | Burial
    | Death
    | Span
    | Effect
    | Frozen
    | Look
    | Unread
    | Forgotten
    | Teardown
    | Excuse
    | Journal
)

ENTRIES: dict[str, type[Entry]] = {cls.type: cls for cls in Entry.__value__.__args__}


@final
@dataclass(slots=True)
class History:
    """The entries, in order."""

    entries: list[Entry] = field(default_factory=list[Entry])

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)

    def of[E: Entry](self, kind: type[E]) -> list[E]:
        """All entries of one kind, in order."""
        return [entry for entry in self.entries if isinstance(entry, kind)]

    def excused(self, what: str) -> bool:
        """Whether something happened that takes promises away."""
        return any(entry.what == what for entry in self.of(Excuse))

    def lines(self) -> Iterator[str]:
        """The history as JSON lines."""
        for entry in self.entries:
            yield json.dumps(_as_json(entry), ensure_ascii=False)

    @classmethod
    def parse(cls, lines: Iterable[str]) -> History:
        """Read :meth:`lines` back; empty lines are passed over.

        :raises ValueError: a line that is no entry; the message has its number.
        """
        history = cls()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                history.add(_from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
                raise ValueError(f"line {number} is no entry of a history: {why}") from None
        return history


def _as_json(entry: Entry) -> dict[str, Any]:
    shape: dict[str, Any] = {"type": entry.type}
    for part in dataclasses.fields(entry):
        shape[part.name] = getattr(entry, part.name)
    if isinstance(entry, Journal):
        shape["events"] = [event.as_json() for event in entry.events]
    return shape


def _from_json(shape: Any) -> Entry:
    parts = cast("dict[str, Any]", shape) if isinstance(shape, dict) else {}
    kind = parts.pop("type", None)
    if not isinstance(kind, str):
        raise ValueError('an entry is an object with a "type"')
    cls = ENTRIES.get(kind)
    if cls is None:
        raise ValueError(f"type {kind!r} is none of {', '.join(ENTRIES)}")
    known = {part.name: part for part in dataclasses.fields(cls)}
    for name, value in parts.items():
        if name not in known:
            raise ValueError(f"{kind} has no {name!r}; it has {', '.join(known)}")
        allowed = _JSON_TYPES.get(str(known[name].type))
        if allowed is not None and (
            not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)
        ):
            raise ValueError(f"{kind}: {name!r} is {known[name].type}, not {value!r}")
    if cls is Journal:
        parts["events"] = tuple(Event.from_json(one) for one in parts["events"])
    if cls is Look:
        shown = cast("list[list[Any]]", parts["shown"])
        parts["shown"] = tuple((int(seq), epoch, str(what)) for seq, epoch, what in shown)
    missing = [n for n, p in known.items() if n not in parts and p.default is dataclasses.MISSING]
    if missing:
        raise ValueError(f"{kind} lacks {', '.join(map(repr, missing))}")
    return cls(**parts)


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
    "float | None": (int, float, type(None)),
}
"""What a part's annotation asks of its JSON value."""
