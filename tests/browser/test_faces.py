"""How the pages look and feel: by keyboard alone, on a phone, in the dark, before a key, and with hostile content."""

import re

import pytest
from playwright.async_api import expect
from stage import beside_the_api, confirm, part

HOSTILE = (
    """<img src=x onerror="alert('img')"><script>alert('script')</script>"><svg/onload=alert(1)>{{1+1}}\u202e\u2028"""
)


def test_a_request_that_is_no_public_api_would_be_found(document):
    node = "http://127.0.0.1:8400"
    fine = {
        ("GET", f"{node}/"),
        ("GET", f"{node}/dashboard/app.js"),
        ("POST", f"{node}/conversations/c%2F1/stop?wait_s=1"),
    }
    private = {("GET", f"{node}/private"), ("PATCH", f"{node}/nodes"), ("POST", f"{node}/dashboard/app.js")}
    assert beside_the_api(fine | private, document) == private


# --- lists ----------------------------------------------------------------------------------------------------------


async def test_conversations_are_filtered_searched_and_paged(pair, watchers):
    node = pair.nodes["n1"]
    for number in range(60):
        await pair.ask(
            node, "POST", "/conversations", json={"id": f"paged-{number:02}", "title": f"Page of a book {number:02}"}
        )
    await pair.create(node, "paged-busy")
    await pair.ask(node, "POST", "/conversations/paged-busy/stop?wait_s=40", json={})
    page = await watchers.open(node, "#/conversations")
    rows = part(page, "list").locator(".row")
    await page.get_by_label("Search").fill("PAGED-")
    await expect(rows).to_have_count(50)
    await expect(rows.first).to_contain_text("Page of a book 00")
    await part(page, "next").click()
    await expect(rows).to_have_count(11)
    await expect(part(page, "where")).to_contain_text("page 2")
    await part(page, "previous").click()
    await expect(rows).to_have_count(50)
    await page.get_by_label("Status").select_option("stopped")
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("paged-busy")
    assert page.url.endswith("#/conversations?search=PAGED-&status=stopped")
    await page.reload()
    await expect(rows).to_have_count(1)
    await page.get_by_label("Search").fill("no such thing")
    await expect(part(page, "empty")).to_have_text("None that fit.")


async def test_a_row_tells_its_owner_and_when_the_lease_would_expire(pair, watchers):
    node = pair.nodes["n1"]
    await pair.create(node, "held-one")
    page = await watchers.open(node, "#/conversations?search=held-one")
    row = part(page, "list").locator(".row")
    await expect(row).to_have_count(1)
    await expect(part(row, "owner")).to_have_text(re.compile("^n[12]$"))
    await expect(part(row, "epoch")).to_have_text("1")
    await expect(part(row, "expires")).to_have_text(re.compile(r"\d"))


async def test_the_overview_tells_nodes_and_the_last_hour(pair, watchers):
    node = pair.nodes["n2"]
    await pair.create(node, "seen")
    page = await watchers.open(node)
    rows = part(page, "nodes-list").locator(".row")
    await expect(rows).to_have_count(2)
    await expect(rows.filter(has_text="serves this page")).to_contain_text("n2")
    await expect(rows.first).to_contain_text("/ 1,000")
    await expect(part(page, "turns")).not_to_have_text("0")
    await expect(part(page, "plot-times").locator("svg circle.dot-p50").first).to_be_attached()
    label = await part(page, "plot-takeovers").locator("svg").get_attribute("aria-label")
    assert label is not None and "in the last hour" in label


async def test_what_does_not_exist_is_said(pair, watchers):
    page = await watchers.open(pair.nodes["n1"], "#/c/nobody")
    await expect(part(page, "problem")).to_have_text("There is no conversation nobody.")
    await expect(part(page, "send")).to_be_disabled()


# --- by keyboard ----------------------------------------------------------------------------------------------------


async def test_everything_can_be_done_by_keyboard_alone(pair, watchers):
    node = pair.nodes["n1"]
    await pair.create(node, "keys")
    page = await watchers.open(node)
    press = page.keyboard.press
    await press("Tab")
    await expect(page.locator(":focus-visible")).to_be_visible()
    await page.evaluate("document.activeElement.blur()")
    await press("g")
    await press("c")
    await expect(page.get_by_role("heading", name="Conversations")).to_be_visible()
    await press("/")
    await page.keyboard.type("keys")
    await expect(part(page, "list").locator(".row")).to_have_count(1)
    await press("Escape")
    await press("j")
    await expect(page.get_by_role("link", name="keys")).to_be_focused()
    await press("Enter")
    await expect(page.locator("main")).to_have_attribute("data-stream", "live")
    await press("m")
    await expect(part(page, "text")).to_be_focused()
    await page.keyboard.type("by hand")
    await press("Enter")
    await expect(page.locator(".event.message", has_text="by hand")).to_have_count(1)
    await expect(page.locator(".event.turn-end")).to_have_count(2)  # nothing comes any more
    await press("Escape")
    await press("k")
    await expect(page.locator(".event").last).to_be_focused()
    await press("Enter")
    await expect(page.locator(".event .raw")).to_be_visible()
    await press("s")
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_be_visible()
    assert await page.evaluate("document.querySelector('dialog').contains(document.activeElement)")
    for _ in range(8):  # the focus stays inside
        await press("Tab")
        assert await page.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
    await press("Escape")
    await expect(dialog).to_have_count(0)
    assert "stop" not in await pair.kinds(node, "keys")
    await press("s")
    await press("Tab")
    await press("Tab")
    await press("Enter")
    await expect(part(page, "status")).to_have_text("stopped")
    await press("?")
    for words in ("write a message", "take over", "the overview"):
        await expect(page.get_by_role("dialog")).to_contain_text(words)


async def test_what_can_be_pressed_has_a_name_and_shows_its_focus(pair, watchers):
    node = pair.nodes["n1"]
    await pair.create(node, "named")
    for view in ("#/", "#/conversations", "#/c/named"):
        page = await watchers.open(node, view)
        await expect(page.locator("#link")).to_have_text("live")
        await expect(page.locator(".row:not(.head), .event").first).to_be_attached()
        names = await page.locator(
            "button:visible, a:visible, input:visible, select:visible, textarea:visible"
        ).evaluate_all(
            """all => all.filter(one => !(one.getAttribute("aria-label") || one.textContent.trim())).map(one => one.outerHTML)"""
        )
        assert names == []
        outlines = set[str]()
        for _ in range(12):
            await page.keyboard.press("Tab")
            focused = "document.activeElement === document.body ? 'auto' : getComputedStyle(document.activeElement).outlineStyle"
            outlines.add(await page.evaluate(focused))  # past the last one the browser's own frame has it
        assert outlines <= {"solid", "auto"}, "somewhere the focus cannot be seen"


# --- on a phone, in the dark ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["#/", "#/conversations", "#/c/phone-long"])
async def test_a_phone_never_scrolls_sideways(pair, watchers, view):
    node = pair.nodes["n1"]
    await pair.ask(node, "POST", "/conversations", json={"id": "phone-long", "title": "W" * 400})
    if await pair.kinds(node, "phone-long") == ["created"]:
        words = {"text": "M" * 700, "content": {"script": [{"run": f"echo {'x' * 500}"}, {"reply": "R" * 700}]}}
        await pair.ask(node, "POST", "/conversations/phone-long/messages?wait_s=40", json=words)
    page = await watchers.open(node, view, width=390, height=844)
    await expect(page.locator("#link[data-state=live]")).to_be_attached()
    await expect(page.locator(".row:not(.head), .event.reply").first).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") == 390
    outside = await page.locator("main *:visible, header *:visible").evaluate_all(
        """all => all.filter(one => {
          const {left, right, width} = one.getBoundingClientRect();
          const cut = one.closest(".arguments, .more, .unseen, .head, svg");
          return width > 1 && !cut && (right > 391 || left < -1);
        }).map(one => one.className)"""
    )
    assert outside == []
    small = await page.locator("button:visible, header a:visible").evaluate_all(
        "all => all.filter(one => one.getBoundingClientRect().height < 24).map(one => one.outerHTML)"
    )
    assert small == [], "too small for a finger"


async def test_colours_follow_the_system_or_the_choice(pair, watchers):
    def ground(page):
        return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    light = await watchers.open(pair.nodes["n1"], colours="light")
    dark = await watchers.open(pair.nodes["n1"], colours="dark")
    bright, night = await ground(light), await ground(dark)
    assert bright != night
    await light.keyboard.press("d")  # from the system's to light
    await light.keyboard.press("d")
    assert await ground(light) == night
    await light.reload()
    assert await ground(light) == night
    await expect(light.locator("#theme")).to_have_attribute("aria-label", "Colours: dark")
    for page in (light, dark):
        contrast = await page.evaluate(CONTRAST)
        assert min(contrast.values()) >= 4.5, contrast


CONTRAST = """() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const probe = document.createElement("i");
  document.body.append(probe);
  const of = name => { probe.style.color = `var(--${name})`; return light(getComputedStyle(probe).color); };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const pairs = [["ink", "card"], ["ink-2", "card"], ["ink-2", "ground"], ["good", "good-soft"], ["warn", "warn-soft"],
    ["bad", "card"], ["blue", "blue-soft"], ["accent-ink", "accent"], ["card", "bad"]];
  const found = Object.fromEntries(pairs.map(([a, b]) => [`${a} on ${b}`, ratio(of(a), of(b))]));
  probe.remove();
  return found;
}"""


# --- before a key ---------------------------------------------------------------------------------------------------


async def test_the_key_is_asked_once_and_kept_in_the_tab_alone(stage, watchers):
    node = stage.node("n1", TENURE_API_KEY="s3cret-key")
    await stage.nodes.start()
    page = await watchers.open(node)
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("This cluster asks for a key")
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_visible()
    await dialog.get_by_label("Key").fill("wrong")
    await page.keyboard.press("Enter")
    await expect(dialog).to_contain_text("The node refused that key.")
    await expect(dialog).to_have_count(1)
    await dialog.get_by_label("Key").fill("s3cret-key")
    await page.keyboard.press("Enter")
    await expect(part(page, "nodes")).to_have_text("1")
    await expect(dialog).to_have_count(0)
    await page.reload()
    await expect(part(page, "nodes")).to_have_text("1")
    kept = await page.evaluate(
        "[JSON.stringify(localStorage), document.cookie, location.href, document.body.innerText].join()"
    )
    assert "s3cret" not in kept
    await page.evaluate(
        'fetch(\'conversations\', {method: \'POST\', body: \'{"id": "c1", "message": "hi"}\', headers: {'
        "'content-type': 'application/json', authorization: 'Bearer s3cret-key'}})"
    )
    await page.goto(f"{node.url}/#/c/c1")
    await expect(page.locator(".event.turn-end").first).to_be_visible()  # the stream carries the key, too
    other = await watchers.open(node)
    await expect(other.get_by_role("dialog")).to_contain_text("asks for a key")


# --- hostile content ------------------------------------------------------------------------------------------------


async def test_hostile_content_is_only_ever_text(stage, watchers):
    name = '<img src=x onerror="alert(2)">'
    node = stage.node(name)
    await stage.nodes.start()
    steps = [
        {"reply": HOSTILE},
        {"emit": {"kind": "noted", "body": {HOSTILE: HOSTILE}}},
        {"run": f"echo '{HOSTILE[:60]}'"},
        {"ask": HOSTILE},
    ]
    await stage.ask(
        node,
        "POST",
        "/conversations",
        json={"id": "c1", "title": HOSTILE, "user_id": "<u>", "metadata": {HOSTILE: HOSTILE}},
    )
    await stage.send(node, "c1", steps, HOSTILE)
    page = await watchers.watch(node, "c1")
    await expect(part(page, "status")).to_have_text("waiting")
    await expect(page.locator(".event.message")).to_contain_text("<script>alert('script')</script>")
    await expect(page.locator(".event.reply").first).to_contain_text("<img src=x onerror=\"alert('img')\">")
    await expect(part(page, "owner")).to_have_text(name)
    await part(page, "answer").click()
    await expect(page.get_by_role("dialog")).to_contain_text("<script>")
    await page.get_by_role("dialog").get_by_label("Your answer").fill(HOSTILE)
    await confirm(page, "Answer")
    await page.locator(".event").last.click()
    for view in ("#/", "#/conversations"):
        await page.goto(f"{node.url}/{view}")
        await expect(page.get_by_text(name).locator("visible=true").first).to_be_visible()  # an option is hidden
    await expect(page.locator("main").locator("img, script, svg[onload]")).to_have_count(0)


async def test_the_policy_stops_what_the_code_would_let_through(pair, watchers):
    page = await watchers.open(pair.nodes["n1"])
    tried = await page.evaluate(
        """async () => {
          const found = {};
          try { document.body.innerHTML = "<p>x</p>"; found.markup = "made"; } catch (error) { found.markup = error.name; }
          try { (0, eval)("1"); found.eval = "ran"; } catch (error) { found.eval = error.name; }
          try { await fetch("http://127.0.0.1:9/"); found.elsewhere = "sent"; } catch (error) { found.elsewhere = error.name; }
          return found;
        }"""
    )
    assert tried["markup"] == "TypeError"
    assert tried["elsewhere"] == "TypeError"
    assert any("Trusted" in complaint for complaint in watchers.complaints)
    watchers.complaints.clear()
