"""From a reference to its value: a variable, a file, the vault, a command, a URL. Everything is bounded in time and size,
and no error ever holds a value."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import stat
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, final

from tenure.errors import CredentialError
from tenure.vault.keys import KEYS_SETTING
from tenure.vault.references import LONGEST_TTL_S, SHORTEST_TTL_S
from tenure.vault.secret import LONGEST, Secret

if TYPE_CHECKING:
    from tenure.abc import Store
    from tenure.vault.allowed import Allowed
    from tenure.vault.keys import Keys
    from tenure.vault.references import Credential, Reference, Refresh

ANSWER_S = 10.0
"""How long a command or a URL may take."""
ANSWER_BYTES = 4 * LONGEST

type Unseal = Callable[[str], Awaitable[Secret | None]]
"""The secret of that name in the conversation's vault, or null."""


@final
@dataclass(frozen=True, slots=True)
class Obtained:
    """A value, for how long it is good (null: no end is known), and what it was made of."""

    secret: Secret
    lasts_s: float | None = None
    source: Secret | None = None

    @property
    def known(self) -> list[Secret]:
        """All of what must be masked from now on."""
        return [self.secret] if self.source is None else [self.secret, self.source]


async def obtain(credential: Credential, unseal: Unseal, allowed: Allowed) -> Obtained:
    """The value of a credential, as it is or is made now.

    :raises CredentialError: there is none here, or it may not be asked for.
    """
    allowed.insist(credential)
    source = None if credential.source is None else await resolve(credential.source, unseal, allowed=allowed)
    if credential.refresh is None:
        assert source is not None, "a credential has a source or something that makes it"
        return Obtained(source, credential.ttl_s)
    answer = await (_run if credential.refresh.command else _ask)(credential.refresh, source, allowed)
    value, lasts_s = _token(str(credential), answer)
    return Obtained(value, lasts_s or credential.ttl_s, source)


async def resolve(
    reference: Reference, unseal: Unseal, environ: Mapping[str, str] | None = None, *, allowed: Allowed | None = None
) -> Secret:
    """The value behind a reference, as it is now. With `allowed`, a file must lie in an allowed folder, links resolved.

    :raises CredentialError: there is none; names the reference and the remedy. It may be there on another node.
    """
    match reference.scheme:
        case "env":
            value = (os.environ if environ is None else environ).get(reference.name)
            if not value:
                raise CredentialError(str(reference), "is not set on this node", "set it, then start the node again")
            return _secret(reference, value)
        case "file":
            return _secret(reference, await asyncio.to_thread(_content, reference, allowed))
        case _:
            secret = await unseal(reference.name)
            if secret is None:
                raise CredentialError(
                    str(reference),
                    "is not in this conversation's vault",
                    f"put a secret named {reference.name} there (tenure vault put), then send a message or start it",
                    everywhere=True,
                )
            return secret


def _content(reference: Reference, allowed: Allowed | None) -> str:
    try:
        path = reference.name
        if allowed is not None:
            path = os.path.realpath(reference.name, strict=True)
            if not allowed.resolved().holds(path):
                raise CredentialError(str(reference), "leads out of the allowed folder", "put the file itself there")
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(file, "rb") as opened:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise CredentialError(str(reference), "is no regular file", "name the file that holds the secret")
            content = opened.read(LONGEST * 4 + 1)
        return content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise CredentialError(
            str(reference), f"cannot be read on this node: {error.strerror}", "put it there, readable for the node"
        ) from None
    except UnicodeDecodeError:
        raise CredentialError(str(reference), "is not text", "store it as UTF-8, for instance in base64") from None


def _secret(reference: Reference, value: str) -> Secret:
    try:
        return Secret(value)
    except ValueError as error:
        raise CredentialError(str(reference), str(error), "store one secret there, and nothing else") from None


# --- values that are made -------------------------------------------------------------------------------------------


async def _run(refresh: Refresh, source: Secret | None, allowed: Allowed) -> bytes:
    given = b"" if source is None else source.reveal().encode()
    return await asyncio.to_thread(_output, refresh, given, allowed.environment(os.environ))


def _output(refresh: Refresh, given: bytes, environment: dict[str, str]) -> bytes:
    """What the command prints. It gets `given` on standard input; what it says on standard error is nobody's."""
    remedy = "run it by hand on the node, as the node's user"
    try:
        program = subprocess.Popen(
            refresh.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd="/", env=environment, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise CredentialError(str(refresh), f"cannot be run on this node: {error.strerror}", remedy) from None
    with program:
        try:
            output, _ = program.communicate(given, timeout=ANSWER_S)
        except subprocess.TimeoutExpired:
            raise CredentialError(str(refresh), f"had not ended after {ANSWER_S:g} s", remedy) from None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # also what it left in the background
                os.killpg(program.pid, signal.SIGKILL)
    if program.returncode != 0:
        raise CredentialError(str(refresh), f"ended with {program.returncode}", remedy)
    return output


async def _ask(refresh: Refresh, source: Secret | None, allowed: Allowed) -> bytes:
    """What the URL answers to a POST that carries `source` as bearer. Redirects are refused: they lead elsewhere."""
    import httpx  # here: what only parses references needs no client

    headers = {"Accept": "application/json"} | (
        {} if source is None else {"Authorization": f"Bearer {source.reveal()}"}
    )
    remedy = "look at what answers there"
    try:
        async with (
            asyncio.timeout(ANSWER_S),
            httpx.AsyncClient(trust_env=False, timeout=ANSWER_S) as http,
            http.stream("POST", refresh.url, headers=headers) as reply,
        ):
            if not reply.is_success:
                raise CredentialError(str(refresh), f"answered {reply.status_code}", remedy)
            answer = b""
            async for part in reply.aiter_bytes():
                answer += part
                if len(answer) > ANSWER_BYTES:
                    break
            return answer
    except (httpx.HTTPError, TimeoutError, ValueError) as error:
        raise CredentialError(str(refresh), f"did not answer ({type(error).__name__})", remedy) from None


def _token(reference: str, answer: bytes) -> tuple[Secret, float | None]:
    """The value of an answer: a JSON object with ``access_token`` and ``expires_in`` (RFC 6749, 5.1), or bare text."""
    remedy = 'answer with {"access_token": …, "expires_in": seconds}, or with the value alone'
    try:
        text = answer.decode()
        found: Any = json.loads(text) if text.lstrip().startswith("{") else {"access_token": text.strip()}
        members = cast("dict[str, Any]", found)
        match members.get("expires_in"):
            case (int() | float()) as given if not isinstance(given, bool) and math.isfinite(given):
                lasts_s = min(max(float(given), SHORTEST_TTL_S), LONGEST_TTL_S)
            case _:
                lasts_s = None
        return Secret(members["access_token"]), lasts_s
    except (KeyError, TypeError, ValueError):
        raise CredentialError(reference, "gave no value", remedy) from None


def unsealing(store: Store, keys: Keys | None, conversation: str) -> Unseal:
    """How ``vault:NAME`` of a conversation is read: ciphertext from the store, under the cluster's keys."""

    async def unseal(name: str) -> Secret | None:
        sealed = await store.unseal(conversation, name)
        if sealed is None:
            return None
        if keys is None:
            raise CredentialError(f"vault:{name}", "this node has no keys", f"set {KEYS_SETTING} on every node")
        return keys.unseal(conversation, name, sealed.ciphertext)

    return unseal
