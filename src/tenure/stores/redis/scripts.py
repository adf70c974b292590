"""The scripts: one file in ``lua/`` per operation, sent once, called by their digest.

A script begins with comments that say what goes in: ``-- KEYS`` and ``-- ARGV`` name its arguments in order, a name with a
star takes the rest, and ``-- includes`` names the files of ``lua/shared/`` that are put before it, in that order. That is
all there is to it: the text that the server runs is those files, one after the other. Arguments are passed by these names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from importlib.resources import files
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable

type Argument = str | bytes | int
type Rest = Iterable[Argument]

_LUA: Traversable = files(__package__) / "lua"
_HEADER = re.compile(r"\A(?:--.*\n)+")
_LIST = re.compile(r"^-- (KEYS|ARGV|includes)((?: .+\n)(?:--   .+\n)*)", re.MULTILINE)


@final
class Script:
    """One operation: its text, and the names of its arguments."""

    def __init__(self, name: str) -> None:
        self.name = name
        own = (_LUA / f"{name}.lua").read_text(encoding="utf-8")
        lists = dict(_LIST.findall(_header(own)))
        self.keys = _names(lists.get("KEYS", ""))
        self.argv = _names(lists.get("ARGV", ""))
        self.includes = _names(lists.get("includes", ""))
        self._names = frozenset(name.removeprefix("*") for name in (*self.keys, *self.argv))
        self._keys_in_order, self._argv_in_order = _in_order(self.keys), _in_order(self.argv)
        parts = [(_LUA / "shared" / f"{part}.lua").read_text(encoding="utf-8") for part in self.includes]
        self.text = "\n".join([*parts, own])
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def call(self, **given: Argument | Rest) -> Call:
        """A call with these arguments, keys and others by name.

        :raises TypeError: one is missing, or there is no such.
        """
        if given.keys() != self._names:
            wrong = sorted(given.keys() ^ self._names)
            raise TypeError(f"{self.name} takes {', '.join(sorted(self._names))}: see {', '.join(wrong)}")
        keys = _values(self._keys_in_order, given)
        return Call(self, (len(keys), *keys, *_values(self._argv_in_order, given)))

    def share(self, **given: Argument | Sequence[str]) -> Share:
        """One request's share of a call: its keys and its arguments are what the script takes as the rest of each.

        :raises TypeError: as :meth:`call`.
        """
        if given.keys() != self._names:
            raise TypeError(f"{self.name} takes {', '.join(sorted(self._names))}: see {', '.join(sorted(given))}")
        (_, (keys,)), (common, (arguments,)) = self._keys_in_order, self._argv_in_order
        parts: dict[str, Any] = given
        return Share(self, [parts[name] for name in common], parts[keys], parts[arguments])


@final
class Call:
    """A script and its arguments, ready to be sent."""

    def __init__(self, script: Script, arguments: Sequence[Argument]) -> None:
        self.script = script
        self._arguments = arguments

    def command(self, *, whole: bool = False) -> tuple[Argument, ...]:
        """As the server takes it: by digest, or with the whole text, which it then also keeps."""
        head = ("EVAL", self.script.text) if whole else ("EVALSHA", self.script.sha)
        return (*head, *self._arguments)


@final
class Share:
    """One request's share of a script for many: its keys, and its arguments behind those that all have in common."""

    __slots__ = ("arguments", "common", "keys", "script")

    def __init__(self, script: Script, common: Sequence[str], keys: Sequence[str], arguments: Sequence[str]) -> None:
        self.script = script
        self.common = common
        self.keys = keys
        self.arguments = arguments


def joined(shares: Sequence[Share]) -> Call:
    """One call for shares of the same script; it answers a list, in their order."""
    keys = [key for share in shares for key in share.keys]
    arguments = [argument for share in shares for argument in share.arguments]
    return Call(shares[0].script, (len(keys), *keys, *shares[0].common, *arguments))


def _header(text: str) -> str:
    found = _HEADER.match(text)
    assert found is not None, "a script begins with its header"
    return found.group()


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.replace("--", " ").split())


def _in_order(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of single arguments, and those behind them that take the rest; found out once, for every call does it."""
    single = tuple(name for name in names if not name.startswith("*"))
    assert names[: len(single)] == single, "what takes the rest comes last"
    return single, tuple(name[1:] for name in names[len(single) :])


def _values(order: tuple[tuple[str, ...], tuple[str, ...]], given: dict[str, Any]) -> list[Argument]:
    single, rest = order
    arguments: list[Argument] = [given[name] for name in single]
    for name in rest:
        assert not isinstance(given[name], str | bytes | int), "the rest is a list"
        arguments.extend(given[name])
    return arguments


_SCRIPTS = {  # read once, with the program: the event loop waits for no disk
    name: Script(name)
    for name in sorted(file.name.removesuffix(".lua") for file in _LUA.iterdir() if file.name.endswith(".lua"))
}


def script(name: str) -> Script:
    """The script of that name."""
    return _SCRIPTS[name]


def all_scripts() -> Sequence[Script]:
    """Every script, for a server that has just been connected to."""
    return tuple(_SCRIPTS.values())
