// The public API of the node that served this page, and nothing else.

import { heed } from "./format.js";

const ROOT = new URL("..", import.meta.url); // the app may be mounted below a path
const PATIENCE_MS = 20_000;
const TRIES = 6;

/** A refusal: the problem document that the server answered with. */
export class Problem extends Error {
  constructor(status, document) {
    super(document.detail ?? document.title ?? `the server answered ${status}`);
    this.status = status;
    this.code = document.code ?? "";
    this.document = document;
  }
}

/** No answer at all: the request may or may not have arrived. */
export class Unreachable extends Error {}

const listeners = new Set();
let state = "connecting";

/** Be told of `connecting`, `live`, `reconnecting`, `storeless` and `failing`, now and at each change. */
export function onLink(listener) {
  listeners.add(listener);
  listener(state);
}

export function setLink(next) {
  if (next === state) return;
  state = next;
  for (const listener of listeners) listener(state);
}

const OURS = new Set(["node-unavailable", "provisioning-failed"]); // 503 of a node that is well, and so is its store

/** What a reply says of the link: a node that answers is no good without its store. */
function linkOf(status, code) {
  if (status < 500 || OURS.has(code)) return "live";
  return code === "store-unavailable" ? "storeless" : "failing";
}

// --- the key ---------------------------------------------------------------------------------------------------------

const KEY = "tenure.key";
let asking = null;
let askForKey = () => Promise.reject(new Error("nobody asks for the key"));
let remembered = "";
try {
  remembered = sessionStorage.getItem(KEY) ?? "";
} catch {
  // a browser that keeps nothing asks anew on each load
}

/** How the key is asked for: an async function of whether one was refused, to the key. */
export const keyAskedBy = (ask) => (askForKey = ask);

/** Ask for the key, once however many requests need it. */
function askOnce(refused) {
  asking ??= askForKey(refused)
    .then((key) => {
      remembered = key;
      try {
        sessionStorage.setItem(KEY, key);
      } catch {
        // for this load only
      }
    })
    .finally(() => (asking = null));
  return asking;
}

const headersWith = (more) => (remembered ? { ...more, Authorization: `Bearer ${remembered}` } : more);

// --- requests --------------------------------------------------------------------------------------------------------

function address(path, query) {
  const url = new URL(path.replace(/^\//, ""), ROOT);
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.append(name, value);
  }
  return url;
}

/** Ask; 401 asks for the key and tries again. The reply; throws a Problem for what was refused, Unreachable without one. */
export async function reach(path, { method = "GET", query, headers = {}, body, signal } = {}) {
  for (;;) {
    const used = remembered;
    let reply;
    try {
      reply = await fetch(address(path, query), {
        method, body, signal, headers: headersWith(headers), cache: "no-store", credentials: "omit", redirect: "error",
      });
    } catch (error) {
      if (signal?.aborted && signal.reason?.name !== "TimeoutError") throw error;
      setLink("reconnecting");
      throw new Unreachable("the node does not answer");
    }
    heed(reply.headers.get("date"));
    if (reply.status === 401) {
      setLink("live");
      if (used === remembered) await askOnce(used !== "");
      continue;
    }
    if (reply.ok) {
      setLink("live");
      return reply;
    }
    const problem = new Problem(reply.status, (await reply.json().catch(() => null)) ?? {});
    setLink(linkOf(problem.status, problem.code));
    throw problem;
  }
}

/** Ask for JSON. Throws a Problem for what was refused, Unreachable without an answer. */
export async function ask(path, options = {}) {
  const { json, key, timeoutMs = PATIENCE_MS } = options;
  const headers = { Accept: "application/json" };
  if (json !== undefined) headers["Content-Type"] = "application/json";
  if (key) headers["Idempotency-Key"] = key;
  const signal = options.signal
    ? AbortSignal.any([options.signal, AbortSignal.timeout(timeoutMs)])
    : AbortSignal.timeout(timeoutMs);
  const body = json === undefined ? undefined : JSON.stringify(json);
  const reply = await reach(path, { ...options, headers, body, signal });
  if (reply.status === 204) return null;
  try {
    return await reply.json();
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Unreachable("the answer was cut");
  }
}

/** Sleep `ms`, a little more or less; ends early when the network comes back. */
export function pause(ms, signal) {
  return new Promise((done) => {
    const end = () => {
      clearTimeout(timer);
      window.removeEventListener("online", end);
      signal?.removeEventListener("abort", end);
      done();
    };
    const timer = setTimeout(end, ms * (0.75 + Math.random() / 2));
    window.addEventListener("online", end);
    signal?.addEventListener("abort", end);
  });
}

/** A new key for a command. (`crypto.randomUUID` is missing on plain HTTP.) */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return `web-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** Send a command under one key until it is answered, so that a retry cannot double it; or until `signal` says no more. */
export async function command(path, json, { key = newKey(), onRetry = () => {}, signal } = {}) {
  for (let tries = 1; ; tries++) {
    try {
      return await ask(path, { method: "POST", json, key, signal });
    } catch (error) {
      const again = error instanceof Unreachable || (error instanceof Problem && error.status === 503);
      if (!again || tries >= TRIES || signal?.aborted) throw error;
      onRetry(tries);
      await pause(Math.min(4000, 250 * 2 ** tries), signal);
      signal?.throwIfAborted();
    }
  }
}

/** The path of a conversation, and what is below it. */
export const at = (id, rest = "") => `conversations/${encodeURIComponent(id)}${rest}`;
