"""What a runtime may know: references resolved at each provisioning and takeover, values masked in all that is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tenure.journal import JsonObject
    from tenure.node.tenure import Tenure


class Masking(Protocol):
    """Replaces known secrets."""

    def object(self, body: JsonObject) -> JsonObject: ...

    def text(self, text: str) -> str: ...


async def credentials(tenure: Tenure) -> Mapping[str, str]:
    """The values behind the references of the conversation's settings."""
    return {}
