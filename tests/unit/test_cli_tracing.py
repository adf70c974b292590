"""Whether and where ``tenure serve`` sends spans: the standard variables, a collector that takes them, one that is silent."""

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tenure.cli.tracing import Tracing, tracing_of

ASKED = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    "environ", [{}, {**ASKED, "OTEL_SDK_DISABLED": "true"}, {**ASKED, "OTEL_TRACES_EXPORTER": "none"}]
)
def test_nothing_is_sent_unasked(environ, caplog):
    assert tracing_of(environ, "n1") is None and not caplog.records


def test_without_the_extra_the_log_says_what_to_install(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert tracing_of(ASKED, "n1") is None
    assert "pip install 'tenure[tracing]'" in caplog.text
    assert [getattr(record, "event", "") for record in caplog.records] == ["traces.off"]


def test_a_protocol_that_is_not_spoken_is_named(caplog):
    assert tracing_of({**ASKED, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "n1") is None
    assert "grpc is not spoken here; set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf" in caplog.text


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """An OTLP endpoint; what it was sent."""
    taken: list[ExportTraceServiceRequest] = []

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            taken.append(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            return None

    with HTTPServer(("127.0.0.1", 0), Taking) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", taken
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def tracing_to(monkeypatch):
    """Tracing to an address, ended with the test."""
    made: list[Tracing] = []

    def make(url: str, **more: str) -> Tracing:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "3600000", **more}
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        tracing = tracing_of(environ, "n1")
        assert tracing is not None
        made.append(tracing)
        return tracing

    yield make
    for tracing in made:
        tracing.provider.shutdown()


async def test_what_is_left_is_sent_at_the_end(tracing_to):
    with collector() as (url, taken):
        tracing = await asyncio.to_thread(tracing_to, url, OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test")
        tracing.provider.get_tracer("test").start_span("one").end()
        await tracing.close(10)
        [request] = taken
    [resource] = request.resource_spans
    about = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert (about["service.name"], about["service.instance.id"]) == ("tenure", "n1")
    assert about["deployment.environment.name"] == "test"
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["one"]


async def test_the_environment_names_the_service(tracing_to):
    tracing = await asyncio.to_thread(tracing_to, "http://127.0.0.1:1", OTEL_SERVICE_NAME="fleet")
    assert tracing.provider.resource.attributes["service.name"] == "fleet"


async def test_a_silent_collector_is_not_waited_for(tracing_to, caplog):
    caplog.set_level(logging.CRITICAL, "opentelemetry")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracing = await asyncio.to_thread(
            tracing_to, f"http://127.0.0.1:{silent.getsockname()[1]}", OTEL_EXPORTER_OTLP_TIMEOUT="2"
        )
        tracing.provider.get_tracer("test").start_span("one").end()
        closing = asyncio.ensure_future(tracing.close(0.05))
        await asyncio.wait([closing], timeout=1.9)
        assert closing.done() and closing.exception() is None
