"""Which server keeps what: a single one, whichever Sentinel calls the primary, or who has the slot in a Cluster.

A key is known here by its hash tag. A map is learned when it is needed, and learned anew after :meth:`Map.forget`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, final

from tenure.errors import StoreError, StoreUnavailableError
from tenure.stores.redis.address import Endpoint
from tenure.stores.redis.keys import SLOTS, slot_of
from tenure.stores.redis.link import connect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenure.stores.redis.address import Address, Credentials
    from tenure.stores.redis.link import Reply

LOOK_S = 1.0
"""How long one of several that could be asked may take to answer."""


class Map(Protocol):
    """Where the keys with a tag live."""

    async def find(self, tag: str) -> Endpoint:
        """The server to ask.

        :raises StoreUnavailableError: none, for now.
        """
        ...

    def forget(self) -> None:
        """What was found may have changed."""
        ...


async def _ask_once(address: Address, endpoint: Endpoint, credentials: Credentials, *command: str) -> Reply:
    """One question on a connection of its own."""
    timeout_s = min(LOOK_S, address.timeout_s)
    link = await connect(endpoint, credentials, tls=address.tls, timeout_s=timeout_s, scripts=False)
    try:
        (reply,) = await link.ask(command)
        return reply
    finally:
        await link.close()


@final
class One:
    """A single server."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def find(self, tag: str) -> Endpoint:
        del tag
        return self._endpoint

    def forget(self) -> None:
        return


@final
class Primary:
    """Whichever server Sentinel calls the primary, and which says so itself."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._endpoint: Endpoint | None = None
        self._asking = asyncio.Lock()

    async def find(self, tag: str) -> Endpoint:
        del tag
        if self._endpoint is not None:
            return self._endpoint
        async with self._asking:
            if self._endpoint is None:
                self._endpoint = await self._discover()
            return self._endpoint

    def forget(self) -> None:
        self._endpoint = None

    async def _discover(self) -> Endpoint:
        """Ask every Sentinel once; the first answer that its server confirms counts."""
        reasons: list[str] = []
        for sentinel in self._address.endpoints:
            try:
                primary = await self._named_by(sentinel)
                await self._confirm(primary)
            except StoreError as error:
                reasons.append(str(error))
            else:
                return primary
        raise StoreUnavailableError(f"Sentinel has no primary for {self._address.service!r} now: {'; '.join(reasons)}")

    async def _named_by(self, sentinel: Endpoint) -> Endpoint:
        address = self._address
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
        named: Reply = await _ask_once(address, sentinel, address.sentinel_credentials, *question)
        match named:
            case [host, port]:
                return Endpoint(host.decode(), int(port))
            case _:
                raise StoreUnavailableError(f"the Sentinel at {sentinel} does not know {address.service!r}")

    async def _confirm(self, endpoint: Endpoint) -> None:
        role: Reply = await _ask_once(self._address, endpoint, self._address.credentials, "ROLE")
        match role:
            case [b"master", *_]:
                return
            case _:
                raise StoreUnavailableError(f"{endpoint} is not the primary yet")


@final
class Slots:
    """The map of a Cluster: which server has which slot, learned from any of them, corrected by what ``MOVED`` says."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._owners: list[Endpoint | None] = [None] * SLOTS
        self._known: tuple[Endpoint, ...] = address.endpoints
        self._stale = True
        self._asking = asyncio.Lock()

    async def find(self, tag: str) -> Endpoint:
        if self._stale:
            await self._learn()
        endpoint = self._owners[slot_of(tag)]
        if endpoint is None:
            self._stale = True
            raise StoreUnavailableError(f"no server of the Cluster at {self._address} has slot {slot_of(tag)} now")
        return endpoint

    async def primaries(self) -> Sequence[Endpoint]:
        """Every server that has slots."""
        if self._stale:
            await self._learn()
        return tuple(dict.fromkeys(endpoint for endpoint in self._owners if endpoint is not None))

    def forget(self) -> None:
        self._stale = True

    def moved(self, slot: int, endpoint: Endpoint) -> None:
        """One slot is elsewhere; each other one is corrected when it is asked for."""
        self._owners[slot] = endpoint

    async def _learn(self) -> None:
        async with self._asking:
            if not self._stale:
                return
            reasons: list[str] = []
            for endpoint in dict.fromkeys((*self._known, *self._address.endpoints)):
                try:
                    self._take(endpoint, await self._told_by(endpoint))
                except StoreError as error:
                    reasons.append(str(error))
                else:
                    return
            raise StoreUnavailableError(f"no server of the Cluster answers: {'; '.join(reasons)}")

    async def _told_by(self, endpoint: Endpoint) -> Sequence[Reply]:
        told: Reply = await _ask_once(self._address, endpoint, self._address.credentials, "CLUSTER", "SLOTS")
        match told:
            case [_, *_]:
                return told
            case _:
                raise StoreUnavailableError(f"{endpoint} knows of no slots: {told!r}")

    def _take(self, teller: Endpoint, told: Sequence[Reply]) -> None:
        owners: list[Endpoint | None] = [None] * SLOTS
        for first, last, primary, *_ in told:
            host = primary[0].decode() if primary[0] else ""
            endpoint = Endpoint(host or teller.host, int(primary[1]))
            owners[first : last + 1] = [endpoint] * (last + 1 - first)
        self._owners = owners
        self._known = tuple(dict.fromkeys(endpoint for endpoint in owners if endpoint is not None))
        self._stale = False
