"""The three phases of a start: claimed once, joined by whoever asks meanwhile, released at once when it fails."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from node_support import (
    Agent,
    C,
    Cluster,
    Provider,
    answered_after,
    failing,
    held_until,
    in_virtual_time,
    lose_the_reply,
    lose_the_request,
    until,
)

from tenure.abc import Claim, Held, Place, RuntimeFailure
from tenure.conversation import Status
from tenure.errors import (
    CommandRefusedError,
    ConversationDeletedError,
    ConversationExistsError,
    ConversationOwnedElsewhereError,
    InvalidInputError,
    NodeUnavailableError,
    ProvisioningError,
    UnknownConversationError,
)
from tenure.lease import Epoch
from tenure.node.initiation import adopt
from tenure.node.release import SPARED

# --- 1 claim, 2 provision, 3 start ----------------------------------------------------------------------------------


@in_virtual_time
async def test_a_start_claims_then_provisions_then_starts(cluster: Cluster):
    node = await cluster.add()
    info = await node.start()
    assert cluster.kinds() == ["created", "claimed", "runtime_requested", "runtime_ready", "loop_started"]
    assert [step for step, _ in node.provider.log] == ["provision", "configure"]
    assert (info.status, info.epoch, info.here) == (Status.IDLE, 1, True)
    assert info.owner is not None
    assert info.owner.node == "n1"
    assert info.as_json()["owner"]["address"] == "test://n1"


@in_virtual_time
async def test_the_runtimes_name_is_journaled_before_the_provider_hears_it(cluster: Cluster):
    seen: list[str] = []

    async def look(name: str) -> None:
        seen.extend(str(e.body["name"]) for e in cluster.events("runtime_requested"))
        assert name in seen

    node = await cluster.add(provider=Provider(at={"provision": look}))
    await node.start()
    assert len(seen) == 1


@in_virtual_time
async def test_a_start_of_what_runs_here_joins_it(cluster: Cluster):
    node = await cluster.add()
    first = await node.start()
    before = cluster.journal()
    again = await node.start()
    assert (again.epoch, again.here) == (first.epoch, True)
    assert cluster.journal() == before
    assert node.agent.opened == [(C, 1)]


@in_virtual_time
async def test_callers_of_one_start_get_the_one_start(cluster: Cluster):
    boot = asyncio.Event()

    async def wait(name: str) -> None:
        await boot.wait()

    node = await cluster.add(provider=Provider(at={"provision": wait}))
    callers = [node.starting() for _ in range(5)]
    await until(lambda: node.provider.did("provision"))
    callers.append(node.starting())
    await asyncio.sleep(0.1)
    assert not any(c.done() for c in callers)
    boot.set()
    assert {(await c).epoch for c in callers} == {1}
    assert node.agent.opened == [(C, 1)]


@in_virtual_time
async def test_a_caller_that_goes_away_does_not_cancel_the_start_of_another(cluster: Cluster):
    boot = asyncio.Event()

    async def wait(name: str) -> None:
        await boot.wait()

    node = await cluster.add(provider=Provider(at={"provision": wait}))
    at_the_store = asyncio.Event()
    node.rig.once("claim_all", held_until(at_the_store))
    process = node.process
    assert process is not None
    first = process.spawn(node.node.maybe_start_agent_loop(C))
    second = process.spawn(node.node.maybe_start_agent_loop(C))
    await until(lambda: node.rig.count("claim_all"))
    first.cancel()
    at_the_store.set()
    await until(lambda: node.provider.did("provision"))
    third = process.spawn(node.node.maybe_start_agent_loop(C))
    await asyncio.sleep(0.05)
    third.cancel()
    boot.set()
    assert (await second).epoch == 1
    assert first.cancelled()
    assert cluster.kinds().count("claimed") == 1
    assert node.live == [C]


@in_virtual_time
async def test_a_start_goes_on_when_its_only_caller_goes_away(cluster: Cluster):
    node = await cluster.add()
    caller = node.process.spawn(node.node.maybe_start_agent_loop(C))
    await until(lambda: node.rig.count("claim_all"))
    caller.cancel()
    await until(lambda: node.live == [C])


@in_virtual_time
async def test_an_error_of_one_caller_is_not_the_answer_to_another(cluster: Cluster):
    await cluster.create(settings={"a": 1}, user_id="ann")
    node = await cluster.add()
    wrong, other, right = (
        node.starting(settings={"a": 2}, user_id="ann"),
        node.starting(user_id="bob"),
        node.starting(user_id="ann"),
    )
    assert (await right).here
    with pytest.raises(ConversationExistsError):
        await wrong
    with pytest.raises(UnknownConversationError):
        await other


@in_virtual_time
async def test_joining_asks_for_the_same_settings_and_the_same_user(cluster: Cluster):
    node = await cluster.add()
    await node.start(settings={"a": 1}, user_id="ann")
    assert (await node.start(settings={"a": 1}, user_id="ann")).here
    assert (await node.start()).here
    with pytest.raises(ConversationExistsError):
        await node.start(settings={"a": 2}, user_id="ann")
    with pytest.raises(UnknownConversationError):
        await node.start(user_id="bob")
    with pytest.raises(ConversationExistsError):
        await node.start(settings={"a": 1}, user_id="bob")
    assert node.agent.opened == [(C, 1)]


@in_virtual_time
async def test_the_operator_may_start_anybodys_conversation(cluster: Cluster):
    await cluster.create(settings={"a": 1}, user_id="ann")
    node = await cluster.add()
    assert (await node.start(settings={"a": 1})).here


@in_virtual_time
async def test_a_deleted_conversation_cannot_be_started(cluster: Cluster):
    await cluster.create()
    await cluster.store.delete(C, Epoch(0), "test")
    node = await cluster.add()
    with pytest.raises(ConversationDeletedError):
        await node.start()
    with pytest.raises(ConversationDeletedError):
        await node.ask(node.node.info(C))


@in_virtual_time
async def test_settings_that_are_too_large_are_refused_by_name(cluster: Cluster):
    node = await cluster.add()
    with pytest.raises(InvalidInputError, match="settings"):
        await node.start(settings={"a": "x" * (2 << 20)})
    assert cluster.journal() == []


# --- owned elsewhere ------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_owned_elsewhere_carries_the_owner_and_changes_nothing(cluster: Cluster):
    a, b = await cluster.add(), await cluster.add()
    await a.start()
    before, record = cluster.journal(), cluster.record()
    with pytest.raises(ConversationOwnedElsewhereError) as caught:
        await b.start()
    owner = caught.value.owner
    assert (owner.node, owner.address, owner.epoch) == ("n1", "test://n1", 1)
    assert owner.expires_in_s is not None
    assert 0 < owner.expires_in_s <= 1.0
    assert (cluster.journal(), cluster.record()) == (before, record)
    assert b.agent.opened == []


@in_virtual_time
async def test_of_nodes_that_start_at_once_exactly_one_owns(cluster: Cluster):
    nodes = [await cluster.add() for _ in range(4)]
    answers = await asyncio.gather(*(n.start() for n in nodes for _ in range(3)), return_exceptions=True)
    won = [a for a in answers if not isinstance(a, BaseException)]
    assert len(won) == 3
    assert all(isinstance(a, ConversationOwnedElsewhereError) for a in answers if isinstance(a, BaseException))
    assert cluster.kinds().count("claimed") == 1
    assert sum(len(n.agent.opened) for n in nodes) == 1


@in_virtual_time
async def test_an_expired_owner_is_buried_by_whoever_starts(cluster: Cluster):
    a = await cluster.add()
    b = await cluster.add(sweep_s=10)
    await a.start()
    a.kill()
    b.rig.always("bury", lose_the_request)  # b's own sweep comes to nothing
    await asyncio.sleep(1.2)
    b.rig.heal()
    info = await b.start()
    assert (info.epoch, info.here) == (2, True)


# --- C2, C3: claims whose answer is unknown, late, or twice ---------------------------------------------------------


@in_virtual_time
async def test_c2_a_claim_whose_reply_is_lost_is_repeated_with_the_same_token(cluster: Cluster):
    node = await cluster.add()
    node.rig.once("claim_all", lose_the_reply)
    node.rig.once("claim_all", lose_the_request)
    info = await node.start()
    assert (info.epoch, info.here) == (1, True)
    sent = [args[0][0].token for name, args in node.rig.calls if name == "claim_all"]
    assert len(sent) == 3
    assert len(set(sent)) == 1
    assert cluster.kinds().count("claimed") == 1


@in_virtual_time
async def test_c2_already_mine_but_no_loop_runs(cluster: Cluster):
    """The store calls it this incarnation's, whose table knows nothing: a new claim, never the old epoch again."""
    node = await cluster.add(sweep_s=10)
    await cluster.create()
    ghost = await cluster.claim_as(node.incarnation)
    assert isinstance(ghost, Held)
    info = await node.start()
    assert (info.epoch, info.here) == (2, True)
    assert node.agent.opened == [(C, 2)]


@in_virtual_time
async def test_c2_already_mine_but_no_loop_runs_is_found_by_the_sweep(cluster: Cluster):
    node = await cluster.add()
    node.rig.deaf = True
    await cluster.create()
    await cluster.claim_as(node.incarnation)
    said = await cluster.say()
    await until(lambda: cluster.settled(said))
    assert cluster.record().epoch == 2


@in_virtual_time
async def test_c3_a_late_copy_of_a_claim_deposes_nobody(cluster: Cluster):
    node = await cluster.add(idle_s=0.5)
    late = asyncio.Event()
    copies = []

    async def twice(proceed):
        copies.append(asyncio.ensure_future(copy(proceed)))
        return await proceed()

    async def copy(proceed):
        await late.wait()
        return await proceed()

    node.rig.once("claim_all", twice)
    await node.start()
    await until(lambda: cluster.owner() is None)  # passivated
    await node.start()
    late.set()
    await asyncio.wait(copies)
    assert cluster.record().epoch == 2
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    assert node.agent.opened == [(C, 1), (C, 2)]


@in_virtual_time
async def test_a_start_waits_for_the_sweeps_claim_of_the_same_conversation(cluster: Cluster):
    """Two claims of one node that cross would depose each other, and count as a lost owner."""
    node = await cluster.add()
    late = asyncio.Event()
    node.rig.once("claim_all", answered_after(late))
    said = await cluster.say()  # the sweep claims, its answer stays under way
    await until(lambda: cluster.owner() == "n1")
    start = node.starting()
    await asyncio.sleep(0.5)
    late.set()
    info = await start
    assert info.here
    await until(lambda: cluster.settled(said))
    assert node.agent.opened == [(C, 1)]  # the start has waited for the sweep's claim, and joined it


@in_virtual_time
async def test_an_answer_that_comes_after_that_of_a_later_claim_begins_nothing(cluster: Cluster):
    node = await cluster.add()
    await node.start()
    early = Held(node.tenure().lease, cluster.record())
    await node.ask(node.node.take_over(C, Epoch(1)))
    incarnation = node.node._incarnation
    assert incarnation is not None
    asked = Claim(C, incarnation.id, early.lease.token, Epoch(0), "n1", "test://n1", "start")
    assert adopt(incarnation, early, asked, cluster.clock.boottime()) is node.tenure()
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    assert node.agent.alive == [(C, 2)]


@in_virtual_time
async def test_a_claim_answered_after_the_node_gave_up_is_left_to_others(cluster: Cluster):
    a = await cluster.add()
    late = asyncio.Event()
    a.rig.once("claim_all", answered_after(late))
    old = a.incarnation
    start = a.starting()
    await until(lambda: cluster.owner() == "n1")
    a.beats.down = True
    await until(lambda: a.node._incarnation.given_up)
    late.set()
    with pytest.raises(NodeUnavailableError):
        await start
    a.beats.heal()
    await until(lambda: cluster.dead(old))
    b = await cluster.add()
    await b.start()
    assert cluster.record().epoch == 2
    assert a.agent.opened == []


# --- C21 ------------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_c21_local_answer_is_not_stale(cluster: Cluster):
    """After a forced takeover the idle loser never appends; asked to start, it asks the store."""
    a, b = await cluster.add(), await cluster.add()
    await a.start()
    info = await b.ask(b.node.take_over(C, Epoch(1)))
    assert (info.epoch, info.here) == (2, True)
    with pytest.raises(ConversationOwnedElsewhereError) as caught:
        await a.start()
    assert caught.value.owner.node == "n2"
    await until(lambda: a.live == [])
    assert (await a.ask(a.node.info(C))).here is False


@in_virtual_time
async def test_a_start_while_the_release_is_under_way_waits_for_it(cluster: Cluster):
    node = await cluster.add(idle_s=0.5)
    await node.start()
    answered = asyncio.Event()
    node.rig.once("release_all", answered_after(answered))
    await until(lambda: cluster.owner() is None)
    first = node.tenure()
    start = node.starting()
    await asyncio.sleep(0.1)
    answered.set()
    assert (await start).epoch == 2
    assert cluster.kinds().count("released") == 1
    assert first._loss is None
    assert len(node.provider.did("discard")) == 1  # of the first tenure, by itself
    assert await cluster.store.refusals(C) == []


# --- fail-safe ------------------------------------------------------------------------------------------------------


def broken(step: str, error: BaseException) -> tuple[Agent, Provider]:
    """An agent and a provider that fail at one step."""

    async def fail(place: Place) -> None:
        raise error

    if step == "loop":
        return Agent(on_open=fail), Provider()
    return Agent(), Provider(at={step: failing(error)})


@pytest.mark.parametrize("step", ["provision", "configure", "loop"])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeFailure("the disk is full", step="mount"),
        ValueError("a bug"),
        TimeoutError("its own"),
        OSError(28, "no space"),
        asyncio.CancelledError("by itself"),
    ],
    ids=lambda error: type(error).__name__,
)
@in_virtual_time
async def test_a_failed_start_releases_at_once(cluster: Cluster, step: str, error: BaseException):
    agent, provider = broken(step, error)
    node = await cluster.add(agent=agent, provider=provider)
    with pytest.raises(ProvisioningError):
        await node.start()
    assert cluster.owner() is None
    kinds = cluster.kinds()
    assert kinds[-3:] == ["runtime_discarded", "start_failed", "released"]
    discarded = cluster.events("runtime_discarded")[0].body["name"]
    assert node.provider.did("discard") == [discarded]
    assert node.provider.standing == {}
    assert cluster.record().failures == 1
    assert cluster.status() is Status.IDLE
    assert node.tenure() is None
    assert node.agent.alive == []


@in_virtual_time
async def test_a_failed_start_says_the_providers_own_reason(cluster: Cluster):
    node = await cluster.add(provider=Provider(at={"provision": failing(RuntimeFailure("no image", step="pull"))}))
    with pytest.raises(ProvisioningError, match="pull: no image") as caught:
        await node.start()
    assert (caught.value.step, caught.value.reason, caught.value.permanent) == ("pull", "no image", False)
    assert cluster.events("start_failed")[0].body == {
        "step": "pull",
        "reason": "no image",
        "permanent": False,
        "credential": None,
    }


@in_virtual_time
async def test_a_start_that_hangs_is_ended_in_time_and_names_the_step(cluster: Cluster):
    async def hang(_: object) -> None:
        await asyncio.Event().wait()

    node = await cluster.add(provider=Provider(at={"configure": hang}), start_timeout_s=5)
    with pytest.raises(ProvisioningError, match="configure: no answer within 5 s"):
        await node.start()
    other = await cluster.add(agent=Agent(on_open=hang), start_timeout_s=5)
    with pytest.raises(ProvisioningError, match="loop: no answer within 5 s"):
        await other.start("c2")
    assert (cluster.owner(), cluster.owner("c2")) == (None, None)


@in_virtual_time
async def test_another_node_may_try_what_failed_here(cluster: Cluster):
    a = await cluster.add(provider=Provider(at={"provision": failing(RuntimeFailure("no room"))}))
    with pytest.raises(ProvisioningError):
        await a.start()
    b = await cluster.add()
    assert (await b.start()).epoch == 2


@in_virtual_time
async def test_c19_backoff_and_poison(cluster: Cluster):
    """A start that always fails is tried ever more rarely, by the whole cluster; a start by hand begins anew."""
    nodes = [
        await cluster.add(provider=Provider(at={"provision": failing(RuntimeFailure("down"))}), backoff_s=1)
        for _ in range(3)
    ]
    said = await cluster.say()
    await asyncio.sleep(60)
    at = [e.at.unix_s for e in cluster.events("claimed")]
    assert 4 <= len(at) <= 8  # after about 1, 2, 4, 8, 16 … seconds
    gaps = [b - a for a, b in pairwise(at)]
    assert all(b > 1.1 * a for a, b in pairwise(gaps))
    assert cluster.record().lost == 0
    assert not cluster.settled(said)
    for node in nodes:
        node.provider.at.clear()
    await cluster.command("start")
    await until(lambda: cluster.settled(said), 2)
    assert cluster.record().failures == 0


@in_virtual_time
async def test_c19_a_conversation_that_kills_its_owner_while_it_starts_does_not_kill_the_cluster(cluster: Cluster):
    async def hang(_: object) -> None:
        await asyncio.Event().wait()

    said = await cluster.say()
    for _ in range(4):
        node = await cluster.add(provider=Provider(at={"provision": hang}))
        await until(lambda node=node: node.provider.did("provision"))
        node.kill()
    node = await cluster.add()
    await until(lambda: cluster.status() is Status.FAILED)
    assert node.provider.did("provision") == []
    assert cluster.events("start_failed")[0].body["permanent"] is True
    again = await cluster.say("try again")
    await until(lambda: cluster.settled(again) and cluster.settled(said))


@in_virtual_time
async def test_a_permanent_failure_fails_the_conversation_until_the_next_command(cluster: Cluster):
    node = await cluster.add(
        provider=Provider(at={"provision": failing(RuntimeFailure("no such image", permanent=True))}), backoff_s=3600
    )
    first = await cluster.say()
    await until(lambda: cluster.status() is Status.FAILED)
    claims = cluster.kinds().count("claimed")
    await asyncio.sleep(30)
    assert cluster.kinds().count("claimed") == claims == 1
    node.provider.at.clear()
    second = await cluster.say()
    assert cluster.status() is Status.QUEUED
    await until(lambda: cluster.settled(second))
    assert cluster.settled(first)


@in_virtual_time
async def test_a_start_by_hand_takes_a_failed_conversation_back_for_good(cluster: Cluster):
    """It is claimed without a command: one is journaled, or the record would call it failed for ever."""
    node = await cluster.add(provider=Provider(at={"provision": failing(RuntimeFailure("gone", permanent=True))}))
    said = await cluster.say()
    await until(lambda: cluster.status() is Status.FAILED)
    node.provider.at.clear()
    await node.start()
    await until(lambda: cluster.settled(said))
    assert cluster.record().failed is False
    assert cluster.kinds().count("start") == 1


@in_virtual_time
async def test_a_reason_that_no_journal_takes_is_cut_to_one_that_it_does(cluster: Cluster):
    """A reason may be huge, or no Unicode, or fail to be told at all: the claim is released all the same."""

    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    for number, error in enumerate([RuntimeFailure("x" * (3 << 20)), RuntimeFailure("\udcff"), Unspeakable()]):
        name = f"c{number}"
        node = await cluster.add(provider=Provider(at={"provision": failing(error)}))
        with pytest.raises(ProvisioningError):
            await node.start(name)
        assert cluster.owner(name) is None
        assert len(str(cluster.events("start_failed", name)[0].body["reason"])) <= 2000


@in_virtual_time
async def test_a_failed_start_is_released_also_when_the_store_takes_its_time(cluster: Cluster):
    node = await cluster.add(provider=Provider(at={"provision": failing(RuntimeFailure("no"))}))
    node.rig.once("release_all", lose_the_reply)
    node.rig.once("release_all", lose_the_request)
    with pytest.raises(ProvisioningError):
        await node.start()
    assert cluster.owner() is None
    assert cluster.kinds().count("start_failed") == 1
    assert cluster.record().failures == 1


@in_virtual_time
async def test_a_lost_start_is_no_failed_one(cluster: Cluster):
    """Forced away while it provisions: nothing more of it is written, and its caller hears of the loss."""
    boot = asyncio.Event()

    async def wait(name: str) -> None:
        await boot.wait()

    a = await cluster.add(provider=Provider(at={"provision": wait}, standing=cluster.standing))
    b = await cluster.add()
    start = a.starting()
    await until(lambda: a.provider.did("provision"))
    await b.ask(b.node.take_over(C, Epoch(1)))
    with pytest.raises(ConversationOwnedElsewhereError):
        await start
    boot.set()
    assert a.agent.opened == []
    assert [e.epoch for e in cluster.events("loop_started")] == [2]
    assert cluster.events("start_failed") == []
    await until(lambda: a.tenure() is None)


# --- the runtime ----------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_living_runtime_is_attached_and_a_dead_one_is_lost(cluster: Cluster):
    keeps = Provider(standing=cluster.standing, outlives_node=True)
    a = await cluster.add(provider=keeps)
    await a.start()
    a.kill()
    b = await cluster.add(provider=Provider(standing=cluster.standing, outlives_node=True))
    await asyncio.sleep(1.1)
    await b.start()
    assert cluster.kinds()[-3:] == ["claimed", "runtime_attached", "loop_started"]
    assert b.provider.did("configure") == [str(cluster.events("runtime_requested")[0].body["name"])]
    b.kill()
    cluster.standing.clear()
    c = await cluster.add()
    await asyncio.sleep(1.1)
    await c.start()
    assert cluster.kinds()[-5:] == ["claimed", "runtime_lost", "runtime_requested", "runtime_ready", "loop_started"]
    names = [e.body["name"] for e in cluster.events("runtime_requested")]
    assert len(set(names)) == 2


@in_virtual_time
async def test_c17_a_runtime_that_was_requested_but_never_ready_is_superseded_not_attached(cluster: Cluster):
    async def hang(_: object) -> None:
        await asyncio.Event().wait()

    a = await cluster.add(provider=Provider(at={"configure": hang}, standing=cluster.standing))
    a.starting()
    await until(lambda: a.provider.did("configure"))
    a.kill()
    b = await cluster.add()
    await asyncio.sleep(1.1)
    await b.start()
    assert b.provider.did("attach") == []
    first, second = (str(e.body["name"]) for e in cluster.events("runtime_requested"))
    assert b.provider.did("discard") == [first]
    assert list(cluster.standing) == [second]


@in_virtual_time
async def test_c17_destroyed_only_after_the_journal_says_so(cluster: Cluster):
    heard: list[bool] = []

    async def look(name: str) -> None:
        retired = cluster.fold().retired
        heard.append(name in retired)

    failing_at = {"configure": failing(RuntimeFailure("no")), "discard": look}
    node = await cluster.add(provider=Provider(at=failing_at), idle_s=0.5)
    with pytest.raises(ProvisioningError):
        await node.start()
    node.provider.at.pop("configure")
    await node.start()
    await until(lambda: cluster.owner() is None)
    await until(lambda: len(heard) == 2)
    assert heard == [True, True]


async def left_alive(cluster: Cluster, **settings: Any) -> str:
    """The runtime that a dead owner leaves, alive."""
    a = await cluster.add(provider=Provider(standing=cluster.standing, outlives_node=True), allow_env="TOKEN_OF_A_TEST")
    await a.start(settings=settings or None)
    a.kill()
    await asyncio.sleep(1.1)
    return str(cluster.events("runtime_requested")[0].body["name"])


async def for_ever(_: object) -> None:
    await asyncio.Event().wait()


SPARED_AT = {"attach": failing(RuntimeFailure("away")), "configure": failing(RuntimeFailure("busy"))}
SPARED_AT |= {"attach-hangs": for_ever, "configure-bug": failing(ValueError("a bug"))}


@pytest.mark.parametrize("at", SPARED_AT)
@in_virtual_time
async def test_a_living_runtime_outlasts_a_takeover_that_fails_to_get_at_it(cluster: Cluster, at: str):
    """0064: nothing is said against it; the next try attaches it."""
    name = await left_alive(cluster)
    provider = Provider(standing=cluster.standing, outlives_node=True, at={at.partition("-")[0]: SPARED_AT[at]})
    b = await cluster.add(provider=provider, start_timeout_s=5)
    with pytest.raises(ProvisioningError):
        await b.start()
    assert cluster.kinds()[-2:] == ["start_failed", "released"] and cluster.record().failures == 1
    assert list(cluster.standing) == [name] and b.provider.did("discard") == []
    b.provider.at.clear()
    await b.start()
    assert cluster.kinds()[-2:] == ["runtime_attached", "loop_started"]
    assert list(cluster.standing) == [name] and len(cluster.events("runtime_requested")) == 1


@in_virtual_time
async def test_a_living_runtime_that_cannot_be_got_at_is_given_up_at_last(cluster: Cluster):
    name = await left_alive(cluster)
    at = {"configure": failing(RuntimeFailure("sick"))}
    b = await cluster.add(provider=Provider(standing=cluster.standing, outlives_node=True, at=at))
    for failed in range(SPARED):
        assert list(cluster.standing) == [name], failed
        with pytest.raises(ProvisioningError):
            await b.start()
    with pytest.raises(ProvisioningError):
        await b.start()
    assert cluster.standing == {} and cluster.fold().retired == (name,)
    b.provider.at.clear()
    await b.start()
    assert cluster.kinds()[-3:] == ["runtime_requested", "runtime_ready", "loop_started"]


NOT_SPARED = {
    "for good": {"outlives_node": True, "at": {"attach": failing(RuntimeFailure("not yours", permanent=True))}},
    "of a node": {"at": {"attach": failing(RuntimeFailure("away"))}},
    "new": {"outlives_node": True, "at": {"provision": failing(RuntimeFailure("full"))}},
}


@pytest.mark.parametrize("how", NOT_SPARED)
@in_virtual_time
async def test_what_is_made_by_a_start_or_cannot_outlive_it_ends_with_it(cluster: Cluster, how: str):
    name = await left_alive(cluster)
    if how == "new":
        cluster.standing.clear()
    b = await cluster.add(provider=Provider(standing=cluster.standing, **NOT_SPARED[how]))  # type: ignore[arg-type]
    with pytest.raises(ProvisioningError):
        await b.start()
    assert cluster.standing == {} and cluster.fold().runtime is None and name in cluster.fold().retired


@in_virtual_time
async def test_a_missing_credential_says_nothing_against_a_runtime(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tenure.node.release.SPARED", 0)
    monkeypatch.setenv("TOKEN_OF_A_TEST", "there")
    name = await left_alive(cluster, credentials={"TOKEN": "env:TOKEN_OF_A_TEST"})
    monkeypatch.delenv("TOKEN_OF_A_TEST")
    b = await cluster.add(provider=Provider(standing=cluster.standing, outlives_node=True), allow_env="TOKEN_OF_A_TEST")
    with pytest.raises(ProvisioningError) as failed:
        await b.start()
    assert failed.value.credential is not None and list(cluster.standing) == [name]
    monkeypatch.setenv("TOKEN_OF_A_TEST", "there again")
    await b.start()
    assert cluster.kinds()[-2:] == ["runtime_attached", "loop_started"]


@in_virtual_time
async def test_c17_a_zombie_destroys_nothing_of_its_successor(cluster: Cluster):
    """It decides to discard, freezes, is succeeded by one that attaches the same runtime, and thaws."""
    shared = {"standing": cluster.standing, "outlives_node": True}
    a = await cluster.add(provider=Provider(**shared))
    await a.start()
    name = str(cluster.events("runtime_requested")[0].body["name"])
    assert a.process is not None
    a.process.pause()
    b = await cluster.add(provider=Provider(**shared))
    await asyncio.sleep(1.1)
    await b.start()
    a.process.resume()
    await until(lambda: a.live == [])
    await asyncio.sleep(120)  # both reapers have looked
    assert list(cluster.standing) == [name]
    assert a.provider.did("discard") == []


# --- C12, C18, C20 --------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_c12_nothing_is_folded_before_the_claim(cluster: Cluster):
    """The old owner's last append lands just before the claim: the new owner has read it."""
    a = await cluster.add()
    said = await cluster.say(via=a)
    await until(lambda: cluster.settled(said) and cluster.answered(a))
    a.kill()
    b = await cluster.add()
    await asyncio.sleep(1.1)
    old = a.tenure()

    async def land_first(proceed):
        from tenure.abc import Append
        from tenure.conversation import Settle
        from tenure.journal import Draft

        batch = Append(
            old.lease, old._number + 1, old.fold.seq, (Draft("late", {}),), Settle(runnable=False, started=True)
        )
        await cluster.store.append(batch)
        return await proceed()

    b.rig.once("claim_all", land_first)
    assert (await b.start()).epoch == 2
    kinds = cluster.kinds()
    assert kinds.index("late") < len(kinds) - 1 - kinds[::-1].index("claimed")
    reads = [i for i, (name, _) in enumerate(b.rig.calls) if name == "read"]
    claims = [i for i, (name, _) in enumerate(b.rig.calls) if name == "claim_all"]
    assert min(reads) > max(claims)
    cluster.fold()


@in_virtual_time
async def test_c18_stop_is_settled_while_the_provider_is_down(cluster: Cluster):
    async def hang(_: object) -> None:
        await asyncio.Event().wait()

    a = await cluster.add(agent=Agent(on_turn=hang))
    said = await cluster.say(via=a)
    await until(lambda: a.agent.turns)
    a.kill()
    b = await cluster.add(provider=Provider(at=dict.fromkeys(["provision", "attach"], failing(RuntimeFailure("no")))))
    stop = await cluster.command("stop")
    await until(lambda: cluster.settled(stop) and cluster.owner() is None)
    assert cluster.settled(said)
    assert cluster.kinds()[-5:-2] == ["turn_interrupted", "stopped", "command_settled"]
    assert cluster.status() is Status.STOPPED
    assert b.provider.did("provision") == []


@in_virtual_time
async def test_c20_settings_are_durable_before_the_first_claim_counts(cluster: Cluster):
    seen: list[object] = []

    async def look(place: Place) -> None:
        seen.append((place.settings, place.conversation_id))

    a = await cluster.add(provider=Provider(at={"provision": failing(RuntimeFailure("no"))}))
    with pytest.raises(ProvisioningError):
        await a.start(settings={"model": "m"}, user_id="ann")
    a.kill()
    b = await cluster.add(agent=Agent(on_open=look))
    assert (await b.start(user_id="ann")).here
    assert seen == [({"model": "m"}, C)]


# --- stopped --------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_starting_a_stopped_conversation_starts_it_by_a_durable_command(cluster: Cluster):
    node = await cluster.add()
    await node.start()
    stop = await cluster.command("stop", via=node)
    await until(lambda: cluster.settled(stop) and cluster.owner() is None)
    info = await node.start()
    assert info.here
    assert not cluster.record().stopped
    assert cluster.kinds().count("start") == 1
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))


@in_virtual_time
async def test_a_stopped_conversation_is_started_also_when_the_store_fails_in_between(cluster: Cluster):
    node = await cluster.add()
    await node.start()
    stop = await cluster.command("stop", via=node)
    await until(lambda: cluster.settled(stop) and cluster.owner() is None)
    node.rig.once("submit_all", lose_the_request)
    node.rig.once("submit_all", lose_the_reply)
    assert (await node.start()).here
    assert cluster.kinds().count("start") == 1
    assert node.live == [C]


@in_virtual_time
async def test_a_takeover_of_a_stopped_conversation_leaves_it_stopped(cluster: Cluster):
    node = await cluster.add()
    await node.start()
    stop = await cluster.command("stop", via=node)
    await until(lambda: cluster.settled(stop) and cluster.owner() is None)
    info = await node.ask(node.node.take_over(C, cluster.record().epoch))
    assert info.status is Status.STOPPED
    assert cluster.record().stopped


@in_virtual_time
async def test_a_start_that_joins_a_tenure_without_work_gets_a_loop_all_the_same(cluster: Cluster):
    """The sweep holds it only to settle a command, and lets go; who asked to start meanwhile wants a loop."""
    node = await cluster.add()
    await cluster.create()
    node.rig.slow["release_all"] = 0.2
    heard = await cluster.command("interrupt")
    await until(lambda: cluster.settled(heard))
    assert cluster.owner() == "n1"
    info = await node.start()
    assert info.here
    assert node.live == [C]


# --- agents ---------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_node_leaves_alone_what_it_has_no_agent_for(cluster: Cluster):
    a = await cluster.add(agents={"other": Agent()})
    said = await cluster.say()
    await asyncio.sleep(5)
    assert cluster.kinds() == ["created", "message"]
    with pytest.raises(NodeUnavailableError, match="no agent named 'echo'"):
        await a.start()
    assert cluster.owner() is None
    assert cluster.record().failures == 0
    await cluster.add()
    await until(lambda: cluster.settled(said))


@in_virtual_time
async def test_a_start_waits_for_an_agent_that_is_still_loading(cluster: Cluster):
    loaded = asyncio.Event()

    class Slow(Agent):
        async def ready(self) -> None:
            await loaded.wait()

    node = await cluster.add(agent=Slow())
    assert node.node.readiness() == ["agent echo is not loaded yet"]
    said = await cluster.say()
    start = node.starting()
    await asyncio.sleep(3)
    assert node.agent.opened == []
    assert cluster.kinds() == ["created", "message"]  # neither claimed nor failed
    loaded.set()
    assert (await start).here
    await until(lambda: cluster.settled(said))
    assert node.node.readiness() == []


# --- forced ---------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_takeover_at_an_epoch_that_has_moved_on_changes_nothing(cluster: Cluster):
    a, b = await cluster.add(), await cluster.add()
    await a.start()
    before = cluster.journal()
    with pytest.raises(ConversationOwnedElsewhereError):
        await b.ask(b.node.take_over(C, Epoch(7)))
    assert cluster.journal() == before
    await a.leave()
    before = cluster.journal()
    with pytest.raises(CommandRefusedError) as caught:
        await b.ask(b.node.take_over(C, Epoch(7)))
    assert caught.value.reason == "epoch-moved"
    assert cluster.journal() == before
    with pytest.raises(UnknownConversationError):
        await b.ask(b.node.take_over("nobody", Epoch(0)))


@in_virtual_time
async def test_a_takeover_does_not_join_a_start_under_way(cluster: Cluster):
    node = await cluster.add()
    await cluster.create()
    late = asyncio.Event()
    node.rig.once("claim_all", answered_after(late))
    start = node.starting()
    await until(lambda: cluster.owner() == "n1")
    force = asyncio.ensure_future(node.ask(node.node.take_over(C, Epoch(1))))
    await asyncio.sleep(0.1)
    late.set()
    assert (await force).epoch == 2
    assert (await start).here
    assert node.agent.alive == [(C, 2)]
