"""What people see: tables, and events as lines."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tenure.client import Conversation, Delta, LoopInfo, NodeInfo, Sent, StartProgress
from tenure.clock import Instant
from tenure.conversation import Ended
from tenure.journal import TURN_ENDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tenure.conversation import TenureSpan
    from tenure.errors import Owner
    from tenure.journal import Event, Json

STATUS = {
    "running": "green", "starting": "cyan", "waiting": "yellow", "queued": "yellow", "failed": "red",
    "stopped": "dim", "idle": "",
}  # fmt: skip
KINDS = {
    "message": "bold cyan", "reply": "bold green", "claimed": "magenta", "released": "magenta", "turn_failed": "red",
    "call_interrupted": "red", "start_failed": "red", "credential_failed": "red", "turn_interrupted": "yellow", "turn_waiting": "yellow",
}  # fmt: skip


_LOST = frozenset({Ended.DIED, Ended.FROZEN, Ended.EXPIRED, Ended.GAVE_UP, Ended.FORCED, Ended.LOST})


def conversations_table(found: Sequence[Conversation]) -> Table | Text:
    """Who does what where."""
    if not found:
        return Text("no conversations", style="dim")
    table = _table("conversation", "status", "owner", "epoch", "events", "agent", "user", "updated")
    for one in found:
        table.add_row(
            one.id,
            _status(one.status.value, one.agent_status),
            "" if one.owner is None else one.owner.node,
            str(one.epoch),
            str(one.last_seq),
            one.agent,
            one.user_id or "",
            moment(one.updated_at),
        )
    return table


def conversation_table(one: Conversation, start: StartProgress) -> Table:
    """All about one, and how its start does as long as that is news."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rows: dict[str, object] = {
        "conversation": one.id,
        "status": _status(one.status.value, one.agent_status),
        "owner": owner_text(one.owner),
        "start": _start_text(start),
        "epoch": one.epoch,
        "events": one.last_seq,
        "unsettled": one.raw.get("unsettled", 0),
        "agent": one.agent,
        "user": one.user_id,
        "failure": None if start.error else _failure(one.raw.get("failure")),
        "title": one.title,
        "policy": one.raw.get("policy"),
        "settings": _compact(one.raw.get("settings")),
        "metadata": _compact(one.metadata),
        "created": moment(one.created_at),
        "updated": moment(one.updated_at),
    }
    for name, value in rows.items():
        if value not in (None, "", Text()):
            table.add_row(name, value if isinstance(value, Text) else Text(str(value)))
    return table


def _start_text(start: StartProgress) -> Text:
    text = Text()
    if start.step is not None and start.since is not None:
        text.append(f"{start.step}, since {moment(start.since)}", style="cyan")
    if start.error is not None:
        text.append("; " if text else "")
        text.append(f"failed at {start.error['step']}: {start.error['reason']}", style="red")
        if start.retry_in_s is not None:
            text.append(f"; again in {start.retry_in_s:.0f} s")
    return text


def _failure(failure: Any) -> Text | None:
    """Why it does not go on, and whether it does by itself."""
    if not failure:
        return None
    again = "; then send a message, or tenure start" if failure["permanent"] else ""
    return Text(f"{failure['step']}: {failure['reason']}{again}", style="red")


def nodes_table(nodes: Sequence[NodeInfo]) -> Table | Text:
    """The living."""
    if not nodes:
        return Text("no nodes", style="dim")
    table = _table("node", "holds", "lease for", "state", "address", "incarnation", "since")
    for one in nodes:
        expired = one.expires_in_s <= 0
        table.add_row(
            one.node,
            f"{one.owned} / {one.capacity}",
            "expired" if expired else f"{one.expires_in_s:.1f} s",
            Text("silent", "red") if expired else Text("draining", "yellow") if one.draining else Text("up", "green"),
            one.address,
            one.incarnation,
            moment(one.started_at),
        )
    return table


def timeline_table(owners: Sequence[TenureSpan]) -> Table | Text:
    """Who held it, from when to when, and why it moved."""
    if not owners:
        return Text("nobody has owned it yet", style="dim")
    table = _table("epoch", "node", "claimed for", "from", "until", "ended", "refused", "incarnation")
    for one in owners:
        style = "red" if one.ended in _LOST else "yellow" if one.ended is Ended.FAILED else ""
        refused = Counter(write.operation for write in one.refused)
        table.add_row(
            str(one.epoch),
            one.node,
            one.why,
            one.since.isoformat()[5:23].replace("T", " "),
            "" if one.until is None else one.until.isoformat()[11:23],
            Text("holds it" if one.ended is None else one.ended.value.replace("_", " "), style),
            ", ".join(f"{count} {operation}" for operation, count in refused.items()),
            one.incarnation,
        )
    return table


def loop_text(info: LoopInfo) -> Text:
    """Where the loop of a conversation is."""
    text = Text(f"{info.conversation_id} is ").append(_status(info.status.value, None))
    if info.owner is not None:
        text.append(f" at {owner_text(info.owner)}")
    text.append(f", epoch {info.epoch}")
    if info.failure:
        text.append(f"; {info.failure}", style="red")
    return text


def sent_text(sent: Sent) -> Text:
    """What became of a command."""
    text = Text(f"accepted at {sent.seq}")
    if sent.duplicate:
        text.append(" (it was there already)", style="dim")
    if sent.settled:
        text.append(f", {sent.outcome or 'settled'}")
    return text.append(f"  key {sent.key}", style="dim")


def event_text(event: Event) -> Text:
    """One event as a line."""
    style = KINDS.get(event.kind, "green" if event.kind in TURN_ENDS else "")
    epoch = "" if event.epoch is None else event.epoch
    text = Text(no_wrap="text" not in event.body, overflow="ellipsis")  # only what was said is worth several lines
    text.append(f"{event.seq:>6} {epoch:>3}  {event.at.isoformat()[11:23]}  ", style="dim")
    return text.append(f"{event.kind:<18} ", style=style).append(said(event.body))


def delta_text(delta: Delta) -> Text:
    """Something said in passing."""
    return Text(f"{'':>26}{said(delta.body)}", style="dim italic")


def said(body: Mapping[str, Json]) -> str:
    """The text of an event's body if it has one, else all of it, on one line."""
    text = body.get("text")
    rest = {name: value for name, value in body.items() if name != "text" and value not in (None, [], {}, "")}
    parts = [text] if isinstance(text, str) else []
    if rest and not (parts and set(rest) <= {"content"}):
        parts.append(_compact(rest))
    return " ".join(" ".join(parts).split())


def owner_text(owner: Owner | None) -> str:
    """Who holds it, and for how long that is known."""
    if owner is None:
        return "nobody"
    left = "" if owner.expires_in_s is None else f", lease for {owner.expires_in_s:.1f} s"
    return f"{owner.node} ({owner.address}) since {moment(owner.since)}{left}"


def moment(at: Instant) -> str:
    """Day and time in UTC: ``01-31 09:30:00``."""
    return at.isoformat()[5:19].replace("T", " ")


def _status(word: str, agent_status: str | None) -> Text:
    text = Text(word, style=STATUS.get(word, ""))
    return text.append(f" ({agent_status})", style="dim") if agent_status else text


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""


def _table(*headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for heading in headings:
        right = heading in ("epoch", "events")
        keep = heading not in ("conversation", "address", "user")
        table.add_column(heading, overflow="fold", no_wrap=keep, justify="right" if right else "left")
    return table
