"""A value that must not be seen."""

from __future__ import annotations

import hmac
from typing import NoReturn, Self, final

LONGEST = 64 << 10
"""A secret has at most so many characters."""
MASKED = "<secret>"
"""What stands in the place of a masked value."""


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
