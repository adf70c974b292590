"""The cluster's keys: what seals a vault, and what reads it after a rotation."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import TYPE_CHECKING, Self, final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from tenure.errors import CredentialError
from tenure.vault.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

KEYS_SETTING = "TENURE_SECRET_KEYS"
NEW_KEY = 'python -c "from cryptography.fernet import Fernet as F; print(F.generate_key().decode())"'


@final
class Keys:
    """The keys of the vault: the first one writes, all of them read. Fernet (AES-128-CBC and HMAC-SHA-256)."""

    def __init__(self, keys: Sequence[str], where: str = KEYS_SETTING) -> None:
        """Take the keys, newest first; `where` is what an error calls their place.

        :raises CredentialError: no key, or one that is none: its place is named, not its text.
        """
        if not keys:
            raise CredentialError(where, "holds no key", f"make one: {NEW_KEY}")
        rings: list[Fernet] = []
        for number, key in enumerate(keys, 1):
            try:
                rings.append(Fernet(key))
            except ValueError:
                raise CredentialError(where, f"key {number} is no Fernet key", f"make one: {NEW_KEY}") from None
        self._ring = MultiFernet(rings)
        self._rings = rings
        self._where = where
        self.ids = tuple(hashlib.sha256(key.encode()).hexdigest()[:8] for key in keys)
        """What names the keys where they must not be shown."""

    def __repr__(self) -> str:
        return f"Keys({', '.join(self.ids)})"

    @classmethod
    def load(cls, environ: Mapping[str, str], beside: Path | None = None) -> Self | None:
        """The keys of the environment; else those of the file beside the embedded store, which is made with one key
        if there is none; else null, and then no secret can be sealed or read.

        :raises CredentialError: a key is none, or others than the owner may read the file.
        """
        given = environ.get(KEYS_SETTING, "")
        if given.strip():
            return cls([key.strip() for key in given.split(",") if key.strip()])
        if beside is None:
            return None
        file = beside.with_name(f"{beside.name}.key")
        return cls(_key_file(file), str(file))

    def seal(self, conversation: str, name: str, secret: Secret) -> bytes:
        """The ciphertext; it can be read under this conversation and name only."""
        return self._ring.encrypt(json.dumps([conversation, name, secret.reveal()]).encode())

    def unseal(self, conversation: str, name: str, ciphertext: bytes) -> Secret:
        """Read :meth:`seal` back.

        :raises CredentialError: none of the keys reads it, or it was sealed for something else.
        """
        try:
            found = json.loads(self._ring.decrypt(ciphertext))
        except InvalidToken:
            raise CredentialError(
                f"vault:{name}",
                f"none of the {len(self.ids)} keys in {self._where} reads it",
                "add the key that sealed it behind the first one, or put the secret anew",
            ) from None
        if found[:2] != [conversation, name]:
            raise CredentialError(f"vault:{name}", "was sealed for something else", "put the secret anew")
        return Secret(found[2])

    def reader(self, ciphertext: bytes) -> str | None:
        """The id of the key that reads it; null if none does."""
        for id, ring in zip(self.ids, self._rings, strict=True):
            with contextlib.suppress(InvalidToken):
                ring.decrypt(ciphertext)
                return id
        return None

    def is_current(self, ciphertext: bytes) -> bool:
        """Whether the first key reads it: there is nothing to rotate."""
        return self.reader(ciphertext) == self.ids[0]

    def reseal(self, ciphertext: bytes) -> bytes:
        """The same secret under the first key.

        :raises CredentialError: none of the keys reads it.
        """
        try:
            return self._ring.rotate(ciphertext)
        except InvalidToken:
            raise CredentialError(self._where, "none of the keys reads this ciphertext", "add the old key") from None


def _key_file(file: Path) -> list[str]:
    """The keys in the file, one a line; made by whoever comes first, whole or not at all."""
    if not file.exists():
        made = file.with_name(f".{file.name}.{os.getpid()}.{os.urandom(4).hex()}")
        descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as opened:
                opened.write(Fernet.generate_key() + b"\n")
                opened.flush()
                os.fsync(descriptor)
            with contextlib.suppress(FileExistsError):  # another node was first: its key is the cluster's
                os.link(made, file)
        finally:
            made.unlink()
    if (mode := file.stat().st_mode) & 0o077:
        raise CredentialError(
            str(file), f"has the mode {mode & 0o777:o}: others may read the keys", f"chmod 600 {file}"
        )
    return file.read_text(encoding="ascii", errors="replace").split()
