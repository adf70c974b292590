"""What a ``docker://`` URL may say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, final
from urllib.parse import urlsplit

from tenure.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET = "/var/run/docker.sock"
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")
NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
NUMBERS = {
    "memory_bytes": (6 << 20, 1 << 50),
    "cpus": (0.01, 4096.0),
    "pids": (1, 1 << 22),
    "call_s": (0.01, 600.0),
    "ready_s": (0.01, 86400.0),
    "timeout_s": (0.01, 30 * 86400.0),
}
"""Each with the least and the most that it may be."""
WHOLE = frozenset({"memory_bytes", "pids"})


@final
@dataclass(frozen=True, slots=True)
class DockerOptions:
    """How containers are made, and how long the daemon may take."""

    image: str
    """Must be on the daemon's machine, with a POSIX shell, ``cat grep head mkdir mv readlink tail``."""
    address: str = f"unix://{SOCKET}"
    network: str = "none"
    """``none``, ``bridge``, or a network of the daemon's."""
    memory_bytes: int = 2 << 30
    cpus: float = 2.0
    pids: int = 512
    call_s: float = 10.0
    """Time limit of one call to the daemon, in seconds."""
    ready_s: float = 60.0
    """How long a started container may take to run its first command, in seconds."""
    timeout_s: float = 3600.0
    """Time limit of a command that has none of its own, in seconds."""

    @classmethod
    def parse(cls, url: str, options: Mapping[str, str]) -> Self:
        """From ``docker://[host:port|/socket]`` and its query. :raises InvalidInputError: naming `runtime`."""
        found: dict[str, str | float] = {}
        for name, text in options.items():
            if name in NUMBERS:
                found[name] = _number(name, text)
            elif name not in ("image", "network"):
                known = ", ".join(("image", "network", *NUMBERS))
                raise InvalidInputError("runtime", f"docker has no option {name[:80]!r}", f"use {known}")
        image, network = options.get("image", ""), options.get("network", "none")
        if not IMAGE.fullmatch(image):
            raise InvalidInputError("runtime", f"image is {image[:80]!r}", "docker://?image=debian:stable-slim")
        if not NETWORK.fullmatch(network):
            raise InvalidInputError("runtime", f"network is {network[:80]!r}", "give none, bridge or a network's name")
        return cls(address=_address(url), **{**found, "image": image, "network": network})  # type: ignore[arg-type]


def _address(url: str) -> str:
    remedy = "give docker:// for the local socket, docker:///path/to.sock or docker://host:port"
    try:
        parts = urlsplit(url)
        host, port, path = parts.hostname, parts.port, parts.path
    except ValueError:
        raise InvalidInputError("runtime", "names no Docker daemon", remedy) from None
    if parts.scheme != "docker" or not url.startswith("docker://") or "@" in parts.netloc or (host and not port):
        raise InvalidInputError("runtime", "names no Docker daemon", remedy)
    if host:
        if path not in ("", "/"):
            raise InvalidInputError("runtime", "names a host and a path", remedy)
        return f"tcp://{f'[{host}]' if ':' in host else host}:{port}"
    return f"unix://{path if path not in ('', '/') else SOCKET}"


def _number(name: str, text: str) -> float:
    least, most = NUMBERS[name]
    kind = "a whole number" if name in WHOLE else "a number"
    try:
        value = int(text) if name in WHOLE else float(text)
    except ValueError:
        value = -1
    if not least <= value <= most:
        raise InvalidInputError("runtime", f"{name} is {text[:80]!r}", f"give {kind} from {least:g} to {most:g}")
    return value
