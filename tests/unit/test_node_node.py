"""The node as a whole: one incarnation after the other, places, statuses, and nothing left behind."""

import asyncio
import logging

import pytest
from node_support import (
    Agent,
    C,
    Cluster,
    Provider,
    Rig,
    RiggedStore,
    failing,
    held_until,
    in_virtual_time,
    lose_the_reply,
    lose_the_request,
    until,
)

from tenure.abc import Accepted, Creation, Death, Duplicate, KeyReused, RuntimeFailure, Submit, Turn, Unknown
from tenure.config import Config
from tenure.conversation import Status
from tenure.errors import (
    ConversationOwnedElsewhereError,
    InvalidInputError,
    NodeUnavailableError,
    ProvisioningError,
    StoreUnavailableError,
    UnknownConversationError,
)
from tenure.journal import Command, Delivery
from tenure.node import Node
from tenure.stores.memory import MemoryStore


async def for_ever(_: object = None) -> None:
    await asyncio.Event().wait()


# --- incarnations ---------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_after_a_loss_a_new_incarnation_registers_and_takes_the_work_up_again(cluster: Cluster):
    node = await cluster.add(agent=Agent(on_turn=for_ever))
    said = await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    old = node.incarnation
    node.agent.on_turn = Agent().on_turn
    node.beats.down = True
    await until(lambda: node.live == [])
    node.beats.down = False
    await until(lambda: cluster.settled(said))
    assert node.incarnation != old
    assert cluster.dead(old)
    assert cluster.events("claimed")[1].body["previous"] == old


@pytest.mark.parametrize("why", ["renewals are lost", "buried by others"])
@in_virtual_time
async def test_the_processes_of_its_runtimes_end_before_it_retires(cluster: Cluster, why: str):
    order: list[str] = []

    class Deadly(Provider):
        def kill_now(self) -> None:
            order.append("killed")

    async def retired(proceed):
        order.append("retired")
        return await proceed()

    node = await cluster.add(provider=Deadly(standing=cluster.standing))
    await node.start()
    node.beats.always("bury", retired)
    if why == "renewals are lost":
        node.beats.always("renew", lose_the_request)
    else:
        await cluster.store.bury(node.incarnation, Death.EXITED)
        with pytest.raises(NodeUnavailableError):
            await node.start("c2")  # the first to be told so
    await until(lambda: "retired" in order)
    assert order[0] == "killed"


@in_virtual_time
async def test_old_loops_end_then_it_retires_then_the_next_one_registers(cluster: Cluster):
    order: list[str] = []

    async def slow_to_end(turn: Turn) -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            await asyncio.sleep(0.6)
            order.append("loop ended")
            raise

    node = await cluster.add(agent=Agent(on_turn=slow_to_end))
    await cluster.say(via=node)
    await until(lambda: node.agent.turns)

    async def retired(proceed):
        order.append("retired")
        return await proceed()

    async def registered(proceed):
        order.append("registered")
        return await proceed()

    node.beats.always("renew", lose_the_reply)
    await until(lambda: node.node._incarnation.given_up)  # type: ignore[union-attr]
    node.beats.heal()
    node.agent.on_turn = Agent().on_turn
    node.beats.once("bury", retired)
    node.beats.once("register", registered)
    await until(lambda: "registered" in order)
    assert order == ["loop ended", "retired", "registered"]


@in_virtual_time
async def test_a_loop_that_does_not_end_makes_the_node_stuck_and_keeps_the_next_incarnation_away(cluster: Cluster):
    release = asyncio.Event()

    async def stubborn(turn: Turn) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    node = await cluster.add(agent=Agent(on_turn=stubborn))
    said = await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    old = node.incarnation
    node.beats.down = True
    await until(node.node.stuck.is_set)
    node.beats.down = False
    node.agent.on_turn = Agent().on_turn
    registered = node.beats.count("register")
    await asyncio.sleep(30)
    assert node.beats.count("register") == registered
    assert node.agent.turns[0].lost
    other = await cluster.add()
    await until(lambda: cluster.settled(said))  # elsewhere it goes on long since
    assert cluster.owner() == other.node.config.node
    release.set()
    await until(lambda: node.node.readiness() == [])
    assert node.incarnation != old
    assert (await node.start("c2")).here


@in_virtual_time
async def test_a_loop_that_was_interrupted_and_lives_on_counts_when_the_lease_is_lost(cluster: Cluster):
    """Its turn is over, its conversation was let go: its task is still there, and a new incarnation waits for it."""
    release = asyncio.Event()

    async def stubborn(turn: Turn) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    node = await cluster.add(agent=Agent(on_turn=stubborn), idle_s=1)
    await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    await cluster.command("stop", via=node)
    await until(lambda: cluster.status() is Status.STOPPED and cluster.owner() is None)
    node.beats.down = True
    await until(node.node.stuck.is_set)
    node.beats.down = False
    release.set()
    await until(lambda: node.node.readiness() == [])


@in_virtual_time
async def test_a_registration_that_fails_is_tried_with_a_new_incarnation_until_it_works(cluster: Cluster):
    node = await cluster.add()
    node.beats.always("register", lose_the_reply)
    node.beats.always("renew", lose_the_request)
    await until(lambda: node.beats.count("register") >= 3, 60)
    ids = [args[0] for name, args in node.beats.calls if name == "register"]
    assert len(set(ids)) == len(ids)
    node.beats.heal()
    await until(lambda: node.node.readiness() == [])
    assert (await node.start()).here
    await until(lambda: sum(not n.dead for n in cluster.disk.nodes.values()) == 1)


@in_virtual_time
async def test_a_node_whose_store_is_away_when_it_opens_says_so(cluster: Cluster):
    rig = Rig(down=True)
    node = Node(
        RiggedStore(cluster.disk, cluster.clock, rig, rig), {"echo": Agent()}, provider=Provider(), threaded=False
    )
    with pytest.raises(StoreUnavailableError):
        await node.__aenter__()


# --- places ---------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_full_node_says_where_else_and_its_places_come_back(cluster: Cluster):
    node = await cluster.add(capacity=1, idle_s=5)
    await cluster.add(capacity=0)
    other = await cluster.add()
    await node.start("c1")
    assert (await node.start("c1")).here  # what it holds it may be asked for
    with pytest.raises(NodeUnavailableError, match="full") as caught:
        await node.start("c2")
    assert caught.value.elsewhere == ("test://n3",)
    assert cluster.disk.conversations.get("c2") is None
    await until(lambda: cluster.owner("c1") is None and node.node.owned == 0)
    assert (await node.start("c2")).here
    other.kill()
    await asyncio.sleep(1.5)
    with pytest.raises(NodeUnavailableError) as caught:
        await node.start("c3")
    assert caught.value.elsewhere == ()


@in_virtual_time
async def test_a_burst_of_starts_does_not_go_beyond_the_capacity(cluster: Cluster):
    node = await cluster.add(capacity=3)
    answers = await asyncio.gather(*(node.start(f"c{n}") for n in range(10)), return_exceptions=True)
    assert sum(not isinstance(a, BaseException) for a in answers) == 3
    assert all(isinstance(a, NodeUnavailableError) for a in answers if isinstance(a, BaseException))
    assert node.node.owned == 3


@in_virtual_time
async def test_failed_starts_give_their_places_back(cluster: Cluster):
    node = await cluster.add(capacity=1, provider=Provider(at={"provision": failing(RuntimeFailure("no"))}))
    for n in range(5):
        with pytest.raises(ProvisioningError):
            await node.start(f"c{n}")
    assert node.node.owned == 0


@in_virtual_time
async def test_a_node_that_has_served_much_holds_nothing_afterwards(cluster: Cluster):
    node = await cluster.add(idle_s=0.5, sweep_s=1)
    for n in range(60):
        await cluster.say(conversation=f"c{n}", via=node)
    await until(lambda: len(node.agent.opened) == 60 and node.node.owned == 0, 60)
    incarnation = node.node._incarnation
    assert incarnation is not None
    await asyncio.sleep(1)
    assert (incarnation.table, incarnation.works, incarnation.starting, incarnation.claiming) == ({}, {}, {}, {})
    assert len(node.node.tasks._running) < 10
    assert node.provider.standing == {}


# --- what anybody may ask -------------------------------------------------------------------------------------------


def asked(text: str, key: str) -> Command:
    return Command("message", {"text": text}, key, Delivery.TURN)


@in_virtual_time
async def test_a_command_through_any_node_is_accepted_once(cluster: Cluster):
    a, b = await cluster.add(), await cluster.add()
    request = Submit(C, asked("hi", "k"), Creation(default_agent="echo"))
    a.rig.once("submit_all", lose_the_reply)
    first = await a.ask(a.node.submit(request))
    assert isinstance(first, Duplicate)  # its own first try had arrived
    assert isinstance(await b.ask(b.node.submit(request)), Duplicate)
    assert isinstance(await b.ask(b.node.submit(Submit(C, asked("other", "k")))), KeyReused)
    assert isinstance(await b.ask(b.node.submit(Submit("nobody", asked("hi", "k")))), Unknown)
    assert isinstance(await b.ask(b.node.submit(Submit(C, asked("hi", "k2")))), Accepted)
    assert cluster.kinds().count("message") == 2


@in_virtual_time
async def test_a_command_that_the_store_does_not_answer_is_an_error_after_a_few_tries(cluster: Cluster):
    node = await cluster.add()
    node.rig.down = True
    with pytest.raises(StoreUnavailableError):
        await node.ask(node.node.submit(Submit(C, asked("hi", "k"), Creation(default_agent="echo"))))
    assert node.rig.count("submit_all") == 4


@in_virtual_time
async def test_after_an_outage_a_node_serves_again_at_once_however_long_it_was(cluster: Cluster):
    """What backs off while a store is away may not sleep long when it is there again."""
    a = await cluster.add(ttl_s=15)
    await a.start()
    a.rig.down = a.beats.down = True
    await asyncio.sleep(300)
    a.rig.heal()
    a.beats.heal()
    back = asyncio.get_running_loop().time()
    await until(lambda: a.node.readiness() == [])
    said = await cluster.say()
    await until(lambda: cluster.settled(said))
    assert asyncio.get_running_loop().time() - back < 3.0


@in_virtual_time
async def test_every_node_tells_the_same_status(cluster: Cluster):
    async def seen() -> set[object]:
        infos = [await n.ask(n.node.info(C)) for n in (a, b)]
        assert infos[0].owner is None or infos[0].here is True
        assert infos[1].here is False
        return {(i.status, i.epoch, i.owner.node if i.owner else None) for i in infos}

    a, b = await cluster.add(agent=Agent(on_turn=for_ever)), await cluster.add(capacity=0)
    await a.start()
    assert await seen() == {(Status.IDLE, 1, "n1")}
    await cluster.say(via=a)
    await until(lambda: a.agent.turns)
    assert await seen() == {(Status.RUNNING, 1, "n1")}
    a.kill()
    await asyncio.sleep(1.5)
    info = await b.ask(b.node.info(C))
    assert (info.status, info.owner) == (Status.QUEUED, None)  # never running without a living owner
    with pytest.raises(UnknownConversationError):
        await b.ask(b.node.info("nobody"))


@in_virtual_time
async def test_an_owner_that_registered_a_moment_ago_is_seen_as_alive(cluster: Cluster):
    a = await cluster.add()
    await a.ask(a.node.living())  # a's directory is read now
    b = await cluster.add()
    await b.start()
    info = await a.ask(a.node.info(C))
    assert info.owner is not None
    assert info.owner.node == "n2"
    with pytest.raises(ConversationOwnedElsewhereError):
        await a.start()


@in_virtual_time
async def test_a_conversation_that_provisions_is_starting(cluster: Cluster):
    node = await cluster.add(provider=Provider(at={"provision": for_ever}))
    node.starting()
    await until(lambda: node.provider.did("provision"))
    assert (await node.ask(node.node.info(C))).status is Status.STARTING


@in_virtual_time
async def test_an_agent_that_cannot_be_loaded_is_named_with_its_reason(cluster: Cluster):
    class Broken(Agent):
        async def ready(self) -> None:
            raise ImportError("no module named oops")

    node = await cluster.add(agents={"bad": Broken(), "echo": Agent()})
    await until(lambda: len(node.node.readiness()) == 1)
    assert "bad cannot be loaded: ImportError: no module named oops" in node.node.readiness()[0]
    said = await cluster.say()
    await until(lambda: cluster.settled(said))


class Outspoken(Provider):
    """It has something to say of itself, once it has looked."""

    looked = False

    async def open(self) -> None:
        self.looked = True

    @property
    def detail(self):
        return {"isolation": "none"} if self.looked else None

    @property
    def caution(self):
        return "no walls here; build some"


class Unfit(Provider):
    async def open(self) -> None:
        raise InvalidInputError("runtime", "isolate=require, but it is impossible", "build walls")


@in_virtual_time
async def test_what_a_provider_says_of_itself_is_told_and_journaled(cluster: Cluster, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    node = await cluster.add(provider=Outspoken(standing=cluster.standing))
    await node.start()
    assert [e.body["detail"] for e in cluster.events("runtime_ready")] == [{"isolation": "none"}]
    told = [record.getMessage() for record in caplog.records]
    assert "runtimes come from fake: {'isolation': 'none'}" in told
    assert told.count("runtimes of fake: no walls here; build some") == 1, "once, not with each conversation"


@in_virtual_time
async def test_a_node_whose_provider_is_unfit_does_not_start(cluster: Cluster):
    with pytest.raises(InvalidInputError, match="impossible; build walls"):
        await cluster.add(provider=Unfit())
    cluster.members.clear()
    assert await cluster.store.nodes() == [], "it never registered"


def test_a_node_needs_an_agent():
    with pytest.raises(ValueError, match="at least one agent"):
        Node(MemoryStore(), {}, provider=Provider())


# --- the end --------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_an_error_of_its_user_closes_the_node_and_its_store(cluster: Cluster):
    closed: list[str] = []

    class Closing(RiggedStore):
        async def __aexit__(self, *exc: object) -> None:
            closed.append("store")

    store = Closing(cluster.disk, cluster.clock, Rig(), Rig())
    config = Config(node="n", ttl_s=1.0, drain_s=1)
    with pytest.raises(ZeroDivisionError):
        async with Node(
            store, {"echo": Agent()}, provider=Provider(), config=config, clock=cluster.clock, threaded=False
        ) as node:
            await node.maybe_start_agent_loop(C)
            raise ZeroDivisionError
    assert closed == ["store"]
    assert cluster.owner() is None
    assert node.drained.is_set()


@in_virtual_time
async def test_callers_of_a_node_that_ends_are_told_so(cluster: Cluster):
    """What they waited for was cancelled, not they."""
    node = await cluster.add(drain_s=0)
    stuck = asyncio.Event()
    node.rig.always("claim_all", held_until(stuck))
    start = node.starting()
    await until(lambda: node.rig.count("claim_all"))
    node.stop.set()
    await asyncio.wait([node.life])
    with pytest.raises(NodeUnavailableError):
        await start


@in_virtual_time
async def test_an_agent_that_ignores_cancellation_does_not_keep_the_node_from_closing(cluster: Cluster):
    async def stubborn(turn: Turn) -> None:
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                continue

    free = asyncio.Event()
    node = await cluster.add(agent=Agent(on_turn=stubborn), drain_s=0)
    await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    before = asyncio.get_running_loop().time()
    node.stop.set()
    await asyncio.wait([node.life])
    assert asyncio.get_running_loop().time() - before < 45
    node.life.result()
    free.set()


@in_virtual_time
async def test_a_lively_day_logs_no_traceback(cluster: Cluster):
    """Starts, messages, a kill, a takeover by force, an outage, a drain: all of it is expected."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    keep = Keep()
    logging.getLogger("tenure").addHandler(keep)
    try:
        nodes = [await cluster.add() for _ in range(3)]
        said = [await cluster.say(conversation=f"c{n}", via=nodes[n % 3]) for n in range(9)]
        nodes[0].kill()
        await asyncio.sleep(2)
        record = cluster.record("c1")
        with pytest.raises(ConversationOwnedElsewhereError):
            await nodes[2].start("c1") if cluster.owner("c1") == "n2" else await nodes[1].start("c1")
        await nodes[1].ask(nodes[1].node.take_over("c1", record.epoch))
        nodes[2].rig.down = nodes[2].beats.down = True
        await asyncio.sleep(2)
        nodes[2].rig.heal()
        nodes[2].beats.heal()
        said += [await cluster.say(conversation=f"c{n}", via=nodes[1]) for n in range(9)]
        await until(lambda: all(cluster.settled(s, f"c{n % 9}") for n, s in enumerate(said)))
        await nodes[1].leave()
    finally:
        logging.getLogger("tenure").removeHandler(keep)
    assert [r.getMessage() for r in records if r.exc_info] == []
