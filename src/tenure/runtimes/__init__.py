"""Where tools run: ``open_provider(url)`` picks one."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from tenure.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from tenure.abc import RuntimeProvider


def open_provider(url: str, *, root: Path) -> RuntimeProvider:
    """The provider that ``NAME[?limit=number&…]`` names, with its files under `root`.

    ``process`` runs commands on this machine, for instance ``process?cpu_s=60&memory_bytes=2000000000``; its limits
    are :class:`tenure.runtimes.process.ProcessLimits`.

    :raises InvalidInputError: naming `runtime`: no such provider or limit.
    """
    name, _, query = url.partition("?")
    if name.removesuffix(":") != "process":
        raise InvalidInputError("runtime", f"no provider is called {name[:80]!r}", "use process")
    from tenure.runtimes.process import ProcessLimits, ProcessProvider

    return ProcessProvider(root, limits=ProcessLimits.parse(dict(parse_qsl(query, keep_blank_values=True))))
