"""The catalogue is true to the code: each edit still fits, each is killed by tests that exist. ``make mutants`` runs them."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from catalogue import PACKAGE, ROOT, Killers, Mutation, everything
from run import pytest as outcome

MUTATIONS = everything()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.id)
def test_an_edit_fits_the_code_as_it_is(mutation: Mutation):
    edited = mutation.edited()
    assert edited != (PACKAGE / mutation.file).read_text(encoding="utf-8")
    if mutation.file.endswith(".py"):
        ast.parse(edited)


def test_there_are_enough_and_each_has_its_own_id():
    assert len(MUTATIONS) >= 40
    assert max(Counter(m.id for m in MUTATIONS).values()) == 1
    assert all(re.fullmatch(r"M\d{2,3}", m.id) for m in MUTATIONS)


def test_each_is_killed_by_tests_that_exist():
    """By the names that stand in the files; a case of the store suite stands in the shipped suite."""
    shipped = "".join(p.read_text(encoding="utf-8") for p in (PACKAGE / "testing" / "store_suite").glob("*.py"))
    for mutation in MUTATIONS:
        tests = mutation.killed_by
        text = (ROOT / tests.path).read_text(encoding="utf-8") + shipped
        name = tests.which.split(" and ")[0]
        assert re.search(rf"def \w*{name}", text), f"{mutation.id} is killed by {name}, which is nowhere"


def test_a_name_that_no_test_has_is_an_error_not_a_kill():
    with pytest.raises(SystemExit, match="deselected"):
        outcome(Killers("tests/unit/test_clock.py", "no_such_test_at_all"), PACKAGE.parent)


def test_an_edit_that_breaks_a_rule_is_killed_by_a_test_that_is_green_without_it():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run.py")), "M51", "--jobs", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"killed by \S+an_expired_lease_is_never_renewed-sqlite", done.stdout)
    assert "1 of 1 killed, 0 survived" in done.stdout
