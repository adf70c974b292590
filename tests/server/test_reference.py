"""``/docs``: whole, without a network, and nothing but text."""

import re
import threading
from html.parser import HTMLParser

from tenure.server.dashboard import FILES, POLICY


class Page(HTMLParser):
    """What a page has: places to point to, what points, what is loaded, and the tags left open."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loaded, self.open, self.tags = [], [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.add(tag)
        if tag not in ("meta", "link"):
            self.open.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        target = values.get("href") or values.get("src")
        if target:
            (self.links if tag == "a" else self.loaded).append(target)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


async def test_the_page_tells_every_operation_and_shape(http):
    document = (await http.get("/openapi.json")).json()
    reply = await http.get("/docs")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert reply.headers["content-security-policy"] == POLICY
    page = Page(reply.text)
    named = {operation["operationId"] for path in document["paths"].values() for operation in path.values()}
    assert (named | set(document["components"]["schemas"])) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids)), "two of one name"
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert page.open == []


async def test_it_loads_only_files_of_this_node_and_runs_nothing(http):
    page = Page((await http.get("/docs")).text)
    assert page.loaded
    for address in page.loaded:
        assert address.removeprefix("dashboard/") in FILES
        assert (await http.get(f"/{address}")).status_code == 200
    assert not page.tags & {"script", "iframe", "object", "img", "form"}


async def test_no_page_and_no_document_names_another_host(http):
    texts = {path: (await http.get(path)).text for path in ("/docs", "/openapi.json")}
    texts |= {name: file.content.decode().replace("http://www.w3.org/2000/svg", "") for name, file in FILES.items()}
    for name, text in texts.items():
        assert not re.search(r"\b(?:https?|wss?)://|[\"'(]//\w", text), name
    for gone in ("/redoc", "/docs/oauth2-redirect"):
        assert (await http.get(gone)).status_code == 404


async def test_what_is_said_of_an_operation_is_only_ever_text(cluster):
    await cluster.node("n1")
    app = cluster.apps["n1"]
    operation = app.openapi()["paths"]["/nodes"]["get"]
    operation["description"] = '<script src="x"></script> & "more"'
    text = (await (await cluster.http("n1")).get("/docs")).text
    assert "&lt;script src=&quot;x&quot;&gt;&lt;/script&gt; &amp; &quot;more&quot;" in text


async def test_an_app_is_made_without_reading_its_routes_again(cluster):
    """Reading them takes a third of a second, in which an event loop would answer nobody."""
    for name in ("n1", "n2"):
        await cluster.node(name)
    one, other = (cluster.apps[name].routes for name in ("n1", "n2"))
    assert len(one) > 28
    assert all(mine is its for mine, its in zip(one, other, strict=True))
    for name in ("n1", "n2"):
        [here] = [node for node in (await (await cluster.http(name)).get("/nodes")).json() if node["here"]]
        assert here["node"] == name, "and each answers for its own node"


async def test_the_document_is_written_beside_the_event_loop(cluster, monkeypatch):
    await cluster.node("n1")
    app, written_in = cluster.apps["n1"], list[str]()
    openapi = app.openapi
    monkeypatch.setattr(app, "openapi", lambda: written_in.append(threading.current_thread().name) or openapi())
    http = await cluster.http("n1")
    for path in ("/openapi.json", "/docs"):
        assert (await http.get(path)).status_code == 200
    assert len(written_in) == 2
    assert threading.main_thread().name not in written_in
