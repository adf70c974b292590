"""The architecture is a test: arrows, who may make a lease, words, sizes, documented settings."""

import ast
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "tenure"

MAKES_LEASES = ("lease.py", "stores/", "testing/model/")  # the model asks with every lease there ever was
WORDS_NOT_USED = {"manager", "session", "worker", "master", "leader", "handler", "helper", "utils", "base"}
LONGEST_FUNCTION = 100
LONGEST_FILE = 600

# Written so that this file does not match itself.
HOME_PATHS = re.compile(r"(?<![\w.~-])/(?:root|work|home/\w+|Users/\w+)(?:/|\b(?!\w))")
REGISTRIES = re.compile(
    r"\b(?:pypi\.(?:org|python)|(?:files\.)?pythonhosted\.org|registry\.(?:npmjs|yarnpkg)|(?:deb|ftp)\.debian\.org)",
    re.I,
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> Iterator[tuple[str, ast.Module, str]]:
    files = sorted(PACKAGE.rglob("*.py"))
    assert files, f"no modules under {PACKAGE}"
    for file in files:
        text = file.read_text(encoding="utf-8")
        yield file.relative_to(PACKAGE).as_posix(), ast.parse(text, filename=str(file)), text


def words_of(name: str) -> set[str]:
    """``_FooBars`` and ``foo_bars`` are the words foo and bar(s)."""
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
    return words | {word.removesuffix("s") for word in words}


def tracked_files() -> Iterator[tuple[str, str]]:
    """What git has; in an unpacked archive, what stands there."""
    git = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if git.returncode == 0 and git.stdout:
        names = git.stdout.rstrip("\0").split("\0")
    else:
        places = [*(ROOT / place for place in ("src", "tests", "docs", "scripts", "requirements", ".ci"))]
        names = [str(file.relative_to(ROOT)) for place in places for file in place.rglob("*")]
    for name in names:
        if (file := ROOT / name).is_file():
            yield name, file.read_text(encoding="utf-8", errors="ignore")


def test_arrows_point_down():
    linter = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert linter.returncode == 0, linter.stdout + linter.stderr


def test_only_stores_make_leases():
    offenders = [
        f"{name}:{call.lineno}"
        for name, tree, _ in modules()
        if not name.startswith(MAKES_LEASES)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and (
            (isinstance(call.func, ast.Name) and call.func.id == "Lease")
            or (isinstance(call.func, ast.Attribute) and call.func.attr == "Lease")
        )
    ]
    assert not offenders, "a lease is the proof that a store gave; nobody else makes one"


def test_nothing_is_logged_but_facts():
    """A line of the log has a stable event name, or it is none that a search or an alert can count on."""
    spoken = ("debug", "info", "warning", "error", "exception", "critical", "log")
    offenders = [
        f"{name}:{call.lineno}"
        for name, tree, _ in modules()
        if name != "facts/telling.py" and not name.startswith("testing/")
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in spoken
        if ast.unparse(call.func.value) in ("log", "logger", "logging", "self._log", "LOG")
    ]
    assert not offenders, "give it a name in tenure.facts, and tell that"


def test_names_use_our_words():
    offenders: list[str] = []
    for name, tree, _ in modules():
        names = [*Path(name).with_suffix("").parts]
        names += [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        offenders += [f"{name}: {used}" for used in names if words_of(used) & WORDS_NOT_USED]
    assert not offenders, "see docs/glossary.md for the words that we use"


def test_functions_and_files_are_short():
    offenders: list[str] = []
    for name, tree, text in modules():
        if (lines := len(text.splitlines())) > LONGEST_FILE:
            offenders.append(f"{name}: {lines} lines, at most {LONGEST_FILE}")
        offenders += [
            f"{name}:{node.lineno} {node.name}: {length} lines, at most {LONGEST_FUNCTION}"
            for node in ast.walk(tree)
            if isinstance(node, Function)
            and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > LONGEST_FUNCTION
        ]
    assert not offenders


def test_every_setting_is_documented():
    from tenure.config import Config

    settings = {f"TENURE_{field.name.upper()}" for field in dataclasses.fields(Config)}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    documented = {setting for line in readme.splitlines() if line.startswith("|") for setting in names_in(line)}
    assert settings - documented == set(), "a setting needs a row in the configuration table of README.md"


def names_in(line: str) -> list[str]:
    return re.findall(r"\bTENURE_[A-Z0-9_]+\b", line)


@pytest.mark.parametrize(
    ("what", "forbidden"),
    [("the host of a package registry", REGISTRIES), ("a path of somebody's machine", HOME_PATHS)],
    ids=["registry", "path"],
)
def test_nothing_names_our_machines(what: str, forbidden: re.Pattern[str]):
    offenders = [
        f"{name}:{number}: {found.group()}"
        for name, text in tracked_files()
        for number, line in enumerate(text.splitlines(), 1)
        if (found := forbidden.search(line))
    ]
    assert not offenders, f"{what} does not belong in the repository"


def test_lock_is_requirements_with_hashes():
    assert not (ROOT / "uv.lock").exists(), "the lock is requirements/*.txt"
    for file in sorted((ROOT / "requirements").glob("*.txt")):
        pins = re.split(r"\n(?=\S)", file.read_text(encoding="utf-8").strip())
        assert [pin.split()[0] for pin in pins if "==" not in pin or "--hash=sha256:" not in pin] == [], file.name


def test_contracts_have_docstrings():
    files = sorted((PACKAGE / "abc").glob("*.py"))
    assert len(files) > 1, "the contracts have moved"
    bodies = [node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body]
    public = [node for node in bodies if isinstance(node, Function | ast.ClassDef)]
    offenders = [node.name for node in public if is_public(node) and not ast.get_docstring(node)]
    offenders += [
        f"{contract.name}.{method.name}"
        for contract in public
        if isinstance(contract, ast.ClassDef) and is_contract(contract)
        for method in contract.body
        if isinstance(method, Function) and is_public(method) and not is_property(method)
        if not ast.get_docstring(method)
    ]
    assert not offenders, "the docstring of a contract is its specification"


def is_public(node: Function | ast.ClassDef) -> bool:
    return not node.name.startswith("_")


def is_contract(node: ast.ClassDef) -> bool:
    return any(ast.unparse(parent).split("[")[0].split(".")[-1] in {"ABC", "Protocol"} for parent in node.bases)


def is_property(node: Function) -> bool:
    """What it is stands in its name and its type."""
    return any(ast.unparse(decorator).split(".")[-1] == "property" for decorator in node.decorator_list)


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("see " + "/" + "root/.x", True),
        ("in " + "/" + "home/ann/x", True),
        ("from " + "/" + "work/main", True),
        ("GET /homepage, ~/root, /workspace, src/work/", False),
    ],
)
def test_the_path_rule_itself(line: str, refused: bool):
    assert bool(HOME_PATHS.search(line)) is refused
