"""What a journal is told of an error: short, valid text, whatever was raised. An error that cannot be written down would
come back with every owner that tries to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenure.journal import JsonObject

CHARS = 2000


def speakable(text: str) -> str:
    """The text cut to a bound, with replacements for what is no Unicode."""
    return text[:CHARS].encode("utf-8", "replace").decode()


def message_of(error: BaseException, masked: Callable[[str], str] = str) -> str:
    """What the error says of itself, if it can. `masked` hides secrets, before anything is cut: half a secret is no longer
    found, and is a secret all the same."""
    try:
        return speakable(masked(str(error)))
    except Exception:
        return "(it cannot be put into words)"


def reason_of(error: BaseException, masked: Callable[[str], str] = str) -> str:
    """The kind of the error, and what it says."""
    return speakable(f"{type(error).__name__}: {message_of(error, masked)}")


def described(error: BaseException, masked: Callable[[str], str]) -> JsonObject:
    """The error as events carry it."""
    return {"type": speakable(type(error).__name__), "message": message_of(error, masked)}
