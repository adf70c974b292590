"""Where the spans of ``tenure serve`` go: to the OTLP collector that the standard ``OTEL_…`` variables name, or nowhere."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final, final

from opentelemetry import trace

from tenure.facts import TracesOff, to_log

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL: Final = "http/protobuf"


@final
class Tracing:
    """The process's spans, sent in batches by a thread of the SDK."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider

    async def close(self, timeout_s: float) -> None:
        """Send what is left; what a collector has not taken within `timeout_s` is not waited for."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.to_thread(self.provider.force_flush, int(timeout_s * 1000))


def tracing_of(environ: Mapping[str, str], node: str) -> Tracing | None:
    """What the environment asks for; null, and a line in the log if it asked, where there is none."""
    if not any(environ.get(name) for name in ENDPOINTS) or _refused(environ):
        return None
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), PROTOCOL)
    if protocol != PROTOCOL:
        to_log(TracesOff(f"{protocol} is not spoken here", f"set {PROTOCOLS[1]}={PROTOCOL}, most often to port 4318"))
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        to_log(TracesOff("the OpenTelemetry SDK is not installed", "pip install 'tenure[tracing]'"))
        return None
    try:
        ours = Resource.create({"service.name": "tenure", "service.instance.id": node})
        about = ours.merge(OTELResourceDetector().detect())  # what the environment says stands above what we say
        provider = TracerProvider(resource=about, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        to_log(TracesOff(f"the settings of OpenTelemetry are refused: {error}", "mend the OTEL_… variables"))
        return None
    return Tracing(provider)


def _refused(environ: Mapping[str, str]) -> bool:
    """Whether the standard switches say no."""
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return disabled or environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() not in ("", "otlp")


def install(environ: Mapping[str, str], node: str) -> Tracing | None:
    """Make it the process's own: the agents' instrumentation goes the same way."""
    tracing = tracing_of(environ, node)
    if tracing is not None:
        trace.set_tracer_provider(tracing.provider)
    return tracing
