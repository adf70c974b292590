"""The fault menu at random: real nodes under load, every kind of fault at once, and the judgement at the end of each round.

    python tests/chaos/combined.py --store redis --seed 7 --faults 1000 --minutes 60

A run is a sequence of rounds on one cluster. In a round one drum per target (each node, its two ways, the store) draws
faults from the round's seed and beats them, whatever the other drums do, while clients talk. Then the faults end, and
within a bound everything must come to rest, with every promise kept: that is a round's verdict. What the drums draw is a
function of the seed alone (``--seed 7.12`` begins with round 12 of seed 7); when exactly the kernel runs whom is not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE / "nodeside")]

import httpx  # noqa: E402
from backings import BACKINGS  # noqa: E402
from menu import Fault, offered  # noqa: E402
from world import World, world  # noqa: E402

from tenure.client import Client  # noqa: E402
from tenure.errors import StoreError, TenureError  # noqa: E402
from tenure.journal import TURN_ENDS, Claimed, Event, read_body  # noqa: E402
from tenure.testing.history import Attempt, History, Journal, Look, Start  # noqa: E402
from tenure.testing.processes import NodeEndedError, NodeProcess  # noqa: E402

NAMES = ("a", "b", "c")
TTL_S = 1.5
OPTIONS = ("--sweep-s", "0.3", "--backoff-s", "0.1", "--idle-s", "2")
ROUND = 100
"""Faults of a round."""
CLIENTS, FOLLOWERS = 10, 3
GAP_S = (0.3, 2.7)
CALM_S = 180.0
"""The bound on the way to rest after the last fault, with room for a noisy machine. What it took is in the report."""
SILENCE_S, LONGEST_SILENCE_S = 2.0, 8.0
"""How long a reader waits for the next event before it asks another node; longer each time that nothing came. A node
that has no hints looks every 1.5 s by itself: on a starved machine a reader with no more patience than that never hears it."""
ENDS = {0, 75, -9}
"""How a node may end here: drained; its loops did not end in time; killed."""
FALSE_STARTS = {1, 5, -15}
"""And one that was never ready: the store was away, or it was told to leave before it could listen."""
TAKEN = {"kill": "witness", "kill-both": "ttl", "freeze": "ttl", "blocked-interpreter": "ttl"}
"""Faults after which the owner is gone, and who finds out."""


class BrokenError(AssertionError):
    """A promise was broken; the message has the timeline of the round, and how to play it again."""


def plan(seed: str, store: str, target: str) -> Iterator[tuple[float, Fault, float]]:
    """What one drum draws: (pause, fault, how long it holds), in seconds, without end. Pure."""
    kind = target.partition(" ")[0]
    rng = random.Random(f"{seed}/{target}")
    menu = offered(store, kind)
    while menu:
        [drawn] = rng.choices(menu, [one.weight for one in menu])
        yield rng.uniform(*GAP_S), drawn, rng.uniform(*drawn.hold) * TTL_S


def targets(store: str) -> list[str]:
    """One drum each."""
    kinds = [kind for kind in ("node", "way", "front") if offered(store, kind)]
    return ["store", *(f"{kind} {name}" for kind in kinds for name in NAMES)]


@dataclass
class Report:
    """What was done, and what was seen. Times in seconds."""

    store: str
    seed: str
    faults: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    seconds: float = 0.0
    conversations: int = 0
    accepted: int = 0
    again: int = 0
    """Of these: found to be accepted before, under the same key, when the answer had been lost."""
    turns: int = 0
    calls: int = 0
    effects: int = 0
    starts: int = 0
    claims: int = 0
    refused: int = 0
    given_up: int = 0
    """Starts that failed for good, after too many lost owners, and were asked for anew when the faults were over."""
    exits: Counter[str] = field(default_factory=Counter)
    calms: list[float] = field(default_factory=list)
    takeovers: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def lines(self, verdict: str = "no violation") -> Iterator[str]:
        yield f"store {self.store}, seed {self.seed}: {sum(self.faults.values())} faults in {self.rounds} rounds, {self.seconds:.0f} s, {verdict}"
        yield "faults: " + ", ".join(f"{name} {n}" for name, n in sorted(self.faults.items()))
        yield (
            f"{self.conversations} conversations, {self.accepted} messages accepted ({self.again} found again by key after a lost answer), "
            f"{self.turns} turns ended, {self.calls} tool calls begun, {self.effects} side effects, {self.starts} starts asked, "
            f"{self.claims} claims, {self.refused} late writes refused by the store, {self.given_up} starts failed for good and asked for anew"
        )
        yield "ends of node processes: " + ", ".join(f"{name} {n}" for name, n in sorted(self.exits.items()))
        yield f"from the last fault of a round to rest: {_percentiles(self.calms)}"
        for kind, seconds in sorted(self.takeovers.items()):
            yield f"takeover of an open turn, from {kind} to the claim: {_percentiles(seconds)}"


def _percentiles(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    ranked = sorted(seconds)
    at = {p: ranked[min(len(ranked) - 1, int(len(ranked) * p / 100))] for p in (50, 90, 99)}
    return ", ".join(f"p{p} {s:.2f} s" for p, s in at.items()) + f", max {ranked[-1]:.2f} s ({len(ranked)})"


class Run:
    """A cluster that lives through rounds."""

    def __init__(
        self, one: World, seed: str, on_round: Callable[[Report], None], before_verdict: Callable[[Run], None]
    ) -> None:
        self.one = one
        self.on_round = on_round
        self.before_verdict = before_verdict
        self.seed, _, begin = seed.partition(".")
        self.begin = int(begin or 0)
        self.report = Report(one.backing.name, seed)
        self.down: set[str] = set()
        """Nodes that a fault keeps from being started."""
        self.timeline: list[str] = []
        self.unexpected: list[str] = []
        self._followed: dict[str, list[Event]] = {}
        self._began = time.monotonic()
        self._struck: list[tuple[float, str, str]] = []
        """(wall time, incarnation, fault): what takes an owner away."""

    def note(self, what: str) -> None:
        self.timeline.append(f"{time.monotonic() - self._began:9.3f} {what}")

    async def play(self, faults: int, seconds: float) -> Report:
        """Round after round until there were so many faults, or so much time has passed."""
        self.one.http.timeout = httpx.Timeout(3.0)
        self.one.patience_s = CALM_S
        for name in NAMES:
            await self.one.parted_node(name)
        await self.one.nodes.start()
        self._began = time.monotonic()
        watching = asyncio.create_task(self._keep_up())
        try:
            for number in itertools.count(self.begin):
                left = faults - sum(self.report.faults.values())
                if left <= 0 or time.monotonic() - self._began >= seconds:
                    break
                await self._round(number, min(left, ROUND))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        self.report.seconds = time.monotonic() - self._began
        return self.report

    async def _round(self, number: int, faults: int) -> None:
        self.timeline = []
        self._struck = []
        seed = f"{self.seed}.{number}"
        hush, budget = asyncio.Event(), itertools.count(1)
        prefix = f"r{number}"
        try:
            async with asyncio.TaskGroup() as group:
                for place in range(CLIENTS):
                    rng = random.Random(f"{seed}/client {place}")
                    group.create_task(self._talk(self.one.fresh(prefix), rng, hush, follow=place < FOLLOWERS))
                drums = [
                    group.create_task(self._drum(seed, target, lambda: next(budget) <= faults))
                    for target in targets(self.report.store)
                ]
                await asyncio.gather(*drums)
                self.note("calm")
                hush.set()
            await self._calm()
            self.before_verdict(self)
            await self._judge()
        except (AssertionError, ExceptionGroup) as error:
            raise BrokenError(self._told(seed, error)) from error
        self.report.rounds += 1
        self.on_round(self.report)

    def _told(self, seed: str, error: Exception) -> str:
        self.report.seconds = time.monotonic() - self._began
        whole = _leaves(error)
        lines = ["the timeline of the round (seconds):", *self.timeline, "", *whole, ""]
        lines += [*self.one.backing.describe(), ""]
        lines += ["up to then:", *self.report.lines(f"a promise broken in round {seed}"), ""]
        lines.append(
            f"again: python tests/chaos/combined.py --store {self.report.store} --seed {seed} --faults {ROUND}"
        )
        return "\n".join(lines)

    # --- faults -----------------------------------------------------------------------------------------------------

    async def _drum(self, seed: str, target: str, more) -> None:
        _, _, name = target.partition(" ")
        node = self.one.nodes[name or NAMES[0]]
        for pause, fault, hold_s in plan(seed, self.report.store, target):
            await asyncio.sleep(pause)
            if not more():
                return
            if target.startswith("node") and not await self._is_up(node):
                self.note(f"{target}: not up again; {fault.name} finds it so")
            self.note(f"{target}: {fault.name}, for {hold_s:.2f} s")
            if fault.name in TAKEN:
                await self._strikes(node, fault)
            if fault.ends:
                self.down.add(node.name)
            async with fault.inject(self.one, node, hold_s):
                await asyncio.sleep(hold_s)
            self.down.discard(node.name)
            self.note(f"{target}: {fault.name} is over")
            self.report.faults[fault.name] += 1

    async def _strikes(self, node: NodeProcess, fault: Fault) -> None:
        """Remember whom a fault takes away, to measure the takeovers that follow."""
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(0.2):
                living = [
                    n.incarnation for n in await self.one.store.nodes() if n.about.node == node.name and not n.dead
                ]
            self._struck += [(time.time(), incarnation, fault.name) for incarnation in living]

    async def _is_up(self, node: NodeProcess) -> bool:
        """A node that was just started gets its time, mostly: else nobody would ever serve."""
        with contextlib.suppress(NodeEndedError):
            await node.ready(15)
            return True
        return False

    async def _keep_up(self) -> None:
        """What a service manager does: start again what has ended."""
        while True:
            for node in self.one.nodes:
                if not node.running and node.name not in self.down:
                    self._ended(node)
                    node.spawn()
                    self.note(f"node {node.name}: started again")
            await asyncio.sleep(0.05)

    def _ended(self, node: NodeProcess) -> None:
        self.report.exits[str(node.exit_code)] += 1
        self.note(f"node {node.name}: ended with {node.exit_code}")
        if node.exit_code not in ENDS and (node.announced or node.exit_code not in FALSE_STARTS):
            self.note(f"node {node.name}: UNEXPECTED END\n{node.log[-3000:]}")
            self.unexpected.append(f"node {node.name} ended with {node.exit_code}")

    # --- load -------------------------------------------------------------------------------------------------------

    async def _talk(self, conversation: str, rng: random.Random, hush: asyncio.Event, *, follow: bool) -> None:
        """One message after the other, at any node; now and then a start, a look, or a conversation of one message."""
        one = self.one
        await one.create(conversation, *self._anybody(rng))
        following = asyncio.create_task(self._follow(conversation, rng)) if follow else None
        try:
            while not hush.is_set():
                order = {"between_s": rng.uniform(0.05, 0.5)} | ({"hog_mib": 512} if rng.random() < 0.1 else {})
                await one.send(conversation, f"say {rng.random():.6f}", *self._anybody(rng), **order)
                await self._settled(conversation, hush)
                chance = rng.random()
                if chance < 0.15:
                    await self._start(conversation, rng)
                elif chance < 0.3:
                    await self._look(conversation, rng)
                elif chance < 0.4:
                    await one.send_new(one.fresh("flash"), "once", *self._anybody(rng))
            if following is not None:
                await self._told_all(conversation)
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    def _anybody(self, rng: random.Random) -> list[NodeProcess]:
        return rng.sample(list(self.one.nodes), len(NAMES))

    async def _settled(self, conversation: str, hush: asyncio.Event) -> None:
        """Wait for the answer, not for long."""
        deadline = time.monotonic() + 2 * TTL_S
        while time.monotonic() < deadline and not hush.is_set():
            with contextlib.suppress(StoreError):
                [record] = await self.one.store.records([conversation])
                if record is not None and record.unsettled == 0:
                    return
            await asyncio.sleep(0.1)

    async def _start(self, conversation: str, rng: random.Random) -> None:
        """Ask one node to run it here, and keep what it says."""
        node, began = self._anybody(rng)[0], time.monotonic()
        path = f"{self.one.url_of(node)}/conversations/{conversation}/start"
        with contextlib.suppress(httpx.TransportError):
            reply = await self.one.http.post(path, params={"here": "true"}, json={})
            assert reply.status_code != 500, f"a start at {node.name} was answered with {reply.text[:200]}"
            told = reply.json()
            owner = told.get("owner") or {}
            outcome = "no"
            if owner and reply.status_code in (200, 409):
                outcome = "here" if told.get("here") else "elsewhere"
            epoch = told.get("epoch", owner.get("epoch"))
            ended = time.monotonic()
            self.one.history.add(Start(conversation, node.url, began, ended, outcome, epoch, owner.get("incarnation")))

    async def _look(self, conversation: str, rng: random.Random) -> None:
        """Read some of it through any node."""
        node = self._anybody(rng)[0]
        with contextlib.suppress(httpx.TransportError):
            path = f"{self.one.url_of(node)}/conversations/{conversation}/events"
            reply = await self.one.http.get(path, params={"after": rng.randrange(8)})
            if reply.status_code == 200:
                self._saw(conversation, node.name, [Event.from_json(e) for e in reply.json()["events"]])

    def _saw(self, conversation: str, by: str, events: list[Event]) -> None:
        shown = tuple((int(e.seq), e.epoch, e.kind) for e in events)
        self.one.history.add(Look(conversation, by, time.monotonic(), shown))

    async def _follow(self, conversation: str, rng: random.Random) -> None:
        """A reader who changes its node whenever one is silent. Each event once, in order, without a gap."""
        seen: list[Event] = []
        silence_s = SILENCE_S
        self._followed[conversation] = seen
        urls = [self.one.url_of(node) for node in self._anybody(rng)]
        async with Client(urls, rng=rng, patience_s=600) as client:
            while True:
                stream = client.stream(conversation, len(seen))
                with contextlib.suppress(TimeoutError, TenureError):
                    while True:
                        async with asyncio.timeout(silence_s):
                            told = await anext(stream)
                        silence_s = SILENCE_S
                        if isinstance(told, Event):
                            assert told.seq == len(seen) + 1, f"the stream told {told.seq} after {len(seen)}"
                            seen.append(told)
                silence_s = min(2 * silence_s, LONGEST_SILENCE_S)
                await client.next_node(0)

    async def _told_all(self, conversation: str) -> None:
        """Whoever followed has seen all there is, as soon as there is rest."""
        again = await self.one.quiescent({conversation})  # what failed for good meanwhile is asked for anew
        self.report.given_up += again
        seen, state = self._followed[conversation], ""

        async def whole() -> bool:
            nonlocal state
            with contextlib.suppress(StoreError):
                [record] = await self.one.store.records([conversation])
                assert record is not None, f"{conversation} was created"
                state = f"head {record.head}, unsettled {record.unsettled}, seen {len(seen)}, owner {record.owner}"
                return not record.unsettled and len(seen) >= record.head
            return False

        try:
            await self.one.until(whole, "all to be told")
        except AssertionError:
            raise AssertionError(f"the stream of {conversation} does not tell all: {state}") from None
        self._saw(conversation, "stream", self._followed[conversation])

    # --- the verdict of a round -------------------------------------------------------------------------------------

    async def _calm(self) -> None:
        """No more faults: everybody comes up, and everything that was accepted is settled."""
        began = time.monotonic()
        for node in self.one.nodes:
            while not await self._is_up(node):
                assert time.monotonic() - began < CALM_S, f"{node.name} does not come up: {node.log[-3000:]}"
        await self.one.answers()
        self.report.given_up += await self.one.quiescent()
        self.report.calms.append(time.monotonic() - began)
        self.note("rest")
        assert not self.unexpected, "\n".join(self.unexpected)

    async def _judge(self) -> None:
        one, report = self.one, self.report
        await one.judge()
        journals = one.history.of(Journal)
        attempts = one.history.of(Attempt)
        report.conversations += len(journals)
        report.accepted += len(attempts)
        report.again += sum(attempt.outcome == "duplicate" for attempt in attempts)
        report.starts += len(one.history.of(Start))
        report.effects += len(one.effects())
        for journal in journals:
            report.turns += sum(event.kind in TURN_ENDS for event in journal.events)
            report.calls += sum(len(event.opens) for event in journal.events)
            report.claims += sum(event.kind == Claimed.kind for event in journal.events)
            report.refused += len(await one.store.refusals(journal.conversation))
            self._measure(journal)
        one.history, one.conversations = History(), set()
        one.effects_file.write_text("")

    def _measure(self, journal: Journal) -> None:
        """Takeovers of open turns, from the fault on their owner's node. A claim by a node whose wall clock was
        stepped tells no time, and is left out."""
        turn = False
        for event in journal.events:
            body = read_body(event)
            if event.kind == "turn_started":
                turn = True
            elif event.kind in TURN_ENDS:
                turn = False
            elif isinstance(body, Claimed) and body.previous and turn:
                at = event.at.unix_s
                struck = [(at - when, what) for when, who, what in self._struck if who == body.previous and when <= at]
                if struck and min(struck)[0] < CALM_S:
                    since, what = min(struck)
                    self.report.takeovers[f"{what} ({TAKEN[what]})"].append(since)


def _leaves(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [line for one in error.exceptions for line in _leaves(one)]
    return [f"{type(error).__name__}: {error}"]


def _nothing(_: object) -> None:
    """Whoever wants nothing of it."""


async def combined(
    folder: Path,
    store: str,
    seed: str,
    faults: int,
    seconds: float,
    on_round: Callable[[Report], None] = _nothing,
    before_verdict: Callable[[Run], None] = _nothing,
) -> Report:
    """A run on a cluster of its own. `on_round` hears of each round, `before_verdict` may touch what is judged.

    :raises BrokenError: a promise was broken.
    """
    async with world(folder, store, small_disk=True, ttl_s=TTL_S, drain_s=1.0, options=OPTIONS) as one:
        return await Run(one, seed, on_round, before_verdict).play(faults, seconds)


def _progress(report: Report) -> None:
    print(f"round {report.rounds}: {sum(report.faults.values())} faults, {report.accepted} messages", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=sorted(BACKINGS), action="append")
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**6)))
    parser.add_argument("--faults", type=int, default=10**9)
    parser.add_argument("--minutes", type=float, default=60.0)
    given = parser.parse_args()
    for store in given.store or BACKINGS:
        folder = Path(tempfile.mkdtemp(prefix=f"tenure-chaos-{store}-"))
        print(f"{store}: seed {given.seed}, in {folder}", flush=True)
        try:
            report = asyncio.run(combined(folder, store, given.seed, given.faults, given.minutes * 60, _progress))
        except BrokenError as error:
            print(error, flush=True)
            return 1
        print("\n".join(report.lines()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
