"""Nodes to be looked at, pages that look, and what is read off them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
from playwright.async_api import Browser, Page, Route, async_playwright, expect

from tenure.testing.processes import NodeProcess, NodeProcesses

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_S = 90.0
"""How long anything may take on a noisy machine before it counts as never."""
expect.set_options(timeout=PATIENCE_S * 1000)


def chromium() -> str | None:
    """The browser of this machine; null if there is none.

    :raises LookupError: one is named that does not exist, which nobody meant.
    """
    named = os.environ.get("TENURE_CHROMIUM")
    if named:
        found = shutil.which(named)
        if found is None:
            raise LookupError(f"TENURE_CHROMIUM names {named!r}, which is no program")
        return found
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Stage:
    """A cluster of processes on one SQLite file, and a client of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store_url = f"sqlite:///{folder}/tenure.db"
        self.nodes = NodeProcesses()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.nodes.__exit__(*exc)

    def node(self, name: str, *options: str, **environ: str) -> NodeProcess:
        """A node, not yet started."""
        ours = ["--ttl-s", "2", "--drain-s", "2", *options]
        return self.nodes.add(
            NodeProcess(
                name,
                store=self.store_url,
                folder=self.folder,
                agents=["scripted"],
                options=ours,
                environ=environ,
                cwd=self.folder,
            )
        )

    async def cluster(self, *names: str) -> list[NodeProcess]:
        """So many nodes, ready."""
        found = [self.node(name) for name in names]
        await self.nodes.start()
        return found

    async def ask(self, node: NodeProcess, method: str, path: str, **more: Any) -> Any:
        """What that node answers; it must not refuse."""
        async with httpx.AsyncClient(
            trust_env=False, verify=False, timeout=40
        ) as http:  # plain HTTP: no certificates to load
            reply = await http.request(method, f"{node.url}{path}", **more)
        assert reply.status_code < 300, f"{method} {path}: {reply.status_code} {reply.text}"
        return reply.json()

    async def create(self, node: NodeProcess, conversation: str, text: str = "hello", **more: Any) -> None:
        """A conversation that has answered its first message."""
        await self.ask(node, "POST", "/conversations", json={"id": conversation, **more})
        await self.ask(node, "POST", f"/conversations/{conversation}/messages?wait_s=40", json={"text": text})

    async def send(self, node: NodeProcess, conversation: str, script: list[Any], text: str = "work") -> int:
        """A message with a script; its seq."""
        body = {"text": text, "content": {"script": script}}
        return (await self.ask(node, "POST", f"/conversations/{conversation}/messages", json=body))["seq"]

    async def show(self, node: NodeProcess, conversation: str) -> dict[str, Any]:
        return await self.ask(node, "GET", f"/conversations/{conversation}")

    async def events(self, node: NodeProcess, conversation: str) -> list[dict[str, Any]]:
        """The whole journal, by the API."""
        found: list[dict[str, Any]] = []
        while True:
            page = await self.ask(node, "GET", f"/conversations/{conversation}/events?after={len(found)}&limit=1000")
            found += page["events"]
            if len(found) >= page["last_seq"]:
                return found

    async def kinds(self, node: NodeProcess, conversation: str) -> list[str]:
        return [event["kind"] for event in await self.events(node, conversation)]

    async def until(self, look: Any, what: str) -> Any:
        """Poll until `look` (a coroutine function) gives something true."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while not (found := await look()):
                    await asyncio.sleep(0.05)
                return found
        raise AssertionError(f"waited in vain for {what}")

    async def owned(self, node: NodeProcess, conversation: str) -> NodeProcess:
        """Its owner, as soon as there is one."""

        async def look() -> Any:
            return (await self.show(node, conversation))["owner"]

        return self.nodes[(await self.until(look, f"an owner of {conversation}"))["node"]]


@asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    """This machine's browser, without a window."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


def beside_the_api(asked: Iterable[tuple[str, str]], document: dict[str, Any]) -> set[tuple[str, str]]:
    """The requests that no operation of the OpenAPI document answers, the files of the pages themselves left out."""
    operations = [
        (method.upper(), re.compile(re.sub(r"\{\w+\}", "[^/]+", path)))
        for path, found in document["paths"].items()
        for method in found
    ]
    return {
        (method, url)
        for method, url in asked
        if not (method == "GET" and (urlsplit(url).path == "/" or urlsplit(url).path.startswith("/dashboard/")))
        and not any(method == known and pattern.fullmatch(urlsplit(url).path) for known, pattern in operations)
    }


class Watchers:
    """Pages in profiles of their own, of one browser that all tests share."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.complaints: list[str] = []
        self.asked: set[tuple[str, str]] = set()
        """Method and URL of every request that a page made."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for context in self.browser.contexts:
            for page in context.pages:
                # What an answer of ours still does for a page that goes would be thrown at the next test.
                await page.unroute_all(behavior="ignoreErrors")
            await context.close()

    async def open(
        self, node: NodeProcess, view: str = "#/", *, width: int = 1280, height: int = 860, colours: Any = "light"
    ) -> Page:
        """A page of that node in a browser that nobody has used."""
        context = await self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=colours, reduced_motion="reduce"
        )
        page = await context.new_page()
        page.on("request", lambda request: self.asked.add((request.method, request.url)))
        page.on("pageerror", lambda error: self.complaints.append(f"thrown: {error}"))
        page.on("dialog", lambda dialog: self.complaints.append(f"alert: {dialog.message}"))
        page.on("console", lambda message: self._hear(message.type, message.text))
        await page.goto(f"{node.url}/{view}")
        return page

    def _hear(self, kind: str, text: str) -> None:
        if kind == "error" and not text.startswith("Failed to load resource"):
            self.complaints.append(text)

    async def watch(self, node: NodeProcess, conversation: str, **how: Any) -> Page:
        """The page of a conversation, which hears its journal."""
        page = await self.open(node, f"#/c/{conversation}", **how)
        await expect(page.locator("main")).to_have_attribute("data-stream", "live")
        await expect(page.locator(".event").first).to_be_visible()
        return page


def part(page: Page, name: str) -> Any:
    """What the pages call by this name."""
    return page.locator(f'[data-part="{name}"]')


async def told(page: Page) -> list[int]:
    """The seq of every event that the rows of the page tell, lowest first, repeats and all.

    A call's row tells several, the last of them much later than the row below it; but every row stands where its first
    event belongs.
    """
    rows = await page.locator(".event").evaluate_all("rows => rows.map(row => row.dataset.seqs.split(' ').map(Number))")
    begins = [row[0] for row in rows]
    assert begins == sorted(begins), "rows out of order"
    assert all(row == sorted(row) for row in rows), "a call's row tells its events out of order"
    return sorted(seq for row in rows for seq in row)


async def told_up_to(page: Page, seq: int) -> list[int]:
    """The same, when that event is told."""
    await expect(page.locator(f'.event[data-seqs~="{seq}"]')).to_have_count(1)
    return await told(page)


STORE_AWAY = {"status": 503, "code": "store-unavailable", "title": "Store unavailable", "detail": "the store is away"}


async def take_the_store_away(page: Page, path: str = "**") -> None:
    """From now on that node answers this page's requests to `path` as it does when its store is down; until `unroute_all`."""

    async def refuse(route: Route) -> None:
        if "/dashboard/" in route.request.url or urlsplit(route.request.url).path == "/":
            await route.fallback()
        else:
            problem = json.dumps(STORE_AWAY)
            await route.fulfill(status=503, content_type="application/problem+json", body=problem)

    await page.route(path, refuse)


async def confirm(page: Page, verb: str, *sentences: str) -> None:
    """The dialog that is open says all this; press its button, and see it close."""
    dialog = page.get_by_role("dialog")
    for sentence in sentences:
        await expect(dialog).to_contain_text(sentence)
    await dialog.get_by_role("button", name=verb, exact=True).click()
    await expect(dialog).to_have_count(0)
