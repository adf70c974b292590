"""One connection to one server, shared by everybody in this process: what is asked at the same moment travels together.

Requests go out in the order in which they were made, all that a turn of the event loop has gathered in one write, and
answers come back in that order; nobody waits for anybody else's answer to ask, and nobody waits for company. Nothing is
ever sent twice from here: who gets no answer in time is told that the outcome is unknown.

*Why not a client library:* they lend a connection to one caller at a time, and repeat by themselves; here the pipeline is
the group commit, the time-out is a promise to the heartbeat, and only the caller knows whether a request may be repeated
(docs/decisions/0030-redis-connection.md).
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast, final

from hiredis import ProtocolError, Reader, ReplyError, pack_command  # pyright: ignore[reportUnknownVariableType]

from tenure.errors import StoreUnavailableError, StoreUnfitError
from tenure.stores.redis.scripts import all_scripts, joined

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from tenure.stores.redis.address import Credentials, Endpoint
    from tenure.stores.redis.scripts import Script, Share

type Reply = Any
"""What the server answered: bytes, int, None, a list of these, or a ``ReplyError``, which is a value here."""

type Command = tuple[str | bytes | int | float, ...]

IMPATIENCE_S = 0.05
"""A caller that gives up after this long, while nothing has come back since it asked, takes its successors elsewhere."""
TOGETHER = 100
"""How many shares go into one call: bounds how long the server is busy with it, and with nothing else."""
TOGETHER_BYTES = 1 << 20
ARGUMENT_BYTES = 512
"""What an argument counts for beside its length: a batch of hundreds of short events is work too."""
_NOTHING = object()


@final
@dataclass(slots=True, eq=False)
class _Request:
    answer: asyncio.Future[list[Reply]]
    missing: int
    """Replies that are still to come."""
    asked_at: float
    durable: bool
    replies: list[Reply] = field(default_factory=list[Reply])

    def resolve(self) -> None:
        if not self.answer.done():  # cancelled: its caller went away
            self.answer.set_result(self.replies)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


@final
@dataclass(slots=True, eq=False)
class _Company:
    """Shares that travel as one call, and an answer for each."""

    asked_at: float
    durable: bool
    shares: list[Share] = field(default_factory=list["Share"])
    answers: list[asyncio.Future[Reply]] = field(default_factory=list["asyncio.Future[Reply]"])
    size: int = 0
    missing: int = 1
    replies: list[Reply] = field(default_factory=list[Reply])

    @property
    def is_full(self) -> bool:
        return len(self.shares) >= TOGETHER or self.size >= TOGETHER_BYTES

    def packed(self) -> bytes:
        return packed(joined(self.shares).command())

    def resolve(self) -> None:
        (reply,) = self.replies
        each = [reply] * len(self.answers) if isinstance(reply, ReplyError) else reply
        for answer, one in zip(self.answers, each, strict=True):
            if not answer.done():
                answer.set_result(one)

    def fail(self, error: Exception) -> None:
        for answer in self.answers:
            if not answer.done():
                answer.set_exception(error)


@final
class Link(asyncio.Protocol):
    """A connection, from :func:`connect` to :meth:`close`. Once it is lost it stays lost.

    With `wait`, the answers of durable requests are held back until that many replicas have what was written; one
    ``WAIT`` serves all that travelled together, and meanwhile the next ones gather.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float, wait: int = 0) -> None:
        self.endpoint = endpoint
        self.usable = True
        """New requests may use it: it is connected, and nobody has waited in vain."""
        self._timeout_s = timeout_s
        self._wait = wait
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._unsent: list[_Request | _Company] = []
        self._packed: list[bytes | _Company] = []
        self._companies: dict[tuple[Script, str], _Company] = {}
        """Those that gather in this turn of the event loop, by script and hash tag."""
        self._sent: deque[_Request | _Company] = deque()
        self._unconfirmed: list[_Request | _Company] = []
        self._waiting = False
        self._flushing = False
        self._heard_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def lost(self) -> bool:
        """The connection is gone."""
        return self._transport is None

    # requests

    async def ask(self, *commands: Command, durable: bool = False) -> list[Reply]:
        """Send the commands in a row, and return their replies.

        :raises StoreUnavailableError: no answer in time, the connection fell, or too few replicas have it. Unknown outcome.
        """
        self._insist()
        request = _Request(self._loop.create_future(), len(commands), self._loop.time(), durable)
        self._packed.extend(map(packed, commands))
        self._unsent.append(request)
        self._soon()
        return await self._patiently(request.answer, request.asked_at)

    async def join(self, shares: Sequence[tuple[str, Share]], *, durable: bool = False) -> list[Reply]:
        """Send shares, each with whatever others of its script and hash tag are asked for in this turn of the event loop.

        :raises StoreUnavailableError: as :meth:`ask`.
        """
        self._insist()
        asked_at = self._loop.time()
        answers = [self._accompany(tag, share, asked_at, durable=durable) for tag, share in shares]
        if len(answers) == 1:
            return [await self._patiently(answers[0], asked_at)]
        return await self._patiently(asyncio.gather(*answers), asked_at)

    def _accompany(self, tag: str, share: Share, asked_at: float, *, durable: bool) -> asyncio.Future[Reply]:
        company = self._companies.get((share.script, tag))
        if company is None or company.is_full:
            company = self._companies[share.script, tag] = _Company(asked_at, durable)
            self._packed.append(company)
            self._unsent.append(company)
            self._soon()
        company.shares.append(share)
        company.size += len(share.arguments) * ARGUMENT_BYTES + sum(map(len, share.arguments))
        answer: asyncio.Future[Reply] = self._loop.create_future()
        company.answers.append(answer)
        return answer

    def _insist(self) -> None:
        if self._transport is None or self._transport.is_closing():
            raise StoreUnavailableError(f"the connection to {self.endpoint} is lost; repeat the request unchanged")

    def _soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    async def _patiently[R](self, answer: asyncio.Future[R], asked_at: float) -> R:
        try:
            return await answer
        except asyncio.CancelledError:
            # No byte since it was asked: this way may be dead, and who tries again should not stand behind it.
            if self._heard_at < asked_at <= self._loop.time() - IMPATIENCE_S:
                self.usable = False
            raise

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is None or self._waiting or not self._unsent:
            return
        batch, self._unsent = self._unsent, []
        gathered, self._packed = self._packed, []
        self._companies.clear()
        data = [one if isinstance(one, bytes) else one.packed() for one in gathered]
        self._sent.extend(batch)
        if self._wait and any(request.durable for request in batch):
            self._waiting = True
            data.append(packed(("WAIT", self._wait, max(1, int(self._timeout_s * 500)))))
            confirmation = _Request(self._loop.create_future(), 1, self._loop.time(), durable=False)
            confirmation.answer.add_done_callback(self._confirmed)
            self._sent.append(confirmation)
        self._transport.write(b"".join(data))
        self._watch()

    def _confirmed(self, confirmation: asyncio.Future[list[Reply]]) -> None:
        """The answer to ``WAIT``: how many replicas have everything up to here."""
        requests, self._unconfirmed = self._unconfirmed, []
        self._waiting = False
        if confirmation.exception() is None:
            (replicas,) = confirmation.result()
            for request in requests:
                if isinstance(replicas, int) and replicas >= self._wait:
                    request.resolve()
                else:
                    request.fail(_unknown(f"{self._wait} replicas must have a write, {replicas} confirmed it in time"))
            self._flush()

    # what the event loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets(False)) is not _NOTHING:
                self._take(reply)
        except ProtocolError as error:
            self._lose(f"{self.endpoint} does not speak the protocol: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(f"the connection to {self.endpoint} fell{f': {exc}' if exc else ''}")

    def _take(self, reply: Reply) -> None:
        if not self._sent:
            self._lose(f"{self.endpoint} said {reply!r}, which nobody had asked")
            return
        request = self._sent[0]
        request.replies.append(reply)
        request.missing -= 1
        if request.missing:
            return
        self._sent.popleft()
        if self._wait and request.durable:
            self._unconfirmed.append(request)
        else:
            request.resolve()
        if not self.usable and not (self._sent or self._unsent or self._unconfirmed):
            self._lose("nobody uses it any more")

    # the end

    def _watch(self) -> None:
        if self._timer is None and self._sent:
            due = self._sent[0].asked_at + self._timeout_s
            self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        """Whether the oldest request has waited too long."""
        self._timer = None
        if self._sent and self._loop.time() >= self._sent[0].asked_at + self._timeout_s:
            self._lose(f"{self.endpoint} did not answer within {self._timeout_s:g} s")
        else:
            self._watch()

    def _lose(self, why: str) -> None:
        self.usable = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        lost = [*self._unconfirmed, *self._sent, *self._unsent]
        self._unconfirmed, self._unsent, self._packed = [], [], []
        self._companies.clear()
        self._sent.clear()
        for request in lost:
            request.fail(_unknown(why))

    async def close(self) -> None:
        """Drop the connection; whoever still waits is told."""
        self._lose(f"the store at {self.endpoint} was closed")
        await asyncio.sleep(0)  # the transport closes its socket in the next turn of the loop


def packed(command: Command) -> bytes:
    """A command as it goes over the wire."""
    return cast("bytes", pack_command(command))  # pyright: ignore[reportArgumentType] - its stub means any tuple


def _unknown(why: str) -> StoreUnavailableError:
    return StoreUnavailableError(f"{why}; repeat the request unchanged")


async def dial(protocol: asyncio.Protocol, endpoint: Endpoint, tls: ssl.SSLContext | None) -> None:
    """Connect the protocol.

    :raises OSError: nobody listens there.
    """
    loop = asyncio.get_running_loop()
    if endpoint.port:
        await loop.create_connection(lambda: protocol, endpoint.host, endpoint.port, ssl=tls)
    else:
        await loop.create_unix_connection(lambda: protocol, endpoint.host)


async def connect(
    endpoint: Endpoint,
    credentials: Credentials,
    *,
    tls: ssl.SSLContext | None = None,
    db: int = 0,
    timeout_s: float,
    wait: int = 0,
    scripts: bool = True,
) -> Link:
    """Connect, log in, choose the database, and send the scripts that the server lacks.

    :raises StoreUnavailableError: nobody answers there in time.
    :raises StoreUnfitError: the server refuses the login or the database.
    """
    link = Link(endpoint, timeout_s, wait)
    try:
        async with asyncio.timeout(timeout_s):
            await dial(link, endpoint, tls)
            await _greet(link, credentials, db, scripts=scripts)
    except TimeoutError:
        await link.close()
        raise StoreUnavailableError(f"{endpoint} did not answer within {timeout_s:g} s") from None
    except OSError as error:
        await link.close()
        raise StoreUnavailableError(f"no connection to {endpoint}: {error.strerror or error}") from error
    except BaseException:
        await link.close()
        raise
    return link


async def _greet(link: Link, credentials: Credentials, db: int, *, scripts: bool) -> None:
    greeting: list[Command] = []
    if credentials.password is not None:
        user = () if credentials.user is None else (credentials.user,)
        greeting.append(("AUTH", *user, credentials.password))
    if db:
        greeting.append(("SELECT", db))
    greeting.append(("CLIENT", "SETNAME", "tenure"))
    known = len(greeting)
    if scripts:  # one by one: a server hangs up on who names more than ten things and is not logged in
        greeting += [("SCRIPT", "EXISTS", script.sha) for script in all_scripts()]
    replies = await link.ask(*greeting)
    for command, reply in zip(greeting, replies, strict=True):
        if isinstance(reply, ReplyError) and command[0] in ("AUTH", "SELECT"):
            said = str(reply).replace(credentials.password or "\0", "***")  # some servers repeat what they were sent
            raise _refusal(link.endpoint, str(command[0]), said)
    if missing := [script for script, there in zip(all_scripts(), replies[known:], strict=False) if there == [0]]:
        # Not all of them each time: before 7.0 a server writes each one to its append-only file and to its replicas, known or not.
        await link.ask(*(("SCRIPT", "LOAD", script.text) for script in missing))


def _refusal(endpoint: Endpoint, command: str, said: str) -> StoreUnfitError | StoreUnavailableError:
    if said.startswith("LOADING"):
        return StoreUnavailableError(f"{endpoint} is still loading its data")
    what = "the user or the password" if command == "AUTH" else "the number of the database"
    return StoreUnfitError(f"{endpoint} refused {command}: {said}; correct {what} in the store's URL")


def is_error(reply: Reply, *codes: str) -> bool:
    """Whether a reply is an error, and if codes are given, one that begins with one of them."""
    return isinstance(reply, ReplyError) and (not codes or str(reply).startswith(codes))


def error_of(replies: Sequence[Reply]) -> ReplyError | None:
    """The first error among the replies."""
    return next((reply for reply in replies if isinstance(reply, ReplyError)), None)
