"""Why a conversation does not go on: the last start that failed, or the credential that ran out, from its journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenure.errors import ProvisioningError
from tenure.journal import CredentialFailed, StartFailed, read_body
from tenure.server.watch import read

if TYPE_CHECKING:
    from tenure.abc import Store
    from tenure.conversation import Record
    from tenure.journal import Event, Json, JsonObject

NEAR_THE_END = 300
"""Nothing but commands follows a failure, and those are bounded: it stands among so many last events."""


async def failure_of(store: Store, record: Record) -> JsonObject | None:
    """Why the conversation does not go on, as ``failure`` in its JSON; null while nothing is wrong."""
    if not (record.failures or record.failed or record.agent_status) or (record.started and not record.agent_status):
        return None
    after = max(0, record.head - NEAR_THE_END)
    kinds = ["start_failed", "credential_failed", "credential_restored", "loop_started"]
    reading = await read(store, record.conversation, after, NEAR_THE_END, kinds)
    return _told(reading.events[-1]) if reading.events else None


def _told(event: Event) -> JsonObject | None:
    told: dict[str, Json] = {"at": event.at.isoformat(), "step": "credentials", "permanent": False, "credential": None}
    match read_body(event):
        case StartFailed(step, reason, permanent, credential):
            return {**told, "step": step, "reason": reason, "permanent": permanent, "credential": credential}
        case CredentialFailed(name, reference, problem, remedy):
            said = {"name": name, "reference": reference, "problem": problem, "remedy": remedy}
            return {**told, "reason": f"{name}: {reference}: {problem}; {remedy}", "credential": said}
        case _:
            return None


async def start_failure(store: Store, conversation: str, after: int) -> ProvisioningError | None:
    """The last start that failed behind `after`, with its provider's own reason."""
    reading = await read(store, conversation, after, 100, ["start_failed"])
    for event in reversed(reading.events):
        match read_body(event):
            case StartFailed(step, reason, permanent, credential):
                named = credential if isinstance(credential, dict) else None
                return ProvisioningError(conversation, step, reason, permanent=permanent, credential=named)
            case _:
                continue
    return None
