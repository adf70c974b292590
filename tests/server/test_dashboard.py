"""The dashboard without a browser: who gets the pages, under which policy, and that they are whole; the last hour."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter

from tenure.server import wire
from tenure.server.dashboard import FILES, POLICY

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = ROOT / "src" / "tenure" / "server" / "dashboard" / "pages"
BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
SCRIPTS = sorted(name for name in FILES if name.endswith(".js"))


# --- who gets the pages ---------------------------------------------------------------------------------------------


async def test_a_browser_gets_the_dashboard_and_a_program_what_it_got_before(http):
    page = await http.get("/", headers=BROWSER)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["vary"] == "Accept"
    for program in ({}, {"accept": "*/*"}, {"accept": "application/json"}):
        reply = await http.get("/", headers=program)
        assert (reply.status_code, reply.headers["content-type"]) == (404, "application/problem+json")
    assert (await http.post("/", headers=BROWSER)).status_code == 404


async def test_the_pages_need_no_key_and_everything_that_they_ask_does(cluster):
    await cluster.node("n1", api_key="s3cret")
    http = await cluster.http("n1")
    assert (await http.get("/", headers=BROWSER)).status_code == 200
    for name in FILES:
        assert (await http.get(f"/dashboard/{name}")).status_code == 200
    for path in ("/", "/nodes", "/activity", "/dashboard/", "/dashboard/nothing.js", "/dashboard/../nodes"):
        assert (await http.get(path)).status_code == 401, path


@pytest.mark.parametrize("name", ["index.html", "app.js", "style/tokens.css", "mark.svg"])
async def test_every_file_comes_under_the_strict_policy(http, name):
    reply = await http.get("/", headers=BROWSER) if name == "index.html" else await http.get(f"/dashboard/{name}")
    assert reply.content == (PAGES / name).read_bytes()
    assert reply.headers["content-security-policy"] == POLICY
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-cache"


def test_the_policy_lets_nothing_in_from_elsewhere():
    parts = dict(part.split(" ", 1) for part in POLICY.split("; "))
    assert parts["default-src"] == "'none'"
    assert {parts[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert {parts[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert parts["require-trusted-types-for"] == "'script'"


async def test_a_page_that_is_known_is_not_sent_again(http):
    first = await http.get("/dashboard/app.js")
    again = await http.get("/dashboard/app.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == POLICY
    other = await http.get("/dashboard/app.js", headers={"if-none-match": '"another"'})
    assert other.status_code == 200
    head = await http.head("/dashboard/app.js")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(first.content))


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/", "/dashboard/x.js", "/dashboard/%2e%2e/__init__.py"])
async def test_there_is_nothing_else_below_it(http, path):
    reply = await http.get(path, headers=BROWSER)
    assert (reply.status_code, reply.headers["content-type"]) == (404, "application/problem+json")


async def test_it_may_be_mounted_below_a_path(cluster):
    outer = FastAPI()
    outer.mount("/agents", await cluster.node("n1"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://tenure") as http:
        page = await http.get("/agents/", headers=BROWSER)
        assert page.status_code == 200
        for address in re.findall(r'(?:src|href)="(dashboard/[^"]+)"', page.text):
            assert (await http.get(f"/agents/{address}")).status_code == 200, address


# --- that they are whole --------------------------------------------------------------------------------------------


def test_all_that_the_pages_name_is_there():
    page = FILES["index.html"].content.decode()
    named = re.findall(r'(?:src|href)="dashboard/([^"]+)"', page)
    assert named
    assert set(named) <= set(FILES)
    imported: set[str] = set()
    for name in SCRIPTS:
        found = re.findall(r'from "\./([^"]+)"', FILES[name].content.decode())
        assert set(found) <= set(FILES), name
        imported |= set(found)
    assert set(SCRIPTS) == imported | {name for name in named if name.endswith(".js")}, "a script that nobody loads"


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_comes_from_elsewhere_or_is_made_of_markup(name):
    text = FILES[name].content.decode().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|[\"'(]//\w", text)
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert sink not in text
    assert not re.search(r"\bstyle=|\bon\w+=\"|javascript:", text)
    assert len(text.splitlines()) <= 500


def test_the_wheel_carries_the_pages(tmp_path):
    command = [sys.executable, "-c", "import sys, uv_build; print(uv_build.build_wheel(sys.argv[1]))", str(tmp_path)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    packed = {
        name for name in zipfile.ZipFile(wheel).namelist() if "/dashboard/pages/" in name and not name.endswith("/")
    }
    assert packed == {f"tenure/server/dashboard/pages/{name}" for name in FILES}


# --- what they ask, beside what was there ---------------------------------------------------------------------------


async def test_the_last_hour_tells_takeovers_and_turns_of_every_node(cluster, eventually):
    one, two = await cluster.http("n1"), await cluster.http("n2")
    for number in range(3):
        sent = await one.post("/conversations", json={"id": f"c{number}", "message": "hello"})
        assert sent.status_code == 201
    await one.post("/conversations/c0/messages?wait_s=20", json={"text": "fail"})
    forced = 0
    for http in (one, two):
        forced += (await http.post("/conversations/c0/takeover")).status_code == 200

    async def all_told():
        tellings = [(await http.get("/activity")).json() for http in (one, two)]
        return (
            tellings if all(t["hour"]["completed"] == 3 and len(t["takeovers"]) == forced for t in tellings) else None
        )

    for telling in await eventually(all_told):
        TypeAdapter(wire.ActivityShape).validate_python(telling, strict=True)
        assert len(telling["minutes"]) == 60
        assert telling["hour"]["failed"] == 1
        assert telling["hour"]["takeovers"] == forced == sum(minute["takeovers"] for minute in telling["minutes"])
        assert 0 <= telling["hour"]["p50_s"] <= telling["hour"]["p95_s"] <= telling["hour"]["max_s"]
        newest = telling["takeovers"][0]
        assert (newest["conversation_id"], newest["forced"], newest["node"]) == ("c0", True, "n2")
        assert [one["epoch"] for one in telling["takeovers"]] == sorted(
            (one["epoch"] for one in telling["takeovers"]), reverse=True
        )


async def test_each_node_says_which_one_answers_and_how_old_its_lease_is(cluster):
    for name in ("n1", "n2"):
        await cluster.http(name)
    for name in ("n1", "n2"):
        nodes = (await (await cluster.http(name)).get("/nodes")).json()
        assert [node["node"] for node in nodes if node["here"]] == [name]
        assert all(0 <= node["lease_age_s"] <= 10 for node in nodes)


async def test_a_search_looks_into_id_title_user_and_agent(http):
    for id, more in {
        "bill-1": {"title": "Invoices"},
        "bill-2": {"user_id": "ann"},
        "other": {"title": "PAID bills"},
    }.items():
        assert (await http.post("/conversations", json={"id": id, **more})).status_code == 201

    async def found(search):
        reply = await http.get("/conversations", params={"search": search})
        return [one["id"] for one in reply.json()["conversations"]]

    assert await found("BILL") == ["bill-1", "bill-2", "other"]
    assert await found("invoice") == ["bill-1"]
    assert await found("ann") == ["bill-2"]
    assert await found("parrot") == ["bill-1", "bill-2", "other"]
    assert await found("nobody has this") == []
