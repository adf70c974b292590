// Who owned the conversation, from when to when, why it moved, and whose late writes were refused.

import { h } from "./dom.js";
import { between, clock, duration, now } from "./format.js";
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

function refused(writes) {
  if (!writes.length) return "";
  const last = writes[0];
  return h("span", { class: "refused" }, `${writes.length} late ${writes.length === 1 ? "write" : "writes"} refused (${last.operation}, ${clock(last.at)})`);
}

function span(one) {
  const end = one.until ?? new Date(now()).toISOString();
  return h(
    "li",
    { class: one.until ? (LOST.has(one.ended) ? "lost" : "let-go") : "current" },
    h("span", { class: "who" }, chip(one.node), h("span", { class: "epoch" }, `epoch ${one.epoch}`)),
    h("span", { class: "when" }, `${clock(one.since)} – ${one.until ? clock(one.until) : "now"}`, h("span", { class: "for" }, duration(between(one.since, end)))),
    h("span", { class: "how" }, one.until ? (ENDED[one.ended] ?? one.ended ?? "") : one.live_at ? "owns it" : "is starting it", one.failure ? `: ${one.failure}` : ""),
    refused(one.refused ?? []),
  );
}

/** The list, newest first. */
export const ownership = (spans) => h("ol", { class: "ownership" }, [...spans].sort((a, b) => b.epoch - a.epoch).map(span));
