// Dialogs: real ones, which keep the focus inside and give it back.

import { h, say } from "./dom.js";

const PATIENCE_MS = 1500; // then whoever waits for an answer may give up

let number = 0;

/**
 * Ask before something is done. `says` are the sentences that tell what it will do; `fields` are elements to be filled in
 * (each with a name); `act` does it, and while it throws the dialog stays, with the reason. Resolves to what `act` gave, or
 * undefined when it was left.
 *
 * While it is done the dialog cannot be left: Cancel would say that nothing was. When that takes long it can be given up by
 * `signal`, the second argument of `act`; then the dialog says that it may have been done, and stays until that was read.
 */
export function confirm({ title, says = [], fields = [], verb, grave = false, act }) {
  const label = `dialog-${++number}`;
  return new Promise((done) => {
    const problem = h("p", { class: "problem", role: "alert" });
    const go = h("button", { type: "submit", class: grave ? "grave" : "primary" }, verb);
    const leave = h("button", { type: "button", class: "plain", onclick: () => (doing ? doing.abort() : dialog.close()) }, "Cancel");
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
    let doing = null; // while it is done: what gives it up
    let pressed = null; // where the pointer went down

    function busy(controller) {
      doing = controller;
      go.disabled = leave.disabled = doing !== null;
      form.setAttribute("aria-busy", String(doing !== null));
      say(leave, "Cancel");
    }

    async function submit(event) {
      event.preventDefault();
      if (doing) return;
      problem.textContent = "";
      const filled = Object.fromEntries(new FormData(form));
      const controller = new AbortController();
      busy(controller);
      const late = setTimeout(() => {
        say(leave, "Give up");
        leave.disabled = false;
      }, PATIENCE_MS);
      try {
        result = (await act(filled, controller.signal)) ?? true;
      } catch (error) {
        problem.textContent = controller.signal.aborted
          ? "Given up. It may have been done all the same: look before you do it again."
          : error.message;
      } finally {
        clearTimeout(late);
        busy(null);
      }
      if (controller.signal.aborted) say(leave, "Close");
      if (result !== undefined) dialog.close();
    }

    const stay = (event) => doing && event.preventDefault();
    dialog.addEventListener("cancel", stay);
    dialog.addEventListener("keydown", (event) => event.key === "Escape" && stay(event)); // a second one would be no `cancel`
    dialog.addEventListener("close", () => {
      if (doing) {
        dialog.showModal(); // a browser may insist, on a phone's gesture
        return;
      }
      dialog.remove();
      done(result);
    });
    dialog.addEventListener("pointerdown", (event) => (pressed = event.target));
    dialog.addEventListener("click", (event) => {
      const beside = event.target === dialog && pressed === dialog; // and not the end of a selection of text
      if (beside && !doing) dialog.close();
    });
    document.body.append(dialog);
    dialog.showModal();
    (form.querySelector("textarea") ?? leave).focus();
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

/** Read something aloud that is shown elsewhere, when the reader has said what it is saying. */
export function announce(words) {
  document.getElementById("alerts").textContent = words;
}
