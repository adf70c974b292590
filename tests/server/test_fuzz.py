"""Whatever the OpenAPI document allows, and much that it does not, is answered as the document says: never by a 5xx.

Schemathesis makes the requests from the document, some of them about conversations in every state; they go to a real node
on each store, in this process. What ends only with its reader (the stream) has tests of its own, and waits are cut short.

``TENURE_FUZZ_EXAMPLES=100 TENURE_FUZZ_SEED=7`` asks more, and other things; without a seed each run asks the same.
"""

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tenure.abc import RuntimeFailure
from tenure.server import Bounds
from tenure.stores import open_store
from tenure.testing.postgres import PostgresServer
from tenure.testing.servers import RedisServer

EXAMPLES = int(os.environ.get("TENURE_FUZZ_EXAMPLES", "10"))
"""Of each operation: what fits in some seconds."""
SEED = os.environ.get("TENURE_FUZZ_SEED")
AGAIN = f"TENURE_FUZZ_EXAMPLES={EXAMPLES}" + (f" TENURE_FUZZ_SEED={SEED}" if SEED else "")
SHARES = {"memory": 1, "sqlite": 3, "redis": 3, "postgres": 3}
"""Of so many requests one is sent to a node on this store: the faces are the same, what is under them answers otherwise."""
PREPARED = {"c1": "idle", "halted": "stopped", "asking": "waiting", "broken": "failed"}
"""Conversations that are asked about, and their states at first."""
THROWN_AWAY = "throw-away-"
BOUNDS = Bounds(start_wait_s=0.05, comment_s=15, poll_s=0.05, slow_s=5)
BESIDE = {("get", "/conversations/{id}/stream"), ("post", "/conversations/import")}
"""Not asked: what does not end by itself, and what takes lines instead of JSON."""
REFUSALS = {400, 401, 404, 405, 409, 410, 413, 415, 422, 429}
"""The statuses of refusals; they stand behind the document's `default`."""
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


def requests_to(operation: Any) -> list[schemathesis.Case]:
    """Requests to the operation, the same in every run: some as they should be, some not, most about what there is."""
    made: list[schemathesis.Case] = []
    strategies = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]
    numbers = itertools.count(1)
    deletes = (operation.method, operation.path) == ("delete", "/conversations/{id}")

    @settings(
        max_examples=EXAMPLES, derandomize=SEED is None, database=None, deadline=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=st.one_of(*strategies), known=st.sampled_from([*PREPARED, ""]), ours=st.booleans())
    def collect(case: schemathesis.Case, known: str, ours: bool) -> None:
        if known and "id" in (case.path_parameters or {}):
            case.path_parameters["id"] = f"{THROWN_AWAY}{next(numbers)}" if deletes else known
            if ours and "user_id" in (case.query or {}):
                del case.query["user_id"]  # it is nobody's in particular: another's is not found
        if "wait_s" in (case.query or {}) and isinstance(case.query["wait_s"], int | float):
            case.query["wait_s"] = min(case.query["wait_s"], 0.05)
        made.append(case)

    (collect if SEED is None else seed(int(SEED))(collect))()
    return made


@contextlib.contextmanager
def store_of(backing: str, folder: Any) -> Iterator[str]:
    """The URL of a store that is empty, and of this test alone."""
    match backing:
        case "memory":
            yield ""
        case "sqlite":
            yield f"sqlite:///{folder}/tenure.db"
        case "redis":
            with RedisServer(folder) as redis:
                yield redis.url()
        case _:
            with PostgresServer() as postgres:
                yield postgres.url()


@pytest.fixture(params=SHARES)
async def backing(request) -> str:
    return request.param


@pytest.fixture
async def cluster(cluster, backing, tmp_path) -> AsyncIterator[Any]:
    with store_of(backing, tmp_path) as url:
        async with contextlib.AsyncExitStack() as stack:
            opens = {"open_store": lambda: open_store(url)} if url else {}
            yield type(cluster)(stack, **opens)


async def prepare(cluster, http, eventually) -> None:
    """Conversations in the states that the document knows of."""

    async def begin(name: str, text: str) -> None:
        assert (await http.post("/conversations", json={"id": name, "message": text})).status_code == 201

    async def until(name: str, status: str) -> None:
        async def is_so() -> bool:
            return (await http.get(f"/conversations/{name}")).json()["status"] == status

        await eventually(is_so)

    for name, text, status in (
        ("c1", "hello", "idle"),
        ("halted", "hello", "idle"),
        ("asking", "ask which", "waiting"),
    ):
        await begin(name, text)
        await until(name, status)
    assert (await http.post("/conversations/halted/stop")).status_code == 202
    cluster.provider.refusal = RuntimeFailure("no such image", step="pull", permanent=True)
    await begin("broken", "hello")
    await until("broken", "failed")
    cluster.provider.refusal = None
    for name, status in PREPARED.items():
        await until(name, status)


def on_the_wire(case: schemathesis.Case) -> httpx.Request:
    """The request as schemathesis would send it."""
    one = requests.Request(**case.as_transport_kwargs(base_url="http://tenure")).prepare()
    headers = [(name, value if isinstance(value, bytes) else value.encode()) for name, value in one.headers.items()]
    return httpx.Request(one.method or "GET", one.url or "", headers=headers, content=one.body or b"")


@pytest.fixture(scope="module")
def made() -> dict[str, list[tuple[Any, schemathesis.Case]]]:
    """The requests, made from the document once for all stores."""
    return {}


def all_requests(document: Any) -> list[tuple[Any, schemathesis.Case]]:
    operations = [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]
    asked = [one for one in operations if (one.method, one.path) not in BESIDE]
    assert len(asked) == len(operations) - len(BESIDE)
    return [(one, case) for one in asked for case in requests_to(one)]


@pytest.mark.timeout(120 + 15 * EXAMPLES)
@pytest.mark.blocking_ok  # schemathesis makes and checks in this very thread
async def test_no_request_makes_a_server_error_and_every_reply_is_as_declared(cluster, backing, made, eventually):
    await cluster.node("n1", BOUNDS)
    http = await cluster.http("n1")
    if not made:
        made["all"] = all_requests((await http.get("/openapi.json")).json())
    await prepare(cluster, http, eventually)
    faults: list[str] = []
    fine = set[str]()
    for operation, case in made["all"][:: SHARES[backing]]:
        thrown_away = str((case.path_parameters or {}).get("id", ""))
        if thrown_away.startswith(THROWN_AWAY):
            assert (await http.post("/conversations", json={"id": thrown_away})).status_code in (200, 201)
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
    assert faults == [], f"once more: {AGAIN} make test SUITE=server ARGS='-k {backing}'"
    assert len(fine) > 10, "most operations were refused throughout: nothing behind the reading of requests was asked"
    if SEED is None and backing == "memory":
        assert "DELETE /conversations/{id}" in fine
