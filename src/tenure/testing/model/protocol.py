"""The world around the store, as states and moves: nodes, what is under way between them and the store, and chance.

A node claims with a token and repeats the claim until it is answered; reads and folds; provisions; then works in
numbered batches, one at a time, an unknown outcome repeated unchanged; a call's tool runs after the batch that
journals its start, and may be held up in between. It lets go by a last batch. A sweep shows it what is wanted and
unowned, a buried owner's, or its own without being what its table holds.

Budgets bound what goes wrong: ``pause resume crash restart``, ``lose`` (a reply), ``copy`` (of a request that stays
under way, or that a node sends again), ``give_up`` (a caller that leaves; a node that hands over between two steps),
``expire`` (a live incarnation's lease), ``distrust`` (a node that gives itself up), ``provider`` (a start that fails),
``start`` and ``force`` (somebody asks), ``delete``, ``fail_over`` (to an older copy of the store).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from tenure.abc import Reason
from tenure.conversation import interrupt_calls, settle_urgent, turn_id
from tenure.errors import JournalError
from tenure.journal import (
    CORE_COMMANDS,
    CallFinished,
    CallRestarted,
    CallStarted,
    Command,
    Draft,
    TurnCompleted,
    TurnStarted,
    draft,
)
from tenure.testing.checker import Guarantee
from tenure.testing.model.state import Claiming, Member, Move, Owning, State, received, sent, with_member
from tenure.testing.model.store import RealStore, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tenure.conversation import Fold
    from tenure.testing.model.store import Answer, Kept

BUDGETS = "pause resume crash restart lose copy give_up expire distrust provider start force delete fail_over".split()
_AT = {name: place for place, name in enumerate(BUDGETS)}


class Broken(Exception):
    """A guarantee is broken in the state that a move leads to."""

    def __init__(self, guarantee: Guarantee, what: str) -> None:
        super().__init__(f"{guarantee}: {what}")
        self.guarantee = guarantee


@final
@dataclass(frozen=True, slots=True)
class Conduct:
    """The nodes' rules, each of which can be switched off to see what it is for."""

    fold_after_claim: bool = True
    """Nothing is folded before the claim (rule 9)."""
    repeat_unchanged: bool = True
    """A batch with an unknown outcome is repeated as it was (rule 5)."""
    sweeps_its_own: bool = True
    """What the store calls mine and my table does not hold is claimed again (rule 7)."""
    gives_up_for_good: bool = True
    """Past its trust an incarnation is never used again (rule 11)."""
    journals_calls: bool = True
    """A call's start is journaled before the tool runs (G7)."""


@final
@dataclass(frozen=True, slots=True)
class Scenario:
    """What is explored: so many nodes, these commands, these faults."""

    nodes: int = 2
    commands: tuple[str, ...] = ("message",)
    budgets: dict[str, int] = field(default_factory=dict[str, int])
    idempotent: bool = False
    passivates: bool = True
    apart: bool = False
    """The register of nodes and the conversation cannot be changed in one step (Redis Cluster): a claimant judges the
    owner before it sends, and the compare-and-swap on the epoch is all that stands between."""
    epochs: int = 6
    """Claims beyond this epoch are not followed."""
    conduct: Conduct = field(default_factory=Conduct)


@final
class Protocol:
    """The moves of a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.store = RealStore([Command(k, {}, f"key{i}", CORE_COMMANDS[k]) for i, k in enumerate(scenario.commands)])
        budgets = {"start": 1} | scenario.budgets
        self._budgets = tuple(budgets.get(name, 0) for name in BUDGETS)
        self._work: dict[int, tuple[str, tuple[Draft, ...], str]] = {}

    def begin(self) -> State:
        """All servers up, the conversation there, nothing asked yet."""
        members = tuple(Member("up", inc + 1) for inc in range(self.scenario.nodes))
        return State(
            kept=self.store.begin(),
            ghost=None,
            alive=tuple(m.inc for m in members),
            members=members,
            under_way=(),
            acked=(),
            unsent=tuple(range(len(self.scenario.commands))),
            left=self._budgets,
            ran=(),
            replica=None,
            incs=self.scenario.nodes + 1,
            tokens=1,
        )

    def moves(self, s: State) -> Iterator[Move]:
        """Every step that can come next. :raises Broken: one of them breaks a guarantee."""
        yield from self._served(s)
        yield from self._asked(s)
        yield from self._expired(s)
        for place, member in enumerate(s.members):
            yield from self._member(s, place, member)
        yield from self._failed_over(s)

    # the store

    def _served(self, s: State) -> Iterator[Move]:
        """The store executes what is under way, in any order, at any time."""
        for request in dict.fromkeys(s.under_way):
            if request.op in ("claim", "take over") and self.store.record(s.kept).epoch >= self.scenario.epochs:
                continue
            kept, answer, ghost = self._execute(s, request)
            done = s._replace(kept=kept, ghost=ghost, under_way=received(s.under_way, request))
            told = self._told(done, request, answer)
            label = f"the store executes {self._shown(request)} -> {answer.word}"
            yield Move(label, told)
            if self._can(s, "lose"):
                yield Move(f"{label}, its reply is lost", self._use(done, "lose"), fair=False)
            if self._can(s, "copy"):
                copy = self._use(told, "copy")._replace(under_way=s.under_way)
                yield Move(f"{label}, a copy stays under way", copy, fair=False)

    def _execute(self, s: State, request: Request) -> tuple[Kept, Answer, tuple[int, int] | None]:
        """Run it on the real store, and judge the step (G1, G2)."""
        before = self.store.record(s.kept)
        try:
            kept, answer = self.store.execute(s.kept, self._known_alive(s, request), request)
        except JournalError as error:
            raise Broken(Guarantee.JOURNAL, f"after {self._shown(request)}: {error}") from None
        after = self.store.record(kept)
        if after.epoch < before.epoch:
            raise Broken(Guarantee.ONE_OWNER, f"the epoch went back from {before.epoch} to {after.epoch}")
        if not answer.changed:
            return kept, answer, s.ghost
        match request.op:
            case "claim" | "take over":
                over = s.kept.owner
                if request.op == "claim" and over and over != request.inc and over in s.alive:
                    raise Broken(Guarantee.ONE_OWNER, f"epoch {after.epoch} was granted over a live owner")
                if after.epoch <= before.epoch:
                    raise Broken(Guarantee.ONE_OWNER, f"epoch {after.epoch} was granted twice")
                return kept, answer, (after.epoch, request.token)
            case "append" | "release":
                if s.ghost != (request.epoch, request.token):
                    holds = "nobody's" if s.ghost is None else f"epoch {s.ghost[0]}'s"
                    what = f"{self._shown(request)} of epoch {request.epoch} was accepted, the conversation is {holds}"
                    raise Broken(Guarantee.ONE_WRITER, what)
                return kept, answer, s.ghost if request.op == "append" else None
            case "delete":
                return kept, answer, None
            case _:
                return kept, answer, s.ghost

    def _known_alive(self, s: State, request: Request) -> tuple[int, ...]:
        """Who lives, as far as the step can tell: apart from the register it must believe the claimant."""
        if not self.scenario.apart or request.op != "claim":
            return s.alive
        others = tuple(inc for inc in s.alive if inc not in (s.kept.owner, request.inc))
        return (*others, request.inc) if request.number else (*others, request.inc, s.kept.owner)

    def _told(self, s: State, request: Request, answer: Answer) -> State:
        """The answer reaches whoever still waits for it."""
        if request.op == "submit":
            known = answer.word in ("Accepted", "Duplicate") and request.content not in s.acked
            return s._replace(acked=tuple(sorted((*s.acked, request.content)))) if known else s
        for place, member in enumerate(s.members):
            does = member.does
            if member.state == "down" or does is None or member.inc != request.inc:
                continue
            if isinstance(does, Claiming):
                if does.request == request:
                    return with_member(s, place, member._replace(does=self._claimed(does, answer)))
            elif does.waits == request:
                return with_member(s, place, member._replace(does=self._wrote(s, does, request, answer)))
        return s

    def _claimed(self, does: Claiming, answer: Answer) -> Owning | None:
        if answer.word != "Held":
            return None
        if self.scenario.conduct.fold_after_claim:
            return Owning(answer.epoch, does.request.token, 0, 0, "fold")
        return Owning(answer.epoch, does.request.token, 0, does.view, "provision")

    def _wrote(self, s: State, does: Owning, request: Request, answer: Answer) -> Owning | None:
        if answer.word not in ("Appended", "Repeated") or request.op == "release":
            return None
        view = self.store.prefix(self.store.contents[s.kept.content].journal, answer.head)
        last = self.store.batches[request.content].drafts[-1].kind
        at = "tool" if last in (CallStarted.kind, CallRestarted.kind) else "work"
        return does._replace(
            number=request.number, view=view, at=at, waits=None, call=does.call if at == "tool" else ""
        )

    # the world

    def _asked(self, s: State) -> Iterator[Move]:
        if s.unsent:
            request = Request("submit", content=s.unsent[0])
            new = s._replace(under_way=sent(s.under_way, request), unsent=s.unsent[1:])
            yield Move(f"a client submits {self._shown(request)}", new, fair=False)
        record = self.store.record(s.kept)
        if self._can(s, "delete") and record.epoch and not record.deleted:
            new = s._replace(under_way=sent(s.under_way, Request("delete", epoch=record.epoch)))
            yield Move("an operator deletes", self._use(new, "delete"), fair=False)

    def _expired(self, s: State) -> Iterator[Move]:
        """Leases run out, and whoever looks buries: those of the silent in the end, those of the living by bad luck."""
        up = {m.inc for m in s.members if m.state == "up"}
        for inc in s.alive:
            left = s._replace(alive=tuple(i for i in s.alive if i != inc))
            if inc not in up:
                yield Move(f"#{inc} is buried", left)
            elif self._can(s, "expire"):
                yield Move(f"#{inc}, alive, is buried", self._use(left, "expire"), fair=False)

    def _failed_over(self, s: State) -> Iterator[Move]:
        if not self._can(s, "fail_over"):
            return
        if s.replica is None:
            yield Move("(the replica is here)", s._replace(replica=(s.kept, s.ghost, s.alive)), fair=False)
        elif s.replica[0] != s.kept:
            kept, ghost, alive = s.replica
            stands = {e.key for e in self.store.journals[self.store.contents[kept.content].journal]}
            acked = tuple(n for n in s.acked if f"key{n}" in stands)
            alive = tuple(inc for inc in alive if inc in s.alive)
            after = s._replace(kept=kept, ghost=ghost, alive=alive, acked=acked, replica=None)
            yield Move("THE STORE FAILS OVER to its replica", self._use(after, "fail_over"), fair=False)

    # a server

    def _member(self, s: State, place: int, m: Member) -> Iterator[Move]:
        name = f"@{place}"
        if m.state == "paused":
            if self._can(s, "resume"):
                awake = with_member(self._use(s, "resume"), place, m._replace(state="up"))
                yield Move(f"{name} resumes", awake, fair=False)
            return
        if m.state == "down":
            if self._can(s, "restart"):
                yield Move(f"{name} restarts", self._registered(self._use(s, "restart"), place), fair=False)
            return
        if self._can(s, "pause"):
            asleep = with_member(self._use(s, "pause"), place, m._replace(state="paused"))
            yield Move(f"{name} is paused", asleep, fair=False)
        if self._can(s, "crash"):
            yield Move(f"{name} crashes", with_member(self._use(s, "crash"), place, Member("down", 0)), fair=False)
        if m.inc not in s.alive:
            yield Move(f"{name} learns that it is dead, ends its loops, registers anew", self._registered(s, place))
        elif self._can(s, "distrust"):
            left = self._use(s, "distrust")
            if self.scenario.conduct.gives_up_for_good:
                label = f"{name} runs out of trust, gives its incarnation up, registers anew"
                yield Move(label, self._registered(left, place), fair=False)
            else:
                label = f"{name} runs out of trust, ends its loops, renews later on"
                yield Move(label, with_member(left, place, m._replace(does=None)), fair=False)
        if m.does is None:
            yield from self._free(s, place, m)
        elif isinstance(m.does, Claiming):
            yield from self._claims(s, place, m, m.does)
        else:
            yield from self._owns(s, place, m, m.does)

    def _registered(self, s: State, place: int) -> State:
        return with_member(s, place, Member("up", s.incs))._replace(
            alive=tuple(sorted((*s.alive, s.incs))), incs=s.incs + 1
        )

    def _free(self, s: State, place: int, m: Member) -> Iterator[Move]:
        """Nothing under way here: asked to start, to take over, or led by a sweep."""
        record = self.store.record(s.kept)
        if record.deleted:
            return
        if self._can(s, "start"):
            yield Move(f"@{place} is asked to start, claims", self._claim(self._use(s, "start"), place, m), fair=False)
        if self._can(s, "force") and s.kept.owner not in (0, m.inc):
            forced = self._claim(self._use(s, "force"), place, m, "take over")
            yield Move(f"@{place} is told to take over", forced, fair=False)
        if record.epoch >= self.scenario.epochs or any(r.op == "claim" and r.inc == m.inc for r in s.under_way):
            return
        if s.kept.owner == m.inc and not self.scenario.conduct.sweeps_its_own:
            return
        if m.inc in s.alive and self.store.wanted(s.kept, m.inc, s.alive):
            yield Move(f"@{place} sweeps, claims", self._claim(s, place, m))

    def _claim(self, s: State, place: int, m: Member, op: str = "claim") -> State:
        judged = self.scenario.apart and op == "claim" and s.kept.owner not in s.alive
        request = Request(op, m.inc, s.tokens, self.store.record(s.kept).epoch, number=int(judged))
        view = self.store.contents[s.kept.content].journal if not self.scenario.conduct.fold_after_claim else 0
        claiming = with_member(s, place, m._replace(does=Claiming(request, view)))
        return claiming._replace(under_way=sent(s.under_way, request), tokens=s.tokens + 1)

    def _claims(self, s: State, place: int, m: Member, does: Claiming) -> Iterator[Move]:
        yield from self._repeats(s, place, does.request, follow=self.store.record(s.kept).epoch < self.scenario.epochs)
        if self._can(s, "give_up"):
            left = with_member(self._use(s, "give_up"), place, m._replace(does=None))
            yield Move(f"@{place} gives up waiting for its claim", left, fair=False)

    def _repeats(self, s: State, place: int, request: Request, *, follow: bool = True) -> Iterator[Move]:
        """What has no answer is sent again, unchanged."""
        again = s._replace(under_way=sent(s.under_way, request))
        if request not in s.under_way:
            if follow:
                yield Move(f"@{place} repeats its {request.op}", again)
        elif self._can(s, "copy"):
            yield Move(f"@{place} times out, repeats its {request.op}", self._use(again, "copy"), fair=False)

    def _owns(self, s: State, place: int, m: Member, does: Owning) -> Iterator[Move]:
        name = f"@{place}"
        kept, record = s.kept, self.store.record(s.kept)
        mine = kept.owner == m.inc and kept.token == does.token and record.epoch == does.epoch
        leaves = does.waits is not None and does.waits.op == "release"
        if not mine and record.wanted and not leaves:
            yield Move(
                f"{name} sweeps: what it runs is not what the store records",
                with_member(s, place, m._replace(does=None)),
            )
        if does.waits is not None:
            yield from self._repeats(s, place, does.waits)
            if self._can(s, "give_up") and leaves:
                left = with_member(self._use(s, "give_up"), place, m._replace(does=None))
                yield Move(f"{name} gives up waiting for its release", left, fair=False)
            elif self._can(s, "give_up") and not self.scenario.conduct.repeat_unchanged:
                anew = with_member(
                    self._use(s, "give_up"), place, m._replace(does=does._replace(waits=None, at="work"))
                )
                yield Move(f"{name} gives up waiting for its batch, decides anew", anew, fair=False)
            return
        match does.at:
            case "fold":
                read = self.store.contents[kept.content].journal
                yield Move(
                    f"{name} reads and folds",
                    with_member(s, place, m._replace(does=does._replace(view=read, at="provision"))),
                )
            case "provision":
                yield Move(f"{name} provisions", with_member(s, place, m._replace(does=does._replace(at="work"))))
                if self._can(s, "provider"):
                    failed = self._sends(self._use(s, "provider"), place, m, does, (), Reason.FAILED)
                    yield Move(f"{name} cannot provision, releases", failed, fair=False)
            case "tool":
                yield self._runs(s, place, m, does)
            case "finish":
                turn = self._turn(does.view)
                written = (draft(CallFinished(does.call), turn),)
                yield Move(f"{name} appends call_finished", self._sends(s, place, m, does, written))
            case _:
                yield from self._works(s, place, m, does)

    def _turn(self, view: int) -> str | None:
        turn = self.store.folds[view].turn
        return turn.id if turn is not None else None

    def _runs(self, s: State, place: int, m: Member, does: Owning) -> Move:
        """The tool runs: whatever has happened since its start was journaled."""
        ran = dict(s.ran)
        ran[does.call] = min(ran.get(does.call, 0) + 1, 2)
        rewound = s.left[_AT["fail_over"]] != self._budgets[_AT["fail_over"]]
        if not rewound:
            if ran[does.call] > 1 and not self.scenario.idempotent:
                raise Broken(Guarantee.KNOWN_FATE, f"call {does.call} is not idempotent and ran twice")
            journal = self.store.journals[self.store.contents[s.kept.content].journal]
            deleted = self.store.record(s.kept).deleted
            if not deleted and not any(does.call in event.opens for event in journal):
                raise Broken(Guarantee.KNOWN_FATE, f"call {does.call} ran and the journal does not know it")
        after = with_member(s, place, m._replace(does=does._replace(at="finish")))
        return Move(f"@{place} RUNS the tool of {does.call}", after._replace(ran=tuple(sorted(ran.items()))))

    def _works(self, s: State, place: int, m: Member, does: Owning) -> Iterator[Move]:
        """One step of the plan; in between it may read on, hand over, or, when there is nothing, let go."""
        step = self._next(does.view)
        name, label, written, call = f"@{place}", *step
        if written and not (label == CallStarted.kind and not self.scenario.conduct.journals_calls):
            new = self._sends(s, place, m, does._replace(call=call), written)
            yield Move(f"{name} appends {label}", new)
        elif written:
            new = with_member(s, place, m._replace(does=does._replace(at="tool", call=call)))
            yield Move(f"{name} starts a call unjournaled", new)
        elif self.scenario.passivates:
            yield Move(f"{name} passivates, releases", self._sends(s, place, m, does, (), Reason.IDLE), fair=False)
        if written and self._can(s, "give_up"):
            left = self._sends(self._use(s, "give_up"), place, m, does, (), Reason.DRAINED)
            yield Move(f"{name} drains, releases between two steps", left, fair=False)
        journal = self.store.contents[s.kept.content].journal
        seen, head = self.store.folds[does.view].seq, self.store.folds[journal].seq
        if head < seen and self.store.record(s.kept).wanted:
            yield Move(f"{name} sweeps: the store was rewound", with_member(s, place, m._replace(does=None)))
        elif seen < head:
            read = with_member(s, place, m._replace(does=does._replace(view=journal)))
            yield Move(f"{name} hears a hint and reads", read, fair=False)
            if self.store.record(s.kept).wanted:
                yield Move(f"{name} sweeps and reads", read)

    def _next(self, view: int) -> tuple[str, tuple[Draft, ...], str]:
        """What an owner who has read this journal does next: its name, the drafts, the call that then runs."""
        found = self._work.get(view)
        if found is None:
            found = self._work[view] = _decide(self.store.folds[view], idempotent=self.scenario.idempotent)
        return found

    def _sends(
        self, s: State, place: int, m: Member, does: Owning, drafts: tuple[Draft, ...], reason: Reason | None = None
    ) -> State:
        """The node's next batch is under way."""
        try:
            content = self.store.batch(does.view, drafts, reason)
        except JournalError:
            # Only after a fail-over: what it would write means nothing in the journal that it has read.
            return with_member(s, place, m._replace(does=None))
        op = "release" if reason else "append"
        request = Request(op, m.inc, does.token, does.epoch, does.number + 1, content)
        waiting = with_member(s, place, m._replace(does=does._replace(waits=request)))
        return waiting._replace(under_way=sent(s.under_way, request))

    # judging a state

    def judge(self, s: State) -> None:
        """:raises Broken: the state itself breaks a guarantee."""
        content = self.store.contents[s.kept.content]
        if content.forgotten:
            raise Broken(Guarantee.WANTED, "work is left and the conversation is not wanted")
        if not content.record.deleted:
            keys = [e.key for e in self.store.journals[content.journal] if e.key is not None]
            for number in s.acked:
                if keys.count(f"key{number}") != 1:
                    raise Broken(
                        Guarantee.ACCEPTED_IS_KEPT, f"command {number} stands {keys.count(f'key{number}')} times"
                    )
        owning = [(m, m.does) for m in s.members if isinstance(m.does, Owning)]
        rewound = s.left[_AT["fail_over"]] != self._budgets[_AT["fail_over"]]
        for place, (one, does) in enumerate(owning):
            for other, too in owning[:place]:
                if does.epoch == too.epoch and does.token != too.token and not rewound:
                    raise Broken(Guarantee.ONE_OWNER, f"two claims believe in epoch {does.epoch}")
                if (one.inc, does.token) == (other.inc, too.token):
                    raise Broken(Guarantee.IDEMPOTENT_START, "two loops on one claim")

    def served(self, s: State) -> bool:
        """Nothing is left to do here, or nobody is there to do it, or it is beyond the bounds."""
        record = self.store.record(s.kept)
        if record.deleted or record.epoch >= self.scenario.epochs or not any(m.state == "up" for m in s.members):
            return True
        return not self.store.folds[self.store.contents[s.kept.content].journal].runnable

    # small words

    def _can(self, s: State, what: str) -> bool:
        return s.left[_AT[what]] > 0

    def _use(self, s: State, what: str) -> State:
        at = _AT[what]
        return s._replace(left=(*s.left[:at], s.left[at] - 1, *s.left[at + 1 :]))

    def _shown(self, request: Request) -> str:
        match request.op:
            case "append" | "release":
                batch = self.store.batches[request.content]
                written = ", ".join(d.kind for d in batch.drafts) or "nothing"
                return f"{request.op} {request.number} of #{request.inc} ({written}; seen {batch.seen})"
            case "submit":
                return f"{self.scenario.commands[request.content]} {request.content}"
            case "delete":
                return f"delete at epoch {request.epoch}"
            case _:
                return f"{request.op} of #{request.inc} with %{request.token} on epoch {request.epoch}"


def _decide(state: Fold, *, idempotent: bool) -> tuple[str, tuple[Draft, ...], str]:
    turn = state.turn
    for command in state.urgent:
        return command.kind, settle_urgent(state, command), ""
    if state.stopped:
        return "", (), ""
    if turn is None:
        if not state.queue:
            return "", (), ""
        first = int(state.queue[0].seq)
        return TurnStarted.kind, (draft(TurnStarted((first,)), turn_id(first)),), ""
    for call in turn.calls.values():
        if call.idempotent:
            restarted = draft(CallRestarted(call.call, call.attempt + 1), turn.id)
            return CallRestarted.kind, (restarted,), call.call
        return "call_interrupted", interrupt_calls(state, "owner lost"), ""
    if turn.closed:
        return TurnCompleted.kind, (draft(TurnCompleted(turn.commands), turn.id),), ""
    name = f"call-{turn.id}"
    return CallStarted.kind, (draft(CallStarted(name, "tool", idempotent, name), turn.id),), name
