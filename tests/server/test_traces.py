"""A request's span, and what becomes of its trace in the node: through the server, with an exporter in memory."""

import contextlib

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tenure.node.traces import Traces
from tenure.server.tracing import Traced

CALLER = f"00-{0xCA11E2:032x}-{0xCAFE:016x}-01"


@pytest.fixture
async def spans(cluster):
    """Node n1's finished spans, by a function."""
    out, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(out))
    await cluster.node(tracer_provider=provider)

    def named(name):
        return [span for span in out.get_finished_spans() if span.name == name]

    return named


async def test_a_trace_goes_from_the_caller_through_the_request_to_the_turn(spans, cluster, eventually):
    http = await cluster.http()
    sent = await http.post(
        "/conversations?user_id=hunter2", json={"id": "c1", "message": "hunter2"}, headers={"traceparent": CALLER}
    )
    assert sent.status_code == 201

    async def turns_ended():
        return spans("tenure.turn")

    await eventually(turns_ended)
    said = await http.post("/conversations/c1/messages?wait_s=20", json={"text": "hunter2", "user_id": "hunter2"})
    assert said.status_code == 200
    [created], [asked] = spans("POST /conversations"), spans("POST /conversations/{id}/messages")

    async def both_ended():
        return len(spans("tenure.turn")) == 2

    await eventually(both_ended)  # the reply may overtake what the node tells
    [claim], turns = spans("tenure.claim"), spans("tenure.turn")
    assert created.parent.span_id == 0xCAFE and created.kind is SpanKind.SERVER and asked.parent is None
    assert claim.parent.span_id == created.context.span_id
    assert [turn.parent.span_id for turn in turns] == [created.context.span_id, asked.context.span_id]
    assert {span.context.trace_id for span in (created, claim, turns[0])} == {0xCA11E2}
    about = dict(asked.attributes)
    assert about == {
        "http.request.method": "POST",
        "http.route": "/conversations/{id}/messages",
        "http.response.status_code": 200,
        "url.path": "/conversations/c1/messages",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "tenure.node": "n1",
        "tenure.conversation": "c1",
    }
    assert "hunter2" not in "".join(span.to_json() for span in [created, asked, claim, *turns])


async def test_refusals_are_no_errors_and_outages_are(spans, cluster):
    http = await cluster.http()
    assert (await http.get("/conversations/nobody")).status_code == 404
    cluster.stores["n1"].down = True
    assert (await http.get("/conversations/nobody")).status_code == 503
    cluster.stores["n1"].down = False
    missed, failed = spans("GET /conversations/{id}")
    assert missed.status.status_code is StatusCode.UNSET
    assert failed.status.status_code is StatusCode.ERROR and failed.attributes["error.type"] == "503"


async def test_what_machines_ask_is_not_traced(spans, cluster):
    http = await cluster.http()
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await http.get(path)).status_code == 200
        assert not spans("GET") and not spans(f"GET {path}")


async def test_the_process_s_own_provider_gets_one_span_a_request(cluster, monkeypatch):
    """FastAPI's own spans, which hold queries, are not made."""
    http = await cluster.http()
    out, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(out))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    assert (await http.get("/conversations/nobody?user_id=hunter2")).status_code == 404
    [span] = out.get_finished_spans()
    assert span.name == "GET /conversations/{id}" and "hunter2" not in span.to_json()


async def test_an_exception_ends_the_span_without_its_words():
    out, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(out))

    async def fails(scope, receive, send):
        raise KeyError("hunter2")

    from tenure.clock import SystemClock

    app = Traced(fails, Traces("n1", SystemClock(), provider))
    with contextlib.suppress(KeyError):
        await app({"type": "http", "method": "BREW", "path": "/x", "headers": []}, None, None)
    [span] = out.get_finished_spans()
    assert span.name == "_OTHER" and span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "KeyError" and "hunter2" not in span.to_json()
