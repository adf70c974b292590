"""Whatever the OpenAPI document allows, and much that it does not, is answered as the document says: never by a 5xx.

Schemathesis makes the requests from the document; they go to a real node on a memory store, in this process. What ends
only with its reader (the stream) has tests of its own, and waits are cut short.
"""

import asyncio
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tenure.server import Bounds

EXAMPLES = 10
"""Of each operation: what fits in some seconds."""
BOUNDS = Bounds(start_wait_s=0.05, comment_s=15, poll_s=0.05, slow_s=5)
BESIDE = {("get", "/conversations/{id}/stream"), ("post", "/conversations/import"), ("delete", "/conversations/{id}")}
"""Not asked: what does not end by itself, what takes lines instead of JSON, and what would end ``c1``."""
REFUSALS = {400, 401, 404, 405, 409, 410, 413, 415, 422, 429}
"""The statuses of refusals; they stand behind the document's `default`."""
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


def requests_to(operation: Any) -> list[schemathesis.Case]:
    """Requests to the operation, the same in every run: some as they should be, some not, some about ``c1``."""
    made: list[schemathesis.Case] = []
    strategies = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=st.one_of(*strategies), known=st.booleans())
    def collect(case: schemathesis.Case, known: bool) -> None:
        if known and "id" in (case.path_parameters or {}):
            case.path_parameters["id"] = "c1"
        if "wait_s" in (case.query or {}) and isinstance(case.query["wait_s"], int | float):
            case.query["wait_s"] = min(case.query["wait_s"], 0.05)
        made.append(case)

    collect()
    return made


def on_the_wire(case: schemathesis.Case) -> httpx.Request:
    """The request as schemathesis would send it."""
    one = requests.Request(**case.as_transport_kwargs(base_url="http://tenure")).prepare()
    headers = [(name, value if isinstance(value, bytes) else value.encode()) for name, value in one.headers.items()]
    return httpx.Request(one.method or "GET", one.url or "", headers=headers, content=one.body or b"")


@pytest.mark.blocking_ok  # schemathesis makes and checks in this very thread
async def test_no_request_makes_a_server_error_and_every_reply_is_as_declared(cluster):
    await cluster.node("n1", BOUNDS)
    http = await cluster.http("n1")
    document = (await http.get("/openapi.json")).json()
    operations = [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]
    asked = [one for one in operations if (one.method, one.path) not in BESIDE]
    assert len(asked) == len(operations) - len(BESIDE)
    made = [(one, case) for one in asked for case in requests_to(one)]
    faults: list[str] = []
    fine = set[str]()
    assert (await http.post("/conversations", json={"id": "c1", "message": "hello"})).status_code == 201
    for operation, case in made:
        async with asyncio.timeout(30):
            reply = await http.send(on_the_wire(case))
        try:
            case.validate_response(reply, checks=CHECKS)
        except* schemathesis.checks.Failure as fault:
            faults += [f"{operation.label}: {one}" for one in fault.exceptions]
        declared = {int(status) for status in operation.definition.raw["responses"] if status.isdigit()}
        if reply.status_code not in declared | REFUSALS:
            faults.append(f"{operation.label}: {reply.status_code} is not declared: {reply.text[:200]}")
        if reply.status_code in declared:
            fine.add(operation.label)
    assert faults == []
    assert len(fine) > 10, "most operations were refused throughout: nothing behind the reading of requests was asked"
