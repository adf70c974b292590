"""What the demo shows: on a terminal who owns what, as it changes; elsewhere plain lines; at the end the table."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tenure.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from tenure.cli.demo.verdict import Takeover, Verdict

TTL_S, DRAIN_S = 2.0, 0.5
"""What the demo's nodes are told."""
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "bright_red", "bright_cyan", "bright_magenta")
_STATES = {"up": "green", "killed": "red", "frozen": "blue", "draining": "yellow", "starting": "dim", "left": "dim"}
_MARKS = {"claimed": "bold", "turn_completed": "green", "call_interrupted": "red"}


@final
@dataclass(slots=True)
class Row:
    """A conversation as the screen knows it."""

    owner: str | None = None
    epoch: int = 0
    event: str = ""
    sent: int = 0
    answered: int = 0


@final
@dataclass(slots=True)
class Screen:
    """Told of everything that changes; draws it if somebody watches."""

    console: Console
    nodes: dict[str, str] = field(default_factory=dict[str, str])
    """The state of each node by its name."""
    rows: dict[str, Row] = field(default_factory=dict[str, Row])
    """The conversations that are talked to."""
    owners: dict[str, str | None] = field(default_factory=dict[str, str | None])
    """The node that owns each conversation, if one that lives does."""
    _started: float = field(default_factory=lambda: SystemClock().boottime().boot_s)

    @contextlib.contextmanager
    def live(self) -> Generator[None]:
        """Draw until the end; what was said stays, as lines."""
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=self._draw, console=self.console, refresh_per_second=8, transient=True):
            yield

    def say(self, what: str, style: str = "") -> None:
        """One line of the story."""
        passed_s = SystemClock().boottime().boot_s - self._started
        line = Text(f"{passed_s:6.2f} s  ", style="dim").append(what, style=style)
        self.console.print(line, soft_wrap=True)

    def row(self, conversation: str) -> Row:
        return self.rows.setdefault(conversation, Row())

    # --- drawing ----------------------------------------------------------------------------------------------------

    def _draw(self) -> Group:
        return Group(Text(), *(self._node(name) for name in self.nodes), self._conversations())

    def _node(self, name: str) -> Text:
        held = sorted(conversation for conversation, owner in self.owners.items() if owner == name)
        line = Text(f"{name} ", style=f"bold {self._colour(name)}", no_wrap=True, overflow="ellipsis")
        line.append(f"{self.nodes[name]:9}", style=_STATES.get(self.nodes[name], ""))
        return line.append(f" owns {len(held):2}  ").append(" ".join(held), style=self._colour(name))

    def _conversations(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        if not self.rows:
            return table
        for heading in ("conversation", "owner", "epoch", "last event", "sent", "answered"):
            table.add_column(heading, min_width=9)
        for name, row in self.rows.items():
            owner = Text("nobody", style="dim") if row.owner is None else Text(row.owner, style=self._colour(row.owner))
            event = Text(row.event, style=_MARKS.get(row.event, ""))
            table.add_row(name, owner, str(row.epoch), event, str(row.sent), str(row.answered))
        return table

    def _colour(self, node: str) -> str:
        names = list(self.nodes)
        return COLOURS[names.index(node) % len(COLOURS)] if node in names else ""


# --- the table at the end -------------------------------------------------------------------------------------------


def print_verdict(console: Console, verdict: Verdict, took_s: float) -> None:
    """What was asked, what happened, what went wrong."""
    if verdict.takeovers:
        console.print(_takeovers(verdict.takeovers))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="left", min_width=34)
    table.add_column(justify="right", style="bold")
    table.add_row("starts asked / loops run", f"{verdict.starts} / {verdict.loops}")
    table.add_row("messages sent / answered", f"{verdict.sent} / {verdict.answered}")
    table.add_row("tool calls begun / cut by a fault", f"{verdict.calls} / {verdict.cut}")
    if verdict.effects:
        table.add_row("side effects in the file", str(verdict.effects))
    table.add_row("doubles", _count(len(verdict.doubles)))
    table.add_row("losses", _count(len(verdict.losses)))
    table.add_row("broken promises", _count(len(verdict.violations)))
    console.print(table)
    for what in (*verdict.doubles, *verdict.losses, *verdict.violations):
        console.print(what, style="red", soft_wrap=True, markup=False)
    word = "every promise was kept" if verdict.kept else "PROMISES WERE BROKEN"
    console.print(f"{word} ({took_s:.0f} s)", style="green" if verdict.kept else "bold red")


def _takeovers(takeovers: Sequence[Takeover]) -> Table:
    title = f"\ntakeovers of open turns (ttl {TTL_S:g} s; a drained node's turns may go on for {DRAIN_S:g} s)"
    table = Table(box=None, pad_edge=False, header_style="dim", title=title, title_justify="left")
    for heading in ("owner was", "conversation", "from → to", "epoch"):
        table.add_column(heading)
    for heading in ("no owner for", "claimed after", "went on after"):
        table.add_column(heading, justify="right")
    for one in takeovers:
        table.add_row(
            one.kind,
            one.conversation,
            f"{one.before} → {one.after}",
            str(one.epoch),
            _duration(one.unowned_s),
            _duration(one.claimed_s),
            _duration(one.resumed_s),
        )
    return table


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _count(number: int) -> Text:
    return Text(str(number), style="bold green" if number == 0 else "bold red")
