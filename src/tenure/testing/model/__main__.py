"""``python -m tenure.testing.model [PART OF A NAME …]``: explore, and print a line for each scenario as it is done."""

from __future__ import annotations

import argparse
import sys

from tenure.testing.model.explore import explore
from tenure.testing.model.scenarios import LARGE, SMALL


def main(arguments: list[str]) -> int:
    """0 when nothing was broken, 1 when something was, 2 when no scenario has such a name."""
    parser = argparse.ArgumentParser(prog="python -m tenure.testing.model")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only scenarios with this in their name")
    parser.add_argument("--limit", type=int, default=1_000_000, help="states at most, per scenario (%(default)s)")
    given = parser.parse_args(arguments)
    chosen = {n: s for n, s in (SMALL | LARGE).items() if not given.names or any(part in n for part in given.names)}
    if not chosen:
        sys.stderr.write(f"no scenario has that in its name; there are: {'; '.join(SMALL | LARGE)}\n")
        return 2
    failed = 0
    for name, scenario in chosen.items():
        found = explore(scenario, given.limit)
        failed += found.broken is not None
        sys.stdout.write(f"{name:<44}{found.report()}\n")
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
