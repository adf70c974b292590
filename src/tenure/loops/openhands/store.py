"""The file store that an SDK conversation is given: every event and the base state, through the fenced append.

The SDK persists an event before it tells anybody and before a tool starts. Here that write returns when the journal has
it, or raises: from then on every other one does, too. What the SDK keeps beside events (markers of the log's length,
lock files) follows from the events, and is kept nowhere. The base state is the loop's part of the snapshot.
"""

from __future__ import annotations

import concurrent.futures
import json
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast, final

from tenure.errors import LoopError, OwnershipLostError
from tenure.journal import Draft

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from tenure.abc import Turn
    from tenure.journal import Event, JsonObject

EVENT: Final = "openhands.event"
"""One event of the SDK; the body is its JSON, under its own id."""
APPROVED: Final = "openhands.approved"
"""Actions that waited for a person may run; opens their calls."""
AWAITED: Final = "openhands.awaited"
"""Actions wait for a person and have not begun; closes their calls."""
WORKSPACE: Final = "openhands.workspace"
"""Which workspace the conversation has, and whether the one before was lost."""

BASE_STATE = "base_state.json"
EVENTS = "events"
JOURNAL_S = 120.0
"""How long an append may take; without a store the node loses its lease long before."""
KEPT_PER_LLM = 20
"""So many costs, latencies and usages of single calls stay in the base state; the sums are kept for ever."""
_LISTS = ("costs", "response_latencies", "token_usages")
_OBSERVED = {"ObservationEvent", "UserRejectObservation"}


@final
class JournalStore:
    """A conversation's files as the SDK sees them (its ``FileStore``). From any thread but the node's event loop.

    :param history: the journal so far. :param state: the loop's part of the snapshot.
    :param refused: is told, once, that a write was refused: nothing may start any more.
    """

    def __init__(self, history: Sequence[Event], state: JsonObject | None, refused: Callable[[], None]) -> None:
        self._refused = refused
        self._shut: Exception | None = None
        self._lock = threading.RLock()
        self._turn: Turn | None = None
        self._open: dict[str, str] = {}
        """Tool calls by the id of their action, open in this turn."""
        self._files: dict[str, str] = {}
        """Every event as text, by the name of its file, in order."""
        self._stamp = ""
        """The time of the last event."""
        events = [cast("dict[str, Any]", e.body) for e in history if e.kind == EVENT]
        for event in events:
            self._keep(event, json.dumps(event))
        saved = cast("dict[str, Any]", state or {})
        self.base: dict[str, Any] | None = mended(saved["base"], events, saved["length"]) if saved else None

    # --- whose it is ------------------------------------------------------------------------------------------------

    def begin(self, turn: Turn) -> None:
        """Write under this turn from now on. Its calls of former attempts have their outcome."""
        self._turn, self._open = turn, {}

    @property
    def turn(self) -> Turn | None:
        """The turn that is written under now, or was last."""
        return self._turn

    @property
    def refusal(self) -> Exception | None:
        """Why nothing is written any more."""
        return self._shut

    def shut(self, why: Exception) -> None:
        """Refuse every write from now on, without asking the journal."""
        self._shut = self._shut or why

    def write_blocking(self, drafts: Sequence[Draft], state: JsonObject | None = None) -> None:
        """Journal in this turn; returns when durable.

        :raises OwnershipLostError: refused, now or before. :raises LoopError: the turn is cut, or there is none.
        """
        if self._shut is not None:
            raise self._shut
        if self._turn is None:
            raise LoopError("an OpenHands conversation writes in a turn only")
        try:
            self._turn.journal_blocking(drafts, JOURNAL_S, state)
        except (OwnershipLostError, concurrent.futures.CancelledError, TimeoutError) as error:
            cut = LoopError("the turn is cut: another owner goes on with it")
            why = error if isinstance(error, OwnershipLostError) else cut
            self.shut(why)
            self._refused()
            raise why from error

    # --- approvals --------------------------------------------------------------------------------------------------

    def approve(self, actions: Mapping[str, str]) -> None:
        """Actions (tool calls by action id) that waited may run: in one step with a base state that says so."""
        with self._lock:
            if self.base is not None:
                self.base = {**self.base, "execution_status": "running"}
            opens = tuple(actions)
            self.write_blocking([Draft(APPROVED, {"actions": list(opens)}, opens=opens)], self._state())
            self._open.update(actions)

    # --- the SDK's FileStore ----------------------------------------------------------------------------------------

    def write(self, path: str, contents: str | bytes) -> None:
        """Journal an event or the base state.

        :raises OwnershipLostError: refused. :raises LoopError: it is no file of a conversation.
        """
        text = contents.decode() if isinstance(contents, bytes) else contents
        with self._lock:
            if path == BASE_STATE:
                self._save(json.loads(text))
            elif _is_event(path):
                event: dict[str, Any] = json.loads(text)
                event["timestamp"] = max(in_utc(event["timestamp"]), self._stamp)
                opens, closes = self._calls(event)
                self.write_blocking([Draft(EVENT, event, opens=opens, closes=closes)])
                self._keep(event, json.dumps(event))
                for action in closes:
                    del self._open[action]
                if opens:
                    self._open[event["id"]] = event["tool_call_id"]
            elif not _follows(path):
                raise LoopError(f"{path} has no place in the journal")

    def read(self, path: str) -> str:
        """:raises FileNotFoundError: no such file."""
        if path == BASE_STATE and self.base is not None:
            return json.dumps(self.base)
        if path in self._files:
            return self._files[path]
        raise FileNotFoundError(path)

    def list(self, path: str) -> list[str]:
        return list(self._files) if path.rstrip("/") == EVENTS else []

    def delete(self, path: str) -> None:
        """:raises LoopError: a journal forgets nothing."""
        if not _follows(path):
            raise LoopError(f"{path} cannot be deleted: it stands in the journal")

    def exists(self, path: str) -> bool:
        if path == f"{EVENTS}/.eventlog-len-{len(self._files)}.marker":
            return True
        return path in self._files or (path == BASE_STATE and self.base is not None)

    def get_absolute_path(self, path: str) -> str:
        """:raises LoopError: there is none."""
        raise LoopError(f"{path} lies in the journal, not in a folder")

    @contextmanager
    def lock(self, path: str, timeout: float = 30.0) -> Generator[None]:
        """:raises TimeoutError: another thread writes for that long."""
        if not self._lock.acquire(timeout=timeout):
            raise TimeoutError(f"{path}: another thread has written for {timeout:g} s")
        try:
            yield
        finally:
            self._lock.release()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _keep(self, event: Mapping[str, Any], text: str) -> None:
        self._stamp = str(event["timestamp"])
        self._files[f"{EVENTS}/event-{len(self._files):05d}-{event['id']}.json"] = text

    def _calls(self, event: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The calls that an event opens and closes: an action that can run, and its outcome."""
        match event["kind"]:
            case "ActionEvent" if event.get("action") is not None:
                return (event["id"],), ()
            case kind if kind in _OBSERVED and event["action_id"] in self._open:
                return (), (event["action_id"],)
            case "AgentErrorEvent":
                return (), tuple(a for a, call in self._open.items() if call == event["tool_call_id"])[-1:]
            case _:
                return (), ()

    def _save(self, base: dict[str, Any]) -> None:
        base = slimmed(base)
        if base == self.base:
            return
        before, self.base = self.base, base
        waiting = base["execution_status"] == "waiting_for_confirmation" and self._open
        calls = tuple(self._open) if waiting else ()
        drafts = [Draft(AWAITED, {"actions": list(calls)}, closes=calls)] if calls else []
        try:
            self.write_blocking(drafts, self._state())
        except BaseException:
            self.base = before
            raise
        if calls:
            self._open.clear()

    def _state(self) -> JsonObject:
        return {"length": len(self._files), "base": self.base}


def in_utc(timestamp: str) -> str:
    """The SDK writes this machine's local time and leaves the zone out; readers order events of several machines by it.
    In the journal it is UTC, in the same form, and (see `write`) it never goes back, whatever the next owner's clock says."""
    return datetime.fromisoformat(timestamp).astimezone(UTC).replace(tzinfo=None).isoformat()


def _is_event(path: str) -> bool:
    return path.startswith(f"{EVENTS}/event-") and path.endswith(".json")


def _follows(path: str) -> bool:
    """What follows from the events."""
    return path.startswith(f"{EVENTS}/.eventlog")


# --- the base state -------------------------------------------------------------------------------------------------


def slimmed(base: dict[str, Any]) -> dict[str, Any]:
    """The base state without the lists that grow with each call of a model: an append costs the same at any age."""
    usages: dict[str, Any] = base.get("stats", {}).get("usage_to_metrics", {})
    for metrics in usages.values():
        for name in _LISTS:
            if name in metrics:
                metrics[name] = metrics[name][-KEPT_PER_LLM:]
    return base


def mended(base: Mapping[str, Any], events: Sequence[Mapping[str, Any]], length: int) -> dict[str, Any]:
    """The base state after an owner that may have been cut off: it is saved once a step, `length` events ago.

    HEAD moves on along its descendants among the events since, and along nothing else: who had moved it back on purpose
    finds it there. A run that was under way is over: idle, so that it can go on; or finished, if its last word stands.
    """
    after = dict(base)
    head: Mapping[str, Any] | None = None
    for event in events[length:]:
        if event["kind"] != "ConversationStateUpdateEvent" and _parent(event) == after.get("leaf_event_id"):
            after["leaf_event_id"] = event["id"]
            after.pop("head_is_empty", None)
            head = event
    if after.get("execution_status") == "running":
        if head is None:
            head = next((e for e in reversed(events) if e["id"] == after.get("leaf_event_id")), None)
        after["execution_status"] = "finished" if head is not None and _is_last_word(head) else "idle"
    return after


def _parent(event: Mapping[str, Any]) -> str | None:
    parent = event.get("parent_id")
    return None if parent == "__root__" else parent


def _is_last_word(event: Mapping[str, Any]) -> bool:
    """Whether a run ends with it: the agent's message, or the result of ``finish``."""
    if event["kind"] == "MessageEvent" and event["source"] == "agent":
        return any(part.get("text", "").strip() for part in event["llm_message"]["content"])
    return event["kind"] == "ObservationEvent" and event["tool_name"] == "finish"
