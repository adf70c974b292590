"""Facts as they are told to the log."""

import logging
from dataclasses import fields

from tenure import facts


def kinds_of_facts() -> list[type[facts.Fact]]:
    return [one for one in vars(facts).values() if isinstance(one, type) and issubclass(one, facts.Fact)]


def test_no_part_of_a_fact_is_one_of_the_logs_own():
    """``Logger.makeRecord`` raises KeyError for these, and with it the turn that told the fact (seen with ``name``)."""
    own = {*vars(logging.makeLogRecord({})), "message", "asctime"}
    assert len(kinds_of_facts()) > 40
    for kind in kinds_of_facts():
        assert not own & {part.name for part in fields(kind)}, kind.__name__


def test_a_listener_may_hear_for_a_while():
    told, heard = facts.Facts(), list[facts.Fact]()
    first, second = facts.Registered("i1", "n1"), facts.Registered("i2", "n1")
    with told.heard_by(heard.append):
        told.tell(first)
    told.tell(second)
    assert heard == [first]
