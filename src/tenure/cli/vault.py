"""``tenure vault``: secrets go in and never come out, and are sealed anew when the keys rotate."""

from __future__ import annotations

import asyncio
import getpass
import sys
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from tenure.cli.asking import Cluster, asks, print_json
from tenure.cli.commands import Conversation
from tenure.cli.exits import Exit
from tenure.errors import InvalidInputError
from tenure.vault import LONGEST

Name = Annotated[str, typer.Argument(help="Its name: settings refer to it as vault:NAME.", show_default=False)]

vault = typer.Typer(
    help="Secrets of conversations: put, list (never their values), remove, and seal anew.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


async def ls(to: Cluster, conversation: Conversation) -> None:
    """What a conversation's vault holds; never the values."""
    found = await to.client.secrets(conversation)

    def table() -> Table | Text:
        if not found:
            return Text("the vault is empty", style="dim")
        rows = Table("name", "version", "key", box=None, pad_edge=False, header_style="dim")
        for one in found:
            unread = Text("none of the node's", "red")
            rows.add_row(str(one["name"]), str(one["version"]), str(one["key"]) if one["key"] else unread)
        return rows

    to.tell({"secrets": [dict(one) for one in found]}, table)


async def put(to: Cluster, conversation: Conversation, name: Name) -> None:
    """Keep a secret, or replace it. Its value is read from standard input, or asked for; never an argument.

    Arguments stand in the list of processes and in the shell's history. One line end at the end is left out.
    """
    value = await asyncio.to_thread(_value, name)
    version = await to.client.put_secret(conversation, name, value)
    to.tell({"name": name, "version": version}, lambda: f"vault:{name} is kept, version {version}")


async def rm(to: Cluster, conversation: Conversation, name: Name) -> None:
    """Erase a secret; erasing it twice is fine."""
    await to.client.remove_secret(conversation, name)
    to.tell({"name": name}, lambda: f"vault:{name} is gone")


async def rotate(
    to: Cluster,
    after: Annotated[str | None, typer.Option(help="Go on where an earlier run was cut.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Conversations at a time.")] = 100,
) -> Exit:
    """Seal every secret anew under the first of TENURE_SECRET_KEYS, while everything goes on.

    Put the new key first on every node, restart them, run this, then take the old key away. Exit code 1 if some secret is
    read by none of the keys, or the nodes disagree on the first key: then keep the old ones. Running it twice is fine.
    """
    counts = {"conversations": 0, "secrets": 0, "rewritten": 0}
    unreadable: list[dict[str, str]] = []
    keys: set[str] = set()
    while True:
        page: dict[str, Any] = dict(await to.client.rotate(after, limit))
        counts = {name: number + page[name] for name, number in counts.items()}
        unreadable += page["unreadable"]
        keys.add(page["key"])
        after = page["next_cursor"]
        if after is None:
            break
        if not to.as_json:
            typer.echo(f"{counts['conversations']} conversations so far; cut, go on with --after {after}", err=True)
    if to.as_json:
        print_json({**counts, "unreadable": list(unreadable), "keys": sorted(keys)})
    else:
        to.console.print(_rotated(counts, unreadable, keys))
    return Exit.FAILED if unreadable or len(keys) > 1 else Exit.OK


def _rotated(counts: dict[str, int], unreadable: list[dict[str, str]], keys: set[str]) -> Text:
    text = Text(
        f"{counts['rewritten']} of {counts['secrets']} secrets in {counts['conversations']} conversations sealed anew"
        f" under key {', '.join(sorted(keys))}"
    )
    for one in unreadable:
        text.append(f"\nnone of the node's keys reads vault:{one['name']} of {one['conversation']}", style="red")
    if len(keys) > 1:
        text.append(
            "\nthe nodes have different first keys: restart them with the same, and run this again", style="red"
        )
    return text


def _value(name: str) -> str:
    """What is piped in, else what is typed, unseen."""
    typed = sys.stdin.isatty()
    value = getpass.getpass(f"value of {name}: ") if typed else sys.stdin.read(4 * LONGEST)
    value = value.removesuffix("\n").removesuffix("\r")
    if not 0 < len(value) <= LONGEST:
        raise InvalidInputError("value", f"has {len(value)} characters, must have 1 to {LONGEST}", "pipe it in")
    return value


for _command in (ls, put, rm, rotate):
    vault.command()(asks(_command))
