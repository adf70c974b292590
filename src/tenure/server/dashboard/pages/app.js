// The frame around the views: where we are, whether the node answers, colours, shortcuts, the key.

import { keyAskedBy, onLink } from "./api.js";
import { conversation } from "./conversation.js";
import { conversations } from "./conversations.js";
import { announce, keyPrompt, show } from "./dialog.js";
import { h } from "./dom.js";
import { overview } from "./overview.js";

const main = document.getElementById("main");
let leave = () => {};
let shortcuts = {};

// --- views -----------------------------------------------------------------------------------------------------------

function place() {
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
  const [, first = "", ...rest] = path.split("/");
  return { first, id: rest.join("/"), query: new URLSearchParams(query) };
}

function named(id) {
  try {
    return decodeURIComponent(id);
  } catch {
    return id;
  }
}

function enter() {
  leave();
  const { first, id, query } = place();
  main.replaceChildren();
  main.className = "";
  shortcuts = {};
  const view = first === "c" && id ? "conversation" : first === "conversations" ? "conversations" : "overview";
  for (const link of document.querySelectorAll("nav [data-view]")) {
    const here = link.dataset.view === (view === "conversation" ? "conversations" : view);
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const open = { overview, conversations, conversation }[view];
  const opened = open(main, view === "conversation" ? named(id) : query);
  leave = opened.leave;
  shortcuts = opened.shortcuts ?? {};
  document.title = `${opened.title} · Tenure`;
  main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the fragment is our address
  main.focus();
});

// --- the link to the node --------------------------------------------------------------------------------------------

const WORDS = {
  connecting: "connecting", live: "live", reconnecting: "reconnecting…",
  storeless: "store does not answer", failing: "node answers with errors",
};
const ALOUD = { reconnecting: "Reconnecting", storeless: "The store does not answer", failing: "The node answers with errors" };
onLink((state) => {
  const link = document.getElementById("link");
  if (state === "live" && link.dataset.state in ALOUD) announce("Connected again");
  if (state in ALOUD) announce(ALOUD[state]);
  link.dataset.state = state;
  document.getElementById("link-text").textContent = WORDS[state];
});
keyAskedBy(keyPrompt);

// --- colours ---------------------------------------------------------------------------------------------------------

const CHOICES = ["system", "light", "dark"];
const SIGNS = { system: "◐", light: "○", dark: "●" };
const themeButton = document.getElementById("theme");

function showTheme() {
  const choice = document.documentElement.dataset.theme;
  themeButton.textContent = SIGNS[choice];
  themeButton.setAttribute("aria-label", `Colours: ${choice === "system" ? "as the system" : choice}`);
}

function nextTheme() {
  const choice = CHOICES[(CHOICES.indexOf(document.documentElement.dataset.theme) + 1) % CHOICES.length];
  document.documentElement.dataset.theme = choice;
  try {
    localStorage.setItem("tenure.theme", choice);
  } catch {
    // for this load only
  }
  showTheme();
  announce(themeButton.getAttribute("aria-label"));
}

themeButton.addEventListener("click", nextTheme);
showTheme();

// --- shortcuts -------------------------------------------------------------------------------------------------------

const EVERYWHERE = {
  "g o": ["the overview", () => (location.hash = "#/")],
  "g c": ["all conversations", () => (location.hash = "#/conversations")],
  d: ["light, dark, or as the system", nextTheme],
  "?": ["these shortcuts", showShortcuts],
};
let begun = "";

function showShortcuts() {
  const rows = (those) =>
    Object.entries(those).map(([keys, [words]]) =>
      h("div", null, h("dt", null, keys.split(" ").map((key) => h("kbd", null, key))), h("dd", null, words)),
    );
  show(
    "Keyboard shortcuts",
    Object.keys(shortcuts).length ? [h("h3", null, "On this page"), h("dl", { class: "keys" }, rows(shortcuts))] : [],
    h("h3", null, "Everywhere"),
    h("dl", { class: "keys" }, rows(EVERYWHERE)),
  );
}

document.getElementById("keys").addEventListener("click", showShortcuts);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.closest("input, textarea, select");
  if (typing) {
    if (event.key === "Escape") {
      event.preventDefault(); // or else the browser empties a search, and the list is another one
      typing.blur();
    }
    return;
  }
  const keys = begun ? `${begun} ${event.key}` : event.key;
  begun = begun === "" && event.key === "g" ? "g" : "";
  const found = { ...EVERYWHERE, ...shortcuts }[keys];
  if (found?.[1]) {
    event.preventDefault();
    found[1]();
  }
});

window.addEventListener("hashchange", enter);
enter();
