"""``--agent [NAME=]LOOP[:TARGET]``: what it finds, and what it says when it finds nothing."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tenure.config import Config
from tenure.errors import InvalidInputError
from tenure.loops import function_loop, load_loop, parse_agents
from tenure.loops.function import FunctionLoop

SOURCE = '''
class Bots:
    async def nested(turn):
        """."""

    async def __call__(self, turn):
        """."""

async def agent(turn):
    """."""

def plain(turn):
    """."""

async def none():
    """."""

async def two(turn, more):
    """."""

async def generator(turn):
    yield 1

async def loose(turn, more=1, *args, **kwargs):
    """."""

bot = Bots()
number = 3
'''


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with modules, as the current one."""
    (tmp_path / "some_bots.py").write_text(SOURCE)
    (tmp_path / "broken_bots.py").write_text("raise RuntimeError('on import')")
    (tmp_path / "odd_syntax.py").write_text("def (")
    package = tmp_path / "bots_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield
    for name in ("some_bots", "broken_bots", "odd_syntax", "bots_package", "bots_package.deep"):
        sys.modules.pop(name, None)


def agent_of(loop: Any) -> Any:
    assert isinstance(loop, FunctionLoop)
    return loop.agent


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("some_bots:agent", "agent"),
        ("function:some_bots:agent", "agent"),
        ("some_bots:Bots.nested", "Bots.nested"),
        ("bots_package.deep:agent", "agent"),
        ("some_bots:loose", "loose"),
    ],
)
def test_a_function_is_found_in_the_current_folder_too(spec: str, name: str):
    assert agent_of(load_loop(spec)).__qualname__ == name


def test_an_object_that_is_called_is_an_agent():
    assert type(agent_of(load_loop("some_bots:bot"))).__name__ == "Bots"


def test_the_time_of_calls_comes_from_the_settings():
    loop = load_loop("some_bots:agent", Config(call_timeout_s=7))
    assert isinstance(loop, FunctionLoop) and loop._call_timeout_s == 7  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("no_such_module:agent", "module 'no_such_module' cannot be imported: ModuleNotFoundError"),
        ("broken_bots:agent", "RuntimeError: on import"),
        ("odd_syntax:agent", "SyntaxError"),
        ("some_bots:missing", "module 'some_bots' has no 'missing'"),
        ("some_bots:Bots.missing", "has no 'Bots.missing'"),
        ("some_bots:plain", "plain is no `async def`; write `async def agent(turn)`, and give blocking code to"),
        ("some_bots:number", "is no `async def`"),
        ("some_bots:generator", "generator is no `async def`"),
        ("some_bots:none", "none cannot take a turn"),
        ("some_bots:two", "two cannot take a turn"),
        (
            "openshop",
            "no loop is called 'openshop'; use function, scripted, openhands, pydantic-ai, or module:function",
        ),
        ("", "no loop is called ''"),
        ("function", "no loop is called 'function'"),
        ("function:", "names no function; write module:function"),
        ("function:some_bots", "names no function"),
        ("some_bots:", "names no function"),
        (":agent", "names no function"),
        ("scripted:x", "scripted takes no target"),
    ],
)
def test_what_cannot_be_loaded_is_said_with_its_remedy(spec: str, says: str):
    with pytest.raises(InvalidInputError) as refused:
        load_loop(spec)
    assert refused.value.field == "agent"
    assert says in str(refused.value)


def test_a_plain_function_in_hand_is_refused_alike():
    def plain(turn: object) -> None: ...

    with pytest.raises(InvalidInputError, match="async def"):
        function_loop(plain)  # type: ignore[arg-type]


def test_agents_have_names_and_an_order():
    agents = parse_agents(["some_bots:agent", "two=function:some_bots:agent", "scripted", "demo=scripted"])
    assert list(agents) == ["agent", "two", "scripted", "demo"]
    assert agents["agent"] is not agents["two"]
    assert list(parse_agents(["some_bots:Bots.nested"])) == ["nested"]
    assert parse_agents([]) == {}


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        (["scripted", "scripted"], "'scripted' is given twice; give one another name: other=scripted"),
        (["a b=scripted"], "'a b' is no name of an agent"),
        (["=scripted"], "'' is no name"),
        (["x" * 65 + "=scripted"], "at most 64"),
    ],
)
def test_names_are_judged(specs: list[str], says: str):
    with pytest.raises(InvalidInputError) as refused:
        parse_agents(specs)
    assert refused.value.field == "agent" and says in str(refused.value)


@pytest.mark.parametrize("spec", ["openhands", "openhands:my_tools"])
def test_openhands_without_its_extra_says_what_to_install(spec: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidInputError, match=r"tenure\[openhands\]"):
        parse_agents([spec])


def test_everything_of_ours_imports_without_the_sdk():
    """And nobody waits for it who does not use it."""
    told = "import sys; sys.modules['openhands'] = None; sys.modules['litellm'] = None; import tenure.loops"
    modules = "tenure.loops.openhands.live, tenure.loops.openhands.sdk, tenure.loops.openhands.settings"
    subprocess.run([sys.executable, "-c", f"{told}, tenure.loops.openhands, {modules}"], check=True)
