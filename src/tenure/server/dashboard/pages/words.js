// What each kind of event is, in words: pure, from an event to what a row shows.

import { brief, duration } from "./format.js";

const MINOR = new Set([
  "created", "loop_started", "runtime_requested", "runtime_ready", "runtime_attached", "runtime_discarded", "settings_changed",
]);

/** Why an owner let go. */
const RELEASED = {
  idle: "nothing left to do",
  drained: "its node was drained",
  stopped: "the conversation was stopped",
  failed: "it could not be started",
  forced: "by force",
};

const DEATHS = { exited: "its process died", expired: "its lease ran out", retired: "it gave up" };

/** Why a conversation moved away from an owner that did not release. */
export const moved = ({ forced, death }) =>
  DEATHS[death] ? `the owner before: ${DEATHS[death]}` : forced ? "by force" : "the owner before did not release";

const textOf = (body) => (typeof body?.text === "string" ? body.text : body?.content !== undefined ? brief(body.content, 4000) : "");
const errorOf = (error) => (error === null || error === undefined ? "" : typeof error === "string" ? error : (error.message ?? error.reason ?? brief(error)));

/** {look, label, text, grave?}: `look` chooses the row's form. */
const SAYS = {
  message: (body) => ({ look: "message", label: "message", text: textOf(body) }),
  reply: (body) => ({ look: "reply", label: "reply", text: textOf(body) || brief(body, 4000) }),
  start: () => ({ look: "command", label: "start", text: "somebody asked for a start" }),
  stop: (body) => ({ look: "command", label: "stop", text: body.queue ? "somebody asked for a stop, waiting messages refused" : "somebody asked for a stop" }),
  interrupt: () => ({ look: "command", label: "interrupt", text: "somebody asked to end the turn" }),
  answer: (body) => ({ look: "message", label: "answer", text: textOf(body) || brief(body.answer, 4000) }),
  created: (body) => ({ look: "minor", label: "created", text: `for agent ${body.agent}${body.user_id ? `, user ${body.user_id}` : ""}` }),
  claimed: (body, event) => ({
    look: body.previous ? "takeover" : "owner",
    label: body.previous ? "takeover" : "claimed",
    text: body.previous ? moved(body) : `because it was ${body.why === "start" ? "started" : "wanted"}`,
    node: body.node,
    epoch: event.epoch,
  }),
  released: (body) => ({ look: "owner", label: "released", text: RELEASED[body.reason] ?? body.reason }),
  command_settled: (body) => {
    const text = `${body.command}: ${body.outcome}${body.body ? ` · ${brief(body.body)}` : ""}`;
    return body.outcome === "refused" ? { look: "end", label: "refused", text, grave: true } : { look: "minor", label: "settled", text };
  },
  stopped: () => ({ look: "end", label: "stopped", text: "until somebody starts it" }),
  settings_changed: () => ({ look: "minor", label: "settings", text: "other settings from the next turn on" }),
  runtime_requested: (body) => ({ look: "minor", label: "runtime", text: `${body.name} requested${body.provider ? ` of ${body.provider}` : ""}` }),
  runtime_ready: (body) => ({ look: "minor", label: "runtime", text: `${body.name} is ready` }),
  runtime_attached: (body) => ({ look: "minor", label: "runtime", text: `${body.name} was found alive` }),
  runtime_lost: (body) => ({ look: "end", label: "runtime lost", text: `${body.name}${body.reason ? `: ${body.reason}` : ""}`, grave: true }),
  runtime_discarded: (body) => ({ look: "minor", label: "runtime", text: `${body.name} discarded${body.reason ? `: ${body.reason}` : ""}` }),
  start_failed: (body) => ({ look: "end", label: "start failed", text: `at ${body.step}: ${body.reason}${body.permanent ? " (for good)" : ""}`, grave: true }),
  loop_started: (body) => ({ look: "minor", label: "loop", text: `${body.agent} is live` }),
  turn_started: (body) => ({ look: "turn", label: "turn", text: `on ${(body.commands ?? []).join(", ")}` }),
  turn_waiting: (body) => ({ look: "ask", label: "waits", text: body.until ? `until ${body.until}` : askWords(body) }),
  turn_resumed: (body) => ({ look: "turn", label: "resumed", text: body.ask ? `with the answer: ${brief(body.answer, 400)}` : `attempt ${body.attempt}` }),
  turn_completed: () => ({ look: "turn-end", label: "completed", text: "" }),
  turn_failed: (body) => ({ look: "turn-end", label: "failed", text: [body.reason, errorOf(body.error)].filter(Boolean).join(": "), grave: true }),
  turn_interrupted: (body) => ({ look: "turn-end", label: "interrupted", text: body.reason || (body.by ? `by ${body.by}` : ""), grave: true }),
};

/** The question of a turn that waits. */
export function askWords(body) {
  const asked = body.body;
  return typeof asked === "string" ? asked : (asked?.question ?? (asked == null ? body.ask : brief(asked, 2000)));
}

/** What a row says of an event that is not about a call. */
export function told(event) {
  const body = event.body ?? {};
  const says = SAYS[event.kind];
  if (says) return says(body, event);
  const text = textOf(body) || brief(body, 1000);
  return { look: event.delivery ? "command" : "emit", label: event.kind, text: text === "{}" ? "" : text };
}

export const isMinor = (event) => MINOR.has(event.kind);

/** The arguments of a call, short. */
export function argumentsOf(body) {
  const given = body.arguments;
  if (given === null || given === undefined) return "";
  const list = Array.isArray(given) ? given : typeof given === "object" && Array.isArray(given.args) ? given.args : null;
  if (list) return list.map((one) => brief(one, 80)).join(", ");
  return brief(given, 160);
}

/** A call's result, short; of a process what it wrote, and its exit code if it is not 0. */
function resultOf(result) {
  if (result === null || result === undefined) return "";
  if (typeof result !== "object" || typeof result.stdout !== "string") return brief(result, 300);
  const wrote = brief((result.stdout || result.stderr || "").trim(), 300);
  return [result.exit_code ? `exit ${result.exit_code}` : "", wrote].filter(Boolean).join(" · ");
}

/** A call's fate from the events that closed or repeated it. */
export function fate({ opened, closed, attempts, lastAt }) {
  if (!closed) return { state: "open", words: attempts > 1 ? `running, attempt ${attempts}` : "running" };
  const took = duration((Date.parse(closed.at) - Date.parse(lastAt ?? opened.at)) / 1000);
  if (closed.kind === "call_interrupted") return { state: "cut", words: `interrupted after ${took}: outcome unknown`, more: closed.body.reason };
  const again = attempts > 1 ? `, attempt ${attempts}` : "";
  if (closed.body?.error != null) return { state: "error", words: `failed after ${took}${again}`, more: errorOf(closed.body.error) };
  return { state: "done", words: `${took}${again}`, more: resultOf(closed.body?.result) };
}
