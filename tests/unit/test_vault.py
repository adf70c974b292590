"""Secrets: no form but ``reveal()``, references that name no value, keys that rotate, and the mask over what is written."""

import base64
import copy
import json
import logging
import pickle
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from tenure.abc import Creation, Submit
from tenure.errors import InvalidInputError
from tenure.journal import Json
from tenure.stores.memory import MemoryStore
from tenure.vault import (
    KEYS_SETTING,
    LONGEST,
    MASKED,
    SHORTEST,
    CredentialError,
    Keys,
    Mask,
    Reference,
    Secret,
    alike,
    cleanly_cut,
    credentials,
    resolve,
    unsealing,
)

VALUE = 'p@ss "wörd"/+?&=\\x'
KEY, OLD_KEY = Fernet.generate_key().decode(), Fernet.generate_key().decode()


async def no_vault(name: str) -> Secret | None:
    return None


# --- a secret -------------------------------------------------------------------------------------------------------


@dataclass
class Holder:
    secret: Secret


@pytest.mark.parametrize(
    "leak",
    [
        str,
        "{}".format,
        "{:>10}".format,
        lambda s: f"{s}",
        "%s".__mod__,
        json.dumps,
        pickle.dumps,
        list,
        dict,
        vars,
        bytes,
    ],
    ids=["str", "format", "format with a width", "f-string", "%", "json", "pickle", "list", "dict", "vars", "bytes"],
)
def test_a_secret_has_no_form(leak: Any):
    with pytest.raises(TypeError) as refused:
        leak(Secret(VALUE))
    assert VALUE not in str(refused.value)


def test_what_shows_a_secret_shows_that_it_is_one(caplog: pytest.LogCaptureFixture):
    secret = Secret(VALUE)
    assert repr(secret) == f"Secret({MASKED})" and VALUE not in repr(Holder(secret))
    logging.getLogger("x").warning("%r", secret)
    assert VALUE not in caplog.text
    assert copy.deepcopy(secret) is secret and copy.copy(secret) is secret
    assert asdict(Holder(secret))["secret"].reveal() == VALUE
    assert not hasattr(secret, "__dict__")


def test_secrets_are_equal_by_value_and_have_no_hash():
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    with pytest.raises(TypeError):
        hash(Secret("a"))


@pytest.mark.parametrize("value", ["", "x" * (LONGEST + 1)])
def test_a_secret_has_bounds(value: str):
    with pytest.raises(ValueError, match=f"1 to {LONGEST} characters"):
        Secret(value)


# --- references -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["env:TOKEN", "env:_a1", "file:/run/secrets/token", "vault:github.token-1"])
def test_a_reference_is_read_and_written_alike(text: str):
    assert str(Reference.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "ghp_AbCdEf",
        "",
        "env:",
        "env:A B",
        "env:1A",
        "env:" + "x" * 129,
        "env:TENURE_SECRET_KEYS",
        "env:TENURE_API_KEY",
        "file:relative",
        "file:/a\0b",
        "file:" + "/x" * 3000,
        "vault:",
        "vault:../x",
        "vault:-x",
        "https://user:pass@host",
        "sk-live:AbCdEf",
        None,
        3,
        {"env": "X"},
    ],
    ids=ascii,
)
def test_what_is_no_reference_is_refused_and_not_repeated(text: Any):
    with pytest.raises(InvalidInputError) as refused:
        Reference.parse(text, "settings.credentials.TOKEN")
    assert refused.value.field == "settings.credentials.TOKEN"
    assert "env:NAME, file:/absolute/path or vault:NAME" in str(refused.value)
    for part in ("AbCdEf", "pass@", "../x"):
        assert part not in str(refused.value)


def test_settings_name_their_credentials():
    assert credentials({}) == {} == credentials({"credentials": None})
    found = credentials({"credentials": {"TOKEN": "env:MY_TOKEN", "KEY": "vault:key"}})
    assert {name: str(reference) for name, reference in found.items()} == {"TOKEN": "env:MY_TOKEN", "KEY": "vault:key"}
    with pytest.raises(InvalidInputError, match="at most 100"):
        credentials({"credentials": {f"A{n}": "env:A" for n in range(101)}})


async def test_the_environment_is_looked_up_as_it_is_now(monkeypatch: pytest.MonkeyPatch):
    reference = Reference.parse("env:MY_TOKEN")
    monkeypatch.setenv("MY_TOKEN", "one")
    assert (await resolve(reference, no_vault)).reveal() == "one"
    monkeypatch.setenv("MY_TOKEN", "two")
    assert (await resolve(reference, no_vault)).reveal() == "two"
    assert (await resolve(reference, no_vault, {"MY_TOKEN": "given"})).reveal() == "given"


@pytest.mark.parametrize(
    ("content", "value"), [(b"tok", "tok"), (b"tok\n", "tok"), (b"a\r\n", "a"), ("ü\n\n".encode(), "ü\n")]
)
async def test_a_file_is_read_without_its_last_line_end(tmp_path: Path, content: bytes, value: str):
    (tmp_path / "token").write_bytes(content)
    assert (await resolve(Reference.parse(f"file:{tmp_path}/token"), no_vault)).reveal() == value


@pytest.mark.parametrize(
    ("text", "environ", "says"),
    [
        ("env:MISSING", {}, "env:MISSING: is not set on this node; set it, then start the node again"),
        ("env:EMPTY", {"EMPTY": ""}, "is not set"),
        ("env:LONG", {"LONG": "x" * (LONGEST + 1)}, "1 to 65536 characters; store one secret there"),
        ("vault:token", {}, "vault:token: is not in this conversation's vault; put a secret named token there"),
    ],
    ids=["missing", "empty", "long", "vault"],
)
async def test_what_has_no_value_names_the_reference_and_the_remedy(text: str, environ: Mapping[str, str], says: str):
    with pytest.raises(CredentialError) as missing:
        await resolve(Reference.parse(text), no_vault, environ)
    assert missing.value.reference == text and says in str(missing.value)
    assert "xxx" not in str(missing.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: None, "cannot be read on this node: No such file"),
        (lambda file: file.mkdir(), "cannot be read on this node: Is a directory|is no regular file"),
        (lambda file: file.write_bytes(b"\xff\xfeSECRET"), "is not text"),
        (lambda file: file.write_bytes(b""), "1 to 65536 characters"),
        (lambda file: file.write_bytes(b"SECRET" * LONGEST), "1 to 65536 characters"),
    ],
    ids=["missing", "folder", "binary", "empty", "large"],
)
async def test_a_file_that_holds_no_secret(tmp_path: Path, make: Any, says: str):
    make(tmp_path / "token")
    with pytest.raises(CredentialError, match=says) as refused:
        await resolve(Reference.parse(f"file:{tmp_path}/token"), no_vault)
    assert "SECRET" not in str(refused.value)


# --- keys -----------------------------------------------------------------------------------------------------------


def test_the_first_key_writes_and_all_of_them_read():
    old = Keys([OLD_KEY]).seal("c", "token", Secret(VALUE))
    both = Keys([KEY, OLD_KEY])
    assert both.unseal("c", "token", old).reveal() == VALUE
    new = both.seal("c", "token", Secret(VALUE))
    assert Keys([KEY]).unseal("c", "token", new) == Secret(VALUE)
    with pytest.raises(CredentialError, match="none of the 1 keys in TENURE_SECRET_KEYS reads it; add the key"):
        Keys([OLD_KEY]).unseal("c", "token", new)
    again = both.reseal(old)
    assert Keys([KEY]).unseal("c", "token", again) == Secret(VALUE)
    with pytest.raises(CredentialError, match="none of the keys"):
        Keys([KEY]).reseal(old)
    assert VALUE.encode() not in new and new != both.seal("c", "token", Secret(VALUE))


@pytest.mark.parametrize(("conversation", "name"), [("d", "token"), ("c", "other")])
def test_a_ciphertext_that_was_moved_is_not_read(conversation: str, name: str):
    keys = Keys([KEY])
    with pytest.raises(CredentialError, match="sealed for something else"):
        keys.unseal(conversation, name, keys.seal("c", "token", Secret(VALUE)))


def test_keys_are_named_without_being_shown():
    keys = Keys([KEY, OLD_KEY])
    assert len(set(keys.ids)) == 2 and all(len(name) == 8 for name in keys.ids)
    assert KEY not in repr(keys) and OLD_KEY not in str(keys.ids)


@pytest.mark.parametrize("text", ["nonsense-key", f"{KEY},nonsense-key", "short"], ids=["alone", "second", "short"])
def test_a_key_that_is_none_is_named_by_its_place(text: str):
    with pytest.raises(CredentialError) as refused:
        Keys.load({KEYS_SETTING: text})
    assert f"key {text.count(',') + 1} is no Fernet key" in str(refused.value) and KEYS_SETTING in str(refused.value)
    assert "nonsense" not in str(refused.value) and KEY not in str(refused.value)


def test_without_keys_there_are_none():
    assert Keys.load({}) is None
    assert Keys.load({KEYS_SETTING: "  "}) is None
    with pytest.raises(CredentialError, match="holds no key"):
        Keys([])


def test_the_embedded_store_has_a_key_file_beside_it(tmp_path: Path):
    store = tmp_path / "tenure.db"
    keys = Keys.load({}, store)
    assert keys is not None
    file = tmp_path / "tenure.db.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file], "no draft is left"
    again = Keys.load({}, store)
    assert again is not None and again.ids == keys.ids
    given = Keys.load({KEYS_SETTING: f" {KEY} , {OLD_KEY},"}, store)
    assert given is not None and given.ids == Keys([KEY, OLD_KEY]).ids
    file.write_text(f"{KEY}\n{OLD_KEY}\n")
    several = Keys.load({}, store)
    assert several is not None and several.ids == given.ids


def test_nodes_that_start_together_agree_on_one_key(tmp_path: Path):
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: Keys.load({}, tmp_path / "db"), range(16)))
    assert len({keys.ids for keys in found if keys}) == 1


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path):
    Keys.load({}, tmp_path / "db")
    (tmp_path / "db.key").chmod(0o640)
    with pytest.raises(CredentialError, match=r"has the mode 640: others may read the keys; chmod 600"):
        Keys.load({}, tmp_path / "db")


async def test_the_vault_of_a_conversation_in_a_store():
    keys = Keys([KEY])
    async with MemoryStore() as store:
        await store.submit(Submit("c", None, Creation(default_agent="a")))
        assert await unsealing(store, keys, "c")("token") is None
        await store.seal("c", "token", keys.seal("c", "token", Secret(VALUE)), 0)
        found = await resolve(Reference.parse("vault:token"), unsealing(store, keys, "c"))
        assert found.reveal() == VALUE
        with pytest.raises(CredentialError, match=r"this node has no keys; set TENURE_SECRET_KEYS on every node"):
            await unsealing(store, None, "c")("token")


# --- the mask -------------------------------------------------------------------------------------------------------


def forms_of(value: str) -> dict[str, str]:
    """The texts in which a value travels."""
    raw = value.encode()
    basic = base64.b64encode(b"user:" + raw).decode()
    return {
        "plain": f"-- {value} --",
        "in json": json.dumps({"a": value}),
        "in json, not ascii": json.dumps({"a": value}, ensure_ascii=False),
        "in json in json": json.dumps({"a": json.dumps({"b": value})}),
        "in a url": f"https://x/?t={quote(value, safe='')}&y",
        "in a path": f"https://x/{quote(value)}/y",
        "in a form": f"t={quote_plus(value)}",
        "in a url, small letters": f"t={quote(value, safe='').replace('%C3', '%c3').replace('%2F', '%2f')}",
        "base64": base64.b64encode(raw).decode(),
        "base64, other letters": base64.urlsafe_b64encode(raw).decode(),
        "basic": f"Authorization: Basic {basic}",
        "in a longer base64": base64.b64encode(b"{'key': '" + raw + b"', 'more': 1}").decode(),
    }


def traces(value: str, text: str) -> bool:
    """Whether the value can be read out of the text: as it is, or from what base64 of it is left."""
    return value in text or any(form in text for form in (quote(value, safe=""), json.dumps(value)[1:-1]))


@pytest.mark.parametrize("value", [VALUE, "abcdef", "ghp_0123456789abcdefABCDEF", "ünïcödé-secret"])
@pytest.mark.parametrize("form", list(forms_of("x" * 9)))
def test_a_known_value_is_masked_in_every_form(value: str, form: str):
    text = forms_of(value)[form]
    masked = Mask([Secret(value)]).text(text)
    assert MASKED in masked and not traces(value, masked)
    for offset in range(3):
        fragment = base64.b64encode(bytes(offset) + value.encode())[4:-4].decode()
        assert len(fragment) < 6 or fragment not in masked


@given(st.text(min_size=SHORTEST, max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_no_text_keeps_a_value(value: str, before: str, after: str):
    if len(value.strip()) < SHORTEST or value in MASKED:
        return
    masked = Mask([Secret(value)]).text(f"{before}{value}{after}")
    assert value not in masked.replace(MASKED, "\0")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_what_holds_no_secret_stays_as_it_is(value: Any):
    mask = Mask([Secret("a-secret-that-nobody-says")])
    assert mask.json(value) == value
    assert Mask([]).json(value) is value


def test_secrets_are_masked_wherever_they_are_nested():
    mask = Mask([Secret("tok-en-1"), Secret("123456789")])
    body: Json = {"a": [{"tok-en-1": "x", "b": ("say tok-en-1!", 1)}], "n": 123456789, "m": 5, "t": True, "z": None}
    assert mask.json(body) == {
        "a": [{MASKED: "x", "b": [f"say {MASKED}!", 1]}],
        "n": MASKED,
        "m": 5,
        "t": True,
        "z": None,
    }
    assert mask.object({"x": "tok-en-1"}) == {"x": MASKED}


def test_the_longer_of_two_secrets_goes_first():
    assert Mask([Secret("secret"), Secret("secret-longer")]).text("a secret-longer b") == f"a {MASKED} b"


def test_a_secret_of_several_lines_is_masked_line_by_line():
    pem = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\nshort\n-----END KEY-----\n"
    mask = Mask([Secret(pem)])
    assert mask.text(pem) == MASKED
    assert mask.text("leaked MIIEvQIBADANBgkqhkiG here") == f"leaked {MASKED} here"
    assert mask.text("short") == "short"
    assert Mask([Secret("tok-en-1\n")]).text("tok-en-1") == MASKED


@given(
    st.text("p@a/ \\'", max_size=12),
    st.sampled_from([*forms_of(VALUE), "twice"]),
    st.integers(0, 200),
    st.integers(0, 20),
)
def test_a_text_is_never_cut_within_a_value(before: str, form: str, at: int, gap: int):
    """However a text is cut, what stays is what a mask of the whole text would have left: no part of a value."""
    said = f"{VALUE}{VALUE[:4]}{VALUE}" if form == "twice" else forms_of(VALUE)[form]
    text = f"{before}{said}the end".encode()
    head, tail = cleanly_cut(text[:at], text[at + gap :], [VALUE])
    assert text.startswith(head) and text.endswith(tail)
    mask = Mask([Secret(VALUE)])
    clean = mask.text(text.decode()).encode()
    for kept, rest in (
        (mask.text(head.decode()).encode(), clean),
        (mask.text(tail.decode()).encode()[::-1], clean[::-1]),
    ):
        assert rest.startswith(kept), (kept, rest)


def test_what_is_cut_away_with_a_value_is_no_more_than_its_part():
    value = "tok-en-1-and-more"
    text = f"{'.' * 50}{value}{'!' * 50}".encode()
    assert cleanly_cut(text[:60], text[62:], [value]) == (b"." * 50, b"!" * 50)
    assert cleanly_cut(text[:67], text[67:], [value]) == (text[:67], text[67:]), "it is whole"
    assert cleanly_cut(text[:30], text[80:], [value]) == (text[:30], text[80:])
    assert cleanly_cut(text[:60], text[62:], ["short"]) == (text[:60], text[62:])


def test_values_that_are_too_short_are_passed_over():
    mask = Mask([Secret("12345"), Secret("a")])
    assert not mask and mask.text("12345 a b") == "12345 a b"
    assert Mask([Secret("123456")])


def test_a_mask_shows_nothing():
    assert "tok-en" not in repr(Mask([Secret("tok-en-1")]))


# --- what a replay compares -----------------------------------------------------------------------------------------


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=10,
    ),
    st.sampled_from(["tok-en-1", "123456"]),
)
def test_what_was_masked_is_alike_to_what_it_was(value: Any, secret: str):
    body = {"v": value, "s": [secret, f"a {secret} b {secret}"], secret: 1}
    assert alike(Mask([Secret(secret)]).json(body), body)


@pytest.mark.parametrize(
    ("recorded", "fresh", "same"),
    [
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ([1, 2], (1, 2), True),
        ([1], [1, 2], False),
        ([], {}, False),
        ({}, [], False),
        ("1", 1, False),
        (1, True, False),
        (0, False, False),
        (None, 0, False),
        (None, None, True),
        (1.0, 1, True),
        (MASKED, "anything", True),
        (MASKED, 123456, True),
        (MASKED, True, False),
        (MASKED, None, False),
        (MASKED, ["x"], False),
        ("anything", MASKED, False),
        (f"a{MASKED}b", "aXYZb", True),
        (f"a{MASKED}b", "ab", True),
        (f"a{MASKED}b", "axc", False),
        (f"ab{MASKED}ba", "aba", False),
        (f"{MASKED}x{MASKED}", "1x2", True),
        (f"{MASKED}x{MASKED}", "12", False),
        (f"a{MASKED}m{MASKED}m{MASKED}z", "a1m2z", False),
        ({MASKED: 1}, {"tok": 1}, True),
        ({MASKED: 1}, {}, True),
    ],
    ids=str,
)
def test_alike(recorded: Json, fresh: Json, same: bool):
    assert alike(recorded, fresh) is same
