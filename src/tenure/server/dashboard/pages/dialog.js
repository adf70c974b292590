// Dialogs: real ones, which keep the focus inside and give it back.

import { h } from "./dom.js";

let number = 0;

/**
 * Ask before something is done. `says` are the sentences that tell what it will do; `fields` are elements to be filled in
 * (each with a name); `act` does it, and while it throws the dialog stays, with the reason. Resolves to what `act` gave, or
 * undefined when it was left.
 */
export function confirm({ title, says = [], fields = [], verb, grave = false, act }) {
  const label = `dialog-${++number}`;
  return new Promise((done) => {
    const problem = h("p", { class: "problem", role: "alert" });
    const go = h("button", { type: "submit", class: grave ? "grave" : "primary" }, verb);
    const leave = h("button", { type: "button", class: "plain", onclick: () => dialog.close() }, "Cancel");
    const form = h(
      "form",
      { method: "dialog", onsubmit: submit },
      h("h2", { id: label }, title),
      h("div", { class: "says", id: `${label}-says` }, says.map((sentence) => h("p", null, sentence))),
      fields,
      problem,
      h("div", { class: "dialog-end" }, leave, go),
    );
    const dialog = h("dialog", { "aria-labelledby": label, "aria-describedby": `${label}-says` }, form);
    let result;

    async function submit(event) {
      event.preventDefault();
      if (go.disabled) return;
      go.disabled = true;
      form.setAttribute("aria-busy", "true");
      problem.textContent = "";
      try {
        result = (await act(Object.fromEntries(new FormData(form)))) ?? true;
        dialog.close();
      } catch (error) {
        problem.textContent = error.message;
      } finally {
        go.disabled = false;
        form.removeAttribute("aria-busy");
      }
    }

    dialog.addEventListener("close", () => {
      dialog.remove();
      done(result);
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
    document.body.append(dialog);
    dialog.showModal();
    (form.querySelector("input, textarea, select") ?? leave).focus();
  });
}

/** Show what needs no answer. */
export function show(title, ...content) {
  const label = `dialog-${++number}`;
  const shut = h("button", { type: "submit", class: "plain" }, "Close");
  const dialog = h(
    "dialog",
    { "aria-labelledby": label },
    h("form", { method: "dialog" }, h("h2", { id: label }, title), content, h("div", { class: "dialog-end" }, shut)),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/** Ask for the key of this node until one is given. */
export function keyPrompt(refused) {
  return new Promise((done) => {
    const field = h("input", {
      name: "key", type: "password", required: true, autocomplete: "off", spellcheck: "false", "aria-label": "Key",
    });
    const form = h(
      "form",
      { method: "dialog", onsubmit: (event) => (field.value.trim() ? null : event.preventDefault()) },
      h("h2", { id: "key-title" }, "This cluster asks for a key"),
      h("p", { class: "says" }, "It is the node's TENURE_API_KEY. It stays in this tab, and is forgotten with it."),
      field,
      h("p", { class: "problem", role: "alert" }, refused ? "The node refused that key." : ""),
      h("div", { class: "dialog-end" }, h("button", { type: "submit", class: "primary" }, "Open")),
    );
    const dialog = h("dialog", { "aria-labelledby": "key-title" }, form);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      const key = field.value.trim();
      dialog.remove();
      done(key || keyPrompt(refused));
    });
    document.body.append(dialog);
    dialog.showModal();
    field.focus();
  });
}

/** Say something in passing: shown for a while, and read aloud. */
export function toast(words, { grave = false } = {}) {
  const one = h("p", { class: grave ? "toast grave" : "toast" }, words);
  document.getElementById("toasts").append(one);
  setTimeout(() => one.remove(), grave ? 9000 : 5000);
}

/** Read something aloud that is shown elsewhere. */
export function announce(words) {
  document.getElementById("alerts").textContent = words;
}
