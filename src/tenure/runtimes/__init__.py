"""Where tools run: ``open_provider(url)`` picks one."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from tenure.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tenure.abc import RuntimeProvider


def open_provider(
    url: str, *, root: Path, token: str = "", allows: Callable[[str], bool] = lambda _: False
) -> RuntimeProvider:
    """The provider that a URL names, with its files, if it has any here, under `root`. `allows` says which folders of this
    machine a conversation may name as its workspace.

    ``process`` runs commands on this machine, for instance ``process?cpu_s=60&memory_bytes=2000000000``; its limits
    are :class:`tenure.runtimes.process.ProcessLimits`, and `network` and `isolate` say how commands are kept apart
    (:class:`tenure.runtimes.process.Wanted`). ``http://…`` and ``https://…`` ask a sandbox service, with `token`
    as its bearer token (``docs/extending/http-runtimes.md``). ``docker://?image=debian:stable-slim`` makes containers;
    its options are :class:`tenure.runtimes.docker.DockerOptions`.

    :raises InvalidInputError: naming `runtime`: no such provider or limit.
    """
    name, _, query = url.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    match name.partition(":")[0]:
        case "process" if name in ("process", "process:"):
            from tenure.runtimes.process import ProcessProvider

            return ProcessProvider.parse(root, options, allows)
        case "http" | "https":
            from tenure.runtimes.http import HttpProvider

            return HttpProvider.parse(name, options, token)
        case "docker" if name.startswith("docker://"):
            from tenure.runtimes.docker import DockerProvider

            return DockerProvider.parse(name, options)
        case _:
            remedy = "use process, http://…, https://… or docker://…"
            raise InvalidInputError("runtime", f"no provider is called {name[:80]!r}", remedy)
