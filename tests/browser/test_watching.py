"""What is watched is whole: through the death of the owner, of the node that serves the page, and with ten thousand events."""

import asyncio
import re

import pytest
from playwright.async_api import expect
from stage import part, told, told_up_to

from tenure.abc import About, Append, Appended, Claim, Creation, Fenced, Held, Reason, Release, ReleasedNow, Submit
from tenure.clock import SystemClock
from tenure.conversation import Settle
from tenure.journal import Draft, LoopStarted, draft
from tenure.lease import new_incarnation, new_token
from tenure.stores import open_store

STEPS = [step for number in range(30) for step in ({"run": f"sleep 0.05; echo {number}"}, {"emit": {"kind": "step"}})]


async def test_two_browsers_on_two_nodes_miss_and_repeat_nothing_while_the_owner_is_killed(stage, watchers):
    nodes = await stage.cluster("n1", "n2", "n3")
    await stage.create(nodes[0], "c1")
    owner = await stage.owned(nodes[0], "c1")
    others = [node for node in nodes if node is not owner]
    pages = [await watchers.watch(node, "c1") for node in others]
    overview = await watchers.open(others[0])
    message = await stage.send(others[0], "c1", STEPS)
    for page in pages:
        await expect(page.locator(".event.emit").nth(3)).to_be_attached()  # in the middle of the turn
    owner.kill()

    async def ended():
        events = await stage.events(others[1], "c1")
        return next(
            (e["seq"] for e in events if e["kind"] == "turn_completed" and message in e["body"]["commands"]), None
        )

    last = await stage.until(ended, "the end of the turn")
    kinds = await stage.kinds(others[0], "c1")
    assert "claimed" in kinds[message:], "nobody took over: the turn was too short"
    for page in pages:
        assert await told_up_to(page, last) == list(range(1, last + 1))
        await expect(page.locator(".event.takeover")).to_have_count(1)
        await expect(page.locator(".event.takeover")).to_contain_text("its process died")
        await expect(page.locator(".ownership li.lost")).to_contain_text(owner.name)
    row = part(overview, "feed").locator("li")
    await expect(row).to_have_count(1)
    await expect(row).to_contain_text("c1")
    await expect(row.locator(".chip").first).to_have_text(owner.name)
    await expect(part(overview, "takeovers")).to_have_text("1")
    plot = part(overview, "plot-takeovers").locator("svg")
    await expect(plot.locator("rect.bar")).to_have_count(1)
    await expect(plot).to_have_attribute("aria-label", re.compile("^1 takeover in the last hour"))
    await overview.get_by_text("As a table").first.click()
    await expect(part(overview, "table-takeovers").locator("tbody td")).to_have_text(["1"])


async def test_a_page_whose_node_dies_says_so_and_goes_on_when_the_node_is_back(stage, watchers):
    one, two = await stage.cluster("n1", "n2")
    await stage.create(two, "c1")
    page = await watchers.watch(one, "c1")
    link = page.locator("#link")
    await expect(link).to_have_text("live")
    one.kill()
    await expect(link).to_have_text("reconnecting…")
    await expect(page.locator("main")).to_have_attribute("data-stream", "reconnecting")
    await stage.ask(two, "POST", "/conversations/c1/messages?wait_s=40", json={"text": "meanwhile"})
    await one.start()
    await expect(link).to_have_text("live")
    after = await stage.ask(one, "POST", "/conversations/c1/messages?wait_s=40", json={"text": "afterwards"})
    last = after["events"][-1]["seq"]
    assert await told_up_to(page, last) == list(range(1, last + 1))


async def test_deltas_are_shown_as_they_come_and_go_with_what_is_journaled(pair, watchers):
    node = pair.nodes["n1"]
    await pair.create(node, "deltas")
    page = await watchers.watch(node, "deltas")
    await pair.send(
        node, "deltas", [{"delta": "thinking "}, {"delta": "aloud"}, {"sleep_s": 1.5}, {"reply": "that was it"}]
    )
    await expect(part(page, "live")).to_have_text("thinking aloud")
    await expect(page.locator(".event.reply").last).to_contain_text("that was it")
    await expect(part(page, "live")).to_be_hidden()


async def test_a_call_tells_its_duration_and_its_fate(pair, watchers):
    node = pair.nodes["n1"]
    await pair.create(node, "fates")
    await pair.send(node, "fates", [{"run": "echo out; exit 3"}, {"run": "sleep 1; echo late"}, {"fail": "no luck"}])
    page = await watchers.watch(node, "fates")
    calls = page.locator(".event.call")
    await expect(calls.nth(-1).locator(".fate.done")).to_contain_text("1.")
    await expect(calls.nth(-2).locator(".more")).to_have_text("exit 3 · out")
    await expect(page.locator(".event.turn-end").last).to_contain_text("no luck")
    await calls.nth(-1).click()
    await expect(calls.nth(-1).locator(".raw")).to_contain_text('"kind": "call_finished"')


# --- who owned it ---------------------------------------------------------------------------------------------------


async def test_an_owner_that_slept_too_long_is_told_with_its_late_writes(pair, watchers):
    """A lease that nobody renews runs out; another node takes over; then the sleeper writes, and is refused."""
    node = pair.nodes["n1"]
    async with open_store(pair.store_url) as store:
        sleeper = new_incarnation()
        about = About("sleeper", "http://sleeper", 10, ("scripted",), SystemClock().now())
        await store.register(sleeper, about, 1.0)
        await store.submit(Submit("slept", None, Creation(agent="scripted")))
        held = await store.claim(Claim("slept", sleeper, new_token(), 0, "sleeper", "http://sleeper", "start"))
        assert isinstance(held, Held)
        await pair.send(node, "slept", [{"reply": "without it"}])

        async def taken():
            return (await pair.kinds(node, "slept")).count("claimed") == 2

        await pair.until(taken, "somebody to take over")
        page = await watchers.watch(node, "slept")
        lost = page.locator(".ownership li.lost")
        await expect(lost).to_contain_text("its lease ran out")
        for number in (1, 2):
            late = Append(
                held.lease, number, held.record.head, (Draft("reply", {"text": "late"}),), Settle(runnable=False)
            )
            assert isinstance(await store.append(late), Fenced)
        late = Append(held.lease, 3, held.record.head, (), Settle(runnable=False))
        assert isinstance(await store.release(Release(late, Reason.IDLE)), Fenced)
    await expect(lost).to_contain_text("sleeper")
    await expect(lost).to_contain_text("frozen or cut off; it woke too late")
    refused = lost.locator(".refused")
    await expect(refused.locator("summary")).to_contain_text("3 late writes refused")
    await expect(refused.locator(".which")).to_have_text(re.compile(r"^2 append, 1 release · .*\d:\d\d"))
    await refused.locator("summary").click()
    await expect(refused.locator("li")).to_have_text(
        [re.compile("append"), re.compile("append"), re.compile("release")]
    )
    assert "late" not in [e["body"].get("text") for e in await pair.events(node, "slept")]


# --- ten thousand events --------------------------------------------------------------------------------------------

MANY = 10_000
STEP_PX = 3000
"""A wheel's turn; well within what stands in the document at a time."""


async def write_many(url: str, conversation: str) -> None:
    """A journal of exactly so many events, written through the port by an owner that lets go."""
    async with open_store(url) as store:
        incarnation = new_incarnation()
        await store.register(incarnation, About("past", "http://past", 10, ("past",), SystemClock().now()), 3600)
        await store.submit(Submit(conversation, None, Creation(agent="past")))
        held = await store.claim(Claim(conversation, incarnation, new_token(), 0, "past", "http://past", "start"))
        assert isinstance(held, Held)
        seen, number = held.record.head, 0
        drafts = [draft(LoopStarted("past"))]
        while seen < MANY - 1:
            drafts += [
                Draft("reply", {"text": f"line {seen + 1 + i}"}) for i in range(len(drafts), min(1000, MANY - 1 - seen))
            ]
            number += 1
            result = await store.append(Append(held.lease, number, seen, tuple(drafts), Settle(runnable=False)))
            assert isinstance(result, Appended)
            seen, drafts = result.head, []
        last = Append(held.lease, number + 1, seen, (), Settle(runnable=False))
        assert isinstance(await store.release(Release(last, Reason.IDLE)), ReleasedNow)


@pytest.mark.timeout(700)
async def test_ten_thousand_events_stay_usable(pair, watchers):
    node = pair.nodes["n2"]
    await write_many(pair.store_url, "long")
    assert (await pair.show(node, "long"))["last_seq"] == MANY
    page = await watchers.watch(node, "long")
    rows = await told_up_to(page, MANY)
    assert rows == list(range(rows[0], MANY + 1))
    assert rows[0] >= MANY - 199, "only the latest are read at first"
    scroller, older = part(page, "scroller"), part(page, "older")
    assert await scroller.evaluate("one => one.scrollHeight - one.scrollTop - one.clientHeight < 80"), (
        "opens at the end"
    )

    async def back():
        await scroller.evaluate("one => one.scrollTo(0, 0)")
        return await older.is_hidden()

    async with asyncio.timeout(300):  # twenty pages, drawn one after the other
        while not await back():
            await asyncio.sleep(0.05)
    # The last page may have come between the scrolling and the look: what is drawn in front moves the reader off the top.
    await scroller.evaluate("one => one.scrollTo(0, 0)")
    await expect(page.locator('.event[data-seqs="1"]')).to_be_visible()
    most, seen = 0, list[int]()
    height = await scroller.evaluate("one => one.scrollHeight")
    for top in range(0, height + 2 * STEP_PX, STEP_PX):
        await scroller.evaluate("(one, top) => one.scrollTo(0, top)", top)
        await expect(page.locator(".event").last).to_be_attached()
        await page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        rows = await told(page)
        assert rows == sorted(set(rows)), "in order, none twice"
        most, seen = max(most, len(rows)), [*seen, *rows]
    assert set(seen) == set(range(1, MANY + 1))
    assert most < 1000, "only what is near the screen stands in the document"
    live = await pair.ask(node, "POST", "/conversations/long/stop", json={})
    await asyncio.wait_for(told_up_to(page, live["seq"]), 60)
