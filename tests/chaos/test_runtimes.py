"""What becomes of a place and of what runs in it when its owner is killed in the middle of a command."""

from __future__ import annotations

from pathlib import Path

from world import World, world

from tenure.runtimes.process import ProcessProvider
from tenure.testing.processes import NodeProcess
from tenure.testing.sandboxes import SandboxService, serving

LONG_S = 600


async def begun(one: World, node: NodeProcess, root: Path, command: str, last: str) -> Path:
    """The workspace of a conversation whose owner has the command under way: it has written its last file."""
    await one.create("c", node)
    await one.http.post(f"{node.url}/conversations/c/start", params={"here": "true"}, json={})
    await one.send("c", "hello", node, run=command)

    async def written() -> Path | None:
        return next((file.parent for file in root.glob(f"workspaces/*/{last}") if file.stat().st_size), None)

    return await one.until(written, f"{last} in the workspace")


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


LEAVES = f"""setsid sh -c 'echo $$ > left; exec sleep {LONG_S}' &
while ! [ -s left ]; do sleep 0.02; done
echo $$ > here; sleep {LONG_S}"""
"""A command that leaves something in another group and session, and goes on."""


async def test_a_sandbox_of_a_service_outlives_its_owner_and_commands_do_not(tmp_path, store):
    """The heir reattaches the very sandbox; what the dead owner's command had left running in there is ended first."""
    service = SandboxService(ProcessProvider(tmp_path / "sandboxes"))
    async with serving(service) as url, world(tmp_path, store) as one:
        owner, heir = (one.node(name, TENURE_RUNTIME=url) for name in ("owner", "heir"))
        await one.nodes.start()
        place = await begun(one, owner, tmp_path / "sandboxes", LEAVES, "here")
        left = [int((place / file).read_text()) for file in ("left", "here")]
        assert all(map(alive, left))
        owner.kill()
        await one.event("c", "turn_completed")
        assert not any(map(alive, left))
        kinds = [e.kind for e in await one.events("c")]
        assert kinds.count("runtime_requested") == 1 and kinds.count("runtime_attached") == 1
        assert len(service.sandboxes) == 1
        await one.answered("c", await one.send("c", "again", heir, run="cp left again"))
        assert (place / "again").read_text() == f"{left[0]}\n", "its files are there"
        await one.judge()
    await service.close()


async def test_processes_of_a_killed_owner_are_gone_when_its_heir_goes_on(tmp_path, store):
    async with world(tmp_path, store) as one:
        owner, heir = (one.node(name, TENURE_WORKSPACES=str(tmp_path / "places")) for name in ("owner", "heir"))
        await one.nodes.start()
        place = await begun(one, owner, tmp_path / "places", LEAVES, "here")
        left = [int((place / file).read_text()) for file in ("left", "here")]
        assert all(map(alive, left))
        owner.kill()
        await one.event("c", "turn_completed")
        assert not any(map(alive, left))
        assert (place / "left").exists() and heir.running
        await one.judge()
