"""A span for each request, as OpenTelemetry's conventions for HTTP servers want it; child of the caller's, if it sent one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, StatusCode
from starlette.datastructures import Headers

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tenure.node.traces import Traces

UNTRACED = ("/healthz", "/readyz", "/metrics")
"""What machines ask every few seconds."""
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


@final
class Traced:
    """Traces requests. A stream's span lasts as long as the stream; queries, headers and bodies are not in it."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self.app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._traces.on or _path(scope) in UNTRACED:
            await self.app(scope, receive, send)
            return
        span = self._begin(scope)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                _answered(span, message["status"])
            await send(message)

        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                await self.app(scope, receive, answer)
        except Exception as error:
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", type(error).__qualname__)
            raise
        finally:
            _name(span, scope)
            span.end(self._traces.now_ns())

    def _begin(self, scope: Scope) -> Span:
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        return self._traces.tracer.start_span(
            method,
            None if trace.get_current_span().get_span_context().is_valid else propagate.extract(Headers(scope=scope)),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": method,
                "url.path": _path(scope),
                "url.scheme": scope.get("scheme", "http"),
                "network.protocol.version": scope.get("http_version", "1.1"),
                "tenure.node": self._traces.node,
            },
            start_time=self._traces.now_ns(),
        )


def _path(scope: Scope) -> str:
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _answered(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(StatusCode.ERROR)
        span.set_attribute("error.type", str(status))


def _name(span: Span, scope: Scope) -> None:
    """The route is known once the request has been routed."""
    route: Any = getattr(scope.get("route"), "path", None)
    if not isinstance(route, str):
        return
    span.update_name(f"{scope['method']} {route}")
    span.set_attribute("http.route", route)
    conversation = scope.get("path_params", {}).get("id")
    if isinstance(conversation, str):
        span.set_attribute("tenure.conversation", conversation)
