"""The URL of a store on PostgreSQL, taken apart; what it must not show is never shown.

``postgresql://[user[:password]@]host[:5432][,host…]/database`` (or ``postgres://``), in libpq's own grammar with all its options
(``sslmode``, ``sslrootcert``, ``target_session_attrs`` …). Ours, behind ``?`` among them:

=================  =====================================================================================================
``schema``         where the tables live (default ``tenure``); stores of one database are told apart by it
``timeout_s``      how long an operation waits for its answer (default 5)
``statement_s``    how long the server works on a write, waiting for rows included (default 1.2; below half of the nodes' ttl)
=================  =====================================================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn, final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tenure.errors import InvalidInputError

TIMEOUT_S = 5.0
STATEMENT_S = 1.2
SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_OURS = {"schema", "timeout_s", "statement_s"}
_NOT_YOURS = {"options", "application_name", "client_encoding", "hostaddr_order"}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Everything that the URL says. `conninfo` may hold a password: never print it."""

    conninfo: str = field(repr=False)
    where: str
    schema: str = "tenure"
    timeout_s: float = TIMEOUT_S
    statement_s: float = STATEMENT_S

    def __str__(self) -> str:
        """For people and logs: where, never with what."""
        return f"{self.where} (schema {self.schema})"


def parse_url(url: str) -> Address:
    """Take a URL apart.

    :raises InvalidInputError: it is none, or has a part that libpq does not know. The message never repeats the URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres"):
        _refuse(f"no scheme {parts.scheme!r} for PostgreSQL", "use postgresql://user@host:5432/database")
    options = parse_qsl(parts.query, keep_blank_values=True)
    ours = {name: value for name, value in options if name in _OURS}
    theirs = [(name, value) for name, value in options if name not in _OURS]
    for name, _ in theirs:
        if name in _NOT_YOURS:
            _refuse(f"{name} is the store's own", f"leave {name} out")
    try:
        told = conninfo_to_dict(urlunsplit(parts._replace(query=urlencode(theirs))))
    except psycopg.ProgrammingError as error:
        what = str(error).strip().partition(":")[0]  # what follows may be a piece of the URL
        _refuse(f"libpq does not understand the URL ({what})", "write postgresql://user@host:5432/database")
    schema = ours.get("schema", "tenure")
    if not SCHEMA.fullmatch(schema):
        _refuse(f"schema={schema!r}", "use 1 to 40 of a to z, 0 to 9 and _, not beginning with a digit")
    told.setdefault("target_session_attrs", "read-write")
    return Address(
        conninfo=make_conninfo(**{name: str(value) for name, value in told.items()}),
        where=f"{told.get('host') or told.get('hostaddr') or 'localhost'}:{told.get('port') or 5432}/{told.get('dbname') or ''}",
        schema=schema,
        timeout_s=_seconds("timeout_s", ours.get("timeout_s"), TIMEOUT_S),
        statement_s=_seconds("statement_s", ours.get("statement_s"), STATEMENT_S),
    )


def _refuse(problem: str, remedy: str) -> NoReturn:
    raise InvalidInputError("store", problem, remedy) from None


def _seconds(name: str, text: str | None, default: float) -> float:
    try:
        seconds = default if text is None else float(text)
    except ValueError:
        seconds = -1.0
    if not 0.01 <= seconds <= 3600:
        _refuse(f"{name}={text!r}", "give seconds between 0.01 and 3600")
    return seconds
