"""The vault of a conversation: values go in and are never told; and its rotation, a page at a time.

Everything is a compare-and-swap on the secret's version, so any node may do it at any moment, beside any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never, final

from tenure.abc import Deleted, Filters, Sealed, Stale, Unknown
from tenure.errors import (
    CommandRefusedError,
    ConversationDeletedError,
    CredentialError,
    InvalidInputError,
    UnknownConversationError,
)
from tenure.vault import KEYS_SETTING, NEW_KEY, Keys, Reference, Secret

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenure.abc import Store
    from tenure.journal import Json

TRIES = 10
"""How often somebody else may be faster."""
MOST = 100
"""Secrets in one conversation's vault."""


@final
@dataclass(frozen=True, slots=True)
class Kept:
    """A secret of a vault, as anybody may see it. `key` is the id of the key that reads it; null: none of this node's."""

    name: str
    version: int
    key: str | None

    def as_json(self) -> dict[str, Json]:
        return {"name": self.name, "version": self.version, "key": self.key}


@final
@dataclass(frozen=True, slots=True)
class Rotated:
    """What a page of a rotation did. `unreadable`: (conversation, name) that none of this node's keys reads."""

    key: str
    conversations: int
    secrets: int
    rewritten: int
    unreadable: tuple[tuple[str, str], ...]
    cursor: str | None


async def listed(store: Store, keys: Keys | None, conversation: str) -> Sequence[Kept]:
    """What the vault holds, by name."""
    sealed = await store.names(conversation)
    return [Kept(one.name, one.version, keys and keys.reader(one.ciphertext)) for one in sealed]


async def put(store: Store, keys: Keys | None, conversation: str, name: str, secret: Secret) -> Kept:
    """Keep a secret under a name, instead of what was there.

    :raises InvalidInputError: no such name is possible. :raises CredentialError: this node has no keys.
    :raises CommandRefusedError: the vault is full, or others are always faster. :raises UnknownConversationError:
    :raises ConversationDeletedError:
    """
    keys, name = insist_on_keys(keys), _name(name)
    ciphertext, version = keys.seal(conversation, name, secret), 0
    for _ in range(TRIES):
        if version == 0 and _is_full([one.name for one in await store.names(conversation)], name):
            raise CommandRefusedError(conversation, "vault-full", f"the vault holds {MOST} secrets; remove one first")
        answer = await store.seal(conversation, name, ciphertext, version)
        match answer:
            case Sealed():
                return Kept(name, answer.version, keys.ids[0])
            case Stale():
                there = await store.unseal(conversation, name)
                version = 0 if there is None else there.version
            case Deleted():
                raise ConversationDeletedError(conversation)
            case Unknown():
                raise UnknownConversationError(conversation)
            case _:
                assert_never(answer)
    raise _too_fast(conversation)


def _is_full(names: Sequence[str], name: str) -> bool:
    return len(names) >= MOST and name not in names


async def remove(store: Store, conversation: str, name: str) -> None:
    """Erase it; erasing twice is fine.

    :raises CommandRefusedError: others are always faster.
    """
    for _ in range(TRIES):
        there = await store.unseal(conversation, name)
        if there is None or await store.forget(conversation, name, there.version):
            return
    raise _too_fast(conversation)


async def rotate(store: Store, keys: Keys | None, cursor: str | None, limit: int) -> Rotated:
    """Seal anew, under the first key, what another one sealed, for up to `limit` conversations behind `cursor`.

    Where it was cut it may begin again, from the cursor or from the start: what the first key reads is passed over.

    :raises CredentialError: this node has no keys. :raises ValueError: the cursor is none of this store's.
    """
    keys = insist_on_keys(keys)
    page = await store.list(Filters(), cursor, limit)
    seen, rewritten = 0, 0
    unreadable: list[tuple[str, str]] = []
    for record in page.items:
        for one in await store.names(record.conversation):
            seen += 1
            try:
                rewritten += await _rotate_one(store, keys, record.conversation, one)
            except CredentialError:
                unreadable.append((record.conversation, one.name))
    return Rotated(keys.ids[0], len(page.items), seen, rewritten, tuple(unreadable), page.cursor)


async def _rotate_one(store: Store, keys: Keys, conversation: str, one: Sealed) -> bool:
    """Whether it was rewritten here; what somebody put there meanwhile is under a key that writes now.

    :raises CredentialError: none of the keys reads it.
    """
    there: Sealed | None = one
    for _ in range(TRIES):
        if there is None or keys.is_current(there.ciphertext):
            return False
        answer = await store.seal(conversation, there.name, keys.reseal(there.ciphertext), there.version)
        if not isinstance(answer, Stale):
            return isinstance(answer, Sealed)  # else the conversation was deleted, and its vault with it
        there = await store.unseal(conversation, there.name)
    raise _too_fast(conversation)


def insist_on_keys(keys: Keys | None) -> Keys:
    """:raises CredentialError: this node has no keys, so that nothing can be sealed here."""
    if keys is None:
        remedy = f"set {KEYS_SETTING} on every node; make a key: {NEW_KEY}"
        raise CredentialError("vault", "this node has no keys", remedy)
    return keys


def _name(name: str) -> str:
    try:
        return Reference.parse(f"vault:{name}").name
    except InvalidInputError as error:
        raise InvalidInputError("name", error.problem, "choose another name") from None


def _too_fast(conversation: str) -> CommandRefusedError:
    return CommandRefusedError(conversation, "vault-busy", "others change the same secret at the same time; try again")
