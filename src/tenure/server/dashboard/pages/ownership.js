// Who owned the conversation, from when to when, why it moved, and whose late writes were refused.

import { h, keyed, part, say } from "./dom.js";
import { between, clock, count, duration, now } from "./format.js";
import { chip } from "./overview.js";

const ENDED = {
  idle: "released: nothing left to do",
  drained: "released: its node was drained",
  stopped: "released: stopped",
  failed: "released: could not be started",
  released: "released",
  died: "its process died",
  frozen: "frozen or cut off; it woke too late",
  expired: "its lease ran out",
  gave_up: "could not renew in time, and gave up",
  forced: "taken over by force",
  reclaimed: "claimed anew by its own node",
  lost: "did not release",
};
const LOST = new Set(["died", "frozen", "expired", "gave_up", "forced", "lost"]);

const MOST_WRITES = 200; // that are listed one by one

const from = (first, last) => (clock(first) === clock(last) ? clock(first) : `${clock(first)} – ${clock(last)}`);

/** How many of which, from when to when; and each, for whoever asks. They come oldest first. */
function refused(writes) {
  if (!writes.length) return "";
  const counts = new Map();
  for (const { operation } of writes) counts.set(operation, (counts.get(operation) ?? 0) + 1);
  const which = [...counts].map(([operation, times]) => `${count(times)} ${operation}`).join(", ");
  const shown = writes.slice(-MOST_WRITES);
  const left = writes.length - shown.length;
  return h("details", { class: "refused" },
    h("summary", null, `${count(writes.length)} late ${writes.length === 1 ? "write" : "writes"} refused`, h("span", { class: "which" }, `${which} · ${from(writes[0].at, writes.at(-1).at)}`)),
    left ? h("p", null, `The last ${count(shown.length)} of them:`) : "",
    h("ol", null, shown.map(({ at, operation }) => h("li", null, h("time", { datetime: at, title: at }, clock(at)), ` ${operation}`))));
}

function draw(row, one) {
  row.className = one.until ? (LOST.has(one.ended) ? "lost" : "let-go") : "current";
  row.replaceChildren(
    h("span", { class: "who" }, chip(one.node), h("span", { class: "epoch" }, `epoch ${one.epoch}`)),
    h("span", { class: "when" }, `${clock(one.since)} – ${one.until ? clock(one.until) : "now"}`, h("span", { class: "for", data: { part: "for" } })),
    h("span", { class: "how" }, one.until ? (ENDED[one.ended] ?? one.ended ?? "") : one.live_at ? "owns it" : "is starting it", one.failure ? `: ${one.failure}` : ""),
    refused(one.refused ?? []),
  );
}

/** Draw anew what changed only, so that what was opened stays open; a present owner's time goes on. */
function update(row, one) {
  const state = JSON.stringify(one);
  if (row.dataset.of !== state) {
    row.dataset.of = state;
    draw(row, one);
  }
  say(part(row, "for"), duration(between(one.since, one.until ?? new Date(now()).toISOString())));
}

/** The list, newest first, into `list`. */
export const ownership = (list, spans) =>
  keyed(list, [...spans].sort((a, b) => b.epoch - a.epoch), (one) => one.epoch, () => h("li"), update);
