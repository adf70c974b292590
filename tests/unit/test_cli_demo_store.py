"""Which store the demo plays on: one of its own, or one that is named."""

import subprocess
from pathlib import Path

import psycopg
import pytest

from tenure.cli.demo import own
from tenure.errors import InvalidInputError
from tenure.testing import postgres, servers

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("store", [None, "sqlite"])
def test_its_own_file_lies_in_its_folder(tmp_path: Path, store: str | None):
    own.check_store(store)
    with own.begun(store, tmp_path) as url:
        assert url == f"sqlite:///{tmp_path}/demo.db"


def test_its_own_server_lives_as_long_as_the_demo(tmp_path: Path):
    own.check_store("redis")
    with own.begun("redis", tmp_path) as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
        with servers.Console(port) as console:
            assert console.say("PING") == b"PONG"
    with pytest.raises(OSError, match="refused"):
        servers.Console(port)


def test_its_own_postgres_lives_as_long_as_the_demo(tmp_path: Path):
    own.check_store("postgres")
    with own.begun("postgres", tmp_path) as url:
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(url)


def test_no_postgres_to_start_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(postgres, "postgres_binaries", dict)
    with pytest.raises(InvalidInputError, match=r"no postgres .* --store postgresql://"):
        own.check_store("postgres")


def test_one_that_is_named_is_taken_as_it_is(tmp_path: Path):
    own.check_store("redis://127.0.0.1:1/0")
    with own.begun("redis://127.0.0.1:1/0", tmp_path) as url:
        assert url == "redis://127.0.0.1:1/0"


def test_no_server_to_start_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(servers, "redis_binaries", dict)
    with pytest.raises(InvalidInputError, match=r"no redis-server .* --store redis://"):
        own.check_store("redis")


def test_what_lives_in_one_process_is_refused():
    with pytest.raises(InvalidInputError, match="one process"):
        own.check_store("memory:")


@pytest.mark.parametrize(
    ("store", "groups"), [("", "core"), ("sqlite", "core"), ("redis", "all"), ("redis://127.0.0.1:1/0", "all")]
)
def test_make_demo_sets_up_what_its_store_needs(store: str, groups: str):
    command = ["make", "-n", "demo", *([f"STORE={store}"] if store else [])]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"scripts/setup {groups}" in said
