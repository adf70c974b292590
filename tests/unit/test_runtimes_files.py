"""Files of a workspace: what is inside is read and written, and nothing outside is, whatever links say."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure.abc import RuntimeFailure, RuntimeSpec
from tenure.errors import InvalidInputError
from tenure.runtimes.process import ProcessProvider, ProcessRuntime, files


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[ProcessRuntime]:
    provider = ProcessProvider(tmp_path / "root")
    yield await provider.provision(RuntimeSpec("n", "w", "c"), lambda step: None)
    await provider.discard("n", "w")


@pytest.fixture
def outside(tmp_path: Path, runtime: ProcessRuntime) -> Path:
    """A folder beside the root, with links to it from the workspace."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    os.symlink(outside, runtime.path / "door")
    os.symlink(outside / "secret", runtime.path / "window")
    os.symlink("../../../outside/secret", runtime.path / "relative")
    os.symlink(outside / "new", runtime.path / "dangling")
    return outside


@pytest.mark.parametrize("content", [b"", b"\x00\xff", "text ü", b"x" * 100_000])
async def test_what_is_written_is_read(runtime: ProcessRuntime, content: bytes | str):
    await runtime.write("a/b/c.txt", "something longer that was there before")
    await runtime.write("a/b/c.txt", content)
    assert await runtime.read("a/b/c.txt") == (content.encode() if isinstance(content, str) else content)


async def test_paths_are_of_the_workspace_however_they_are_written(runtime: ProcessRuntime):
    await runtime.write("a/x", "1")
    for path in ("a/x", "./a/x", "a/../a/x", "a//x", str(runtime.path / "a" / "x")):
        assert await runtime.read(path) == b"1"


async def test_links_inside_are_followed(runtime: ProcessRuntime):
    await runtime.write("real/x", "1")
    os.symlink("real", runtime.path / "link")
    os.symlink("link/x", runtime.path / "to-x")
    assert await runtime.read("link/x") == b"1" and await runtime.read("to-x") == b"1"
    await runtime.write("to-x", "2")
    await runtime.write("link/new/y", "3")
    assert await runtime.read("real/x") == b"2" and await runtime.read("real/new/y") == b"3"


ESCAPES = [
    "..",
    "../x",
    "a/../../x",
    "/etc/hostname",
    "/",
    ".",
    "door/secret",
    "door/new",
    "window",
    "relative",
    "dangling",
    "../../runtimes/n.json",
    "../w~2/x",
]


@pytest.mark.parametrize("path", ESCAPES)
async def test_what_leaves_the_workspace_is_refused(runtime: ProcessRuntime, outside: Path, path: str):
    for attempt in (runtime.read(path), runtime.write(path, "taken")):
        with pytest.raises(InvalidInputError, match="leaves the workspace") as refused:
            await attempt
        assert refused.value.field == "path"
    assert (outside / "secret").read_text() == "secret" and not (outside / "new").exists()


async def test_a_folder_that_becomes_a_link_meanwhile_is_not_followed(
    runtime: ProcessRuntime, outside: Path, monkeypatch: pytest.MonkeyPatch
):
    """Between the look at the path and the opening of the file a process of the workspace acts."""
    await runtime.write("a/secret", "mine")
    look = files._inside  # pyright: ignore[reportPrivateUsage]

    def look_then_swap(workspace: Path, path: str) -> tuple[str, ...]:
        parts = look(workspace, path)
        if not (workspace / "a").is_symlink():
            (workspace / "a").rename(workspace / "b")
            os.symlink(outside, workspace / "a")
        return parts

    monkeypatch.setattr(files, "_inside", look_then_swap)
    with pytest.raises(InvalidInputError):
        await runtime.read("a/secret")
    (runtime.path / "a").unlink()
    (runtime.path / "b").rename(runtime.path / "a")
    with pytest.raises(InvalidInputError):
        await runtime.write("a/secret", "taken")
    assert (outside / "secret").read_text() == "secret"


@pytest.mark.parametrize(
    "path",
    ["", "a\0b", "x" * 5000, "y" * 300, "\ud800", "file/below", "loop", "folder", "pipe"],
    ids=lambda p: p[:20].encode(errors="replace"),
)
async def test_what_is_no_file_is_refused(runtime: ProcessRuntime, path: str):
    await runtime.write("file", "")
    (runtime.path / "folder").mkdir()
    os.mkfifo(runtime.path / "pipe")
    os.symlink("loop", runtime.path / "loop")
    for attempt in (runtime.read(path), runtime.write(path, "x")):
        with pytest.raises(InvalidInputError) as refused:
            await asyncio.wait_for(attempt, 20)
        assert refused.value.field == "path"


async def test_what_is_not_there_is_said_with_its_name(runtime: ProcessRuntime):
    for path in ("missing", "no/such/folder"):
        with pytest.raises(FileNotFoundError) as missing:
            await runtime.read(path)
        assert missing.value.filename == path


async def test_sizes_are_bounded(runtime: ProcessRuntime):
    await runtime.write("ten", b"x" * 10)
    assert len(await runtime.read("ten", limit_bytes=10)) == 10
    with pytest.raises(InvalidInputError, match="more than 9 bytes"):
        await runtime.read("ten", limit_bytes=9)
    with pytest.raises(InvalidInputError, match="at most 16777216") as refused:
        await runtime.write("large", b"x" * (files.WRITE_LIMIT + 1))
    assert refused.value.field == "content"


async def test_a_workspace_that_is_gone_is_said(runtime: ProcessRuntime):
    await asyncio.to_thread(files.remove_tree, runtime.path)
    with pytest.raises(FileNotFoundError):
        await runtime.read("x")
    with pytest.raises(RuntimeFailure):
        await runtime.run("true")


# --- names ----------------------------------------------------------------------------------------------------------

NAMES = st.one_of(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True),
    st.text(max_size=300),
    st.sampled_from(["..", ".", "", "a/b", "A", "a", "~", "CON", "a" * 5000]),
)


@given(NAMES, NAMES)
def test_every_name_has_a_folder_of_its_own(one: str, other: str):
    for name in (one, other):
        place = files.folder(name)
        assert 0 < len(place.encode()) <= 200 and "/" not in place and place[0] not in ".-" and place.isprintable()
    same = files.folder(one).lower() == files.folder(other).lower()
    assert same == (one == other), "also where case does not count"


def test_plain_names_stay_readable_and_cannot_be_feigned():
    assert files.folder("s.conv-1.e12") == "s.conv-1.e12"
    assert files.folder("ABC").startswith("abc~")
    assert files.folder(files.folder("ABC")) != files.folder("ABC")
