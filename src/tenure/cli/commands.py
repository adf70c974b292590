"""What people ask of a cluster: one coroutine for each command."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import sys
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from tenure.cli.asking import Cluster, json_of, print_json
from tenure.cli.exits import Exit
from tenure.cli.tables import (
    conversation_table,
    conversations_table,
    delta_text,
    event_text,
    loop_text,
    nodes_table,
    sent_text,
    timeline_table,
)
from tenure.client import Client, LoopInfo, NodeInfo, Sent
from tenure.clock import Instant
from tenure.conversation import Status
from tenure.errors import InvalidInputError, UnknownConversationError
from tenure.journal import Event, Json

LONG_S = 300.0
"""How long a stream, once it has begun, waits for a node to come back."""
GONE_POLL_S = 0.2
ENDED_BADLY = ("failed", "interrupted", "refused")


def _an_id(text: str) -> str:
    """What could not be asked for: it would be another path. The server judges the rest."""
    if not text or "/" in text:
        raise InvalidInputError("id", f"{text[:80]!r} is no id", "use letters, digits, '.', '_' and '-'")
    return text


Conversation = Annotated[
    str, typer.Argument(help="Its id: letters, digits, '.', '_' and '-'.", callback=_an_id, show_default=False)
]
NodeName = Annotated[str, typer.Argument(help="Its name, as `tenure nodes` shows it.", show_default=False)]
Key = Annotated[
    str | None, typer.Option(help="Repeat a command with the same key: it takes effect once.", show_default=False)
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until it is settled.")]
WaitS = Annotated[float, typer.Option(min=0, max=86400, help="With --wait: for at most so long.")]
Agent = Annotated[str | None, typer.Option(help="For a new conversation: this agent.", show_default=False)]
Settings = Annotated[
    str | None, typer.Option(help="For a new conversation: these settings, as JSON.", show_default=False)
]
Content = Annotated[str | None, typer.Option(help="Structured content, as JSON.", show_default=False)]
Events = Annotated[int, typer.Option(min=0, max=1000, help="Show so many of the last events.")]


# --- conversations --------------------------------------------------------------------------------------------------


async def send(
    to: Cluster,
    conversation: Conversation,
    text: Annotated[str | None, typer.Argument(help="The message; - reads standard input.", show_default=False)] = None,
    content: Content = None,
    agent: Agent = None,
    key: Key = None,
    wait: Wait = False,
    wait_s: WaitS = 600,
) -> Exit:
    """Send a message. A conversation that does not exist is created; it never needs `start`.

    With --wait: its turn's events; exit code 1 if the turn failed, 5 if it did not end in time.
    """
    if text is None and content is None:
        raise InvalidInputError("text", "there is nothing to send", "give a text, or --content")
    text = (await asyncio.to_thread(sys.stdin.read)).rstrip("\n") if text == "-" else text
    body, key = json_of("content", content), key or secrets.token_hex(16)
    wait_for = wait_s if wait else None
    try:
        if agent is not None:
            raise UnknownConversationError(conversation)
        sent = await to.client.send(conversation, text, content=body, key=key, wait_s=wait_for)
    except UnknownConversationError:
        message: dict[str, Json] = {"text": text, "content": body}
        first = {name: value for name, value in message.items() if value is not None}
        await to.client.create(conversation, agent=agent, message=first, key=key)
        again = await to.client.send(conversation, text, content=body, key=key, wait_s=wait_for)
        sent = dataclasses.replace(again, duplicate=False)
    return _settled(to, sent, waited=wait)


async def start(
    to: Cluster,
    conversation: Conversation,
    here: Annotated[bool, typer.Option("--here", help="At the node that is asked, or not at all.")] = False,
    agent: Agent = None,
    settings: Settings = None,
    key: Key = None,
) -> Exit:
    """Ask for a live agent loop; also clears a stop.

    A conversation that does not exist is created.
    Exit code 4 if, with --here, another node owns it; 5 if no loop had started after 15 s (it still will).
    """
    given: Any = json_of("settings", settings)
    try:
        if agent is not None or given is not None:
            raise UnknownConversationError(conversation)
        info = await to.client.start(conversation, here=here, key=key)
    except UnknownConversationError:
        await to.client.create(conversation, agent=agent, settings=given)
        info = await to.client.start(conversation, here=here, key=key)
    to.tell(_loop_shape(info), lambda: loop_text(info))
    return Exit.OK if info.ready else Exit.UNAVAILABLE


async def stop(
    to: Cluster,
    conversation: Conversation,
    queue: Annotated[bool, typer.Option("--queue", help="Also refuse the messages that wait.")] = False,
    key: Key = None,
    wait: Wait = False,
    wait_s: WaitS = 60,
) -> Exit:
    """Stop a conversation until a start. Needs no living owner."""
    sent = await to.client.stop(conversation, queue=queue, key=key, wait_s=wait_s if wait else None)
    return _settled(to, sent, waited=wait)


async def interrupt(
    to: Cluster, conversation: Conversation, key: Key = None, wait: Wait = False, wait_s: WaitS = 60
) -> Exit:
    """End the open turn; messages that wait are taken next."""
    sent = await to.client.interrupt(conversation, key=key, wait_s=wait_s if wait else None)
    return _settled(to, sent, waited=wait)


async def answer(
    to: Cluster,
    conversation: Conversation,
    text: Annotated[str | None, typer.Argument(help="The answer, as text.", show_default=False)] = None,
    content: Content = None,
    ask: Annotated[
        str | None, typer.Option(help="To this question; default: the open one.", show_default=False)
    ] = None,
    key: Key = None,
    wait: Wait = False,
    wait_s: WaitS = 60,
) -> Exit:
    """Answer what a turn waits for."""
    if (text is None) == (content is None):
        raise InvalidInputError("text", "exactly one answer is needed", "give a text, or --content")
    given = text if content is None else json_of("content", content)
    sent = await to.client.answer(conversation, given, ask=ask, key=key, wait_s=wait_s if wait else None)
    return _settled(to, sent, waited=wait)


async def tail(
    to: Cluster,
    conversation: Conversation,
    events: Events = 10,
    after: Annotated[int | None, typer.Option(min=0, help="Begin behind this event.", show_default=False)] = None,
    until: Annotated[str | None, typer.Option(help="End behind an event of this kind.", show_default=False)] = None,
    follow: Annotated[bool, typer.Option(help="Go on as it grows.")] = True,
    deltas: Annotated[bool, typer.Option(help="Also what is only said in passing.")] = True,
) -> Exit | None:
    """Follow a conversation, from any node.

    When that node goes, it goes on at another one, without a gap. With --json: one event a line, and what is only said in passing as {"delta": …}.
    """
    last = (await to.client.get(conversation)).last_seq
    begin = max(0, last - events) if after is None else after
    if not follow:
        async for event in to.client.events(conversation, begin):
            _tell_event(to, event)
        return
    async with to.client.stream(conversation, begin) as stream:
        to.client.patience_s = max(to.client.patience_s, LONG_S)
        async for item in stream:
            if isinstance(item, Event):
                _tell_event(to, item)
                if item.kind == until:
                    return
            elif deltas and to.as_json:
                print_json({"delta": item.body})
            elif deltas:
                to.console.print(delta_text(item))


async def show(
    to: Cluster,
    conversation: Conversation,
    events: Events = 5,
    timeline: Annotated[bool, typer.Option("--timeline", help="Show who owned it, and why it moved.")] = False,
) -> None:
    """What a conversation does, who owns it, how its start does, and its last events."""
    if timeline:
        owners = await to.client.timeline(conversation)
        to.tell([owner.as_json() for owner in owners], lambda: timeline_table(owners))
        return
    one = await to.client.get(conversation)
    last = [event async for event in to.client.events(conversation, max(0, one.last_seq - events))] if events else []
    start = await to.client.start_progress(conversation)
    shape: dict[str, Json] = {**one.raw, "start": dict(start.raw), "events": [event.as_json() for event in last]}
    to.tell(shape, lambda: Group(conversation_table(one, start), *([Text()] if last else []), *map(event_text, last)))


async def ls(
    to: Cluster,
    status: Annotated[Status | None, typer.Option(help="Only these.", show_default=False)] = None,
    owner: Annotated[str | None, typer.Option(help="Only those of this node.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many.")] = 100,
) -> None:
    """List conversations, in order of creation."""
    found = [one async for one in to.client.conversations(status=status, owner=owner, limit=limit + 1)]
    shown = found[:limit]
    more = [Text(f"there are more: --limit {limit * 10}", style="dim")] if len(found) > limit else []
    to.tell([dict(one.raw) for one in shown], lambda: Group(conversations_table(shown), *more))


# --- nodes ----------------------------------------------------------------------------------------------------------


async def nodes(to: Cluster) -> None:
    """List the nodes of the cluster."""
    found = await to.client.nodes()
    to.tell([_node_shape(one) for one in found], lambda: nodes_table(found))


async def takeover(
    to: Cluster,
    conversation: Conversation,
    epoch: Annotated[
        int | None, typer.Option(min=0, help="Only from the owner of this epoch.", show_default=False)
    ] = None,
) -> None:
    """Make the node that is asked the owner, by force.

    The present owner, alive or not, is fenced off; an open turn goes on under the new one. With --epoch nothing is changed
    if the conversation has another owner by now than the one that was looked at.
    """
    info = await to.client.takeover(conversation, epoch=epoch)
    to.tell(_loop_shape(info), lambda: loop_text(info))


async def drain(
    to: Cluster,
    node: NodeName,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has left.")] = False,
    wait_s: WaitS = 120,
) -> Exit:
    """Ask a node to hand over what it holds, and to leave.

    It takes nothing new, finishes or hands over its turns, and its process exits with 0.
    """
    asked = await to.client.drain(node)
    left = not wait or await _gone(to.client, node, wait_s)
    words = f"{node} was asked to leave" if not wait else f"{node} has left" if left else f"{node} is still there"
    to.tell({"node": node, "asked": asked, "left": left if wait else None}, lambda: words)
    return Exit.OK if left else Exit.UNAVAILABLE


async def _gone(client: Client, node: str, wait_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            while any(one.node == node for one in await client.nodes()):  # noqa: ASYNC110 - another process tells nobody
                await asyncio.sleep(GONE_POLL_S)
            return True
    return False


# --- answers --------------------------------------------------------------------------------------------------------


def _settled(to: Cluster, sent: Sent, *, waited: bool) -> Exit:
    """Say what became of a command; the exit code says it, too."""
    shape: dict[str, Json] = {"seq": sent.seq, "key": sent.key, "duplicate": sent.duplicate, "settled": sent.settled}
    if waited:
        shape |= {"outcome": sent.outcome, "events": [event.as_json() for event in sent.events]}
    to.tell(shape, lambda: Group(*map(event_text, sent.events), sent_text(sent)))
    if waited and not sent.settled:
        typer.echo(f"tenure: it is not settled yet; wait on with --key {sent.key}", err=True)
        return Exit.UNAVAILABLE
    return Exit.FAILED if sent.outcome in ENDED_BADLY else Exit.OK


def _tell_event(to: Cluster, event: Event) -> None:
    to.tell(event.as_json(), lambda: event_text(event))


def _loop_shape(info: LoopInfo) -> dict[str, Json]:
    return {
        "conversation_id": info.conversation_id,
        "status": info.status.value,
        "epoch": info.epoch,
        "owner": None if info.owner is None else info.owner.as_json(),
        "here": info.here,
        "ready": info.ready,
    }


def _node_shape(one: NodeInfo) -> dict[str, Json]:
    shape = dataclasses.asdict(one)
    return {name: value.isoformat() if isinstance(value, Instant) else value for name, value in shape.items()}
