"""Work is proportional to the answer: every statement finds its rows through an index."""

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tenure.abc import Creation
from tenure.clock import Instant
from tenure.conversation import Record
from tenure.stores import rules
from tenure.stores.rules import Row, create
from tenure.stores.sqlite import statements as sql
from tenure.stores.sqlite.columns import advance_columns, move_columns, only_advances, only_moves, row_columns
from tenure.stores.sqlite.file import StoreFile

STATEMENTS = {
    name: statement
    for name, statement in vars(sql).items()
    if isinstance(statement, str) and name.isupper() and name != "ROW"
} | {f"ERASE_{number}": statement for number, statement in enumerate(sql.ERASE)}

FIXED = {
    *(f"record.{name}" for name in ("conversation", "user_id", "agent", "policy", "created_at", "retry_in_s")),
    *(f"record.{name}" for name in ("settings", "title", "metadata")),  # not without the version
    "released_epoch", "released_token", "released_digest",  # not without the token
}  # fmt: skip
"""What no append moves, or not alone."""

MAY_SCAN = {
    "CONVERSATIONS": r"SCAN json_each.*",  # the names that were asked for
    "EVENTS_OF_KINDS": r"SCAN json_each.*",
    "DEAD_OWNERS_OF_WANTED": r"SCAN (owners|\(subquery-\d+\))",  # as many as there are owners
    "NODES": r"SCAN (owners|\(subquery-\d+\)|listed|nodes USING INDEX nodes_living)",
    "LIST_OF_OWNER": r"SCAN (\(subquery-\d+\))",
    "COUNTERS": r"SCAN meta",  # one row
    "UPDATE_COUNTERS": r"SCAN meta",
    "ERASE_DELTAS": r"SCAN signals",  # bounded
    "INSERT_.*|PUT_.*": r"SCAN .* CONSTANT ROW.*",
}


@pytest.fixture
def plans(tmp_path: Path) -> Iterator[dict[str, list[str]]]:
    with closing(StoreFile(tmp_path / "t.db").open()) as connection:
        found: dict[str, list[str]] = {}
        for name, statement in STATEMENTS.items():
            if statement.startswith("PRAGMA"):
                continue
            named = set(re.findall(r":(\w+)", statement))
            parameters = dict.fromkeys(named, 1) if named else [1] * statement.count("?")
            if "json_each" in statement:
                parameters = ['["a"]' if p == 1 else p for p in parameters]
            rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
            found[name] = [row[3] for row in rows]
        yield found


def test_no_statement_looks_at_what_it_does_not_need(plans: dict[str, list[str]]):
    assert len(plans) > 40
    offenders = [
        f"{name}: {step}"
        for name, steps in plans.items()
        for step in steps
        if step.startswith("SCAN")
        and not any(re.fullmatch(which, name) and re.fullmatch(allowed, step) for which, allowed in MAY_SCAN.items())
    ]
    assert offenders == []


def test_nothing_is_sorted_that_an_index_has_in_order(plans: dict[str, list[str]]):
    sorted_ = {name for name, steps in plans.items() if any("TEMP B-TREE FOR ORDER" in step for step in steps)}
    assert sorted_ <= {"NODES", "LIST_OF_OWNER"}


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("WANTED", "conversations_wanted"),
        ("DEAD_OWNERS_OF_WANTED", "conversations_wanted"),
        ("CHANGED", "conversations_changed"),
        ("LIST_OF_USER", "conversations_of_user"),
        ("LIST_OF_OWNER", "conversations_of_owner"),
        ("LIST_OF_OWNER", "conversations_of_node"),
        ("EVENTS", "events_journal"),
        ("JOURNAL_EPOCH", "events_journal"),
        ("NODES", "nodes_living"),
        ("TRIM_REFUSALS", "refusals_newest"),
    ],
)
def test_each_question_has_its_index(plans: dict[str, list[str]], name: str, index: str):
    assert any(f"INDEX {index}" in step for step in plans[name]), plans[name]


def test_the_columns_are_as_many_as_the_statements_ask_for():
    row, _ = create("c1", Creation(default_agent="agent"), Instant(1.0))
    assert len(row_columns(row)) + 2 == sql.INSERT_CONVERSATION.count("?") == sql.UPDATE_CONVERSATION.count("?")
    assert len(advance_columns(row)) + 2 == sql.ADVANCE_CONVERSATION.count("?")
    assert len(move_columns(row)) + 2 == sql.MOVE_CONVERSATION.count("?")


@pytest.mark.parametrize("name", [one.name for one in fields(Row)] + [f"record.{one.name}" for one in fields(Record)])
def test_a_change_goes_the_narrow_way_only_where_that_holds_all_of_it(name: str):
    """The row on disk is what the next owner reads: a field that a narrow statement leaves out must not have changed."""
    before, _ = create("c1", Creation(default_agent="agent"), Instant(1.0))
    strange: Any = object()
    after = before
    if name.startswith("record."):
        after = rules.replace(before, record=rules.replace(before.record, **{name.removeprefix("record."): strange}))
    elif name != "record":
        after = rules.replace(before, **{name: strange})
    moves = {"record", "number", "digest", "result", "record.head", "record.updated_at"}
    assert (only_advances(before.record, after.record) and only_moves(before, after)) == (name in moves | FIXED)
