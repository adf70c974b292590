"""The guarantee as code: pure functions from a history to what is wrong with it.

``check(history)`` is empty exactly if nothing that was seen breaks a promise of the design. Each function judges one
promise from the entries that it needs, so a history with journals and effects alone is judged by those.

``python -m tenure.testing.checker FILE`` reads a history of JSON lines (``-`` for standard input), prints what it finds
and exits with 1 if there is anything.

How long a takeover may take depends on the ttl and on what else went wrong meanwhile: it is judged by the bound that is given
(``--takeover-s``), and not without one. What it never judges: anything about a moment between two entries.
After a fail-over that lost acknowledged writes G4 and G7 are not promised and not judged; who may write still is.
"""

from __future__ import annotations

import enum
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, cast, final

from tenure.conversation import Fold, fold
from tenure.errors import JournalError
from tenure.journal import (
    TURN_ENDS,
    CallFinished,
    CallStarted,
    Claimed,
    CommandSettled,
    Released,
    RuntimeAttached,
    RuntimeDiscarded,
    RuntimeLost,
    RuntimeReady,
    RuntimeRequested,
    StartFailed,
    read_body,
)
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
    Look,
    Span,
    Start,
    Teardown,
    Unread,
    Write,
)
from tenure.testing.order import disorders
from tenure.testing.takeovers import takeovers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tenure.conversation import Record
    from tenure.journal import Event


THAW_S = 1.0
"""What a process that was frozen has, once thawed, to see the time and to end its loops."""


class Guarantee(enum.StrEnum):
    """What can be broken: the guarantees of the design, and the rules that carry them."""

    ONE_OWNER = "G1 one owner"
    ONE_WRITER = "G2 one writer"
    IDEMPOTENT_START = "G3 idempotent start"
    ACCEPTED_IS_KEPT = "G4 accepted is kept"
    FAIL_SAFE_START = "G5 fail-safe start"
    TAKEOVER = "G6 takeover"
    KNOWN_FATE = "G7 known fate"
    ALWAYS_READABLE = "G8 always readable"
    ORDER = "linearizability"
    JOURNAL = "the journal's grammar"
    WANTED = "rule 6 wanted"
    TRUST = "rule 11 trust"
    RUNTIMES = "rule 14 runtimes"


@final
@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise, with what shows it."""

    guarantee: Guarantee
    conversation: str
    what: str
    evidence: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.guarantee}: {self.conversation or '-'}: {self.what}", *(f"    {e}" for e in self.evidence)]
        return "\n".join(lines)


def check(history: History, takeover_s: float | None = None) -> list[Violation]:
    """Everything that is wrong, in the order of the guarantees. `takeover_s`: within what work is to be taken over."""
    return [
        *one_owner(history),
        *one_writer(history),
        *idempotent_start(history),
        *accepted_is_kept(history),
        *settled(history),
        *(() if takeover_s is None else taken_over(history, takeover_s)),
        *fail_safe_start(history),
        *known_fate(history),
        *always_readable(history),
        *in_one_order(history),
        *grammar(history),
        *not_forgotten(history),
        *within_trust(history),
        *runtimes(history),
    ]


def work_is_forgotten(state: Fold, record: Record) -> bool:
    """Whether something can be done and the record does not say so (rule 6); failed for good is not forgotten."""
    return state.runnable and not record.wanted and not record.failed and not record.deleted


# --- G1 to G3: who --------------------------------------------------------------------------------------------------


def one_owner(history: History) -> Iterator[Violation]:
    """Epochs strictly rise, one claim per epoch, and none over an owner that lives, unless it was forced."""
    for journal in history.of(Journal):
        last = 0
        for event in journal.events:
            if event.kind != Claimed.kind or event.is_command:
                continue
            if event.epoch is None or event.epoch <= last:
                yield Violation(
                    Guarantee.ONE_OWNER,
                    journal.conversation,
                    f"epoch {event.epoch} was claimed after {last}",
                    _at(event),
                )
            last = max(last, event.epoch or 0)
        if journal.epoch < last:
            what = f"the record is at epoch {journal.epoch}, the journal at {last}"
            yield Violation(Guarantee.ONE_OWNER, journal.conversation, what)
    yield from _granted_over_the_living(history)


def _granted_over_the_living(history: History) -> Iterator[Violation]:
    buried: set[str] = set()
    highest: dict[str, int] = defaultdict(int)
    for entry in history.entries:
        if isinstance(entry, Burial):
            buried.add(entry.incarnation)
        elif isinstance(entry, Excuse) and entry.what == "rewound":
            highest.clear()  # an asynchronous fail-over may repeat an epoch; the token still tells them apart
        elif isinstance(entry, Grant):
            if entry.epoch <= highest[entry.conversation]:
                what = f"epoch {entry.epoch} was granted after {highest[entry.conversation]}"
                yield Violation(Guarantee.ONE_OWNER, entry.conversation, what, (repr(entry),))
            highest[entry.conversation] = entry.epoch
            previous = entry.previous
            if previous not in (None, entry.incarnation) and previous not in buried and not entry.forced:
                what = f"epoch {entry.epoch} was granted over {previous}, which was not buried"
                yield Violation(Guarantee.ONE_OWNER, entry.conversation, what, (repr(entry),))


def one_writer(history: History) -> Iterator[Violation]:
    """Every fenced event carries the epoch in force at its place, nothing follows a release but a claim or a command;
    and every accepted write is of the very claim that the store granted last."""
    for journal in history.of(Journal):
        in_force: int | None = None
        for event in journal.events:
            if event.epoch is None:
                continue
            if event.kind == Claimed.kind:
                in_force = event.epoch
            elif event.epoch != in_force:
                held = "nobody holds it" if in_force is None else f"epoch {in_force} is in force"
                what = f"an event of epoch {event.epoch} was accepted while {held}"
                yield Violation(Guarantee.ONE_WRITER, journal.conversation, what, _at(event))
            elif event.kind == Released.kind:
                in_force = None
    claim: dict[str, Grant | None] = {}
    for entry in history.entries:
        if isinstance(entry, Excuse) and entry.what == "rewound":
            claim.clear()  # whose claim the older copy holds is told by its journal
        elif isinstance(entry, Grant):
            claim[entry.conversation] = entry
        elif isinstance(entry, Write) and entry.conversation in claim:
            last = claim[entry.conversation]
            if last is None or (last.epoch, last.token) != (entry.epoch, entry.token):
                what = f"a write of epoch {entry.epoch} was accepted that is not of the claim in force"
                yield Violation(Guarantee.ONE_WRITER, entry.conversation, what, (repr(entry), repr(last)))
            if entry.release:
                claim[entry.conversation] = None


def idempotent_start(history: History) -> Iterator[Violation]:
    """Never two loops under one epoch, on one process never two of one conversation, and none without a claim."""
    owners = _owners(history)
    spans: dict[str, list[Span]] = defaultdict(list)
    for span in history.of(Span):
        spans[span.conversation].append(span)
        owner = owners.get((span.conversation, span.epoch))
        if owner is not None and span.process not in owner and not history.excused("rewound"):
            what = f"a loop of epoch {span.epoch} ran on {span.process}, the claim is {owner[1]}'s"
            yield Violation(Guarantee.IDEMPOTENT_START, span.conversation, what, (repr(span),))
    for conversation, its in spans.items():
        for one, other in combinations(its, 2):
            if not _overlap(one, other):
                continue
            pair = (repr(one), repr(other))
            if one.process == other.process:
                what = f"two loops at once on {one.process}"
                yield Violation(Guarantee.IDEMPOTENT_START, conversation, what, pair)
            elif one.epoch == other.epoch and not history.excused("rewound"):
                what = f"two loops under epoch {one.epoch}"
                yield Violation(Guarantee.IDEMPOTENT_START, conversation, what, pair)
    for start in history.of(Start) if not history.excused("rewound") else ():
        owner = owners.get((start.conversation, start.epoch or 0))
        if start.outcome == "here" and owner is not None and start.process not in owner:
            what = f"{start.process} said that it runs here at epoch {start.epoch}, which is {owner[1]}'s"
            yield Violation(Guarantee.IDEMPOTENT_START, start.conversation, what, (repr(start),))
        if start.outcome == "elsewhere" and owner is not None and start.owner not in owner:
            what = f"{start.process} named {start.owner} as the owner of epoch {start.epoch}, which is {owner[0]}'s"
            yield Violation(Guarantee.IDEMPOTENT_START, start.conversation, what, (repr(start),))


# --- G4: what was accepted ------------------------------------------------------------------------------------------


def accepted_is_kept(history: History) -> Iterator[Violation]:
    """Each accepted key stands in the journal exactly once, in its client's order; a refused one does not."""
    if history.excused("rewound"):
        return
    late = {excuse.key for excuse in history.of(Excuse) if excuse.what == "late-submission"}
    attempts: dict[str, dict[str, list[Attempt]]] = defaultdict(lambda: defaultdict(list))
    for attempt in history.of(Attempt):
        attempts[attempt.conversation][attempt.key].append(attempt)
    for journal in history.of(Journal):
        if journal.deleted:
            continue
        name = journal.conversation
        places: dict[str, list[int]] = defaultdict(list)
        for event in journal.events:
            if event.key is not None:
                places[event.key].append(event.seq)
        for key, seqs in places.items():
            if len(seqs) > 1:
                yield Violation(Guarantee.ACCEPTED_IS_KEPT, name, f"key {key} stands {len(seqs)} times", (f"{seqs}",))
        for key, its in attempts[name].items():
            yield from _kept(name, key, its, places.get(key, []), refused_for_good=key not in late)
        yield from _in_order(name, attempts[name])


def _kept(
    conversation: str, key: str, attempts: list[Attempt], places: list[int], *, refused_for_good: bool
) -> Iterator[Violation]:
    # A start may be answered with the one that is open: its own key is then not in the journal, or only later.
    told = {a.seq for a in attempts if a.outcome == "accepted" or (a.outcome == "duplicate" and a.kind != "start")}
    evidence = tuple(repr(a) for a in attempts)
    if told and not places:
        yield Violation(Guarantee.ACCEPTED_IS_KEPT, conversation, f"key {key} was accepted and is gone", evidence)
    if told and places and told != set(places):
        what = f"key {key} stands at {places}, its clients were told {sorted(map(str, told))}"
        yield Violation(Guarantee.ACCEPTED_IS_KEPT, conversation, what, evidence)
    if places and refused_for_good and all(a.outcome == "refused" for a in attempts):
        yield Violation(Guarantee.ACCEPTED_IS_KEPT, conversation, f"key {key} was refused and is there", evidence)


def _in_order(conversation: str, attempts: dict[str, list[Attempt]]) -> Iterator[Violation]:
    last: dict[str, tuple[float, int, str]] = {}
    known = [
        (min(a.started for a in its), max(a.ended for a in its), seq, key, its[0].client)
        for key, its in attempts.items()
        if (seq := next((a.seq for a in its if a.seq is not None and a.kind != "start"), None)) is not None
    ]
    for started, ended, seq, key, client in sorted(known):
        before = last.get(client)
        if before is not None and before[0] <= started and seq <= before[1]:
            what = f"{client} asked for {key} (at {seq}) after {before[2]} (at {before[1]}) had been accepted"
            yield Violation(Guarantee.ACCEPTED_IS_KEPT, conversation, what)
        if before is None or seq > before[1]:
            last[client] = (ended, seq, key)


def settled(history: History) -> Iterator[Violation]:
    """At the end every accepted command is settled, unless the conversation is stopped, failed, deleted or waits."""
    for journal in history.of(Journal):
        if journal.deleted or not journal.quiescent:
            continue
        state = _folded(journal)
        if state is None:
            continue
        rests = state.stopped or journal.failed or (state.turn is not None and state.turn.waiting)
        left = [c for c in state.pending.values() if not (rests and c in state.queue)]
        if state.turn is not None and state.turn.waiting:
            left = [c for c in left if c.seq not in state.turn.commands]
        if left:
            what = f"{len(left)} accepted commands were never settled"
            yield Violation(
                Guarantee.TAKEOVER, journal.conversation, what, tuple(f"{c.seq} {c.kind} {c.key}" for c in left)
            )
    yield from _settled_twice(history)


def _settled_twice(history: History) -> Iterator[Violation]:
    for journal in history.of(Journal):
        count: Counter[int] = Counter()
        for event in journal.events:
            if event.kind in TURN_ENDS and not event.is_command:
                count.update(cast("list[int]", event.body["commands"]))
            elif event.kind == CommandSettled.kind:
                count[cast("int", event.body["command"])] += 1
        for seq, times in count.items():
            if times > 1:
                what = f"command {seq} was settled {times} times"
                yield Violation(Guarantee.ACCEPTED_IS_KEPT, journal.conversation, what)


def taken_over(history: History, within_s: float) -> Iterator[Violation]:
    """Whoever died with work left was succeeded in time."""
    if history.excused("store-clock") or history.excused("rewound"):
        return
    for grant, took_s in takeovers(history):
        if took_s > within_s:
            what = f"epoch {grant.epoch} was granted {took_s:.3f} s after {grant.previous} had died with work left"
            yield Violation(Guarantee.TAKEOVER, grant.conversation, what, (repr(grant),))


# --- G5, G7, G8 -----------------------------------------------------------------------------------------------------


def fail_safe_start(history: History) -> Iterator[Violation]:
    """After a failed start nothing of that epoch follows but the runtime's end, answers to commands, and the release;
    what was provisioned for it is discarded; and whoever was told so finds the reason in the journal."""
    reasons: dict[str, int] = Counter()
    for journal in history.of(Journal):
        failed: Event | None = None
        current: str | None = None
        for event in journal.events:
            body = read_body(event)
            if isinstance(body, RuntimeRequested | RuntimeReady | RuntimeAttached):
                current = body.name
            elif isinstance(body, RuntimeDiscarded | RuntimeLost):
                current = None
            if isinstance(body, StartFailed):
                failed = event
                reasons[journal.conversation] += 1
            elif isinstance(body, Claimed):
                failed = None
            elif failed is not None and event.epoch is not None:
                if not isinstance(body, RuntimeDiscarded | RuntimeLost | CommandSettled | Released):
                    what = f"{event.kind} follows a failed start of the same epoch"
                    yield Violation(Guarantee.FAIL_SAFE_START, journal.conversation, what, _at(failed, event))
                elif isinstance(body, Released) and current is not None:
                    what = f"runtime {current} outlives the start that failed"
                    yield Violation(Guarantee.FAIL_SAFE_START, journal.conversation, what, _at(failed, event))
        if failed is not None and journal.quiescent and journal.owner is not None:
            what = f"{journal.owner} still holds it after its start failed"
            yield Violation(Guarantee.FAIL_SAFE_START, journal.conversation, what, _at(failed))
    judged = {journal.conversation for journal in history.of(Journal) if not journal.deleted}
    for start in history.of(Start):
        told = start.outcome == "provisioning" and start.conversation in judged and not history.excused("rewound")
        if told and not reasons[start.conversation]:
            what = "a start failed and no journal says why"
            yield Violation(Guarantee.FAIL_SAFE_START, start.conversation, what, (repr(start),))


def known_fate(history: History) -> Iterator[Violation]:
    """Every call has one outcome; what is not idempotent ran at most once, and exactly once if it finished."""
    if history.excused("rewound"):
        return
    ran: dict[tuple[str, str], list[Effect]] = defaultdict(list)
    for effect in history.of(Effect):
        ran[effect.conversation, effect.call].append(effect)
    owners = _owners(history)
    for journal in history.of(Journal):
        name = journal.conversation
        opened, closed = Counter[str](), Counter[str]()
        calls: dict[str, CallStarted] = {}
        finished: set[str] = set()
        for event in journal.events:
            opened.update(event.opens)
            closed.update(event.closes)
            body = read_body(event)
            if isinstance(body, CallStarted):
                calls[body.call] = body
            elif isinstance(body, CallFinished) and body.error is None:
                finished.add(body.call)  # one that raised may have done so before it acted
        state = _folded(journal)
        waits = state is not None and state.turn is not None and state.turn.waiting
        for call in opened:
            left = closed[call] == 0 and journal.quiescent and not journal.deleted and not waits
            if opened[call] > 1 or closed[call] > 1 or left:
                what = f"call {call} was opened {opened[call]} times and has {closed[call]} outcomes"
                yield Violation(Guarantee.KNOWN_FATE, name, what)
        for call, body in calls.items():
            yield from _effects_of(name, body, ran.pop((name, call), []), finished=call in finished)
    for (name, call), effects in ran.items():
        yield Violation(Guarantee.KNOWN_FATE, name, f"call {call} ran and no journal knows of it", _all(effects))
    for effect in history.of(Effect):
        owner = owners.get((effect.conversation, effect.epoch))
        if owner is not None and effect.process not in owner:
            what = f"call {effect.call} ran on {effect.process} under epoch {effect.epoch}, which is {owner[1]}'s"
            yield Violation(Guarantee.KNOWN_FATE, effect.conversation, what, (repr(effect),))


def _effects_of(conversation: str, call: CallStarted, effects: list[Effect], *, finished: bool) -> Iterator[Violation]:
    if len(effects) > 1 and not call.idempotent:
        what = f"call {call.call} is not idempotent and ran {len(effects)} times"
        yield Violation(Guarantee.KNOWN_FATE, conversation, what, _all(effects))
    if finished and not effects:
        yield Violation(Guarantee.KNOWN_FATE, conversation, f"call {call.call} finished and never ran", (repr(call),))
    if any(effect.key != call.key for effect in effects):
        what = f"call {call.call} ran with another key than its own, {call.key!r}"
        yield Violation(Guarantee.KNOWN_FATE, conversation, what, _all(effects))


def always_readable(history: History) -> Iterator[Violation]:
    """What anybody was shown is what the journal holds, in its place; and whoever could reach the store could read."""
    for unread in history.of(Unread):
        what = f"it could not be read through {unread.process}: {unread.why}"
        yield Violation(Guarantee.ALWAYS_READABLE, unread.conversation, what, (repr(unread),))
    if history.excused("rewound"):
        return
    journals = {journal.conversation: journal for journal in history.of(Journal)}
    for look in history.of(Look):
        journal = journals.get(look.conversation)
        if journal is None:
            continue
        places = {int(event.seq): (event.seq, event.epoch, event.kind) for event in journal.events}
        wrong = [shown for shown in look.shown if places.get(shown[0]) != shown]
        if wrong:
            what = f"{look.process} showed what the journal does not hold"
            yield Violation(Guarantee.ALWAYS_READABLE, look.conversation, what, (f"{wrong}",))


def in_one_order(history: History) -> Iterator[Violation]:
    """Claims and commands of a conversation took effect between their start and their end, in the journal's order."""
    if history.excused("rewound"):
        return
    for found in disorders(history):
        what = "what ended earlier took effect later than what was answered here"
        yield Violation(Guarantee.ORDER, found.conversation, what, (found.late.shown, found.early.shown))


# --- the rules that carry them --------------------------------------------------------------------------------------


def grammar(history: History) -> Iterator[Violation]:
    """Every journal is without gaps and accepted by the strict fold."""
    for journal in history.of(Journal):
        try:
            fold(Fold(), journal.events)
        except (JournalError, ValueError) as error:
            yield Violation(Guarantee.JOURNAL, journal.conversation, str(error))


def not_forgotten(history: History) -> Iterator[Violation]:
    """In every recorded moment, and at the end: work that can be done is wanted."""
    for moment in history.of(Forgotten):
        what = f"at {moment.at:.3f} (head {moment.head}) work was left and the conversation was not wanted"
        yield Violation(Guarantee.WANTED, moment.conversation, what)
    for journal in history.of(Journal):
        state = _folded(journal)
        if state is not None and state.runnable and not (journal.wanted or journal.failed or journal.deleted):
            what = "at the end work is left and the conversation is not wanted"
            yield Violation(Guarantee.WANTED, journal.conversation, what, tuple(map(str, state.pending)))


def within_trust(history: History) -> Iterator[Violation]:
    """A process that was not frozen has given up, and ended its loops, before its incarnation can be buried as expired;
    and it acts no more after it.

    The store's clock must not have jumped: then leases run out early, and only the fence holds.
    """
    if history.excused("store-clock") or history.excused("rewound"):
        return
    owners = _owners(history)
    for burial in history.of(Burial):
        if burial.trusted:
            what = f"incarnation {burial.incarnation} was buried and still believed in its lease"
            yield Violation(Guarantee.TRUST, "", what, (repr(burial),))
    buried = {burial.incarnation: burial.at for burial in history.of(Burial)}
    frozen = history.of(Frozen)
    acts = [(s.conversation, s.epoch, s.process, s.ended, repr(s)) for s in history.of(Span)]
    acts += [(e.conversation, e.epoch, e.process, e.at, repr(e)) for e in history.of(Effect)]
    for conversation, epoch, process, ended, shown in acts:
        incarnation = owners.get((conversation, epoch), ("", ""))[0]
        at = buried.get(incarnation)
        if at is None or ended is None or ended <= at:
            continue
        if any(f.process == process and f.started <= ended <= f.ended + THAW_S for f in frozen):
            continue
        what = f"{process} acted at {ended:.3f}, its incarnation was buried at {at:.3f}"
        yield Violation(Guarantee.TRUST, conversation, what, (shown,))


def runtimes(history: History) -> Iterator[Violation]:
    """Nobody destroys the runtime that the journal calls current."""
    if history.excused("rewound"):
        return
    for teardown in history.of(Teardown):
        if teardown.current:
            what = f"{teardown.process} destroyed runtime {teardown.name}, the current one"
            yield Violation(Guarantee.RUNTIMES, teardown.conversation, what, (repr(teardown),))


# --- reading a history ----------------------------------------------------------------------------------------------


def _owners(history: History) -> dict[tuple[str, int], tuple[str, str]]:
    """(incarnation, process) by conversation and epoch; a process is named by its address."""
    found: dict[tuple[str, int], tuple[str, str]] = {}
    for journal in history.of(Journal):
        for event in journal.events:
            body = read_body(event)
            if isinstance(body, Claimed) and event.epoch is not None:
                found[journal.conversation, event.epoch] = (body.incarnation, body.address)
    for grant in history.of(Grant):
        found.setdefault((grant.conversation, grant.epoch), (grant.incarnation, grant.process))
    return found


def _overlap(one: Span, other: Span) -> bool:
    end = float("inf")
    one_end, other_end = (end if span.ended is None else span.ended for span in (one, other))
    return one.started < other_end and other.started < one_end


def _folded(journal: Journal) -> Fold | None:
    try:
        return fold(Fold(), journal.events)
    except (JournalError, ValueError):
        return None  # said by grammar()


def _at(*events: Event) -> tuple[str, ...]:
    return tuple(f"{e.seq} epoch {e.epoch} {e.kind} {dict(e.body)}" for e in events)


def _all(effects: Sequence[Effect]) -> tuple[str, ...]:
    return tuple(repr(effect) for effect in effects)


def main(arguments: list[str]) -> int:
    """Judge a file: 0 when nothing is wrong, 1 when something is, 2 when it is no history."""
    try:
        takeover_s, file = _asked(arguments)
    except ValueError:
        usage = (
            "usage: python -m tenure.testing.checker [--takeover-s SECONDS] FILE (JSON lines; - for standard input)\n"
        )
        sys.stderr.write(usage)
        return 2
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        history = History.parse(text.splitlines())
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    violations = check(history, takeover_s)
    for violation in violations:
        sys.stdout.write(f"{violation}\n")
    sys.stdout.write(f"{len(history.entries)} entries, {len(violations)} violations\n")
    return 1 if violations else 0


def _asked(arguments: list[str]) -> tuple[float | None, str]:
    """The bound, and the file. :raises ValueError: neither."""
    match arguments:
        case [str(file)] if not file.startswith("--"):
            return None, file
        case ["--takeover-s", str(seconds), str(file)] if not file.startswith("--"):
            return float(seconds), file
        case _:
            raise ValueError


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
