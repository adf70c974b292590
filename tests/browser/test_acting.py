"""Every button does what its dialog says, and nothing without it; a message is sent once, whatever happens to the answer."""

import asyncio

import pytest
from playwright.async_api import expect
from stage import confirm, part, told_up_to

LONG = [{"run": "sleep 30"}]


async def waits_for(stage, node, conversation, kind):
    async def look():
        return kind in await stage.kinds(node, conversation)

    await stage.until(look, f"{kind} in {conversation}")


async def test_interrupt_ends_the_open_turn(pair, watchers):
    node = pair.nodes["n1"]
    await pair.create(node, "cut")
    page = await watchers.watch(node, "cut")
    await expect(part(page, "interrupt")).to_be_disabled()
    await pair.send(node, "cut", LONG)
    await expect(page.locator(".fate.open")).to_be_visible()
    await part(page, "interrupt").click()
    await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert "interrupt" not in await pair.kinds(node, "cut")
    await part(page, "interrupt").click()
    await confirm(page, "Interrupt", "Ends the turn that is open now", "messages that wait are taken next")
    await waits_for(pair, node, "cut", "turn_interrupted")
    await expect(page.locator(".event.turn-end").last).to_contain_text("interrupted")
    await expect(page.locator(".toast")).to_contain_text("Interrupt: accepted")


async def test_stop_refuses_messages_until_a_start(pair, watchers):
    node = pair.nodes["n1"]
    await pair.create(node, "halt")
    page = await watchers.watch(node, "halt")
    await pair.send(node, "halt", LONG)
    await expect(page.locator(".fate.open")).to_be_visible()
    waiting = await pair.send(node, "halt", [], "never taken")
    await part(page, "stop").click()
    await page.get_by_label("Also refuse the messages that wait").check()
    await confirm(page, "Stop", "keeps it stopped until somebody starts it", "New messages are refused")
    await expect(part(page, "status")).to_have_text("stopped")
    refused = page.locator(".event.end", has_text="refused")
    await expect(refused).to_contain_text(f"{waiting}: refused")
    await expect(refused.locator(".label.grave")).to_have_text("refused")
    await expect(part(page, "text")).to_be_disabled()
    await expect(part(page, "stop")).to_be_hidden()
    await part(page, "start").click()
    await confirm(page, "Start", "Asks for a live agent loop")
    await expect(part(page, "status")).to_have_text("idle")
    await expect(part(page, "text")).to_be_enabled()
    kinds = await pair.kinds(node, "halt")
    assert (
        kinds.index("stop")
        < kinds.index("stopped")
        < kinds.index("start")
        < len(kinds) - kinds[::-1].index("loop_started")
    )


async def test_an_answer_lets_the_turn_go_on(pair, watchers):
    node = pair.nodes["n2"]
    await pair.create(node, "asks")
    page = await watchers.watch(node, "asks")
    await expect(part(page, "answer")).to_be_hidden()
    await pair.send(node, "asks", [{"ask": "red or blue?"}, {"reply": "so: {output}"}])
    await part(page, "answer").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.locator("blockquote")).to_have_text("red or blue?")
    await dialog.get_by_label("Your answer").fill("blue")
    await confirm(page, "Answer", "With your answer it goes on")
    await expect(page.locator(".event.reply").last).to_contain_text("so: blue")


async def test_a_takeover_makes_the_node_of_the_page_the_owner(pair, watchers):
    nodes = pair.nodes
    await pair.create(nodes["n1"], "moved")
    owner = await pair.owned(nodes["n1"], "moved")
    other = nodes["n2"] if owner is nodes["n1"] else nodes["n1"]
    watching = await watchers.watch(owner, "moved")
    await expect(part(watching, "takeover")).to_be_disabled()
    page = await watchers.watch(other, "moved")
    await part(page, "takeover").click()
    words = (
        f"Makes {other.name}, the node that serves this page, the owner by force, at epoch 2",
        f"{owner.name} loses it at once",
    )
    await confirm(page, "Take over", *words)
    record = await pair.show(owner, "moved")
    assert (record["owner"]["node"], record["epoch"]) == (other.name, 2)
    for one in (page, watching):
        await expect(one.locator(".event.takeover")).to_contain_text("by force")
        await expect(part(one, "owner")).to_have_text(other.name)


async def test_a_drain_hands_over_and_the_node_leaves(stage, watchers):
    one, two = stage.node("n1", "--drain-s", "60"), stage.node("n2")
    await stage.nodes.start()
    await stage.ask(one, "POST", "/conversations", json={"id": "c1"})
    await stage.ask(one, "POST", "/conversations/c1/start?here=true", json={})
    await stage.send(one, "c1", [{"run": "sleep 300"}])
    page = await watchers.open(two)
    drain = page.get_by_role("button", name="Drain n1")
    await drain.click()
    await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert not any(node["draining"] for node in await stage.ask(two, "GET", "/nodes"))
    await drain.focus()
    await page.keyboard.press("Enter")  # by keyboard: the focus is on Cancel
    dialog = page.get_by_role("dialog")
    for words in ("It takes nothing new", "Its process ends after that", "This cannot be taken back"):
        await expect(dialog).to_contain_text(words)
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(dialog).to_have_count(0)
    row = part(page, "nodes-list").locator('.row[data-state="draining"]')
    await expect(row).to_contain_text("n1")
    await expect(part(row, "here")).to_have_text("draining")
    await expect(drain).to_be_disabled()
    watching = await watchers.watch(two, "c1")
    await stage.ask(two, "POST", "/conversations/c1/interrupt", json={})  # nothing is left that may take its time
    assert await one.ended(60) == 0
    await expect(drain).to_have_count(0)
    await expect(part(page, "nodes")).to_have_text("1")
    await expect(watching.locator(".event.owner", has_text="released")).to_contain_text("its node was drained")
    await expect(watching.locator(".ownership li.let-go")).to_contain_text("released: its node was drained")


async def test_what_is_not_confirmed_asks_nothing_of_the_node(pair, watchers):
    """Every button that acts has a dialog that says what it will do, and Cancel means no."""
    nodes = pair.nodes
    await pair.create(nodes["n1"], "calm")
    await pair.send(nodes["n1"], "calm", [{"ask": "well?"}, {"reply": "so be it"}])
    owner = await pair.owned(nodes["n1"], "calm")
    page = await watchers.watch(nodes["n2"] if owner is nodes["n1"] else nodes["n1"], "calm")
    before = await pair.kinds(owner, "calm")

    async def cancelled(name, says):
        await part(page, name).click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text(says)
        await dialog.get_by_role("button", name="Cancel").click()
        await expect(dialog).to_have_count(0)

    await expect(part(page, "status")).to_have_text("waiting")
    await cancelled("interrupt", "Ends the turn that is open now")
    await cancelled("answer", "With your answer it goes on")
    await cancelled("takeover", "the owner by force")
    await cancelled("stop", "keeps it stopped until somebody starts it")
    assert await pair.kinds(owner, "calm") == before
    await pair.ask(owner, "POST", "/conversations/calm/stop?wait_s=40", json={})
    await cancelled("start", "Asks for a live agent loop")
    assert (await pair.kinds(owner, "calm")).count("start") == before.count("start")
    assert {method for method, _ in watchers.asked} == {"GET"}


# --- while it is done ----------------------------------------------------------------------------------------------


async def held(page, path):
    """Requests to `path` stay without an answer until the returned event is set."""
    release = asyncio.Event()

    async def hold(route):
        await release.wait()
        await route.continue_()

    await page.route(path, hold)
    return release


async def test_what_is_being_done_cannot_be_called_off_and_says_so(pair, watchers):
    node = pair.nodes["n1"]
    await pair.create(node, "under-way")
    page = await watchers.watch(node, "under-way")
    release = await held(page, "**/stop")
    await part(page, "stop").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("button", name="Stop", exact=True).click()
    await expect(dialog.locator("form")).to_have_attribute("aria-busy", "true")
    for _ in range(3):  # a browser lets a page keep only the first
        await page.keyboard.press("Escape")
    await page.mouse.click(5, 400)
    await expect(dialog).to_be_visible()
    await expect(dialog.get_by_role("button", name="Cancel")).to_have_count(0)  # but in the end one may leave
    await expect(dialog.get_by_role("button", name="Give up")).to_be_enabled()
    release.set()
    await expect(dialog).to_have_count(0)
    await expect(part(page, "status")).to_have_text("stopped")


async def test_what_was_given_up_may_have_been_done(pair, watchers):
    node = pair.nodes["n2"]
    await pair.create(node, "given-up")
    page = await watchers.watch(node, "given-up")
    release = await held(page, "**/stop")
    await part(page, "stop").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("button", name="Stop", exact=True).click()
    await dialog.get_by_role("button", name="Give up").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("It may have been done all the same")
    await dialog.get_by_role("button", name="Close").click()
    await expect(dialog).to_have_count(0)
    await page.unroute_all(behavior="ignoreErrors")
    release.set()
    assert "stop" not in await pair.kinds(node, "given-up")


async def test_a_selection_that_ends_beside_the_dialog_keeps_the_answer(pair, watchers):
    node = pair.nodes["n1"]
    await pair.create(node, "selected")
    await pair.send(node, "selected", [{"ask": "which?"}, {"reply": "so: {output}"}])
    page = await watchers.watch(node, "selected")
    await part(page, "answer").click()
    dialog = page.get_by_role("dialog")
    field = dialog.get_by_label("Your answer")
    await expect(field).to_be_focused()
    await field.fill("a long answer")
    await field.hover()
    await page.mouse.down()
    await page.mouse.move(5, 400)
    await page.mouse.up()
    await expect(field).to_have_value("a long answer")
    await expect(dialog).to_be_visible()
    await page.mouse.click(5, 400)  # all of it beside
    await expect(dialog).to_have_count(0)


async def test_a_takeover_is_from_the_owner_that_the_dialog_named(pair, watchers):
    one, two = pair.nodes["n1"], pair.nodes["n2"]
    await pair.create(one, "moved-on")
    await pair.ask(one, "POST", "/conversations/moved-on/takeover", json={})
    page = await watchers.watch(two, "moved-on")
    seen = (await pair.show(two, "moved-on"))["epoch"]
    await expect(part(page, "takeover")).to_be_enabled()
    await part(page, "takeover").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text(f"at epoch {seen + 1}")
    await expect(dialog).to_contain_text(f"If it has moved on from epoch {seen} by then, nothing is changed.")
    await pair.ask(one, "POST", "/conversations/moved-on/takeover", json={})
    await dialog.get_by_role("button", name="Take over", exact=True).click()
    await expect(dialog.get_by_role("alert")).to_contain_text(f"is owned by node n1 ({one.url}) at epoch {seen + 1}")
    record = await pair.show(two, "moved-on")
    assert (record["owner"]["node"], record["epoch"]) == ("n1", seen + 1)


# --- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_message_whose_answer_was_lost_is_sent_again_and_stands_once(pair, watchers, lost):
    node, conversation = pair.nodes["n1"], f"once-{lost}"
    await pair.create(node, conversation)
    page = await watchers.watch(node, conversation)
    keys = list[str]()

    async def lose(route):
        keys.append(route.request.headers["idempotency-key"])
        if len(keys) <= lost:
            await route.fetch()  # the server accepts it
            await route.abort()  # and nobody hears so
        else:
            await route.continue_()

    await page.route("**/messages", lose)
    await part(page, "text").fill("only once")
    await part(page, "text").press("Enter")
    await expect(part(page, "text")).to_have_value("")
    assert len(keys) == lost + 1
    assert len(set(keys)) == 1
    events = await pair.events(node, conversation)
    [message] = [e for e in events if e["kind"] == "message" and e["body"]["text"] == "only once"]
    await told_up_to(page, message["seq"])
    await expect(page.locator(".event.message", has_text="only once")).to_have_count(1)


async def test_a_refusal_keeps_what_was_written_and_says_why(pair, watchers):
    node = pair.nodes["n1"]
    await pair.create(node, "refused")
    page = await watchers.watch(node, "refused")

    async def as_before(route):
        reply = await route.fetch()
        await route.fulfill(response=reply, json={**await reply.json(), "status": "idle"})

    await page.route("**/conversations/refused", as_before)  # the page does not learn of the stop: its box stays open
    await pair.ask(node, "POST", "/conversations/refused/stop?wait_s=40", json={})
    await part(page, "text").fill("hello?")
    await part(page, "text").press("Enter")
    await expect(page.locator(".toast.grave")).to_contain_text("is stopped; start it first")
    await expect(part(page, "text")).to_have_value("hello?")
