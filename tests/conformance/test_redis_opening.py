"""Opening a store on Redis: what is refused, with the remedy, and what is said about the promises that a server weakens."""

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis_servers
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tenure.abc import Sent, Topic
from tenure.errors import StoreUnavailableError, StoreUnfitError
from tenure.stores.redis import RedisStore, fitness
from tenure.stores.redis.address import Endpoint
from tenure.stores.redis.servers import Servers
from tenure.testing.servers import RedisServer, redis_binary, until
from tenure.testing.store_suite.stage import awaited

type Start = Callable[..., RedisServer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a server with these settings; it ends with the test."""
    with ExitStack() as servers:
        yield lambda **options: servers.enter_context(
            RedisServer(
                redis_servers.folder(),
                binary=redis_binary(),
                options={k.replace("_", "-"): v for k, v in options.items()},
            )
        )


async def weakened_on(url: str) -> str:
    async with RedisStore(url) as store:
        return " | ".join(store.weakened)


# what is refused


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_evicts_is_refused(start: Start, policy: str):
    server = start(maxmemory_policy=policy)
    with pytest.raises(StoreUnfitError, match=f"{policy}.*CONFIG SET maxmemory-policy noeviction"):
        await weakened_on(server.url())
    server.told("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await weakened_on(server.url())


async def test_a_server_that_evicts_is_refused_where_config_is_forbidden(start: Start):
    server = start(maxmemory_policy="allkeys-lfu")
    server.told("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-config")
    url = server.url().replace("redis://", "redis://app:secret@")
    with pytest.raises(StoreUnfitError, match="allkeys-lfu"):
        await weakened_on(url)
    server.told("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert "unknown" in await weakened_on(url), "what cannot be asked is taken at its worst"


async def test_a_replica_is_refused(start: Start):
    primary = start()
    replica = start(replicaof=f"127.0.0.1 {primary.port}")
    until(lambda: replica.info("replication")["role"] == "slave", "it follows")
    with pytest.raises(StoreUnfitError, match=r"replica.*redis\+sentinel://"):
        await weakened_on(replica.url())


@pytest.mark.parametrize("version", ["6.0.20", "5.0.14", "2.8"])
async def test_an_old_server_is_refused(start: Start, monkeypatch: pytest.MonkeyPatch, version: str):
    server = start()
    told = fitness.info

    async def older(servers: Servers, endpoint: Endpoint) -> dict[str, str]:
        return await told(servers, endpoint) | {"redis_version": version}

    monkeypatch.setattr(fitness, "info", older)
    with pytest.raises(StoreUnfitError, match=rf"{version}.*needed: 6\.2 or newer"):
        await weakened_on(server.url())


async def test_a_wrong_password_is_refused_and_not_repeated(start: Start):
    server = start(requirepass="right-one")
    url = server.url().replace("right-one", "wrong-one")
    with pytest.raises(StoreUnfitError, match="refused AUTH") as refused:
        await weakened_on(url)
    assert "wrong-one" not in str(refused.value)
    async with RedisStore(server.url()) as store:
        assert await store.records(["none"]) == [None]
    with pytest.raises(StoreUnfitError, match="NOAUTH"):
        await weakened_on(url.replace(":wrong-one@", ""))


async def test_a_user_who_may_not_ask_for_scripts_brings_each_with_its_first_call(start: Start):
    server = start()
    server.told("ACL", "SETUSER", "bare", "on", ">secret", "~*", "&*", "+@all", "-script")
    async with RedisStore(server.url().replace("://", "://bare:secret@")) as store:
        assert await store.records(["none"]) == [None]


async def test_nobody_listens(start: Start):
    server = start()
    server.stop()
    with pytest.raises(StoreUnavailableError, match=f"127.0.0.1:{server.port}"):
        await weakened_on(server.url())


async def test_a_database_that_is_not_there_is_refused(start: Start):
    server = start(databases="2")
    with pytest.raises(StoreUnfitError, match=r"refused SELECT.*number of the database"):
        await weakened_on(server.url().replace("/0", "/7"))


async def test_a_newer_layout_is_refused(start: Start):
    server = start()
    await weakened_on(server.url())
    server.told("HSET", "tenure:{nodes}:store", "schema", 2)
    with pytest.raises(StoreUnfitError, match="layout 2, newer than this version's 1"):
        await weakened_on(server.url())


# what is weakened


async def test_without_a_log(start: Start, caplog: pytest.LogCaptureFixture):
    server = start(appendonly="no")
    with caplog.at_level(logging.WARNING):
        said = await weakened_on(server.url())
    assert "appendonly is off" in said
    assert "set appendonly yes" in said
    assert "appendonly is off" in caplog.text


async def test_a_log_that_is_synced_now_and_then(start: Start):
    server = start(appendfsync="everysec")
    said = await weakened_on(server.url())
    assert "appendfsync is everysec" in said
    assert "last second" in said
    assert "fail-over" not in said


async def test_a_server_that_syncs_always_weakens_nothing(start: Start, caplog: pytest.LogCaptureFixture):
    server = start(appendfsync="always")
    with caplog.at_level(logging.WARNING):
        assert await weakened_on(server.url()) == ""
    assert caplog.text == ""


async def test_replicas_that_nobody_waits_for(start: Start):
    primary = start(appendfsync="always")
    replica = start(replicaof=f"127.0.0.1 {primary.port}")
    until(lambda: replica.info("replication").get("master_link_status") == "up", "it follows")
    assert "?wait=1" in await weakened_on(primary.url())
    assert await weakened_on(primary.url(wait=1)) == ""


async def test_a_replica_that_is_away_refuses_no_opening(start: Start):
    """It comes back by itself; beats and reads wait for none, and writes are unanswered until then. It is said, though."""
    assert "wait=1, 0 replicas connected" in await weakened_on(start(appendfsync="always").url(wait=1))


async def test_a_sibling_does_not_say_it_again(start: Start, caplog: pytest.LogCaptureFixture):
    server = start(appendonly="no")
    async with RedisStore(server.url()) as store:
        caplog.clear()
        async with store.sibling() as sibling:
            assert sibling.weakened == store.weakened != ()
    assert caplog.text == ""


# what is fixed, and what is apart


async def test_partitions_are_fixed_at_the_first_use(start: Start):
    server = start()
    async with RedisStore(server.url(), partitions=4) as first, RedisStore(server.url()) as later:
        await first.put_paper("kind", "id", {}, 0)
        async with redis_servers.stage_on(server.url()) as stage:
            conversation = await stage.conversation()
            assert [record and record.conversation for record in await first.records([conversation])] == [conversation]
            assert [record and record.conversation for record in await later.records([conversation])] == [conversation]
    assert server.told("HGET", "tenure:{nodes}:store", "partitions") == b"4"


async def test_two_prefixes_are_two_stores(start: Start):
    server = start()
    async with redis_servers.stage_on(server.url(prefix="a")) as a, redis_servers.stage_on(server.url(prefix="b")) as b:
        conversation = await a.conversation()
        assert await b.store.records([conversation]) == [None]
        await b.node()
        assert await a.store.nodes() == []


async def test_two_databases_hear_nothing_of_each_other(start: Start):
    """Channels are common to all databases of a server."""
    server = start()
    one, two = server.url(), server.url().replace("/0", "/1")
    async with redis_servers.stage_on(one) as here, redis_servers.stage_on(two) as there:
        writers = [await stage.owned() for stage in (here, there)]
        topic = Topic(Topic.CONVERSATION, writers[0].lease.conversation)
        assert topic.subject == writers[1].lease.conversation
        async with here.store.follow([topic]) as hints:
            assert await there.store.publish(writers[1].lease, {"from": "there"}) == Sent()
            assert await here.store.publish(writers[0].lease, {"from": "here"}) == Sent()
            hint = await awaited(hints, lambda hint: hint.delta is not None)
            assert hint.delta == {"from": "here"}


async def test_tls(start: Start, tmp_path: Path):
    """A server behind TLS is known by its certificate, or it is refused."""
    server = start()
    certificate = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def passed_on(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        upstream, to_upstream = await asyncio.open_connection("127.0.0.1", server.port)

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1 << 16):
                writer.write(data)
            writer.close()

        await asyncio.gather(pump(client, to_upstream), pump(upstream, to_client), return_exceptions=True)

    async with await asyncio.start_server(passed_on, "localhost", 0, ssl=context) as listening:
        url = f"rediss://localhost:{listening.sockets[0].getsockname()[1]}/0"
        with pytest.raises(StoreUnavailableError, match="certificate verify failed"):
            await weakened_on(url)
        for trusting in (f"{url}?ca_file={certificate}", f"{url}?verify=no&prefix=other"):
            async with redis_servers.stage_on(trusting) as stage:
                conversation = await stage.conversation()
                async with stage.store.follow([Topic(Topic.CONVERSATION, conversation)]) as hints:
                    await stage.submit(conversation)
                    await awaited(hints, lambda hint: hint.head is not None)


def self_signed(folder: Path) -> Path:
    """A certificate for localhost with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "localhost.pem"
    file.write_bytes(made.public_bytes(pem) + private)
    return file


async def test_a_socket_of_this_machine(start: Start):
    path = redis_servers.folder() / "socket"
    start(unixsocket=str(path))
    async with redis_servers.stage_on(f"redis+unix://{path}") as stage:
        writer = await stage.owned()
        async with stage.store.follow([Topic(Topic.CONVERSATION, writer.lease.conversation)]) as hints:
            await writer.append()
            await stage.submit(writer.lease.conversation)
            await awaited(hints, lambda hint: hint.head is not None)
