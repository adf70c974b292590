"""Any sequence of requests, in any order, with late copies: the store agrees with a model that fits on one page.

The model knows the rules of ownership and of keys only, and was written from PROTOCOL's table, not from the store's code.
After each step the journals, the records and the sweep are compared, read through another handle than the one that wrote.
"""

import asyncio
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import postgres_servers
import pytest
import redis_servers
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from tenure.abc import (
    About,
    Accepted,
    Append,
    Appended,
    Buried,
    Claim,
    Creation,
    Dead,
    Death,
    Deleted,
    Duplicate,
    Elsewhere,
    Fenced,
    Granted,
    Held,
    KeyReused,
    Limits,
    Load,
    Reading,
    Reason,
    Refused,
    Release,
    ReleasedNow,
    Repeated,
    Sent,
    Stale,
    Store,
    Submit,
    Unknown,
)
from tenure.conversation import Settle
from tenure.journal import CORE_COMMANDS, Command, Draft
from tenure.lease import Epoch, IncarnationId, Lease, Token
from tenure.stores.memory import Disk, MemoryStore
from tenure.stores.postgres import lanes
from tenure.stores.redis import RedisStore
from tenure.stores.sqlite import SqliteStore
from tenure.testing.clock import ManualClock
from tenure.testing.servers import redis_binary

TTL_S = 4.0
AGENT = "agent"
NAMES = ("c1", "c2")


@dataclass
class Life:
    """An incarnation in the model."""

    expires: float
    beat: int = 0
    nonce: str = ""
    dead: bool = False


@dataclass
class Talk:
    """A conversation in the model."""

    journal: list[tuple[str, int | None, str]] = field(default_factory=list)
    """(kind, epoch, what identifies the event) per seq."""
    keys: dict[str, tuple[int, tuple[str, str]]] = field(default_factory=dict)
    epoch: int = 0
    owner: tuple[str, str] | None = None
    """(incarnation, token)"""
    number: int = 0
    last: tuple[Append | Release, Appended | None] | None = None
    """The owner's last batch and its answer."""
    last_release: Release | None = None
    wanted: bool = False
    last_command: int = 0
    deleted: bool = False

    def held(self, lease: Lease) -> bool:
        return not self.deleted and (lease.epoch, (lease.incarnation, lease.token)) == (self.epoch, self.owner)


class StoreMachine(RuleBasedStateMachine):
    """Requests of several incarnations and clients against one store, beside the model."""

    incarnations = Bundle("incarnations")
    claims = Bundle("claims")
    batches = Bundle("batches")
    releases = Bundle("releases")

    def open(self, folder: Path, clock: ManualClock) -> Store:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory(prefix="tenure-machine-")
        self.clock = ManualClock()
        self.stores = [self.open(Path(self.folder.name), self.clock) for _ in range(2)]
        for store in self.stores:
            self.loop.run(store.__aenter__())
        self.lives: dict[str, Life] = {}
        self.talks: dict[str, Talk] = {}
        self.leases: list[Lease] = []
        self.count = 0

    def teardown(self) -> None:
        for store in self.stores:
            self.loop.run(store.__aexit__(None, None, None))
        self.loop.close()
        self.folder.cleanup()

    def ask(self, operation: str, *arguments: object) -> object:
        return self.loop.run(getattr(self.stores[0], operation)(*arguments))

    def fresh(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    @property
    def now(self) -> float:
        return self.clock.boottime().boot_s

    # time and nodes

    @initialize(target=incarnations)
    def two_nodes_and_a_conversation(self) -> object:
        self.submit(NAMES[0], "k1", "message", "x", create=True)
        return multiple(self.register(), self.register())

    @precondition(lambda self: len(self.lives) < 6)
    @rule(target=incarnations)
    def register(self) -> IncarnationId:
        incarnation = IncarnationId(self.fresh("n"))
        about = About(incarnation, "", 10, (AGENT,), self.clock.now())
        assert self.ask("register", incarnation, about, TTL_S) == Granted(0)
        self.lives[incarnation] = Life(self.now + TTL_S)
        assert isinstance(self.ask("register", incarnation, about, TTL_S), Refused)
        return incarnation

    @rule(seconds=st.sampled_from([1.0, 2.0, 3.0]), all_is_well=st.sampled_from([True, True, False]))
    def time_passes(self, seconds: float, all_is_well: bool) -> None:
        self.clock.advance(seconds)
        for incarnation in self.lives if all_is_well else ():
            self.renew(IncarnationId(incarnation), 0, "a")

    @rule(incarnation=incarnations, late=st.integers(0, 2), nonce=st.sampled_from(["a", "b"]))
    def renew(self, incarnation: IncarnationId, late: int, nonce: str) -> None:
        life = self.lives[incarnation]
        beat = life.beat - late
        answer = self.ask("renew", incarnation, beat, nonce, TTL_S, Load())
        alive = not life.dead and self.now < life.expires
        repeated = late == 1 and nonce == life.nonce and beat >= 0
        if not alive or not (late == 0 or repeated):
            assert answer == Dead()
            return
        life.beat, life.nonce, life.expires = beat + 1, nonce, self.now + TTL_S
        assert answer == Granted(life.beat)

    @rule(incarnation=incarnations, why=st.sampled_from([Death.EXPIRED, Death.EXPIRED, Death.EXITED]))
    def bury(self, incarnation: IncarnationId, why: Death) -> None:
        life = self.lives[incarnation]
        life.dead = life.dead or why is not Death.EXPIRED or self.now >= life.expires
        assert isinstance(self.ask("bury", incarnation, why), Buried) == life.dead

    # clients

    @rule(
        name=st.sampled_from(NAMES),
        key=st.sampled_from(["k1", "k2", "k3", "k4"]),
        kind=st.sampled_from(["message", "interrupt"]),
        text=st.sampled_from(["x", "y"]),
        create=st.sampled_from([True, True, False]),
    )
    def submit(self, name: str, key: str, kind: str, text: str, create: bool) -> None:
        command = Command(kind, {"text": text}, key, CORE_COMMANDS[kind])
        answer = self.ask("submit", Submit(name, command, Creation(default_agent=AGENT) if create else None))
        talk = self.talks.get(name)
        if talk is None and not create:
            assert answer == Unknown()
            return
        talk = talk or self._created(name)
        if talk.deleted:
            assert answer == Deleted(Epoch(talk.epoch))
        elif key in talk.keys:
            seq, said = talk.keys[key]
            assert isinstance(answer, Duplicate if said == (kind, text) else KeyReused)
            assert answer.seq == seq
        else:
            talk.journal.append((kind, None, key))
            talk.keys[key] = len(talk.journal), (kind, text)
            talk.wanted, talk.last_command = True, len(talk.journal)
            assert isinstance(answer, Accepted)
            assert answer.seq == len(talk.journal)

    def _created(self, name: str) -> Talk:
        self.talks[name] = Talk(journal=[("created", None, "")])
        return self.talks[name]

    @precondition(lambda self: len(self.talks["c1"].journal) > 5)
    @rule(name=st.sampled_from(NAMES), off=st.sampled_from([0, 1]))
    def delete(self, name: str, off: int) -> None:
        talk = self.talks.get(name)
        epoch = talk.epoch if talk else 0
        answer = self.ask("delete", name, Epoch(epoch - off), "user")
        if talk is None:
            assert answer == Unknown()
        elif off and not talk.deleted:
            assert isinstance(answer, Stale)
        else:
            if not talk.deleted:
                self.talks[name] = Talk(epoch=epoch + 1, deleted=True)
            assert answer == Deleted(Epoch(self.talks[name].epoch))

    # owners

    @rule(
        target=claims,
        name=st.sampled_from(NAMES),
        incarnation=incarnations,
        off=st.sampled_from([0, 0, 0, -1, 1]),
        forced=st.sampled_from([False, False, True]),
        create=st.booleans(),
    )
    def claim(self, name: str, incarnation: IncarnationId, off: int, forced: bool, create: bool) -> Claim:
        epoch = self.talks[name].epoch if name in self.talks else 0
        creation = Creation(default_agent=AGENT) if create else None
        token = Token(self.fresh("t"))
        request = Claim(name, incarnation, token, Epoch(epoch + off), "node", "", "test", forced, creation)
        self.send_claim(request)
        return request

    @rule(request=claims)
    def send_claim(self, request: Claim) -> None:
        """A copy of it comes, sooner or later."""
        answer = self.ask("claim", request)
        talk = self.talks.get(request.conversation)
        dead = self.lives[request.incarnation].dead
        me = (request.incarnation, request.token)
        if talk is not None and talk.deleted:
            assert answer == Deleted(Epoch(talk.epoch))
        elif talk is not None and talk.owner == me:
            assert isinstance(answer, Held), "a repeat"
            assert (answer.lease.epoch, answer.record.head) == (talk.epoch, len(talk.journal))
        elif talk is None and request.create is None:
            assert isinstance(answer, Unknown)
        elif dead:
            assert isinstance(answer, Dead)
        elif talk is not None and talk.owner is not None and self._keeps(talk.owner[0], request):
            assert isinstance(answer, Elsewhere)
        elif request.expected_epoch != (talk.epoch if talk else 0):
            assert isinstance(answer, Stale)
        else:
            talk = talk or self._created(request.conversation)
            talk.epoch, talk.owner, talk.number, talk.last = talk.epoch + 1, me, 0, None
            talk.journal.append(("claimed", talk.epoch, request.incarnation))
            assert isinstance(answer, Held)
            assert (answer.lease.conversation, answer.lease.epoch) == (request.conversation, talk.epoch)
            assert (answer.lease.incarnation, answer.lease.token) == me
            self.leases.append(answer.lease)

    def _keeps(self, owner: str, request: Claim) -> bool:
        return owner != request.incarnation and not self.lives[owner].dead and not request.forced

    def _next_batch(self, which: int, off: int, unseen: int, count: int, runnable: bool | None) -> Append:
        """What an owner would send next, or nearly so; mostly the last owner."""
        lease = self.leases[-1 - which % len(self.leases)]
        talk = self.talks[lease.conversation]
        drafts = tuple(Draft("note", {"text": self.fresh("e")}) for _ in range(count))
        settle = None if runnable is None else Settle(runnable=runnable)
        return Append(lease, talk.number + off, len(talk.journal) - unseen, drafts, settle)

    @precondition(lambda self: self.leases)
    @rule(
        target=batches,
        which=st.sampled_from([0, 0, 0, 0, 1, 2]),
        off=st.sampled_from([1, 1, 1, 1, 0, 2]),
        unseen=st.sampled_from([0, 0, 0, 1, 2, -1]),
        count=st.sampled_from([0, 1, 1, 2]),
        runnable=st.sampled_from([True, False, None]),
        forgery=st.sampled_from(["epoch", "token", "incarnation", "seen"]),
    )
    def append(self, which: int, off: int, unseen: int, count: int, runnable: bool | None, forgery: str) -> Append:
        """After something that is almost it, and is refused."""
        batch = self._next_batch(which, off, unseen, count, runnable)
        self.send_batch(self._forged(batch, forgery), None)
        self.send_batch(batch, None)
        return batch

    @rule(batch=batches, forgery=st.sampled_from([None, None, "drafts", "number"]))
    def send_batch(self, batch: Append, forgery: str | None) -> None:
        """A copy of it comes, sooner or later; or something that is almost a copy."""
        batch = self._forged(batch, forgery)
        answer = self.ask("append", batch)
        talk = self.talks[batch.lease.conversation]
        if talk.held(batch.lease) and talk.last is not None and talk.last[0] == batch:
            assert answer == Repeated(talk.last[1])  # type: ignore[arg-type]
        elif self._fits(talk, batch):
            self._write(talk, batch)
            assert isinstance(answer, Appended)
            assert (answer.count, answer.head) == (len(batch.drafts), len(talk.journal))
            talk.last = (batch, answer)
        else:
            assert isinstance(answer, Fenced)

    def _forged(self, batch: Append, what: str | None) -> Append:
        match what:
            case "epoch":
                return replace(batch, lease=replace(batch.lease, epoch=Epoch(batch.lease.epoch + 1)))
            case "token":
                return replace(batch, lease=replace(batch.lease, token=Token("forged")))
            case "incarnation":
                return replace(batch, lease=replace(batch.lease, incarnation=IncarnationId("forged")))
            case "drafts":
                return replace(batch, drafts=(Draft("note", {"text": "forged"}),))
            case "seen":
                return replace(batch, seen=len(self.talks[batch.lease.conversation].journal) + 1)
            case "number":
                return replace(batch, number=batch.number + 1)
            case _:
                return batch

    def _fits(self, talk: Talk, batch: Append) -> bool:
        return talk.held(batch.lease) and batch.number == talk.number + 1 and batch.seen <= len(talk.journal)

    def _write(self, talk: Talk, batch: Append) -> None:
        talk.journal += [(d.kind, talk.epoch, str(d.body["text"])) for d in batch.drafts]
        talk.number = batch.number
        if batch.settle is not None:
            talk.wanted = batch.settle.runnable or talk.last_command > batch.seen

    @precondition(lambda self: self.leases)
    @rule(
        target=releases,
        which=st.sampled_from([0, 0, 0, 1]),
        off=st.sampled_from([1, 1, 0, 2]),
        unseen=st.sampled_from([0, 0, 1, 2, -1]),
        count=st.integers(0, 1),
        runnable=st.booleans(),
    )
    def release(self, which: int, off: int, unseen: int, count: int, runnable: bool) -> Release:
        request = Release(self._next_batch(which, off, unseen, count, runnable), Reason.IDLE)
        self.send_release(request)
        return request

    @rule(request=releases)
    def send_release(self, request: Release) -> None:
        """A copy of it comes, sooner or later."""
        answer = self.ask("release", request)
        talk = self.talks[request.batch.lease.conversation]
        if talk.owner is None and talk.last_release == request and talk.epoch == request.batch.lease.epoch:
            assert answer == ReleasedNow(talk.wanted, len(talk.journal), repeated=True)
        elif self._fits(talk, request.batch):
            self._write(talk, request.batch)
            talk.journal.append(("released", talk.epoch, request.reason.value))
            talk.owner, talk.last, talk.last_release = None, None, request
            assert answer == ReleasedNow(talk.wanted, len(talk.journal))
        else:
            assert isinstance(answer, Fenced)

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 3))
    def publish(self, which: int) -> None:
        lease = self.leases[-1 - which % len(self.leases)]
        answer = self.ask("publish", lease, {"text": "half"})
        assert isinstance(answer, Sent if self.talks[lease.conversation].held(lease) else Fenced)

    # what is compared

    @invariant()
    def journals_and_records_are_the_models(self) -> None:
        for name, talk in self.talks.items():
            answer = self.loop.run(self.stores[1].read(name))
            if talk.deleted:
                assert answer == Deleted(Epoch(talk.epoch))
                continue
            assert isinstance(answer, Reading)
            record = answer.record
            owner = record.owner and record.owner.incarnation
            assert (record.epoch, (owner, record.token)) == (talk.epoch, talk.owner or (None, None))
            assert record.wanted == talk.wanted
            assert (record.head, record.last_command) == (len(talk.journal), talk.last_command)
            assert [e.seq for e in answer.events] == list(range(1, len(talk.journal) + 1)), "no gap"
            shown = [(e.kind, e.epoch, e.key or "") for e in answer.events if e.is_command or e.kind == "created"]
            assert shown == [one for one in talk.journal if one[1] is None], "G4: each accepted command once"
            assert [(e.kind, e.epoch) for e in answer.events] == [one[:2] for one in talk.journal], "G2"
            assert [e.text for e in answer.events if e.kind == "note"] == [o[2] for o in talk.journal if o[0] == "note"]
            epochs = [one[1] for one in talk.journal if one[0] == "claimed"]
            assert epochs == sorted(set(epochs)), "G1: epochs rise, and no two claims share one"

    @invariant()
    def the_sweep_finds_what_nobody_alive_holds(self) -> None:
        page = self.loop.run(self.stores[1].wanted(None, [AGENT], None, 10))
        free = {
            name
            for name, talk in self.talks.items()
            if talk.wanted and not talk.deleted and (talk.owner is None or self.lives[talk.owner[0]].dead)
        }
        assert {one.conversation for one in page.items} == free


class MemoryMachine(StoreMachine):
    def __init__(self) -> None:
        self.disk = Disk()
        super().__init__()

    def open(self, folder: Path, clock: ManualClock) -> Store:
        return MemoryStore(self.disk, clock)


class SqliteMachine(StoreMachine):
    def open(self, folder: Path, clock: ManualClock) -> Store:
        return SqliteStore(f"sqlite:///{folder}/tenure.db", clock=clock, limits=Limits())


class RedisMachine(StoreMachine):
    def __init__(self) -> None:
        self.url = redis_servers.shared_server(redis_binary()).url(prefix=redis_servers.prefix())
        super().__init__()

    def open(self, folder: Path, clock: ManualClock) -> Store:
        return RedisStore(self.url, clock=clock)


class PostgresMachine(StoreMachine):
    binaries = postgres_servers.NEWEST

    def __init__(self) -> None:
        self.factory = postgres_servers.on(postgres_servers.shared_server(self.binaries))
        super().__init__()

    def open(self, folder: Path, clock: ManualClock) -> Store:
        return self.factory(clock, Limits())


class ManyMachine(PostgresMachine):
    """What is plain is asked of the functions for many first, and of the others only what those leave alone."""

    def __init__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(lanes, "MANY", 1)
        super().__init__()

    def teardown(self) -> None:
        self.patch.undo()
        super().teardown()


class OldestPostgresMachine(PostgresMachine):
    binaries = postgres_servers.OLDEST


class OldestManyMachine(ManyMachine):
    binaries = postgres_servers.OLDEST


TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(max_examples=60, stateful_step_count=40)
TestSqlite = SqliteMachine.TestCase
TestSqlite.settings = settings(max_examples=30, stateful_step_count=30)
TestRedis = RedisMachine.TestCase
TestRedis.settings = settings(max_examples=30, stateful_step_count=30)
TestPostgres = PostgresMachine.TestCase
TestPostgres.settings = settings(max_examples=10, stateful_step_count=30)
TestPostgresMany = ManyMachine.TestCase
TestPostgresMany.settings = settings(max_examples=10, stateful_step_count=30)
TestPostgresOldest = OldestPostgresMachine.TestCase
TestPostgresOldest.settings = settings(max_examples=10, stateful_step_count=30)
TestPostgresOldestMany = OldestManyMachine.TestCase
TestPostgresOldestMany.settings = settings(max_examples=10, stateful_step_count=30)
