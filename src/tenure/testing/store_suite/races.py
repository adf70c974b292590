"""Cases: everything at once, through many handles. The strict fold is the judge."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from tenure.abc import (
    Accepted,
    Append,
    Appended,
    Claim,
    Death,
    Duplicate,
    Elsewhere,
    Fenced,
    Held,
    KeyReused,
    Reading,
    Reason,
    Release,
    Repeated,
    Stale,
    Submit,
)
from tenure.conversation import Fold, Settle, checked, fold, plan, settlement, turn_id
from tenure.journal import CallFinished, CallStarted, Draft, LoopStarted, TurnCompleted, TurnStarted, draft
from tenure.testing.store_suite.stage import AGENT, CREATION, command, expect, judge, message, note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenure.abc import Store
    from tenure.journal import Event
    from tenure.lease import IncarnationId, Lease
    from tenure.testing.store_suite.stage import Stage

HANDLES = 4
SEEDS = (1, 2, 3)


async def commands_of_many_stand_without_a_gap(stage: Stage) -> None:
    conversations, stores = [await stage.conversation() for _ in range(3)], await stage.several(HANDLES)

    async def client(number: int, store: Store) -> None:
        for i in range(12):
            key = f"k{number % 2}-{i}"  # each key is sent by two clients
            answer = await store.submit(Submit(conversations[i % 3], message(key)))
            assert isinstance(answer, Accepted | Duplicate)

    await asyncio.gather(*(client(n, s) for n, s in enumerate(stores)))
    for conversation in conversations:
        events = await stage.journal(conversation)
        assert [e.seq for e in events] == list(range(1, 10))
        assert len({e.key for e in events if e.is_command}) == 8


async def an_owner_writes_while_others_submit_and_read(stage: Stage) -> None:
    writer, stores = await stage.owned(), await stage.several(HANDLES)
    conversation = writer.lease.conversation

    async def client(number: int, store: Store) -> None:
        for i in range(8):
            expect(Accepted, await store.submit(Submit(conversation, message(f"{number}-{i}"))))
            reading = expect(Reading, await store.read(conversation))
            assert [e.seq for e in reading.events] == list(range(1, reading.record.head + 1)), "one moment"

    async def owner() -> None:
        for i in range(16):
            done = await writer.append(Draft("note", {"text": f"{i}"}), Draft("note", {"text": f"{i}"}))
            assert done.head == done.first + 1

    await asyncio.gather(owner(), *(client(n, s) for n, s in enumerate(stores)))
    events = await stage.journal(conversation)
    notes = [e for e in events if e.kind == "note"]
    assert [e.text for e in notes] == [f"{i // 2}" for i in range(32)]
    assert all(b.seq == a.seq + 1 for a, b in zip(notes[::2], notes[1::2], strict=True)), "a batch is in one piece"


async def c6_an_append_beside_a_takeover(stage: Stage) -> None:
    """It stands before the claim, or nowhere; and what the successor reads after its claim (C12) is all that there is."""
    old, new = await stage.several(2)
    for round_ in range(10):
        writer, other = await stage.owned(), await stage.node()
        conversation = writer.lease.conversation
        batch, request = writer.batch(note()), stage.claiming(conversation, other, 1, forced=True)

        async def take(request: Claim = request, conversation: str = conversation) -> Sequence[Event]:
            expect(Held, await new.claim(request))
            return expect(Reading, await new.read(conversation)).events

        if round_ % 2:
            answer, read = await asyncio.gather(old.append(batch), take())
        else:
            read, answer = await asyncio.gather(take(), old.append(batch))
        written = ["note"] if isinstance(answer, Appended) else []
        assert await stage.kinds(conversation) == ["created", "claimed", *written, "claimed"]
        assert list(read) == await stage.journal(conversation)


async def g4_a_storm_loses_nothing_and_doubles_nothing(stage: Stage) -> None:
    """Clients submit and repeat; nodes sweep, claim, work, release, die and take over by force; copies come late."""
    for seed in SEEDS:
        storm = _Storm(stage, random.Random(seed), prefix=f"s{seed}-")
        await storm.run()


class _Storm:
    """One storm on three conversations. Everything that decides comes from the seed, the order of tasks aside."""

    def __init__(self, stage: Stage, chance: random.Random, prefix: str) -> None:
        self.stage = stage
        self.chance = chance
        self.conversations = [f"{prefix}c{i}" for i in range(3)]
        self.accepted: dict[tuple[str, str], int] = {}
        self.sent: list[Append | Release] = []

    async def run(self) -> None:
        stores = await self.stage.several(HANDLES)
        for store in stores:
            for name in self.conversations:
                await store.submit(Submit(name, None, CREATION))
        await asyncio.gather(*(self._client(s, n) for n, s in enumerate(stores)), *(self._node(s) for s in stores))
        await self._settle_everything(stores[0])
        for name in self.conversations:
            await self._check(name)

    async def _pause(self) -> None:
        """Let others go first: a store that answers without waiting would else run one task after the other."""
        for _ in range(self.chance.randrange(4)):
            await asyncio.sleep(0)

    async def _client(self, store: Store, number: int) -> None:
        for i in range(10):
            name = self.chance.choice(self.conversations)
            key = f"{self.chance.choice([number, 0])}-{i}"
            kind = self.chance.choice(["message", "message", "message", "interrupt"])
            asked = command(kind, key, {"text": key})
            for _ in range(self.chance.choice([1, 1, 2])):
                await self._pause()
                answer = await store.submit(Submit(name, asked))
                assert isinstance(answer, Accepted | Duplicate | KeyReused), answer
                if not isinstance(answer, KeyReused):
                    first = self.accepted.setdefault((name, key), answer.seq)
                    assert answer.seq == first, "a key has one seq, whoever asks"

    async def _node(self, store: Store) -> None:
        me = await self.stage.node()
        for _ in range(12):
            dies = self.chance.random() < 0.2
            page = await store.wanted(me, [AGENT], None, 2)
            names = [w.conversation for w in page.items] or [self.chance.choice(self.conversations)]
            name = self.chance.choice(names)
            await self._claim_and_work(store, me, name, forced=self.chance.random() < 0.2, dies=dies)
            if self.sent and self.chance.random() < 0.5:
                await self._copy(store, self.chance.choice(self.sent))
            if dies:
                await store.bury(me, Death.EXITED)
                me = await self.stage.node()

    async def _claim_and_work(self, store: Store, me: IncarnationId, name: str, *, forced: bool, dies: bool) -> None:
        (record,) = await store.records([name])
        assert record is not None
        await self._pause()
        answer = await store.claim(self.stage.claiming(name, me, record.epoch, forced=forced))
        if isinstance(answer, Held):
            await self._work(store, answer.lease, dies=dies)
        else:
            assert isinstance(answer, Elsewhere | Stale), answer

    async def _work(self, store: Store, lease: Lease, *, dies: bool = False) -> None:
        """What a node does with a conversation, in small: repairs, one turn, release; fenced means stopped."""
        state = fold(Fold(), await self.stage.journal(lease.conversation, store))
        number = 0
        while (drafts := _next_step(state)) and not (dies and number == 2):
            number += 1
            after = checked(state, drafts)
            batch = Append(lease, number, state.seq, drafts, settlement(state, after, drafts))
            self.sent.append(batch)
            await self._pause()
            answer = await store.append(batch)
            if isinstance(answer, Fenced):
                return
            assert isinstance(answer, Appended | Repeated), answer  # repeated: a copy was faster
            state = fold(state, await self._since(store, lease.conversation, state.seq))
        if not dies:
            settle = Settle(runnable=state.runnable, turn=state.turn_state)
            farewell = Release(Append(lease, number + 1, state.seq, (), settle), Reason.DRAINED)
            self.sent.append(farewell)
            await self._pause()
            await store.release(farewell)

    async def _since(self, store: Store, name: str, seq: int) -> Sequence[Event]:
        return expect(Reading, await store.read(name, seq)).events

    async def _copy(self, store: Store, request: Append | Release) -> None:
        """A copy of something that was sent before, by whomever; what it must not do, the judge sees."""
        if isinstance(request, Append):
            await store.append(request)
        else:
            await store.release(request)

    async def _settle_everything(self, store: Store) -> None:
        for name in self.conversations:
            writer = await self.stage.claim(name, await self.stage.node(), forced=True)
            for _ in range(100):
                if not await self._is_wanted(store, name):
                    break
                await self._work(store, writer.lease)
                writer = await self.stage.claim(name, writer.lease.incarnation)

    async def _is_wanted(self, store: Store, name: str) -> bool:
        (record,) = await store.records([name])
        return record is not None and record.wanted

    async def _check(self, name: str) -> None:
        events = await self.stage.journal(name)
        state = judge(await self.stage.record(name), events)
        assert {(name, e.key): int(e.seq) for e in events if e.is_command} == {
            place: seq for place, seq in self.accepted.items() if place[0] == name
        }
        assert (state.pending, state.turn) == ({}, None), "everything that was accepted is settled"


def _next_step(state: Fold) -> tuple[Draft, ...]:
    """The owner's next batch: repairs, then the loop's start, then one step of a turn; nothing when all is done."""
    repairs = plan(state).repairs
    if repairs:
        return repairs
    if state.stopped or not (state.turn or state.queue):
        return ()
    if not state.started:
        return (draft(LoopStarted(AGENT)),)
    if state.turn is None:
        first = int(state.queue[0].seq)
        return (draft(TurnStarted((first,)), turn_id(first)),)
    turn = state.turn
    call = f"{turn.id}-call"
    if call in turn.calls:
        return (draft(CallFinished(call, "result"), turn.id),)
    if call not in turn.closed:
        return (draft(CallStarted(call, "tool", idempotent=True, key=call), turn.id),)
    return (draft(TurnCompleted(turn.commands), turn.id),)
