"""How commands end: one line about what went wrong, and an exit code that a program can decide by."""

from __future__ import annotations

import enum

from tenure.client import ProblemError, UnreachableError
from tenure.errors import (
    CommandRefusedError,
    ConversationDeletedError,
    ConversationExistsError,
    ConversationOwnedElsewhereError,
    InvalidInputError,
    NodeUnavailableError,
    OwnershipLostError,
    ProvisioningError,
    StoreUnavailableError,
    TenureError,
    UnknownConversationError,
)


class Exit(enum.IntEnum):
    """Exit codes, the same for every command."""

    OK = 0
    FAILED = 1
    """Refused, or it went wrong."""
    USAGE = 2
    """The command line, a setting or an input is no good; the message names it."""
    NOT_FOUND = 3
    """No such conversation or node, or it is another user's."""
    CONFLICT = 4
    """Another node owns it, or its state does not allow this."""
    UNAVAILABLE = 5
    """No node, or not the store behind it, answers in time: try again, with the same key."""
    STUCK = 75
    """``serve`` only: a loop did not end after the loss of its lease (EX_TEMPFAIL: start the node again)."""
    INTERRUPTED = 130
    """Ctrl-C."""


EXPLAINED = """Exit codes: 0 ok · 1 refused or failed · 2 bad usage or input · 3 not found · 4 conflict (owned elsewhere,
stopped, taken) · 5 unavailable (no node answers: try again with the same --key)"""


_BY_STATUS = {
    400: Exit.USAGE, 413: Exit.USAGE, 415: Exit.USAGE, 422: Exit.USAGE, 404: Exit.NOT_FOUND,
    409: Exit.CONFLICT, 410: Exit.CONFLICT, 412: Exit.CONFLICT, 429: Exit.UNAVAILABLE,
}  # fmt: skip


def exit_code(error: BaseException) -> Exit:
    """The exit code of what a command raised."""
    match error:
        case InvalidInputError():
            return Exit.USAGE
        case UnknownConversationError():
            return Exit.NOT_FOUND
        case CommandRefusedError(reason="too-many-unsettled"):
            return Exit.UNAVAILABLE
        case (
            ConversationOwnedElsewhereError()
            | ConversationDeletedError()
            | ConversationExistsError()
            | CommandRefusedError()
        ):
            return Exit.CONFLICT
        case ProblemError(status=status):
            return _BY_STATUS.get(status, Exit.UNAVAILABLE if status >= 500 else Exit.FAILED)
        case (
            UnreachableError()
            | NodeUnavailableError()
            | StoreUnavailableError()
            | OwnershipLostError()
            | ProvisioningError()
        ):
            return Exit.UNAVAILABLE
        case _:
            return Exit.FAILED


def line(error: BaseException) -> str:
    """One line of text about an error."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if isinstance(error, TenureError) else f"{type(error).__name__}: {said}"
