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
from typing import TYPE_CHECKING, final

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
        parts = [(_LUA / "shared" / f"{part}.lua").read_text(encoding="utf-8") for part in self.includes]
        self.text = "\n".join([*parts, own])
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def call(self, **given: Argument | Rest) -> Call:
        """A call with these arguments, keys and others by name.

        :raises TypeError: one is missing, or there is no such.
        """
        names = [name.removeprefix("*") for name in (*self.keys, *self.argv)]
        if given.keys() != set(names):
            wrong = sorted(given.keys() ^ set(names))
            raise TypeError(f"{self.name} takes {', '.join(names)}: see {', '.join(wrong)}")
        keys = _in_order(self.keys, given)
        return Call(self, (len(keys), *keys, *_in_order(self.argv, given)))


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


def _header(text: str) -> str:
    found = _HEADER.match(text)
    assert found is not None, "a script begins with its header"
    return found.group()


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.replace("--", " ").split())


def _in_order(names: Sequence[str], given: dict[str, Argument | Rest]) -> list[Argument]:
    arguments: list[Argument] = []
    for name in names:
        value = given[name.removeprefix("*")]
        if name.startswith("*"):
            assert not isinstance(value, str | bytes | int), "the rest is a list"
            arguments.extend(value)
        else:
            assert isinstance(value, str | bytes | int), f"{name} is one argument"
            arguments.append(value)
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
