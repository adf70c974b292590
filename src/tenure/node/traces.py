"""OpenTelemetry spans of a node, made of its facts: claim, provisioning, turn, call.

::

    HTTP request ──> tenure.claim ──> tenure.provision (its steps are events)
          └────────> tenure.turn ──> tenure.call …        taken over: claim ──> provision, turn (link ──> first attempt)

A command's request is known here if it came through this node: its turn is then part of the request's trace. The first
turn that a tenure takes up for anybody else is part of its claim's trace; later ones begin traces of their own, with a link
to the claim. A turn's context stands in the journal (`traceparent`), so that whoever takes it over links to it.

Spans name conversations, epochs, turns, calls and steps; never what was said, and never an error's words. Without an SDK
nothing is made or kept. Facts of conversations are told in the event loop, so nothing here is locked.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, ProxyTracerProvider, Span, SpanContext, StatusCode, TraceFlags

from tenure import facts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from opentelemetry.trace import TracerProvider

    from tenure.clock import Clock

TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
REQUESTS = 4096
"""So many requests are remembered for the turns and claims that they bring about; then the oldest is forgotten."""
CLAIM_S = 30.0
"""A claim for wanted work is put down to a request that is no older."""

type _Attributes = Mapping[str, str | int]


def to_traceparent(context: SpanContext) -> str:
    """The context as W3C Trace Context writes it: 55 characters."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def from_traceparent(text: object) -> SpanContext | None:
    """The context that a journal holds; null for anything else: nobody may break a turn with it."""
    found = TRACEPARENT.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return context if context.is_valid else None


@final
@dataclass(slots=True)
class _Held:
    """The spans of one tenure: the claim's is over, the others are open."""

    claim: SpanContext
    about: _Attributes
    provision: Span | None = None
    step: str = ""
    turn: Span | None = None
    turns: int = 0
    calls: dict[str, Span] = field(default_factory=dict[str, Span])


@final
class Traces:
    """Hears the facts of one node. `provider` is the process's own if none is given, whenever that is set."""

    def __init__(self, node: str, clock: Clock, provider: TracerProvider | None = None) -> None:
        self.node = node
        self.tracer = trace.get_tracer("tenure", tracer_provider=provider)
        self._given = provider is not None
        self._clock = clock
        self._requests: OrderedDict[tuple[str, int], tuple[SpanContext, int]] = OrderedDict()
        """(conversation, seq of the command; 0 is the last one) → its request, and when."""
        self._held: dict[tuple[str, int], _Held] = {}

    @property
    def on(self) -> bool:
        """Whether somebody records spans."""
        return self._given or not isinstance(trace.get_tracer_provider(), ProxyTracerProvider)

    def now_ns(self) -> int:
        """The node's wall clock, as spans count it."""
        return int(self._clock.now().unix_s * 1e9)

    def turn_context(self, conversation: str, epoch: int) -> str | None:
        """What the journal is to say of the turn that was just taken up; null if it is not recorded."""
        held = self._held.get((conversation, epoch))
        if held is None or held.turn is None or not held.turn.is_recording():
            return None
        return to_traceparent(held.turn.get_span_context())

    def within_turn(self, conversation: str, epoch: int) -> AbstractContextManager[object]:
        """Makes the open turn the parent of whatever spans the agent's own code begins."""
        held = self._held.get((conversation, epoch))
        if held is None or held.turn is None:
            return nullcontext()
        return trace.use_span(held.turn, record_exception=False, set_status_on_exception=False)

    # --- hearing ----------------------------------------------------------------------------------------------------

    def hear(self, fact: facts.Fact) -> None:
        """Make spans of it."""
        if not self.on:
            return
        match fact:
            case facts.Received(conversation=conversation):
                self._remember(conversation, 0)
            case facts.Accepted(conversation=conversation, seq=seq, duplicate=False):
                self._remember(conversation, seq)
            case facts.Claimed():
                self._claimed(fact)
            case facts.Released(conversation=conversation, epoch=epoch, reason=reason):
                self._let_go(conversation, epoch, reason, failed=reason == "failed")
            case facts.Lost(conversation=conversation, epoch=epoch):
                self._let_go(conversation, epoch, "lost", failed=True)
            case _:
                held = self._held.get((getattr(fact, "conversation", ""), getattr(fact, "epoch", 0)))
                if held is not None:
                    self._of_held(held, fact)

    def _of_held(self, held: _Held, fact: facts.Fact) -> None:
        match fact:
            case facts.Provisioning():
                held.provision = self._begin("tenure.provision", held.about, held.claim)
            case facts.StepReached(step=step):
                held.step = step
                if held.provision is not None:
                    held.provision.add_event(step, timestamp=self.now_ns())
            case facts.Provisioned(outcome=outcome) if held.provision is not None:
                held.provision.set_attribute("tenure.runtime.outcome", outcome)
            case facts.Live():
                self._end(held.provision)
                held.provision = None
            case facts.TurnTaken():
                self._take_up(held, fact)
            case facts.TurnEnded(outcome=outcome):
                self._end_turn(held, outcome, failed=outcome == "failed")
            case facts.CallBegun(call=call, turn=turn, tool=name):
                parent = held.claim if held.turn is None else held.turn.get_span_context()
                about = {**held.about, "tenure.turn": turn, "tenure.call": call, "tenure.call.name": name}
                held.calls[call] = self._begin("tenure.call", about, parent)
            case facts.CallEnded(call=call, outcome=outcome):
                self._end(held.calls.pop(call, None), outcome, failed=outcome == "failed")
            case _:
                pass

    def _remember(self, conversation: str, seq: int) -> None:
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return
        self._requests[conversation, seq] = context, self.now_ns()
        self._requests.move_to_end((conversation, seq))
        if len(self._requests) > REQUESTS:
            self._requests.popitem(last=False)

    # --- spans ------------------------------------------------------------------------------------------------------

    def _claimed(self, fact: facts.Claimed) -> None:
        about: _Attributes = {
            "tenure.node": self.node,
            "tenure.conversation": fact.conversation,
            "tenure.epoch": fact.epoch,
        }
        why = {"tenure.claim.why": fact.why, **({} if fact.death is None else {"tenure.claim.death": fact.death})}
        began_ns = self.now_ns() - int(fact.took_s * 1e9)
        span = self._begin("tenure.claim", {**about, **why}, self._asker(fact), start_ns=began_ns)
        self._end(span)
        self._held[fact.conversation, fact.epoch] = _Held(span.get_span_context(), about)

    def _asker(self, fact: facts.Claimed) -> SpanContext | None:
        """The request that the claim answers: the one it is made in, or the last one, if it was just now."""
        current = trace.get_current_span().get_span_context()
        if current.is_valid:
            return current
        context, at_ns = self._requests.pop((fact.conversation, 0), (None, 0))
        recent = self.now_ns() - at_ns <= CLAIM_S * 1e9
        return context if recent and fact.why == "wanted" and fact.death is None else None

    def _take_up(self, held: _Held, fact: facts.TurnTaken) -> None:
        self._end_turn(held, "taken up again")
        request = next((self._requests.pop((fact.conversation, c), None) for c in fact.commands), None)
        first = held.turns == 0
        held.turns += 1
        parent = request[0] if request is not None else held.claim if first else None
        links = [] if parent is held.claim else [held.claim]
        earlier = from_traceparent(fact.earlier)
        links += [] if earlier is None else [earlier]
        about = {**held.about, "tenure.turn": fact.turn, "tenure.attempt": fact.attempt}
        held.turn = self._begin("tenure.turn", about, parent, links)

    def _end_turn(self, held: _Held, outcome: str, *, failed: bool = False) -> None:
        for call in held.calls.values():
            self._end(call, "interrupted")
        held.calls.clear()
        self._end(held.turn, outcome, failed=failed)
        held.turn = None

    def _let_go(self, conversation: str, epoch: int, outcome: str, *, failed: bool) -> None:
        """Whatever is open ends; what was lost or failed is an error."""
        held = self._held.pop((conversation, epoch), None)
        if held is not None:
            self._end_turn(held, outcome, failed=failed)
            if held.provision is not None:
                held.provision.set_attribute("tenure.step", held.step)
            self._end(held.provision, outcome, failed=failed)

    def _begin(
        self, name: str, about: _Attributes, parent: SpanContext | None, links: list[SpanContext] | None = None,
        *, start_ns: int | None = None,
    ) -> Span:  # fmt: skip
        root = Context()
        return self.tracer.start_span(
            name,
            root if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), root),
            attributes=about,
            links=[Link(context) for context in links or () if context.is_valid],
            start_time=self.now_ns() if start_ns is None else start_ns,
        )

    def _end(self, span: Span | None, outcome: str | None = None, *, failed: bool = False) -> None:
        if span is None:
            return
        if outcome is not None:
            span.set_attribute("tenure.outcome", outcome)
        if failed:
            span.set_status(StatusCode.ERROR, outcome)
        span.end(self.now_ns())


def of_node(node: str, clock: Clock, told: facts.Facts, provider: TracerProvider | None) -> Traces:
    """The traces of a node: they hear its facts."""
    traces = Traces(node, clock, provider)
    told.listen(traces.hear)
    return traces
