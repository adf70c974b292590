"""Bad input on every route: a problem document that names field, limit and remedy; never a 5xx; nothing changed."""

import json
import urllib.parse

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenure.server import close_streams

many = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

# (method, path, a good body or none, its query parameters, its headers)
ROUTES = {
    "create": ("POST", "/conversations", {"id": "new", "message": "x"}, ["user_id"], ["Idempotency-Key"]),
    "list": ("GET", "/conversations", None, ["user_id", "status", "owner", "limit", "cursor", "agent"], []),
    "show": ("GET", "/conversations/c1", None, ["user_id"], []),
    "change": ("PATCH", "/conversations/c1", {"title": "x"}, ["user_id"], ["If-Match"]),
    "delete": ("DELETE", "/conversations/never", None, ["user_id"], []),
    "events": ("GET", "/conversations/c1/events", None, ["user_id", "after", "limit", "kind"], []),
    "stream": ("GET", "/conversations/c1/stream", None, ["user_id", "after", "until"], ["Last-Event-ID"]),
    "message": ("POST", "/conversations/c1/messages", {"text": "x"}, ["user_id", "wait_s"], ["Idempotency-Key"]),
    "interrupt": ("POST", "/conversations/c1/interrupt", {}, ["user_id", "wait_s"], ["Idempotency-Key"]),
    "stop": ("POST", "/conversations/c1/stop", {"queue": True}, ["user_id", "wait_s"], ["Idempotency-Key"]),
    "answer": ("POST", "/conversations/c1/answer", {"text": "x"}, ["user_id", "wait_s"], ["Idempotency-Key"]),
    "start": ("POST", "/conversations/c1/start", {}, ["user_id", "here", "wait_s"], ["Idempotency-Key"]),
    "takeover": ("POST", "/conversations/never/takeover", {}, ["user_id"], []),
    "drain": ("POST", "/nodes/nobody/drain", {}, [], []),
    "nodes": ("GET", "/nodes", None, [], []),
}
WITH_BODY = [name for name, route in ROUTES.items() if route[2] is not None]
WITH_ID = [name for name, route in ROUTES.items() if "/conversations/" in route[1]]

anything = st.text(st.characters(categories=None), max_size=40)
"""Also lone surrogates, NUL, control characters."""
odd_text = st.one_of(
    anything,
    st.sampled_from(
        ["", "..", ".", "../..", "a/b", "\0", "a\0b", "a" * 10_000, "-x", ".hidden", "é", "🙂", "%2e%2e", "a b"]
    ),
)
odd_json = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([2**63, -(2**63) - 1, 10**400, float("nan"), float("inf"), "x" * 20_000]),
        st.floats(),
        anything,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(anything, inner, max_size=3)),
    max_leaves=6,
)
FIELDS = [
    "id", "agent", "settings", "user_id", "message", "key", "title", "metadata", "policy", "text", "content", "queue",
    "ask", "answer", "version", "no_such_field",
]  # fmt: skip


@pytest.fixture
async def tried(cluster):
    """Send a request; judge the answer."""
    http = await cluster.http()
    await cluster.by_hand("c1")
    close_streams(cluster.apps["n1"])  # what waits or streams ends at once

    async def send(method, path, *, must_fail=False, **request):
        before = cluster.contents()
        answer = await http.request(method, path, **request)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            judge(answer)
            assert cluster.contents() == before, "a refusal changes nothing"
        assert answer.status_code >= 400 or not must_fail
        return answer

    return send


def judge(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    problem = json.loads(answer.content)
    assert {"type", "code", "title", "status", "detail"} <= problem.keys()
    assert problem["status"] == answer.status_code
    assert problem["type"] == f"urn:tenure:problem:{problem['code']}"
    assert len(answer.content) < 10_000, "what was wrong is named, not sent back"
    if answer.status_code in (413, 415, 422) or problem["code"] == "not-found":
        assert problem["field"]
        assert problem["limit"]
        assert problem["remedy"]


def encoded(body):
    """JSON as Python writes it: NaN, surrogates and all."""
    return json.dumps(body).encode()


@many
@given(route=st.sampled_from(WITH_BODY), data=st.data())
async def test_odd_values_in_any_field(tried, route, data):
    method, path, good, _, _ = ROUTES[route]
    changes = data.draw(st.dictionaries(st.sampled_from(FIELDS) | anything, odd_json, min_size=1, max_size=2))
    await tried(method, path, content=encoded(good | changes), headers={"Content-Type": "application/json"})


@many
@given(route=st.sampled_from(WITH_BODY), field=anything)
async def test_unknown_fields_are_refused(tried, route, field):
    method, path, good, _, _ = ROUTES[route]
    if field in FIELDS:
        return
    content = encoded(good | {field: 1})
    answer = await tried(method, path, content=content, headers={"Content-Type": "application/json"}, must_fail=True)
    assert answer.status_code == 422


@many
@given(
    route=st.sampled_from(WITH_BODY),
    content=st.one_of(
        st.binary(min_size=1, max_size=200),
        odd_json.map(encoded),
        st.sampled_from(
            [
                b"[" * 100_000,
                b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
                b'{"text": "\xff\xfe"}',
                b'{"text": "\\ud800"}',
                b'{"text": NaN}',
                b'{"content": 1e999}',
                b'{"content": ' + b"9" * 5000 + b"}",
                b'{"text": "x"',
                b"\xef\xbb\xbf{}",
                b"null",
                b"[]",
                b'"x"',
            ]
        ),
    ),
)
async def test_bodies_that_are_no_object(tried, route, content):
    method, path, _, _, _ = ROUTES[route]
    try:
        value = json.loads(content)
        fine = isinstance(value, dict) or (
            value is None and route in ("interrupt", "stop", "start", "takeover", "drain")
        )
    except (ValueError, RecursionError):
        fine = False
    await tried(method, path, content=content, headers={"Content-Type": "application/json"}, must_fail=not fine)


@pytest.mark.parametrize(
    ("content", "field", "limit"),
    [
        (b'{"text": "\\ud800"}', "text", "surrogate"),
        (b'{"content": {"a": [1, {"b\\udfff": 1}]}}', "content.a[1]", "surrogate"),
        (b'{"content": {"a": [0, NaN]}}', "content.a[1]", "finite"),
        (b'{"content": -Infinity}', "content", "finite"),
        (b'{"content": 1e999}', "content", "finite"),
        (b'{"content": 9223372036854775808}', "content", "64 bits"),
        (b'{"content": ' + b"9" * 5000 + b"}", "body", "64 bits"),
        (b'{"content": ' + b"[" * 64 + b"]" * 64 + b"}", "content", "64 levels"),
        (b'{"text": "\xff"}', "body", "UTF-8"),
        (b'{"text": "x"', "body", "not JSON"),
        (b'{"text": ""}', "text", "1 character"),
        (b'{"text": 1}', "text", "string"),
        (b'{"key": "a\\nb", "text": "x"}', "key", "match"),
        (b'{"txet": "x"}', "txet", "no field"),
        (b"{}", "text", "needs text or content"),
        (b"[1]", "body", "object"),
    ],
)
async def test_the_fault_is_named(tried, content, field, limit):
    path = "/conversations/c1/messages"
    answer = await tried("POST", path, content=content, headers={"Content-Type": "application/json"}, must_fail=True)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert limit in answer.json()["limit"]


@pytest.mark.parametrize(
    "content",
    [b'{"content": 9223372036854775807}', b'{"content": ' + b"[" * 63 + b"]" * 63 + b"}", b'{"text":"\\ud83d\\ude00"}'],
)
async def test_what_is_just_within_the_limits_passes(tried, content):
    answer = await tried(
        "POST", "/conversations/c1/messages", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 202


@many
@given(route=st.sampled_from(WITH_ID), conversation=odd_text)
async def test_odd_ids(tried, route, conversation):
    method, path, good, _, _ = ROUTES[route]
    quoted = urllib.parse.quote(conversation.encode(errors="surrogatepass"), safe="").replace(".", "%2E")
    _, _, name, *rest = path.split("/")
    answer = await tried(method, "/".join(["/conversations", quoted, *rest]), json=good, must_fail=bool(name))
    if len(conversation) > 128:
        assert (answer.status_code, answer.json()["field"]) == (422, "id")


@many
@given(route=st.sampled_from(list(ROUTES)), data=st.data())
async def test_odd_parameters(tried, route, data):
    method, path, good, known, _ = ROUTES[route]
    names = st.sampled_from(known) if known else anything
    query = data.draw(st.dictionaries(names | anything, odd_text, min_size=1, max_size=3))
    text = urllib.parse.urlencode(
        {k.encode(errors="surrogatepass"): v.encode(errors="surrogatepass") for k, v in query.items()}
    )
    answer = await tried(method, f"{path}?{text}", json=good, must_fail=bool(set(query) - set(known)))
    if set(query) - set(known):
        assert answer.status_code == 422


@many
@given(
    parameter=st.sampled_from(["limit", "after", "wait_s"]),
    value=st.sampled_from(
        ["-1", "0x1", "1001", "61", "nan", "inf", "-inf", "1e400", "9" * 5000, "true", " ", "1 ", "٣", "null"]
    ),
)
async def test_numbers_out_of_their_limits(tried, parameter, value):
    method, path = (
        ("POST", "/conversations/c1/messages") if parameter == "wait_s" else ("GET", "/conversations/c1/events")
    )
    answer = await tried(method, path, params={parameter: value}, json={"text": "x"} if method == "POST" else None)
    if answer.status_code >= 400:
        assert (answer.status_code, answer.json()["field"]) == (422, parameter)
    else:
        assert value in ("1001", "61", "true", "1 "), "within the limits of this one"


@many
@given(
    route=st.sampled_from([name for name, route in ROUTES.items() if route[4]]),
    value=st.one_of(
        st.binary(max_size=300).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b"")),
        st.sampled_from([b"", b"x" * 5000, b"*", b'"1"', b"1:1:1", b"-1", b"9" * 40]),
    ),
)
async def test_odd_headers(tried, route, value):
    method, path, good, _, headers = ROUTES[route]
    await tried(method, path, json=good, headers={headers[0]: value})


@many
@given(
    route=st.sampled_from(WITH_BODY),
    kind=st.sampled_from(
        [
            None,
            b"",
            b"text/plain",
            b"application/xml",
            b"application/x-www-form-urlencoded",
            b"multipart/form-data",
            b"\xff",
            b"json",
            b"application/jsonp",
        ]
    ),
)
async def test_other_content_types_are_refused(tried, route, kind):
    method, path, good, _, _ = ROUTES[route]
    headers = {} if kind is None else {"Content-Type": kind}
    answer = await tried(method, path, content=encoded(good), headers=headers, must_fail=True)
    assert (answer.status_code, answer.json()["field"]) == (415, "content-type")


async def test_a_content_type_with_parameters_is_json(tried):
    for kind in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"):
        answer = await tried(
            "POST", "/conversations/c1/messages", content=b'{"text":"x"}', headers={"Content-Type": kind}
        )
        assert answer.status_code == 202


@pytest.mark.parametrize("route", WITH_BODY)
async def test_bodies_beyond_the_limit_are_not_read_to_their_end(tried, route):
    method, path, _, _, _ = ROUTES[route]
    sent = 0

    async def endless():
        nonlocal sent
        while sent < 1 << 26:
            sent += 1 << 16
            yield b" " * (1 << 16)

    answer = await tried(method, path, content=endless(), headers={"Content-Type": "application/json"}, must_fail=True)
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")


async def test_an_event_beyond_the_stores_limit_is_refused(tried):
    text = "x" * (1 << 20)
    answer = await tried("POST", "/conversations/c1/messages", json={"text": text}, must_fail=True)
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    answer = await tried("POST", "/conversations", json={"settings": {"text": text}}, must_fail=True)
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    answer = await tried("PATCH", "/conversations/c1", json={"settings": {"text": text}}, must_fail=True)
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")


async def test_metadata_and_title_are_small(tried):
    for route in (("POST", "/conversations"), ("PATCH", "/conversations/c1")):
        answer = await tried(*route, json={"metadata": {"a": "x" * 20_000}}, must_fail=True)
        assert (answer.status_code, answer.json()["field"]) == (422, "metadata")
        assert "16384 bytes" in answer.json()["limit"]
        answer = await tried(*route, json={"title": "x" * 501}, must_fail=True)
        assert (answer.json()["field"], "500" in answer.json()["limit"]) == ("title", True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/conversations/", 404),
        ("GET", "/conversations/c1/", 404),
        ("POST", "/conversations/c1/nothing", 404),
        ("GET", "/conversations/a%2Fb", 404),
        ("PUT", "/conversations/c1", 405),
        ("DELETE", "/conversations", 405),
        ("BREW", "/nodes", 405),
        ("GET", "/conversations/c1/messages", 405),
    ],
)
async def test_unknown_routes_and_methods(tried, method, path, status):
    answer = await tried(method, path, must_fail=True)
    assert answer.status_code == status
    if status == 405:
        assert answer.headers["allow"]
