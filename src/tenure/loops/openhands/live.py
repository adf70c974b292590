"""An OpenHands conversation, alive on its owner: an SDK ``LocalConversation`` on the journal, in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from tenure.abc import Launches, RuntimeFailure
from tenure.errors import LoopError, OwnershipLostError
from tenure.journal import Draft
from tenure.loops.openhands.runner import Runner
from tenure.loops.openhands.settings import wish
from tenure.loops.openhands.store import EVENT, WORKSPACE, JournalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from tenure.abc import Place, Turn
    from tenure.journal import Event, Json
    from tenure.loops.openhands.runner import Work
    from tenure.loops.openhands.sdk import Sdk
    from tenure.loops.openhands.settings import NodeModel, Wanted

INTERRUPT_S: Final = 4.0
"""How long the SDK may take to write its own end of an interrupted run; the node waits a little longer."""
OWN_FOLDER: Final = ".openhands"
"""In the workspace: what the SDK writes beside the journal (full outputs, task lists), so that it goes where the files go."""
MARK: Final = f"{OWN_FOLDER}/workspace"
"""A file with the workspace's random name."""
INTERRUPTED: Final = (
    "This tool call was interrupted: the server that ran it was lost, or gave the conversation away. Its outcome is "
    "unknown; it was not run again. Look at the state of things before you repeat it."
)
WORKSPACE_LOST: Final = (
    "The conversation has moved to a server that cannot see its former workspace. You have a new, empty one: files that "
    "you made before are not here, and terminals have ended."
)
REJECTED: Final = "Superseded by a new message of the user"
HALTS: Final = "halts"
"""In the body of an ``interrupt``: runs that were asked for before it, and have not begun, end with it."""
_TOLD = ("execution_status", "confirmation_policy", "security_analyzer", "tags")
"""What of the state is told in events of its own, as the SDK's server does."""


class RunFailed(LoopError):
    """The run has ended in an error, or stuck, and the SDK has told so itself."""


@final
class LiveOpenHands:
    """The loop of one conversation."""

    def __init__(self, place: Place, sdk: Sdk, node: NodeModel) -> None:
        self._place = place
        self._sdk = sdk
        self._node = node
        self._host = asyncio.get_running_loop()
        self._runner: Runner | None = None
        self._store: JournalStore | None = None
        self._conversation: Any = None
        self._asked: Any = None
        """Settings and values of credentials that it follows."""
        self._made_of: Any = None
        """What the conversation was made of; something else makes it anew."""
        self._given: Mapping[str, str] = {}
        """Secrets that the conversation's registry has."""
        self._workspace: str | None = None
        """The name of the workspace that the journal knows."""
        self._unseen: dict[str, str] = {}
        """Tool calls, by action, that waited for a person when the conversation was loaded."""
        self._runs = False
        self._running: asyncio.Event = asyncio.Event()
        """The turn's run is in its steps, or over."""
        self._paused_by = 0
        """The place in the journal of the last command that ends runs which were asked for before it."""

    # --- the contract -----------------------------------------------------------------------------------------------

    async def turn(self, turn: Turn) -> None:
        """Do what the turn's command asks; the package says what each is.

        :raises LoopError: the run ended in an error of the SDK's, told in its words.
        """
        if self._store is None:
            self._store = await self._read_journal()
        else:
            self._look_for_halts(await self._place.history(turn.commands[0].seq))
        store = self._store
        store.begin(turn)
        self._running = asyncio.Event()
        try:
            await self._go_on(turn, store)
        except Exception as error:
            if store.refusal is not None:
                self._drop(store.refusal)
            elif not isinstance(error, RunFailed):
                self._place.report_status("error")  # the SDK's own state knows nothing of it
            raise
        finally:
            self._running.set()

    async def _go_on(self, turn: Turn, store: JournalStore) -> None:
        moved = await self._look_for_workspace(turn)
        self._runner = self._runner or Runner(f"openhands-{turn.conversation_id}")
        work = self._runner.begin(self._work(turn, store, moved))
        try:
            await asyncio.shield(work.ended)
        except asyncio.CancelledError:
            await self._cut(turn, work)
            raise

    async def now(self, command: Event) -> Json:
        """``pause``: the run ends after the step that it is at, and one that was asked for before, before its first."""
        if command.kind != "pause":
            raise NotImplementedError(f"an OpenHands conversation takes {command.kind} turn by turn")
        self._paused_by = max(self._paused_by, command.seq)
        if not self._runs:
            return {"paused": False}
        await self._running.wait()  # to the SDK a run that only begins is none to be paused
        conversation = self._conversation
        if conversation is None or not self._runs:
            return {"paused": False}
        runner = Runner("openhands-pause")  # it waits for the step, which holds the state
        try:
            await asyncio.shield(runner.begin(_doing(conversation.pause)).ended)
        finally:
            runner.leave(lambda: None)
        return {"paused": True}

    async def close(self) -> None:
        """Nothing of it runs any more; its terminals have ended."""
        runner = self._runner
        self._drop(LoopError("the conversation was passivated"))
        if runner is not None:
            await runner.left()

    async def _read_journal(self) -> JournalStore:
        history = await self._place.history()
        workspaces = [e for e in history if e.kind == WORKSPACE]
        self._workspace = str(workspaces[-1].body["name"]) if workspaces else None
        self._look_for_halts(history)
        return JournalStore(history, self._place.state, self._stop_tools)

    def _look_for_halts(self, events: Sequence[Event]) -> None:
        """Who asks for a pause means all that was asked for before, whoever owned it then, and whether it had begun."""
        self._paused_by = max([self._paused_by, *(e.seq for e in events if _halts(e))])

    # --- ends -------------------------------------------------------------------------------------------------------

    async def _cut(self, turn: Turn, work: Work) -> None:
        """The turn was cancelled. Another owner goes on with it: stop as we stand. Or somebody ended it: the SDK says so."""
        lost = OwnershipLostError(turn.conversation_id, turn.epoch, "the turn is cut")
        if turn.lost or turn.leaving:
            self._drop(lost)
            return
        self._stop_tools()
        work.cancel()
        await asyncio.wait([work.ended], timeout=INTERRUPT_S)
        if not work.ended.done() or (self._store is not None and self._store.refusal is not None):
            self._drop(lost)

    def _drop(self, why: Exception) -> None:
        """Nothing is written any more, no tool starts, and the next turn begins from the journal."""
        runner, conversation, store = self._runner, self._conversation, self._store
        if store is not None:
            store.shut(why)
        self._stop_tools()
        self._runner = self._conversation = self._store = None
        self._given = {}
        if runner is not None:
            runner.leave(conversation.close if conversation is not None else lambda: None)

    def _stop_tools(self) -> None:
        """From any thread: tools that have not begun do not begin."""
        token = getattr(self._conversation, "cancel_token", None)
        if token is not None:
            token.cancel()

    # --- a turn, in the conversation's thread -----------------------------------------------------------------------

    async def _work(self, turn: Turn, store: JournalStore, moved: str | None) -> None:
        conversation, [command] = self._loaded(turn, store), turn.commands
        self._report(conversation.state.execution_status)
        self._repair(conversation)
        if moved is not None:
            self._say_moved(conversation, store, moved)
        match command.kind:
            case "message":
                self._record(conversation, turn, command)
                runs = command.body.get("run") is not False
            case "confirm" if command.body.get("accept") is False:
                conversation.reject_pending_actions(str(command.body.get("reason") or "User rejected the action"))
                runs = False
            case _:
                runs = True
        if runs:
            await self._run(conversation, turn, store)

    def _loaded(self, turn: Turn, store: JournalStore) -> Any:
        """The SDK's conversation; made anew if its agent, or the value of a credential in it, is another one now."""
        values = dict(self._place.credentials())
        if self._conversation is not None and self._asked == (turn.settings, values):
            return self._conversation
        runtime = turn.runtime
        assert isinstance(runtime, Launches), "seen when the loop was opened"
        wanted = wish(turn.settings, self._sdk, self._node, values, runtime.launcher(("/bin/bash",)))
        if self._conversation is None or self._made_of != wanted.made_of:
            if self._conversation is not None:
                self._conversation.close()
            self._conversation, self._given = self._load(turn, wanted, store), {}
            self._made_of = wanted.made_of
        self._adapt(self._conversation, wanted)
        self._asked = (turn.settings, values)
        return self._conversation

    def _load(self, turn: Turn, wanted: Wanted, store: JournalStore) -> Any:
        """The SDK's conversation, new or as the journal has it."""
        folder = Path(str(turn.runtime.path))
        try:
            conversation = self._sdk.LocalConversation(
                agent=wanted.agent,
                workspace=str(folder),
                persistence_dir=str(folder / OWN_FOLDER),
                profile_store_dir=str(folder / OWN_FOLDER / "profiles"),
                conversation_id=sdk_id(turn.conversation_id),
                file_store=store,
                visualizer=None,
                callbacks=[self._see],
                delete_on_close=False,
                stuck_detection=wanted.stuck_detection,
                max_iteration_per_run=wanted.max_iterations,
                token_callbacks=[self._tell_token] if wanted.agent.llm.stream else None,
            )
        except ValueError as error:
            raise LoopError(f"the SDK does not take the conversation up: {error}") from error
        atexit.unregister(conversation.close)  # its end is this loop's; the register would keep it for ever
        if conversation.state.stuck_detection != wanted.stuck_detection:  # the saved one is only told
            with conversation.state:
                conversation.state.stuck_detection = wanted.stuck_detection
        conversation.state.set_on_state_change(self._tell_state(conversation, store))
        waiting = conversation.state.execution_status == self._sdk.Status.WAITING_FOR_CONFIRMATION
        self._unseen = {a.id: a.tool_call_id for a in self._pending(conversation)} if waiting else {}
        return conversation

    def _adapt(self, conversation: Any, wanted: Wanted) -> None:
        """What may change from turn to turn beneath the same agent: its terminals stay."""
        conversation.max_iteration_per_run = wanted.max_iterations
        if wanted.policy != conversation.state.confirmation_policy:
            conversation.set_confirmation_policy(wanted.policy)
        if wanted.analyzer != conversation.state.security_analyzer:
            conversation.set_security_analyzer(wanted.analyzer)
        if wanted.secrets and wanted.secrets != self._given:
            conversation.update_secrets(dict(wanted.secrets))
            self._given = wanted.secrets

    def _repair(self, conversation: Any) -> None:
        """An explicit error for each action without outcome, unless it waits for a person: the SDK would run it again."""
        state, status = conversation.state, self._sdk.Status
        with state:
            if state.execution_status == status.WAITING_FOR_CONFIRMATION:
                return
            cut = self._pending(conversation)
            for action in cut:
                error = self._sdk.AgentErrorEvent(
                    error=INTERRUPTED, tool_name=action.tool_name, tool_call_id=action.tool_call_id
                )
                state.append_event(error)
            if cut:
                state.rebuild_view()

    def _see(self, event: Any) -> None:
        """An action that waits is no part of what the SDK shows the model after a load; with its outcome it is, but the
        SDK does not look again. The last outcome makes it."""
        if not self._unseen:
            return
        of = getattr(event, "action_id", None), getattr(event, "tool_call_id", None)
        if type(event).__name__ != "ActionEvent":
            self._unseen = {a: call for a, call in self._unseen.items() if a != of[0] and call != of[1]}
        if not self._unseen:
            self._conversation.state.rebuild_view()

    def _pending(self, conversation: Any) -> list[Any]:
        return self._sdk.ConversationState.get_unmatched_actions(conversation.state.active_branch())

    def _record(self, conversation: Any, turn: Turn, command: Event) -> None:
        """The message, once, whichever attempt of the turn this is. It refuses what waited for approval."""
        if any(e.body.get("kind") == "MessageEvent" and e.body.get("source") == "user" for e in _told(turn)):
            return
        if conversation.state.execution_status == self._sdk.Status.WAITING_FOR_CONFIRMATION:
            conversation.reject_pending_actions(REJECTED)
        content: Any = command.content
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        message = self._sdk.Message.model_validate({"role": "user", "content": content})
        sender = command.body.get("sender")
        conversation.send_message(message, sender=sender if isinstance(sender, str) else None)

    async def _run(self, conversation: Any, turn: Turn, store: JournalStore) -> None:
        state, status = conversation.state, self._sdk.Status
        before = {e.body.get("kind"): e.body for e in _told(turn)}
        if failed := before.get("ConversationErrorEvent"):
            raise RunFailed(f"{failed.get('code')}: {failed.get('detail')}")
        if "PauseEvent" in before or "InterruptEvent" in before:
            return
        self._runs = True  # before it looks: a pause that comes later sees it
        try:
            if self._paused_by > turn.commands[0].seq:
                self._pause_unbegun(conversation)
                return
            if state.execution_status == status.WAITING_FOR_CONFIRMATION:
                pending = {action.id: action.tool_call_id for action in self._pending(conversation)}
                store.approve(pending)
            await conversation.arun()
        except self._sdk.ConversationRunError as error:
            raise RunFailed(f"{type(error.original_exception).__name__}: {error.original_exception}") from error
        finally:
            self._runs = False
        if store.refusal is not None:
            raise store.refusal
        if state.execution_status in (status.ERROR, status.STUCK):
            raise RunFailed(f"the run ended: {_why(state)}")

    def _pause_unbegun(self, conversation: Any) -> None:
        """A run that was paused before it began: what an earlier one has left behind is no outcome of this one."""
        state, status = conversation.state, self._sdk.Status
        with state:
            if state.execution_status in (status.ERROR, status.STUCK):
                state.execution_status = status.IDLE
        conversation.pause()

    # --- what is told -----------------------------------------------------------------------------------------------

    def _tell_state(self, conversation: Any, store: JournalStore) -> Any:
        def told(event: Any) -> None:
            if store.refusal is not None:
                return  # the SDK ends the run that was refused, in memory: of no interest to anybody
            if event.key == "execution_status":
                self._report(event.value)
                if self._runs and _word(event.value) == "running":
                    self._host.call_soon_threadsafe(self._running.set)
            if event.key in _TOLD:
                with _unless_refused(store):
                    conversation.state.append_event(event)

        return told

    def _report(self, status: Any) -> None:
        self._host.call_soon_threadsafe(self._place.report_status, _word(status))

    def _tell_token(self, chunk: Any) -> None:
        """Under the turn of now: the conversation outlives the one that it was loaded in."""
        text = chunk.choices[0].delta.content if chunk.choices else None
        store = self._store
        if text and store is not None and store.turn is not None:
            self._host.call_soon_threadsafe(_delta, store.turn, text)

    # --- the workspace ----------------------------------------------------------------------------------------------

    async def _look_for_workspace(self, turn: Turn) -> str | None:
        """The name of the workspace if it is another one than the journal knows; a nameless one gets a name."""
        try:
            name = (await turn.runtime.read(MARK)).decode()
        except FileNotFoundError:
            name = uuid.uuid4().hex
            await turn.runtime.write(MARK, name)
        if self._workspace is None:
            await turn.journal([_workspace(name, str(turn.runtime.path), None)])
            self._workspace = name
        return None if name == self._workspace else name

    def _say_moved(self, conversation: Any, store: JournalStore, name: str) -> None:
        """To the agent first: a cut between the two says it twice, and never not at all."""
        message = self._sdk.Message(role="user", content=[self._sdk.TextContent(text=WORKSPACE_LOST)])
        with conversation.state:
            conversation.state.append_event(self._sdk.MessageEvent(source="environment", llm_message=message))
        store.write_blocking([_workspace(name, str(conversation.workspace.working_dir), self._workspace)])
        self._workspace = name


def _workspace(name: str, path: str, lost: str | None) -> Draft:
    return Draft(WORKSPACE, {"name": name, "path": path, "lost": lost})


def insist_on_runtime(runtime: Any) -> None:
    """:raises RuntimeFailure: OpenHands' tools work on files and processes of this machine only."""
    if runtime.path is None or not isinstance(runtime, Launches):
        raise RuntimeFailure(
            "the agent openhands needs a runtime of this machine: start nodes with --runtime process",
            step="loop",
            permanent=True,
        )


def sdk_id(conversation_id: str) -> uuid.UUID:
    """The conversation's id in the SDK: the same if it is a UUID, else one that follows from it."""
    try:
        return uuid.UUID(conversation_id)
    except ValueError:
        return uuid.uuid5(uuid.NAMESPACE_URL, f"tenure:{conversation_id}")


async def _doing(work: Callable[[], None]) -> None:
    work()


@contextlib.contextmanager
def _unless_refused(store: JournalStore) -> Generator[None]:
    """The run hears of the refusal with its next write; here the SDK would only log it, as an error of ours."""
    try:
        yield
    except Exception:
        if store.refusal is None:
            raise


def _halts(event: Event) -> bool:
    """Whether runs that were asked for before it are not to begin any more."""
    return event.kind == "pause" or (event.kind == "interrupt" and event.body.get(HALTS) is True)


def _word(status: Any) -> str:
    return str(getattr(status, "value", status))


def _told(turn: Turn) -> list[Any]:
    """What the SDK has told in earlier attempts of this turn."""
    return [e for e in turn.past if e.kind == EVENT]


def _why(state: Any) -> str:
    """The SDK's own words for the end of a run. Whole: the node cuts what it has masked."""
    for event in reversed(state.active_branch(limit=20)):
        if type(event).__name__ == "ConversationErrorEvent":
            return f"{event.code}: {event.detail}"
    return str(state.execution_status.value)


def _delta(turn: Turn, text: str) -> None:
    if not turn.lost:
        turn.delta({"text": text})
