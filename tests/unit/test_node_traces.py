"""Spans of a node: what is whose parent, what a takeover links to, and that nothing is kept or said without a need."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from node_support import Agent, C, Cluster, Provider, call, failing, in_virtual_time, reply, until
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, StatusCode

from tenure import facts
from tenure.abc import RuntimeFailure, Turn
from tenure.clock import SystemClock
from tenure.lease import IncarnationId
from tenure.node.traces import REQUESTS, TRACEPARENT, Traces, from_traceparent, to_traceparent

SECRET = "hunter2"


class Recorded:
    """A provider whose finished spans are at hand."""

    def __init__(self) -> None:
        self._out = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._out))
        self.tracer = self.provider.get_tracer("test")

    def all(self, name: str, **about: object) -> list[ReadableSpan]:
        """Those of this name and these attributes (``epoch=2``), in order of their ends."""
        wanted = {f"tenure.{key}": value for key, value in about.items()}
        return [s for s in self._out.get_finished_spans() if s.name == name and wanted.items() <= _about(s).items()]

    def one(self, name: str, **about: object) -> ReadableSpan:
        [found] = self.all(name, **about)
        return found

    def text(self) -> str:
        return "".join(span.to_json() for span in self._out.get_finished_spans())


def _about(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def ids(context: SpanContext | None) -> tuple[int, int]:
    assert context is not None
    return context.trace_id, context.span_id


def is_child(span: ReadableSpan, of: ReadableSpan) -> bool:
    return span.parent is not None and ids(span.parent) == ids(of.context)


def linked(span: ReadableSpan) -> Sequence[tuple[int, int]]:
    return [ids(link.context) for link in span.links]


async def one_call(turn: Turn) -> None:
    await call(turn, "look")
    await reply(turn)


@in_virtual_time
async def test_one_trace_from_the_request_to_the_call(cluster: Cluster):
    to = Recorded()
    node = await cluster.add(agent=Agent(one_call), tracer_provider=to.provider)
    with to.tracer.start_as_current_span("request"):
        seq = await cluster.say(via=node)
    await until(lambda: cluster.settled(seq) and to.all("tenure.turn"))
    request, claim, provision = to.one("request"), to.one("tenure.claim"), to.one("tenure.provision")
    turn, called = to.one("tenure.turn"), to.one("tenure.call")
    assert (
        is_child(claim, request) and is_child(provision, claim) and is_child(turn, request) and is_child(called, turn)
    )
    assert {"provision", "boot", "configure", "loop"} <= {event.name for event in provision.events}
    for span in (claim, provision, turn, called):
        assert {"tenure.conversation": C, "tenure.epoch": 1, "tenure.node": "n1"}.items() <= _about(span).items()
        assert span.status.status_code is StatusCode.UNSET
        assert span.start_time is not None and span.end_time is not None and span.start_time <= span.end_time
    assert _about(called)["tenure.call.name"] == "t2.look" and _about(called)["tenure.outcome"] == "finished"
    assert _about(turn)["tenure.outcome"] == "completed" and linked(turn) == [ids(claim.context)]
    [started] = cluster.events("turn_started")
    assert turn.context is not None and started.body["traceparent"] == to_traceparent(turn.context)


@in_virtual_time
async def test_a_takeover_is_a_trace_of_its_own_with_a_link_to_the_first_attempt(cluster: Cluster):
    to = Recorded()
    hangs = Agent(lambda turn: call(turn, "slow", work=for_ever()))
    first = await cluster.add("a", hangs, tracer_provider=to.provider)
    with to.tracer.start_as_current_span("request"):
        seq = await cluster.say(via=first)
    await until(lambda: cluster.events("call_started"))
    [started] = cluster.events("turn_started")
    first.kill()
    await cluster.add("b", Agent(), tracer_provider=to.provider)
    await until(lambda: cluster.settled(seq) and to.all("tenure.turn"), 60)
    request, resumed, claim = to.one("request"), to.one("tenure.turn"), to.one("tenure.claim", epoch=2)
    assert _about(resumed)["tenure.attempt"] == 2 and _about(resumed)["tenure.node"] == "b"
    assert is_child(resumed, claim) and is_child(to.one("tenure.provision", epoch=2), claim) and claim.parent is None
    assert _about(claim)["tenure.claim.death"] == "expired"
    was = from_traceparent(started.body["traceparent"])
    assert was is not None and linked(resumed) == [ids(was)]
    assert request.context is not None and was.trace_id == request.context.trace_id  # where the first attempt is found
    assert resumed.context is not None and resumed.context.trace_id != was.trace_id
    [again] = cluster.events("turn_resumed")
    assert again.body["traceparent"] == to_traceparent(resumed.context)
    cluster.fold()


async def for_ever() -> None:
    await until(lambda: False, 1e6)


@in_virtual_time
async def test_what_nobody_asked_for_here_begins_with_its_claim(cluster: Cluster):
    """Through another node, or straight into the store: the claim is the root; the next turn has a trace of its own."""
    to = Recorded()
    await cluster.add(tracer_provider=to.provider)
    await cluster.say()
    last = await cluster.say()
    await until(lambda: cluster.settled(last) and len(to.all("tenure.turn")) == 2)
    claim, (first, second) = to.one("tenure.claim"), to.all("tenure.turn")
    assert claim.parent is None and is_child(first, claim)
    assert second.parent is None and linked(second) == [ids(claim.context)]


@in_virtual_time
async def test_failures_are_errors_and_carry_no_words(cluster: Cluster):
    to = Recorded()
    provider = Provider(at={"configure": failing(RuntimeFailure(SECRET, step="configure", permanent=True))})
    await cluster.add("a", provider=provider, tracer_provider=to.provider)
    await cluster.say(SECRET)
    failed = (await until(lambda: to.all("tenure.provision")))[0]
    assert failed.status.status_code is StatusCode.ERROR and _about(failed)["tenure.step"] == "configure"
    provider.at.clear()

    async def fail(turn: Turn) -> None:
        await call(turn, "look")
        raise RuntimeError(SECRET)

    await cluster.add("b", agents={"echo": Agent(fail)}, tracer_provider=to.provider)
    cluster.members[0].kill()
    await cluster.say(SECRET, "c2")
    turn = (await until(lambda: to.all("tenure.turn", conversation="c2"), 60))[0]
    assert turn.status.status_code is StatusCode.ERROR and _about(turn)["tenure.outcome"] == "failed"
    assert SECRET not in to.text()


@in_virtual_time
async def test_a_lost_tenure_ends_its_spans_as_errors(cluster: Cluster):
    to = Recorded()
    node = await cluster.add(agent=Agent(lambda turn: call(turn, "slow", work=for_ever())), tracer_provider=to.provider)
    await cluster.say(via=node)
    await until(lambda: cluster.events("call_started"))
    await cluster.store.register(IncarnationId("thief"), node.node._about(), 60.0)
    await cluster.claim_as("thief", forced=True, epoch=1)
    node.tenure().hear()
    turn = (await until(lambda: to.all("tenure.turn")))[0]
    assert turn.status.status_code is StatusCode.ERROR and _about(turn)["tenure.outcome"] == "lost"
    assert _about(to.one("tenure.call"))["tenure.outcome"] == "interrupted"
    assert not node.node.traces._held


@in_virtual_time
async def test_spans_of_the_agent_are_children_of_its_turn(cluster: Cluster):
    to = Recorded()

    async def thinks(turn: Turn) -> None:
        with to.tracer.start_as_current_span("think"):
            await reply(turn)

    await cluster.add(agent=Agent(thinks), tracer_provider=to.provider)
    await cluster.say()
    await until(lambda: to.all("tenure.turn"))
    assert is_child(to.one("think"), to.one("tenure.turn"))


@in_virtual_time
async def test_without_an_sdk_nothing_is_journaled_or_kept(cluster: Cluster):
    node = await cluster.add()
    seq = await cluster.say(via=node)
    await until(lambda: cluster.settled(seq))
    assert [e.body for e in cluster.events("turn_started")] == [{"commands": [seq], "attempt": 1}]
    assert not node.node.traces.on and not node.node.traces._held and not node.node.traces._requests


@in_virtual_time
async def test_a_broken_trace_in_the_journal_breaks_no_turn(cluster: Cluster):
    to = Recorded()
    first = await cluster.add("a", Agent(lambda turn: call(turn, "slow", work=for_ever())), tracer_provider=to.provider)
    seq = await cluster.say(via=first)
    await until(lambda: cluster.events("call_started"))
    first.kill()
    events = cluster.disk.conversations[C].events
    at = next(n for n, e in enumerate(events) if e.kind == "turn_started")
    events[at] = replace(events[at], body={**events[at].body, "traceparent": {"not": "one"}})
    await cluster.add("b", Agent(), tracer_provider=to.provider)
    await until(lambda: cluster.settled(seq) and to.all("tenure.turn"), 60)
    assert linked(to.one("tenure.turn")) == []


def test_requests_are_remembered_within_a_bound():
    to = Recorded()
    traces = Traces("n1", SystemClock(), to.provider)
    with to.tracer.start_as_current_span("request"):
        for seq in range(REQUESTS + 10):
            traces.hear(facts.Accepted(C, "message", seq, duplicate=False))
    assert len(traces._requests) == REQUESTS and (C, 9) not in traces._requests
    assert trace.get_current_span().get_span_context().is_valid is False


@pytest.mark.parametrize(
    "text",
    [None, 7, "", "00-0-0-0", f"00-{0:032x}-{1:016x}-01", f"01-{1:032x}-{1:016x}-01", f"00-{1:032x}-{1:016x}-01\n"],
)
def test_what_is_no_traceparent_is_passed_over(text: object):
    assert from_traceparent(text) is None


def test_a_traceparent_is_read_as_it_was_written():
    text = f"00-{0xABC:032x}-{0xDEF:016x}-01"
    context = from_traceparent(text)
    assert context is not None and to_traceparent(context) == text and len(text) == 55 and TRACEPARENT.fullmatch(text)
