"""A standby that is promoted although it lags: accepted writes are gone, an epoch is granted again, and the fence still holds."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import postgres_servers
import pytest

from tenure.abc import Append, Appended, Fenced, Held, Repeated
from tenure.errors import StoreUnavailableError
from tenure.testing.postgres import PostgresServer
from tenure.testing.servers import until
from tenure.testing.store_suite import Stage
from tenure.testing.store_suite.stage import expect, note


@dataclass
class Pair:
    """A primary and an asynchronous standby; a URL that leads to whichever takes writes."""

    primary: PostgresServer
    standby: PostgresServer

    @property
    def url(self) -> str:
        places = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"
        return self.primary.url(timeout_s=10, statement_s=5).replace(f"127.0.0.1:{self.primary.port}", places)

    def caught_up(self) -> None:
        (written,) = self.primary.ask("SELECT pg_current_wal_flush_lsn()")[0]
        until(lambda: self.standby.ask("SELECT pg_last_wal_replay_lsn() >= %s", written) == [(True,)], "it has all")

    def cut_off(self) -> None:
        """From now on the standby lags."""
        self.standby.ask("ALTER SYSTEM SET primary_conninfo = ''")
        self.standby.ask("SELECT pg_reload_conf()")
        until(lambda: self.primary.ask("SELECT FROM pg_stat_replication") == [], "nobody follows")

    def fail_over(self) -> None:
        self.primary.kill()
        assert self.standby.ask("SELECT pg_promote()") == [(True,)]


@pytest.fixture(**postgres_servers.EACH)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with PostgresServer(request.param) as primary, ExitStack() as started:
        standby = PostgresServer(request.param)
        primary.stop()
        standby.follow(primary)
        primary.start()
        started.enter_context(standby)
        until(lambda: primary.ask("SELECT state FROM pg_stat_replication") == [("streaming",)], "it follows")
        yield Pair(primary, standby)


async def insisting(stage: Stage, batch: Append) -> Appended | Repeated | Fenced:
    """Repeated unchanged until it is answered."""
    while True:
        try:
            answer = await stage.store.append(batch)
        except StoreUnavailableError:
            continue
        assert isinstance(answer, Appended | Repeated | Fenced)
        return answer


async def test_a_promoted_standby_that_lost_writes_refuses_whoever_saw_them(pair: Pair):
    async with postgres_servers.stage_on(pair.url) as stage:
        assert any("asynchronous" in sentence for sentence in stage.store.weakened)  # type: ignore[attr-defined]
        saw, unaware, other = await stage.owned(), await stage.owned(), await stage.node()
        await saw.append(note("kept"))
        pair.caught_up()
        pair.cut_off()
        await saw.append(note("lost"))
        name = unaware.lease.conversation
        taken = expect(Held, await stage.store.claim(stage.claiming(name, other, 1, forced=True)))
        pair.fail_over()
        assert isinstance(await insisting(stage, saw.batch(note("after"))), Fenced), "its journal was rewound"
        assert [e.text for e in await stage.journal(saw.lease.conversation) if e.kind == "note"] == ["kept"]
        again = await stage.claim(name, other, forced=True)
        assert again.lease.epoch == taken.lease.epoch == 2, "an epoch is granted twice: what the operator is warned of"
        zombie = Append(taken.lease, 1, taken.record.head, (note("zombie"),))
        assert isinstance(await stage.store.append(zombie), Fenced), "the token tells the two apart (G2)"
        await again.append(note("mine"))
        assert [e.text for e in await stage.journal(name) if e.kind == "note"] == ["mine"]
