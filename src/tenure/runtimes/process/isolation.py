"""How a command is kept apart from its node: a user namespace of its own and, by default, no network.

The kernel's means is a namespace; who may make one differs by machine (containers, AppArmor, sysctls), and nothing but a
real try tells. So each program that makes them is run once: bubblewrap where it is installed, else util-linux's ``unshare``.

In its own user namespace a command keeps the node's user number, so files are as before, and has no rights over anything
outside but those of that user: also as root it sets no clock, mounts nothing, makes no device, ends nobody else's process.
Without network it has a loopback interface of its own that is down. It still has the node's files, and with them the
sockets that lie among them. Process numbers stay the machine's, so that any node finds and ends what another one left.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, final

from tenure.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tenure.journal import JsonObject

PROBE_S = 5.0
"""How long a program that makes namespaces may take to run nothing."""

# A program, what it is told always, what it is told for no network.
MEANS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bubblewrap": (
        ("bwrap", "--dev-bind", "/", "/", "--unshare-user", "--cap-drop", "ALL"),
        ("--unshare-net",),
    ),
    "unshare": (("unshare", "--user", "--map-current-user"), ("--net",)),
}
REMEDY = "allow user namespaces, or install bubblewrap (docs/operating/running.md)"


@final
@dataclass(frozen=True, slots=True)
class Wanted:
    """What whoever runs the node asks for: ``isolate`` auto, require or off; ``network`` none or host."""

    isolate: str = "auto"
    network: str = "none"

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> Self:
        """As text, by name. :raises InvalidInputError: naming `runtime`: another word than these."""
        wanted = cls(**given)
        for name, value, words in (
            ("isolate", wanted.isolate, ("auto", "require", "off")),
            ("network", wanted.network, ("none", "host")),
        ):
            if value not in words:
                raise InvalidInputError("runtime", f"{name} is {value[:80]!r}", f"use {', '.join(words)}")
        return wanted


@final
@dataclass(frozen=True, slots=True)
class Isolation:
    """What commands have here. `by` is null where they have none, and `why` then says the machine's reasons."""

    by: str | None = None
    network: str = "host"
    prefix: tuple[str, ...] = ()
    """What stands before a command."""
    why: str = ""

    @property
    def detail(self) -> JsonObject:
        """What the journal says of a runtime."""
        return {"isolation": self.by or "none", "network": self.network}

    @property
    def forks(self) -> bool:
        """Whether the command is a child of the program that isolates it, which waits for it."""
        return self.by == "bubblewrap"


def find(wanted: Wanted, means: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] | None = None) -> Isolation:
    """Try what this machine has, the first that works. Blocking, some 10 ms.

    :raises InvalidInputError: naming `runtime`: it is required, and impossible; with the machine's reasons.
    """
    if wanted.isolate == "off":
        return Isolation()
    refused: list[str] = []
    for by, (always, no_network) in (means or MEANS).items():
        prefix = [*always, *(no_network if wanted.network == "none" else ()), "--"]
        if (program := shutil.which(prefix[0])) is None:
            refused.append(f"{prefix[0]} is not installed")
            continue
        prefix[0] = program
        reason = _try(prefix, wanted.network)
        if reason is None:
            return Isolation(by, wanted.network, tuple(prefix))
        refused.append(f"{always[0]} does not do it: {reason}")
    why = "; ".join(refused)
    if wanted.isolate == "require":
        raise InvalidInputError(
            "runtime", f"isolate=require, but this machine does not isolate commands ({why})", REMEDY
        )
    return Isolation(why=why)


def _try(prefix: list[str], network: str) -> str | None:
    """Run nothing in it: why it is not isolated, or null."""
    kinds = ("user", "net") if network == "none" else ("user",)
    command = [*prefix, "/bin/sh", "-c", "; ".join(f"readlink /proc/self/ns/{kind}" for kind in kinds)]
    try:
        ran = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={"PATH": os.environ.get("PATH", os.defpath)},
            timeout=PROBE_S,
        )
        ours = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_S:g} s"
    except (OSError, ValueError) as error:
        return str(error)
    if ran.returncode != 0:
        return ran.stderr.strip()[:300] or f"it answered {ran.returncode}"
    theirs = ran.stdout.split()
    if len(theirs) != len(ours) or any(a == b for a, b in zip(theirs, ours, strict=True)):
        return "the namespaces are the node's own"
    return None
