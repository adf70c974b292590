"""The settings of a node: one flat, frozen dataclass; every field is also ``TENURE_<FIELD>`` in the environment.

Relations that cannot work are refused at start with the setting, its limit and the remedy.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import secrets
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, final

from tenure.errors import InvalidInputError
from tenure.lease import Timing

if TYPE_CHECKING:
    from collections.abc import Mapping


def _default_name() -> str:
    return f"{socket.gethostname()[:40]}-{secrets.token_hex(2)}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a node is told. Times are in seconds. See the table in the README for each setting's meaning.

    :raises InvalidInputError: a value outside its limits, or two that contradict each other.
    """

    store: str = "sqlite:///tenure.db"
    node: str = field(default_factory=_default_name)
    host: str = "127.0.0.1"
    port: int = 8400
    address: str = ""
    """What other nodes and people call this one by; empty: made of host and port."""
    api_key: str = field(default="", repr=False)
    insecure: bool = False
    allow_host: str = ""
    """By which names, with commas, a browser may call a node that listens on loopback without a key (beside loopback's)."""
    ttl_s: float = 3.0
    capacity: int = 1000
    idle_s: float = 300.0
    drain_s: float = 20.0
    sweep_s: float = 1.0
    start_timeout_s: float = 120.0
    turn_timeout_s: float = 3600.0
    call_timeout_s: float = 600.0
    lost_limit: int = 3
    backoff_s: float = 1.0
    """The first back-off after a failed start; doubles up to 60 times this."""
    reap_s: float = 60.0
    runtime: str = "process"
    runtime_token: str = field(default="", repr=False)
    """What a sandbox service asks for, as a bearer token."""
    workspaces: str = ""
    """Where runtimes keep their files; empty: a folder beside the store, or under the user's state folder."""
    allow_env: str = ""
    """What of this node conversations may ask for as credentials, as lists with commas: patterns of variables,"""
    allow_file: str = ""
    """folders of files,"""
    allow_command: str = ""
    """programs that make a value,"""
    allow_url: str = ""
    """and prefixes of URLs that do."""
    allow_folder: str = ""
    """Below which folders a conversation may name its own working folder; empty: anywhere on loopback, else nowhere."""
    witness: bool = True
    blocked_loop_s: float = 0.5
    """An event loop that does not answer for this long is reported."""

    def __post_init__(self) -> None:
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidInputError(name, f"is {value:g}, must lie in {low:g} to {high:g}", f"set {env_name(name)}")
        try:
            timing = self.timing
        except ValueError as error:
            raise InvalidInputError("ttl_s", str(error), "set TENURE_TTL_S") from None
        if self.sweep_s > 10 * self.ttl_s:
            raise InvalidInputError(
                "sweep_s",
                f"is {self.sweep_s:g}, above ten times ttl_s ({timing.ttl_s:g}): takeover would wait for the sweep",
                "lower TENURE_SWEEP_S or raise TENURE_TTL_S",
            )
        if not self.node or len(self.node) > 128 or not self.node.isprintable() or "/" in self.node:
            raise InvalidInputError("node", "must be 1 to 128 printable characters without a slash", "set TENURE_NODE")
        if not (self.api_key or self.insecure or is_loopback(self.host)):
            raise InvalidInputError(
                "host",
                f"{self.host} is reachable from other machines and no key is set",
                "set TENURE_API_KEY, or pass --insecure if something else guards it",
            )

    @property
    def timing(self) -> Timing:
        """The times of the node lease that follow from ``ttl_s``."""
        return Timing.of_ttl(self.ttl_s)

    @property
    def public_address(self) -> str:
        """What the register says of where this node is reached."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.address or f"http://{host}:{self.port}"

    def allows_folder(self, path: str) -> bool:
        """Whether a conversation may work in this folder (links resolved) instead of one that its runtime makes."""
        named = [root for one in self.allow_folder.split(",") if (root := one.strip().rstrip("/"))]
        roots = [os.path.realpath(root) for root in named]
        if not roots:
            return is_loopback(self.host)
        return any(path == root or path.startswith(f"{root}/") for root in roots)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], **given: Any) -> Self:
        """The settings of the environment; `given` ones that are not null win.

        :raises InvalidInputError: a value that cannot be read, or as the constructor.
        """
        values: dict[str, Any] = {}
        for part in dataclasses.fields(cls):
            text = environ.get(env_name(part.name))
            if text is not None:
                values[part.name] = _read(part.name, str(part.type), text)
        values.update({name: value for name, value in given.items() if value is not None})
        return cls(**values)


_LIMITS: tuple[tuple[str, float, float], ...] = (
    ("port", 0, 65535),
    ("capacity", 0, 1_000_000),
    ("idle_s", 0.05, 30 * 86400),
    ("drain_s", 0, 86400),
    ("sweep_s", 0.02, 60),
    ("start_timeout_s", 0.1, 3600),
    ("turn_timeout_s", 0.1, 30 * 86400),
    ("call_timeout_s", 0.1, 30 * 86400),
    ("lost_limit", 1, 1000),
    ("backoff_s", 0.01, 3600),
    ("reap_s", 0.1, 86400),
    ("blocked_loop_s", 0.05, 60),
)


def env_name(setting: str) -> str:
    """The environment variable of a setting."""
    return f"TENURE_{setting.upper()}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(name: str, kind: str, text: str) -> Any:
    try:
        match kind:
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "bool":
                return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
            case _:
                return text
    except (ValueError, KeyError):
        raise InvalidInputError(env_name(name), f"{text!r} is no {kind}", "correct or unset it") from None
