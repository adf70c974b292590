"""What an entry of the catalogue is: one edit to the product, the rule that it breaks, and the tests that must go red.

The entries stand in ``in_redis.py``, ``in_sqlite.py``, ``in_postgres.py`` and ``in_node.py``, one per line of the protocol that a plausible
implementation might get wrong; writing one down enters it. Edits to the pure rules themselves, which every embedded store
shares, are in ``tests/conformance/test_mutations.py`` and run with every ``make test``; these here run with ``make mutants``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "tenure"


@dataclass(frozen=True)
class Killers:
    """A file of tests, and which of them (an expression of ``pytest -k``)."""

    path: str
    which: str


@dataclass(frozen=True)
class Mutation:
    """``old`` stands exactly once in the file; whoever changes that line changes the entry, too."""

    id: str
    rule: str
    """The rule, guarantee or counterexample of the protocol that the edit breaks."""
    file: str
    """Below ``src/tenure``."""
    what: str
    """What the product does with the edit in it."""
    old: str
    new: str
    killed_by: Killers

    catalogue: ClassVar[list[Mutation]] = []

    def __post_init__(self) -> None:
        Mutation.catalogue.append(self)

    def edited(self) -> str:
        """The text of the file with the edit in it.

        :raises ValueError: the file no longer has this line once.
        """
        text = (PACKAGE / self.file).read_text(encoding="utf-8")
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"{self.id}: {self.file} has its line {found} times instead of once; mend the entry")
        return text.replace(self.old, self.new)


def suite(store: str, case: str) -> Killers:
    """A case of the store suite, on one kind of store (all the servers of it that are there, but no cluster)."""
    return Killers("tests/conformance/test_stores.py", f"{case} and {store} and not cluster")


def unit(name: str, which: str) -> Killers:
    return Killers(f"tests/unit/test_{name}.py", which)


def everything() -> list[Mutation]:
    """The whole catalogue, by id."""
    for file in sorted(Path(__file__).parent.glob("in_*.py")):
        import_module(file.stem)
    return sorted(Mutation.catalogue, key=lambda mutation: int(mutation.id[1:]))
