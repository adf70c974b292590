"""A state of the model's world: what the store holds, what every server does, what is under way between them."""

from __future__ import annotations

from typing import Any, NamedTuple

from tenure.testing.model.store import Kept, Request


class Claiming(NamedTuple):
    """A node waits for the answer to this claim."""

    request: Request
    view: int
    """What it had read before, for the switch that folds too early."""


class Owning(NamedTuple):
    """A node believes that it owns the conversation."""

    epoch: int
    token: int
    number: int
    """Its last batch that was answered."""
    view: int
    """The journal as it has read it."""
    at: str
    """``fold``, ``provision``, ``work``, ``tool`` (about to run) or ``finish`` (the tool has run)."""
    call: str = ""
    waits: Request | None = None
    """The batch that is under way."""


class Member(NamedTuple):
    """A server: ``up``, ``paused`` or ``down``, its incarnation, and what it does about the conversation."""

    state: str
    inc: int
    does: Claiming | Owning | None = None


class State(NamedTuple):
    """Everything. Numbers stand for incarnations and tokens; only whether two are equal matters."""

    kept: Kept
    ghost: tuple[int, int] | None
    """Epoch and token of the claim that the store granted last, until its release: what it must go by."""
    alive: tuple[int, ...]
    members: tuple[Member, ...]
    under_way: tuple[Request, ...]
    acked: tuple[int, ...]
    unsent: tuple[int, ...]
    left: tuple[int, ...]
    ran: tuple[tuple[str, int], ...]
    """How often each call's tool has run, 2 meaning more than once."""
    replica: tuple[Kept, tuple[int, int] | None, tuple[int, ...]] | None
    incs: int
    tokens: int
    """The next numbers."""


class Move(NamedTuple):
    """A step of the world. A fair one happens in the end by itself; the others are faults, wishes and luck.

    In its label ``@`` stands before the place of a server, ``#`` before an incarnation, ``%`` before a token.
    """

    label: str
    state: State
    fair: bool = True


def with_member(s: State, place: int, member: Member) -> State:
    """The state in which this server is as given."""
    return s._replace(members=(*s.members[:place], member, *s.members[place + 1 :]))


def sent(under_way: tuple[Request, ...], request: Request) -> tuple[Request, ...]:
    """What is under way, with one more."""
    return tuple(sorted((*under_way, request)))


def received(under_way: tuple[Request, ...], request: Request) -> tuple[Request, ...]:
    """What is under way, with one less."""
    place = under_way.index(request)
    return (*under_way[:place], *under_way[place + 1 :])


class Renamed(NamedTuple):
    """A state with new names, and the old ones: by place the server's former place, by old name the new one."""

    state: State
    places: tuple[int, ...]
    incs: dict[int, int]
    tokens: dict[int, int]


def renamed(s: State) -> Renamed:
    """The same state with its names in order of appearance and its servers sorted: one for all that differ in names.

    Two such states may still differ in names alone, when servers were told apart by nothing else: that costs states,
    and no verdict.
    """
    alive = set(s.alive)
    kept = s.kept

    def plain(member: Member) -> Any:
        does, inc = member.does, member.inc
        shape = (member.state, inc in alive, inc == kept.owner)
        if does is None:
            return (*shape, 0)
        if isinstance(does, Claiming):
            return (*shape, 1, does.request.op, does.request.epoch, does.view)
        waits = (does.waits.op, does.waits.number, does.waits.content) if does.waits else ("",)
        return (*shape, 2, does.at, does.epoch, does.number, does.view, does.call, waits)

    incs: dict[int, int] = {0: 0}
    tokens: dict[int, int] = {0: 0}

    def inc(name: int) -> int:
        return incs.setdefault(name, len(incs))

    def token(name: int) -> int:
        return tokens.setdefault(name, len(tokens))

    def asked(r: Request) -> Request:
        return Request(r.op, inc(r.inc), token(r.token), r.epoch, r.number, r.content)

    def stored(k: Kept) -> Kept:
        return Kept(k.content, inc(k.owner), token(k.token), token(k.former))

    def ghost(claim: tuple[int, int] | None) -> tuple[int, int] | None:
        return claim and (claim[0], token(claim[1]))

    kept2, ghost2 = stored(kept), ghost(s.ghost)
    members: list[Member] = []
    places = sorted(range(len(s.members)), key=lambda place: plain(s.members[place]))
    for place in places:
        member = s.members[place]
        does = member.does
        if isinstance(does, Claiming):
            does = Claiming(asked(does.request), does.view)
        elif does is not None:
            waits = does.waits and asked(does.waits)
            does = does._replace(token=token(does.token), waits=waits)
        members.append(Member(member.state, inc(member.inc), does))
    order = sorted(
        s.under_way, key=lambda r: (r.op, incs.get(r.inc, 99), r.epoch, r.number, r.content, tokens.get(r.token, 99))
    )
    under_way = tuple(sorted(asked(r) for r in order))
    replica = s.replica
    if replica is not None:
        replica = (stored(replica[0]), ghost(replica[1]), tuple(sorted(incs[i] for i in replica[2] if i in incs)))
    alive2 = tuple(sorted(incs[i] for i in s.alive if i in incs))
    state = State(
        kept2,
        ghost2,
        alive2,
        tuple(members),
        under_way,
        s.acked,
        s.unsent,
        s.left,
        s.ran,
        replica,
        len(incs),
        len(tokens),
    )
    return Renamed(state, tuple(places), incs, tokens)
