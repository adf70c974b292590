"""The servers, and the way to each.

Connections are made when they are needed, and made anew when they fell. Only what a server says it has *not* done is sent
again, by its own word: ``MOVED``, ``ASK``, ``NOSCRIPT``, ``TRYAGAIN``. Anything else is the caller's to judge.
"""

from __future__ import annotations

import asyncio
import enum
import re
from typing import TYPE_CHECKING, final

from hiredis import ReplyError

from tenure.errors import StoreError, StoreUnavailableError, StoreUnfitError
from tenure.stores.redis.address import Endpoint, Mode
from tenure.stores.redis.keys import NODES
from tenure.stores.redis.link import connect, is_error
from tenure.stores.redis.maps import One, Primary, Slots
from tenure.stores.redis.scripts import joined

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tenure.stores.redis.address import Address
    from tenure.stores.redis.link import Command, Link, Reply
    from tenure.stores.redis.maps import Map
    from tenure.stores.redis.scripts import Call, Share

REDIRECTS = 16
"""How often a server may say "not here" before the caller is told that the store cannot be reached."""
PAUSE_S = 0.02
"""Between two tries while a slot moves, or while Sentinel has no primary."""
UNDER_WAY = 2000
"""How many requests are under way at once; the next caller waits."""

_OUTAGES = re.compile(
    r"\b(LOADING|BUSY|READONLY|CLUSTERDOWN|MASTERDOWN|TRYAGAIN|OOM|MISCONF|NOREPLICAS|UNBLOCKED|NOAUTH|NOPERM)\b"
)


class Lane(enum.StrEnum):
    """Reads have a connection of their own: a long answer, or a wait for replicas, holds up no write."""

    WRITES = "writes"
    READS = "reads"


@final
class Servers:
    """Everything that this store talks to, and the lanes to it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._map: Map = Primary(address) if address.mode is Mode.SENTINEL else One(address.endpoints[0])
        self._slots: Slots | None = None
        if address.mode is Mode.CLUSTER:
            self.use_slots()
        self._links: dict[tuple[Endpoint, Lane], Link] = {}
        self._left: list[Link] = []
        """Connections that are not used any more, while somebody still waits there."""
        self._connecting: dict[tuple[Endpoint, Lane], asyncio.Lock] = {}
        self._room = asyncio.Semaphore(UNDER_WAY)
        self.under_way = 0
        """Requests that wait for a server's answer."""
        self._closed = False
        self.opened = False
        """The store was found fit; from then on a refused login is an outage."""

    @property
    def is_cluster(self) -> bool:
        return self._slots is not None

    def use_slots(self) -> None:
        """It turned out to be a Cluster."""
        self._map = self._slots = Slots(self.address)

    async def primaries(self) -> Sequence[Endpoint]:
        """Every server that takes writes."""
        if self._slots is not None:
            return await self._slots.primaries()
        return (await self._map.find(NODES),)

    def forget(self) -> None:
        """What was found of where things are may have changed: look again."""
        self._map.forget()

    # asking

    async def run(self, tag: str, call: Call, lane: Lane = Lane.WRITES, *, durable: bool = True) -> Reply:
        """Run a script where the tag's keys live.

        :raises StoreUnavailableError: no answer in time, or an answer that says "not now".
        """
        whole = False
        asking: Endpoint | None = None
        for _ in range(REDIRECTS):
            commands: tuple[Command, ...] = (call.command(whole=whole),)
            if asking is not None:
                commands = (("ASKING",), *commands)
            reply = (await self._ask(asking or await self._find(tag), lane, commands, durable=durable))[-1]
            if is_error(reply, "NOSCRIPT"):
                whole = True
            elif isinstance(reply, ReplyError):
                asking = await self._elsewhere(reply)
            else:
                return reply
        raise StoreUnavailableError(f"{self.address}: its keys are being moved; repeat the request unchanged")

    async def join(self, tag: str, share: Share) -> Reply:
        """A share of a script for many, with whoever else asks for the same just now; all the same as :meth:`run`.

        All keys of a single server may go together; those of a Cluster only where they share a slot.
        """
        (reply,) = await self.join_all([(tag, share)])
        return reply

    async def join_all(self, shares: Sequence[tuple[str, Share]]) -> list[Reply]:
        """:meth:`join` for many at once, one request to each server; a reply for each, in their order."""
        ways: dict[Endpoint, list[int]] = {}
        for at, (tag, _) in enumerate(shares):
            ways.setdefault(await self._find(tag), []).append(at)
        replies: list[Reply] = [None] * len(shares)
        for endpoint, places in ways.items():
            together = [(tag if self._slots is not None else "", share) for tag, share in (shares[at] for at in places)]
            asked = await self._through(
                endpoint, Lane.WRITES, lambda link, these=together: link.join(these, durable=True), len(places)
            )
            for at, reply in zip(places, asked, strict=True):
                if isinstance(reply, ReplyError):  # not done, by the server's own word
                    tag, share = shares[at]
                    (reply,) = await self.run(tag, joined([share]))
                replies[at] = reply
        return replies

    async def get(self, tag: str, *commands: Command, lane: Lane = Lane.READS) -> list[Reply]:
        """Plain commands on keys with this tag, in one go: reads, or what may be repeated, for all are if one is refused."""
        for _ in range(REDIRECTS):
            replies = await self._ask(await self._find(tag), lane, commands)
            refused = next((reply for reply in replies if isinstance(reply, ReplyError)), None)
            if refused is None:
                return replies
            asking = await self._elsewhere(refused)
            if asking is not None:
                asked = [one for command in commands for one in (("ASKING",), command)]
                replies = (await self._ask(asking, lane, asked))[1::2]
                if not any(isinstance(reply, ReplyError) for reply in replies):
                    return replies
        raise StoreUnavailableError(f"{self.address}: its keys are being moved; repeat the request unchanged")

    async def tell(self, endpoint: Endpoint, *commands: Command) -> list[Reply]:
        """Commands to one server, whatever keys it has; errors are among the replies."""
        return await self._ask(endpoint, Lane.READS, commands)

    async def _find(self, tag: str) -> Endpoint:
        return await self._map.find(tag)

    async def _ask(
        self, endpoint: Endpoint, lane: Lane, commands: Sequence[Command], *, durable: bool = False
    ) -> list[Reply]:
        return await self._through(endpoint, lane, lambda link: link.ask(*commands, durable=durable), len(commands))

    async def _through[R](
        self, endpoint: Endpoint, lane: Lane, asking: Callable[[Link], Awaitable[R]], requests: int = 1
    ) -> R:
        """Ask on a connection to that server, as soon as there is room for a request."""
        async with self._room:
            self.under_way += requests
            try:
                link = self._links.get((endpoint, lane))
                if link is None or not link.usable:
                    link = await self._connect(endpoint, lane)
                return await asking(link)
            except StoreUnavailableError:
                self._map.forget()
                raise
            finally:
                self.under_way -= requests

    async def _elsewhere(self, refused: ReplyError) -> Endpoint | None:
        """Where else to ask, once: what ``ASK`` says. ``MOVED`` is for good and corrects the map.

        :raises StoreUnavailableError: the server says "not now". :raises StoreError: anything else it says.
        """
        said = str(refused)
        code, _, rest = said.partition(" ")
        if code in ("MOVED", "ASK") and self._slots is not None:
            slot, _, where = rest.partition(" ")
            host, _, port = where.rpartition(":")
            endpoint = Endpoint(host.strip("[]") or self.address.endpoints[0].host, int(port))
            if code == "ASK":
                return endpoint
            self._slots.moved(int(slot), endpoint)
            return None
        if code == "TRYAGAIN":
            await asyncio.sleep(PAUSE_S)
            return None
        self._map.forget()
        outage = _OUTAGES.search(said)
        if outage is None:
            raise StoreError(f"{self.address} refused a command: {said}")
        if outage.group() == "READONLY":
            await self._drop_all()  # a primary that was demoted: nothing that it says is of use
        raise StoreUnavailableError(f"{self.address} says {said}; repeat the request unchanged")

    # connections

    async def _connect(self, endpoint: Endpoint, lane: Lane) -> Link:
        async with self._connecting.setdefault((endpoint, lane), asyncio.Lock()):
            link = self._links.get((endpoint, lane))
            if link is not None and link.usable:
                return link
            if self._closed:
                raise StoreUnavailableError(f"the store at {self.address} is closed")
            try:
                link = await self.link(endpoint, wait=self.address.wait if lane is Lane.WRITES else 0)
            except StoreUnfitError as error:
                if not self.opened:
                    raise
                raise StoreUnavailableError(str(error)) from error
            if self._closed:
                await link.close()
                raise StoreUnavailableError(f"the store at {self.address} was closed")
            self._left = [old for old in (*self._left, self._links.get((endpoint, lane))) if old and not old.lost]
            self._links[endpoint, lane] = link
            return link

    async def link(self, endpoint: Endpoint, *, wait: int = 0) -> Link:
        """A connection of one's own.

        :raises StoreUnavailableError: nobody answers there. :raises StoreUnfitError: the login is refused.
        """
        address = self.address
        return await connect(
            endpoint, address.credentials, tls=address.tls, db=address.db, timeout_s=address.timeout_s, wait=wait
        )

    async def _drop_all(self) -> None:
        links = [*self._links.values(), *self._left]
        self._links.clear()
        self._left.clear()
        for link in links:
            await link.close()

    async def close(self) -> None:
        """Drop every connection; whoever still waits is told."""
        self._closed = True
        await self._drop_all()
