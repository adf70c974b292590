"""The command: its options, and what it prints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer


def bench(
    store: Annotated[
        str | None,
        typer.Option(
            help="Measure this store, by URL, in a space of its own that is removed; else new servers, of each kind."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller amounts: within five minutes on two cores.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ROW", help="Only this row, by number or name. May be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep page, plots and data here; rows of earlier runs stay.")
    ] = None,
) -> None:
    """Measure: ours beside the raw floor and the peers that are installed, in turn, in one run.

    Prints what each target asks for and what was found. Exit code 0, met or not.
    """
    from tenure.cli.bench.running import Asked, measure
    from tenure.cli.bench.stage import FULL, QUICK

    logging.getLogger("tenure").addHandler(logging.NullHandler())
    words = ["tenure bench", *(["--store …"] if store else []), *(["--quick"] if quick else [])]
    words += [f"--only {one}" for one in only or ()]
    measure(Asked(store, QUICK if quick else FULL, tuple(only or ()), out, " ".join(words)), typer.echo)
