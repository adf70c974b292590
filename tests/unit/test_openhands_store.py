"""What the SDK's files become in the journal, without the SDK."""

import concurrent.futures
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tenure.clock import Instant
from tenure.errors import LoopError, OwnershipLostError
from tenure.journal import Draft, Event, Seq
from tenure.lease import Epoch
from tenure.loops.openhands.store import APPROVED, AWAITED, EVENT, KEPT_PER_LLM, JournalStore, mended, slimmed


@dataclass
class FakeTurn:
    """Keeps what is journaled; raises `fails` instead, once it is set."""

    batches: list[tuple[list[Draft], Any]] = field(default_factory=list)
    fails: BaseException | None = None

    def journal_blocking(self, drafts: Any, timeout_s: float, state: Any = None) -> None:
        if self.fails is not None:
            raise self.fails
        self.batches.append((list(drafts), state))

    @property
    def drafts(self) -> list[Draft]:
        return [one for drafts, _ in self.batches for one in drafts]


class Desk:
    """A store of a conversation, and the turn under which it writes."""

    def __init__(self, history: list[Event] | None = None, state: Any = None) -> None:
        self.stopped = 0
        self.turn = FakeTurn()
        self.store = JournalStore(history or [], state, self._stop)
        self.store.begin(self.turn)  # type: ignore[arg-type]

    def _stop(self) -> None:
        self.stopped += 1

    def append(self, event: dict[str, Any]) -> None:
        """As the SDK's event log does it."""
        length = len(self.store.list("events"))
        with self.store.lock("events/.eventlog.lock"):
            assert self.store.exists(f"events/.eventlog-len-{length}.marker") or length == 0
            self.store.write(f"events/event-{length:05d}-{event['id']}.json", json.dumps(event))
            self.store.delete(f"events/.eventlog-len-{length}.marker")
            self.store.write(f"events/.eventlog-len-{length + 1}.marker", "")


def event(name: str, parent: str | None = None, kind: str = "MessageEvent", **more: Any) -> dict[str, Any]:
    told = {"id": name, "kind": kind, "source": "user", "timestamp": "2026-11-24T04:05:06.000007"}
    return {**told, **({"parent_id": parent} if parent else {}), **more}


def action(name: str, call: str, **more: Any) -> dict[str, Any]:
    return event(name, kind="ActionEvent", tool_call_id=call, tool_name="act", action={}, **more)


def journaled(*events: dict[str, Any]) -> list[Event]:
    return [Event(Seq(n), Epoch(1), EVENT, Instant(0.0), e, turn="t1") for n, e in enumerate(events, 1)]


BASE = {"execution_status": "running", "leaf_event_id": "a"}


@pytest.fixture
def a_server_in_kathmandu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Kathmandu")  # UTC+5:45
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("a_server_in_kathmandu")
def test_times_are_utc_and_never_go_back_whatever_the_servers_zone_and_clock():
    desk = Desk(journaled(event("a", timestamp="2026-11-24T04:00:00")))
    desk.append(event("b", timestamp="2026-11-24T10:30:00.250000"))
    desk.append(event("c", timestamp="2026-11-24T09:00:00"))
    times = ["2026-11-24T04:45:00.250000", "2026-11-24T04:45:00.250000"]
    assert [d.body["timestamp"] for d in desk.turn.drafts] == times
    assert [json.loads(desk.store.read(name))["timestamp"] for name in desk.store.list("events")[1:]] == times


def test_an_event_is_one_journal_event_under_its_own_id():
    desk = Desk()
    desk.append(event("a"))
    desk.append(event("b", "a"))
    assert [(d.kind, d.body["id"]) for d in desk.turn.drafts] == [(EVENT, "a"), (EVENT, "b")]
    assert desk.store.list("events") == ["events/event-00000-a.json", "events/event-00001-b.json"]
    assert json.loads(desk.store.read("events/event-00001-b.json"))["parent_id"] == "a"
    assert not desk.store.exists("base_state.json")
    with pytest.raises(FileNotFoundError):
        desk.store.read("base_state.json")


def test_the_base_state_is_the_snapshot():
    desk = Desk()
    desk.append(event("a"))
    desk.store.write("base_state.json", json.dumps(BASE))
    desk.store.write("base_state.json", json.dumps(BASE))
    assert desk.turn.batches[1:] == [([], {"length": 1, "base": BASE})], "what is the same is written once"
    again = Desk(journaled(event("a")), desk.turn.batches[-1][1])
    assert json.loads(again.store.read("base_state.json"))["leaf_event_id"] == "a"


def test_calls_open_with_their_action_and_close_with_its_outcome():
    desk = Desk()
    desk.append(action("a1", "call_1"))
    desk.append(action("a2", "call_1"))  # a model may use a name again
    desk.append(event("bad", kind="ActionEvent", tool_call_id="call_2"))  # arguments that are none: it cannot run
    desk.append(event("o1", kind="ObservationEvent", action_id="a1"))
    desk.append(event("e1", kind="AgentErrorEvent", tool_call_id="call_1"))
    desk.append(event("e2", kind="AgentErrorEvent", tool_call_id="call_1"))
    assert [(d.opens, d.closes) for d in desk.turn.drafts] == [
        (("a1",), ()), (("a2",), ()), ((), ()), ((), ("a1",)), ((), ("a2",)), ((), ()),
    ]  # fmt: skip


def test_what_waits_for_a_person_is_no_open_call():
    desk = Desk()
    desk.append(action("a1", "call_1"))
    waiting = {"execution_status": "waiting_for_confirmation", "leaf_event_id": "a1"}
    desk.store.write("base_state.json", json.dumps(waiting))
    [awaited], state = desk.turn.batches[-1]
    assert (awaited.kind, awaited.closes, state["base"]) == (AWAITED, ("a1",), waiting)
    desk.store.approve({"a1": "call_1"})
    [approved], state = desk.turn.batches[-1]
    assert (approved.kind, approved.opens) == (APPROVED, ("a1",))
    assert state["base"]["execution_status"] == "running", (
        "in one step: whoever comes after knows that it may have begun"
    )
    desk.append(event("o1", kind="ObservationEvent", action_id="a1"))
    assert desk.turn.drafts[-1].closes == ("a1",)


@pytest.mark.parametrize(
    ("fails", "raised"),
    [
        (OwnershipLostError("c", 1, "fenced"), OwnershipLostError),
        (concurrent.futures.CancelledError(), LoopError),
        (TimeoutError(), LoopError),
    ],
)
def test_a_refused_write_is_the_last_one(fails: BaseException, raised: type[Exception]):
    desk = Desk()
    desk.append(event("a"))
    desk.turn.fails = fails
    with pytest.raises(raised):
        desk.append(action("b", "call"))
    assert desk.stopped == 1, "tools that have not begun do not begin"
    assert desk.store.list("events") == ["events/event-00000-a.json"], "nobody sees what is not journaled"
    desk.turn.fails = None
    for write in (lambda: desk.append(event("c")), lambda: desk.store.write("base_state.json", json.dumps(BASE))):
        with pytest.raises(raised):
            write()
    assert len(desk.turn.batches) == 1


def test_what_is_no_file_of_a_conversation_is_refused():
    desk = Desk()
    for path in ("subagents/x.json", "events/../x", "meta.json"):
        with pytest.raises(LoopError, match="no place"):
            desk.store.write(path, "{}")
    with pytest.raises(LoopError, match="journal"):
        desk.store.delete("base_state.json")
    assert desk.turn.batches == []


def test_an_append_costs_the_same_at_any_age():
    costs = [{"cost": 0.1} for _ in range(3000)]
    base = {**BASE, "stats": {"usage_to_metrics": {"agent": {"accumulated_cost": 300.0, "costs": costs}}}}
    young = Desk(journaled(event("0")), {"length": 1, "base": BASE})
    old = Desk(journaled(*(event(str(n), str(n - 1)) for n in range(10_000))), {"length": 10_000, "base": BASE})
    for desk in (young, old):
        desk.append(event("new"))
        desk.store.write("base_state.json", json.dumps(base))
    young_bytes, old_bytes = (len(json.dumps([d.as_json() for d in desk.turn.drafts])) for desk in (young, old))
    assert len(young.turn.batches) == len(old.turn.batches) == 2 and young_bytes == old_bytes
    metrics = old.store.base["stats"]["usage_to_metrics"]["agent"]  # type: ignore[index]
    assert metrics["accumulated_cost"] == 300.0 and len(metrics["costs"]) == KEPT_PER_LLM
    assert slimmed(dict(BASE)) == BASE


# --- what a new owner finds -----------------------------------------------------------------------------------------

LINE = [event("a"), event("b", "a"), action("c", "call", parent_id="b")]
SAID: dict[str, Any] = {"llm_message": {"content": [{"type": "text", "text": "done"}]}}


def test_head_moves_on_along_what_came_after_the_last_save():
    told = event("told", "c", kind="ConversationStateUpdateEvent")
    after = mended(BASE, [*LINE, told], 1)
    assert (after["leaf_event_id"], after["execution_status"]) == ("c", "idle")


def test_head_that_was_moved_back_stays_there():
    after = mended({**BASE, "execution_status": "idle"}, LINE, 3)
    assert after["leaf_event_id"] == "a"
    other = mended({**BASE, "execution_status": "idle"}, [*LINE, event("d", "a")], 3)
    assert other["leaf_event_id"] == "d"


def test_the_first_events_ever():
    after = mended({"execution_status": "idle"}, LINE, 0)
    assert after["leaf_event_id"] == "c"
    emptied = mended({"execution_status": "idle", "head_is_empty": True}, [*LINE, event("d", "__root__")], 3)
    assert emptied == {"execution_status": "idle", "leaf_event_id": "d"}


@pytest.mark.parametrize(
    ("last", "status"),
    [
        (event("z", "c", source="agent", **SAID), "finished"),
        (event("z", "c", source="agent", llm_message={"content": [{"type": "text", "text": " "}]}), "idle"),
        (event("z", "c", kind="ObservationEvent", tool_name="finish"), "finished"),
        (event("z", "c", kind="ObservationEvent", tool_name="act"), "idle"),
        (event("z", "c", **SAID), "idle"),
    ],
)
def test_a_run_whose_last_word_stands_is_finished(last: dict[str, Any], status: str):
    assert mended(BASE, [*LINE, last], 1)["execution_status"] == status
    assert mended({**BASE, "leaf_event_id": "z"}, [*LINE, last], 4)["execution_status"] == status


def test_an_approval_stays_awaited():
    waiting = {**BASE, "execution_status": "waiting_for_confirmation"}
    assert mended(waiting, LINE, 1)["execution_status"] == "waiting_for_confirmation"
