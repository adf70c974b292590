"""Nothing secret in what is written: canaries behind every door of real nodes, and then every byte is searched."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from backings import LONG
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


@contextlib.contextmanager
def database(kind: str, folder: Path, password: str) -> Iterator[tuple[str, RedisServer | None]]:
    if kind == "sqlite":
        yield f"sqlite:///{folder}/canaries.db", None
        return
    if kind == "postgres":
        with PostgresServer() as server:
            (folder / "postgres").symlink_to(server.folder)
            url = server.url()
            yield url.replace("@", f":{password}@", 1), None  # it trusts whoever asks; the URL holds one all the same
        return
    options = {"requirepass": password, "appendonly": "yes", "rdbcompression": "no", "aof-use-rdb-preamble": "no"}
    with RedisServer(folder / "redis", options=options) as server:
        yield server.url(), server


def files_of(folder: Path, but: Path) -> dict[str, bytes]:
    """Every byte below the folder: database, log of writes, workspaces, logs of nodes and servers."""
    found = [*folder.rglob("*"), *(folder / "postgres").glob("**/*")]  # a link, which the first does not follow
    return {str(p): p.read_bytes() for p in found if p.is_file() and but not in p.parents}


def processes(nodes: Iterator[NodeProcess]) -> dict[str, bytes]:
    """Command lines of everything on this machine, and the environments of what the nodes started."""
    found: dict[str, bytes] = {}
    parents = {str(node.pid) for node in nodes}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[f"{place}/cmdline"] = (place / "cmdline").read_bytes()
            if (place / "stat").read_text().rpartition(")")[2].split()[1] in parents:
                found[f"{place}/environ"] = (place / "environ").read_bytes()
    return found


def leaks(written: Mapping[str, bytes], canaries: Mapping[str, str]) -> list[str]:
    forms = {
        where: {value.encode(), json.dumps(value)[1:-1].encode(), value.rpartition("&")[2].encode()}
        for where, value in canaries.items()
    }
    return [
        f"{where} in {name}"
        for name, data in written.items()
        for where, ms in forms.items()
        if any(m in data for m in ms)
    ]


@pytest.mark.parametrize("kind", ["sqlite", "redis", *(["postgres"] if LONG else [])])
async def test_no_canary_is_ever_written(tmp_path: Path, kind: str):
    doors = ("api-key", "env", "file", "vault", "made", "store-password", "node-env", "refused", "bad-settings")
    canaries = {where: canary(where) for where in doors}
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
        with database(kind, one.folder, canaries["store-password"]) as (url, server):
            options = ["--allow-env", "LLM_*", "--allow-file", str(hidden), "--allow-command", str(mint)]
            options += ["--log-level", "debug"]
            node = node_of(
                one, "a", "agent", url, options, LLM_KEY=canaries["env"], MY_OWN=canaries["node-env"],
                TENURE_SECRET_KEYS=key, TENURE_API_KEY=canaries["api-key"],
            )  # fmt: skip
            await node.start()
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
                failed = await ask("POST", "/conversations/c/messages?wait_s=60", 200, json={"text": "fail"})
                assert failed.json()["outcome"] == "failed"
                events = (await ask("GET", "/conversations/c/events?limit=1000", 200)).json()["events"]
                replied = [e["body"] for e in events if e["kind"] == "reply"]
                assert [body["known"] for body in replied] == [4, 4, 4], "the agent had them all, and said them all"
                assert first.json()["seq"] and "<secret>" in json.dumps(events)
                for path in ("", "/vault", "/start", "/timeline", "/export"):
                    await ask("GET", f"/conversations/c{path}")
                for path in ("/nodes", "/metrics", "/activity", "/readyz", "/conversations", "/"):
                    await ask("GET", path)
            running = processes(iter(one.nodes))
            if server is not None:
                server.told("SAVE")
            found = files_of(one.folder, hidden) | replies | running
            node.drain()
            await node.ended(60)
            found |= {f"{name} at the end": data for name, data in files_of(one.folder, hidden).items()}
    if server is not None:  # its own arguments hold it: that is the server's business, and not ours
        found = {name: data for name, data in found.items() if b"requirepass" not in data}
    place = {"sqlite": "/canaries.db", "redis": "/redis/", "postgres": "/pg_wal/"}[kind]
    assert any(place in name and b"<secret>" in data for name, data in found.items()), "what was written was searched"
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
