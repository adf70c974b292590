"""The settings: read from the environment, and refused with the setting, its limit and the remedy."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure.config import _LIMITS, Config, env_name, is_loopback
from tenure.errors import InvalidInputError
from tenure.lease import Timing


def refused(**given_settings: object) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        Config(**given_settings)  # type: ignore[arg-type]
    return caught.value


def test_the_defaults_fit_together():
    config = Config()
    assert config.store.startswith("sqlite:///")
    assert (config.host, config.ttl_s, config.idle_s, config.drain_s) == ("127.0.0.1", 3.0, 300.0, 20.0)
    assert config.timing == Timing.of_ttl(3.0)
    assert config.public_address == f"http://127.0.0.1:{config.port}"
    assert Config().node != Config().node, "two nodes of one machine have two names"


@pytest.mark.parametrize(("name", "low", "high"), _LIMITS)
def test_every_number_has_limits(name: str, low: float, high: float):
    kind = type(getattr(Config(), name))
    room = {"ttl_s": 3600.0} if name == "sweep_s" else {}
    for fine in (low, high):
        assert getattr(Config(**{name: kind(fine)}, **room), name) == fine
    for over in (kind(low) - kind(1), kind(high) + kind(1)):
        error = refused(**{name: over})
        assert (error.field, error.remedy) == (name, f"set {env_name(name)}")
        assert f"must lie in {low:g} to {high:g}" in str(error)


def test_every_number_but_the_ttl_is_in_the_table_of_limits():
    numbers = {f.name for f in dataclasses.fields(Config) if f.type in ("int", "float")}
    assert numbers - {name for name, _, _ in _LIMITS} == {"ttl_s"}, "the ttl has its own relations"


@pytest.mark.parametrize("name", [name for name, _, _ in _LIMITS])
def test_no_number_may_be_nan(name: str):
    assert refused(**{name: float("nan")}).field == name


@pytest.mark.parametrize("ttl_s", [0.1, 3601.0, float("nan")])
def test_a_ttl_that_makes_the_promise_hollow_is_refused(ttl_s: float):
    error = refused(ttl_s=ttl_s)
    assert (error.field, error.remedy) == ("ttl_s", "set TENURE_TTL_S")


def test_a_sweep_that_is_slower_than_takeover_is_refused():
    error = refused(sweep_s=31.0)
    assert error.field == "sweep_s"
    assert "lower TENURE_SWEEP_S or raise TENURE_TTL_S" in str(error)
    assert Config(sweep_s=30.0).sweep_s == 30.0


@pytest.mark.parametrize("node", ["", "x" * 129, "a/b", "a\nb", "a\u0000"])
def test_a_name_that_nobody_could_call_is_refused(node: str):
    assert refused(node=node).field == "node"


@pytest.mark.parametrize("node", ["n", "x" * 128, "名前 1"])
def test_any_printable_name_is_fine(node: str):
    assert Config(node=node).node == node


# reachable from elsewhere


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", ""])
def test_beyond_loopback_needs_a_key_or_a_decision(host: str):
    error = refused(host=host)
    assert error.field == "host"
    assert "TENURE_API_KEY" in str(error)
    assert "--insecure" in str(error)
    assert Config(host=host, api_key="k").host == host
    assert Config(host=host, insecure=True).host == host


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, loopback: bool):
    assert is_loopback(host) is loopback


def test_an_address_is_made_of_host_and_port_unless_it_is_given():
    assert Config(host="::1", port=1).public_address == "http://[::1]:1"
    assert Config(address="https://n1.example.org").public_address == "https://n1.example.org"


def test_a_key_is_not_shown():
    assert "canary" not in repr(Config(api_key="canary"))


# the environment


def test_every_setting_is_read_from_its_variable():
    texts = {"int": "7", "float": "2.5", "bool": "yes", "str": "word"}
    for part in dataclasses.fields(Config):
        kind = str(part.type)
        config = Config.from_environment({env_name(part.name): texts[kind]}, insecure=True)
        if part.name != "insecure":
            assert getattr(config, part.name) == {"int": 7, "float": 2.5, "bool": True, "str": "word"}[kind]


def test_what_is_given_wins_and_null_is_not_given():
    environ = {"TENURE_TTL_S": "5", "TENURE_PORT": "1", "OTHER": "x", "TENURE_UNHEARD_OF": "y"}
    config = Config.from_environment(environ, ttl_s=9.0, port=None)
    assert (config.ttl_s, config.port) == (9.0, 1)
    assert Config.from_environment({}, node="n") == Config(node="n")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("true", True), ("YES", True), ("0", False), ("False", False), ("no", False)],
)
def test_a_switch_has_three_words_for_each(text: str, value: bool):
    assert Config.from_environment({"TENURE_WITNESS": text}).witness is value


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("TENURE_PORT", "http"),
        ("TENURE_PORT", "1.5"),
        ("TENURE_TTL_S", "3s"),
        ("TENURE_WITNESS", "maybe"),
        ("TENURE_PORT", ""),
    ],
)
def test_a_value_that_cannot_be_read_is_refused(variable: str, text: str):
    with pytest.raises(InvalidInputError) as caught:
        Config.from_environment({variable: text})
    assert caught.value.field == variable
    assert repr(text) in str(caught.value)


@given(st.dictionaries(st.sampled_from([env_name(f.name) for f in dataclasses.fields(Config)]), st.text(max_size=8)))
def test_any_environment_is_read_or_refused_by_name(environ: dict[str, str]):
    try:
        Config.from_environment(environ)
    except InvalidInputError as error:
        known = {f.name for f in dataclasses.fields(Config)}
        assert error.field in known | {env_name(name) for name in known}
        assert error.remedy
