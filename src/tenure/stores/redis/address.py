"""The URL of a store on Redis, taken apart; what it must not show is never shown.

========================================================  ====================================================
``redis://[user:password@]host[:6379][/db]``              a single server, or any server of a Cluster
``rediss://…``                                            the same over TLS
``redis+unix:///path/to/socket[?db=1]``                   a single server on this machine
``redis+sentinel://…@host[:26379],host…/service[/db]``    whichever server Sentinel calls the primary
``redis+cluster://…@host[:6379],host…``                   a Cluster, found through any of these
========================================================  ====================================================

``valkey`` may stand for ``redis``, ``rediss+…`` is TLS. Options, behind ``?``: ``prefix`` (of all keys; default ``tenure``),
``timeout_s`` (how long an operation waits, default 5), ``wait`` (how many replicas must have a write before it counts),
``ca_file``, ``cert_file``, ``key_file``, ``verify=no`` (TLS), ``sentinel_user``, ``sentinel_password``.
"""

from __future__ import annotations

import enum
import re
import ssl
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn, final
from urllib.parse import parse_qsl, unquote, urlsplit

from tenure.errors import InvalidInputError

TIMEOUT_S = 5.0
PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_SCHEME = re.compile(r"(?P<server>redis|valkey)(?P<tls>s?)(?:\+(?P<mode>unix|sentinel|cluster))?")
_OPTIONS = {
    "prefix", "timeout_s", "wait", "db", "ca_file", "cert_file", "key_file", "verify", "sentinel_user", "sentinel_password"
}  # fmt: skip


class Mode(enum.StrEnum):
    """How the server that keeps a key is found."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


class Endpoint(NamedTuple):
    """Where a server listens: host and port, or a socket's path."""

    host: str
    port: int = 0

    def __str__(self) -> str:
        if not self.port:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@final
@dataclass(frozen=True, slots=True)
class Credentials:
    """What a server is told after connecting. Has no text form that shows it."""

    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Everything that the URL says."""

    mode: Mode
    endpoints: tuple[Endpoint, ...]
    service: str = ""
    db: int = 0
    credentials: Credentials = Credentials()
    sentinel_credentials: Credentials = Credentials()
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)
    prefix: str = "tenure"
    timeout_s: float = TIMEOUT_S
    wait: int = 0

    def __str__(self) -> str:
        """For people and logs: where, never with what."""
        where = ",".join(map(str, self.endpoints))
        return f"{where}/{self.service}" if self.service else where


def parse_url(url: str) -> Address:
    """Take a URL apart.

    :raises InvalidInputError: it names no server, or has a part that we do not know. The message never repeats the URL.
    """
    parts = urlsplit(url)
    scheme = _SCHEME.fullmatch(parts.scheme)
    if scheme is None:
        _refuse(
            f"no scheme {parts.scheme!r} for Redis", "use redis://, rediss://, redis+sentinel:// or redis+cluster://"
        )
    options = _options(parts.query)
    mode = Mode(scheme["mode"]) if scheme["mode"] in ("sentinel", "cluster") else Mode.SINGLE
    path = [unquote(part) for part in parts.path.split("/") if part]
    if scheme["mode"] == "unix":
        endpoints: tuple[Endpoint, ...] = (Endpoint(unquote(parts.path)),)
        path = []
    else:
        endpoints = _endpoints(parts.netloc.rpartition("@")[2], 26379 if mode is Mode.SENTINEL else 6379)
    service = path.pop(0) if mode is Mode.SENTINEL and path else ""
    if mode is Mode.SENTINEL and not service:
        _refuse("Sentinel needs the name of a service", "append it: redis+sentinel://host:26379/NAME")
    db = _number("db", path.pop(0) if path else options.get("db", "0"), 1_000_000)
    if path:
        _refuse(f"a path of {len(path)} parts too many", "end the URL after the number of the database")
    if mode is Mode.CLUSTER and db:
        _refuse(f"database {db} in a Cluster, which has one", "leave the number out; stores are told apart by ?prefix=")
    return Address(
        mode=mode,
        endpoints=endpoints,
        service=service,
        db=db,
        credentials=_credentials(parts.netloc),
        sentinel_credentials=Credentials(options.get("sentinel_user"), options.get("sentinel_password")),
        tls=_tls(options) if scheme["tls"] else None,
        prefix=_prefix(options.get("prefix", "tenure")),
        timeout_s=_seconds(options.get("timeout_s", str(TIMEOUT_S))),
        wait=_number("wait", options.get("wait", "0"), 100),
    )


def _refuse(problem: str, remedy: str) -> NoReturn:
    raise InvalidInputError("store", problem, remedy)


def _options(query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        _refuse(f"redis has no parameter {unknown[0]!r}", f"it knows {', '.join(sorted(_OPTIONS))}")
    return options


def _endpoints(hosts: str, default_port: int) -> tuple[Endpoint, ...]:
    found: list[Endpoint] = []
    for one in hosts.split(","):
        place = urlsplit(f"//{one}")
        try:
            found.append(Endpoint(place.hostname or "", place.port or default_port))
        except ValueError:
            _refuse(f"{one!r} is no host and port", "write host:port")
    if not all(endpoint.host for endpoint in found):
        _refuse("it names no host", "write redis://host:6379/0")
    return tuple(found)


def _credentials(netloc: str) -> Credentials:
    told, at, _ = netloc.rpartition("@")
    if not at:
        return Credentials()
    user, colon, password = told.partition(":")
    return Credentials(unquote(user) or None, unquote(password) if colon else None)


def _number(name: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= most):
        _refuse(f"{name}={text!r}", f"give a number between 0 and {most}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.01 <= seconds <= 3600:
        _refuse(f"timeout_s={text!r}", "give seconds between 0.01 and 3600")
    return seconds


def _prefix(text: str) -> str:
    if not PREFIX.fullmatch(text):
        _refuse(f"prefix={text!r}", "use 1 to 100 letters, digits, and _ . : -; braces would tie all keys to one slot")
    return text


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ca_file"))
        if "cert_file" in options:
            context.load_cert_chain(options["cert_file"], options.get("key_file"))
    except (OSError, ssl.SSLError) as error:
        _refuse(f"its TLS files cannot be read: {error}", "correct ca_file, cert_file, key_file")
    if options.get("verify", "yes") == "no":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
