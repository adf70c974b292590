"""URLs of stores on Redis: what they mean, what is refused, and what they never show."""

import ssl

import pytest

from tenure.errors import InvalidInputError
from tenure.stores import open_store
from tenure.stores.redis import RedisStore
from tenure.stores.redis.address import Credentials, Endpoint, Mode, parse_url
from tenure.stores.redis.keys import Keyspace, slot_of


@pytest.mark.parametrize(
    ("url", "mode", "endpoints", "db"),
    [
        ("redis://example", Mode.SINGLE, [Endpoint("example", 6379)], 0),
        ("redis://example:1234/5", Mode.SINGLE, [Endpoint("example", 1234)], 5),
        ("valkey://[::1]:1234", Mode.SINGLE, [Endpoint("::1", 1234)], 0),
        ("redis+unix:///run/redis.sock?db=3", Mode.SINGLE, [Endpoint("/run/redis.sock")], 3),
        ("redis+sentinel://one,two:99/service", Mode.SENTINEL, [Endpoint("one", 26379), Endpoint("two", 99)], 0),
        ("valkey+sentinel://one/service/2", Mode.SENTINEL, [Endpoint("one", 26379)], 2),
        ("redis+cluster://one:1,two:2", Mode.CLUSTER, [Endpoint("one", 1), Endpoint("two", 2)], 0),
    ],
)
def test_where(url: str, mode: Mode, endpoints: list[Endpoint], db: int):
    address = parse_url(url)
    assert (address.mode, list(address.endpoints), address.db) == (mode, endpoints, db)
    assert isinstance(open_store(url), RedisStore)


def test_what_else_it_says():
    plain = parse_url("redis://example")
    assert (plain.prefix, plain.timeout_s, plain.wait, plain.tls) == ("tenure", 5.0, 0, None)
    address = parse_url("redis+sentinel://h/svc?prefix=a.b&timeout_s=0.5&wait=2&sentinel_password=s")
    assert (address.service, address.prefix, address.timeout_s, address.wait) == ("svc", "a.b", 0.5, 2)
    assert address.sentinel_credentials == Credentials(None, "s")


def test_tls():
    checked, unchecked = parse_url("rediss://example"), parse_url("valkeys+cluster://example?verify=no")
    assert checked.tls is not None
    assert unchecked.tls is not None
    assert (checked.tls.verify_mode, checked.tls.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (unchecked.tls.verify_mode, unchecked.tls.check_hostname) == (ssl.CERT_NONE, False)


@pytest.mark.parametrize(
    ("url", "credentials"),
    [
        ("redis://:secret@h", Credentials(None, "secret")),
        ("redis://user:secret@h", Credentials("user", "secret")),
        ("redis://us%40er:se%3Acr%2Fet@h", Credentials("us@er", "se:cr/et")),
        ("redis://h", Credentials()),
    ],
)
def test_who(url: str, credentials: Credentials):
    assert parse_url(url).credentials == credentials


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://", "names no host"),
        ("redis://h:port", "no host and port"),
        ("redis://h/x", "db='x'"),
        ("redis://h/0/1", "parts too many"),
        ("redis://h?retries=3", "no parameter 'retries'"),
        ("redis://h?timeout_s=0", "timeout_s='0'"),
        ("redis://h?timeout_s=nan", "timeout_s='nan'"),
        ("redis://h?wait=-1", "wait='-1'"),
        ("redis://h?prefix={tag}", "tie all keys to one slot"),
        ("redis+sentinel://h", "name of a service"),
        ("redis+cluster://h/1", "in a Cluster, which has one"),
        ("redisx://h", "no scheme"),
        ("rediss://h?ca_file=/nowhere/ca.pem", "TLS files"),
    ],
)
def test_what_is_refused(url: str, says: str):
    with pytest.raises(InvalidInputError, match=says):
        open_store(url)


def test_a_password_is_never_shown():
    store = open_store("redis+sentinel://user:hunter2@h1,h2/svc?sentinel_password=hunter3")
    assert isinstance(store, RedisStore)
    shown = f"{store!r} {store} {store.address!r} {store.address}"
    assert "hunter" not in shown
    assert "user" not in shown
    assert "h1:26379" in shown
    assert store.url is not None
    assert "hunter2" in store.url, "other processes need it"
    with pytest.raises(InvalidInputError) as refused:
        open_store("redis://user:hunter2@h?timeout_s=hunter")
    assert "hunter2" not in str(refused.value)


def test_keys_of_a_conversation_share_a_slot_with_its_indexes():
    keyspace = Keyspace("tenure", 64)
    for id in ("c", "", "{other}", "a}b{c", "𝄞"):
        keys = keyspace.conversation(id)
        names = [keys.lock, keys.journal, keys.epochs, keys.keys, keys.snapshot, keys.vault, keys.refusals]
        names += [keys.partition.wanted, keys.partition.owners, keys.partition.named, keys.partition.created]
        tags = {name[name.index("{") + 1 : name.index("}")] for name in names}
        assert tags == {keys.tag}
        assert len(set(names)) == len(names)
    assert keyspace.conversation("c").lock.endswith(":c:conversation_lock")


def test_slots_are_those_of_the_specification():
    """The examples of the Cluster specification: CRC16 (XMODEM) modulo 16384."""
    assert slot_of("123456789") == 0x31C3 % 16384
    assert slot_of("user1000") == 3443
    assert len({slot_of(str(number)) for number in range(64)}) == 64
