"""The catalogue is true to the code: each edit still fits, each is killed by tests that exist. ``make mutants`` runs them."""

import ast
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from catalogue import PACKAGE, ROOT, Killers, Mutation, everything
from lua import LUA, refused
from run import pytest as outcome

MUTATIONS = everything()
KINDS = ("stores/redis/lua", "stores/sqlite", "stores/postgres", "node", "conversation")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.id)
def test_an_edit_fits_the_code_as_it_is(mutation: Mutation):
    edited = mutation.edited()
    assert edited != (PACKAGE / mutation.file).read_text(encoding="utf-8")
    if mutation.file.endswith(".py"):
        ast.parse(edited)


def test_every_edited_script_loads():
    """Or it would be killed by whatever test comes first."""
    assert list(refused(list(MUTATIONS))) == []


def test_a_script_that_does_not_load_is_told():
    loaded = next(m for m in MUTATIONS if m.file == f"{LUA}shared/fence.lua")
    broken = replace(loaded, new="end end")
    Mutation.catalogue.remove(broken)
    told = list(refused([broken]))
    assert len(told) > 1, "of each script that includes it"
    assert all(re.search(rf"^{loaded.id}: \w+ does not load: ERR Error compiling", one) for one in told)


def test_the_pages_count_them_as_they_are():
    """Whoever adds one says so in both."""
    kinds = Counter(next(kind for kind in KINDS if m.file.startswith(kind)) for m in MUTATIONS)
    counts = [len(MUTATIONS), *(kinds[kind] + (kinds["conversation"] if kind == "node" else 0) for kind in KINDS[:-1])]
    page = " ".join((ROOT / "docs" / "proof.md").read_text(encoding="utf-8").split())
    said = re.search(
        r"`make mutants` puts (\d+) edits .*?: (\d+) into the scripts that Redis runs, (\d+) into the SQL of SQLite .*?,"
        r" (\d+) into that of PostgreSQL, (\d+) into the node and its plan",
        page,
    )
    assert said is not None and [int(n) for n in said.groups()] == counts, f"docs/proof.md, Mutations: {counts}"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"`make mutants`: {len(MUTATIONS)} edits" in changes, f"CHANGELOG.md: {len(MUTATIONS)}"


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


def test_a_test_that_cannot_be_collected_is_an_error_not_a_kill(tmp_path: Path):
    (tmp_path / "tenure").mkdir()
    (tmp_path / "tenure" / "__init__.py").write_text("raise RuntimeError('an edit that nothing can be imported with')")
    with pytest.raises(SystemExit, match="an edit that nothing can be imported with"):
        outcome(Killers("tests/unit/test_clock.py", "test"), tmp_path)


def test_a_kill_by_a_time_out_is_marked(tmp_path: Path):
    test = tmp_path / "test_slow.py"
    test.write_text("import time, pytest\n@pytest.mark.timeout(0.2)\ndef test_slow(): time.sleep(30)\n")
    verdict = outcome(Killers(str(test), "slow"), PACKAGE.parent)
    assert verdict.red
    assert verdict.by.endswith("test_slow, which timed out")


def test_an_edit_that_breaks_a_rule_is_killed_by_a_test_that_is_green_without_it():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run.py")), "M51", "--jobs", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"killed by \S+an_expired_lease_is_never_renewed-sqlite", done.stdout)
    assert "1 of 1 killed, 0 survived" in done.stdout
