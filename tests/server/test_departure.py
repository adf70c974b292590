"""What a client hears of a node that leaves, or that it has left itself."""

import asyncio
from types import SimpleNamespace

import pytest
from fastapi import APIRouter, Body, FastAPI
from httpx import ASGITransport, AsyncClient

from tenure.errors import NodeUnavailableError
from tenure.server import Bounds
from tenure.server.strict import StrictRoute


def app_that_hangs(hung: asyncio.Event, *, closed: bool) -> FastAPI:
    app = FastAPI()
    app.state.watches, app.state.bounds = SimpleNamespace(closed=closed), Bounds()
    router = APIRouter(route_class=StrictRoute)

    @router.post("/hang")
    async def hang(body: dict[str, str] = Body()) -> None:
        hung.set()
        await asyncio.Event().wait()

    app.include_router(router)
    return app


@pytest.mark.parametrize(("closed", "raised"), [(True, NodeUnavailableError), (False, asyncio.CancelledError)])
async def test_a_request_that_outlasts_the_departure_is_sent_elsewhere(closed: bool, raised: type[BaseException]):
    """Cut off by the server, it would be a bare 500: a client would give up what another node can do."""
    hung = asyncio.Event()
    async with AsyncClient(transport=ASGITransport(app_that_hangs(hung, closed=closed)), base_url="http://a") as http:
        asking = asyncio.create_task(http.post("/hang", json={}))
        await hung.wait()
        asking.cancel()
        with pytest.raises(raised):
            await asking


async def test_a_client_that_goes_away_in_mid_body_is_no_error():
    sent: list[str] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(str(message["type"]))

    scope = {
        "type": "http", "method": "POST", "path": "/hang", "raw_path": b"/hang", "root_path": "", "scheme": "http",
        "query_string": b"", "http_version": "1.1", "server": ("a", 80),
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    await app_that_hangs(asyncio.Event(), closed=False)(scope, receive, send)
    assert sent[0] == "http.response.start"
