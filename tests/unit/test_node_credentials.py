"""Credentials on a node, in virtual time: made anew before they run out, and a named state when they have no value."""

import asyncio
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from node_support import C, Cluster, failing, in_virtual_time

from tenure.abc import Amended, Creation, RuntimeFailure, Submit
from tenure.config import Config
from tenure.conversation import Status
from tenure.errors import CredentialError, InvalidInputError, ProvisioningError
from tenure.journal import Command, Delivery, Draft
from tenure.loops import function_loop
from tenure.loops.function import FunctionTurn
from tenure.node import Node, reasons
from tenure.node import credentials as credentials_module
from tenure.runtimes.process import ProcessProvider
from tenure.stores.memory import MemoryStore
from tenure.vault import Obtained, Secret


class Source:
    """What credentials are made by: a number that rises, until it is `broken`."""

    def __init__(self, lasts_s: float | None) -> None:
        self.lasts_s = lasts_s
        self.made = 0
        self.broken: CredentialError | None = None

    async def obtain(self, asked: Any, unseal: Any, allowed: Any) -> Obtained:
        if self.broken is not None:
            raise self.broken
        self.made += 1
        return Obtained(Secret(f"token-number-{self.made}"), self.lasts_s)


@pytest.fixture
def made_by(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Source]:
    def make(lasts_s: float | None = 100) -> Source:
        source = Source(lasts_s)
        monkeypatch.setattr(credentials_module, "obtain", source.obtain)
        return source

    return make


SETTINGS = {"credentials": {"TOKEN": {"from": "vault:token", "ttl_s": 100}}}
GONE = CredentialError("vault:token", "is not in this conversation's vault", "put it there", everywhere=True)
AWAY = CredentialError("env:TOKEN", "is not set on this node", "set it")


def given(one: Any) -> list[dict[str, str]]:
    return one.provider.given


def listening(one: Any) -> Any:
    one.provider.given = []
    plain = one.provider.configure

    async def configure(runtime: Any, values: Any) -> None:
        one.provider.given.append(dict(values))
        await plain(runtime, values)

    one.provider.configure = configure
    return one


def saying(*words: str, after_s: float = 0) -> Any:
    """An agent that takes its time and then says what it should not."""

    async def on_turn(turn: Any) -> None:
        await asyncio.sleep(after_s)
        await turn.journal([Draft("reply", {"said": list(words)})], {"state": list(words)})

    return on_turn


@in_virtual_time
async def test_a_credential_is_made_anew_in_mid_turn_and_both_values_are_masked(
    cluster: Cluster, made_by: Callable[..., Source]
):
    source, one = made_by(), listening(await cluster.add())
    one.agent.on_turn = saying("token-number-1", "token-number-2", "token-number-3", after_s=160)
    await cluster.create(settings=SETTINGS)
    await cluster.say()
    await asyncio.sleep(200)
    assert cluster.kinds().count("turn_completed") == 1 and source.made == 3
    assert given(one)[:3] == [{"TOKEN": f"token-number-{n}"} for n in (1, 2, 3)]
    assert cluster.events("reply")[0].body == {"said": ["<secret>"] * 3}
    assert "token-number" not in repr(cluster.disk.conversations[C]), "nor in the loop's state"
    assert one.node.veil.text("token-number-1 token-number-3") == "<secret> <secret>"


class Mint(ThreadingHTTPServer):
    """A URL that makes a new token each time, good for a second."""

    made = 0

    def __init__(self) -> None:
        class Answering(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                mint.made += 1
                token = json.dumps({"access_token": f"url-number-{mint.made}", "expires_in": 1}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(token)))
                self.end_headers()
                self.wfile.write(token)

            def log_message(self, *args: object) -> None:
                return None

        mint = self
        super().__init__(("127.0.0.1", 0), Answering)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/token"

    def __enter__(self) -> "Mint":
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


@pytest.mark.blocking_ok
async def test_in_real_time_the_next_command_of_a_turn_sees_what_a_program_and_a_url_have_made_anew(tmp_path: Path):
    program, count = tmp_path / "mint", tmp_path / "count"
    program.write_text(f"#!/bin/sh\necho >> {count}\necho made-number-$(wc -l < {count})\n")
    program.chmod(0o700)
    seen: list[tuple[str, str]] = []

    async def look(turn: FunctionTurn) -> tuple[str, str]:
        ran = await turn.runtime.run('printf "%s %s" "$MADE" "$BY_URL"')
        made, by_url = ran.stdout.split()
        return made, by_url

    async def agent(turn: FunctionTurn) -> None:
        first = now = await look(turn)
        while now[0] == first[0] or now[1] == first[1]:
            now = await look(turn)
        seen.extend((first, now))
        await turn.emit("reply", {"said": [list(pair) for pair in seen]})

    with Mint() as mint:
        config = Config(allow_command=str(program), allow_url=mint.url.removesuffix("token"), witness=False)
        provider = ProcessProvider(tmp_path / "runtimes")
        async with Node(MemoryStore(), {"f": function_loop(agent)}, provider=provider, config=config) as node:
            asked = {
                "MADE": {"refresh": {"command": [str(program)]}, "ttl_s": 1},
                "BY_URL": {"refresh": {"url": mint.url}},
            }
            message = Command("message", {"text": "go"}, "k", Delivery.TURN)
            await node.submit(Submit(C, message, Creation("f", settings={"credentials": asked})))
            async with asyncio.timeout(60):
                while (await node.store.records([C]))[0].unsettled:  # type: ignore[union-attr]
                    await asyncio.sleep(0.02)
            reading: Any = await node.store.read(C, 0)
    kinds = [e.kind for e in reading.events]
    assert kinds.count("turn_started") == kinds.count("turn_completed") == 1 and "turn_resumed" not in kinds
    assert seen[0] == ("made-number-1", "url-number-1")
    assert all(int(value.rpartition("-")[2]) >= 2 for value in seen[1]), seen
    assert "-number-" not in repr(reading.events)
    [reply] = [e for e in reading.events if e.kind == "reply"]
    assert reply.body["said"] == [["<secret>", "<secret>"]] * 2, "old and new"


@in_virtual_time
async def test_one_that_cannot_be_made_anew_is_named_and_no_turn_begins_on_it(
    cluster: Cluster, made_by: Callable[..., Source]
):
    source, one = made_by(), listening(await cluster.add())
    one.agent.on_turn = saying("done", after_s=150)
    await cluster.create(settings=SETTINGS)
    await cluster.say()
    await asyncio.sleep(10)
    source.broken = GONE
    await asyncio.sleep(80)
    assert "credential_failed" not in cluster.kinds(), "the old value is good yet"
    await asyncio.sleep(40)
    assert [e.body["reference"] for e in cluster.events("credential_failed")] == ["vault:token"], "said once"
    assert cluster.record().agent_status == "credential-failed"
    waits = await cluster.say()
    await asyncio.sleep(60)
    assert cluster.kinds().count("turn_completed") == 1, "the open turn goes on"
    assert cluster.status() is Status.FAILED and not cluster.settled(waits)
    told = cluster.events("start_failed")[0].body
    assert told["credential"] == {
        "name": "TOKEN", "reference": "vault:token", "problem": GONE.problem, "remedy": "put it there"
    }  # fmt: skip
    source.broken = None
    await cluster.command("start")
    await asyncio.sleep(200)
    assert cluster.settled(waits) and not cluster.record().agent_status


@in_virtual_time
async def test_one_that_comes_back_in_time_is_restored(cluster: Cluster, made_by: Callable[..., Source]):
    source, one = made_by(), listening(await cluster.add())
    one.agent.on_turn = saying("done", after_s=400)
    await cluster.create(settings=SETTINGS)
    await cluster.say()
    await asyncio.sleep(10)
    source.broken = AWAY
    await asyncio.sleep(120)
    assert cluster.record().agent_status == "credential-failed"
    source.broken = None
    await asyncio.sleep(100)
    assert cluster.kinds().count("credential_restored") == 1 and not cluster.record().agent_status
    assert given(one)[-1] == {"TOKEN": f"token-number-{source.made}"}
    await asyncio.sleep(300)
    assert cluster.kinds().count("turn_completed") == 1 and "start_failed" not in cluster.kinds()


async def amended(cluster: Cluster, **credentials: Any) -> None:
    changes: Any = {"settings": {"credentials": credentials}}
    assert isinstance(await cluster.store.amend(C, cluster.record().version, changes), Amended)


@in_virtual_time
async def test_a_dead_one_that_the_settings_replace_does_not_fail_the_next_message(
    cluster: Cluster, made_by: Callable[..., Source]
):
    source, one = made_by(), listening(await cluster.add())
    one.agent.on_turn = saying("done")
    await cluster.create(settings=SETTINGS)
    await cluster.say()
    await asyncio.sleep(10)
    source.broken = GONE
    await asyncio.sleep(120)
    assert cluster.record().agent_status == "credential-failed"
    source.broken, source.lasts_s = None, None
    await amended(cluster, TOKEN="vault:another")
    sent = await cluster.say()
    await asyncio.sleep(5)
    assert cluster.settled(sent) and "start_failed" not in cluster.kinds()
    assert cluster.kinds().count("loop_started") == 1, "the same owner, the same loop"
    assert cluster.kinds().count("credential_restored") == 1 and not cluster.record().agent_status
    assert given(one)[-1] == {"TOKEN": f"token-number-{source.made}"}
    made = source.made
    await asyncio.sleep(200)
    assert source.made == made, "the one that ran out is not asked for any more"


@in_virtual_time
async def test_a_dead_one_that_was_mended_where_it_is_does_not_fail_the_next_message(
    cluster: Cluster, made_by: Callable[..., Source]
):
    """A secret was put into the vault: the message that follows is sooner than the next try."""
    source, one = made_by(), listening(await cluster.add(backoff_s=1000))
    await cluster.create(settings=SETTINGS)
    await cluster.say()
    await asyncio.sleep(10)
    source.broken = GONE
    await asyncio.sleep(150)
    assert cluster.record().agent_status == "credential-failed"
    source.broken, made = None, source.made
    sent = await cluster.say()
    await asyncio.sleep(1)
    assert cluster.settled(sent) and "start_failed" not in cluster.kinds() and not cluster.record().agent_status
    assert source.made == made + 1 and given(one)[-1] == {"TOKEN": f"token-number-{source.made}"}


@in_virtual_time
async def test_one_that_runs_out_may_come_with_the_settings_and_is_made_anew(
    cluster: Cluster, made_by: Callable[..., Source]
):
    source, one = made_by(None), listening(await cluster.add())
    await cluster.create(settings={"credentials": {"FIXED": "vault:fixed"}})
    await cluster.say()
    await asyncio.sleep(10)
    assert not keepers(), "what never runs out costs no task"
    source.lasts_s = 100
    await amended(cluster, TOKEN={"from": "vault:token", "ttl_s": 100})
    await cluster.say()
    await asyncio.sleep(10)
    made = source.made
    await asyncio.sleep(100)
    assert source.made == made + 1 and given(one)[-1] == {"TOKEN": f"token-number-{source.made}"}
    assert len(keepers()) == 1
    await one.leave()
    assert not keepers(), "it ends with its tenure"


def keepers() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "credentials"]


@in_virtual_time
async def test_a_shorter_one_is_not_missed_while_a_longer_one_is_waited_for(
    cluster: Cluster, made_by: Callable[..., Source]
):
    source, one = made_by(1000), listening(await cluster.add())
    await cluster.create(settings={"credentials": {"LONG": "vault:long"}})
    await cluster.say()
    await asyncio.sleep(10)
    source.lasts_s = 20
    await amended(cluster, SHORT="vault:short")
    await cluster.say()
    await asyncio.sleep(5)
    made = source.made
    await asyncio.sleep(50)
    assert source.made >= made + 2, "it was made anew all the time"
    assert given(one)[-1] == {"SHORT": f"token-number-{source.made}"}
    assert "credential_failed" not in cluster.kinds()


@in_virtual_time
async def test_settings_that_change_while_one_is_made_anew_have_the_last_word(
    cluster: Cluster, made_by: Callable[..., Source]
):
    source, one = made_by(), listening(await cluster.add())
    await cluster.create(settings=SETTINGS)
    await cluster.say()
    await asyncio.sleep(10)
    going, slow = one.provider.configure, asyncio.Event()

    async def configure(runtime: Any, values: Any) -> None:
        if "TOKEN" in values:
            await slow.wait()
        await going(runtime, values)

    one.provider.configure = configure
    await asyncio.sleep(80)  # the renewal is under way, and its runtime takes its time
    assert source.made == 2 and len(given(one)) == 1
    source.lasts_s = None
    await amended(cluster, OTHER="vault:other")
    sent = await cluster.say()
    await asyncio.sleep(1)
    slow.set()
    await asyncio.sleep(5)
    assert cluster.settled(sent)
    assert given(one)[-1] == {"OTHER": f"token-number-{source.made}"}, "and not what was made before"
    await asyncio.sleep(300)
    assert given(one)[-1] == {"OTHER": f"token-number-{source.made}"} and "start_failed" not in cluster.kinds()


@in_virtual_time
async def test_a_runtime_that_does_not_take_it_is_a_credential_that_failed(
    cluster: Cluster, made_by: Callable[..., Source]
):
    source, one = made_by(), listening(await cluster.add())
    one.agent.on_turn = saying("done", after_s=400)
    await cluster.create(settings=SETTINGS)
    await cluster.say()
    await asyncio.sleep(10)
    one.provider.at["configure"] = failing(RuntimeFailure("no room for token-number-2"))
    await asyncio.sleep(150)
    problem = str(cluster.events("credential_failed")[0].body["problem"])
    assert problem == "could not be given to the runtime: no room for <secret>"
    assert source.made > 2, "tried again"


@in_virtual_time
async def test_what_no_node_can_have_fails_for_good_at_once_until_the_next_command(
    cluster: Cluster, made_by: Callable[..., Source]
):
    source = made_by(None)
    source.broken = GONE
    await cluster.add()
    await cluster.create(settings=SETTINGS)
    first = await cluster.say()
    await asyncio.sleep(300)
    assert cluster.kinds().count("start_failed") == 1 and cluster.status() is Status.FAILED
    assert cluster.record().agent_status == "credential-failed"
    source.broken = None
    second = await cluster.say()
    await asyncio.sleep(5)
    assert cluster.settled(first) and cluster.settled(second)
    assert (cluster.status(), cluster.record().agent_status) == (Status.IDLE, "")


@in_virtual_time
async def test_what_another_node_may_have_is_tried_a_few_times(cluster: Cluster, made_by: Callable[..., Source]):
    made_by(None).broken = AWAY
    await cluster.add()
    await cluster.create(settings=SETTINGS)
    await cluster.say()
    await asyncio.sleep(600)
    failed = cluster.events("start_failed")
    assert len(failed) == credentials_module.NODES_TRY + 1, "no conversation fills its journal for ever"
    assert [e.body["permanent"] for e in failed] == [False] * credentials_module.NODES_TRY + [True]


@in_virtual_time
async def test_a_provider_that_repeats_what_it_was_given_is_not_repeated(
    cluster: Cluster, made_by: Callable[..., Source]
):
    made_by()
    one = await cluster.add()
    one.provider.at["configure"] = failing(RuntimeFailure("bad token token-number-1", step="login token-number-1"))
    await cluster.create(settings=SETTINGS)
    with pytest.raises(ProvisioningError) as failed:
        await one.start()
    assert (failed.value.step, failed.value.reason) == ("login <secret>", "bad token <secret>")
    assert failed.value.__cause__ is None
    assert "token-number" not in repr(cluster.disk.conversations[C])


@in_virtual_time
async def test_what_is_cut_is_masked_first(cluster: Cluster, made_by: Callable[..., Source]):
    """A value that lies across the place where a text is cut: no part of it is written."""
    source, one = made_by(), await cluster.add()
    fill = "x" * (reasons.CHARS - len("ValueError: ") - 5)

    async def on_now(command: Any) -> Any:
        raise ValueError(fill + "token-number-1")

    async def on_turn(turn: Any) -> None:
        raise ValueError(fill + "x" * len("ValueError: ") + "token-number-1")

    one.agent.on_now, one.agent.on_turn = on_now, on_turn
    await cluster.create(settings=SETTINGS)
    await cluster.say()
    await cluster.command("pause")
    await asyncio.sleep(10)
    told: list[Any] = [
        cluster.events("turn_failed")[0].body["error"],
        cluster.events("command_settled")[0].body["body"],
    ]
    assert all(error["message"].startswith("xxx") and len(error["message"]) > reasons.CHARS - 20 for error in told)

    async def configure(name: str) -> None:
        raise ValueError(f"{fill}token-number-{source.made}")

    one.provider.at["configure"] = configure
    await cluster.command("stop")
    await asyncio.sleep(1)
    await cluster.command("start")
    await asyncio.sleep(10)
    assert "xxx" in str(cluster.events("start_failed")[0].body["reason"])
    assert "x<secr" in repr(cluster.journal()) and "xto" not in repr(cluster.journal())


@in_virtual_time
async def test_what_may_not_be_asked_for_is_refused_before_anything_is_claimed(cluster: Cluster):
    one = await cluster.add(allow_env="LLM_*")
    for wrong in ("env:HOME", "file:/etc/shadow", {"refresh": {"url": "http://169.254.169.254/latest"}}):
        with pytest.raises(InvalidInputError, match="--allow-") as refused:
            await one.start(settings={"credentials": {"TOKEN": wrong}})
        assert refused.value.field == "settings.credentials.TOKEN"
    assert cluster.journal() == []
    one.node.check("echo", {"credentials": {"TOKEN": "env:LLM_KEY"}})


@in_virtual_time
async def test_the_owner_judges_again(cluster: Cluster):
    """The node that was asked allowed it; the one that owns it does not."""
    await cluster.add()
    await cluster.create(settings={"credentials": {"TOKEN": "env:LLM_KEY"}})
    await cluster.say()
    await asyncio.sleep(600)
    assert "may ask this node for" in str(cluster.events("start_failed")[0].body["reason"])
    assert cluster.status() is Status.FAILED


def test_nothing_is_allowed_by_default():
    assert [getattr(Config(), f"allow_{what}") for what in ("env", "file", "command", "url")] == [""] * 4
