"""Text that PostgreSQL can hold: its ``text`` has no NUL character, ours may.

A NUL is written as U+0001 and ``@``, U+0001 itself as U+0001 and ``A``: reversible, character by character (so a prefix stays
a prefix), and nothing that people write is changed. JSON documents need none of it: there a NUL is ``\\u0000`` already.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tenure.journal import compact

if TYPE_CHECKING:
    from tenure.journal import Json


def stored[T: (str, str | None)](text: T) -> T:
    """A text as a column holds it."""
    if text is None or ("\0" not in text and "\1" not in text):
        return text
    return text.replace("\1", "\1A").replace("\0", "\1@")


def original[T: (str, str | None)](text: T) -> T:
    """:func:`stored` read back."""
    if text is None or "\1" not in text:
        return text
    return text.replace("\1@", "\0").replace("\1A", "\1")


_decoder = json.JSONDecoder()


def document(text: str) -> Any:
    """JSON that the server wrote, read: without the checks for what it never writes, which take twice as long as reading."""
    return _decoder.raw_decode(text)[0]


def json_text(value: Json) -> str:
    """JSON as it is stored: the order of keys is kept.

    :raises ValueError: a float that JSON does not have, or text that is not valid Unicode.
    """
    text = compact(value)
    text.encode()  # a lone surrogate is refused here, not in the middle of a group
    return text
