"""One connection, many callers: whose answer is whose, what an error means, and what is never sent twice."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hiredis import Reader

from tenure.errors import StoreError, StoreUnavailableError, StoreUnfitError
from tenure.stores.redis.address import Address, Credentials, Endpoint, Mode
from tenure.stores.redis.link import Link, connect
from tenure.stores.redis.scripts import script
from tenure.stores.redis.servers import REDIRECTS, Servers

type Says = Callable[[list[bytes]], bytes | None]
"""What the server answers to a command; null is silence."""

OK = b"+OK\r\n"
CALL = script("forget").call(vault="v", name="n", version=1)


@asynccontextmanager
async def server(says: Says) -> AsyncIterator[tuple[Endpoint, list[list[bytes]]]]:
    """A server that greets politely, then says what it is told to; and what it heard."""
    heard: list[list[bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = Reader()
        while data := await reader.read(1 << 16):
            commands.feed(data)
            while command := commands.gets():
                if command[0] in (b"CLIENT", b"SCRIPT", b"AUTH"):
                    known = b"*%d\r\n" % (len(command) - 2) + b":1\r\n" * (len(command) - 2)
                    writer.write(known if command[1] == b"EXISTS" else OK)
                    continue
                heard.append(command)
                answer = says(command)
                if answer is not None:
                    writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield Endpoint("127.0.0.1", listening.sockets[0].getsockname()[1]), heard


@asynccontextmanager
async def servers(says: Says, timeout_s: float = 5.0) -> AsyncIterator[tuple[Servers, list[list[bytes]]]]:
    async with server(says) as (endpoint, heard):
        all_of_them = Servers(Address(mode=Mode.SINGLE, endpoints=(endpoint,), timeout_s=timeout_s))
        all_of_them.opened = True
        try:
            yield all_of_them, heard
        finally:
            await all_of_them.close()


def echo(command: list[bytes]) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(command[1]), command[1])


# whose answer is whose


async def test_each_caller_gets_its_own_answer():
    async with server(echo) as (endpoint, _):
        link = await connect(endpoint, Credentials(), timeout_s=5)
        answers = await asyncio.gather(*(link.ask(("ECHO", f"{n}"), ("ECHO", f"{n}!")) for n in range(100)))
        assert answers == [[b"%d" % n, b"%d!" % n] for n in range(100)]
        await link.close()


async def test_an_answer_that_nobody_waits_for_is_nobody_elses():
    async with server(echo) as (endpoint, heard):
        link = await connect(endpoint, Credentials(), timeout_s=5)
        async with asyncio.TaskGroup() as group:
            given_up = group.create_task(link.ask(("ECHO", "given up")))
            await asyncio.sleep(0)
            given_up.cancel()
            assert await link.ask(("ECHO", "mine")) == [b"mine"]
        assert [command[1] for command in heard] == [b"given up", b"mine"]
        assert link.usable, "who leaves at once says nothing about the connection"
        await link.close()


# what an error means


@pytest.mark.parametrize(
    "said",
    [
        "LOADING Redis is loading the dataset in memory",
        "BUSY Redis is busy running a script.",
        "READONLY You can't write against a read only replica.",
        "CLUSTERDOWN The cluster is down",
        "MASTERDOWN Link with MASTER is down",
        "MISCONF Errors writing to the AOF file: No space left on device",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "NOREPLICAS Not enough good replicas to write.",
        "ERR Error running script (call to f_1): @user_script:9: @user_script: 9: -OOM command not allowed",
    ],
)
async def test_not_now_is_an_outage(said: str):
    async with servers(lambda _: b"-%b\r\n" % said.encode()) as (asked, heard):
        with pytest.raises(StoreUnavailableError, match="unchanged"):
            await asked.run("nodes", CALL)
        with pytest.raises(StoreUnavailableError):
            await asked.get("nodes", ("TIME",))
        assert len(heard) == 2, "nothing is sent twice"


async def test_anything_else_is_an_error():
    async with servers(lambda _: b"-WRONGTYPE Operation against a key\r\n") as (asked, heard):
        with pytest.raises(StoreError, match="WRONGTYPE") as refused:
            await asked.run("nodes", CALL)
        assert not isinstance(refused.value, StoreUnavailableError)
        assert len(heard) == 1


async def test_noscript_sends_the_whole_text_once():
    def says(command: list[bytes]) -> bytes:
        return b":1\r\n" if command[0] == b"EVAL" else b"-NOSCRIPT No matching script\r\n"

    async with servers(says) as (asked, heard):
        assert await asked.run("nodes", CALL) == 1
        assert [command[0] for command in heard] == [b"EVALSHA", b"EVAL"]


async def test_not_yet_is_asked_again_and_not_for_ever():
    async with servers(lambda _: b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n") as (asked, heard):
        with pytest.raises(StoreUnavailableError, match="being moved"):
            await asked.run("nodes", CALL)
        assert len(heard) == REDIRECTS


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$-5\r\n"])
async def test_a_server_that_speaks_something_else(said: bytes):
    async with servers(lambda _: said) as (asked, _):
        with pytest.raises(StoreUnavailableError, match="does not speak the protocol"):
            await asked.run("nodes", CALL)


async def test_more_than_was_asked_is_nobodys_answer():
    async with servers(lambda _: b":1\r\n:2\r\n") as (asked, _):
        assert [await asked.run("nodes", CALL) for _ in range(5)] == 5 * [1]


async def test_a_refused_login():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"-ERR unknown command `AUTH`, with args beginning with: `hunter2`\r\n" + OK)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        endpoint = Endpoint("127.0.0.1", listening.sockets[0].getsockname()[1])
        with pytest.raises(StoreUnfitError, match=r"refused AUTH.*\*\*\*") as refused:
            await connect(endpoint, Credentials(None, "hunter2"), timeout_s=5, scripts=False)
        assert "hunter2" not in str(refused.value)


# silence


async def test_silence_is_an_unknown_outcome_for_all_who_wait():
    async with servers(lambda _: None, timeout_s=0.1) as (asked, heard):
        waiting = await asyncio.gather(*(asked.run("nodes", CALL) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(one, StoreUnavailableError) for one in waiting)
        assert "did not answer within 0.1 s" in str(waiting[0])
        assert len(heard) == 3, "nothing is sent twice"


async def test_closing_tells_who_waits():
    async with server(lambda _: None) as (endpoint, heard):
        asked = Servers(Address(mode=Mode.SINGLE, endpoints=(endpoint,)))
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(_outcome(asked))
            while not heard:
                await asyncio.sleep(0)
            await asked.close()
        assert isinstance(waiting.result(), StoreUnavailableError)
        assert isinstance(await _outcome(asked), StoreUnavailableError), "and so is who comes late"


async def _outcome(asked: Servers) -> BaseException | None:
    try:
        await asked.run("nodes", CALL)
    except StoreUnavailableError as error:
        return error
    return None


async def test_one_connection_is_made_however_many_ask_first(monkeypatch: pytest.MonkeyPatch):
    made: list[Endpoint] = []
    link = Servers.link

    async def counted(asked: Servers, endpoint: Endpoint, *, wait: int = 0) -> Link:
        made.append(endpoint)
        return await link(asked, endpoint, wait=wait)

    monkeypatch.setattr(Servers, "link", counted)
    async with servers(lambda _: b":1\r\n") as (asked, _):
        assert await asyncio.gather(*(asked.run("nodes", CALL) for _ in range(50))) == 50 * [1]
        assert len(made) == 1
