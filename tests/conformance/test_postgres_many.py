"""Groups on PostgreSQL: the functions for many, and for one, do what the others would have done, item by item, and leave alone
what they must."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import postgres_servers
import pytest
from postgres_servers import blocked, console

from tenure.abc import (
    Accepted,
    Append,
    Appended,
    Buried,
    Claim,
    Creation,
    Death,
    Duplicate,
    Fenced,
    Held,
    Limits,
    Repeated,
    Submit,
)
from tenure.conversation import Settle, TurnState
from tenure.journal import Policy
from tenure.lease import Epoch, Token
from tenure.stores.postgres import PostgresStore, lanes
from tenure.stores.postgres.link import Link, Statement
from tenure.testing.postgres import PostgresServer
from tenure.testing.store_suite import Stage
from tenure.testing.store_suite.appending import forged
from tenure.testing.store_suite.stage import AGENT, IDLE, OPEN, PATIENCE_S, command, expect, message, note, timeless

LIMITS = Limits(unsettled=3)


@dataclass
class Scene:
    """The same requests on the same past, wherever it is played; each of a conversation of its own, but for one pair."""

    appends: list[Append]
    submits: list[Submit]
    claims: list[Claim]
    names: list[str]


async def owned_by(stage: Stage, nodes: Sequence[Any], which: int) -> Any:
    return await stage.claim(await stage.conversation(), nodes[which])


async def appends_of(stage: Stage, nodes: Sequence[Any]) -> list[Append]:
    writers = [await owned_by(stage, nodes, 0) for _ in range(13)]
    repeated = writers[5].batch(note("again"))
    expect(Appended, await stage.store.append(repeated))
    assert await stage.store.delete(writers[6].lease.conversation, Epoch(1), "user")
    await writers[7].release()
    await writers[8].append(settle=OPEN)
    plain = [writer.batch(note(f"note {n}")) for n, writer in enumerate(writers)]
    different = {
        5: repeated,
        9: replace(plain[9], lease=replace(plain[9].lease, token=Token("forged"))),
        10: replace(plain[10], number=2),
        11: replace(plain[11], seen=99),
        12: replace(plain[12], drafts=(note("x" * (2 << 20)),)),
    }
    more = [writer.batch(*drafts, settle=settle) for writer, drafts, settle in await _others(stage, nodes)]
    return [different.get(n, batch) for n, batch in enumerate(plain)] + more


async def _others(stage: Stage, nodes: Sequence[Any]) -> list[tuple[Any, tuple[Any, ...], Settle | None]]:
    """Batches that are taken, and are no plain ones."""
    calls = replace(note("opens"), opens=("call",))
    said = [((note("a"), note("b")), None), ((note("settles"),), IDLE), ((calls,), None), ((), None)]
    return [(await owned_by(stage, nodes, 0), drafts, settle) for drafts, settle in said]


async def submits_of(stage: Stage, nodes: Sequence[Any]) -> list[Submit]:
    names = [await stage.conversation() for _ in range(8)]
    for policy in (Policy.REJECT, Policy.STEER):
        name = await stage.conversation(Creation(AGENT, policy=policy))
        await (await stage.claim(name, nodes[0])).append(settle=OPEN)
        names.append(name)
    stopped = [await owned_by(stage, nodes, 0) for _ in range(2)]
    for writer in stopped:
        await writer.append(settle=Settle(runnable=False, turn=TurnState.NONE, stopped=True))
    names.append(stopped[0].lease.conversation)
    await stage.store.submit(Submit(names[4], message("k", "said before")))
    await stage.store.submit(Submit(names[5], message("k", "something else")))
    assert await stage.store.delete(names[6], Epoch(0), "user")
    for _ in range(3):
        await stage.submit(names[7])
    asked = [Submit(name, message("k", "said before")) for name in names]
    asked.append(Submit(names[0], message("k2", "in the same group")))
    asked.append(Submit("nowhere", message("k")))
    asked += [
        Submit(names[7], command("stop", "stop")),
        Submit(stopped[1].lease.conversation, command("start", "start")),
    ]
    return [*asked, Submit(names[1], message("k3"), Creation(AGENT)), Submit("new", message("k"), Creation(AGENT))]


async def claims_of(stage: Stage, nodes: Sequence[Any]) -> list[Claim]:
    free = [await stage.conversation() for _ in range(4)]
    buried = [await owned_by(stage, nodes, 1) for _ in range(2)]
    await buried[1].append(settle=OPEN)
    mine = [await owned_by(stage, nodes, 0) for _ in range(2)]
    theirs, deleted = await owned_by(stage, nodes, 2), await stage.conversation()
    assert await stage.store.bury(nodes[1], Death.EXITED) == Buried()
    assert await stage.store.delete(deleted, Epoch(0), "user")
    asked = [stage.claiming(name, nodes[0]) for name in free]
    asked[3] = replace(asked[3], expected_epoch=Epoch(7), floor=3)
    asked.append(stage.claiming(await stage.conversation(), nodes[0], floor=40))
    asked.append(stage.claiming(await stage.conversation(), nodes[1]))
    asked += [replace(stage.claiming(w.lease.conversation, nodes[0], 1), death=Death.EXITED) for w in buried]
    asked += [stage.claiming(mine[0].lease.conversation, nodes[0], 1, token=mine[0].lease.token)]
    asked += [stage.claiming(name, nodes[0], 1) for name in (mine[1].lease.conversation, theirs.lease.conversation)]
    forced = await owned_by(stage, nodes, 2)
    asked.append(stage.claiming(forced.lease.conversation, nodes[0], 1, forced=True))
    return [*asked, stage.claiming(deleted, nodes[0]), stage.claiming("nowhere", nodes[0])]


async def scene_on(stage: Stage) -> Scene:
    nodes = [await stage.node() for _ in range(3)]
    appends, submits, claims = [await of(stage, nodes) for of in (appends_of, submits_of, claims_of)]
    names = [batch.lease.conversation for batch in appends]
    names += [request.conversation for request in (*submits, *claims) if request.conversation != "nowhere"]
    return Scene(appends, submits, claims, list(dict.fromkeys(names)))


async def outcome(stage: Stage, scene: Scene, answers: list[Any]) -> list[Any]:
    """What came of it, without what is random: incarnations and tokens."""
    seen: list[Any] = [type(answer).__name__ for answer in answers]
    for record in await stage.store.records(scene.names):
        assert record is not None
        holder = record.owner and record.owner.node == record.owner.incarnation
        seen.append((replace(timeless(record), owner=None, token=None), holder, record.token is None))
        for event in () if record.deleted else await stage.journal(record.conversation):
            body = {name: value for name, value in event.body.items() if name not in _RANDOM}
            known = {name: event.body[name] is None for name in _RANDOM if name in event.body}
            seen.append((replace(event, body=body), known))
        seen.append([one.operation for one in await stage.store.refusals(record.conversation)])
    return seen


_FUNCTIONS = ("append_many(", "submit_many(", "claim_many(", " append(", " submit(", " claim(")
_RANDOM = ("incarnation", "previous", "node", "address")


def spied(patch: pytest.MonkeyPatch) -> list[str]:
    """The SQL of all statements from now on."""
    sent: list[str] = []
    run = Link.run

    async def spy(self: Link, *statements: Statement, **more: Any) -> Any:
        sent.extend(statement.sql for statement in statements)
        return await run(self, *statements, **more)

    patch.setattr(Link, "run", spy)
    return sent


@pytest.fixture(**postgres_servers.EACH)
def server(request: pytest.FixtureRequest) -> PostgresServer:
    return postgres_servers.shared_server(request.param)


async def test_rule_17_in_a_group_each_is_answered_as_if_it_had_come_alone(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
):
    outcomes: list[list[Any]] = []
    for together in (False, True):
        url = server.url(schema=postgres_servers.schema())
        async with Stage.opened(lambda clock, _, url=url: PostgresStore(url, clock=clock, limits=LIMITS)) as stage:
            scene = await scene_on(stage)
            store, answers = stage.store, []
            if together:
                sent = spied(monkeypatch)
                for some in await asyncio.gather(
                    store.append_all(scene.appends), store.submit_all(scene.submits), store.claim_all(scene.claims)
                ):
                    answers += some
                calls = [sql for sql in sent if any(name in sql for name in _FUNCTIONS)]  # hints go when they go
                for name in _FUNCTIONS:
                    assert any(name in sql for sql in calls), f"nobody called {name}"
                assert len(calls) <= 11, "six functions, and what was left alone once more"
            else:
                with monkeypatch.context() as patch:
                    sent = spied(patch)
                    answers += [await store.append(one) for one in scene.appends]
                    assert any(" append_one(" in sql for sql in sent)
                answers += [await store.submit(one) for one in scene.submits]
                answers += [await store.claim(one) for one in scene.claims]
            outcomes.append(await outcome(stage, scene, answers))
    alone, in_a_group = outcomes
    for one, other in zip(alone, in_a_group, strict=True):
        assert one == other


@pytest.mark.parametrize("together", [1, lanes.MANY])
async def test_rule_01_a_plain_append_needs_the_lease_that_is_held(server: PostgresServer, together: int):
    """Alone and among many: those functions judge for themselves."""
    async with postgres_servers.stage_on(server.url(schema=postgres_servers.schema())) as stage:
        writers = [await stage.owned() for _ in range(together)]
        for what, lease in forged(writers[0].lease):
            batches = [writer.batch(note()) for writer in writers]
            batches[0] = replace(batches[0], lease=lease)
            answers = await stage.store.append_all(batches)
            assert isinstance(answers[0], Fenced), what
            for writer, done in zip(writers[1:], answers[1:], strict=True):
                writer.number, writer.seen = writer.number + 1, expect(Appended, done).head
        assert await stage.kinds(writers[0].lease.conversation) == ["created", "claimed"]


async def requests_of(stage: Stage, operation: str, count: int) -> list[tuple[str, Callable[[], Awaitable[Any]]]]:
    """Conversations, and what is asked of each: the first thrice, as copies that are under way beside each other."""
    store, node = stage.store, await stage.node()
    names = [await stage.conversation() for _ in range(count)]
    if operation == "append":
        batches = [(await stage.claim(name, node)).batch(note()) for name in names]
        asked = [partial(store.append, batch) for batch in batches]
    elif operation == "submit":
        asked = [partial(store.submit, Submit(name, message("k"))) for name in names]
    else:
        asked = [partial(store.claim, stage.claiming(name, node)) for name in names]
    return [*2 * [(names[0], asked[0])], *zip(names, asked, strict=True)]


@pytest.mark.parametrize("operation", ["append", "submit", "claim"])
@pytest.mark.parametrize("others", [2, 6])
async def test_c15_a_group_leaves_alone_the_row_that_somebody_holds(
    server: PostgresServer, others: int, operation: str
):
    """Few, and so many that the function for many is asked: all but one are answered while nobody lets go of that row."""
    schema = postgres_servers.schema()
    async with postgres_servers.stage_on(server.url(schema=schema, statement_s=60, timeout_s=60)) as stage:
        asked = await requests_of(stage, operation, 1 + others)
        stuck, done_is = asked[0][0], {"append": Appended, "submit": Accepted, "claim": Held}[operation]
        with console(server, schema) as session:
            session.execute("BEGIN")
            session.execute("SELECT FROM conversations WHERE id = %s FOR UPDATE", (stuck,))
            # One by itself for each of the two lanes, which would hold it up, and one in the group of the others.
            copies: list[asyncio.Future[Any]] = []
            for count, (_, request) in enumerate(asked[:2], 1):
                copies.append(asyncio.ensure_future(request()))
                await blocked(server, count)
            third, *done = [asyncio.ensure_future(request()) for _, request in asked[2:]]
            async with asyncio.timeout(PATIENCE_S):  # a group that waits does so for twice as long
                assert {type(one) for one in await asyncio.gather(*done)} == {done_is}
                await blocked(server)
            assert not any(one.done() for one in (*copies, third))
            session.execute("COMMIT")
        again_is = {"append": Repeated, "submit": Duplicate, "claim": Held}[operation]
        assert {type(await one) for one in (*copies, third)} == {done_is, again_is}
