"""From settings to a node: what the process adds to :class:`tenure.embed.Node`, where it is reached and what it hides."""

from __future__ import annotations

import dataclasses
import ipaddress
import socket
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from tenure.embed import Node
from tenure.vault import KEYS_SETTING, Mask, Secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tenure.config import Config
    from tenure.vault import Veil

DEFAULT_AGENTS = ("scripted",)
"""What a node runs that was told of no agent: it answers anything, deterministically."""


def compose(config: Config, agents: Sequence[str] = (), veil: Veil | None = None) -> Node:
    """The node that these settings describe, not yet entered. `agents` as in ``--agent [NAME=]LOOP[:TARGET]``; `veil`
    is what the process's logs hide.

    :raises InvalidInputError: no such store, loop or runtime; names the setting.
    """
    return Node(agents=agents or DEFAULT_AGENTS, config=config, veil=veil)


def located(config: Config, port: int) -> Config:
    """The settings of a node that listens on `port`. One that listens everywhere is known by its host's name."""
    address = config.address
    if not address and _is_everywhere(config.host):
        address = f"http://{socket.gethostname()}:{port}"
    return dataclasses.replace(config, port=port, address=address)


def local_url(host: str, port: int) -> str:
    """How this machine reaches a node that listens on `host`."""
    if _is_everywhere(host):
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def mask_of(config: Config, environ: Mapping[str, str]) -> Mask:
    """Hides in the logs what the settings must not show."""
    return Mask(Secret(text) for text in _secrets(config, environ) if text)


def _secrets(config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    yield config.api_key
    yield config.runtime_token
    yield from (key.strip() for key in environ.get(KEYS_SETTING, "").split(","))
    place = urlsplit(config.store)
    yield unquote(place.password or "")
    yield from (value for name, value in parse_qsl(place.query) if "password" in name.lower())


def _is_everywhere(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
