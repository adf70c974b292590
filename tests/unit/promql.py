"""As much of PromQL as our dashboards and alerts are written in: what is asked for, and which labels an answer carries.

Prometheus pairs the series of two sides by all their labels. A pair that can never be found is no error there but an empty
answer: an alert that stays silent for ever. :func:`unpaired` finds these.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

type Labels = frozenset[str]

TOKEN = re.compile(
    r"\s*(?:(?P<string>\"[^\"]*\")|(?P<range>\[[^\]]*\])|(?P<number>\d+(?:\.\d+)?)(?![\w.])|(?P<duration>\d+[smhd])"
    r"|(?P<word>[a-zA-Z_]\w*)|(?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){},]))"
)
LOOSEST = (("or",), ("and", "unless"), ("==", "!=", "<=", "<", ">=", ">"), ("+", "-"), ("*", "/", "%"), ("^",))
AGGREGATIONS = {"sum", "min", "max", "avg", "count"}
SIGNS = {sign for signs in LOOSEST for sign in signs}


@dataclass(frozen=True)
class Pair:
    """An operation on two vectors: what each side carries, and how they are paired (``on``, ``ignoring``, or by all)."""

    operation: str
    left: Labels
    right: Labels
    paired: str
    by: Labels

    @property
    def can_be_found(self) -> bool:
        if self.operation == "or":
            return True
        match self.paired:
            case "on":
                return self.by <= self.left & self.right
            case "ignoring":
                return self.left - self.by == self.right - self.by
            case _:
                return self.left == self.right


def unpaired(expression: str, labels_of: Callable[[str], Labels]) -> list[Pair]:
    """Operations whose sides never meet."""
    reader = _Reader(expression, labels_of)
    reader.whole()
    return [pair for pair in reader.pairs if not pair.can_be_found]


def carried(expression: str, labels_of: Callable[[str], Labels]) -> Labels | None:
    """The labels of its answer; null for a number."""
    return _Reader(expression, labels_of).whole()


class _Reader:
    """Recursive descent; each method returns the labels of what it has read, null for a number."""

    def __init__(self, expression: str, labels_of: Callable[[str], Labels]) -> None:
        self.tokens = list(_tokens(expression))
        self.labels_of = labels_of
        self.pairs: list[Pair] = []

    def whole(self) -> Labels | None:
        labels = self.operation(0)
        assert not self.tokens, f"not understood from here: {self.tokens}"
        return labels

    def next_is(self, *words: str) -> bool:
        return bool(self.tokens) and self.tokens[0] in words

    def take(self, expected: str = "") -> str:
        token = self.tokens.pop(0)
        assert expected in ("", token), f"{token} instead of {expected}"
        return token

    def operation(self, level: int) -> Labels | None:
        if level == len(LOOSEST):
            return self.operand()
        left = self.operation(level + 1)
        while self.next_is(*LOOSEST[level]):
            operation, paired, by = self.take(), "", frozenset[str]()
            if self.next_is("on", "ignoring"):
                paired, by = self.take(), self.names()
            right = self.operation(level + 1)
            if left is not None and right is not None:
                self.pairs.append(Pair(operation, left, right, paired, by))
                left = by if paired == "on" and operation not in ("and", "unless", "or") else left
            left = right if left is None else left
        return left

    def names(self) -> Labels:
        self.take("(")
        names: list[str] = []
        while not self.next_is(")"):
            names.append(self.take())
            if self.next_is(","):
                self.take()
        self.take(")")
        return frozenset(names)

    def operand(self) -> Labels | None:
        token = self.take()
        if token == "(":
            labels = self.operation(0)
            self.take(")")
        elif token[0].isdigit():
            return None
        elif token in AGGREGATIONS:
            by = frozenset[str]()
            if self.next_is("by"):
                self.take()
                by = self.names()
            inner = self.arguments()[-1]
            assert inner is not None and by <= inner, f"{token} by {set(by)} of what carries {inner}"
            labels = by
        elif self.next_is("("):
            labels = self.arguments()[-1]
            labels = {"absent": frozenset(), "histogram_quantile": (labels or frozenset()) - {"le"}}.get(token, labels)
        else:
            labels = self.labels_of(token)
            self.selector()
        if self.next_is("offset"):
            self.tokens = self.tokens[2:]
        return labels

    def arguments(self) -> list[Labels | None]:
        self.take("(")
        found = [self.operation(0)]
        while self.next_is(","):
            self.take()
            found.append(self.operation(0))
        self.take(")")
        return found

    def selector(self) -> None:
        if self.next_is("{"):
            while self.take() != "}":
                pass
        if self.tokens and self.tokens[0].startswith("["):
            self.take()


def _tokens(expression: str) -> Iterator[str]:
    at = 0
    while at < len(expression.rstrip()):
        found = TOKEN.match(expression, at)
        assert found is not None, f"not understood: {expression[at:]}"
        yield found[found.lastgroup or 0]
        at = found.end()
