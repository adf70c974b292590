"""How client commands reach the cluster, and how they answer: what all of them have in common."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, final

import typer
from rich.console import Console

from tenure.cli.exits import Exit
from tenure.client import Client
from tenure.errors import InvalidInputError

if TYPE_CHECKING:
    from tenure.journal import Json

URL_ENV, KEY_ENV = "TENURE_URL", "TENURE_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8400"
PATIENCE_S = 3.0
PIPE_WIDTH = 10_000
"""What is not read by eyes is not cut."""

Url = Annotated[
    list[str] | None,
    typer.Option(
        help=f"A node, or several: repeated, or comma separated; whichever answers. [{URL_ENV}, default {DEFAULT_URL}]",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None, typer.Option(help=f"The nodes' key; better in the environment. [{KEY_ENV}]", show_default=False)
]
User = Annotated[str | None, typer.Option(help="Act for this user, not for the operator.", show_default=False)]
Patience = Annotated[float, typer.Option(min=0, max=86400, help="Go on asking for so long while no node answers.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with JSON, for programs.")]


@final
@dataclass(frozen=True, slots=True)
class Cluster:
    """What a command is given: a way to the cluster, and a place to answer."""

    client: Client
    console: Console
    as_json: bool

    def tell(self, shape: Json, words: Callable[[], object]) -> None:
        """The answer: one JSON document for a program, `words` for a person."""
        if self.as_json:
            print_json(shape)
        else:
            self.console.print(words())


def print_json(shape: Json) -> None:
    """One JSON document on a line."""
    print(json.dumps(shape, ensure_ascii=False), flush=True)


type Command = Callable[..., Awaitable[Exit | None]]
"""Its first parameter is the :class:`Cluster`; a null exit code means that all is well."""


def asks(command: Command) -> Callable[..., None]:
    """The command as typer takes it: with its own parameters, and those that lead to the cluster."""
    signature = inspect.signature(command, eval_str=True)
    _, *own = signature.parameters.values()
    reaching = inspect.signature(_reach, eval_str=True).parameters.values()

    def run(**given: Any) -> None:
        to = _reach(**{parameter.name: given.pop(parameter.name) for parameter in reaching})
        raise typer.Exit(asyncio.run(_run(to, command, given)))

    run.__name__, run.__doc__ = str(getattr(command, "__name__", "")), command.__doc__
    setattr(run, "__signature__", signature.replace(parameters=[*own, *reaching], return_annotation=None))  # noqa: B010
    return run


async def _run(to: Cluster, command: Command, given: Mapping[str, Any]) -> Exit:
    try:
        async with to.client:
            return await command(to, **given) or Exit.OK
    except BrokenPipeError:  # whoever read us has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK


def _reach(
    *,
    url: Url = None,
    api_key: ApiKey = None,
    user: User = None,
    patience: Patience = PATIENCE_S,
    as_json: AsJson = False,
) -> Cluster:
    key = api_key or os.environ.get(KEY_ENV) or None
    client = Client(urls_of(url, os.environ), api_key=key, user_id=user, patience_s=patience)
    return Cluster(client, console_of(), as_json)


def console_of() -> Console:
    """Where people read: as wide as the terminal, and without colours if there is none."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width)


def urls_of(given: list[str] | None, environ: Mapping[str, str]) -> list[str]:
    """The nodes' addresses, by option or else by environment.

    :raises InvalidInputError: one is no address.
    """
    texts = given or [environ.get(URL_ENV) or DEFAULT_URL]
    urls = [url for text in texts for part in text.split(",") if (url := part.strip())]
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise InvalidInputError("url", f"{url!r} is no address", f"write {DEFAULT_URL}")
    if not urls:
        raise InvalidInputError("url", "names no node", f"write {DEFAULT_URL}")
    return urls


def json_of(option: str, text: str | None) -> Json:
    """The JSON that an option holds; null if it was not given.

    :raises InvalidInputError: it is no JSON.
    """
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInputError(option, f"is no JSON: {error}", "quote it for the shell, as in '{\"a\": 1}'") from None
