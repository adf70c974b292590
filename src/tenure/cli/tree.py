"""The command tree: every command on one screen, its options beside it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tenure.cli import commands, copying
from tenure.cli.asking import asks
from tenure.cli.bench import bench
from tenure.cli.doctor import doctor
from tenure.cli.exits import EXPLAINED, Exit, exit_code, line
from tenure.cli.restored import restored
from tenure.cli.running import demo, serve
from tenure.cli.vault import vault
from tenure.errors import TenureError


class Commands(TyperGroup):
    """Turns what a command raises into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TenureError as error:
            typer.echo(f"tenure: {line(error)}", err=True)
            raise typer.Exit(exit_code(error)) from None
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None


tree = typer.Typer(
    name="tenure",
    cls=Commands,
    help="One owner per agent conversation, on a cluster of servers, through crashes.",
    epilog=EXPLAINED,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tenure {version('tenure')}")
        raise typer.Exit(Exit.OK)


@tree.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version, and nothing else.")
    ] = False,
) -> None: ...


for here in (serve, demo, doctor, bench, restored):
    tree.command()(here)
for asked in (
    commands.send,
    commands.tail,
    commands.ls,
    commands.show,
    commands.start,
    commands.stop,
    commands.interrupt,
    commands.answer,
    copying.export,
    copying.fork,
    commands.nodes,
    commands.takeover,
    commands.drain,
):
    tree.command()(asks(asked))
tree.add_typer(vault, name="vault")
tree.command("import")(asks(copying.import_))
