"""Cases: register, renew, bury, nodes. Death is a write, and there is no way back."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from tenure.abc import Alive, Buried, Dead, Death, Granted, Load, Refused
from tenure.lease import new_incarnation
from tenure.testing.store_suite.stage import TTL_S, expect, only

if TYPE_CHECKING:
    from tenure.abc import NodeRecord
    from tenure.lease import IncarnationId
    from tenure.testing.store_suite.stage import Stage

LOAD = Load(owned=5, draining=True)
AN_HOUR_S = 3600.0


async def _seen(stage: Stage, incarnation: IncarnationId) -> NodeRecord | None:
    return next((n for n in await stage.store.nodes() if n.incarnation == incarnation), None)


# registering


async def a_registered_incarnation_is_shown_as_it_registered(stage: Stage) -> None:
    incarnation, about = new_incarnation(), replace(stage.about("a name, 名前"), agents=("one", "two"))
    assert await stage.store.register(incarnation, about, TTL_S) == Granted(0)
    node = await _seen(stage, incarnation)
    assert node is not None
    assert (node.about, node.load, node.beat, node.dead) == (about, Load(), 0, False)
    assert node.expires_in_s == TTL_S


async def rule_10_an_incarnation_is_registered_once_ever(stage: Stage) -> None:
    incarnation = await stage.node()
    again = expect(Refused, await stage.store.register(incarnation, stage.about(), TTL_S))
    assert again.reason == "registered-before"
    stage.clock.advance(TTL_S)
    assert isinstance(await stage.store.register(incarnation, stage.about(), TTL_S), Refused), "expired is registered"
    expect(Buried, await stage.store.bury(incarnation, Death.EXPIRED))
    assert isinstance(await stage.store.register(incarnation, stage.about(), TTL_S), Refused), "buried is registered"
    assert isinstance(await stage.store.renew(incarnation, 0, "nonce", TTL_S, LOAD), Dead)


async def a_refused_registration_changes_nothing(stage: Stage) -> None:
    incarnation = await stage.node("first")
    before = await stage.store.nodes()
    expect(Refused, await stage.store.register(incarnation, stage.about("second"), 1000 * TTL_S))
    assert await stage.store.nodes() == before


async def of_many_that_register_one_incarnation_one_is_granted(stage: Stage) -> None:
    incarnation, about = new_incarnation(), stage.about()
    answers = await asyncio.gather(*(s.register(incarnation, about, TTL_S) for s in await stage.several(6)))
    assert sorted(type(answer).__name__ for answer in answers) == ["Granted"] + 5 * ["Refused"]


# renewing


async def a_renewal_extends_the_lease_from_now(stage: Stage) -> None:
    incarnation = await stage.node()
    stage.clock.advance(TTL_S - 1)
    assert await stage.store.renew(incarnation, 0, "a", 2 * TTL_S, LOAD) == Granted(1)
    node = await _seen(stage, incarnation)
    assert node is not None
    assert (node.expires_in_s, node.load, node.beat) == (2 * TTL_S, LOAD, 1)
    stage.clock.advance(TTL_S)
    assert await stage.store.renew(incarnation, 1, "b", TTL_S, Load()) == Granted(2)


async def a_repeated_renewal_gets_the_same_answer(stage: Stage) -> None:
    incarnation = await stage.node()
    assert await stage.store.renew(incarnation, 0, "a", TTL_S, LOAD) == Granted(1)
    assert await stage.store.renew(incarnation, 0, "a", TTL_S, LOAD) == Granted(1)
    assert await stage.store.renew(incarnation, 1, "b", TTL_S, LOAD) == Granted(2)


async def c24_a_second_copy_of_the_process_is_dead(stage: Stage) -> None:
    incarnation = await stage.node()
    assert await stage.store.renew(incarnation, 0, "original", TTL_S, LOAD) == Granted(1)
    assert await stage.store.renew(incarnation, 0, "copy", TTL_S, LOAD) == Dead()
    assert await stage.store.renew(incarnation, 1, "original", TTL_S, LOAD) == Granted(2), "the original lives on"


async def a_late_copy_of_an_old_renewal_is_refused(stage: Stage) -> None:
    incarnation = await stage.node()
    for beat in range(3):
        assert await stage.store.renew(incarnation, beat, f"nonce {beat}", TTL_S, LOAD) == Granted(beat + 1)
    stage.clock.advance(1)
    before = await stage.store.nodes()
    assert await stage.store.renew(incarnation, 1, "nonce 1", TTL_S, Load()) == Dead()
    assert await stage.store.renew(incarnation, 4, "nonce 4", TTL_S, Load()) == Dead(), "a beat of the future"
    assert await stage.store.nodes() == before, "and has extended nothing"


async def of_many_that_renew_one_beat_one_is_granted(stage: Stage) -> None:
    incarnation = await stage.node()
    stores = await stage.several(6)
    answers = await asyncio.gather(*(s.renew(incarnation, 0, f"copy {i}", TTL_S, LOAD) for i, s in enumerate(stores)))
    assert sorted(type(answer).__name__ for answer in answers) == 5 * ["Dead"] + ["Granted"]


async def an_expired_lease_is_never_renewed(stage: Stage) -> None:
    just, late = await stage.node(), await stage.node()
    stage.clock.advance(TTL_S - 0.125)
    assert await stage.store.renew(just, 0, "a", TTL_S, LOAD) == Granted(1)
    stage.clock.advance(0.125)
    assert await stage.store.renew(late, 0, "a", TTL_S, LOAD) == Dead(), "expired at this very moment"
    assert await stage.store.renew(late, 0, "a", TTL_S, LOAD) == Dead(), "and it stays so"
    node = await _seen(stage, late)
    assert node is not None
    assert (node.dead, node.expires_in_s <= 0) == (False, True), "expired is not yet dead: somebody has to bury it"


async def who_never_registered_is_not_renewed(stage: Stage) -> None:
    assert await stage.store.renew(new_incarnation(), 0, "a", TTL_S, LOAD) == Dead()
    assert await stage.store.nodes() == []


# burying


async def rule_10_expired_is_judged_by_the_store(stage: Stage) -> None:
    incarnation = await stage.node()
    stage.clock.advance(TTL_S - 1)
    assert await stage.store.bury(incarnation, Death.EXPIRED) == Alive(1.0)
    assert await stage.store.renew(incarnation, 0, "a", TTL_S, LOAD) == Granted(1), "an attempt to bury changes nothing"
    stage.clock.advance(TTL_S)
    assert await stage.store.bury(incarnation, Death.EXPIRED) == Buried()


async def c5_dead_is_stable(stage: Stage) -> None:
    incarnation = await stage.node()
    stage.clock.advance(TTL_S)
    assert await stage.store.bury(incarnation, Death.EXPIRED) == Buried()
    assert await stage.store.renew(incarnation, 0, "late", TTL_S, LOAD) == Dead()
    stage.clock.step(boot_s=-2 * TTL_S)
    assert await stage.store.renew(incarnation, 0, "later", TTL_S, LOAD) == Dead(), "also when the clock goes back"
    assert await stage.store.bury(incarnation, Death.EXPIRED) == Buried()


async def c5_a_renewal_before_expiry_is_seen_by_the_burial(stage: Stage) -> None:
    incarnation = await stage.node()
    stage.clock.advance(TTL_S - 0.5)
    assert await stage.store.renew(incarnation, 0, "just in time", TTL_S, LOAD) == Granted(1)
    stage.clock.advance(1)
    assert await (await stage.another()).bury(incarnation, Death.EXPIRED) == Alive(TTL_S - 1)


async def rule_12_proof_buries_at_once(stage: Stage) -> None:
    for why in (Death.RETIRED, Death.EXITED):
        incarnation = await stage.node()
        assert await stage.store.bury(incarnation, why) == Buried()
        assert await stage.store.renew(incarnation, 0, "a", TTL_S, LOAD) == Dead()


async def burying_is_idempotent(stage: Stage) -> None:
    incarnation = await stage.node()
    assert await stage.store.bury(incarnation, Death.EXITED) == Buried()
    for why in Death:
        answer = await stage.store.bury(incarnation, why)
        assert answer == Buried(), "whatever the reason, the lease is not asked again"
        assert isinstance(answer, Buried) and answer.why is Death.EXITED, "what it was first buried for"


async def what_a_node_was_buried_for_is_remembered(stage: Stage) -> None:
    for why in Death:
        incarnation = await stage.node()
        stage.clock.advance(TTL_S + 1)
        await stage.store.bury(incarnation, why)
        answer = await (await stage.another()).bury(incarnation, Death.EXPIRED)
        assert isinstance(answer, Buried) and answer.why is why


async def rule_10_unknown_is_not_dead(stage: Stage) -> None:
    stranger = new_incarnation()
    for why in Death:
        assert await stage.store.bury(stranger, why) == Alive(math.inf)
    assert await stage.store.nodes() == []
    assert await stage.store.register(stranger, stage.about(), TTL_S) == Granted(0), "nothing was held against it"


async def c23_a_clock_that_went_back_is_clamped(stage: Stage) -> None:
    incarnation = await stage.node()
    stage.clock.step(boot_s=-AN_HOUR_S)
    assert await stage.store.bury(incarnation, Death.EXPIRED) == Alive(TTL_S), "not an hour and a ttl"
    stage.clock.advance(TTL_S)
    assert await stage.store.bury(incarnation, Death.EXPIRED) == Buried()


async def c23_the_clamp_is_to_the_ttl_of_the_last_renewal(stage: Stage) -> None:
    incarnation = await stage.node()
    assert await stage.store.renew(incarnation, 0, "a", 4 * TTL_S, LOAD) == Granted(1)
    stage.clock.step(boot_s=-AN_HOUR_S)
    assert await stage.store.bury(incarnation, Death.EXPIRED) == Alive(4 * TTL_S)


# the list


async def nodes_are_listed_oldest_first(stage: Stage) -> None:
    incarnations = [await stage.node() for _ in range(5)]
    await stage.store.renew(incarnations[3], 0, "a", TTL_S, LOAD)
    assert [n.incarnation for n in await stage.store.nodes()] == incarnations


async def the_dead_are_listed_while_a_conversation_names_them(stage: Stage) -> None:
    writer, idle = await stage.owned(), await stage.node()
    dead = writer.lease.incarnation
    for incarnation in (dead, idle):
        assert await stage.store.bury(incarnation, Death.EXITED) == Buried()
    assert [(n.incarnation, n.dead) for n in await stage.store.nodes()] == [(dead, True)]
    successor = await stage.claim(writer.lease.conversation, await stage.node())
    assert [n.incarnation for n in await stage.store.nodes()] == [successor.lease.incarnation]
    assert await stage.store.bury(dead, Death.EXPIRED) == Buried(), "its trace stays"


async def an_expired_node_is_listed_until_it_is_buried(stage: Stage) -> None:
    incarnation = await stage.node()
    stage.clock.advance(TTL_S + 1)
    node = only(await stage.store.nodes())
    assert (node.incarnation, node.dead, node.expires_in_s) == (incarnation, False, -1.0)


async def a_burial_and_a_renewal_at_once_agree(stage: Stage) -> None:
    """Whoever comes first: a node that was told that it lives is not dead, and the other way round."""
    incarnation = await stage.node()
    stores = await stage.several(6)
    burials = [s.bury(incarnation, Death.EXITED) for s in stores[:3]]
    renewals = [s.renew(incarnation, 0, "a", TTL_S, LOAD) for s in stores[3:]]
    buried, _ = await asyncio.gather(asyncio.gather(*burials), asyncio.gather(*renewals))
    assert set(buried) == {Buried()}
    assert await stage.store.renew(incarnation, 1, "b", TTL_S, LOAD) == Dead()
