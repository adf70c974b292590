// One conversation: its journal as it grows, who owns it, and what a person may do.

import { answer, interrupt, start, stop, takeOver } from "./actions.js";
import { ask, at, command, newKey, Problem } from "./api.js";
import { announce, toast } from "./dialog.js";
import { h, part, say } from "./dom.js";
import { ago, count, day, clock, duration } from "./format.js";
import { Journal } from "./journal.js";
import { ownership } from "./ownership.js";
import { chip } from "./overview.js";
import { pill } from "./conversations.js";
import { freshness } from "./freshness.js";
import { poll } from "./poll.js";
import { Follow } from "./stream.js";
import { Timeline } from "./timeline.js";
import { askWords } from "./words.js";

const LATEST = 200; // events that are read at first
const BACK = 500; // and so many at a time as the reader goes back
const MOST_ITEMS = 20_000; // then only the latest are kept
const LIVE_CHARS = 8000;
const OWNERS = 60; // the last so many are listed

function page(main, id) {
  main.className = "conversation";
  // What may be done is known with the record; until then nothing may.
  const button = (name, words, hidden = false) => h("button", { type: "button", class: "plain", data: { part: name }, disabled: true, hidden }, words);
  const tab = (name, words) => h("button", { type: "button", "aria-pressed": "false", data: { tab: name } }, words);
  main.append(
    h("header", { class: "who" },
      h("div", { class: "names" },
        h("a", { href: "#/conversations", class: "back", "aria-label": "All conversations" }, "‹"),
        h("h1", null, h("span", { class: "id" }, id)),
        h("span", { class: "title", data: { part: "title" } })),
      h("div", { class: "facts" },
        pill("unknown", "not known yet"),
        h("span", { data: { part: "owner" } }),
        h("span", { class: "note", data: { part: "lease" } }),
        h("span", { class: "note", data: { part: "waits" } }),
        h("span", { class: "problem", data: { part: "failure" } })),
      h("div", { class: "actions", role: "group", "aria-label": "What you may do" },
        button("interrupt", "Interrupt…"), button("stop", "Stop…"), button("start", "Start…", true), button("answer", "Answer…", true), button("takeover", "Take over…"))),
    h("div", { class: "tabs", role: "group", "aria-label": "Show" }, tab("journal", "Journal"), tab("ownership", "Ownership"), tab("details", "Details")),
    h("div", { class: "panes" },
      h("section", { class: "card story", "aria-label": "Journal" },
        h("div", { class: "scroller", tabindex: "0", "aria-label": "Journal, scrollable", data: { part: "scroller" } },
          h("button", { type: "button", class: "older", data: { part: "older" }, hidden: true }),
          h("p", { class: "empty", data: { part: "problem" }, hidden: true })),
        h("div", { class: "live", data: { part: "live" }, hidden: true, "aria-label": "being written" }),
        h("button", { type: "button", class: "to-end", data: { part: "to-end" }, hidden: true }, "Newer events ↓"),
        h("form", { class: "composer", data: { part: "composer" } },
          h("textarea", { name: "text", rows: 1, placeholder: "Send a message", "aria-label": "Message", data: { part: "text" }, disabled: true }),
          h("button", { type: "submit", class: "primary", data: { part: "send" }, disabled: true }, "Send"))),
      h("aside", { class: "side" },
        h("section", { class: "card owners", "aria-labelledby": "ownership-title" }, h("h2", { id: "ownership-title" }, "Ownership"), h("ol", { class: "ownership", data: { part: "ownership" } })),
        h("section", { class: "card about", "aria-labelledby": "details-title" }, h("h2", { id: "details-title" }, "Details"), h("dl", { class: "details", data: { part: "details" } })))),
  );
}

class View {
  record = null;
  here = null; // the node that serves this page, once it has said so
  journal = new Journal();
  follow = null;
  over = false;
  loading = false;
  queue = [];
  draft = null; // what was sent and not answered: its text and its key

  constructor(main, id) {
    this.main = main;
    this.id = id;
    page(main, id);
    this.timeline = new Timeline(this.part("scroller"), () => this.older());
    this.part("older").onclick = () => this.older();
    this.part("to-end").onclick = () => this.toEnd();
    this.part("scroller").addEventListener("scroll", () => this.timeline.atEnd && (this.part("to-end").hidden = true), { passive: true });
    this.wire();
    this.turnTo("journal");
    const heard = freshness(main);
    const recorded = heard("record");
    this.looking = poll(() => this.look(), 2000, (error, failures) => {
      recorded(error, failures);
      this.failed(error);
    });
    this.owning = poll(() => this.showOwnership(), 4000, heard("ownership"));
  }

  part(name) {
    return part(this.main, name);
  }

  leave() {
    this.over = true;
    this.looking.close();
    this.owning.close();
    this.follow?.close();
    this.timeline.clear();
  }

  // --- the record ----------------------------------------------------------------------------------------------------

  async look() {
    const record = await ask(at(this.id));
    this.here ??= (await ask("nodes")).find((node) => node.here)?.node ?? null;
    if (this.over) return;
    this.record = record;
    this.show();
    if (this.follow === null) this.open();
  }

  /** An outage passes, and the banner tells it; what was refused will be refused again. */
  failed(error) {
    if (error instanceof Problem && error.status < 500) this.gone(error);
  }

  gone(error) {
    this.looking.close();
    this.owning.close();
    const problem = this.part("problem");
    problem.hidden = false;
    say(problem, error.status === 404 ? `There is no conversation ${this.id}.` : error.message);
    for (const one of this.main.querySelectorAll(".actions button, .composer button, .composer textarea")) one.disabled = true;
  }

  show() {
    const one = this.record;
    const status = this.part("status");
    status.className = `pill ${one.status}`;
    say(status, one.status);
    say(this.part("title"), one.title ?? "");
    const owner = this.part("owner");
    if (owner.dataset.of !== `${one.owner?.node}`) {
      owner.dataset.of = `${one.owner?.node}`;
      owner.replaceChildren(chip(one.owner?.node));
    }
    say(this.part("lease"), one.owner
      ? `epoch ${one.epoch} · for ${ago(one.owner.since)} · lease expires in ${duration(one.owner.expires_in_s)}`
      : `epoch ${one.epoch}`);
    say(this.part("waits"), [
      one.unsettled ? `${count(one.unsettled)} unsettled` : "",
      one.retry_in_s ? `tried again in ${duration(one.retry_in_s)}` : "",
      one.agent_status ? `loop: ${one.agent_status}` : "",
    ].filter(Boolean).join(" · "));
    const failure = one.failure ?? null;
    say(this.part("failure"), failure ? `It does not go on: ${failure.reason}${failure.step ? ` (at ${failure.step})` : ""}` : "");
    this.showDetails(one);
    this.showActions();
  }

  showDetails(one) {
    const facts = [
      ["Agent", one.agent], ["User", one.user_id ?? "–"], ["Events", count(one.last_seq)], ["Policy", one.policy],
      ["Created", `${day(one.created_at)} ${clock(one.created_at)}`], ["Last event", `${ago(one.updated_at)} ago`.replace("now ago", "now")],
      ...(one.owner ? [["Owner's address", one.owner.address], ["Incarnation", one.owner.incarnation]] : []),
      ["Settings", JSON.stringify(one.settings ?? {}, null, 1)], ["Metadata", JSON.stringify(one.metadata ?? {}, null, 1)],
    ].filter(([, value]) => value !== "{}");
    const list = this.part("details");
    const state = JSON.stringify(facts);
    if (list.dataset.of === state) return;
    list.dataset.of = state;
    list.replaceChildren(...facts.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
  }

  showActions() {
    const one = this.record;
    const stopped = one.status === "stopped";
    const busy = ["running", "waiting", "queued", "starting"].includes(one.status);
    this.part("interrupt").disabled = !busy || stopped;
    for (const name of ["stop", "start", "answer"]) this.part(name).disabled = false;
    this.part("stop").hidden = stopped;
    this.part("start").hidden = !(stopped || one.status === "failed" || one.owner === null);
    this.part("answer").hidden = one.status !== "waiting";
    this.part("takeover").disabled = one.owner?.node === this.here;
    this.part("takeover").title = one.owner?.node === this.here ? `${this.here}, which serves this page, owns it` : "";
    this.part("text").placeholder = stopped ? "Stopped: start it before you send a message" : "Send a message";
    this.part("text").disabled = this.part("send").disabled = stopped;
  }

  async showOwnership() {
    const tenures = [];
    for (let after = 0; after !== null; ) {
      const reply = await ask(at(this.id, "/timeline"), { query: { after, limit: 1000 } });
      tenures.push(...reply.tenures);
      after = reply.next_after;
    }
    if (this.over) return;
    for (const one of tenures) this.timeline.owned(one.epoch, one.node);
    ownership(this.part("ownership"), tenures.slice(-OWNERS));
  }

  /** On a narrow screen one of the three is shown at a time; on a wide one they stand side by side. */
  turnTo(name) {
    this.main.dataset.tab = name;
    for (const tab of this.main.querySelectorAll(".tabs button")) tab.setAttribute("aria-pressed", String(tab.dataset.tab === name));
  }

  // --- the journal ---------------------------------------------------------------------------------------------------

  /** From the latest events on. */
  open() {
    this.follow?.close();
    this.journal = new Journal();
    this.timeline.clear();
    this.queue = [];
    if (this.record.owner) this.timeline.owned(this.record.epoch, this.record.owner.node);
    this.follow = new Follow(this.id, Math.max(0, this.record.last_seq - LATEST), {
      event: (event) => this.hear(event),
      delta: (body) => this.hearDelta(body),
      state: (state) => (this.main.dataset.stream = state),
      gone: (problem) => this.gone(problem),
      rewound: () => {
        toast("The store was set back: the journal is read anew.", { grave: true });
        ask(at(this.id)).then((record) => ((this.record = record), this.open()), (error) => this.failed(error));
      },
    });
  }

  hear(event) {
    if (this.queue.push(event) === 1) setTimeout(() => this.tell(), 16); // many that come at once are drawn at once
  }

  tell() {
    if (this.over || !this.queue.length) return;
    const items = new Set();
    for (const event of this.queue) {
      if (event.kind === "claimed") this.timeline.owned(event.epoch, event.body.node);
      for (const item of this.journal.add(event)) items.add(item);
      this.tellAloud(event);
    }
    const last = this.queue.at(-1);
    this.queue = [];
    if (this.timeline.size > MOST_ITEMS && this.timeline.atEnd) {
      this.record.last_seq = last.seq;
      this.open();
      return;
    }
    if (!this.timeline.put(items)) this.part("to-end").hidden = false;
    if (!last.kind.startsWith("call_")) this.part("live").hidden = true;
    this.showOlder();
    this.looking.hasten();
    if (["claimed", "released", "loop_started"].includes(last.kind)) this.owning.hasten();
  }

  tellAloud({ kind, body }) {
    if (kind === "claimed" && body.previous) announce(`${body.node} took over`);
    else if (kind === "turn_waiting" && body.ask) announce("The turn waits for an answer");
    else if (kind === "turn_completed") announce("Turn completed");
    else if (kind === "turn_failed") announce("Turn failed");
  }

  hearDelta(body) {
    const live = this.part("live");
    const words = typeof body.text === "string" ? body.text : JSON.stringify(body);
    const before = live.hidden ? "" : live.textContent;
    live.textContent = (before + words).slice(-LIVE_CHARS);
    live.hidden = false;
    live.scrollTop = live.scrollHeight;
  }

  showOlder() {
    const left = this.journal.first - 1;
    this.part("older").hidden = !(left > 0);
    say(this.part("older"), this.loading ? "Reading…" : `Read back: ${count(left)} earlier events`);
  }

  async older() {
    const { journal } = this;
    if (this.loading || journal.first <= 1 || this.over) return;
    this.loading = true;
    this.showOlder();
    try {
      const events = [];
      let after = Math.max(0, journal.first - 1 - BACK);
      while (after < journal.first - 1) {
        const reply = await ask(at(this.id, "/events"), { query: { after, limit: journal.first - 1 - after } });
        if (!reply.events.length) break;
        events.push(...reply.events.filter((event) => event.seq < journal.first));
        after = reply.next_after;
      }
      if (this.over || journal !== this.journal) return;
      for (const event of events) if (event.kind === "claimed") this.timeline.owned(event.epoch, event.body.node);
      const { fresh, gone } = journal.older(events);
      this.timeline.putBefore(fresh, gone);
    } catch (error) {
      toast(error.message, { grave: true });
    } finally {
      this.loading = false;
      this.showOlder();
    }
  }

  toEnd() {
    this.part("to-end").hidden = true;
    this.timeline.toEnd();
  }

  // --- what a person does --------------------------------------------------------------------------------------------

  wire() {
    const act = (name, what) =>
      (this.part(name).onclick = () =>
        what().then(() => this.looking.hasten(), (error) => toast(error.message, { grave: true })));
    act("interrupt", () => interrupt(this.record));
    act("stop", () => stop(this.record));
    act("start", () => start(this.record));
    act("answer", () => this.answer());
    act("takeover", () => takeOver(this.record, this.here ?? "the node that serves this page"));
    for (const tab of this.main.querySelectorAll(".tabs button")) tab.onclick = () => this.turnTo(tab.dataset.tab);
    const text = this.part("text");
    this.part("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    text.addEventListener("input", () => {
      text.style.height = "auto";
      text.style.height = `${Math.min(160, text.scrollHeight)}px`;
    });
  }

  async answer() {
    const body = this.journal.asks?.body ?? (await this.lastQuestion()); // it may be older than what is shown
    return answer(this.record, { ask: body.ask ?? null, words: askWords(body) });
  }

  async lastQuestion() {
    let last = { ask: "" };
    for (let after = 0, head = 1; after < head; ) {
      const reply = await ask(at(this.id, "/events"), { query: { after, limit: 1000, kind: "turn_waiting" } });
      last = reply.events.at(-1)?.body ?? last;
      if (reply.next_after <= after) break;
      [after, head] = [reply.next_after, reply.last_seq];
    }
    return last;
  }

  /** Send what is written. The key belongs to the text: sent again, it is the same message. */
  async send() {
    const field = this.part("text");
    const text = field.value;
    if (!text.trim() || this.part("send").disabled || this.sending) return;
    if (this.draft?.text !== text) this.draft = { text, key: newKey() };
    this.sending = true;
    const button = this.part("send");
    button.setAttribute("aria-busy", "true");
    say(button, "Sending…");
    try {
      const reply = await command(at(this.id, "/messages"), { text }, { key: this.draft.key, onRetry: () => say(button, "Trying again…") });
      this.draft = null;
      if (field.value === text) {
        field.value = "";
        field.style.height = "";
      }
      announce(`Message accepted at ${reply.seq}`);
      this.toEnd();
    } catch (error) {
      toast(`Not sent: ${error.message}`, { grave: true });
    } finally {
      this.sending = false;
      button.removeAttribute("aria-busy");
      say(button, "Send");
    }
  }

  press(name) {
    const button = this.part(name);
    if (!button.hidden && !button.disabled) button.click();
  }
}

export function conversation(main, id) {
  const view = new View(main, id);
  const journal = (then) => () => {
    view.turnTo("journal");
    then();
  };
  return {
    title: id,
    leave: () => view.leave(),
    shortcuts: {
      m: ["write a message", journal(() => view.part("text").focus())],
      i: ["interrupt", () => view.press("interrupt")],
      s: ["stop, or start", () => view.press(view.part("stop").hidden ? "start" : "stop")],
      a: ["answer", () => view.press("answer")],
      t: ["take over", () => view.press("takeover")],
      j: ["next event", journal(() => view.timeline.step(1))],
      k: ["previous event", journal(() => view.timeline.step(-1))],
      Enter: ["the focused event, to the letter"], // done by its button
      e: ["the newest event", journal(() => view.toEnd())],
    },
  };
}
