"""Whether a server takes a script with an edit in it: what does not even load breaks no rule, and every test is red with it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from catalogue import PACKAGE, Mutation

from tenure.stores.redis import scripts
from tenure.testing.servers import RedisServer

LUA = "stores/redis/lua/"


def refused(mutations: list[Mutation]) -> Iterator[str]:
    """What a real server says to those edits of scripts that it does not load."""
    edits = [mutation for mutation in mutations if mutation.file.startswith(LUA)]
    if not edits:
        return
    with tempfile.TemporaryDirectory(prefix="tenure-lua-") as folder, RedisServer(Path(folder, "server")) as server:
        for mutation in edits:
            for name, text in _texts(mutation, Path(folder, mutation.id)):
                if isinstance(said := server.say("SCRIPT", "LOAD", text), Exception):
                    yield f"{mutation.id}: {name} does not load: {said}"


def _texts(mutation: Mutation, copy: Path) -> list[tuple[str, str]]:
    """The whole scripts that have the edit in them: one, or all that include the edited file."""
    shutil.copytree(PACKAGE / LUA, copy)
    (copy / mutation.file.removeprefix(LUA)).write_text(mutation.edited(), encoding="utf-8")
    with mock.patch.object(scripts, "_LUA", copy):
        whole = [scripts.Script(one.name) for one in scripts.all_scripts()]
    return [(one.name, one.text) for one in whole if one.text != scripts.script(one.name).text]
