"""What of a node a conversation may ask for. Settings come from clients, and a node holds more than they may have."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Self, final
from urllib.parse import urlsplit

from tenure.config import env_name
from tenure.errors import CredentialError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tenure.config import Config
    from tenure.vault.references import Credential, Reference, Refresh

OWN_PREFIX = "TENURE_"
"""Variables of the node itself, which no conversation may ask for, whatever is allowed."""
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""What a command that makes a credential gets of the node's environment, beside the variables that are allowed."""


@final
@dataclass(frozen=True, slots=True)
class Allowed:
    """The node's allow-list; empty by default: a conversation then has its own vault, and nothing else.

    `env` holds patterns (``LLM_*``), `files` folders, `commands` programs, `urls` prefixes that end in a slash.
    """

    env: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Config) -> Self:
        """As the settings say: each is a list with commas.

        :raises InvalidInputError: a folder or program that is no absolute path, or a URL that is no prefix.
        """
        allowed = cls(*map(_listed, (config.allow_env, config.allow_file, config.allow_command, config.allow_url)))
        for setting, paths in (("allow_file", allowed.files), ("allow_command", allowed.commands)):
            for path in paths:
                if os.path.normpath(path) != path.rstrip("/") or not os.path.isabs(path) or path == "/":
                    raise InvalidInputError(setting, f"{path!r} is no absolute path below /", _say(setting))
        for url in allowed.urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or not parts.path.endswith("/"):
                raise InvalidInputError("allow_url", f"{url!r} is no prefix such as https://host/", _say("allow_url"))
        return allowed

    def insist(self, credential: Credential) -> None:
        """Look at no disk.

        :raises CredentialError: the conversation may not ask this node for it; names the reference and the setting.
        """
        source, refresh = credential.source, credential.refresh
        if source is not None and not self._may_read(source):
            setting, example = {
                "env": ("allow_env", source.name),
                "file": ("allow_file", os.path.dirname(source.name)),
            }[source.scheme]
            raise _not_allowed(str(source), setting, example)
        if refresh is not None and refresh.command and refresh.command[0] not in self.commands:
            raise _not_allowed(str(refresh), "allow_command", refresh.command[0])
        if refresh is not None and refresh.url and not self._may_ask(refresh):
            raise _not_allowed(str(refresh), "allow_url", f"{refresh.url.rpartition('/')[0]}/")

    def _may_read(self, reference: Reference) -> bool:
        match reference.scheme:
            case "env":
                return self.passes(reference.name)
            case "file":
                return os.path.normpath(reference.name) == reference.name and self.holds(reference.name)
            case _:
                return True

    def _may_ask(self, refresh: Refresh) -> bool:
        path = urlsplit(refresh.url).path
        leaves = ".." in path or "%" in path or "\\" in path
        return not leaves and any(refresh.url.startswith(prefix) for prefix in self.urls)

    def passes(self, variable: str) -> bool:
        """Whether the variable of the environment is allowed."""
        own = variable.upper().startswith(OWN_PREFIX)
        return not own and any(fnmatchcase(variable, pattern) for pattern in self.env)

    def holds(self, path: str) -> bool:
        """Whether the path lies in a folder that is allowed."""
        return any(path.startswith(f"{folder.rstrip('/')}/") for folder in self.files)

    def resolved(self) -> Self:
        """With the links in the folders' names resolved. Blocking."""
        return type(self)(self.env, tuple(os.path.realpath(f) for f in self.files), self.commands, self.urls)

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What a command that makes a credential may see of the node's environment: nothing of the node's own."""
        return {name: value for name, value in environ.items() if name in INHERITED or self.passes(name)}


def _listed(setting: str) -> tuple[str, ...]:
    return tuple(part for one in setting.split(",") if (part := one.strip()))


def _say(setting: str) -> str:
    return f"correct {env_name(setting)}"


def _not_allowed(reference: str, setting: str, example: str) -> CredentialError:
    option = f"--{setting.replace('_', '-')}"
    return CredentialError(
        reference,
        "is not among what conversations may ask this node for",
        f"put the secret into the conversation's vault and write vault:NAME, or have the node's operator allow it: "
        f"tenure serve {option} '{example}' ({env_name(setting)})",
    )
