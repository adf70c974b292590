"""One node as a process: ``tenure serve``. Its arrival and, above all, its departure.

::

    SIGTERM ──> not ready; turns go on, commands and reads are answered ──> streams closed ──> socket closed ──> exit 0
       |            at most drain_s, then hand-over at a step boundary          |                                  |
       |<--------------------------- at most drain_s + 10 s, or the watchdog ends the process -------------------->|

A second signal changes nothing. Whatever hangs (a loop, a thread, a reader), leaving is never worse than ``kill -9``:
the watchdog is a thread of the C library that needs neither the event loop nor the interpreter's lock, and the witness
buries whoever ends like that.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, NoReturn, final

import uvicorn

from tenure import facts
from tenure.cli.accepting import tell_once
from tenure.cli.collecting import collect_seldom
from tenure.cli.compose import compose, local_url, located
from tenure.cli.exits import Exit
from tenure.cli.tracing import Tracing, install
from tenure.errors import InvalidInputError
from tenure.server import close_streams, create_app, own_hosts, see_off, speaks_openhands

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from fastapi import FastAPI

    from tenure.config import Config
    from tenure.node import Node
    from tenure.vault import Veil

GRACE_S = 10.0
"""What the departure gets beyond drain_s; then the watchdog ends the process."""
HAND_OVER_S = 7.0
"""Of these: for turns to come to a step boundary and for their release; then streams are closed whatever is left."""
SEE_OFF_S = 5.0
"""Within so long the readers of streams are asked to go elsewhere; a short drain takes half of its time for it."""
LAST_REPLIES_S = 1
"""And for replies under way when the socket is closed."""
CLOSE_S = 1.0
"""And for the store to be closed."""
READY_POLL_S = 0.02
PING_S = 5.0
"""A socket on which a client is silent is asked so often; so a proxy in front may cut one that is silent for longer."""
SOCKET_FRAME_BYTES = 1 << 20
"""What a client may send in one frame."""


def run(config: Config, agents: Sequence[str], veil: Veil | None = None) -> NoReturn:
    """Be a node until told to leave. Ends the process.

    :raises TenureError: it could not become one; the message says why.
    """
    asyncio.run(_serve(config, agents, veil, install(os.environ, config.node)))
    raise AssertionError("the process has ended")


async def _serve(config: Config, agents: Sequence[str], veil: Veil | None, tracing: Tracing | None) -> None:
    departure = Departure(config.drain_s)
    with departure.on_signals(), _listening(config.host, config.port) as listener:
        config = located(config, listener.getsockname()[1])
        node = compose(config, agents, veil)
        _end(await _live(node, listener, departure, tracing))


async def _live(node: Node, listener: socket.socket, departure: Departure, tracing: Tracing | None = None) -> Exit:
    app = create_app(node, hosts=own_hosts(node.config))
    told = asyncio.create_task(departure.told.wait(), name="told to leave")
    entering = asyncio.create_task(node.__aenter__(), name="enter")
    await asyncio.wait([told, entering], return_when=asyncio.FIRST_COMPLETED)
    if not entering.done():  # told to leave before the store had answered: nothing is held
        entering.cancel()
        await asyncio.wait([entering])
        return Exit.OK
    await entering
    collect_seldom()
    tell_once(asyncio.get_running_loop(), node.facts)
    server = _Server(_uvicorn_config(node, app))
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    announcing = asyncio.create_task(_announce(node, server), name="announce")
    drained = asyncio.create_task(node.drained.wait(), name="drained on request")
    stuck = asyncio.create_task(node.stuck.wait(), name="stuck")
    await asyncio.wait([told, serving, drained, stuck], return_when=asyncio.FIRST_COMPLETED)
    announcing.cancel()
    departure.begin()
    if serving.done() and (error := serving.exception()) is not None:
        node.facts.tell(facts.LeavingBadly(f"the HTTP server ended: {error}"))
    code = Exit.FAILED if serving.done() else Exit.OK
    if not stuck.done():
        await _leave(node, app, stuck)
    close_streams(app)
    server.should_exit = True
    await asyncio.wait([serving], timeout=LAST_REPLIES_S + 0.5)
    if stuck.done():
        return Exit.STUCK
    closing = asyncio.create_task(_close(node, code), name="close")
    if tracing is not None:  # the last spans, while the store is closed
        await tracing.close(CLOSE_S)
    return await closing


async def _leave(node: Node, app: FastAPI, stuck: asyncio.Task[Any]) -> None:
    """Drain, while the socket is still open; returns when nothing is held, or too little time is left to wait."""
    draining = asyncio.create_task(node.drain(), name="drain")
    node.tasks.start(_see_off(node, app), "see off")
    limit_s = node.config.drain_s + HAND_OVER_S
    await asyncio.wait([draining, stuck], timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        what = f"not everything was released within {limit_s:g} s; the takeover is left to the others"
        node.facts.tell(facts.LeavingBadly(what))


async def _see_off(node: Node, app: FastAPI) -> None:
    """Readers go on elsewhere before the turns do, if there is another node: at the end they would all have to at once."""
    if await node.elsewhere():
        await see_off(app, min(node.config.drain_s / 2, SEE_OFF_S))


async def _close(node: Node, code: Exit) -> Exit:
    """Let the store go. What does not end by now is ended with the process."""
    closing = asyncio.create_task(node.__aexit__(None, None, None), name="close")
    done, _ = await asyncio.wait([closing], timeout=CLOSE_S)
    if not done:
        node.facts.tell(facts.LeavingBadly("the node could not be closed in time"))
        return code or Exit.FAILED
    if (error := closing.exception()) is not None:
        node.facts.tell(facts.LeavingBadly(f"closing the node failed: {error!r}"))
        return code or Exit.FAILED
    return code


async def _announce(node: Node, server: _Server) -> None:
    """Say that the node is ready, for programs on standard output, once it is."""
    while not server.started or node.readiness():  # noqa: ASYNC110 - neither of the two tells
        await asyncio.sleep(READY_POLL_S)
    url = local_url(node.config.host, node.config.port)
    node.facts.tell(facts.Ready(url, node.config.node, ",".join(node.agents)))
    with contextlib.suppress(OSError):  # nobody reads it
        print(f"ready {url} node={node.config.node}", flush=True)


def _end(code: Exit) -> NoReturn:
    """End the process. An agent's thread that goes on must not keep it: nothing of it is accepted any more."""
    facts.to_log(facts.Left(int(code)))
    logging.shutdown()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


# --- being told to leave --------------------------------------------------------------------------------------------


@final
class Departure:
    """The first signal begins it, and with it the watchdog; further ones change nothing."""

    def __init__(self, drain_s: float) -> None:
        self.told = asyncio.Event()
        self._limit_s = drain_s + GRACE_S
        self._begun = False

    def begin(self) -> None:
        """From here on the process ends in time, whatever happens."""
        if not self._begun:
            self._begun = True
            # Dumps where every thread stands and exits 1: in a thread of its own, without the interpreter's lock.
            faulthandler.dump_traceback_later(self._limit_s, exit=True)

    @contextlib.contextmanager
    def on_signals(self) -> Generator[None]:
        """Leave on SIGTERM and SIGINT, and when the terminal goes (unless that was to be ignored, as under nohup)."""
        loop = asyncio.get_running_loop()

        def leave(number: int, _: object) -> None:
            # Runs between two instructions, also while agent code blocks the event loop: the watchdog starts here.
            self.begin()
            loop.call_soon_threadsafe(self._tell, signal.Signals(number))

        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, leave) for number in numbers}
        try:
            yield
        finally:
            for number, was in before.items():
                signal.signal(number, was)
            faulthandler.cancel_dump_traceback_later()

    def _tell(self, number: signal.Signals) -> None:
        if self.told.is_set():
            facts.to_log(facts.LeavingAlready(number.name))
            return
        facts.to_log(facts.Leaving(number.name, self._limit_s))
        self.told.set()


# --- the socket and the server --------------------------------------------------------------------------------------


@final
class _Server(uvicorn.Server):
    """Leaves the signals to us: uvicorn would close the socket at once and give up on open streams."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _uvicorn_config(node: Node, app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        ws="websockets-sansio" if speaks_openhands(node) else "none",  # its library comes with the extra
        ws_max_size=SOCKET_FRAME_BYTES,
        ws_ping_interval=PING_S,
        ws_ping_timeout=2 * PING_S,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LAST_REPLIES_S,
    )


@contextlib.contextmanager
def _listening(host: str, port: int) -> Generator[socket.socket]:
    """A socket on host and port, bound before the node registers: its address holds the port that was chosen.

    :raises InvalidInputError: the host is none of this machine's, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidInputError("host", f"{host!r} is no address of this machine: {error}", "set TENURE_HOST") from None
    family, _, _, _, address = found[0]
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            why = f"cannot listen on {host}:{port}: {error.strerror}"
            raise InvalidInputError("port", why, "choose another with --port, or 0 for a free one") from None
        listener.setblocking(False)
        yield listener
