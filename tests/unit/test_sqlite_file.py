"""The database file: how it comes to be, when it is refused, when it is given up."""

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_support import AGENT, accept, append, batch, hold, journal, look, message, node, store_in, write_lock_held

from tenure.abc import Alive, Buried, Dead, Death, Limits, Load, Store
from tenure.errors import InvalidInputError, StoreUnavailableError, StoreUnfitError
from tenure.stores import open_store
from tenure.stores.sqlite import SqliteStore, boot, file, fitness, lock_holder
from tenure.stores.sqlite.transaction import Transaction
from tenure.testing.clock import ManualClock

# --- the URL ----------------------------------------------------------------------------------------------------------


def test_a_relative_path_is_meant_from_where_the_process_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    store = SqliteStore("sqlite:///sub/t.db")
    assert store.path == tmp_path / "sub" / "t.db"
    assert store.url == f"sqlite:///{tmp_path}/sub/t.db", "another process may stand elsewhere"


async def test_a_url_opens_the_same_store_in_any_process(tmp_path: Path):
    odd = tmp_path / "a b?c#d%é.db"
    async with open_store(f"sqlite:///{tmp_path}/a%20b%3Fc%23d%25é.db") as store:
        await accept(store, message("c1", "k"))
        assert odd.exists()
        async with open_store(store.url or "") as other:
            assert await journal(other) == ["created", "hi"]


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://host/t.db",
        "sqlite:t.db",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///folder/",
        "sqlite:///a%00b.db",
        "sqlite:///t.db?mode=ro",
        "sqlite:///t.db?timeout_s=soon",
        "sqlite:///t.db?timeout_s=-1",
    ],
)
def test_a_url_that_names_no_file_is_refused_with_the_remedy(url: str):
    with pytest.raises(InvalidInputError, match="store"):
        SqliteStore(url)


# --- making and refusing ----------------------------------------------------------------------------------------------


async def test_a_new_file_is_for_its_owner_alone_and_nothing_is_left_beside_it(tmp_path: Path):
    before = os.umask(0)
    try:
        async with store_in(tmp_path) as store:
            await accept(store, message("c1", "k"))
            assert {stat.S_IMODE(found.stat().st_mode) for found in tmp_path.iterdir()} == {0o600}
    finally:
        os.umask(before)
    assert [found.name for found in tmp_path.iterdir()] == ["t.db"]


async def test_what_a_kill_left_while_a_store_was_made_is_removed_when_it_is_old(tmp_path: Path):
    """A young one may be a store that another process makes at this moment."""
    old = [tmp_path / f".t.db.0123456789abcdef{rest}" for rest in ("", "-wal", "-shm", "-journal")]
    others = [tmp_path / name for name in (".t.db.0123456789abcdee", ".t.db.backup", ".u.db.0123456789abcdef")]
    for beside in (*old, *others):
        beside.touch()
    for beside in (*old, *others[1:]):
        os.utime(beside, (1, 1))
    async with store_in(tmp_path):
        pass
    assert {found.name for found in tmp_path.iterdir()} == {"t.db", *(beside.name for beside in others)}


def test_a_commit_is_durable(tmp_path: Path):
    """The log is synced at each commit, but for renewals and deltas: those end with the boot anyway."""
    store = file.StoreFile(tmp_path / "t.db")
    write = Transaction(store, ManualClock(), Limits(), checkpoints=True, on_commit=lambda: None)
    with closing(write):
        for durable, level in [(True, 2), (False, 1), (True, 2)]:
            write.begin(durable=durable)
            assert write.connection.execute("PRAGMA synchronous").fetchone() == (level,)
            write.commit()
        assert write.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_an_empty_file_becomes_a_store(tmp_path: Path):
    (tmp_path / "t.db").touch()
    async with store_in(tmp_path) as store:
        await accept(store, message("c1", "k"))
        assert await journal(store) == ["created", "hi"]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("folder", "is a folder"),
        ("text", "no SQLite database"),
        ("other", "another program's"),
        ("newer", "newer Tenure"),
        ("nowhere", "does not exist"),
    ],
)
async def test_what_is_no_store_of_ours_is_refused_and_left_as_it_is(tmp_path: Path, what: str, says: str):
    path = tmp_path / "t.db"
    if what == "folder":
        path.mkdir()
    elif what == "text":
        path.write_text("dear diary, " * 100)
    elif what == "other":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE diary (day, text)")
    elif what == "newer":
        async with store_in(tmp_path):
            pass
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE meta SET schema = schema + 1")
    else:
        path = tmp_path / "missing" / "t.db"
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StoreUnfitError, match=says):
        async with SqliteStore(f"sqlite:///{path}"):
            pass
    assert before == (path.read_bytes() if path.is_file() else None)


def test_everybody_who_is_first_gets_the_same_store(tmp_path: Path):
    """The one who is a moment late finds the other's store in place, and uses it."""
    path = tmp_path / "t.db"
    late = file.StoreFile(path)
    link = os.link

    def other_first(source: Path, target: Path) -> None:
        os.link = link
        with closing(file.StoreFile(path).open()) as connection:
            connection.execute("UPDATE meta SET store = 'the first'")
        link(source, target)

    os.link = other_first
    try:
        with closing(late.open()) as connection:
            assert connection.execute("SELECT store FROM meta").fetchone() == ("the first",)
    finally:
        os.link = link


# --- file systems -----------------------------------------------------------------------------------------------------

MOUNTS = """\
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 21 0:35 / /mnt/shared rw,relatime shared:1 - nfs4 server:/export rw
41 21 0:36 / /mnt/shared/local rw - xfs /dev/vdb rw
42 21 0:37 / /mnt/my\\040disk rw - fuse.sshfs host:/ rw
43 21 0:38 / /mnt/vm rw - virtiofs share rw
44 21 0:39 / /mnt/over rw - ext4 /dev/vdc rw
45 44 0:40 / /mnt/over rw - 9p share rw
"""


@pytest.mark.parametrize(
    ("folder", "kind", "remote"),
    [
        ("/srv", "ext4", False),
        ("/mnt/shared/data", "nfs4", True),
        ("/mnt/shared/local/data", "xfs", False),
        ("/mnt/sharedx", "ext4", False),
        ("/mnt/my disk", "fuse.sshfs", True),
        ("/mnt/vm/a/b", "virtiofs", True),
        ("/mnt/over", "9p", True),
    ],
)
def test_the_file_system_is_the_one_on_top(folder: str, kind: str, remote: bool):
    found = fitness.mount_of(Path(folder), MOUNTS)
    assert found is not None
    assert (found.type, found.remote) == (kind, remote)


async def test_a_network_file_system_is_refused_with_the_reason_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "21 1 254:0 / / rw - ext4 /dev/vda rw\n40 21 0:35 / " + str(tmp_path) + " rw - nfs4 server:/x rw\n"
    )
    monkeypatch.setattr(fitness, "_MOUNTS", mounts)
    with pytest.raises(StoreUnfitError, match=r"nfs4.*locks do not hold.*local disk"):
        async with store_in(tmp_path):
            pass
    assert not (tmp_path / "t.db").exists()


def test_locks_are_tried_out_where_the_file_system_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"21 1 254:0 / / rw - strangefs /dev/vda rw\n40 21 0:35 / {tmp_path} rw - strangefs x rw\n")
    monkeypatch.setattr(fitness, "_MOUNTS", mounts)
    fitness.check_folder(tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == ["mountinfo"]
    monkeypatch.setattr(fitness, "_SEES_LOCK", "raise SystemExit('a lock that another process holds was granted')")
    with pytest.raises(StoreUnfitError, match=r"strangefs.*was granted"):
        fitness.check_folder(tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == ["mountinfo"]


# --- moved away -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["moved", "deleted", "replaced"])
async def test_a_file_that_is_no_longer_there_is_given_up_for_good(tmp_path: Path, how: str):
    path, old = tmp_path / "t.db", tmp_path / "old.db"
    async with store_in(tmp_path) as store:
        incarnation = await node(store)
        lease = await hold(store, incarnation)
        if how == "deleted":
            os.link(path, old)
            path.unlink()
        else:
            path.rename(old)
        if how == "replaced":
            sqlite3.connect(path).close()
        for operation in (
            store.append(batch(lease, 1)),
            store.renew(incarnation, 0, "n", 1.0, Load()),
            store.submit(message("c2", "k")),
            store.read("c1"),
            store.publish(lease, {}),
        ):
            with pytest.raises(StoreUnavailableError, match="moved, replaced or deleted"):
                await operation
        path.unlink(missing_ok=True)
        old.rename(path)  # back again: who knows what happened meanwhile
        with pytest.raises(StoreUnavailableError, match="moved, replaced or deleted"):
            await store.append(batch(lease, 1))
    assert look(path, "SELECT kind FROM events ORDER BY seq") == [("created",), ("claimed",)]
    async with store_in(tmp_path) as store:
        await append(store, batch(lease, 1))


# --- time -------------------------------------------------------------------------------------------------------------


async def test_another_boot_ends_every_lease_and_every_back_off(tmp_path: Path):
    clock = ManualClock(boot_s=5000.0)
    async with store_in(tmp_path, clock=clock, boot="first") as store:
        incarnation = await node(store, ttl_s=1000.0)
        await accept(store, message("c1", "k"))
        await _back_off(store, 600.0)
        assert isinstance(await store.bury(incarnation, Death.EXPIRED), Alive)
        assert (await store.wanted(None, [AGENT], None, 10)).items == ()
    clock = ManualClock(boot_s=20.0)
    async with store_in(tmp_path, clock=clock, boot="second") as store:
        assert [(one.incarnation, one.dead) for one in await store.nodes()] == [(incarnation, False)]
        assert isinstance(await store.renew(incarnation, 0, "n", 1000.0, Load()), Dead)
        assert isinstance(await store.bury(incarnation, Death.EXPIRED), Buried)
        assert [one.conversation for one in (await store.wanted(None, [AGENT], None, 10)).items] == ["c1"]


async def _back_off(store: Store, seconds: float) -> None:
    def set_it(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE conversations SET not_before = ?", (5000.0 + seconds,))

    assert isinstance(store, SqliteStore)
    await asyncio.to_thread(set_it, store.path)


async def test_the_same_boot_ends_nothing(tmp_path: Path):
    clock = ManualClock()
    async with store_in(tmp_path, clock=clock, boot="first") as store:
        incarnation = await node(store, ttl_s=5.0)
    async with store_in(tmp_path, clock=clock, boot="first") as store:
        assert await store.bury(incarnation, Death.EXPIRED) == Alive(5.0)


def test_boot_time_is_the_hosts_also_in_a_time_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert boot.boottime_offset() == 0.0
    outside = boot.HostClock().boottime()
    offsets = tmp_path / "timens_offsets"
    offsets.write_text("monotonic           0         0\nboottime       86400 500000000\n")
    monkeypatch.setattr(boot, "_OFFSETS", offsets)
    assert 86400.0 < outside - boot.HostClock().boottime() <= 86400.5
    monkeypatch.setattr(boot, "_OFFSETS", tmp_path / "none")
    assert boot.boottime_offset() == 0.0


def test_every_process_of_a_boot_gives_it_the_same_name():
    assert boot.boot_id() == boot.boot_id() != ""


# --- trouble ----------------------------------------------------------------------------------------------------------


async def test_a_frozen_writer_is_named_and_nothing_is_lost_when_it_goes(tmp_path: Path):
    async with store_in(tmp_path, timeout_s=0.05) as store:
        lease = await hold(store, await node(store))
        with write_lock_held(store.path) as pid:
            assert await asyncio.to_thread(lock_holder, store.path) == pid
            with pytest.raises(StoreUnavailableError, match=f"locked for 0.05 s by process {pid}"):
                await store.append(batch(lease, 1))
            assert await journal(store) == ["created", "claimed"], "readers go on"
        await append(store, batch(lease, 1))
        assert await asyncio.to_thread(lock_holder, store.path) is None


FILLS_UP = """
    import asyncio, resource, sys
    sys.path.insert(0, sys.argv[2])
    from sqlite_support import *
    from tenure.errors import StoreUnavailableError

    def room(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    async def main():
        async with SqliteStore(sys.argv[1]) as store:
            lease = await hold(store, await node(store))
            room(400_000)
            number = 0
            try:
                while True:
                    await append(store, batch(lease, number + 1, "x" * 50_000))
                    number += 1
            except StoreUnavailableError as error:
                print("refused", str(error).split(": ")[1], number > 0)
            assert len(await journal(store)) == 2 + number
            try:
                await store.submit(message("c2", "k", "x" * 50_000))
            except StoreUnavailableError:
                print("refused again")
            room(resource.RLIM_INFINITY)
            await append(store, batch(lease, number + 1, "x" * 50_000))
            await accept(store, message("c2", "k"))
            assert len(await journal(store)) == 3 + number
            print("recovered")

    asyncio.run(main())
"""


def test_a_full_disk_is_said_and_forgotten_when_there_is_room(tmp_path: Path):
    here = str(Path(__file__).parent)
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(FILLS_UP), f"sqlite:///{tmp_path}/t.db", here],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.stderr == ""
    assert child.stdout.splitlines() in (
        ["refused disk I/O error; repeat the request unchanged True", "refused again", "recovered"],
        ["refused database or disk is full; repeat the request unchanged True", "refused again", "recovered"],
    )
