"""Secrets: what a value may be seen as, references to it, the keys that seal it, and the mask over all that is written.

A conversation's settings never carry a secret, only where it is found: ``env:NAME`` (the node's environment),
``file:PATH`` (a file of the node's machine) or ``vault:NAME`` (the conversation's vault in the store, ciphertext under
the cluster's keys). References are resolved at each provisioning and takeover, so that a rotated secret is met by the
next owner. A value that was resolved is known, and known values are masked in everything that is journaled or logged.

What a mask cannot do: it finds a value whole, in the forms that :class:`Mask` lists. A value that an agent reverses,
cuts up or encrypts passes, and so does one that is shorter than :data:`SHORTEST`, because masking ``a`` or ``1234``
would eat the journal. Use longer secrets.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
import stat
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Self, cast, final
from urllib.parse import quote, quote_plus

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from tenure.errors import InvalidInputError, TenureError

if TYPE_CHECKING:
    from pathlib import Path

    from tenure.abc import Store
    from tenure.journal import Json, JsonObject

KEYS_SETTING = "TENURE_SECRET_KEYS"
NEW_KEY = 'python -c "from cryptography.fernet import Fernet as F; print(F.generate_key().decode())"'

LONGEST = 64 << 10
"""A secret has at most so many characters."""
SHORTEST = 6
"""A secret with fewer characters is not masked."""
MASKED = "<secret>"
"""What stands in the place of a masked value."""

_SHORTEST_LINE = 16
_NAME_OF_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_NAME_IN_VAULT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class CredentialError(TenureError):
    """A reference has no value here, or a secret cannot be sealed. Names the reference and the remedy, never a value."""

    def __init__(self, reference: str, problem: str, remedy: str) -> None:
        super().__init__(f"{reference}: {problem}; {remedy}")
        self.reference = reference
        self.problem = problem
        self.remedy = remedy


@final
class Secret:
    """A value that must not be seen. It has no text, JSON or pickle form; only :meth:`reveal` gives it away."""

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        if not value or len(value) > LONGEST:
            raise ValueError(f"a secret has 1 to {LONGEST} characters")
        self.__value = value

    def reveal(self) -> str:
        """The value. Whoever calls this answers for where it goes."""
        return self.__value

    def __repr__(self) -> str:
        return f"Secret({MASKED})"

    def __str__(self) -> NoReturn:
        raise TypeError("a secret has no text: reveal() it where it is needed, and nowhere else")

    def __format__(self, spec: str) -> NoReturn:
        raise TypeError("a secret has no text: reveal() it where it is needed, and nowhere else")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret cannot be pickled: hand over its reference")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self.__value.encode(), other.reveal().encode())

    __hash__ = None  # pyright: ignore[reportAssignmentType] - a hash tells something of the value


# --- references -----------------------------------------------------------------------------------------------------

type Unseal = Callable[[str], Awaitable[Secret | None]]
"""The secret of that name in the conversation's vault, or null."""


@final
@dataclass(frozen=True, slots=True)
class Reference:
    """Where a secret is found: ``env:NAME``, ``file:PATH`` or ``vault:NAME``. Harmless to store and to show."""

    scheme: str
    name: str

    def __str__(self) -> str:
        return f"{self.scheme}:{self.name}"

    @classmethod
    def parse(cls, text: object, field: str = "credentials") -> Self:
        """Read a reference.

        :raises InvalidInputError: it is none. The text is not repeated: somebody may have put the secret itself there.
        """
        scheme, colon, name = text.partition(":") if isinstance(text, str) else ("", "", "")
        problem = _PROBLEMS.get(scheme, _no_scheme)(name) if colon else _no_scheme(name)
        if problem:
            raise InvalidInputError(field, problem, "write env:NAME, file:/absolute/path or vault:NAME, not the secret")
        return cls(scheme, name)


def _no_scheme(name: str) -> str:
    return "is no reference to a secret"


def _no_env(name: str) -> str:
    if not _NAME_OF_ENV.fullmatch(name):
        return "env: needs the name of an environment variable, at most 128 characters"
    if name.startswith("TENURE_"):
        return "env: does not give away the node's own settings (TENURE_…)"
    return ""


def _no_file(name: str) -> str:
    if name.startswith("/") and len(name) <= 4096 and name.isprintable():
        return ""
    return "file: needs an absolute path of at most 4096 printable characters"


def _no_vault(name: str) -> str:
    if _NAME_IN_VAULT.fullmatch(name):
        return ""
    return "vault: needs a name of letters, digits, dots, dashes and underscores, at most 128"


_PROBLEMS: Mapping[str, Callable[[str], str]] = {"env": _no_env, "file": _no_file, "vault": _no_vault}


def references(settings: JsonObject, field: str = "settings.credentials") -> dict[str, Reference]:
    """The credentials that settings ask for: name of the environment variable in the runtime → where the value is.

    :raises InvalidInputError: names the field.
    """
    asked = settings.get("credentials")
    if asked is None:
        return {}
    if not isinstance(asked, Mapping) or len(asked) > 100:
        raise InvalidInputError(field, "must be an object of at most 100 references", 'write {"NAME": "env:NAME"}')
    for name in asked:
        if not _NAME_OF_ENV.fullmatch(name):
            raise InvalidInputError(field, f"{name[:80]!r} is no name of an environment variable", "use A-Z, 0-9 and _")
    return {name: Reference.parse(text, f"{field}.{name}") for name, text in asked.items()}


async def resolve(reference: Reference, unseal: Unseal, environ: Mapping[str, str] | None = None) -> Secret:
    """The value behind a reference, as it is now.

    :raises CredentialError: there is none; names the reference and the remedy. It may be there on another node.
    """
    match reference.scheme:
        case "env":
            value = (os.environ if environ is None else environ).get(reference.name)
            if not value:
                raise CredentialError(str(reference), "is not set on this node", "set it, then start the node again")
            return _secret(reference, value)
        case "file":
            return _secret(reference, await asyncio.to_thread(_content, reference))
        case _:
            secret = await unseal(reference.name)
            if secret is None:
                raise CredentialError(
                    str(reference), "is not in this conversation's vault", f"put a secret named {reference.name} there"
                )
            return secret


def _content(reference: Reference) -> str:
    try:
        file = os.open(reference.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(file, "rb") as opened:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise CredentialError(str(reference), "is no regular file", "name the file that holds the secret")
            content = opened.read(LONGEST * 4 + 1)
        return content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise CredentialError(
            str(reference), f"cannot be read on this node: {error.strerror}", "put it there, readable for the node"
        ) from None
    except UnicodeDecodeError:
        raise CredentialError(str(reference), "is not text", "store it as UTF-8, for instance in base64") from None


def _secret(reference: Reference, value: str) -> Secret:
    try:
        return Secret(value)
    except ValueError as error:
        raise CredentialError(str(reference), str(error), "store one secret there, and nothing else") from None


# --- the cluster's keys ---------------------------------------------------------------------------------------------


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

    def reseal(self, ciphertext: bytes) -> bytes:
        """The same secret under the first key.

        :raises CredentialError: none of the keys reads it.
        """
        try:
            return self._ring.rotate(ciphertext)
        except InvalidToken:
            raise CredentialError(self._where, "none of the keys reads this ciphertext", "add the old key") from None


def unsealing(store: Store, keys: Keys | None, conversation: str) -> Unseal:
    """How ``vault:NAME`` of a conversation is read: ciphertext from the store, under the cluster's keys."""

    async def unseal(name: str) -> Secret | None:
        sealed = await store.unseal(conversation, name)
        if sealed is None:
            return None
        if keys is None:
            raise CredentialError(f"vault:{name}", "this node has no keys", f"set {KEYS_SETTING} on every node")
        return keys.unseal(conversation, name, sealed.ciphertext)

    return unseal


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


# --- the mask -------------------------------------------------------------------------------------------------------


@final
class Mask:
    """Replaces the values of known secrets by :data:`MASKED`: as they are, escaped once or twice for JSON, encoded for
    URLs, and in base64 (both alphabets, also inside of a longer text). A secret of several lines also line by line.

    Immutable; from any thread. A value shorter than :data:`SHORTEST` is passed over.
    """

    __slots__ = ("_pattern",)

    def __init__(self, secrets: Iterable[Secret]) -> None:
        forms: set[str] = set()
        for secret in secrets:
            value = secret.reveal()
            lines = [line.strip() for line in value.splitlines()]
            for part in (value, value.strip(), *(line for line in lines if len(line) >= _SHORTEST_LINE)):
                if len(part) >= SHORTEST:
                    forms |= _forms(part)
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._pattern = re.compile("|".join(map(_either_case, longest_first))) if forms else None

    def __repr__(self) -> str:
        return f"Mask({MASKED})"

    def __bool__(self) -> bool:
        return self._pattern is not None

    def text(self, text: str) -> str:
        """The text without known values."""
        return text if self._pattern is None else self._pattern.sub(MASKED, text)

    def json(self, value: Json) -> Json:
        """The value without known values, keys of objects and numbers included."""
        if self._pattern is None:
            return value
        match value:
            case str():
                return self._pattern.sub(MASKED, value)
            case bool() | None:
                return value
            case int() | float():
                return MASKED if self._pattern.search(str(value)) else value
            case Mapping():
                return self.object(value)
            case _:
                return [self.json(item) for item in value]

    def object(self, value: JsonObject) -> JsonObject:
        """:meth:`json` of an object."""
        return value if self._pattern is None else {self.text(key): self.json(item) for key, item in value.items()}


def _forms(value: str) -> set[str]:
    """The texts as which a value is known."""
    forms = {value}
    for plain_text in (True, False):
        escaped = json.dumps(value, ensure_ascii=plain_text)[1:-1]
        forms |= {escaped, json.dumps(escaped, ensure_ascii=plain_text)[1:-1]}
    raw = value.encode("utf-8", "surrogatepass")
    forms |= {quote(raw, safe=""), quote(raw), quote_plus(raw)}
    for offset in range(3):  # where in a group of three bytes the value may begin
        first, last = -(-offset * 8 // 6), (offset + len(raw)) * 8 // 6
        fragment = base64.b64encode(bytes(offset) + raw).decode()[first:last]
        forms |= {fragment, fragment.replace("+", "-").replace("/", "_")}
    return forms


def _either_case(form: str) -> str:
    """The pattern of a form; encoders for URLs write ``%2f`` or ``%2F``."""
    return re.sub(r"%[0-9A-F]{2}", lambda found: f"(?i:{found[0]})", re.escape(form))


def alike(recorded: Json, fresh: Json) -> bool:
    """Whether `fresh` could have been recorded as `recorded`: equal, but for what was masked when it was written."""
    match recorded, fresh:
        case str(), str():
            return recorded == fresh or (MASKED in recorded and _fills(recorded.split(MASKED), fresh))
        case Mapping(), Mapping():
            known = {key: value for key, value in recorded.items() if MASKED not in key}
            rest = len(recorded) - len(known)
            if (
                any(key not in fresh for key in known)
                or not len(known) <= len(fresh)
                or (not rest and len(fresh) > len(known))
            ):
                return False
            return all(alike(value, fresh[key]) for key, value in known.items())
        case (str(), _) | (_, str()) | (Mapping(), _) | (_, Mapping()):
            return recorded == MASKED and isinstance(fresh, int | float) and not isinstance(fresh, bool)
        case (bool() | None, _) | (_, bool() | None):
            return recorded is fresh
        case (int() | float(), _) | (_, int() | float()):
            return recorded == fresh
        case _:
            pairs = cast("tuple[Sequence[Json], Sequence[Json]]", (recorded, fresh))
            return len(pairs[0]) == len(pairs[1]) and all(map(alike, *pairs))


def _fills(parts: Sequence[str], text: str) -> bool:
    """Whether the text has these parts in order, the first at its start and the last at its end."""
    first, *middle, last = parts
    if len(first) + len(last) > len(text) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
