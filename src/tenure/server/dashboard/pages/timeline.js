// The journal as rows. Only what is near the screen stands in the document: rows live in chunks, and a chunk that is far
// away is an empty box of the same height. So ten thousand events scroll like fifty.

import { h, say } from "./dom.js";
import { between, clock, day, duration, hue } from "./format.js";
import { Journal } from "./journal.js";
import { argumentsOf } from "./words.js";

const CHUNK = 50;
const NEAR = "1500px 0px";

// --- one row ---------------------------------------------------------------------------------------------------------

const LOOKS = { message: "message", reply: "reply", ask: "ask" };

function draw(item, ownerAt) {
  const row = h("article", { class: "event" });
  row.item = item;
  row.append(
    h("button", { type: "button", class: "seq", tabindex: "-1", "aria-expanded": "false" }),
    h("time", { class: "at", datetime: item.at, title: `${day(item.at)} ${clock(item.at)}` }, clock(item.at)),
    h("span", { class: "label" }),
    h("div", { class: "what" }),
  );
  refresh(row, ownerAt);
  return row;
}

function refresh(row, ownerAt) {
  const { item } = row;
  const [opener, , label, what] = row.children;
  row.dataset.seqs = item.seqs.join(" ");
  say(opener, String(item.seqs[0]));
  row.className = `event ${item.call ? "call" : item.told.look}${item.minor ? " minor" : ""}`;
  const owner = item.epoch === null || item.epoch === undefined ? null : ownerAt(item.epoch);
  row.classList.add(owner ? `hue-${hue(owner)}` : "hue-none");
  row.title = owner ? `written by ${owner}, epoch ${item.epoch}` : "";
  if (item.call) drawCall(item, label, what);
  else drawTold(item, label, what, ownerAt);
  const words = [...what.children].map((one) => one.textContent).join(" ");
  if (owner && (item.changed || item.told?.look === "turn") && !item.told?.node) what.append(h("span", { class: "by" }, `by ${owner}`));
  opener.setAttribute("aria-label", `${item.seqs[0]}, ${label.textContent}: ${words}`.slice(0, 300) + (owner ? `, by ${owner}` : ""));
  showRaw(row);
}

function drawCall(item, label, what) {
  const { opened } = item.call;
  const told = Journal.fate(item);
  say(label, "call");
  what.replaceChildren(
    h("span", { class: "name" }, opened.body.name ?? opened.body.call ?? opened.kind),
    h("span", { class: "arguments" }, argumentsOf(opened.body)),
    h("span", { class: `fate ${told.state}` }, told.words),
    told.more ? h("span", { class: "more" }, told.more) : "",
  );
}

const chip = (node) => h("span", { class: `chip hue-${hue(node)}` }, node);

function drawTold(item, label, what, ownerAt) {
  const { told, began } = item;
  say(label, told.label);
  label.classList.toggle("grave", told.grave === true);
  const parts = [];
  const before = told.look === "takeover" ? ownerAt(told.epoch - 1) : null;
  if (before) parts.push(chip(before), h("span", { class: "arrow", "aria-label": "to" }, "→"));
  if (told.node) parts.push(chip(told.node), h("span", { class: "epoch" }, `epoch ${told.epoch}`));
  if (told.text) parts.push(h(LOOKS[told.look] ? "p" : "span", { class: "text" }, told.text));
  if (began) parts.push(h("span", { class: "fate" }, `after ${duration(between(began, item.at))}`));
  what.replaceChildren(...parts);
}

/** What the journal holds of a row, to the letter, while its item is open: a call that ends is told whole. */
function showRaw(row) {
  const { item } = row;
  let shown = row.querySelector(".raw");
  row.children[0].setAttribute("aria-expanded", String(item.open === true));
  if (!item.open) {
    shown?.remove();
    return;
  }
  if (!shown) row.append((shown = h("pre", { class: "raw" })));
  say(shown, item.events.map((event) => JSON.stringify(event, null, 2)).join("\n"));
}

function toggle(row) {
  row.item.open = !row.item.open;
  showRaw(row);
}

/** Note at which items the writer is another one than before; commands have none. The last writer's epoch. */
function mark(items, before) {
  for (const item of items) {
    if (item.epoch === null || item.epoch === undefined) continue;
    item.changed = item.epoch !== before;
    before = item.epoch;
  }
  return before;
}

// --- all of them -----------------------------------------------------------------------------------------------------

export class Timeline {
  #chunks = []; // {element, items, hidden}
  #place = new Map(); // item → its chunk
  #rows = new Map(); // item → its row, while it is drawn
  #owners = new Map(); // epoch → node
  #writer = null; // epoch of the last item that has one
  #current = null; // the one row that Tab finds

  /** In `scroller`; `wantOlder` is called when the oldest row comes near. */
  constructor(scroller, wantOlder) {
    this.scroller = scroller;
    this.list = h("div", { class: "events", role: "group", "aria-label": "Events" });
    scroller.append(this.list);
    this.wantOlder = wantOlder;
    this.near = new IntersectionObserver((entries) => this.#seen(entries), { root: scroller, rootMargin: NEAR });
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest(".event");
      if (row && !event.target.closest(".raw") && getSelection().isCollapsed) toggle(row);
    });
    this.list.addEventListener("focusin", (event) => {
      const row = event.target.closest(".event");
      if (row) this.#rove(row);
    });
    this.list.addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
      if (by === undefined || !event.target.matches(".seq")) return;
      event.preventDefault();
      this.step(by);
    });
  }

  get size() {
    return this.#place.size;
  }

  get atEnd() {
    return this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < 80;
  }

  toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  clear() {
    this.near.disconnect();
    this.#chunks = [];
    this.#place.clear();
    this.#rows.clear();
    this.#writer = null;
    this.list.replaceChildren();
  }

  /** Know whose epoch it was, for the colours of rows. */
  owned(epoch, node) {
    if (this.#owners.get(epoch) === node) return;
    this.#owners.set(epoch, node);
    for (const [item, row] of this.#rows) if (item.epoch === epoch) refresh(row, this.ownerAt);
  }

  ownerAt = (epoch) => this.#owners.get(epoch) ?? null;

  /** Show items that are new, or anew those that changed; keeps to the end if the reader was there. */
  put(items) {
    const follow = this.atEnd;
    this.#writer = mark([...items].filter((item) => !this.#place.has(item)), this.#writer);
    for (const item of items) {
      const chunk = this.#place.get(item);
      if (chunk === undefined) this.#append(item);
      else if (this.#rows.has(item)) refresh(this.#rows.get(item), this.ownerAt);
    }
    this.#keepOne();
    if (follow) this.toEnd();
    return follow;
  }

  #append(item) {
    let chunk = this.#chunks.at(-1);
    if (chunk === undefined || chunk.items.length >= CHUNK || chunk.hidden) {
      chunk = this.#chunk([]);
      this.#chunks.push(chunk);
      this.list.append(chunk.element);
      this.near.observe(chunk.element);
    }
    chunk.items.push(item);
    this.#place.set(item, chunk);
    chunk.element.append(this.#row(item));
  }

  /** Show older items in front, and take away those that are part of them now; what is on the screen stays where it is. */
  putBefore(items, gone = []) {
    const below = this.scroller.scrollHeight - this.scroller.scrollTop;
    for (const item of gone) {
      const chunk = this.#place.get(item);
      if (!chunk) continue;
      chunk.items.splice(chunk.items.indexOf(item), 1);
      this.#rows.get(item)?.remove();
      this.#rows.delete(item);
      this.#place.delete(item);
    }
    this.#mend(mark(items, null));
    for (let end = items.length; end > 0; end -= CHUNK) {
      const chunk = this.#chunk(items.slice(Math.max(0, end - CHUNK), end));
      for (const item of chunk.items) {
        this.#place.set(item, chunk);
        chunk.element.append(this.#row(item));
      }
      this.#chunks.unshift(chunk);
      this.list.prepend(chunk.element);
      this.near.observe(chunk.element);
    }
    this.#keepOne();
    this.scroller.scrollTop = this.scroller.scrollHeight - below;
  }

  /** What was the first is no change any more if the one in front of it, at `epoch`, has the same writer. */
  #mend(epoch) {
    const first = this.#chunks.flatMap((chunk) => chunk.items).find((item) => item.epoch !== null && item.epoch !== undefined);
    if (!first) return;
    mark([first], epoch);
    if (this.#rows.has(first)) refresh(this.#rows.get(first), this.ownerAt);
  }

  /** Let Tab find this row, and j and k go on from it. */
  #rove(row) {
    if (this.#current) this.#current.children[0].tabIndex = -1;
    this.#current = row;
    row.children[0].tabIndex = 0;
  }

  #keepOne() {
    if (this.#current?.isConnected) return;
    const last = this.#rows.get(this.#chunks.at(-1)?.items.at(-1));
    if (last) this.#rove(last);
  }

  #chunk(items) {
    return { element: h("div", { class: "chunk" }), items, hidden: false };
  }

  #row(item) {
    const row = draw(item, this.ownerAt);
    this.#rows.set(item, row);
    return row;
  }

  #seen(entries) {
    for (const entry of entries) {
      const chunk = this.#chunks.find((one) => one.element === entry.target);
      if (!chunk || chunk.hidden !== entry.isIntersecting) continue;
      if (entry.isIntersecting) this.#show(chunk);
      else if (chunk !== this.#chunks.at(-1)) this.#hide(chunk, entry.boundingClientRect.height);
    }
  }

  #show(chunk) {
    chunk.hidden = false;
    chunk.element.style.height = "";
    chunk.element.append(...chunk.items.map((item) => this.#row(item)));
  }

  #hide(chunk, height) {
    if (chunk.element.contains(document.activeElement)) return;
    chunk.hidden = true;
    for (const item of chunk.items) this.#rows.delete(item);
    chunk.element.replaceChildren();
    chunk.element.style.height = `${height}px`;
    this.#keepOne();
  }

  #scrolled() {
    if (this.scroller.scrollTop < 800) this.wantOlder();
  }

  /** Move the focus by rows; it stands on what opens one. */
  step(by) {
    const rows = [...this.list.querySelectorAll(".event")];
    const here = rows.indexOf(document.activeElement?.closest(".event"));
    const next = here < 0
      ? (by < 0 ? rows.at(-1) : rows.find((row) => row.getBoundingClientRect().top > 60))
      : rows[Math.max(0, Math.min(rows.length - 1, here + by))];
    next?.children[0].focus({ preventScroll: true });
    next?.scrollIntoView({ block: "nearest" });
  }
}
