"""The command: its options, what it prints, its exit code."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Annotated

import typer

from tenure.cli import settings as s
from tenure.cli.exits import Exit
from tenure.config import Config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from tenure.abc import Finding

STYLES = {"fine": "green", "risky": "yellow", "broken": "bold red"}


def doctor(
    store: s.Store = None,
    ttl_s: s.TtlS = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer with JSON, for programs.")] = False,
) -> None:
    """Examine a store: what is fine, what is risky and why, what is broken, and how to mend it.

    Tries on that very server that a frozen owner's late writes are refused, in a conversation of its own that it deletes.
    May run beside living nodes. Exit code 0 if nothing is broken (also with risks), 1 if something is, 5 if it does not answer.
    """
    from tenure.cli.asking import console_of, print_json
    from tenure.cli.doctor.examination import exit_of, findings_of
    from tenure.lease import Timing

    logging.getLogger("tenure").addHandler(logging.NullHandler())  # what a store logs is among the findings
    config = Config.from_environment(os.environ, store=store, ttl_s=ttl_s)
    found = asyncio.run(findings_of(config.store, Timing.of_ttl(config.ttl_s)))
    code = exit_of(found)
    if as_json:
        print_json({"ok": code is Exit.OK, "findings": [finding.as_json() for finding in found]})
    else:
        console = console_of()
        console.print(table_of(found))
        console.print(summary_of(found))
    raise typer.Exit(code)


def table_of(found: Sequence[Finding]) -> Table:
    """A finding a row: what it is about, how bad it is, and all that is to be said."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        words = Text(finding.what)
        words.append(f"\nwhy: {finding.why}" if finding.why else "")
        words.append(f"\nmend: {finding.remedy}" if finding.remedy else "", style="cyan")
        table.add_row(finding.name, Text(finding.verdict.value, STYLES[finding.verdict.value]), words)
    return table


def summary_of(found: Sequence[Finding]) -> str:
    """One line at the end."""
    counts = {verdict: sum(finding.verdict.value == verdict for finding in found) for verdict in STYLES}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
