"""The mask over all that is written, and the veil over a process's logs."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast, final
from urllib.parse import quote, quote_plus

from tenure.vault.secret import MASKED

if TYPE_CHECKING:
    from tenure.journal import Json, JsonObject
    from tenure.vault.secret import Secret

SHORTEST = 6
"""A secret with fewer characters is not masked."""

LINGERING = 256
"""Masks that a veil keeps after their use."""

_SHORTEST_LINE = 16


@final
class Mask:
    """Replaces the values of known secrets by :data:`MASKED`: as they are, escaped once or twice for JSON, encoded for
    URLs, and in base64 (both alphabets, also inside of a longer text). A secret of several lines also line by line.

    Immutable; from any thread. A value shorter than :data:`SHORTEST` is passed over.
    """

    __slots__ = ("_pattern",)

    def __init__(self, secrets: Iterable[Secret]) -> None:
        forms = _all_forms(secret.reveal() for secret in secrets)
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._pattern = re.compile("|".join(map(_either_case, longest_first))) if forms else None

    def __repr__(self) -> str:
        return f"Mask({MASKED})"

    def __bool__(self) -> bool:
        return self._pattern is not None

    def text(self, text: str) -> str:
        """The text without known values."""
        return text if self._pattern is None else self._pattern.sub(MASKED, text)

    def json(self, value: Json) -> Json:
        """The value without known values, keys of objects and numbers included."""
        if self._pattern is None:
            return value
        match value:
            case str():
                return self._pattern.sub(MASKED, value)
            case bool() | None:
                return value
            case int() | float():
                return MASKED if self._pattern.search(str(value)) else value
            case Mapping():
                return self.object(value)
            case _:
                return [self.json(item) for item in value]

    def object(self, value: JsonObject) -> JsonObject:
        """:meth:`json` of an object."""
        return value if self._pattern is None else {self.text(key): self.json(item) for key, item in value.items()}


def cleanly_cut(head: bytes, tail: bytes, values: Iterable[str]) -> tuple[bytes, bytes]:
    """What may stay of a text whose middle was left out between `head` and `tail`: no value is in it in part.

    A mask finds whole values only, so what may be the beginning of one at the end of `head`, or the end of one at the start
    of `tail`, goes with the middle.
    """
    forms = [form.encode("utf-8", "surrogatepass").lower() for form in _all_forms(values)]
    ends = _before_a_part(tail.lower()[::-1], [form[::-1] for form in forms])
    return head[: _before_a_part(head.lower(), forms)], tail[len(tail) - ends :]


def _before_a_part(text: bytes, forms: Sequence[bytes]) -> int:
    """How far the text goes up to where one of the forms may begin that goes on behind its end. In small letters, for
    ``%2f`` and ``%2F`` that were cut in two."""
    keep = len(text)
    for form in forms:
        at = text.find(form[:1], max(0, len(text) - len(form) + 1))
        while 0 <= at < keep and not form.startswith(text[at:]):
            at = text.find(form[:1], at + 1)
        keep = at if 0 <= at < keep else keep
    moved = True
    while moved:  # the new end must tear nothing, either
        moved = False
        for form in forms:
            at = text.find(form, max(0, keep - len(form) + 1), keep + len(form) - 1)
            if 0 <= at < keep:
                keep, moved = at, True
    return keep


def _all_forms(values: Iterable[str]) -> set[str]:
    forms: set[str] = set()
    for value in values:
        lines = [line.strip() for line in value.splitlines()]
        for part in (value, value.strip(), *(line for line in lines if len(line) >= _SHORTEST_LINE)):
            if len(part) >= SHORTEST:
                forms |= _forms(part)
    return forms


def _forms(value: str) -> set[str]:
    """The texts as which a value is known."""
    forms = {value}
    for plain_text in (True, False):
        escaped = json.dumps(value, ensure_ascii=plain_text)[1:-1]
        forms |= {escaped, json.dumps(escaped, ensure_ascii=plain_text)[1:-1]}
    raw = value.encode("utf-8", "surrogatepass")
    forms |= {quote(raw, safe=""), quote(raw), quote_plus(raw)}
    for offset in range(3):  # where in a group of three bytes the value may begin
        first, last = -(-offset * 8 // 6), (offset + len(raw)) * 8 // 6
        fragment = base64.b64encode(bytes(offset) + raw).decode()[first:last]
        forms |= {fragment, fragment.replace("+", "-").replace("/", "_")}
    return forms


def _either_case(form: str) -> str:
    """The pattern of a form; encoders for URLs write ``%2f`` or ``%2F``."""
    return re.sub(r"%[0-9A-F]{2}", lambda found: f"(?i:{found[0]})", re.escape(form))


@final
class Veil:
    """What a process's logs must not show: the masks of all that its conversations know. From any thread.

    A mask that is taken off stays for a while: what was cancelled may yet say something.
    """

    def __init__(self, *always: Mask) -> None:
        self._always = always
        self._worn: dict[int, Mask] = {}
        self._off: deque[Mask] = deque(maxlen=LINGERING)
        self._lock = threading.Lock()
        self._all = always

    def __repr__(self) -> str:
        return f"Veil({MASKED})"

    def put_on(self, mask: Mask) -> None:
        """From now on."""
        with self._lock:
            self._worn[id(mask)] = mask
            self._renew()

    def take_off(self, mask: Mask) -> None:
        """Nobody uses it any more."""
        with self._lock:
            if self._worn.pop(id(mask), None) is not None:
                self._off.append(mask)
                self._renew()

    def _renew(self) -> None:
        self._all = (*self._always, *self._worn.values(), *self._off)

    def text(self, text: str) -> str:
        """The text without any known value."""
        for mask in self._all:
            text = mask.text(text)
        return text


def alike(recorded: Json, fresh: Json) -> bool:
    """Whether `fresh` could have been recorded as `recorded`: equal, but for what was masked when it was written."""
    match recorded, fresh:
        case str(), str():
            return recorded == fresh or (MASKED in recorded and _fills(recorded.split(MASKED), fresh))
        case Mapping(), Mapping():
            known = {key: value for key, value in recorded.items() if MASKED not in key}
            rest = len(recorded) - len(known)
            if (
                any(key not in fresh for key in known)
                or not len(known) <= len(fresh)
                or (not rest and len(fresh) > len(known))
            ):
                return False
            return all(alike(value, fresh[key]) for key, value in known.items())
        case (str(), _) | (_, str()) | (Mapping(), _) | (_, Mapping()):
            return recorded == MASKED and isinstance(fresh, int | float) and not isinstance(fresh, bool)
        case (bool() | None, _) | (_, bool() | None):
            return recorded is fresh
        case (int() | float(), _) | (_, int() | float()):
            return recorded == fresh
        case _:
            pairs = cast("tuple[Sequence[Json], Sequence[Json]]", (recorded, fresh))
            return len(pairs[0]) == len(pairs[1]) and all(map(alike, *pairs))


def _fills(parts: Sequence[str], text: str) -> bool:
    """Whether the text has these parts in order, the first at its start and the last at its end."""
    first, *middle, last = parts
    if len(first) + len(last) > len(text) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
