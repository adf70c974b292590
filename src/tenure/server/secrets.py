"""The vaults over HTTP. Values are write-only: no reply, error or log holds one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, final

from fastapi import Path, Query, Response

from tenure.errors import InvalidInputError
from tenure.node import sealing
from tenure.server.strict import the_user
from tenure.server.watch import find
from tenure.server.wire import ForUser, InPath, NewSecret, json_reply
from tenure.vault import Secret

if TYPE_CHECKING:
    from tenure.node import Node

type SecretName = Annotated[str, Path(alias="name", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
type RotationCursor = Annotated[str | None, Query(max_length=300, pattern=r"^[\x21-\x7e]+$")]
type RotationLimit = Annotated[int, Query(ge=1, le=1000, description="So many conversations at once.")]


@final
class Secrets:
    """The routes of the vaults."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.store = node.store

    async def secrets(self, conversation: InPath, user_id: ForUser = None) -> Response:
        """What the conversation's vault holds: names and versions, and which key reads each (null: none of this node's)."""
        await find(self.store, conversation, user_id)
        kept = await sealing.listed(self.store, self.node.keys, conversation)
        return json_reply(200, {"secrets": [one.as_json() for one in kept]})

    async def put(
        self, conversation: InPath, name: SecretName, body: NewSecret, user_id: ForUser = None
    ) -> Response:  # fmt: skip
        """Keep a secret, or replace it; `vault:NAME` in the settings refers to it. 201 when the name is new."""
        await find(self.store, conversation, the_user(user_id, body.user_id))
        secret = Secret(body.value.get_secret_value())
        kept = await sealing.put(self.store, self.node.keys, conversation, name, secret)
        return json_reply(201 if kept.version == 1 else 200, kept.as_json())

    async def remove(self, conversation: InPath, name: SecretName, user_id: ForUser = None) -> Response:
        """Erase a secret; erasing it twice is fine."""
        await find(self.store, conversation, user_id)
        await sealing.remove(self.store, conversation, name)
        return Response(status_code=204)

    async def rotate(self, cursor: RotationCursor = None, limit: RotationLimit = 100) -> Response:
        """Seal anew, under the first key of this node, what other keys sealed: a page of conversations, from a cursor.

        Repeat it with `next_cursor` until that is null; `tenure vault rotate` does. Where it was cut it may begin again.
        """
        try:
            done = await sealing.rotate(self.store, self.node.keys, cursor, limit)
        except (ValueError, OverflowError):
            raise InvalidInputError("cursor", "is none of this store's", "use next_cursor of the last page") from None
        unreadable = [{"conversation": conversation, "name": name} for conversation, name in done.unreadable]
        return json_reply(
            200,
            {
                "key": done.key,
                "conversations": done.conversations,
                "secrets": done.secrets,
                "rewritten": done.rewritten,
                "unreadable": unreadable,
                "next_cursor": done.cursor,
            },
        )
