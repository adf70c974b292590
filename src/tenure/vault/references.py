"""Where a secret is found, and how it is made anew before it runs out. Harmless to store and to show."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast, final
from urllib.parse import urlsplit

from tenure.errors import InvalidInputError
from tenure.vault.allowed import OWN_PREFIX

if TYPE_CHECKING:
    from tenure.journal import Json, JsonObject

MOST = 100
"""Credentials of one conversation."""
SHORTEST_TTL_S, LONGEST_TTL_S = 1.0, 30 * 86400.0

_NAME_OF_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_NAME_IN_VAULT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@final
@dataclass(frozen=True, slots=True)
class Reference:
    """Where a secret is found: ``env:NAME``, ``file:PATH`` or ``vault:NAME``. Harmless to store and to show."""

    scheme: str
    name: str

    def __str__(self) -> str:
        return f"{self.scheme}:{self.name}"

    @classmethod
    def parse(cls, text: object, field: str = "credentials") -> Self:
        """Read a reference.

        :raises InvalidInputError: it is none. The text is not repeated: somebody may have put the secret itself there.
        """
        scheme, colon, name = text.partition(":") if isinstance(text, str) else ("", "", "")
        problem = _PROBLEMS.get(scheme, _no_scheme)(name) if colon else _no_scheme(name)
        if problem:
            raise InvalidInputError(field, problem, "write env:NAME, file:/absolute/path or vault:NAME, not the secret")
        return cls(scheme, name)


def _no_scheme(name: str) -> str:
    return "is no reference to a secret"


def _no_env(name: str) -> str:
    if not _NAME_OF_ENV.fullmatch(name):
        return "env: needs the name of an environment variable, at most 128 characters"
    if name.upper().startswith(OWN_PREFIX):
        return "env: does not give away the node's own settings (TENURE_…)"
    return ""


def _no_file(name: str) -> str:
    if name.startswith("/") and len(name) <= 4096 and name.isprintable():
        return ""
    return "file: needs an absolute path of at most 4096 printable characters"


def _no_vault(name: str) -> str:
    if _NAME_IN_VAULT.fullmatch(name):
        return ""
    return "vault: needs a name of letters, digits, dots, dashes and underscores, at most 128"


_PROBLEMS: Mapping[str, Callable[[str], str]] = {"env": _no_env, "file": _no_file, "vault": _no_vault}

# --- what settings ask for ------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Refresh:
    """What makes a value: a program with its arguments, or a URL that is asked by POST. One of the two is empty."""

    command: tuple[str, ...] = ()
    url: str = ""

    def __str__(self) -> str:
        return f"command:{self.command[0]}" if self.command else f"url:{self.url.partition('?')[0]}"


@final
@dataclass(frozen=True, slots=True)
class Credential:
    """One credential, as settings ask for it: ``"vault:NAME"``, or an object of `from`, `refresh` and `ttl_s`.

    Without `refresh` the value is what `source` holds, read again every `ttl_s` if that is given. With it, the value
    is what the command or URL makes of `source` (a refresh token, say), made anew before it runs out: after the
    ``expires_in`` that came with it, else after `ttl_s`, else never.
    """

    source: Reference | None
    refresh: Refresh | None = None
    ttl_s: float | None = None

    def __str__(self) -> str:
        return str(self.refresh or self.source)


def credentials(settings: JsonObject, field: str = "settings.credentials") -> dict[str, Credential]:
    """What settings ask for: name of the environment variable in the runtime → credential.

    :raises InvalidInputError: names the field.
    """
    asked = settings.get("credentials")
    if asked is None:
        return {}
    if not isinstance(asked, Mapping) or len(asked) > MOST:
        raise InvalidInputError(field, f"must be an object of at most {MOST} references", 'write {"NAME": "env:NAME"}')
    for name in asked:
        if not _NAME_OF_ENV.fullmatch(name):
            raise InvalidInputError(field, f"{name[:80]!r} is no name of an environment variable", "use A-Z, 0-9 and _")
    return {name: _credential(one, f"{field}.{name}") for name, one in asked.items()}


def _credential(asked: Json, field: str) -> Credential:
    if not isinstance(asked, Mapping):
        return Credential(Reference.parse(asked, field))
    if unknown := sorted(asked.keys() - {"from", "refresh", "ttl_s"}):
        raise InvalidInputError(
            field, f"{unknown[0][:80]!r} is no part of a credential", "give from, refresh and ttl_s"
        )
    refresh = _refresh(asked["refresh"], f"{field}.refresh") if "refresh" in asked else None
    source = Reference.parse(asked.get("from"), f"{field}.from") if "from" in asked or refresh is None else None
    return Credential(source, refresh, _ttl(asked.get("ttl_s"), f"{field}.ttl_s"))


def _refresh(asked: Json, field: str) -> Refresh:
    known: Mapping[str, Any] = asked if isinstance(asked, Mapping) else {}
    match dict(known):
        case {"command": [str(program), *arguments]} if len(known) == 1:
            argv = (program, *cast("Sequence[Any]", arguments))
            fine = len(argv) <= 50 and all(isinstance(a, str) and len(a) <= 1000 and a.isprintable() for a in argv)
            if fine and program.startswith("/"):
                return Refresh(command=argv)
            raise InvalidInputError(field, "must be an absolute path and at most 49 short texts", "correct command")
        case {"url": str(url)} if len(known) == 1:
            if _is_plain(url):
                return Refresh(url=url)
            raise InvalidInputError(field, "must be a plain http(s) URL without user, password or #", "correct url")
        case _:
            remedy = 'write {"command": ["/path/of/program"]} or {"url": "https://…"}'
            raise InvalidInputError(field, "must hold a command or a url, and nothing else", remedy)


def _is_plain(url: str) -> bool:
    try:
        parts = urlsplit(url)
        bare = parts.username is None and parts.password is None and not parts.fragment and bool(parts.hostname)
    except ValueError:
        return False
    return bare and parts.scheme in ("http", "https") and len(url) <= 2000 and url.isascii() and url.isprintable()


def _ttl(asked: Json, field: str) -> float | None:
    if asked is None:
        return None
    number = isinstance(asked, int | float) and not isinstance(asked, bool)
    if number and SHORTEST_TTL_S <= cast("float", asked) <= LONGEST_TTL_S:
        return float(cast("float", asked))
    raise InvalidInputError(field, f"must be {SHORTEST_TTL_S:g} to {LONGEST_TTL_S:g} seconds", "correct it")
