"""Client commands against two nodes of one memory store: answers for people and programs, exit codes, bad input."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvicorn
from click.testing import Result
from cryptography.fernet import Fernet
from typer.testing import CliRunner

from tenure.abc import About, Buried, Claim, Creation, Death, Fenced, Held, Reason, Submit
from tenure.cli.asking import DEFAULT_URL, urls_of
from tenure.cli.exits import Exit
from tenure.cli.tables import said
from tenure.cli.tree import tree
from tenure.cli.vault import rotate
from tenure.clock import Instant
from tenure.config import Config
from tenure.embed import Node
from tenure.errors import InvalidInputError
from tenure.lease import Epoch, IncarnationId, new_incarnation, new_token
from tenure.runtimes import open_provider
from tenure.server import close_streams, create_app
from tenure.stores.memory import Disk, MemoryStore
from tenure.testing.processes import free_port
from tenure.testing.store_suite.stage import Writer, note
from tenure.vault import Keys

pytestmark = pytest.mark.blocking_ok  # a program for one person may block: it has nobody else to serve

ASKS = json.dumps([{"ask": "which colour?"}, {"reply": "{output} it is"}])
FAILS = json.dumps([{"fail": "told to"}])
SLOW = json.dumps([{"sleep_s": 60}])


class Cluster:
    """Nodes a and b in a thread of their own."""

    def __init__(self, folder: Path) -> None:
        self.urls = {name: f"http://127.0.0.1:{free_port()}" for name in "ab"}
        self.nodes: dict[str, Node] = {}
        self.disk = Disk()
        self._folder = folder
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._end: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def _serve(self) -> None:
        self._end, self._loop = asyncio.Event(), asyncio.get_running_loop()
        disk, servers, apps = self.disk, [], []
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            for name, url in self.urls.items():
                port = int(url.rpartition(":")[2])
                provider = open_provider("process", root=self._folder / name)
                config = Config(node=name, port=port, drain_s=0)
                node = self.nodes[name] = Node(MemoryStore(disk), provider=provider, config=config)
                await stack.enter_async_context(node)
                apps.append(create_app(node))
                settings = uvicorn.Config(apps[-1], port=port, log_config=None, lifespan="off", ws="none")
                servers.append(uvicorn.Server(settings))
                group.create_task(servers[-1].serve())
            while not all(server.started for server in servers):
                await asyncio.sleep(0.01)
            self._ready.set()
            await self._end.wait()
            for app, server in zip(apps, servers, strict=True):
                close_streams(app)
                server.should_exit = True

    def does(self, work: Coroutine[Any, Any, None]) -> None:
        """Done in the nodes' own loop, beside them."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def __enter__(self) -> "Cluster":
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._loop is not None and self._end is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("runtimes")) as both:
        yield both


class Shell:
    """Runs commands; `at` one node, or wherever."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def run(self, *words: str, at: str | None = None, stdin: str | None = None) -> Result:
        url = ",".join(self.cluster.urls.values()) if at is None else self.cluster.urls[at]
        environ = {"TENURE_URL": url, "TENURE_API_KEY": None}
        return CliRunner(env=environ).invoke(tree, list(words), input=stdin)

    def json(self, *words: str, at: str | None = None, code: Exit = Exit.OK) -> Any:
        done = self.run(*words, "--json", at=at)
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)


@pytest.fixture
def shell(cluster: Cluster) -> Shell:
    return Shell(cluster)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A conversation of this test alone."""
    return request.node.name.replace("[", "-").replace("]", "").replace(" ", "-")[:100]


# --- conversations --------------------------------------------------------------------------------------------------


def test_a_message_starts_a_conversation_by_itself(shell: Shell, name: str):
    done = shell.run("send", name, "hello there", "--wait")
    assert done.exit_code == Exit.OK, done.output
    assert "Noted: hello there" in done.stdout
    assert "completed" in done.stdout


def test_send_for_programs(shell: Shell, name: str):
    told = shell.json("send", name, "hello", "--wait", "--key", "k")
    assert (told["duplicate"], told["settled"], told["outcome"], told["key"]) == (False, True, "completed", "k")
    assert told["events"][-1]["kind"] == "turn_completed"
    again = shell.json("send", name, "hello", "--key", "k")
    assert (again["duplicate"], again["seq"]) == (True, told["seq"])


def test_send_reads_standard_input(shell: Shell, name: str):
    done = shell.run("send", name, "-", "--wait", stdin="from a pipe\n")
    assert "Noted: from a pipe (" in done.stdout


def test_a_turn_that_fails_is_1(shell: Shell, name: str):
    done = shell.run("send", name, "--content", FAILS, "--wait")
    assert done.exit_code == Exit.FAILED
    assert "told to" in done.stdout


def test_what_is_not_settled_in_time_is_5_and_says_with_which_key_to_wait_on(shell: Shell, name: str):
    done = shell.run("send", name, "--content", SLOW, "--wait", "--wait-s", "0.2", "--key", "k9")
    assert done.exit_code == Exit.UNAVAILABLE
    assert "--key k9" in done.stderr
    assert shell.run("interrupt", name, "--wait").exit_code == Exit.OK
    assert (
        shell.json("send", name, "--content", SLOW, "--wait", "--key", "k9", code=Exit.FAILED)["outcome"]
        == "interrupted"
    )


def test_answer(shell: Shell, name: str):
    shell.json("send", name, "--content", ASKS, "--key", "k")
    assert shell.run("tail", name, "--until", "turn_waiting").exit_code == Exit.OK
    assert shell.json("show", name)["status"] == "waiting"
    assert shell.run("answer", name, "blue", "--wait").exit_code == Exit.OK
    assert "blue it is" in shell.run("send", name, "--content", ASKS, "--key", "k", "--wait").stdout


def test_stop_and_start(shell: Shell, name: str):
    shell.json("send", name, "hello", "--wait")
    assert shell.json("stop", name, "--wait")["outcome"] == "done"
    refused = shell.run("send", name, "anyone?")
    assert refused.exit_code == Exit.CONFLICT
    assert refused.stderr == f"tenure: conversation {name} is stopped; start it first\n"
    info = shell.json("start", name)
    assert (info["ready"], info["conversation_id"]) == (True, name)
    assert shell.run("send", name, "anyone?").exit_code == Exit.OK


def test_start_creates_and_here_names_the_owner(shell: Shell, name: str):
    info = shell.json("start", name, "--here", at="a")
    assert (info["here"], info["owner"]["node"]) == (True, "a")
    elsewhere = shell.run("start", name, "--here", at="b")
    assert elsewhere.exit_code == Exit.CONFLICT
    assert "is owned by node a" in elsewhere.stderr
    wherever = shell.json("start", name, at="b")
    assert (wherever["here"], wherever["owner"]["node"]) == (False, "a")


def test_takeover(shell: Shell, name: str):
    before = shell.json("start", name, "--here", at="a")
    late = shell.run("takeover", name, "--epoch", str(before["epoch"] - 1), at="b")
    assert (late.exit_code, "owned by node a" in late.stderr) == (Exit.CONFLICT, True)
    after = shell.json("takeover", name, "--epoch", str(before["epoch"]), at="b")
    assert (after["owner"]["node"], after["epoch"]) == ("b", before["epoch"] + 1)
    assert "b (http" in shell.run("show", name).stdout


def test_start_with_settings_of_its_own(shell: Shell, name: str):
    settings = json.dumps({"script": [{"reply": "as told"}]})
    assert shell.run("start", name, "--settings", settings, "--agent", "scripted").exit_code == Exit.OK
    assert "as told" in shell.run("send", name, "hey", "--wait").stdout
    other = shell.run("start", name, "--settings", "{}")
    assert other.exit_code == Exit.CONFLICT


def test_show_and_ls(shell: Shell, name: str):
    shell.json("send", name, "hello", "--wait")
    told = shell.json("show", name, "--events", "2")
    assert told["start"]["step"] is None and told["start"]["error"] is None
    assert (told["id"], told["status"], len(told["events"])) == (name, "idle", 2)
    shown = shell.run("show", name).stdout
    assert "turn_completed" in shown and "scripted" in shown
    assert name in [one["id"] for one in shell.json("ls", "--limit", "1000")]
    assert name in shell.run("ls", "--limit", "1000").stdout
    assert "there are more" in shell.run("ls", "--limit", "1").stdout
    assert len(shell.json("ls", "--limit", "1")) == 1
    assert {one["status"] for one in shell.json("ls", "--status", "idle")} == {"idle"}


def test_show_the_timeline(shell: Shell, name: str):
    """Who owned it, from when to when, and why it moved: here by force, from whichever node had it to the other."""
    shell.json("send", name, "hello", "--wait")
    [first] = shell.json("show", name, "--timeline")
    assert (first["epoch"], first["until"], first["ended"], first["refused"]) == (1, None, None, [])
    other = next(node for node in "ab" if node != first["node"])
    shell.json("takeover", name, at=other)
    told = shell.json("show", name, "--timeline")
    assert [(one["epoch"], one["node"], one["ended"]) for one in told] == [
        (1, first["node"], "forced"),
        (2, other, None),
    ]
    assert (told[1]["why"], told[0]["until"]) == ("forced", told[1]["since"])
    shown = shell.run("show", name, "--timeline").stdout
    rows = [line.split() for line in shown.splitlines()]
    assert [row[:2] for row in rows if row and row[0] in "12"] == [["1", first["node"]], ["2", other]]
    assert shown.count("forced") == 2  # how the first ended, and why the second claimed
    assert shell.run("show", "no-such-one", "--timeline").exit_code == Exit.NOT_FOUND


async def one_after_the_other(disk: Disk, name: str) -> None:
    """Owners under the test's hand, each ended in its own way; the third comes back from its freeze, and writes."""
    async with MemoryStore(disk) as store:
        await store.submit(Submit(name, None, Creation(agent="by-hand")))

        async def owner(number: int, previous: IncarnationId | None = None, ends: Death | None = None) -> Writer:
            incarnation = new_incarnation()
            about = About(f"hand{number}", "http://hand", 10, ("by-hand",), Instant(0))
            await store.register(incarnation, about, 60)
            if previous is not None and ends is not None:
                disk.nodes[previous].expires -= 3600 if ends is Death.EXPIRED else 0
                buried = await store.bury(previous, ends)
                assert isinstance(buried, Buried) and buried.why is ends
            claim = Claim(
                name, incarnation, new_token(), Epoch(number - 1), about.node, about.address, "wanted", death=ends
            )
            held = await store.claim(claim)
            assert isinstance(held, Held)
            return Writer(store, held)

        drained = await owner(1)
        await drained.release(reason=Reason.DRAINED)
        died = await owner(2)
        frozen = await owner(3, died.lease.incarnation, Death.EXITED)
        expired = await owner(4, frozen.lease.incarnation, Death.EXPIRED)
        for _ in range(2):
            assert isinstance(await store.append(frozen.batch(note("late"))), Fenced)
        assert isinstance(await store.release(frozen.farewell()), Fenced)
        gave_up = await owner(5, expired.lease.incarnation, Death.EXPIRED)
        last = await owner(6, gave_up.lease.incarnation, Death.RETIRED)
        for left in (drained, last):
            await store.bury(left.lease.incarnation, Death.RETIRED)


def test_the_timeline_says_how_each_owner_ended_and_what_a_zombie_was_refused(shell: Shell, name: str):
    shell.cluster.does(one_after_the_other(shell.cluster.disk, name))
    told = shell.json("show", name, "--timeline")
    assert [one["ended"] for one in told] == ["drained", "died", "frozen", "expired", "gave_up", None]
    refused = [sorted(write["operation"] for write in one["refused"]) for one in told]
    assert refused == [[], [], ["append", "append", "release"], [], [], []]
    assert all(told[2]["until"] <= write["at"] for write in told[2]["refused"]), "after it was another's"
    rows = {
        words[1]: line
        for line in shell.run("show", name, "--timeline").stdout.splitlines()
        if len(words := line.split()) > 5
    }
    shown = {
        "hand1": "drained",
        "hand2": "died",
        "hand3": "frozen",
        "hand4": "expired",
        "hand5": "gave up",
        "hand6": "holds it",
    }
    for node, ended in shown.items():
        assert ended in rows[node]
        assert ("2 append" in rows[node], "1 release" in rows[node]) == (node == "hand3", node == "hand3")


def test_tail_tells_events_as_lines(shell: Shell, name: str):
    shell.json("send", name, "hello", "--wait")
    lines = shell.run("tail", name, "--after", "0", "--no-follow", "--json").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(shell.run("tail", name, "--events", "3", "--no-follow").stdout.splitlines()) == 3
    until = shell.run("tail", name, "--after", "0", "--until", "reply").stdout.splitlines()
    assert "Noted: hello" in until[-1]


def test_another_users_conversation_is_not_found(shell: Shell, name: str):
    assert shell.run("send", name, "mine", "--user", "ann").exit_code == Exit.OK
    assert shell.run("show", name, "--user", "ann").exit_code == Exit.OK
    assert shell.run("show", name, "--user", "ben").exit_code == Exit.NOT_FOUND
    assert shell.run("send", name, "theirs", "--user", "ben").exit_code == Exit.CONFLICT


# --- nodes ----------------------------------------------------------------------------------------------------------


def test_nodes(shell: Shell):
    assert {one["node"] for one in shell.json("nodes")} == {"a", "b"}
    table = shell.run("nodes").stdout
    assert all(url in table for url in shell.cluster.urls.values())


def test_drain_of_a_node_that_is_not_there(shell: Shell):
    done = shell.run("drain", "nobody")
    assert done.exit_code == Exit.NOT_FOUND
    assert done.stderr.startswith("tenure: node: ")


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("show",), ("tail",), ("stop",), ("interrupt",), ("answer", "x"), ("takeover",)])
def test_an_unknown_conversation_is_3(shell: Shell, words: tuple[str, ...]):
    command, *rest = words
    done = shell.run(command, "nowhere", *rest)
    assert done.exit_code == Exit.NOT_FOUND
    assert done.stderr == "tenure: conversation nowhere is not known; create it first\n"


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("send", "c"), "text"),
        (("send", "c", "--content", "{"), "content"),
        (("start", "c", "--settings", "nonsense"), "settings"),
        (("start", "c", "--settings", '{"script": 1}'), "settings.script"),
        (("answer", "c"), "text"),
        (("send", "a b", "x"), "id"),
        (("send", "a/../b", "x"), "id"),
        (("send", "", "x"), "id"),
        (("ls", "--url", "gopher://x"), "url"),
    ],
)
def test_bad_input_is_one_line_with_the_field(shell: Shell, words: tuple[str, ...], field: str):
    done = shell.run(*words)
    assert done.exit_code == Exit.USAGE, done.output
    assert done.stderr.startswith(f"tenure: {field}: ")
    assert done.stderr.count("\n") == 1


def test_nobody_answers():
    done = CliRunner().invoke(tree, ["ls", "--url", f"http://127.0.0.1:{free_port()}", "--patience", "0"])
    assert done.exit_code == Exit.UNAVAILABLE
    assert "no node answered" in done.stderr


def test_urls_come_from_the_options_or_else_from_the_environment():
    assert urls_of(["http://a,http://b", "http://c"], {}) == ["http://a", "http://b", "http://c"]
    assert urls_of(None, {"TENURE_URL": "http://a, http://b"}) == ["http://a", "http://b"]
    assert urls_of(None, {}) == [DEFAULT_URL]
    with pytest.raises(InvalidInputError, match="names no node"):
        urls_of([","], {})


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"text": "two\nlines"}, "two lines"),
        ({"text": "hi", "content": [1]}, "hi"),
        ({"text": "hi", "more": 1}, 'hi {"more": 1}'),
        ({"call": "c1", "result": None, "name": ""}, '{"call": "c1"}'),
        ({}, ""),
    ],
)
def test_what_a_body_says(body: dict[str, Any], text: str):
    assert said(body) == text


# --- the event stream, out and in -----------------------------------------------------------------------------------


def test_export_import_and_fork(shell: Shell, name: str, tmp_path: Path):
    shell.json("send", name, "hello", "--wait")
    file = tmp_path / "out.ndjson"
    assert shell.run("export", name, "-o", str(file), at="b").exit_code == Exit.OK
    assert shell.run("export", name).stdout.splitlines()[1] == file.read_text().splitlines()[1]
    copy = shell.json("import", str(file), "--id", f"{name}-copy", at="a")
    assert copy["id"] == f"{name}-copy"
    assert shell.run("import", "-", "--id", f"{name}-copy", stdin=file.read_text()).exit_code == Exit.OK
    fork = shell.run("fork", name, "--at", "3", "--id", f"{name}-fork")
    assert "does nothing by itself" in fork.stdout
    assert [e["kind"] for e in shell.json("show", f"{name}-fork")["events"]][-1] == "released"
    assert [one.name for one in tmp_path.iterdir()] == ["out.ndjson"]


def test_what_openhands_has_written_comes_in_and_what_has_nothing_of_it_does_not_go_out(
    shell: Shell, name: str, tmp_path: Path
):
    """Here without an OpenHands agent: the copy is stored all the same, and a trajectory of it is what came in."""
    message = {"kind": "MessageEvent", "id": "m1", "source": "user", "timestamp": "2026-01-01T00:00:00"}
    message["llm_message"] = {"role": "user", "content": [{"type": "text", "text": "hello"}]}  # type: ignore[assignment]
    trajectory, folder = tmp_path / "t.json", tmp_path / "stock"
    trajectory.write_text(json.dumps([message]))
    copy = shell.json("import", str(trajectory), "--id", name, "--agent", "scripted")
    assert copy["id"] == name
    assert json.loads(shell.run("export", name, "--as", "trajectory").stdout) == [message]
    refused = shell.run("export", name, "--as", "directory", "-o", str(folder))
    assert refused.exit_code == Exit.USAGE and "settings.agent" in refused.stderr and not folder.exists()
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"agent": {"tools": []}}))
    words = ("import", str(trajectory), "--id", f"{name}-2", "--agent", "scripted", "--settings", str(settings))
    assert shell.run(*words).exit_code == Exit.OK
    assert shell.run("export", f"{name}-2", "--as", "directory", "-o", str(folder)).exit_code == Exit.OK
    assert sorted(p.name for p in folder.rglob("*.json")) == ["base_state.json", "event-00000-m1.json"]
    assert shell.run("export", f"{name}-2", "--as", "directory", "-o", str(folder)).exit_code != Exit.OK
    assert shell.json("import", str(folder), "--id", f"{name}-3", "--agent", "scripted")["id"] == f"{name}-3"
    assert not list(tmp_path.glob("*.part"))


def test_files_that_are_no_exports(shell: Shell, name: str, tmp_path: Path):
    file = tmp_path / "bad"
    file.write_text("{}\n")
    for words in (("import", str(file)), ("import", str(tmp_path / "missing")), ("export", name, "-o", str(tmp_path))):
        done = shell.run(*words)
        assert done.exit_code != Exit.OK
        assert done.stderr.startswith("tenure: ")
        assert done.stderr.count("\n") == 1
    assert [one.name for one in tmp_path.iterdir()] == ["bad"]


# --- the vault ------------------------------------------------------------------------------------------------------

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
SECRET = "a-value-that-nobody-tells"


@pytest.fixture
def keyed(cluster: Cluster) -> Iterator[Callable[..., None]]:
    """Give nodes their keys, as a restart with another TENURE_SECRET_KEYS does; null: none."""

    def give(**keys: list[str] | None) -> None:
        for name, node in cluster.nodes.items():
            given = keys.get(name, keys.get("both"))
            node.keys = None if given is None else Keys(given)

    give(both=[OLD])
    yield give
    give(both=None)


def test_a_secret_goes_in_is_listed_replaced_and_erased(shell: Shell, name: str, keyed: Callable[..., None]):
    shell.json("start", name)
    said: list[str] = []
    for version, at in enumerate("aab", 1):
        put = shell.run("vault", "put", name, "token", "--json", at=at, stdin=f"{SECRET}-{version}\n")
        assert json.loads(put.stdout) == {"name": "token", "version": version}
        said.append(put.output)
    told = shell.run("vault", "put", name, "other", stdin=SECRET)
    assert told.stdout == "vault:other is kept, version 1\n"
    listed = shell.json("vault", "ls", name, at="b")
    assert listed == {
        "secrets": [{"name": n, "version": v, "key": Keys([OLD]).ids[0]} for n, v in (("other", 1), ("token", 3))]
    }
    table = shell.run("vault", "ls", name)
    assert table.stdout.split()[:3] == ["name", "version", "key"]
    assert SECRET not in "".join([*said, told.output, table.output, str(listed)])
    assert shell.json("vault", "rm", name, "token") == shell.json("vault", "rm", name, "token") == {"name": "token"}
    assert shell.run("vault", "rm", name, "other").stdout == "vault:other is gone\n"
    assert shell.run("vault", "ls", name).stdout == "the vault is empty\n"


@pytest.mark.parametrize(
    ("words", "stdin", "code", "says"),
    [
        (("put", "{name}", "token"), "", Exit.USAGE, "has 0 characters"),
        (("put", "{name}", "token"), SECRET * 9000, Exit.USAGE, "must have 1 to"),
        (("put", "{name}", "no name"), SECRET, Exit.USAGE, "name"),
        (("put", "nobodys", "token"), SECRET, Exit.NOT_FOUND, "nobodys"),
        (("ls", "nobodys"), None, Exit.NOT_FOUND, "nobodys"),
        (("rm", "nobodys", "token"), None, Exit.NOT_FOUND, "nobodys"),
        (("rotate", "--limit", "0"), None, Exit.USAGE, "limit"),
    ],
    ids=["empty", "long", "bad name", "put in none", "list of none", "remove of none", "no page"],
)
def test_what_the_vault_refuses(
    shell: Shell,
    name: str,
    keyed: Callable[..., None],
    words: tuple[str, ...],
    stdin: str | None,
    code: Exit,
    says: str,
):
    shell.json("start", name)
    done = shell.run("vault", *(word.format(name=name) for word in words), stdin=stdin)
    assert (done.exit_code, done.stdout) == (code, "")
    assert says in done.stderr and SECRET not in done.stderr


def test_a_secret_that_is_an_argument_is_no_usage(shell: Shell, name: str):
    assert shell.run("vault", "put", name, "token", SECRET).exit_code == Exit.USAGE


def test_without_keys_it_is_said_how_to_make_one(shell: Shell, name: str, keyed: Callable[..., None]):
    shell.json("start", name)
    keyed(both=None)
    for words in (("put", name, "token"), ("rotate",)):
        done = shell.run("vault", *words, stdin=SECRET)
        assert done.exit_code != Exit.OK and "TENURE_SECRET_KEYS" in done.stderr and SECRET not in done.output


def test_rotation_counts_goes_on_where_it_was_cut_and_says_what_no_key_reads(
    shell: Shell, name: str, keyed: Callable[..., None]
):
    names = [f"{name}-{i}" for i in range(3)]
    for one in names:
        shell.json("start", one)
        assert shell.run("vault", "put", one, "token", stdin=SECRET).exit_code == Exit.OK
    keyed(both=[NEW, OLD])
    done = shell.run("vault", "rotate", "--json", "--limit", "2", at="a")
    first = json.loads(done.stdout)
    assert (done.exit_code, first["secrets"], first["rewritten"]) == (Exit.OK, 3, 3)
    assert first["keys"] == [Keys([NEW]).ids[0]] and first["unreadable"] == []
    cut = shell.run("vault", "rotate", "--limit", "2", at="a")
    after = cut.stderr.split("--after ")[1].split()[0]
    assert cut.stdout.startswith("0 of 3 secrets in ")
    rest = json.loads(shell.run("vault", "rotate", "--json", "--after", after).stdout)
    assert 0 < rest["conversations"] < first["conversations"]
    keyed(both=[OLD])
    stuck = shell.run("vault", "rotate")
    assert stuck.exit_code == Exit.FAILED
    assert all(f"none of the node's keys reads vault:token of {one}" in stuck.stdout for one in names)
    keyed(both=[NEW])
    for one in names:
        shell.json("vault", "rm", one, "token")


async def test_nodes_that_disagree_on_the_first_key_are_noticed(capsys: pytest.CaptureFixture[str]):
    """The pages of one rotation may be answered by different nodes."""
    page = {"conversations": 1, "secrets": 1, "rewritten": 1, "unreadable": []}
    pages = iter([{**page, "key": "one", "next_cursor": "c"}, {**page, "key": "two", "next_cursor": None}])

    async def answer(after: str | None, limit: int) -> dict[str, Any]:
        return next(pages)

    to = cast("Any", SimpleNamespace(client=SimpleNamespace(rotate=answer), as_json=True))
    assert await rotate(to) == Exit.FAILED
    told = json.loads(capsys.readouterr().out)
    assert (told["keys"], told["rewritten"]) == (["one", "two"], 2)


def test_a_restored_store_is_made_safe(tmp_path: Path):
    store = f"sqlite:///{tmp_path}/t.db"
    done = CliRunner().invoke(tree, ["restored", "--store", store, "--json"])
    assert done.exit_code == Exit.OK, done.output
    told = json.loads(done.stdout)
    assert (told["conversations"], told["buried"]) == (0, 0)
    assert told["floor"] > 1_700_000_000
    assert "nodes may start" in CliRunner().invoke(tree, ["restored", "--store", store]).stdout
