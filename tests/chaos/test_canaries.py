"""Nothing secret in what is written: canaries behind every door of real nodes, and then every byte is searched."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from cryptography.fernet import Fernet
from world import NODESIDE, World, world

from tenure.testing.postgres import PostgresServer
from tenure.testing.processes import NodeProcess
from tenure.testing.servers import RedisServer


def canary(where: str) -> str:
    return f"canary-{where}/+&{secrets.token_hex(8)}"


def node_of(one: World, name: str, agent: str, store: str, options: list[str], **environ: str) -> NodeProcess:
    node = NodeProcess(
        name,
        store=store,
        folder=one.folder,
        agents=[f"leaky_agent:{agent}"],
        options=["--ttl-s", "5", "--drain-s", "1", *options],
        environ={"PYTHONPATH": str(NODESIDE), "CHAOS_EFFECTS": str(one.effects_file), **environ},
        cwd=NODESIDE,
    )
    at = node._command.index("--store")  # a URL with a password belongs into the environment
    del node._command[at : at + 2]
    node._environ["TENURE_STORE"] = store
    return one.nodes.add(node)


class Outside:
    """What lies outside of the cluster: it makes tokens, and takes traces."""

    def __init__(self, bearer: str, token: str) -> None:
        self.traces: dict[str, bytes] = {}
        outside = self

        class Answering(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers.get("content-length") or 0))
                answer = b""
                if self.path == "/v1/traces":
                    outside.traces[f"traces {len(outside.traces)}"] = content
                elif self.headers["authorization"] == f"Bearer {bearer}":
                    answer = json.dumps({"access_token": token, "expires_in": 4}).encode()
                self.send_response(200 if answer or self.path == "/v1/traces" else 403)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: object) -> None:
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


PLAIN = """SELECT format('ALTER TABLE %%I.%%I ALTER COLUMN %%I SET STORAGE EXTERNAL', n.nspname, c.relname, a.attname)
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname !~ '^(pg_|information_schema)' AND a.attnum > 0 AND a.attstorage IN ('x', 'm')"""


def keep_plain(server: PostgresServer) -> None:
    """From now on no long value is compressed: a search of the files would not see what is in it."""
    statements = server.ask(PLAIN)
    assert statements, "there are columns that would be"
    for (statement,) in statements:
        server.ask(statement)


@contextlib.contextmanager
def database(kind: str, folder: Path, password: str) -> Iterator[tuple[str, RedisServer | PostgresServer | None]]:
    if kind == "sqlite":
        yield f"sqlite:///{folder}/canaries.db", None
        return
    if kind == "postgres":
        with PostgresServer() as server:
            (folder / "postgres").symlink_to(server.folder)
            url = server.url()
            yield url.replace("@", f":{password}@", 1), server  # it trusts whoever asks; the URL holds one all the same
        return
    options = {"requirepass": password, "appendonly": "yes", "rdbcompression": "no", "aof-use-rdb-preamble": "no"}
    with RedisServer(folder / "redis", options=options) as server:
        yield server.url(), server


def files_of(folder: Path, but: Path) -> dict[str, bytes]:
    """Every byte below the folder: database, log of writes, workspaces, logs of nodes and servers."""
    found = [*folder.rglob("*"), *(folder / "postgres").glob("**/*")]  # a link, which the first does not follow
    return {str(p): p.read_bytes() for p in found if p.is_file() and but not in p.parents}


def processes(nodes: Iterator[NodeProcess]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Command lines of everything on this machine and environments of what the nodes started; apart, those of commands, which
    have the conversation's own credentials there."""
    found: dict[str, bytes] = {}
    commands: dict[str, bytes] = {}
    parents: dict[str, str] = {}
    roots = {str(node.pid) for node in nodes}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[f"{place}/cmdline"] = (place / "cmdline").read_bytes()
            parents[place.name] = (place / "stat").read_text().rpartition(")")[2].split()[1]
    for pid in parents:
        above = parents.get(pid)
        while above and above not in roots:
            above = parents.get(above)
        if above and pid not in roots:
            with contextlib.suppress(OSError):
                environ = Path(f"/proc/{pid}/environ").read_bytes()
                (commands if b"FROM_VAULT=" in environ else found)[f"/proc/{pid}/environ"] = environ
    return found, commands


def forms_of(value: str) -> set[bytes]:
    """As what it would be found: as it is, for JSON, its end, and its end in base64 wherever in a longer text it stands."""
    end = value.rpartition("&")[2].encode()
    forms = {value.encode(), json.dumps(value)[1:-1].encode(), end}
    for before in range(3):
        whole = base64.b64encode(bytes(before) + end)
        inner = whole[-(-before * 8 // 6) : (before + len(end)) * 8 // 6]  # what no neighbour has a part in
        forms |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return forms


def leaks(written: Mapping[str, bytes], canaries: Mapping[str, str]) -> list[str]:
    forms = {where: forms_of(value) for where, value in canaries.items()}
    return [
        f"{where} in {name}"
        for name, data in written.items()
        for where, ms in forms.items()
        if any(m in data for m in ms)
    ]


@pytest.mark.parametrize("before", range(3))
def test_a_canary_in_base64_is_found(before: int):
    value = canary("here")
    hidden = base64.b64encode(b"x" * before + value.encode() + b"and more")
    assert leaks({"file": b"-- " + hidden, "other": b"nothing"}, {"here": value}) == ["here in file"]


GIVEN = ("env", "file", "vault", "made", "by-url")
"""What the conversation's commands are given."""
DOORS = (*GIVEN, "bearer", "api-key", "runtime-token", "store-password", "node-env", "refused", "bad-settings")


@pytest.mark.parametrize("kind", ["sqlite", "redis", "postgres"])
async def test_no_canary_is_ever_written(tmp_path: Path, kind: str):
    canaries = {where: canary(where) for where in DOORS}
    canaries["store-password"] = secrets.token_hex(16)  # it stands in a URL
    key = Fernet.generate_key().decode()
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "token").write_text(canaries["file"])
    mint = hidden / "mint"
    mint.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{canaries['made']}'\n")
    mint.chmod(0o700)
    replies: dict[str, bytes] = {}
    (tmp_path / "world").mkdir()
    async with world(tmp_path / "world", "sqlite") as one:
        with (
            database(kind, one.folder, canaries["store-password"]) as (url, server),
            Outside(canaries["bearer"], canaries["by-url"]) as outside,
        ):
            options = ["--allow-env", "LLM_*", "--allow-file", str(hidden), "--allow-command", str(mint)]
            options += ["--allow-url", f"{outside.url}/", "--log-level", "debug"]
            node = node_of(
                one, "a", "agent", url, options, LLM_KEY=canaries["env"], MY_OWN=canaries["node-env"],
                TENURE_SECRET_KEYS=key, TENURE_API_KEY=canaries["api-key"],
                TENURE_RUNTIME_TOKEN=canaries["runtime-token"], TENURE_WORKSPACES=str(one.folder / "workspaces"),
                OTEL_EXPORTER_OTLP_ENDPOINT=outside.url, OTEL_BSP_SCHEDULE_DELAY="100",
            )  # fmt: skip
            await node.start()
            if isinstance(server, PostgresServer):
                keep_plain(server)
            headers = {"Authorization": f"Bearer {canaries['api-key']}"}
            async with httpx.AsyncClient(
                base_url=node.url, headers=headers, trust_env=False, timeout=60, follow_redirects=True
            ) as http:

                async def ask(method: str, path: str, status: int | None = None, **how: Any) -> httpx.Response:
                    reply = await http.request(method, path, **how)
                    replies[f"reply {len(replies)} {method} {path}"] = reply.content
                    assert status in (None, reply.status_code), reply.text
                    return reply

                asked = {
                    "FROM_ENV": "env:LLM_KEY",
                    "FROM_FILE": f"file:{hidden}/token",
                    "FROM_VAULT": "vault:token",
                    "MADE": {"refresh": {"command": [str(mint)]}, "ttl_s": 1},
                    "BY_URL": {"from": "vault:bearer", "refresh": {"url": f"{outside.url}/token"}},
                }
                for wrong in (
                    {"X": canaries["bad-settings"]},
                    {"X": {"from": canaries["bad-settings"]}},
                    {"X": "env:MY_OWN"},
                ):
                    await ask("POST", "/conversations", 422, json={"settings": {"credentials": wrong}})
                await ask("POST", "/conversations", 201, json={"id": "c", "settings": {"credentials": asked}})
                for refused in (
                    {"value": [canaries["refused"]]},
                    {"v": canaries["refused"]},
                    b'{"value": "' + canaries["refused"].encode(),
                ):
                    how = (
                        {"content": refused, "headers": {"content-type": "application/json"}}
                        if isinstance(refused, bytes)
                        else {"json": refused}
                    )
                    await ask("PUT", "/conversations/c/vault/token", 422, **how)
                await ask("PUT", "/conversations/c/vault/bearer", 201, json={"value": canaries["bearer"]})
                # first without it: the named state, then mended
                first = await ask("POST", "/conversations/c/messages", 202, json={"text": "go", "key": "k1"})

                async def named() -> bool:
                    return (await http.get("/conversations/c")).json()["agent_status"] == "credential-failed"

                await one.until(named, "the named state")
                failure = (await ask("GET", "/conversations/c", 200)).json()["failure"]
                assert failure["credential"]["reference"] == "vault:token" and failure["permanent"]
                await ask("PUT", "/conversations/c/vault/token", 201, json={"value": canaries["vault"]})
                stream = {"Accept": "text/event-stream"}
                await ask("POST", "/conversations/c/messages", 200, json={"text": "again"}, headers=stream)
                await ask("POST", "/conversations/c/messages", 202, json={"text": "linger"})

                async def runs() -> list[Path]:
                    return list(one.folder.rglob("it-runs"))

                [sign] = await one.until(runs, "a command that runs")
                running, commands = processes(iter(one.nodes))
                sign.with_name("go-on").touch()
                failed = await ask("POST", "/conversations/c/messages?wait_s=60", 200, json={"text": "fail"})
                assert failed.json()["outcome"] == "failed"
                events = (await ask("GET", "/conversations/c/events?limit=1000", 200)).json()["events"]
                replied = [e["body"] for e in events if e["kind"] == "reply"]
                assert [body["known"] for body in replied] == [5, 5, 5], "the agent had them all, and said them all"
                assert first.json()["seq"] and "<secret>" in json.dumps(events)
                for path in ("", "/vault", "/start", "/timeline", "/export"):
                    await ask("GET", f"/conversations/c{path}")
                for path in ("/nodes", "/metrics", "/activity", "/readyz", "/conversations", "/"):
                    await ask("GET", path)
            if isinstance(server, RedisServer):
                server.told("SAVE")
            elif server is not None:
                server.ask("CHECKPOINT")
            found = files_of(one.folder, hidden) | replies | running
            node.drain()
            await node.ended(60)
            found |= {f"{name} at the end": data for name, data in files_of(one.folder, hidden).items()}
            found |= outside.traces
    assert commands, "a command ran when processes were looked at"
    assert leaks(commands, {where: value for where, value in canaries.items() if where not in GIVEN}) == []
    assert any(b"tenure.turn" in data for data in outside.traces.values()), "traces were sent"
    if server is not None:  # its own arguments hold it: that is the server's business, and not ours
        found = {name: data for name, data in found.items() if b"requirepass" not in data}
    places = {"sqlite": ["/canaries.db"], "redis": ["/redis/"], "postgres": ["/pg_wal/", "/base/"]}[kind]
    for place in places:
        seen = any(place in name and b"<secret>" in data for name, data in found.items())
        assert seen, f"what was written was searched: {place}"
    assert any(name.endswith("a.log") for name in found)
    assert leaks(found, {**canaries, "secret-keys": key}) == []
    log = (one.folder / "a.log").read_text()
    assert "nobody awaits me" in log and "with a traceback" in log, "the logs were written to"


async def test_a_takeover_and_a_rotation_of_the_keys_lose_no_secret(tmp_path: Path):
    """The key rotates between owners; the first owner is killed in mid-turn; at last the old key is gone."""
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    value = canary("vault")
    wants = hashlib.sha256(value.encode()).hexdigest()
    async with world(tmp_path, "sqlite") as one:
        one.conversations.add("c")
        a = node_of(one, "a", "teller", one.backing.url, [], TENURE_SECRET_KEYS=old)
        b = node_of(one, "b", "teller", one.backing.url, [], TENURE_SECRET_KEYS=f"{new},{old}")
        await a.start()
        await one.post("/conversations", {"id": "c", "settings": {"credentials": {"FROM_VAULT": "vault:t"}}}, a)
        assert (await one.http.put(f"{a.url}/conversations/c/vault/t", json={"value": value})).status_code == 201
        sent = await one.post("/conversations/c/messages", {"text": str(tmp_path / "go"), "key": "k1"}, a)
        await one.event("c", "call_started")
        await b.start()
        a.kill()
        (tmp_path / "go").touch()
        await one.answered("c", sent)
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "tenure", "vault", "rotate", "--json", "--url", b.url],
            capture_output=True, text=True, check=True, timeout=60, env=dict(os.environ),
        )  # fmt: skip
        assert {name: json.loads(done.stdout)[name] for name in ("secrets", "rewritten", "unreadable")} == {
            "secrets": 1, "rewritten": 1, "unreadable": []
        }  # fmt: skip
        c = node_of(one, "c", "teller", one.backing.url, [], TENURE_SECRET_KEYS=new)
        await c.start()
        b.drain()
        await b.ended(60)
        sent = await one.post("/conversations/c/messages", {"text": str(tmp_path / "go"), "key": "k2"}, c)
        await one.answered("c", sent)
        events = await one.events("c")
    assert [e.body["sha256"] for e in events if e.kind == "reply"] == [wants, wants]
    owners = [e.body["node"] for e in events if e.kind == "claimed"]
    assert owners[0] == "a" and owners[1] == "b" and owners[-1] == "c", owners
    assert [name for name, data in files_of(tmp_path, tmp_path / "none").items() if value.encode() in data] == []
