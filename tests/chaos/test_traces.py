"""A turn's traces as a collector takes them, from two processes, the first of which is killed in the middle of a call."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tenure.testing.processes import NodeProcess, NodeProcesses

PATIENCE_S = 60.0
CALLER, LATER = (f"00-{trace:032x}-{0xCAFE:016x}-01" for trace in (0xCA11E2, 0x1A7E2))
SECRET = "hunter2"
PATIENT = [{"run": "echo first"}, {"run": "sleep 300"}]
"""A call that ends and is sent, and one in whose middle its node dies."""


class Collector:
    """What an OTLP endpoint was sent, span by span, with the node that sent it."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            about = {one.key: one.value.string_value for one in resource.resource.attributes}
            assert about["service.name"] == "tenure"
            node = about["service.instance.id"]
            self.spans += [(node, span) for scope in resource.scope_spans for span in scope.spans]

    async def one(self, name: str, node: str, **wanted: object) -> Span:
        """The one span of this name and these attributes (``epoch=2``), as soon as the node has sent it."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := [span for sender, span in self.spans if sender == node and fits(span, name, wanted)]):
                await asyncio.sleep(0.02)
        [span] = found
        return span


def about(span: Span) -> dict[str, object]:
    return {one.key: one.value.int_value or one.value.string_value for one in span.attributes}


def fits(span: Span, name: str, wanted: dict[str, object]) -> bool:
    return (
        span.name == name and {f"tenure.{key}": value for key, value in wanted.items()}.items() <= about(span).items()
    )


def is_child(span: Span, of: Span) -> bool:
    return (span.trace_id, span.parent_span_id) == (of.trace_id, of.span_id)


def links(span: Span) -> list[tuple[bytes, bytes]]:
    return [(link.trace_id, link.span_id) for link in span.links]


@contextmanager
def collecting() -> Iterator[tuple[str, Collector]]:
    """An OTLP/HTTP receiver on this machine: its URL, and what it takes."""
    collector = Collector()

    class Receiving(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
            collector.take(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiving) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", collector
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def nodes() -> Iterator[NodeProcesses]:
    with NodeProcesses() as nodes:
        yield nodes


async def test_from_the_request_to_the_call_and_over_a_takeover_by_a_link(nodes: NodeProcesses, tmp_path: Path):
    with collecting() as (url, collector):
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        first, second = (a_node(nodes, tmp_path, name, environ) for name in ("first", "second"))
        await first.start()
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=PATIENCE_S) as http:
            await http.post(f"{first.url}/conversations", json={"id": "c1"})
            say = f"{first.url}/conversations/c1/messages"
            words = {"text": SECRET, "content": {"script": [{"run": "echo hello"}]}}
            done = await http.post(f"{say}?wait_s=40", json=words, headers={"traceparent": CALLER})
            assert done.status_code == 200, done.text
            await the_first_chain(collector)
            later = await http.post(
                say, json={"text": SECRET, "content": {"script": PATIENT}}, headers={"traceparent": LATER}
            )
            assert later.status_code == 202, later.text
            sent = await collector.one("tenure.call", "first", turn=f"t{later.json()['seq']}")
            await second.start()
            first.kill()
            await the_takeover(collector, sent)
    assert SECRET not in str(collector.spans)


def a_node(nodes: NodeProcesses, folder: Path, name: str, environ: dict[str, str]) -> NodeProcess:
    url, ours = f"sqlite:///{folder}/store.db", ["--ttl-s", "2"]
    node = NodeProcess(name, store=url, folder=folder, agents=["scripted"], options=ours, environ=environ)
    return nodes.add(node)


async def the_first_chain(collector: Collector) -> None:
    """Request, claim, provisioning, turn, call: one trace, the caller's."""
    request = await collector.one("POST /conversations/{id}/messages", "first")
    claim, provision, turn, call = [
        await collector.one(f"tenure.{name}", "first", epoch=1) for name in ("claim", "provision", "turn", "call")
    ]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == tuple(CALLER.split("-")[1:3])
    assert request.kind == Span.SPAN_KIND_SERVER
    assert is_child(claim, request) and is_child(provision, claim)
    assert is_child(turn, request) and is_child(call, turn)
    assert {"provision", "configure", "loop"} <= {event.name for event in provision.events}
    assert about(turn)["tenure.outcome"] == "completed" and about(call)["tenure.outcome"] == "finished"
    for span in (request, claim, provision, turn, call):
        assert span.status.code != Status.STATUS_CODE_ERROR
        assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano


async def the_takeover(collector: Collector, sent: Span) -> None:
    """A trace of its own. Its turn links to the first attempt, which nobody sent: the call that was sent names it."""
    claim, provision, turn = [
        await collector.one(f"tenure.{name}", "second", epoch=2) for name in ("claim", "provision", "turn")
    ]
    assert sent.trace_id.hex() == LATER.split("-")[1]
    assert about(claim)["tenure.claim.why"] == "takeover" and about(claim)["tenure.claim.death"] == "exited"
    assert claim.parent_span_id == b"" and is_child(provision, claim) and is_child(turn, claim)
    assert about(turn)["tenure.attempt"] == 2 and about(turn)["tenure.turn"] == about(sent)["tenure.turn"]
    assert links(turn) == [(sent.trace_id, sent.parent_span_id)]
    assert turn.trace_id != sent.trace_id
