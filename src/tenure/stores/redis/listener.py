"""A connection that only listens: channels go in, what is said on them comes out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast, final

from hiredis import ProtocolError, Reader, ReplyError

from tenure.errors import StoreUnavailableError
from tenure.facts import HintsFailed, to_log
from tenure.stores.redis.link import dial, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tenure.stores.redis.address import Address, Endpoint
from tenure.stores.redis.link import Reply

_NOTHING = object()
AT_ONCE = 1000
"""Channels in one command."""


@final
class Listener(asyncio.Protocol):
    """One connection, from :meth:`connect` to its end. It asks for a sign of life while it hears nothing.

    `hear` is called for each message with channel and payload, `confirmed` once the server passes a channel on.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        timeout_s: float,
        *,
        hear: Callable[[bytes, bytes], None],
        confirmed: Callable[[bytes], None],
    ) -> None:
        self.endpoint = endpoint
        self.ended = asyncio.Event()
        self.why = ""
        self._hear = hear
        self._confirmed = confirmed
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = self._loop.time()

    async def connect(self, address: Address) -> None:
        """Connect and log in; a login that is refused ends the connection.

        :raises StoreUnavailableError: nobody answers there in time.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await dial(self, self.endpoint, address.tls)
        except (TimeoutError, OSError) as error:
            raise StoreUnavailableError(f"no connection to {self.endpoint}: {error}") from error
        told = address.credentials
        if told.password is not None:
            self._write("AUTH", *(() if told.user is None else (told.user,)), told.password)
        self._write("CLIENT", "SETNAME", "tenure-hints")
        self._tick()

    def subscribe(self, channels: Iterable[str]) -> None:
        self._each("SUBSCRIBE", list(channels))

    def unsubscribe(self, channels: Iterable[str]) -> None:
        self._each("UNSUBSCRIBE", list(channels))

    def _each(self, command: str, channels: list[str]) -> None:
        for start in range(0, len(channels), AT_ONCE):
            self._write(command, *channels[start : start + AT_ONCE])

    def _write(self, *command: str) -> None:
        if self._transport is not None:
            self._transport.write(packed(command))

    def _tick(self) -> None:
        if self._loop.time() - self._heard_at > self._timeout_s:
            self.close(f"{self.endpoint} gave no sign of life for {self._timeout_s:g} s")
        else:
            self._write("PING")
            self._timer = self._loop.call_later(self._timeout_s / 2, self._tick)

    # what the event loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._reader.feed(data)
        try:
            while not self.ended.is_set() and (said := self._reader.gets(False)) is not _NOTHING:
                self._take(said)
        except ProtocolError as error:
            self.close(f"{self.endpoint} does not speak the protocol: {error}")
        except Exception as error:  # a bug, or a message that nobody should have sent
            to_log(HintsFailed(repr(error)), error=error)
            self.close(f"what {self.endpoint} said was not understood")

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(f"the connection to {self.endpoint} fell{f': {exc}' if exc else ''}")

    def _take(self, said: Reply) -> None:
        match said:
            case [b"message", channel, payload]:
                self._hear(channel, payload)
            case [b"subscribe", channel, _]:
                self._confirmed(channel)
            case ReplyError() if not str(said).startswith(("ERR unknown", "NOPERM")):  # CLIENT SETNAME may be forbidden
                self.close(f"{self.endpoint} says {said}")
            case _:
                pass

    def close(self, why: str = "closed") -> None:
        """End it; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self.why = self.why or why
        self.ended.set()
