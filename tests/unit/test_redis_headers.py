"""A script's header says what goes in: the text below it takes exactly that, and so does whoever calls it."""

import ast
import re
from pathlib import Path

import pytest

import tenure.stores.redis
from tenure.stores.redis.scripts import Script, all_scripts, script

ROOM = Path(tenure.stores.redis.__file__).parent
TAKEN = re.compile(r"^local (?P<names>[^=]+?)\s*= unpack\((?P<list>KEYS|ARGV)(?:, 1, (?P<last>\d+))?\)$", re.MULTILINE)
OPERATIONS = (
    "amend append append_many bury claim delete forget list_papers look publish put_paper read rebuild register release remove_paper "
    "renew seal submit"
)

every_script = pytest.mark.parametrize("one", all_scripts(), ids=lambda one: one.name)


def own_text(one: Script) -> str:
    return (ROOM / "lua" / f"{one.name}.lua").read_text(encoding="utf-8")


def code_of(one: Script) -> str:
    return re.sub(r"--.*", "", own_text(one))


def test_every_operation_has_a_script_of_its_own():
    assert [one.name for one in all_scripts()] == OPERATIONS.split()


@every_script
def test_the_first_line_says_what_it_does(one: Script):
    assert own_text(one).startswith(f"-- {one.name}: ")


@every_script
@pytest.mark.parametrize("kind", ["KEYS", "ARGV"])
def test_the_text_takes_what_the_header_names(one: Script, kind: str):
    header = one.keys if kind == "KEYS" else one.argv
    rest = [name for name in header if name.startswith("*")]
    named = [name for name in header if not name.startswith("*")]
    assert rest == list(header[len(named) :]), "only the last one may take the rest"
    taken = [found for found in TAKEN.finditer(code_of(one)) if found["list"] == kind]
    if not taken:  # look: all that it takes is lists
        assert len(rest) == 1
        assert kind in code_of(one)
        return
    (found,) = taken
    assert re.findall(r"\w+", found["names"]) == named
    assert (found["last"] is not None) == bool(rest), "a list of any length is not unpacked"
    if rest:
        assert int(found["last"]) == len(named)


@every_script
@pytest.mark.parametrize("kind", ["KEYS", "ARGV"])
def test_the_rest_begins_where_the_named_end(one: Script, kind: str):
    """Numbers in the text that count arguments."""
    header = one.keys if kind == "KEYS" else one.argv
    named = [name for name in header if not name.startswith("*")]
    for first in re.findall(rf"for \w+ = (\d+), #{kind}\b", code_of(one)):
        assert int(first) == len(named) + 1
    for at in re.findall(rf"{kind}\[(\d+)\]", code_of(one)):
        assert int(at) > len(named) or not TAKEN.search(code_of(one))


@every_script
def test_every_argument_is_used(one: Script):
    body = TAKEN.sub("", code_of(one))
    for name in (*one.keys, *one.argv):
        if not name.startswith("*"):
            assert re.search(rf"\b{name}\b", body), f"{one.name} takes {name} and never looks at it"


@every_script
def test_it_includes_what_it_calls_and_nothing_else(one: Script):
    defined = {part: functions_of(ROOM / "lua" / "shared" / f"{part}.lua") for part in one.includes}
    body = code_of(one)
    for number, part in enumerate(one.includes):
        later = body + "".join(
            (ROOM / "lua" / "shared" / f"{other}.lua").read_text(encoding="utf-8")
            for other in one.includes[number + 1 :]
        )
        assert any(re.search(rf"\b{name}\(", later) for name in defined[part]), f"{one.name} needs no {part}"


def functions_of(file: Path) -> set[str]:
    return set(re.findall(r"^local function (\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE))


@every_script
def test_what_runs_is_those_files_and_nothing_else(one: Script):
    rest = one.text
    for part in one.includes:
        text = (ROOM / "lua" / "shared" / f"{part}.lua").read_text(encoding="utf-8")
        assert rest.startswith(text)
        rest = rest.removeprefix(text + "\n")
    assert rest == own_text(one)


@every_script
def test_no_body_is_ever_decoded(one: Script):
    """cjson turns 2^53 + 1 into another number and an empty list into an object: it writes names of owners, and that is all."""
    assert "cjson.decode" not in one.text
    assert set(re.findall(r"cjson\.\w+\(([^)]*)\)", one.text)) <= {"record.owner"}


@every_script
def test_every_key_is_a_declared_one(one: Script):
    """No name of a key is made up in a script: a Cluster would refuse it, on the day that its slot is elsewhere."""
    for call in re.findall(r"redis\.p?call\(\s*'(\w+)',\s*([^,)]+)", one.text):
        command, key = call
        assert "'" not in key or command in {"PUBLISH", "TIME"}, call
        assert ".." not in key or command == "PUBLISH", call


def calls_in_python() -> list[tuple[str, ast.Call]]:
    found: list[tuple[str, ast.Call]] = []
    for file in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("call", "share")
            ):
                continue
            named = node.func.value
            if isinstance(named, ast.Call) and isinstance(named.func, ast.Name) and named.func.id == "script":
                (name,) = named.args
                assert isinstance(name, ast.Constant)
                found.append((str(name.value), node))
    return found


def test_every_script_is_called_by_its_names():
    calls = calls_in_python()
    assert {name for name, _ in calls} == {one.name for one in all_scripts()}
    for name, call in calls:
        given = {word.arg for word in call.keywords if word.arg}
        expected = {argument.removeprefix("*") for argument in (*script(name).keys, *script(name).argv)}
        assert given <= expected, f"{name} takes no {sorted(given - expected)}"
        assert call.args == [], "by name"


def test_a_call_with_a_missing_or_a_strange_argument_is_refused():
    with pytest.raises(TypeError, match="version"):
        script("forget").call(vault="v", name="n")
    with pytest.raises(TypeError, match="epoch"):
        script("forget").call(vault="v", name="n", version=1, epoch=1)
    command = script("forget").call(vault="v", name="n", version=1).command()
    assert command == ("EVALSHA", script("forget").sha, 1, "v", "n", 1)
    assert script("forget").call(vault="v", name="n", version=1).command(whole=True)[:2] == (
        "EVAL",
        script("forget").text,
    )
