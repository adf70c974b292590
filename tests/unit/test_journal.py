"""Events, commands and the core's kinds: every body survives its draft, and what is unknown is kept."""

import dataclasses
import json
import math
import types
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tenure.journal as journal
from tenure.clock import Instant
from tenure.journal import (
    CORE_COMMANDS,
    CORE_KINDS,
    TURN_ENDS,
    CallStarted,
    Claimed,
    Command,
    Core,
    Delivery,
    Draft,
    Event,
    Foreign,
    Json,
    Seq,
    TurnStarted,
    canonical,
    compact,
    digest,
    draft,
    read_body,
)
from tenure.lease import Epoch

AT = Instant(1_767_225_600.25)
TEXT = st.text(max_size=20)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=4)
PARTS: dict[object, st.SearchStrategy[object]] = {
    str: TEXT,
    int: st.integers(1, 10**9),
    bool: st.booleans(),
    Json: JSON,
    journal.JsonObject: OBJECTS,
    tuple[int, ...]: st.lists(st.integers(1, 10**9), max_size=4).map(tuple),
    types.NoneType: st.none(),
}


@st.composite
def bodies(draw: st.DrawFn, cls: type[Core]) -> Core:
    """A body of the kind, each part anything of its type; parts with a default may be left out."""
    hints = typing.get_type_hints(cls)
    parts: dict[str, object] = {}
    for part in dataclasses.fields(cls):
        optional = part.default is not dataclasses.MISSING or part.default_factory is not dataclasses.MISSING
        if optional and draw(st.booleans()):
            continue
        sorts = typing.get_args(hints[part.name]) if isinstance(hints[part.name], types.UnionType) else ()
        parts[part.name] = draw(st.one_of(*(PARTS[s] for s in sorts)) if sorts else PARTS[hints[part.name]])
    return cls(**parts)  # type: ignore[arg-type]


def stored(one: Draft) -> Event:
    return one.stored(7, Epoch(3), AT)


# the core's kinds


def test_the_union_is_closed_and_each_kind_has_its_class():
    classes = [c for c in vars(journal).values() if isinstance(c, type) and isinstance(getattr(c, "kind", None), str)]
    assert {*classes} - {Foreign} == {*CORE_KINDS.values()}
    assert all(cls.kind == kind for kind, cls in CORE_KINDS.items())
    assert set(CORE_KINDS).isdisjoint(CORE_COMMANDS)
    assert set(CORE_KINDS) > TURN_ENDS


@pytest.mark.parametrize("kind", CORE_KINDS)
@settings(max_examples=25)
@given(data=st.data())
def test_every_core_body_survives_its_draft(kind: str, data: st.DataObject):
    body = data.draw(bodies(CORE_KINDS[kind]))
    event = stored(draft(body, "t1"))
    assert (event.kind, event.turn, event.seq, event.epoch, event.at) == (kind, "t1", 7, 3, AT)
    assert not event.is_command
    assert read_body(event) == body
    assert read_body(Event.from_json(event.as_json())) == body, "also through its public shape"


@pytest.mark.parametrize("kind", CORE_KINDS)
@settings(max_examples=25)
@given(data=st.data())
def test_unknown_fields_are_passed_over_and_kept(kind: str, data: st.DataObject):
    body = data.draw(bodies(CORE_KINDS[kind]))
    newer = dataclasses.replace(draft(body), body={**draft(body).body, "a field of tomorrow": {"x": [1]}})
    event = stored(newer)
    assert read_body(event) == body
    assert event.as_json()["body"] == newer.body


def test_fields_of_yesterday_have_their_defaults():
    body = {"incarnation": "i", "node": "n", "address": "a", "why": "w"}
    assert read_body(stored(Draft("claimed", body))) == Claimed("i", "n", "a", "w", forced=False, previous=None)
    assert read_body(stored(Draft("turn_started", {"commands": [1, 2]}))) == TurnStarted((1, 2), 1)


@pytest.mark.parametrize(
    "kind", [k for k, c in CORE_KINDS.items() if dataclasses.fields(c)[0].default is dataclasses.MISSING]
)
def test_a_core_kind_without_a_part_that_it_must_have_is_refused(kind: str):
    part = dataclasses.fields(CORE_KINDS[kind])[0].name
    with pytest.raises(ValueError, match=f"event 7 of kind {kind} lacks '{part}'"):
        read_body(stored(Draft(kind, {})))


@given(OBJECTS)
def test_other_kinds_pass_through_unchanged(body: dict[str, Json]):
    event = stored(Draft("a loop's own", body))
    assert read_body(event) == Foreign(body)


def test_a_command_is_never_read_as_a_core_body():
    """A client may name its command like a core kind: it says nothing about ownership."""
    event = Event(Seq(1), None, "claimed", AT, {"x": 1}, key="k", delivery=Delivery.NOW)
    assert read_body(event) == Foreign({"x": 1})


def test_calls_open_and_close_in_the_envelope():
    assert draft(CallStarted("c", "f")).opens == ("c",)
    assert draft(journal.CallFinished("c")).closes == draft(journal.CallInterrupted("c")).closes == ("c",)
    restarted = draft(journal.CallRestarted("c", 2))
    assert (restarted.opens, restarted.closes) == ((), ()), "it is open already, and stays so"


# shapes


@given(st.data())
def test_an_event_survives_its_public_shape(data: st.DataObject):
    command = data.draw(st.booleans())
    event = Event(
        seq=Seq(data.draw(st.integers(1, 10**9))),
        epoch=None if command else data.draw(st.none() | st.integers(1, 10**6).map(Epoch)),
        kind=data.draw(TEXT),
        at=AT,
        body=data.draw(OBJECTS),
        turn=data.draw(st.none() | TEXT),
        opens=tuple(data.draw(st.lists(TEXT, max_size=2))),
        closes=tuple(data.draw(st.lists(TEXT, max_size=2))),
        key=data.draw(TEXT) if command else None,
        delivery=data.draw(st.sampled_from(Delivery)) if command else None,
    )
    assert Event.from_json(event.as_json()) == event
    assert event.is_command == command


def test_empty_parts_are_left_out():
    shape = stored(Draft("note", {"a": 1})).as_json()
    assert set(shape) == {"seq", "epoch", "kind", "at", "turn", "body"}
    command = Event(Seq(1), None, "message", AT, {}, key="k", delivery=Delivery.TURN).as_json()
    assert (command["key"], command["delivery"]) == ("k", "turn")


@pytest.mark.parametrize("missing", ["seq", "epoch", "kind", "at", "body"])
def test_a_shape_without_a_part_is_refused(missing: str):
    shape = {k: v for k, v in stored(Draft("note")).as_json().items() if k != missing}
    with pytest.raises(KeyError, match=missing):
        Event.from_json(shape)


@pytest.mark.parametrize("wrong", [{"at": "noon"}, {"seq": "x"}, {"delivery": "soon"}])
def test_a_shape_with_no_legal_value_is_refused(wrong: dict[str, Json]):
    with pytest.raises(ValueError):
        Event.from_json({**stored(Draft("note")).as_json(), **wrong})


@pytest.mark.parametrize(
    ("body", "text", "content"),
    [
        ({"text": "t"}, "t", "t"),
        ({"text": "t", "content": [1]}, "t", [1]),
        ({"content": {"a": 1}}, "", {"a": 1}),
        ({}, "", ""),
        ({"text": 7}, "", ""),
        ({"text": "t", "content": None}, "t", None),
    ],
)
def test_a_message_has_a_text_and_a_content(body: dict[str, Json], text: str, content: Json):
    event = Event(Seq(1), None, "message", AT, body, key="k", delivery=Delivery.TURN)
    assert (event.text, event.content) == (text, content)


# one text for a value


@given(JSON)
def test_the_order_of_names_does_not_count(value: Json):
    def turned(one: Json) -> Json:
        if isinstance(one, dict):
            return {k: turned(v) for k, v in reversed(one.items())}
        return [turned(v) for v in one] if isinstance(one, list) else one

    assert canonical(turned(value)) == canonical(value)
    assert digest(turned(value)) == digest(value)


@given(JSON)
def test_the_encoders_that_are_set_up_once_write_what_dumps_writes(value: Json):
    plain = {"separators": (",", ":"), "ensure_ascii": False, "allow_nan": False}
    assert compact(value) == json.dumps(value, **plain)
    assert canonical(value) == json.dumps(value, sort_keys=True, **plain)


def test_what_is_nested_without_end_is_refused():
    endless: list[Json] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested too deeply"):
        canonical(endless)


@given(JSON, JSON)
def test_other_values_have_another_text(one: Json, other: Json):
    if canonical(one) == canonical(other):
        assert one == other
        assert digest(one) == digest(other)
    else:
        assert digest(one) != digest(other)


def test_the_text_is_compact_sorted_and_not_escaped():
    assert canonical({"b": [1, 2.5, None, True], "a": "é𝄞\u0000"}) == '{"a":"é𝄞\\u0000","b":[1,2.5,null,true]}'
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert canonical({"a": (1, 2)}) == canonical({"a": [1, 2]}), "tuples are lists"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "\ud800", {"a": ["\udfff"]}, {"\ud800": 1}])
def test_what_json_does_not_have_is_refused(value: Json):
    with pytest.raises(ValueError):
        canonical(value)
    with pytest.raises(ValueError):
        digest(value)


def test_a_commands_digest_covers_kind_and_body_and_not_its_key():
    command = Command("message", {"text": "a"}, "k", Delivery.TURN)
    assert command.digest() == dataclasses.replace(command, key="other", delivery=Delivery.NOW).digest()
    assert command.digest() != dataclasses.replace(command, kind="run").digest()
    assert command.digest() != dataclasses.replace(command, body={"text": "b"}).digest()


def test_every_core_command_has_its_delivery():
    turn = [kind for kind, delivery in CORE_COMMANDS.items() if delivery is Delivery.TURN]
    assert turn == ["message"]
    assert set(CORE_COMMANDS) == {"message", "start", "stop", "interrupt", "answer"}
