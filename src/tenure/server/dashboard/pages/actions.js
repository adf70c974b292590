// What a person may do, each behind a dialog that says what will come of it.

import { ask, at, command, newKey } from "./api.js";
import { confirm, toast } from "./dialog.js";
import { h } from "./dom.js";
import { count } from "./format.js";

/** A command with a key of its own: asked again it is the same command. */
function keyed(id, rest, told) {
  const key = newKey();
  return async (body, signal) => {
    const reply = await command(at(id, rest), body, { key, signal });
    toast(told(reply));
    return reply;
  };
}

const nothingMore = (send) => (_form, signal) => send({}, signal);

const accepted = (words) => (reply) => `${words}: accepted${reply.seq ? ` at ${reply.seq}` : ""}.`;

export const interrupt = (one) =>
  confirm({
    title: `Interrupt ${one.id}?`,
    says: [
      "Ends the turn that is open now. Its messages are settled as interrupted; messages that wait are taken next.",
      "A call that is running is cut: whether it had its effect is then unknown. Without an open turn nothing happens.",
    ],
    verb: "Interrupt",
    act: nothingMore(keyed(one.id, "/interrupt", accepted("Interrupt"))),
  });

export function stop(one) {
  const send = keyed(one.id, "/stop", accepted("Stop"));
  const queue = h("label", { class: "check" }, h("input", { type: "checkbox", name: "queue" }), "Also refuse the messages that wait");
  return confirm({
    title: `Stop ${one.id}?`,
    says: [
      "Ends the open turn as interrupted, lets the conversation go, and keeps it stopped until somebody starts it.",
      "New messages are refused meanwhile. Messages that wait stay, and are taken after the next start.",
    ],
    fields: [queue],
    verb: "Stop",
    grave: true,
    act: (form, signal) => send(form.queue ? { queue: true } : {}, signal),
  });
}

export const start = (one) =>
  confirm({
    title: `Start ${one.id}?`,
    says: [
      "Asks for a live agent loop, and waits up to 15 seconds for it. If the conversation is stopped or failed, that ends.",
      "Any node may become its owner. The wish is durable: it outlives this page and this node.",
    ],
    verb: "Start",
    act: nothingMore(keyed(one.id, "/start", (reply) => (reply.owner ? `Started: ${reply.owner.node} owns it.` : "Start: accepted, no owner yet."))),
  });

export function answer(one, question) {
  const send = keyed(one.id, "/answer", accepted("Answer"));
  const field = h("textarea", { name: "text", rows: 3, required: true, "aria-label": "Your answer" });
  return confirm({
    title: "Answer",
    says: ["The turn waits for a person. With your answer it goes on, on whichever node."],
    fields: [h("blockquote", null, question.words), field],
    verb: "Answer",
    act: ({ text }, signal) => send(question.ask ? { ask: question.ask, text } : { text }, signal),
  });
}

export const takeOver = (one, here) =>
  confirm({
    title: `Take ${one.id} over?`,
    says: [
      `Makes ${here}, the node that serves this page, the owner by force, at epoch ${one.epoch + 1}.`,
      one.owner && one.owner.node !== here
        ? `${one.owner.node} loses it at once: nothing that it still writes is accepted. A call that is running there is cut, ` +
          "and runs again only if it was declared idempotent."
        : "Nobody else holds it now.",
      `If it has moved on from epoch ${one.epoch} by then, nothing is changed.`,
    ],
    verb: "Take over",
    grave: true,
    act: async (_form, signal) => {
      const reply = await ask(at(one.id, "/takeover"), { method: "POST", json: { epoch: one.epoch }, signal });
      toast(`Taken over: ${reply.owner?.node ?? here} owns it, epoch ${reply.epoch}.`);
      return reply;
    },
  });

export const drain = (node) =>
  confirm({
    title: `Drain ${node.node}?`,
    says: [
      `It takes nothing new. Open turns get their time to end; then it hands over what it holds (${count(node.owned)} now), and leaves.`,
      "Its process ends after that. Other nodes need room for what it held. This cannot be taken back.",
      ...(node.here ? ["This page comes from that node, and goes with it: open another node's page."] : []),
    ],
    verb: "Drain",
    grave: true,
    act: async (_form, signal) => {
      await ask(`nodes/${encodeURIComponent(node.node)}/drain`, { method: "POST", json: {}, signal });
      toast(`${node.node} was asked to drain.`);
    },
  });
