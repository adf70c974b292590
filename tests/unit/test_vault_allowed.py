"""What a conversation may ask a node for, and what makes a credential: nothing that the operator did not allow."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tenure.config import Config
from tenure.errors import CredentialError, InvalidInputError
from tenure.vault import Allowed, Mask, Secret, Veil, credentials, obtain, resolving


async def unseal(name: str) -> Secret | None:
    return Secret("the-refresh-token") if name == "refresh" else None


def asked(credential: Any) -> Any:
    return credentials({"credentials": {"TOKEN": credential}})["TOKEN"]


def allowed(**lists: str) -> Allowed:
    return Allowed.of(Config(**{f"allow_{name}": text for name, text in lists.items()}))


# --- the allow-list -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("credential", "remedy"),
    [
        ("env:LLM_KEY", "--allow-env 'LLM_KEY' (TENURE_ALLOW_ENV)"),
        ("file:/run/secrets/token", "--allow-file '/run/secrets' (TENURE_ALLOW_FILE)"),
        ({"refresh": {"command": ["/opt/mint", "x"]}}, "--allow-command '/opt/mint' (TENURE_ALLOW_COMMAND)"),
        ({"refresh": {"url": "https://t/x/y?a=b"}}, "--allow-url 'https://t/x/' (TENURE_ALLOW_URL)"),
    ],
    ids=["env", "file", "command", "url"],
)
def test_nothing_of_the_node_is_given_by_default(credential: Any, remedy: str):
    with pytest.raises(CredentialError) as refused:
        Allowed().insist(asked(credential))
    assert remedy in str(refused.value) and "vault:NAME" in str(refused.value)
    Allowed().insist(asked("vault:token"))


@pytest.mark.parametrize(
    ("lists", "credential", "fine"),
    [
        ({"env": "LLM_*, GH"}, "env:LLM_KEY", True),
        ({"env": "LLM_*, GH"}, "env:GH", True),
        ({"env": "LLM_*, GH"}, "env:GHX", False),
        ({"file": "/run/secrets/"}, "file:/run/secrets/a/b", True),
        ({"file": "/run/secrets"}, "file:/run/secrets-of-others/a", False),
        ({"file": "/run/secrets"}, "file:/run/secrets/../shadow", False),
        ({"file": "/run/secrets"}, "file:/run/secrets//a", False),
        ({"command": "/opt/mint"}, {"refresh": {"command": ["/opt/mint", "any"]}}, True),
        ({"command": "/opt/mint"}, {"refresh": {"command": ["/opt/mint2"]}}, False),
        ({"url": "https://t.internal/"}, {"refresh": {"url": "https://t.internal/a"}}, True),
        ({"url": "https://t.internal/"}, {"refresh": {"url": "https://t.internal.evil.com/a"}}, False),
        ({"url": "https://t.internal/v1/"}, {"refresh": {"url": "https://t.internal/v1/../admin"}}, False),
        ({"url": "https://t.internal/v1/"}, {"refresh": {"url": "https://t.internal/v1/%2e%2e/admin"}}, False),
        ({"command": "/opt/mint"}, {"refresh": {"command": ["/opt/mint"]}, "from": "env:HOME"}, False),
    ],
    ids=str,
)
def test_what_is_allowed(lists: dict[str, str], credential: Any, fine: bool):
    if fine:
        allowed(**lists).insist(asked(credential))
    else:
        with pytest.raises(CredentialError):
            allowed(**lists).insist(asked(credential))


@pytest.mark.parametrize("name", ["TENURE_API_KEY", "tenure_secret_keys"])
def test_the_nodes_own_settings_are_nobodys(name: str):
    assert not allowed(env="*").passes(name) and allowed(env="*").passes("HOME")
    with pytest.raises(InvalidInputError):
        asked(f"env:{name}")


@pytest.mark.parametrize(
    "lists",
    [
        {"file": "relative"},
        {"file": "/"},
        {"file": "/a/../b"},
        {"command": "mint"},
        {"url": "https://host"},
        {"url": "https://host/x"},
        {"url": "file:///etc/"},
    ],
    ids=str,
)
def test_a_list_that_says_something_else_than_was_meant_is_refused(lists: dict[str, str]):
    with pytest.raises(InvalidInputError, match=r"correct TENURE_ALLOW_"):
        allowed(**lists)


async def test_a_link_out_of_the_folder_leads_nowhere(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "outside").write_text("not for conversations")
    (tmp_path / "in" / "real").write_text("for-conversations")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "in" / "real")
    (tmp_path / "in" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "alias").symlink_to(tmp_path / "in")
    for folder in ("in", "alias"):
        fine = allowed(file=f"{tmp_path}/{folder}")
        for name in ("real", "link"):
            got = await obtain(asked(f"file:{tmp_path}/{folder}/{name}"), unseal, fine)
            assert got.secret.reveal() == "for-conversations"
        with pytest.raises(CredentialError, match="leads out of the allowed folder"):
            await obtain(asked(f"file:{tmp_path}/{folder}/out"), unseal, fine)


# --- what is made ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"refresh": {"command": []}},
        {"refresh": {"command": ["mint"]}},
        {"refresh": {"command": ["/mint", 3]}},
        {"refresh": {"command": ["/mint"], "url": "https://x/"}},
        {"refresh": {"url": "https://user:pass@host/"}},
        {"refresh": {"url": "ftp://host/"}},
        {"refresh": {"url": "https:///x"}},
        {"refresh": "https://host/"},
        {"refresh": {"command": ["/mint"]}, "ttl_s": 0.5},
        {"from": "env:X", "ttl_s": True},
        {"from": "env:X", "every": 3},
        {"from": "sk-live-secret"},
        {"ttl_s": 3},
    ],
    ids=str,
)
def test_what_is_no_credential_is_refused_and_not_repeated(wrong: Any):
    with pytest.raises(InvalidInputError) as refused:
        asked(wrong)
    assert refused.value.field.startswith("settings.credentials.TOKEN")
    assert "sk-live" not in str(refused.value) and "user:pass" not in str(refused.value)


def program(folder: Path, body: str) -> str:
    file = folder / "mint"
    file.write_text(f"#!{sys.executable}\nimport json, os, sys, time\n{body}\n")
    file.chmod(0o700)
    return str(file)


async def test_a_command_makes_a_value_of_what_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mint = program(
        tmp_path,
        "given = sys.stdin.read()\n"
        "print(json.dumps({'access_token': given + sys.argv[1] + str(sorted(os.environ)), 'expires_in': 90}))",
    )
    monkeypatch.setenv("TENURE_SECRET_KEYS", "never")
    monkeypatch.setenv("MY_OWN", "never")
    monkeypatch.setenv("LLM_KEY", "fine")
    credential = asked({"from": "vault:refresh", "refresh": {"command": [mint, "+arg+"]}, "ttl_s": 5})
    got = await obtain(credential, unseal, allowed(command=mint, env="LLM_*"))
    value = got.secret.reveal()
    assert value.startswith("the-refresh-token+arg+") and "LLM_KEY" in value
    assert "TENURE" not in value and "MY_OWN" not in value
    assert got.lasts_s == 90 and [s.reveal() for s in got.known] == [value, "the-refresh-token"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("print('SECRET'); sys.exit(3)", "ended with 3"),
        ("time.sleep(600)", "had not ended after"),
        ("pass", "gave no value"),
        ('print(\'{"token": "SECRET"}\')', "gave no value"),
        ("print('{SECRET')", "gave no value"),
        ("sys.stdout.buffer.write(b'\\xffSECRET')", "gave no value"),
        ("print('SECRET' * 20000)", "gave no value"),
    ],
    ids=["fails", "hangs", "silent", "other words", "no json", "no text", "too long"],
)
async def test_a_command_that_gives_no_value_is_named_without_its_output(
    tmp_path: Path, body: str, says: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(resolving, "ANSWER_S", 1.0 if "sleep" in body else 30.0)
    mint = program(tmp_path, body)
    with pytest.raises(CredentialError, match=says) as refused:
        await obtain(asked({"refresh": {"command": [mint]}}), unseal, allowed(command=mint))
    assert refused.value.reference == f"command:{mint}" and "SECRET" not in str(refused.value)


async def test_a_program_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(CredentialError, match="cannot be run on this node: No such file"):
        await obtain(asked({"refresh": {"command": [f"{tmp_path}/x"]}}), unseal, allowed(command=f"{tmp_path}/x"))


def answering(monkeypatch: pytest.MonkeyPatch, reply: Any) -> list[httpx.Request]:
    heard: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        heard.append(request)
        return reply

    real = httpx.AsyncClient
    monkeypatch.setattr(
        httpx, "AsyncClient", lambda **how: real(transport=httpx.MockTransport(answer), timeout=how["timeout"])
    )
    return heard


async def test_a_url_is_asked_with_what_it_is_given(monkeypatch: pytest.MonkeyPatch):
    heard = answering(monkeypatch, httpx.Response(200, json={"access_token": "fresh-one", "expires_in": 60}))
    credential = asked({"from": "vault:refresh", "refresh": {"url": "https://t/x?aud=1"}})
    got = await obtain(credential, unseal, allowed(url="https://t/"))
    assert (got.secret.reveal(), got.lasts_s) == ("fresh-one", 60)
    assert (heard[0].method, heard[0].headers["authorization"]) == ("POST", "Bearer the-refresh-token")


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (httpx.Response(302, headers={"location": "https://evil/"}), "answered 302"),
        (httpx.Response(401, text="SECRET"), "answered 401"),
        (httpx.Response(200, text=json.dumps({"SECRET": 1})), "gave no value"),
        (httpx.Response(200, text="SECRET" * 100_000), "gave no value"),
    ],
    ids=["redirect", "refusal", "other words", "too long"],
)
async def test_a_url_that_gives_no_value_is_named_without_its_answer(monkeypatch: Any, reply: Any, says: str):
    heard = answering(monkeypatch, reply)
    with pytest.raises(CredentialError, match=says) as refused:
        await obtain(asked({"refresh": {"url": "https://t/x?aud=1"}}), unseal, allowed(url="https://t/"))
    assert refused.value.reference == "url:https://t/x" and "SECRET" not in str(refused.value) and len(heard) == 1


# --- the veil -------------------------------------------------------------------------------------------------------


def test_a_veil_hides_what_is_known_and_a_while_longer():
    always, first, second = (Mask([Secret(f"{word}-secret")]) for word in ("always", "first", "second"))
    veil = Veil(always)
    veil.put_on(first)
    veil.put_on(second)
    assert veil.text("always-secret first-secret second-secret") == "<secret> <secret> <secret>"
    veil.take_off(first)
    assert "first" not in veil.text("first-secret"), "what was cancelled may yet say something"
    for number in range(300):
        passing = Mask([Secret(f"passing-{number}")])
        veil.put_on(passing)
        veil.take_off(passing)
    assert veil.text("first-secret second-secret") == "first-secret <secret>", "but not for ever"
    assert repr(veil) == "Veil(<secret>)" and os.sep
