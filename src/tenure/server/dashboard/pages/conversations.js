// All conversations: filtered, searched, page by page, in order of creation.

import { ask } from "./api.js";
import { h, keyed, part, say } from "./dom.js";
import { ago, count, duration } from "./format.js";
import { chip } from "./overview.js";
import { freshness } from "./freshness.js";
import { poll } from "./poll.js";

const PAGE = 50;
const ASKS = 8; // a page of the API may be short: so many are put together for one of ours
export const STATUSES = ["running", "queued", "starting", "waiting", "idle", "stopped", "failed"];

/** A conversation's status, as everywhere. */
export const pill = (status, words = status) => h("span", { class: `pill ${status}`, data: { part: "status" } }, words);

function row() {
  const cell = (name, label, ...more) => h("span", { role: "cell", class: `c-${name}`, "data-label": label, data: { part: name } }, more);
  return h(
    "div",
    { class: "row", role: "row" },
    h("span", { role: "cell", class: "c-name" },
      h("a", { data: { part: "link" } }, h("span", { class: "id", data: { part: "id" } })), h("span", { class: "title", data: { part: "title" } })),
    h("span", { role: "cell", class: "c-status" }, pill("idle")),
    cell("owner", "Owner"),
    cell("epoch", "Epoch"),
    cell("since", "Since"),
    cell("expires", "Expires in"),
    cell("events", "Events"),
    cell("agent", "Agent"),
    cell("updated", "Last event"),
  );
}

function show(line, one) {
  part(line, "link").href = `#/c/${encodeURIComponent(one.id)}`;
  say(part(line, "id"), one.id);
  say(part(line, "title"), one.title ?? "");
  const status = part(line, "status");
  status.className = `pill ${one.status}`;
  say(status, one.status);
  status.title = one.agent_status ? `its loop says: ${one.agent_status}` : "";
  const owner = part(line, "owner");
  if (owner.dataset.of !== (one.owner?.node ?? "")) {
    owner.dataset.of = one.owner?.node ?? "";
    owner.replaceChildren(chip(one.owner?.node));
  }
  say(part(line, "epoch"), String(one.epoch));
  say(part(line, "since"), one.owner ? ago(one.owner.since) : "–");
  say(part(line, "expires"), one.owner?.expires_in_s != null ? duration(one.owner.expires_in_s) : "–");
  say(part(line, "events"), count(one.last_seq));
  say(part(line, "agent"), one.agent);
  say(part(line, "updated"), ago(one.updated_at));
}

const HEADS = ["Conversation", "Status", "Owner", "Epoch", "Since", "Expires in", "Events", "Agent", "Last event"];

function page(main, filters, apply) {
  const options = (values, all) => [h("option", { value: "" }, all), values.map((value) => h("option", { value }, value))];
  const search = h("input", { type: "search", name: "search", placeholder: "id, title, user or agent", "aria-label": "Search", value: filters.search, autocomplete: "off", spellcheck: "false" });
  const status = h("select", { name: "status", "aria-label": "Status" }, options(STATUSES, "any status"));
  const owner = h("select", { name: "owner", "aria-label": "Owner" }, options(filters.owner ? [filters.owner] : [], "any owner"));
  status.value = filters.status;
  owner.value = filters.owner;
  main.className = "conversations";
  main.append(
    h("div", { class: "bar" },
      h("h1", null, "Conversations"),
      h("form", { class: "filters", role: "search", onsubmit: (event) => { event.preventDefault(); apply(); }, onchange: apply }, search, status, owner)),
    h("section", { class: "card", "aria-label": "Conversations" },
      h("div", { class: "rows conversations-rows", role: "table", "aria-label": "Conversations", "aria-busy": "true", data: { part: "table" } },
        h("div", { class: "row head", role: "row" }, HEADS.map((words) => h("span", { role: "columnheader" }, words))),
        h("div", { role: "rowgroup", data: { part: "list" } })),
      h("p", { class: "empty", data: { part: "empty" } }, "Not known yet.")),
    h("div", { class: "pages" },
      h("button", { type: "button", class: "plain", data: { part: "previous" }, disabled: true }, "← Previous"),
      h("span", { class: "note", data: { part: "where" }, role: "status" }),
      h("button", { type: "button", class: "plain", data: { part: "next" }, disabled: true }, "Next →")),
  );
  return { search, status, owner };
}

/** One page of ours from as many of the API's as it takes, within a bound. */
async function gather(filters, from) {
  const found = [];
  let cursor = from;
  for (let asked = 0; asked < ASKS && found.length < PAGE; asked++) {
    const reply = await ask("conversations", { query: { ...filters, limit: PAGE - found.length, cursor } });
    found.push(...reply.conversations);
    cursor = reply.next_cursor;
    if (cursor === null) break;
  }
  return { found, next: cursor };
}

export function conversations(main, query) {
  const filters = Object.fromEntries(["search", "status", "owner"].map((name) => [name, query.get(name) ?? ""]));
  const cursors = [undefined]; // of the pages up to this one
  let next = null;
  let over = false;
  const fields = page(main, filters, apply);
  const list = part(main, "list");

  function apply() {
    const wanted = new URLSearchParams();
    for (const name of ["search", "status", "owner"]) {
      const value = fields[name].value.trim();
      if (value) wanted.set(name, value);
    }
    const hash = `#/conversations${wanted.size ? `?${wanted}` : ""}`;
    if (hash !== location.hash) {
      history.replaceState(null, "", hash);
      for (const name of ["search", "status", "owner"]) filters[name] = wanted.get(name) ?? "";
      cursors.length = 1;
      looking.hasten();
    }
  }

  let typed;
  fields.search.addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(apply, 250);
  });

  async function look() {
    const [from, asked] = [cursors.at(-1), JSON.stringify(filters)];
    const reply = await gather(filters, from);
    if (over || from !== cursors.at(-1) || asked !== JSON.stringify(filters)) return;
    next = reply.next;
    keyed(list, reply.found, (one) => one.id, row, show);
    part(main, "table").removeAttribute("aria-busy");
    const empty = part(main, "empty");
    empty.hidden = reply.found.length > 0;
    const filtered = Object.values(filters).some(Boolean);
    say(empty, next ? "None here; there may be more on the next pages." : filtered ? "None that fit." : "No conversations yet.");
    say(part(main, "where"), `page ${cursors.length}${reply.found.length ? ` · ${reply.found.length} shown` : ""}`);
    part(main, "previous").disabled = cursors.length === 1;
    part(main, "next").disabled = next === null;
  }

  function turn(back) {
    if (back ? cursors.length === 1 : next === null) return;
    if (back) cursors.pop();
    else cursors.push(next);
    next = null;
    looking.hasten();
    window.scrollTo(0, 0);
  }

  function step(by) {
    const links = [...list.querySelectorAll("a")];
    const here = links.indexOf(document.activeElement);
    links[Math.max(0, Math.min(links.length - 1, here + by))]?.focus();
  }

  part(main, "previous").onclick = () => turn(true);
  part(main, "next").onclick = () => turn(false);
  const heard = freshness(main);
  const listed = heard("conversations");
  const looking = poll(look, 2000, (error, failures) => {
    listed(error, failures);
    if (error) say(part(main, "where"), error.message);
  });
  const owners = poll(async () => {
    const names = [...new Set([...(await ask("nodes")).map((node) => node.node), ...(filters.owner ? [filters.owner] : [])])].sort();
    const known = [...fields.owner.options].map((option) => option.value);
    for (const name of names) if (!known.includes(name)) fields.owner.append(h("option", { value: name }, name));
  }, 5000);
  return {
    title: "Conversations",
    shortcuts: {
      "/": ["search", () => fields.search.focus()],
      j: ["next conversation", () => step(1)],
      k: ["previous conversation", () => step(-1)],
      n: ["next page", () => turn(false)],
      p: ["previous page", () => turn(true)],
    },
    leave() {
      over = true;
      clearTimeout(typed);
      looking.close();
      owners.close();
    },
  };
}
