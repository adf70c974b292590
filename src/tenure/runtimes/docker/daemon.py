"""Calls to a Docker daemon: in threads, bounded, repeated with back-off, and refused in the daemon's own words."""

from __future__ import annotations

import asyncio
import importlib
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, final

from tenure.abc import RuntimeFailure
from tenure.errors import InvalidInputError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection

TRIES = 4
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
THREADS = 8
"""Calls at once; more wait. A command that runs needs none."""
REASON_CHARS = 500
MAY_PASS = frozenset({408, 429})
"""Refusals after which the call is repeated, beside 5xx."""


@final
class Refused(RuntimeFailure):
    """What the daemon refuses a call with. `status` is its HTTP status."""

    def __init__(self, status: int, reason: str, step: str) -> None:
        unfit = status in (400, 404) and step in ("create", "start") and "no such container" not in reason.lower()
        super().__init__(reason, step=step, permanent=unfit)  # no such image, no such network, a limit too small
        self.status = status


def package() -> Any:
    """The ``docker`` package.

    :raises InvalidInputError: it is not installed.
    """
    try:
        return importlib.import_module("docker")
    except ImportError:
        raise InvalidInputError("runtime", "docker needs the docker package", "pip install 'tenure[docker]'") from None


@final
class Daemon:
    """The way to one daemon. `address` is ``unix:///…`` or ``tcp://host:port``; a call may take `call_s`."""

    def __init__(self, address: str, *, call_s: float, rng: random.Random) -> None:
        self._docker = package()
        self._address = address
        self._call_s = call_s
        self._rng = rng
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        self._lock = threading.Lock()
        self._client: Any = None
        self._closed = False

    async def ask(
        self,
        call: Callable[[Any], Any],
        *,
        step: str,
        none: Collection[int] = (),
        tries: int = TRIES,
        unwanted: Callable[[Any], None] | None = None,
    ) -> Any:
        """What `call` answers, given the package's client; asked again when the daemon stumbles.

        :param none: refusals that are an answer too: then null.
        :param unwanted: takes an answer that comes when its caller has gone.
        :raises Refused: what the daemon refuses it with. :raises RuntimeFailure: it does not answer.
        """
        pause_s = FIRST_PAUSE_S
        for left in range(tries - 1, -1, -1):
            try:
                return await self._once(call, step, unwanted)
            except RuntimeFailure as failure:
                status = failure.status if isinstance(failure, Refused) else None
                if status in none:
                    return None
                if not left or (status is not None and status < 500 and status not in MAY_PASS):
                    raise
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise AssertionError("the last try returns or raises")

    async def _once(self, call: Callable[[Any], Any], step: str, unwanted: Callable[[Any], None] | None) -> Any:
        """One call in a thread; the socket's time limit ends the thread, ours a daemon that drips."""
        if self._closed:
            raise RuntimeFailure("the provider is closed", step=step)
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._in_thread, call, step)
        try:
            async with asyncio.timeout(2 * self._call_s):
                return await asyncio.shield(work)
        except TimeoutError:
            work.add_done_callback(partial(_put_away, unwanted))
            raise RuntimeFailure("the Docker daemon does not answer (TimeoutError)", step=step) from None
        except asyncio.CancelledError:
            work.add_done_callback(partial(_put_away, unwanted))
            raise

    def _in_thread(self, call: Callable[[Any], Any], step: str) -> Any:
        errors = self._docker.errors
        try:
            return call(self._connected())
        except errors.APIError as error:
            reason = str(error.explanation or error)  # whole: it is cut where it is masked
            raise Refused(error.status_code or 0, reason, step) from None
        except (errors.DockerException, OSError, importlib.import_module("urllib3").exceptions.HTTPError) as error:
            # requests' errors are OSErrors, and their texts may be pages long
            raise RuntimeFailure(f"the Docker daemon does not answer ({type(error).__name__})", step=step) from None

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._docker.APIClient(
                    base_url=self._address, version="auto", timeout=self._call_s, max_pool_size=THREADS
                )
            return self._client

    async def close(self) -> None:
        """Give back connections and threads; a call that still hangs ends at its own time limit."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            await asyncio.to_thread(self._client.close)


def _put_away(unwanted: Callable[[Any], None] | None, work: asyncio.Future[Any]) -> None:
    """The answer or the error of a call whose caller has gone."""
    if not work.cancelled() and work.exception() is None and unwanted is not None:
        unwanted(work.result())
