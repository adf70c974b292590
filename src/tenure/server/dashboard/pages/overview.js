// The overview: the nodes, the last hour, and takeovers as they happen.

import { ask } from "./api.js";
import { drain } from "./actions.js";
import { h, keyed, part, say } from "./dom.js";
import { ago, count, duration, hue } from "./format.js";
import { moved } from "./words.js";
import { bars, barsTable, times, timesTable } from "./plots.js";
import { freshness } from "./freshness.js";
import { poll } from "./poll.js";

/** A node's name with its colour. */
export const chip = (name, { unknown = "nobody" } = {}) =>
  name ? h("span", { class: `chip hue-${hue(name)}` }, name) : h("span", { class: "chip none" }, unknown);

const asTable = (name) => h("details", { class: "values" }, h("summary", null, "As a table"), h("div", { data: { part: name } }));

const TILES = [
  ["nodes", "nodes"],
  ["held", "conversations held"],
  ["takeovers", "takeovers, last hour"],
  ["turns", "turns, last hour"],
  ["median", "median turn"],
  ["high", "95 % of turns within"],
];

function page(main) {
  main.className = "overview";
  main.append(
    h("h1", { class: "unseen" }, "Overview"),
    h("dl", { class: "tiles" }, TILES.map(([name, words]) => h("div", null, h("dt", null, words), h("dd", { data: { part: name } }, "–")))),
    h(
      "section",
      { class: "card nodes", "aria-labelledby": "nodes-title" },
      h("h2", { id: "nodes-title" }, "Nodes"),
      h(
        "div",
        { class: "rows nodes-rows", role: "table", "aria-labelledby": "nodes-title" },
        h("div", { class: "row head", role: "row" },
          ["Node", "Load", "Lease", "Agents", "Up", ""].map((words) => h("span", { role: "columnheader" }, words))),
        h("div", { role: "rowgroup", data: { part: "nodes-list" } }),
      ),
    ),
    h(
      "div",
      { class: "plots" },
      h("section", { class: "card", "aria-labelledby": "plot-1" }, h("h2", { id: "plot-1" }, "Takeovers per minute"), h("div", { class: "plot", data: { part: "plot-takeovers" } }), asTable("table-takeovers")),
      h("section", { class: "card", "aria-labelledby": "plot-2" },
        h("h2", { id: "plot-2" }, "Turn times",
          h("span", { class: "legend" }, h("i", { class: "line-p50" }), "median", h("i", { class: "line-p95" }), "95 %")),
        h("div", { class: "plot", data: { part: "plot-times" } }), asTable("table-times")),
    ),
    h(
      "section",
      { class: "card feed", "aria-labelledby": "feed-title" },
      h("h2", { id: "feed-title" }, "Takeovers as they happen"),
      h("ol", { class: "feed-list", data: { part: "feed" }, role: "log", "aria-labelledby": "feed-title", "aria-live": "polite", "aria-relevant": "additions" }),
      h("p", { class: "empty", data: { part: "feed-empty" } }, "Not known yet."),
    ),
  );
}

// --- nodes -----------------------------------------------------------------------------------------------------------

function nodeRow(node) {
  const button = h("button", { type: "button", class: "plain small", data: { part: "drain" } }, "Drain…");
  return h(
    "div",
    { class: "row", role: "row" },
    h("span", { role: "cell", class: "node-name" },
      h("a", { href: `#/conversations?owner=${encodeURIComponent(node.node)}`, title: `${node.address} · ${node.incarnation}` }, chip(node.node)),
      h("span", { class: "note", data: { part: "here" } })),
    h("span", { role: "cell", class: "load", "data-label": "Load" },
      h("span", { class: "meter", role: "meter", "aria-valuemin": 0, "aria-label": `conversations held by ${node.node}`, data: { part: "meter" } }, h("i")),
      h("span", { class: "number", data: { part: "load" } })),
    h("span", { role: "cell", class: "number", "data-label": "Lease", data: { part: "lease" } }),
    h("span", { role: "cell", class: "agents", "data-label": "Agents" }, node.agents.join(", ")),
    h("span", { role: "cell", class: "number", "data-label": "Up", data: { part: "up" }, title: node.started_at }),
    h("span", { role: "cell", class: "row-end" }, button),
  );
}

function showNode(row, node, again) {
  const meter = part(row, "meter");
  meter.setAttribute("aria-valuemax", node.capacity);
  meter.setAttribute("aria-valuenow", node.owned);
  const full = node.owned / Math.max(1, node.capacity);
  meter.firstChild.style.width = `${Math.min(100, 100 * full)}%`;
  meter.classList.toggle("full", full > 0.85);
  say(part(row, "load"), `${count(node.owned)} / ${count(node.capacity)}`);
  const lost = node.expires_in_s <= 0;
  say(part(row, "lease"), lost ? `expired ${duration(-node.expires_in_s)} ago` : `${duration(node.lease_age_s)} old, ${duration(node.expires_in_s)} left`);
  part(row, "lease").title = `renewed ${duration(node.lease_age_s)} ago; without a renewal others take over in ${duration(node.expires_in_s)}`;
  say(part(row, "up"), ago(node.started_at));
  say(part(row, "here"), [node.here ? "serves this page" : "", node.draining ? "draining" : "", lost ? "silent" : ""].filter(Boolean).join(" · "));
  row.dataset.state = lost ? "silent" : node.draining ? "draining" : "alive";
  const button = part(row, "drain");
  button.disabled = node.draining || lost;
  button.setAttribute("aria-label", `Drain ${node.node}`);
  button.onclick = () => drain(node).then(again);
}

// --- takeovers -------------------------------------------------------------------------------------------------------

function takeoverRow(one) {
  return h(
    "li",
    { class: "takeover" },
    h("time", { datetime: one.at, data: { part: "ago" } }),
    h("a", { href: `#/c/${encodeURIComponent(one.conversation_id)}`, class: "id" }, one.conversation_id),
    h("span", { class: "move" },
      chip(one.previous_node, { unknown: "a lost node" }), h("span", { class: "arrow", "aria-label": "to" }, "→"), chip(one.node)),
    h("span", { class: "epoch" }, `epoch ${one.epoch}`),
    h("span", { class: "why" }, moved(one)),
  );
}

/** The last takeovers, into `list`. */
function showTakeovers(main, takeovers, all) {
  keyed(part(main, "feed"), takeovers, (one) => `${one.conversation_id}@${one.epoch}`, takeoverRow, (row, one) => say(part(row, "ago"), ago(one.at)));
  const empty = part(main, "feed-empty");
  const more = all - takeovers.length;
  say(empty, all === 0 ? "None in the last hour." : more > 0 ? `These are the last ${count(takeovers.length)}; ${count(more)} more in the last hour.` : "");
  empty.hidden = empty.textContent === "";
}

function showHour(main, { hour, minutes, takeovers }) {
  say(part(main, "takeovers"), count(hour.takeovers));
  say(part(main, "turns"), count(hour.completed + hour.failed + hour.interrupted));
  say(part(main, "median"), duration(hour.p50_s));
  say(part(main, "high"), duration(hour.p95_s));
  bars(part(main, "plot-takeovers"), minutes);
  times(part(main, "plot-times"), minutes);
  barsTable(part(main, "table-takeovers"), minutes);
  timesTable(part(main, "table-times"), minutes);
  showTakeovers(main, takeovers, Math.max(hour.takeovers, takeovers.length));
}

function showNodes(main, nodes, again) {
  const alive = nodes.filter((node) => node.expires_in_s > 0);
  say(part(main, "nodes"), count(alive.length));
  say(part(main, "held"), count(alive.reduce((sum, node) => sum + node.owned, 0)));
  const ordered = [...nodes].sort((a, b) => a.node.localeCompare(b.node) || a.started_at.localeCompare(b.started_at));
  keyed(part(main, "nodes-list"), ordered, (node) => node.incarnation, nodeRow, (row, node) => showNode(row, node, again));
}

export function overview(main) {
  page(main);
  const heard = freshness(main);
  const nodes = poll(async () => showNodes(main, await ask("nodes"), () => nodes.hasten()), 1000, heard("nodes"));
  const hour = poll(async () => showHour(main, await ask("activity")), 1500, heard("hour"));
  return {
    title: "Overview",
    leave() {
      nodes.close();
      hour.close();
    },
  };
}
