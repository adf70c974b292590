"""A page that cannot ask any more says so, says as of when it is, and offers nothing that it does not know to be there."""

import asyncio
import itertools
import re

import pytest
from playwright.async_api import expect
from stage import PATIENCE_S, part, take_the_store_away

AS_OF = re.compile(r"^As of .*\d+:\d\d:\d\d.*: the store does not answer")
ACTIONS = ("interrupt", "stop", "start", "answer", "takeover")


@pytest.mark.parametrize(("view", "known"), [("#/", "nodes-list"), ("#/conversations", "list"), ("#/c/away", "title")])
async def test_a_store_that_goes_away_is_told_and_what_stands_there_is_dimmed(pair, watchers, view, known):
    node = pair.nodes["n1"]
    if "away" not in [one["id"] for one in (await pair.ask(node, "GET", "/conversations"))["conversations"]]:
        await pair.create(node, "away", title="Away")
    page = await watchers.open(node, view)
    link, banner, main = page.locator("#link"), part(page, "as-of"), page.locator("main")
    await expect(part(page, known)).not_to_be_empty()
    await expect(link).to_have_text("live")
    await expect(banner).to_be_hidden()
    await take_the_store_away(page)
    await expect(banner).to_have_text(AS_OF)
    await expect(link).to_have_text("store does not answer")
    await expect(main).to_have_class(re.compile("stale"))
    dim = page.locator("main :is(dd, .row:not(.head), .facts):visible").first
    await expect(dim).to_have_css("opacity", "0.55")
    await page.unroute_all(behavior="ignoreErrors")
    await expect(banner).to_be_hidden()
    await expect(link).to_have_text("live")
    await expect(main).not_to_have_class(re.compile("stale"))


async def test_before_anything_is_known_nothing_is_claimed(pair, watchers):
    node = pair.nodes["n1"]
    await pair.create(node, "unread")
    page = await watchers.open(node)
    await expect(part(page, "feed-empty")).not_to_have_text("Not known yet.")
    await take_the_store_away(page)
    await page.reload()
    await expect(part(page, "as-of")).to_have_text(re.compile("^Nothing is known yet: the store does not answer"))
    await expect(part(page, "feed-empty")).to_have_text("Not known yet.")
    await expect(part(page, "takeovers")).to_have_text("–")
    await page.evaluate("location.hash = '#/conversations'")
    await expect(part(page, "as-of")).to_be_visible()
    await expect(part(page, "empty")).to_have_text("Not known yet.")
    await page.evaluate("location.hash = '#/c/unread'")
    await expect(part(page, "as-of")).to_be_visible()
    await expect(part(page, "status")).to_have_text("not known yet")
    for name in (*ACTIONS, "text", "send"):
        await expect(part(page, name)).to_be_disabled()
    await page.unroute_all(behavior="ignoreErrors")
    await expect(part(page, "status")).to_have_text("idle")
    for name in ("stop", "text", "send"):
        await expect(part(page, name)).to_be_enabled()


async def test_503_of_one_conversation_is_no_outage(pair, watchers):
    """It is also said of a start that failed, and of a node that drains: the store is well."""
    page = await watchers.open(pair.nodes["n1"], "#/conversations")
    await expect(page.locator("#link")).to_have_text("live")
    answers = {
        "failed": (503, "provisioning-failed"),
        "draining": (503, "node-unavailable"),
        "refused": (409, "turn-open"),
    }
    away = {"broken": (500, ""), "store": (503, "store-unavailable")}

    async def answer(route):
        status, code = (answers | away)[route.request.url.rpartition("-")[2]]
        await route.fulfill(status=status, json={"code": code})

    await page.route("**/conversations/made-*", answer)
    heard = await tried(page, LINK_AFTER, [f"conversations/made-{name}" for name in (answers | away)])
    assert heard == ["live", "live", "live", "failing", "storeless"]


LINK_AFTER = """async (paths) => {
  const { ask, onLink } = await import("/dashboard/api.js");
  let state;
  onLink((next) => (state = next));
  const found = [];
  for (const path of paths) found.push(await ask(path).then(() => "fine", () => state));
  return found;
}"""


async def test_a_node_that_is_silent_is_told_before_its_time_is_up(pair, watchers):
    """A frozen node refuses nothing: it takes the question, and says nothing."""
    page = await watchers.open(pair.nodes["n1"])
    await expect(page.locator("#link")).to_have_text("live")
    thawed = asyncio.Event()

    async def hold(route):
        await thawed.wait()
        await route.continue_()

    for path in ("**/nodes", "**/activity"):
        await page.route(path, hold)
    await expect(part(page, "as-of")).to_have_text(re.compile("^As of .*: the node does not answer"))
    await expect(page.locator("#link")).to_have_text("reconnecting…")
    thawed.set()
    await expect(part(page, "as-of")).to_be_hidden()
    await expect(page.locator("#link")).to_have_text("live")


# --- what asks again and again --------------------------------------------------------------------------------------


async def tried(page, script, *given):
    """What a script in the page gives; it must not wait for what never comes."""
    return await asyncio.wait_for(page.evaluate(script, *given), PATIENCE_S)


async def test_a_look_that_is_hastened_while_one_is_under_way_comes_after_it(pair, watchers):
    page = await watchers.open(pair.nodes["n1"])
    looks = await tried(
        page,
        """async () => {
          const { poll } = await import("/dashboard/poll.js");
          let [looks, release, twice] = [0, null, null];
          const held = new Promise((done) => (release = done));
          const over = new Promise((done) => (twice = done));
          const look = async () => ((looks += 1) === 1 ? await held : twice());
          const one = poll(look, 3_600_000);
          one.hasten();
          release();
          await over;
          one.close();
          return looks;
        }""",
    )
    assert looks == 2


async def test_looks_that_are_hastened_all_the_time_keep_their_distance(pair, watchers):
    page = await watchers.open(pair.nodes["n1"])
    begun = await tried(
        page,
        """async () => {
          const { poll } = await import("/dashboard/poll.js");
          const begun = [];
          const one = poll(async () => void begun.push(performance.now()), 3_600_000);
          while (begun.length < 4) {
            one.hasten();
            await new Promise((done) => setTimeout(done, 16));
          }
          one.close();
          return begun;
        }""",
    )
    assert all(later - earlier >= 240 for earlier, later in itertools.pairwise(begun))


async def test_a_fault_of_the_page_itself_is_reported_and_ends_no_look(pair, watchers):
    page = await watchers.open(pair.nodes["n1"])
    heard = await tried(
        page,
        """async () => {
          const { poll } = await import("/dashboard/poll.js");
          const heard = [];
          let over;
          const twice = new Promise((done) => (over = done));
          const look = async () => { if (!heard.length) throw new TypeError("odd"); };
          const one = poll(look, 10, (error, failures) => { heard.push([error?.message ?? null, failures]); if (heard.length > 1) over(); });
          await twice;
          one.close();
          return heard;
        }""",
    )
    assert heard[:2] == [["odd", 1], [None, 0]]
    assert any("odd" in complaint for complaint in watchers.complaints)
    watchers.complaints.clear()
