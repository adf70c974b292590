"""The process around a node, without the process: its options, its logs, its exit codes, where it says that it is."""

import json
import logging
import socket
import sys

import pytest
from typer.testing import CliRunner

from tenure.cli.compose import local_url, located, mask_of
from tenure.cli.exits import Exit, exit_code, line
from tenure.cli.logs import JsonLines, Lines
from tenure.cli.settings import agents_of
from tenure.cli.tree import tree
from tenure.clock import Instant
from tenure.config import Config
from tenure.errors import (
    CommandRefusedError,
    ConversationExistsError,
    ConversationOwnedElsewhereError,
    InvalidInputError,
    NodeUnavailableError,
    Owner,
    StoreUnavailableError,
    UnknownConversationError,
)
from tenure.lease import Epoch, IncarnationId
from tenure.vault import Mask, Secret

NO_SECRETS = Mask([])
RUN = CliRunner(env=dict.fromkeys(("TENURE_API_KEY", "TENURE_HOST", "TENURE_TTL_S")))


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("tenure.node", logging.WARNING, "x.py", 1, message, args, None)
    made.created = 0.25
    made.__dict__.update(extra)
    return made


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--ttl-s", "0.01"], "ttl_s"),
        (["--ttl-s", "1", "--sweep-s", "50"], "sweep_s"),
        (["--host", "0.0.0.0"], "host"),
        (["--host", "x" * 300, "--insecure"], "host"),
        (["--port", "70000"], "port"),
        (["--node", "a/b"], "node"),
        (["--store", "gopher://x"], "store"),
        (["--store", "memory:", "--agent", "nonsense"], "agent"),
        (["--store", "memory:", "--runtime", "nonsense"], "runtime"),
    ],
)
@pytest.mark.blocking_ok  # a process that is not yet a node may block
def test_bad_settings_are_one_line_with_the_field(arguments: list[str], field: str):
    done = RUN.invoke(tree, ["serve", "--port", "0", *arguments])
    assert done.exit_code == Exit.USAGE
    assert done.stderr.startswith(f"tenure: {field}: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["serve", "--port", "x"], ["serve", "--nonsense"], ["nonsense"]])
def test_bad_usage_is_two(arguments: list[str]):
    assert RUN.invoke(tree, arguments).exit_code == Exit.USAGE


def test_a_setting_of_the_environment_is_named_by_its_variable():
    done = RUN.invoke(tree, ["serve"], env={"TENURE_TTL_S": "soon"})
    assert done.exit_code == Exit.USAGE
    assert "TENURE_TTL_S" in done.stderr


@pytest.mark.blocking_ok  # as above
def test_a_taken_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = RUN.invoke(tree, ["serve", "--store", "memory:", "--port", str(port)])
    assert done.exit_code == Exit.USAGE
    assert f"127.0.0.1:{port}" in done.stderr


def test_every_setting_but_the_key_is_an_option():
    text = RUN.invoke(tree, ["serve", "--help"], terminal_width=300).stdout
    settings = set(Config.__dataclass_fields__) - {
        "api_key",
        "runtime_token",
    }  # it would stand in the list of processes
    assert {name for name in settings if f"--{name.replace('_', '-')} " not in text} == set()
    assert {name for name in settings if f"TENURE_{name.upper()}" not in text} == set()


def test_agents_come_from_the_options_or_else_from_the_environment():
    assert agents_of(["a:b"], {"TENURE_AGENT": "c:d"}) == ["a:b"]
    assert agents_of(None, {"TENURE_AGENT": "c:d, scripted"}) == ["c:d", "scripted"]
    assert agents_of(None, {}) == []


def test_version():
    done = RUN.invoke(tree, ["--version"])
    assert done.exit_code == 0
    assert done.stdout.startswith("tenure 0.")


def test_exit_codes_are_in_the_help():
    text = RUN.invoke(tree, ["--help"]).stdout
    assert "Exit codes" in text
    assert "5 unavailable" in text


# --- where it is ----------------------------------------------------------------------------------------------------


def test_the_address_holds_the_port_that_was_chosen():
    assert located(Config(port=0), 4711).public_address == "http://127.0.0.1:4711"
    assert located(Config(port=0, address="http://me"), 4711).public_address == "http://me"


def test_a_node_that_listens_everywhere_is_known_by_its_host():
    config = located(Config(host="0.0.0.0", insecure=True, port=0), 4711)
    assert config.public_address == f"http://{socket.gethostname()}:4711"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_local_url(host: str, url: str):
    assert local_url(host, 80) == url


# --- logs -----------------------------------------------------------------------------------------------------------


def test_a_line_has_time_level_source_message_and_what_was_said_beside_it():
    text = Lines(NO_SECRETS).format(record("lost %s", "it", conversation="c 1", epoch=3))
    assert text == '1970-01-01T00:00:00.250Z warning tenure.node: lost it conversation="c 1" epoch=3'


def test_further_lines_are_indented():
    try:
        raise ValueError("x")
    except ValueError:
        failed = record("it\nfailed")
        failed.exc_info = sys.exc_info()
    first, *more = Lines(NO_SECRETS).format(failed).splitlines()
    assert first.endswith("tenure.node: it")
    assert all(one.startswith("    ") for one in more)
    assert more[-1].endswith("ValueError: x")


def test_json_lines():
    told = json.loads(JsonLines(NO_SECRETS).format(record("lost", conversation="c-1", epoch=3)))
    assert told == {
        "at": Instant(0.25).isoformat(),
        "level": "warning",
        "logger": "tenure.node",
        "message": "lost",
        "conversation": "c-1",
        "epoch": 3,
    }


@pytest.mark.parametrize("form", [Lines, JsonLines])
def test_secrets_are_never_logged(form: type[Lines] | type[JsonLines]):
    config = Config(api_key='key"with quote', store="redis://u:pass%2Fword@h/0?sentinel_password=hidden-too")
    mask = mask_of(config, {"TENURE_SECRET_KEYS": "first-key, second-key"})
    said = ['key"with quote', "pass/word", "pass%2Fword", "hidden-too", "first-key", "second-key"]
    text = form(mask).format(record("using %s", " ".join(said), url=config.store))
    assert not [secret for secret in said if secret in text or json.dumps(secret)[1:-1] in text]


def test_masking_keeps_json_whole():
    mask = Mask([Secret('a"quoted')])
    assert json.loads(JsonLines(mask).format(record('got a"quoted one')))["message"].startswith("got ")


# --- exit codes -----------------------------------------------------------------------------------------------------

OWNER = Owner("b", IncarnationId("i"), "http://b", Epoch(2), Instant(0), 1.0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInputError("x", "y", "z"), Exit.USAGE),
        (UnknownConversationError("c"), Exit.NOT_FOUND),
        (ConversationOwnedElsewhereError("c", OWNER), Exit.CONFLICT),
        (ConversationExistsError("c"), Exit.CONFLICT),
        (CommandRefusedError("c", "conversation-stopped", "stopped"), Exit.CONFLICT),
        (CommandRefusedError("c", "too-many-unsettled", "too many"), Exit.UNAVAILABLE),
        (NodeUnavailableError("draining"), Exit.UNAVAILABLE),
        (StoreUnavailableError("gone"), Exit.UNAVAILABLE),
        (RuntimeError("x"), Exit.FAILED),
    ],
)
def test_exit_code(error: Exception, code: Exit):
    assert exit_code(error) is code


def test_an_error_is_one_line():
    assert line(InvalidInputError("x", "two\nlines", "mend it")) == "x: two lines; mend it"
    assert line(RuntimeError()) == "RuntimeError: RuntimeError"
