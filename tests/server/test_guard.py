"""Without a key, on loopback: what a page from elsewhere has this machine's browser ask is refused."""

import httpx
import pytest

from tenure.config import Config
from tenure.server import create_app, own_hosts
from tenure.server.guard import Guard, OwnPages

OWN = "127.0.0.1:8400"


@pytest.fixture
async def http(cluster):
    """A client of a node as ``tenure serve`` serves it, that calls it by the address of a named server too."""
    await cluster.node("n1")
    config = Config(allow_host="agents.lan, tenure.example", address="http://node-7:8400")
    app = create_app(cluster.nodes["n1"], hosts=own_hosts(config))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{OWN}") as http:
        yield http


def refused(reply, field):
    assert (reply.status_code, reply.headers["content-type"]) == (403, "application/problem+json")
    problem = reply.json()
    assert (problem["code"], problem["field"]) == ("foreign-page", field)
    assert "TENURE_API_KEY" in problem["remedy"] and "--allow-host" in problem["remedy"]
    return True


@pytest.mark.parametrize(
    "host",
    [
        OWN, "127.0.0.1", "127.8.8.8:1", "localhost:8400", "LOCALHOST", "app.localhost:8400", "[::1]:8400",
        "agents.lan", "tenure.example:443", "Node-7:8400",
    ],
)  # fmt: skip
async def test_it_is_called_by_its_own_names(http, host):
    assert (await http.get("/conversations", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8400", "127.0.0.1.evil.example", "localhost.evil.example", "evillocalhost",
        "10.0.0.7:8400", "0.0.0.0:8400", "127.0.0.1@evil.example", "[::1", "sub.agents.lan", "",
    ],
)  # fmt: skip
async def test_a_foreign_name_is_refused_whatever_is_asked(cluster, http, host):
    before = cluster.contents()
    for method, path in (("GET", "/conversations"), ("GET", "/openapi.json"), ("POST", "/conversations")):
        assert refused(await http.request(method, path, headers={"host": host}), "host"), host
    assert cluster.contents() == before


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example", "null", "", "http://127.0.0.1:3000", "http://localhost:8400", "http://127.0.0.1",
        "http://127.0.0.1:8400.evil.example", "chrome-extension://abc",
    ],
)  # fmt: skip
async def test_a_page_from_elsewhere_is_refused(cluster, http, origin):
    before = cluster.contents()
    for path in ("/conversations/c1/stop", "/nodes/n1/drain"):  # neither needs a body, so a browser would just send it
        assert refused(await http.post(path, headers={"origin": origin}), "origin")
    assert cluster.contents() == before
    assert not cluster.nodes["n1"].draining


@pytest.mark.parametrize("origin", [f"http://{OWN}", "https://agents.lan", "http://tenure.example:8443"])
async def test_its_own_pages_may_ask(http, origin):
    assert (await http.post("/conversations", json={}, headers={"origin": origin})).status_code == 201


async def test_a_load_balancer_asks_for_its_health_by_any_name(http):
    assert (await http.get("/healthz", headers={"host": "10.0.0.7:8400"})).status_code == 200


def test_the_key_or_what_stands_before_it_decides_elsewhere():
    assert own_hosts(Config()) == frozenset()
    assert own_hosts(Config(api_key="k")) is None
    assert own_hosts(Config(host="0.0.0.0", insecure=True)) is None
    assert own_hosts(Config(host="::1", allow_host="a,b:80")) == {"a", "b"}


async def opened(app, headers):
    """How the app answers the handshake of a socket."""
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/socket", "headers": [(n.encode(), v.encode()) for n, v in headers.items()]}
    await app(scope, receive, send)
    return sent


async def test_a_page_from_elsewhere_opens_no_socket():
    async def accepting(scope, receive, send):
        await send({"type": "websocket.accept"})

    app = OwnPages(accepting, own_hosts(Config()))
    assert await opened(app, {"host": OWN}) == [{"type": "websocket.accept"}]
    assert await opened(app, {"host": OWN, "origin": f"http://{OWN}"}) == [{"type": "websocket.accept"}]
    for headers in ({"host": OWN, "origin": "http://evil.example"}, {"host": "evil.example"}):
        assert await opened(app, headers) == [{"type": "websocket.close", "code": 1008}]


async def test_the_sdks_header_is_as_good_as_the_bearers(cluster):
    await cluster.node("n1")
    app = Guard(create_app(cluster.nodes["n1"]), "the-key")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{OWN}") as http:
        for headers, status in (({"X-Session-API-Key": "the-key"}, 200), ({"X-Session-API-Key": "another"}, 401)):
            assert (await http.get("/conversations", headers=headers)).status_code == status
        assert (await http.get("/health")).status_code == 404, "no OpenHands agent runs here"
