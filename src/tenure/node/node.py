"""One server process of the cluster: ``async with Node(store=…, agents=…) as node``.

A node registers an incarnation, claims what is wanted up to its capacity, and serves anybody's commands whether or not
it owns the conversation. When it can no longer trust its lease it gives everything up and begins again as a new
incarnation; when it is drained it hands everything over and leaves.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from tenure import facts
from tenure.abc import About, Accepted, NodeRecord, Refused, Submit, Submitted
from tenure.clock import Clock, SystemClock
from tenure.config import Config
from tenure.conversation import Record, Status, status
from tenure.errors import (
    ConversationDeletedError,
    NodeUnavailableError,
    Owner,
    StoreError,
    StoreUnavailableError,
    UnknownConversationError,
)
from tenure.lease import Epoch, IncarnationId, new_incarnation
from tenure.node import initiation, rehydration, traces
from tenure.node.activity import Activity, Publisher, last_hour
from tenure.node.claimer import Claimer
from tenure.node.credentials import insist_on_allowed
from tenure.node.drain import drain, places, settle_down
from tenure.node.heartbeat import Heartbeat, LoopWatch
from tenure.node.hold import Hold
from tenure.node.incarnation import Incarnation
from tenure.node.initiation import AgentLoopInfo, Wish
from tenure.node.metrics import of_node
from tenure.node.progress import StartInfo, start_info
from tenure.node.reaper import REQUEST, Reaper, forget, store_identity
from tenure.node.reasons import reason_of
from tenure.node.restoration import floor_of, insist_on_whole
from tenure.node.tasks import Tasks, ended, settled
from tenure.node.telling import told_of
from tenure.node.tenure import ANYTHING, Means
from tenure.node.turn import too_large_an_answer
from tenure.node.witness import Witness, possible
from tenure.vault import Allowed, Veil

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import TracerProvider

    from tenure.abc import AgentLoop, RuntimeProvider, Store
    from tenure.journal import JsonObject
    from tenure.node.rehydration import Copied, Copy
    from tenure.vault import Keys


SUBMIT_TRIES = 4
SUBMIT_S = 3.0
"""A store that has not answered for this long is out: the caller hears it, and tries again."""
DIRECTORY_S = 0.2
CLOSE_S = 8.0
"""How long what is cancelled may take to end."""


class Node:
    """A member of the cluster, inside anybody's event loop.

    :param store: opened by the node if it is not open, and closed with it.
    :param agents: what this node can run, by name; the first is the default of a conversation that names none.
    :param provider: where runtimes come from.
    :param keys: the cluster's keys, for secrets in the vault.
    :param veil: what the logs of this process hide; the node adds what its conversations know.
    :param tracer_provider: where its spans go; by default wherever those of the process go, or nowhere.
    :param threaded: false runs the heartbeat in this event loop, without witness and threads: for simulations.
    """

    def __init__(
        self,
        store: Store,
        agents: Mapping[str, AgentLoop],
        *,
        provider: RuntimeProvider,
        config: Config | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        keys: Keys | None = None,
        veil: Veil | None = None,
        threaded: bool = True,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        if not agents:
            raise ValueError("a node needs at least one agent: agents={'name': loop}")
        self.store = store
        self.agents = dict(agents)
        self.default_agent = next(iter(self.agents))
        self.provider = provider
        self.keys = keys
        self.config = config or Config()
        self.allowed = Allowed.of(self.config)
        self.veil = veil or Veil()
        self.clock: Clock = clock or SystemClock()
        self.rng = rng or random.Random()
        self.facts = facts.Facts()
        self.tasks = Tasks(self.rng, self.facts)
        self.stuck = asyncio.Event()
        """A loop did not end after the loss of the lease: the process should exit (``tenure serve`` does)."""
        self.drained = asyncio.Event()
        self._threaded = threaded
        self._identity = ""
        self._incarnation: Incarnation | None = None
        self._claimer: Claimer | None = None
        self._present = asyncio.Event()
        self._leaving: asyncio.Task[None] | None = None
        self._life: asyncio.Task[None] | None = None
        self._loaded: dict[str, AgentLoop] = {}
        self._unready = {name: f"agent {name} is not loaded yet" for name in self.agents}
        self._loading: list[asyncio.Task[None]] = []
        self._living: tuple[float, dict[IncarnationId, NodeRecord]] = (float("-inf"), {})
        self._watch: LoopWatch | None = None
        self.metrics = of_node(self)
        self.traces = traces.of_node(self.config.node, self.clock, self.facts, tracer_provider)

    # --- life -------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.store.__aenter__()
        try:
            await insist_on_whole(self.store)
            self._identity = await store_identity(self.store)
            await self._open_provider()
            for name, agent in self.agents.items():
                self._loading.append(self.tasks.start(self._load(name, agent), f"load {name}"))
            if self._threaded:
                self._watch = LoopWatch(asyncio.get_running_loop(), self.config.blocked_loop_s, self.facts)
                self._watch.start()
            self._life = self.tasks.supervise(self._live, "life", self.config.ttl_s / 10)
            await self._present.wait()
        except BaseException:
            await self._close()
            raise
        return self

    async def _open_provider(self) -> None:
        await self.provider.open()
        self.facts.tell(facts.ProviderOpened(self.provider.kind, self.provider.detail))
        if self.provider.caution:
            self.facts.tell(facts.ProviderCaution(self.provider.kind, self.provider.caution))

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self.drain()
        finally:
            await self._close()

    async def _close(self) -> None:
        """Whatever went before: afterwards no loop, no thread and no witness of this node is left."""
        try:
            if self._watch is not None:
                self._watch.end()
            await self._end_life()
            await self.tasks.cancel(CLOSE_S)
        finally:
            await self.store.__aexit__(None, None, None)

    async def _load(self, name: str, agent: AgentLoop) -> None:
        try:
            await agent.ready()
        except Exception as error:
            self.facts.tell(facts.AgentUnloadable(name, reason_of(error)), traced=True)
            self._unready[name] = f"agent {name} cannot be loaded: {reason_of(error)}"
            return
        self._loaded[name] = agent
        del self._unready[name]
        if self._claimer is not None:
            self._claimer.hasten()

    async def _live(self) -> None:
        """One incarnation after the other, until the node is drained."""
        while self._leaving is None:
            incarnation = Incarnation(new_incarnation(), self.facts)
            heartbeat = await self._appear(incarnation)
            witness = self._witnesses(incarnation)
            try:
                await self._serve(incarnation)
            finally:
                try:
                    await heartbeat.retire()
                finally:
                    await ended(witness, CLOSE_S)
        await asyncio.get_running_loop().create_future()  # drained: nothing left to supervise

    async def _serve(self, incarnation: Incarnation) -> None:
        keepers = self._keepers(incarnation)
        try:
            with self.facts.heard_by(incarnation.activity.hear):
                await incarnation.over.wait()
        finally:
            await ended(keepers, CLOSE_S)
            if not incarnation.retired:
                await self._mourn(incarnation)

    async def _end_life(self) -> None:
        """No further incarnation; what there is of the last one ends."""
        if self._life is not None:
            await ended([self._life], CLOSE_S)

    async def _appear(self, incarnation: Incarnation) -> Heartbeat:
        host = asyncio.get_running_loop()
        floor = await floor_of(self.store)  # each time: the store may have been restored while this process was frozen
        heartbeat = Heartbeat(
            self.store.sibling(),
            incarnation.id,
            self._about(),
            timing=self.config.timing,
            clock=self.clock,
            rng=self.rng,
            load=incarnation.load,
            stop=lambda why: self._from_heartbeat(host, incarnation, why),
            lost=lambda why: self._lost(host, incarnation, why),
            told=self.facts,
        )
        incarnation.heartbeat = heartbeat
        means = Means(
            store=self.store,
            config=self.config,
            clock=self.clock,
            rng=self.rng,
            tasks=self.tasks,
            facts=self.facts,
            traces=self.traces,
            agents=self._loaded,
            provider=self.provider,
            identity=self._identity,
            floor=floor,
            keys=self.keys,
            trusts=incarnation.trusts,
            allowed=self.allowed,
            veil=self.veil,
            activity=incarnation.activity,
        )
        try:
            await heartbeat.start(threaded=self._threaded, spawn=self.tasks.start)
        except BaseException:
            await heartbeat.retire()
            raise
        incarnation.means = means
        self._incarnation = incarnation
        self._claimer = Claimer(incarnation, means, lambda: self._hear_requests(incarnation))
        self._present.set()
        self.facts.tell(facts.Registered(incarnation.id, self.config.node))
        return heartbeat

    def _keepers(self, incarnation: Incarnation) -> list[asyncio.Task[None]]:
        assert self._claimer is not None, "appeared"
        pause_s = min(0.2, self.config.sweep_s)
        reaper = Reaper(incarnation)
        keepers = [
            self.tasks.supervise(self._claimer.sweep, "sweep", pause_s),
            self.tasks.supervise(self._claimer.listen, "hints", pause_s),
            self.tasks.supervise(reaper.run, "reaper", self.config.reap_s / 10),
        ]
        if self._threaded:
            publisher = Publisher(incarnation.activity, self.store, incarnation.id, self.clock)
            keepers.append(self.tasks.supervise(publisher.run, "activity", 1.0))
        return keepers

    def _witnesses(self, incarnation: Incarnation) -> list[asyncio.Task[None]]:
        if not (self._threaded and self.config.witness and possible(self.store)):
            return []
        return [self.tasks.start(self._witness(incarnation), "witness")]

    async def _witness(self, incarnation: Incarnation) -> None:
        assert self.store.url is not None, "asked by `possible`"
        witness = Witness(self.store.url, incarnation.id, self.facts)
        try:
            await witness.keep(min(1.0, self.config.ttl_s / 3))
        finally:
            await asyncio.shield(self.tasks.start(witness.dismiss(), "dismiss the witness"))

    def _from_heartbeat(self, host: asyncio.AbstractEventLoop, incarnation: Incarnation, why: str) -> None:
        with suppress(RuntimeError):  # the event loop is closed already
            host.call_soon_threadsafe(incarnation.give_up, why)

    def _lost(self, host: asyncio.AbstractEventLoop, incarnation: Incarnation, why: str) -> None:
        """Trust has ended: the children die now, whatever the event loop does. In the heartbeat's thread."""
        self._kill_now()
        self._from_heartbeat(host, incarnation, why)

    def _kill_now(self) -> None:
        try:
            self.provider.kill_now()
        except Exception as error:
            self.facts.tell(facts.RuntimeLeft("of this node", reason_of(error)), traced=True)

    async def _mourn(self, incarnation: Incarnation) -> None:
        """Given up: every old loop ends before it retires, and before another incarnation registers (rule 11)."""
        self._present.clear()
        incarnation.give_up("the node ends")
        if not await settle_down(incarnation, self.config.ttl_s):
            self.stuck.set()
            while self._leaving is None and not await incarnation.ended(self.config.ttl_s):
                pass
        self._kill_now()  # its runtimes end before it retires, also when trust has not run out yet
        await asyncio.sleep(self.rng.uniform(0, self.config.ttl_s / 10))

    # --- what anybody may ask ---------------------------------------------------------------------------------------

    @property
    def incarnation(self) -> IncarnationId:
        """This start of the node; another one after a loss."""
        return self._here().id

    @property
    def present(self) -> Incarnation | None:
        """This start of the node, if it has registered; given up or not."""
        return self._incarnation

    @property
    def draining(self) -> bool:
        return self._leaving is not None

    @property
    def owned(self) -> int:
        """How many conversations this node holds now."""
        return len(self._incarnation.table) if self._incarnation else 0

    def readiness(self) -> list[str]:
        """Why this node should not be sent new work; empty when it is ready."""
        reasons = list(self._unready.values())
        if self.draining:
            reasons.append("draining")
        if self._incarnation is None or not self._incarnation.trusts():
            reasons.append("no lease: the store does not answer, or the node registers anew")
        return reasons

    async def submit(self, request: Submit) -> Submitted:
        """Hand a command to the journal; returns when it is accepted or refused, whoever owns the conversation.

        :raises StoreUnavailableError: no answer; repeat it unchanged, the key deduplicates.
        """
        return await told_of(self.facts, request, self._submitted(request))

    async def _submitted(self, request: Submit) -> Submitted:
        if (large := too_large_an_answer(request, self.store.limits.event_bytes)) is not None:
            return large
        began = self.clock.boottime()
        for attempt in range(SUBMIT_TRIES):
            try:
                answer = await self.store.submit(request)
            except StoreUnavailableError:
                if attempt == SUBMIT_TRIES - 1 or self.clock.boottime() - began > SUBMIT_S:
                    raise
                await asyncio.sleep(0.02 * 2**attempt * self.rng.uniform(0.5, 1.5))
                continue
            if not isinstance(answer, Refused):
                self._heard(request.conversation, answer.record if isinstance(answer, Accepted) else None)
            return answer
        raise AssertionError("unreachable")

    def _heard(self, conversation_id: str, record: Record | None) -> None:
        incarnation = self._incarnation
        tenure = incarnation.holds(conversation_id) if incarnation is not None else None
        if tenure is not None:
            tenure.hear(ANYTHING if record is None else record.head)
        elif self._claimer is not None:
            self._claimer.take_or_hasten(record)

    def check(self, agent: str, settings: JsonObject) -> JsonObject:
        """The settings as the agent keeps them, if it has no objection and this node would give what they ask for.

        :raises InvalidInputError: names the field, the limit and the remedy.
        """
        here = self.agents.get(agent)
        settings = settings if here is None else here.check(settings)
        insist_on_allowed(self.allowed, settings)
        return settings

    async def maybe_start_agent_loop(
        self, conversation_id: str, settings: JsonObject | None = None, user_id: str | None = None
    ) -> AgentLoopInfo:
        """Start the conversation's loop on this node, or join it if it runs or starts here already.

        `settings` null means the stored ones; a conversation that does not exist is created with them.

        :raises ConversationOwnedElsewhereError: another node owns it; nothing was changed.
        :raises ProvisioningError: it could not be started; the claim is released, any node may try again.
        :raises NodeUnavailableError: this node is draining, full, or registering.
        :raises UnknownConversationError: it belongs to another user. :raises ConversationExistsError: other settings.
        :raises ConversationDeletedError: :raises InvalidInputError: the settings are no good; names the field.
        """
        if settings is not None:
            settings = self.check(self.default_agent, settings)
        return await self._start(Wish(conversation_id, settings, user_id))

    def hold(
        self,
        conversation_id: str,
        *,
        settings: JsonObject | None = None,
        user_id: str | None = None,
        agent: str | None = None,
    ) -> Hold:
        """Hold a conversation for a loop of your own: ``async with node.hold(id) as lease``. It is created if need be.

        Give `agent` a name that no node runs, or a node that runs it takes the messages that wait once you have let go.

        :raises CommandRefusedError: it is stopped, or held or running here already (``held-here``).
        :raises ProvisioningError: it is a copy whose past is not whole, or too many owners were lost at its start.
        :raises OwnershipLostError: lost, stopped, or the node left; the body was cancelled. The rest as for a start.
        """
        wish = Wish(conversation_id, settings, user_id, held=True)
        return Hold(lambda: self._with_room(conversation_id), wish, agent or self.default_agent)

    async def _with_room(self, conversation_id: str) -> Incarnation:
        if self.draining:
            raise NodeUnavailableError(f"node {self.config.node} is draining", await self.elsewhere())
        incarnation = self._here()
        if not incarnation.has_room(conversation_id, self.config.capacity):
            full = f"node {self.config.node} is full ({self.config.capacity} conversations)"
            raise NodeUnavailableError(full, await self.elsewhere())
        return incarnation

    async def take_over(self, conversation_id: str, expected_epoch: Epoch) -> AgentLoopInfo:
        """Claim by force from the owner at `expected_epoch`, alive or not.

        :raises ConversationOwnedElsewhereError: the epoch has moved on, and somebody owns it; nothing was changed.
        :raises CommandRefusedError: the epoch has moved on, and nobody does. The rest as for a start.
        """
        before = (await self.store.records([conversation_id]))[0]
        info = await self._start(Wish(conversation_id, forced=expected_epoch))
        if before is not None and before.owner is not None and before.owner.epoch == expected_epoch:
            await self._tell(before.owner.incarnation, conversation_id)
        return info

    async def _tell(self, loser: IncarnationId, conversation_id: str) -> None:
        """Let the old owner look, so that its loop ends now and not at its next write. The fence does not need it."""
        request: JsonObject = {"what": "look", "conversation": conversation_id}
        with suppress(StoreUnavailableError):  # the old owner finds out by itself
            await self.store.put_paper(REQUEST, f"{loser}/look/{conversation_id}", request, 0)

    async def _start(self, wish: Wish) -> AgentLoopInfo:
        if self.draining:
            raise NodeUnavailableError(f"node {self.config.node} is draining", await self.elsewhere())
        if self._unready:
            await asyncio.wait(self._loading, timeout=self.config.start_timeout_s)
        incarnation = await self._with_room(wish.conversation_id)
        await initiation.maybe_start(incarnation, wish, self.default_agent)
        return await self.info(wish.conversation_id)

    async def rehydrate(self, copy: Copy) -> Copied:
        """Make a new conversation whose past is a recording; returns when it is whole. Nothing of it runs again.

        The same request again, at any node, gives the same conversation, and finishes one that was cut off.

        :raises InvalidInputError: the settings are no good for the agent, a command of the past is none of its, or more is open
            at the end than can be closed in one step. :raises NodeUnavailableError: repeat it, maybe elsewhere.
        :raises ConversationExistsError: the id is taken. :raises ConversationDeletedError: it was.
        :raises CommandRefusedError: somebody wrote to it meanwhile; nothing of it is kept.
        """
        agent = copy.creation.agent or copy.creation.default_agent
        rehydration.insist_on_copyable(copy, self.agents.get(agent), self.store.limits)
        incarnation = await self._with_room(copy.conversation_id)
        if incarnation.means is None:
            raise NodeUnavailableError("this node is registering", await self.elsewhere())
        done = await rehydration.rehydrate(incarnation, incarnation.means, copy)
        if done.record.wanted:
            self._heard(copy.conversation_id, done.record)
        return done

    async def info(self, conversation_id: str) -> AgentLoopInfo:
        """Where the conversation's loop is and how it does, as any node tells it.

        :raises UnknownConversationError: there is none. :raises ConversationDeletedError: there was one.
        """
        record = await self._record(conversation_id)
        word, owner = await self.describe(record)
        here = owner is not None and self._incarnation is not None and owner.incarnation == self._incarnation.id
        return AgentLoopInfo(conversation_id, word, record.epoch, owner, here)

    async def _record(self, conversation_id: str) -> Record:
        record = (await self.store.records([conversation_id]))[0]
        if record is None:
            raise UnknownConversationError(conversation_id)
        if record.deleted:
            raise ConversationDeletedError(conversation_id)
        return record

    async def start_info(self, conversation_id: str) -> StartInfo:
        """How the start of a conversation does, on whichever node: the step, since when, why the last try failed.

        :raises UnknownConversationError: there is none. :raises ConversationDeletedError: there was one.
        """
        record = await self._record(conversation_id)
        return await start_info(self.store, record, *await self.describe(record))

    async def describe(self, record: Record) -> tuple[Status, Owner | None]:
        """The status of a record, and its owner if it lives, with what is left of its lease."""
        owner = record.owner
        node = (await self.living()).get(owner.incarnation) if owner is not None else None
        if owner is not None and node is None:  # registered since we looked
            node = (await self.living(at_most_s=0)).get(owner.incarnation)
        alive = node is not None and not node.dead and node.expires_in_s > 0
        if owner is None or node is None or not alive:
            return status(record, owner_alive=False), None
        return status(record, owner_alive=True), replace(owner, expires_in_s=node.expires_in_s)

    async def living(self, at_most_s: float = DIRECTORY_S) -> Mapping[IncarnationId, NodeRecord]:
        """The register, at most `at_most_s` old."""
        now = self.clock.boottime().boot_s
        read_at, nodes = self._living
        if now - read_at > at_most_s:
            nodes = {n.incarnation: n for n in await self.store.nodes()}
            self._living = (now, nodes)
        return nodes

    async def activity(self) -> Activity:
        """What happened in the cluster over the last hour, as every node left it in the store, and this one as of now.

        :raises StoreUnavailableError: it cannot be read.
        """
        incarnation = self._incarnation
        mine = None if incarnation is None else (incarnation.id, incarnation.activity)
        return await last_hour(self.store, mine, self.clock.now())

    def forget(self, conversation_id: str, epoch: Epoch) -> None:
        """A deleted conversation's workspace goes at once, not with the reaper's next round, which finds runtimes alone.
        `epoch` is its last before the deletion. Best effort, in the background."""
        work = forget(self.facts, self.provider, self._identity, conversation_id, epoch)
        self.tasks.start(work, f"forget {conversation_id}")

    # --- leaving ----------------------------------------------------------------------------------------------------

    async def request_drain(self, node: str) -> int:
        """Ask every living incarnation of the node of that name to drain; how many were asked."""
        asked = 0
        for one in (await self.living(at_most_s=0)).values():
            if one.about.node == node and not one.dead and one.expires_in_s > 0:
                await self.store.put_paper(REQUEST, f"{one.incarnation}/drain", {"what": "drain"}, 0)
                asked += 1
        return asked

    async def _hear_requests(self, incarnation: Incarnation) -> None:
        for paper in await self.store.list_papers(REQUEST, f"{incarnation.id}/"):
            await self.store.remove_paper(paper.kind, paper.id, paper.version)
            match paper.document:
                case {"what": "drain"}:
                    self.tasks.start(self.drain(), "drain")
                case {"what": "look", "conversation": str(conversation_id)}:
                    await initiation.agreed(incarnation, conversation_id)
                case other:
                    self.facts.tell(facts.RequestUnknown(str(other)[:200]))

    async def drain(self, deadline_s: float | None = None) -> None:
        """Leave: not ready, no new claims, turns run to the deadline, the rest is handed over, released, retired.

        Asked again, it joins the drain under way; it is not cancelled with its caller.
        """
        if self._leaving is None:
            limit_s = self.config.drain_s if deadline_s is None else deadline_s
            self._leaving = self.tasks.start(self._drain(limit_s), "drain")
        await settled(self._leaving)

    async def _drain(self, deadline_s: float) -> None:
        incarnation = self._incarnation
        if incarnation is not None and not incarnation.over.is_set():
            await drain(incarnation, deadline_s)
            if incarnation.table:
                self._kill_now()
            incarnation.retire()
        await self._end_life()
        self.drained.set()
        self.facts.tell(facts.Drained(self.config.node))

    async def elsewhere(self) -> tuple[str, ...]:
        """Addresses of other nodes that take work now; none while the store does not answer."""
        try:
            nodes = (await self.living()).values()
        except StoreError:
            return ()
        return places(nodes, but=self.config.node)

    def _here(self) -> Incarnation:
        if self._incarnation is None or self._incarnation.given_up or self._incarnation.retired:
            raise NodeUnavailableError(f"node {self.config.node} holds no lease at the moment")
        return self._incarnation

    def _about(self) -> About:
        return About(
            node=self.config.node,
            address=self.config.public_address,
            capacity=self.config.capacity,
            agents=tuple(self.agents),
            started_at=self.clock.now(),
        )
