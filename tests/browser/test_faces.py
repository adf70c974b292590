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
    owner = await pair.owned(node, "held-one")
    await expect(part(row, "owner")).to_have_text(owner.name)
    await expect(part(row, "epoch")).to_have_text("1")
    await expect(part(row, "since")).to_have_text(re.compile(r"^(now|\d+ (s|min))$"))
    await expect(part(row, "expires")).to_have_text(re.compile(r"^\d[\d.]* m?s$"))


async def test_the_list_of_one_owner_has_what_it_owns_alone(pair, watchers):
    mine, others = pair.nodes["n1"], pair.nodes["n2"]
    for id, owner in (("by-one", mine), ("by-two", others)):
        await pair.ask(mine, "POST", "/conversations", json={"id": id})
        await pair.ask(owner, "POST", f"/conversations/{id}/start?here=true", json={})
    page = await watchers.open(mine, "#/conversations?search=by-")
    rows = part(page, "list").locator(".row")
    await expect(rows).to_have_count(2)
    await page.get_by_label("Owner").select_option("n2")
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("by-two")
    await page.get_by_label("Owner").select_option("n1")
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("by-one")
    assert page.url.endswith("#/conversations?search=by-&owner=n1")


async def test_the_overview_tells_nodes_and_the_last_hour(pair, watchers):
    node = pair.nodes["n2"]
    await pair.create(node, "seen")
    page = await watchers.open(node)
    rows = part(page, "nodes-list").locator(".row")
    await expect(rows).to_have_count(2)
    await expect(rows.filter(has_text="serves this page")).to_contain_text("n2")
    await expect(rows.first).to_contain_text("/ 1,000")
    for row in (rows.first, rows.last):
        await expect(part(row, "lease")).to_have_text(re.compile(r"^\d[\d.]* m?s old, \d[\d.]* m?s left$"))
        await expect(row).to_have_attribute("data-state", "alive")
    await expect(part(page, "turns")).to_have_text(re.compile("^[1-9]"))
    await expect(part(page, "plot-times").locator("svg circle.dot-p50").first).to_be_attached()
    await expect(part(page, "table-times").locator("tbody tr").first).to_be_attached()
    for words in await page.get_by_text("As a table").all():
        await words.click()
    await expect(part(page, "table-times").locator("tbody tr").first).to_contain_text(re.compile(r"\d\d:\d\d.*ms"))


async def test_no_number_beside_a_plot_is_cut_off(pair, watchers):
    """Whatever the times are: from less than a millisecond to hours."""
    page = await watchers.open(pair.nodes["n1"])
    cut = await page.evaluate(
        """async () => {
          const { times } = await import("/dashboard/plots.js");
          const place = document.createElement("div");
          place.className = "plot";
          document.querySelector(".plots section").append(place);
          const cut = [];
          for (const [low, high] of [[0.0004, 0.02], [0.02, 45], [3, 700], [90, 20_000]]) {
            const minutes = Array.from({ length: 60 }, (_, at) =>
              ({ at: new Date(at * 60_000).toISOString(), p50_s: low, p95_s: high, max_s: high, completed: 1, failed: 0, interrupted: 0 }));
            times(place, minutes);
            for (const mark of place.querySelectorAll("text")) if (mark.getBBox().x < 0) cut.push(mark.textContent);
          }
          place.remove();
          return cut;
        }"""
    )
    assert cut == []


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
    last = page.locator(".event").last.get_by_role("button")
    await expect(last).to_be_focused()
    await expect(last).to_have_attribute("aria-expanded", "false")
    await press("Enter")
    await expect(last).to_have_attribute("aria-expanded", "true")
    await expect(page.locator(".event .raw")).to_be_visible()
    await press("ArrowUp")
    await expect(page.locator(".event").nth(-2).get_by_role("button")).to_be_focused()
    await expect(page.locator('.event .seq[tabindex="0"]')).to_have_count(1)  # Tab finds one row, and passes on
    await press("ArrowDown")
    await press("Space")
    await expect(page.locator(".event .raw")).to_have_count(0)
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
    await press("Enter")
    await expect(part(page, "status")).to_have_text("stopped")
    await press("?")
    for words in ("write a message", "take over", "the overview"):
        await expect(page.get_by_role("dialog")).to_contain_text(words)


async def test_what_the_buttons_do_is_done_by_keyboard(pair, watchers):
    """Each by its letter; the focus is then on Cancel, and the verb is next. (A drain: see the one that drains.)"""
    node, other = pair.nodes["n1"], pair.nodes["n2"]
    await pair.ask(node, "POST", "/conversations", json={"id": "typed"})
    await pair.ask(other, "POST", "/conversations/typed/start?here=true", json={})
    await pair.send(node, "typed", [{"ask": "red or blue?"}, {"reply": "so: {output}"}])
    page = await watchers.watch(node, "typed")
    dialog = page.get_by_role("dialog")

    async def act(letter, button):
        await expect(part(page, button)).to_be_enabled()
        await page.keyboard.press(letter)
        await expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(dialog).to_have_count(0)

    await expect(part(page, "answer")).to_be_visible()
    await page.keyboard.press("a")
    await expect(dialog.get_by_label("Your answer")).to_be_focused()
    await page.keyboard.type("blue")
    for key in ("Tab", "Tab", "Enter"):
        await page.keyboard.press(key)
    await expect(page.locator(".event.reply").last).to_contain_text("so: blue")
    await act("t", "takeover")
    await expect(part(page, "owner")).to_have_text("n1")
    await pair.send(node, "typed", [{"run": "sleep 60"}])
    await expect(page.locator(".fate.open")).to_be_visible()
    await act("i", "interrupt")
    await expect(page.locator(".event.turn-end").last).to_contain_text("interrupted")
    await act("s", "stop")
    await expect(part(page, "status")).to_have_text("stopped")
    await act("s", "start")
    await expect(part(page, "status")).to_have_text("idle")


async def test_a_row_says_who_wrote_it_and_stays_true_while_it_is_open(pair, watchers):
    node = pair.nodes["n1"]
    await pair.ask(node, "POST", "/conversations", json={"id": "signed"})
    await pair.ask(node, "POST", "/conversations/signed/start?here=true", json={})
    await pair.send(node, "signed", [{"run": "sleep 60"}])
    page = await watchers.watch(node, "signed")
    await expect(page.locator(".event.turn .by")).to_have_text("by n1")
    call = page.locator(".event.call")
    await expect(call.get_by_role("button", name=", by n1")).to_have_count(1)
    await call.click()
    await expect(call.locator(".raw")).not_to_contain_text("call_interrupted")
    await pair.ask(node, "POST", "/conversations/signed/interrupt", json={})
    await expect(call.locator(".raw")).to_contain_text("call_interrupted")
    await pair.ask(pair.nodes["n2"], "POST", "/conversations/signed/takeover", json={})
    await pair.send(node, "signed", [{"reply": "mine now"}])
    await expect(page.locator(".event.turn .by")).to_have_text(["by n1", "by n2"])


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


@pytest.mark.parametrize("width", [390, 320])
@pytest.mark.parametrize("view", ["#/", "#/conversations", "#/c/phone-long"])
async def test_a_phone_never_scrolls_sideways(pair, watchers, view, width):
    node = pair.nodes["n1"]
    await pair.ask(node, "POST", "/conversations", json={"id": "phone-long", "title": "W" * 400})
    if await pair.kinds(node, "phone-long") == ["created"]:
        words = {"text": "M" * 700, "content": {"script": [{"run": f"echo {'x' * 500}"}, {"reply": "R" * 700}]}}
        await pair.ask(node, "POST", "/conversations/phone-long/messages?wait_s=40", json=words)
    page = await watchers.open(node, view, width=width, height=700)
    await expect(page.locator("#link[data-state=live]")).to_be_attached()
    await expect(page.locator(".row:not(.head), .event.reply").first).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") == width
    outside = await page.locator("main *:visible, header *:visible").evaluate_all(
        """all => all.filter(one => {
          const {left, right, width} = one.getBoundingClientRect();
          const cut = one.closest(".arguments, .more, .unseen, .head, svg");
          return width > 1 && !cut && (right > innerWidth + 1 || left < -1);
        }).map(one => one.className)"""
    )
    assert outside == []
    small = await page.locator("button:visible, header a:visible").evaluate_all(
        "all => all.filter(one => one.getBoundingClientRect().height < 24).map(one => one.outerHTML)"
    )
    assert small == [], "too small for a finger"
    zooming = await page.locator("input, select, textarea").evaluate_all(
        "all => all.filter(one => parseFloat(getComputedStyle(one).fontSize) < 16).map(one => one.outerHTML)"
    )
    assert zooming == [], "a phone zooms into these"


async def test_a_phone_has_the_journal_the_owners_and_the_details_each_in_a_tab(pair, watchers):
    node = pair.nodes["n2"]
    await pair.create(node, "tabs")
    page = await watchers.watch(node, "tabs", width=320, height=640)
    journal, owners = page.locator(".story"), page.locator(".owners")
    await expect(owners).to_be_hidden()
    await page.get_by_role("button", name="Ownership").click()
    await expect(owners).to_be_visible()
    await expect(page.locator(".ownership li.current")).to_be_in_viewport(ratio=1)
    await expect(journal).to_be_hidden()
    await page.get_by_role("button", name="Details").click()
    await expect(part(page, "details")).to_be_visible()
    await expect(part(page, "details").get_by_text("scripted")).to_be_in_viewport()
    await page.get_by_role("button", name="Journal").click()
    await expect(journal).to_be_visible()
    await expect(page.locator(".event").last).to_be_in_viewport()
    await expect(owners).to_be_hidden()


@pytest.mark.parametrize("width", [1280, 390])
async def test_a_takeover_is_told_with_its_reason_at_any_width(pair, watchers, width):
    node, other = pair.nodes["n1"], pair.nodes["n2"]
    id = f"reason-{width}"
    await pair.ask(node, "POST", "/conversations", json={"id": id})
    await pair.ask(node, "POST", f"/conversations/{id}/start?here=true", json={})
    await pair.ask(other, "POST", f"/conversations/{id}/takeover", json={})
    page = await watchers.open(node, width=width)
    row = part(page, "feed").locator("li", has_text=id)
    await expect(row.locator(".why")).to_be_visible()
    await expect(row.locator(".why")).to_have_text("by force")


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


@pytest.mark.parametrize("colours", ["light", "dark"])
async def test_every_colour_can_be_read_on_what_it_stands_on(pair, watchers, colours):
    page = await watchers.open(pair.nodes["n1"], colours=colours)
    found = await page.evaluate(CONTRAST)
    assert {"ink-3 on sunk", "accent-ink on accent", "warn on warn-soft", "blue on card"} <= found.keys(), found
    assert {pair: ratio for pair, ratio in found.items() if ratio < 4.5} == {}
    hues = await page.evaluate(HUES)
    assert min(hues["contrast"]) >= 3, "a node's mark can hardly be seen"
    assert min(hues["apart"]) >= 0.11, "two nodes' marks can hardly be told apart"


MEASURES = """
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const probe = document.createElement("i");
  document.body.append(probe);
  const of = name => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(v => linear(v / 255));
  };
  const light = ([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b;
  const ratio = (one, other) => {
    const [a, b] = [light(of(one)), light(of(other))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
"""

# Which colours the style sheets put upon which: a rule with both says so; one with a text's colour alone may stand on any
# plain ground, one with a ground alone under the ink of its surroundings. Then what stands in rows with a ground of their own.
CONTRAST = f"""() => {{{MEASURES}
  const inks = new Set(["ink"]), pairs = new Set();
  const name = value => /^var\\(--([a-z0-9-]+)\\)$/.exec(value)?.[1];
  const plain = ["card", "sunk", "ground"];
  const read = rules => {{
    for (const rule of rules) {{
      if (rule.cssRules?.length) read(rule.cssRules);
      if (!rule.selectorText || rule.selectorText.includes("::before") || rule.selectorText.includes("::selection")) continue;
      const text = name(rule.style.color) ?? (rule.selectorText.endsWith(".mark") ? name(rule.style.fill) : undefined);
      const under = name(rule.style.getPropertyValue("background")) ?? name(rule.style.backgroundColor);
      if (text && under) pairs.add(`${{text}} on ${{under}}`);
      else if (text && text !== "hue") for (const ground of plain) pairs.add(`${{text}} on ${{ground}}`);
      else if (under && (under.endsWith("-soft") || plain.includes(under))) pairs.add(`ink on ${{under}}`);
    }}
  }};
  for (const sheet of document.styleSheets) read(sheet.cssRules);
  for (const [row, texts] of [["warn-soft", ["ink", "ink-2", "ink-3", "warn"]], ["bad-soft", ["ink", "ink-2", "ink-3", "bad"]]])
    for (const text of texts) pairs.add(`${{text}} on ${{row}}`);
  const found = Object.fromEntries([...pairs].map(pair => [pair, ratio(...pair.split(" on "))]));
  probe.remove();
  return found;
}}"""

HUES = f"""() => {{{MEASURES}
  const lab = ([r, g, b]) => {{ // OKLab, where a distance is what the eye makes of it
    const [l, m, s] = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
      [0.0883024619, 0.2817188376, 0.6299787005]].map(row => Math.cbrt(row[0] * r + row[1] * g + row[2] * b));
    return [0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s, 1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
      0.0259040371 * l + 0.7827717662 * m - 0.8086757660 * s];
  }};
  const names = Array.from({{ length: 8 }}, (_, number) => `hue-${{number}}`);
  const marks = names.map(name => lab(of(name)));
  const apart = marks.flatMap((one, at) => marks.slice(at + 1).map(other => Math.hypot(...one.map((v, axis) => v - other[axis]))));
  const contrast = names.map(name => ratio(name, "card"));
  probe.remove();
  return {{ apart, contrast }};
}}"""


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
